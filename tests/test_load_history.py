"""What the readers of last year's orders and logs promise."""

import csv
import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest import accesslog, inputs
from loadtest.accesslog import Crowd, Hit, Reading, read_access_log
from loadtest.history import History, read_orders
from loadtest.inputs import InputError, unix_time

NINE = datetime(2025, 11, 28, 9, tzinfo=UTC)
BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"
anything = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def orders(path: Path, text: str, **how: Any) -> History:
    path = path / "orders.csv"
    path.write_text(text)
    return read_orders(path, **how)


def combined(
    at: datetime, address: str = "192.0.2.7", path: str = "/", status: int = 200, agent: str = BROWSER
) -> str:
    when = at.strftime("%d/%b/%Y:%H:%M:%S %z")
    return f'{address} - - [{when}] "GET {path} HTTP/1.1" {status} 512 "-" "{agent}"'


def log(path: Path, *texts: str, **how: Any) -> History:
    path = path / "access.log"
    path.write_text("\n".join(texts) + "\n")
    return read_access_log([path], Reading(**how))


@pytest.mark.parametrize(
    "text",
    [
        "2025-11-28T09:00:12Z",
        "2025-11-28 10:00:12+01:00",
        "2025-11-28 10:00:12 +0100",
        "2025-11-28 09:00:12 UTC",
        "2025-11-28 10:00:12",
        "1764320412",
        "1764320412.0",
        "1764320412000",
        "1764320412000000",
    ],
)
def test_a_time_is_read_as_shops_write_it(text: str) -> None:
    """ISO times with and without a zone and Unix times in s, ms and µs mean the same moment."""
    assert unix_time(text, ZoneInfo("Europe/Berlin")) == 1764320412


@pytest.mark.parametrize(
    "text", ["", "2025-11-28", "20251128", "1000123", "49.90", "nan", "inf", "1:2", "25:61:00"]
)
def test_what_is_no_time_is_none(text: str) -> None:
    """Dates without a time of day, order numbers and prices are not taken for times."""
    assert unix_time(text) is None


def test_orders_are_counted_by_minute(tmp_path: Path) -> None:
    """Each order counts in its minute, and minutes without any are there with 0."""
    found = orders(
        tmp_path,
        "id,created_at,total\n1,2025-11-28T09:00:01Z,3\n2,2025-11-28T09:00:59Z,4\n3,2025-11-28T09:02:00Z,5\n",
    )
    assert (found.kind, found.counts, found.at(0)) == ("orders", (2, 0, 1), NINE)
    assert found.notes == ("The time of an order is its 'created_at'.",)


def test_the_time_of_the_order_is_preferred_to_other_times(tmp_path: Path) -> None:
    """Of several columns with times the one named after creation is taken, and the others are named."""
    text = "updated_at;placed_at\n2025-11-29T09:00:00Z;2025-11-28T09:00:00Z\n"
    found = orders(tmp_path, text)
    assert found.at(0) == NINE
    assert "'updated_at' would be too; choose with --column" in found.notes[0]
    assert orders(tmp_path, text, column="updated_at").at(0) == NINE + timedelta(days=1)


def test_a_table_without_a_header_is_read(tmp_path: Path) -> None:
    """A first row that already is an order is counted."""
    assert orders(tmp_path, "1764320400\n1764320401\n").counts == (2,)


def test_the_zone_that_was_assumed_is_said(tmp_path: Path) -> None:
    """Times without a zone are taken in the given one, and how many there were is told."""
    found = orders(tmp_path, "time\n2025-11-28 10:00:00\n", zone=ZoneInfo("Europe/Berlin"))
    assert found.at(0) == NINE
    assert "1 times without a zone were taken as Europe/Berlin." in found.notes


def test_bad_rows_are_counted_and_named_by_line(tmp_path: Path) -> None:
    """A row without a time does not end the reading; the first few are named, their content never."""
    rows = ["when,name", *["2025-11-28T09:00:00Z,a"] * 50, *["soon,secret"] * 7]
    found = orders(tmp_path, "\n".join(rows))
    assert (sum(found.counts), found.bad.count) == (50, 7)
    assert found.bad.first[0] == (52, "no time in the time column")
    assert "secret" not in str(found.bad)
    assert str(found.bad).endswith("; ...)")


def test_strays_do_not_stretch_the_curve(tmp_path: Path) -> None:
    """A time decades off is left out and said, in place of decades of empty minutes."""
    found = orders(tmp_path, "at\n" + "2025-11-28T09:00:00Z\n" * 9 + "2001-01-01T00:00:00Z\n")
    assert found.counts == (9,)
    assert found.notes[-1].startswith("1 orders more than 400 days")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the table is empty"),
        ("id,total\n1,2\n", "no column holds times"),
        ("day\n2025-11-28\n", "ISO 8601 with a time of day"),
    ],
)
def test_a_table_without_orders_says_what_was_expected(tmp_path: Path, text: str, what: str) -> None:
    """Nothing usable is an error with the file and the remedy."""
    with pytest.raises(InputError, match=what) as error:
        orders(tmp_path, text)
    assert str(tmp_path) in error.value.where


def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    """The error for a wrong --column lists the columns."""
    with pytest.raises(InputError, match="it has 'id', 'at'"):
        orders(tmp_path, "id,at\n1,2025-11-28T09:00:00Z\n", column="when")


@anything
@given(st.binary(max_size=600) | st.text(alphabet='",;\n\t0123456789-:TZ\r\0a', max_size=300).map(str.encode))
def test_any_table_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, the answer is a history or a clear error."""
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    try:
        assert sum(read_orders(path).counts) > 0
    except InputError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right


@anything
@given(
    st.binary(max_size=600)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["time", "path", "ip", "status", "cookie", "request"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_log_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, the answer is a history or a clear error."""
    path = tmp_path / "any.log"
    path.write_bytes(content)
    try:
        assert sum(read_access_log([path]).counts) > 0
    except InputError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right


def test_silence_of_half_an_hour_ends_a_visit(tmp_path: Path) -> None:
    """The same person is one visit until thirty minutes of silence; means are over visits."""
    pages = [NINE, NINE + timedelta(minutes=4), NINE + timedelta(minutes=35)]
    found = log(tmp_path, *(combined(at) for at in pages), combined(pages[-1], "192.0.2.8"))
    assert found.visits is not None
    assert (found.visits.count, found.visits.pages, found.visits.seconds) == (3, 4 / 3, 80.0)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (1, 2, 3)


def test_pictures_robots_and_refusals_are_no_pages(tmp_path: Path) -> None:
    """Files, self-declared robots and 4xx are left out; 5xx are pages that failed."""
    found = log(
        tmp_path,
        combined(NINE),
        combined(NINE, path="/logo.PNG?v=2"),
        combined(NINE, status=404, address="192.0.2.9"),
        combined(NINE, agent="ExampleBot/1.0 bot", address="192.0.2.10"),
    )
    assert found.counts == (1,)
    assert "1 requests of robots were left out." in found.notes


def test_the_busiest_five_minutes_say_what_was_carried(tmp_path: Path) -> None:
    """Pages a second and the share of 5xx come from the busiest five minutes."""
    quiet = [combined(NINE + timedelta(minutes=20))]
    busy = [combined(NINE + timedelta(seconds=at), status=500 if at % 4 == 0 else 200) for at in range(300)]
    found = log(tmp_path, *busy, *quiet)
    assert found.visits is not None
    assert (found.visits.carried, found.visits.failed) == (1.0, 0.25)


JSON_LINES = {
    "nginx": {
        "time_iso8601": "2025-11-28T10:00:00+01:00", "remote_addr": "192.0.2.7", "status": "200",
        "request": "GET /a HTTP/1.1", "http_user_agent": BROWSER,
    },
    "caddy": {
        "ts": 1764320400.25, "status": 200, "request": {
            "remote_ip": "192.0.2.7", "method": "GET", "uri": "/a", "headers": {"User-Agent": [BROWSER]},
        },
    },
    "traefik": {
        "StartUTC": "2025-11-28T09:00:00.5Z", "ClientHost": "192.0.2.7", "RequestMethod": "GET",
        "RequestPath": "/a", "DownstreamStatus": 200,
    },
    "haproxy": "Nov 28 09:00:00 lb haproxy[912]: 192.0.2.7:51004 [28/Nov/2025:09:00:00.123] web shop/s1 "
    '0/0/1/12/13 200 5120 - - ---- 1/1/0/0/0 0/0 "GET /a HTTP/1.1"',
    "apache": combined(NINE).replace(f' "-" "{BROWSER}"', ""),
}  # fmt: skip


@pytest.mark.parametrize("server", JSON_LINES)
def test_logs_of_the_usual_servers_are_read_without_options(tmp_path: Path, server: str) -> None:
    """Lines as nginx, Caddy, Traefik, HAProxy and Apache write them need no field names."""
    line = JSON_LINES[server]
    found = log(tmp_path, line if isinstance(line, str) else json.dumps(line))
    assert (found.at(0), found.counts) == (NINE, (1,))


def test_fields_of_ones_own_are_named(tmp_path: Path) -> None:
    """JSON with unusual names is read when the names are given; an unknown role is refused with the known."""
    line = json.dumps(
        {"when": "2025-11-28T09:00:00Z", "who": "192.0.2.7", "what": {"page": "/"}, "status": 200}
    )
    with pytest.raises(InputError, match="line 1: no path"):
        log(tmp_path, line)
    found = log(tmp_path, line, fields={"time": "when", "address": "who", "path": "what.page"})
    assert found.counts == (1,)
    with pytest.raises(InputError, match="there are time, address"):
        log(tmp_path, line, fields={"clock": "when"})


def test_people_are_told_apart_by_a_cookie_where_one_is_named(tmp_path: Path) -> None:
    """Two people behind one address are two visits, in JSON and in lines with the cookie at their end."""
    texts = [combined(NINE) + f' "theme=x; sid={who}"' for who in ("a", "b")]
    texts.append(
        json.dumps(
            {"time": NINE.isoformat(), "ip": "192.0.2.7", "path": "/", "cookie": "sid=a", "agent": BROWSER}
        )
    )
    assert log(tmp_path, *texts).counts == (1,)
    assert log(tmp_path, *texts, cookie="sid").counts == (2,)


def test_people_are_known_by_hashes_that_no_other_run_has() -> None:
    """Neither address nor cookie is in what is kept, and the key differs from run to run."""
    crowds = [Crowd(), Crowd()]
    for crowd in crowds:
        crowd.see(Hit(NINE.timestamp(), "192.0.2.7", BROWSER, "GET", "/", 200))
    assert "192.0.2.7" not in repr([vars(crowd) for crowd in crowds]).replace(BROWSER, "")
    assert crowds[0]._open.keys() != crowds[1]._open.keys()


def test_visits_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the longest silent visits end early, and that is counted."""
    monkeypatch.setattr(accesslog, "MOST_OPEN", 10)
    crowd = Crowd()
    for person in range(25):
        crowd.see(Hit(NINE.timestamp(), str(person), "", "GET", "/", 200))
    assert (len(crowd._open), crowd.cut) == (10, 15)
    crowd.end()
    assert crowd.visits().count == 25


def test_a_gzipped_log_is_read_and_its_progress_told(tmp_path: Path) -> None:
    """Gzip is seen from the content; progress ends at the size of the files on the disk."""
    text = "\n".join(combined(NINE + timedelta(seconds=at)) for at in range(500))
    paths = [tmp_path / "one.log", tmp_path / "two.log"]
    for path in paths:
        path.write_bytes(gzip.compress(text.encode()))
    told: list[int] = []
    found = read_access_log(paths, read=told.append)
    assert found.visits is not None
    assert found.visits.pages == 1000
    assert told[-1] == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:15] + b"\xff" * 30])
def test_a_damaged_gzip_file_is_a_clear_error(tmp_path: Path, damage: Any) -> None:
    """A file that was cut short or garbled is named, with the remedy."""
    path = tmp_path / "cut.gz"
    path.write_bytes(damage(gzip.compress(combined(NINE).encode() * 50)))
    with pytest.raises(InputError, match=r"damaged compression .* fetch the file again"):
        read_access_log([path])


def test_a_line_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the bound is one bad line, wherever chunks end, and the next is read."""
    monkeypatch.setattr(inputs, "_CHUNK", 50_000)
    found = log(tmp_path, "x" * 200_000, combined(NINE), "y" * 70_000)
    assert (found.counts, found.bad.count) == ((1,), 2)
    assert found.bad.first == ((1, "a line too long"), (3, "a line too long"))


def test_a_garbled_line_costs_no_time(tmp_path: Path) -> None:
    """Lines made to be slow to match are passed over at once."""
    began = datetime.now(UTC)
    for text in ("a" * 60_000, '"\\' * 30_000, "[1]: " * 12_000, "a:1 [" * 12_000, "a " * 30_000):
        with pytest.raises(InputError, match="1 unusable"):
            log(tmp_path, text)
    assert (datetime.now(UTC) - began).total_seconds() < 10


def test_a_log_without_a_usable_line_says_what_was_expected(tmp_path: Path) -> None:
    """Nothing usable is an error that names lines, reasons and the formats."""
    with pytest.raises(InputError, match=r"line 1: no known format; line 2: broken JSON.*expected: combined"):
        log(tmp_path, "hello", "{")


def test_a_file_that_is_not_there_is_named() -> None:
    """A missing file and a folder are errors with a remedy."""
    for path in (Path("nowhere.log"), Path(__file__).parent):
        with pytest.raises(InputError, match="name a file that can be read"):
            read_access_log([path])


def test_quoted_rows_keep_their_meaning(tmp_path: Path) -> None:
    """Commas and line ends inside quotes belong to the cell."""
    text = io.StringIO()
    csv.writer(text).writerows([["note", "at"], ["two\nlines, one cell", NINE.isoformat()]])
    assert orders(tmp_path, text.getvalue()).counts == (1,)
