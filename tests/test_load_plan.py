"""What a plan promises: limits, pictures, a scenario, and the commands that make them."""

import gzip
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loadtest import journeys
from loadtest import scenario as scenarios
from loadtest.cli_history import mount
from loadtest.forecast import Growth
from loadtest.history import History, Visits
from loadtest.inputs import BadLines, InputError
from loadtest.mix import implied
from loadtest.pictures import braille, in_plain, in_terminal, page, squeezed
from loadtest.plan import Known, Plan, plan, queue, scenario
from tests.histories import thinned, two_sales
from tests.test_load_history import combined

NOON = datetime(2025, 11, 28, 12, tzinfo=UTC)
SALE = two_sales(1, Growth())[0]


def visits(told: Visits | None = None) -> History:
    return History("visits", int(NOON.timestamp()), tuple(SALE), visits=told)


def made(known: Known | None = None, history: History | None = None, growth: float = 1.4) -> Plan:
    return plan(history or visits(), Growth(growth), known or Known())


def command(*words: str) -> Result:
    app = typer.Typer()
    mount(app, "")
    return CliRunner().invoke(app, words, env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    ("rate", "pages", "visit", "expected"),
    [(10, 12, 4, (450, 50, 200)), (30, 12, 4, (1350, 150, 600)), (100, 8, 3, (6000, 750, 2250))],
)
def test_limits_follow_from_what_is_safe(
    rate: float, pages: float, visit: float, expected: tuple[int, int, int]
) -> None:
    """Little's law with the idle time-out: the table of safe rates and the limits that belong to them."""
    known = Known(capacity=rate, safe=1.0, pages=pages, visit=visit * 60, idle=300)
    found = made(known).proposal
    assert (found.total_active_users, found.new_users_per_minute, found.browsing) == expected


def test_what_the_log_tells_is_used_and_said() -> None:
    """Pages, length and the carried rate come from the log where nobody gave them; each source is named."""
    found = made(history=visits(Visits(1000, 6.0, 90.0, 20.0, 0.0))).proposal
    assert (found.new_users_per_minute, found.total_active_users) == (200, 1300)
    said = " ".join(found.reasons)
    assert "carried 20.0 pages a second" in said
    assert said.count("as in the log") == 2


def test_a_log_of_a_shop_that_failed_proves_less() -> None:
    """Where pages failed in the busiest minutes only a part of what was carried is taken as safe."""
    found = made(history=visits(Visits(1000, 6.0, 90.0, 20.0, 0.2))).proposal
    assert found.pages_a_second == pytest.approx(20 * 0.8 * 0.75)
    assert "too much" in found.reasons[0]


def test_where_the_shop_is_not_known_everybody_is_let_in() -> None:
    """Without a capacity the limits are what the forecast's upper end needs; how to find it is said."""
    found = made()
    assert found.proposal.new_users_per_minute >= found.forecast.high
    assert "Search for it" in found.proposal.reasons[0]
    assert found.queues[1].people == 0


def test_the_queue_is_what_does_not_enter() -> None:
    """Backlog and wait add up minute by minute, and end when fewer come."""
    found = queue([100, 300, 300, 50, 0, 0], 100)
    assert (found.people, found.wait) == (400, 240)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(1, 1e6))
def test_no_queue_is_negative_or_longer_than_all_who_came(arrivals: list[float], rate: float) -> None:
    """Whatever comes, the queue is between nobody and everybody."""
    assert 0 <= queue(arrivals, rate).people <= sum(arrivals) + 1e-6


def test_orders_are_turned_into_visits() -> None:
    """With three orders in a hundred visits the forecast is of visits, of the size that they had."""
    orders = History("orders", 0, tuple(thinned(SALE, 0.03, 1)))
    found = made(history=orders, growth=1.0)
    assert 0.6 < found.forecast.middle / max(SALE) < 1.7


@pytest.mark.parametrize(
    ("known", "place"),
    [({"conversion": 0.0}, "--conversion"), ({"safe": 1.5}, "--safe"), ({"pages": 0.5}, "--pages")],
)
def test_numbers_that_cannot_be_are_refused(known: dict[str, float], place: str) -> None:
    """Impossible assumptions name their option."""
    with pytest.raises(InputError, match=place):
        Known(**known)
    with pytest.raises(InputError, match="--growth"):
        made(growth=0)


def test_the_scenario_is_the_peak_at_the_upper_end() -> None:
    """Thirty minutes whose busiest is the forecast's upper end, within its own bounds, with the limits."""
    found = made(Known(capacity=100))
    document = tomllib.loads(scenario(found, 'a "name"'))
    rates = document["arrivals"][0]["rates"]
    assert (len(rates), document["name"]) == (30, 'a "name"')
    assert max(rates) * 60 == pytest.approx(found.forecast.high, rel=1e-4)
    assert sum(rates) * 60 <= document["safety"]["most_shoppers"]
    assert document["room"]["total_active_users"] == found.proposal.total_active_users
    assert implied(document["chain"]) == pytest.approx((0.03, 12.0), rel=1e-3)


def test_the_scenario_thinks_as_long_as_people_did() -> None:
    """Think times come from the log: their log-normal has the mean that was seen."""
    document = tomllib.loads(scenario(made(history=visits(Visits(1000, 6.0, 90.0, 20.0, 0.0))), "x"))
    assert document["shoppers"] == {"think_median": "13.1s", "think_sigma": 0.8}


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(1, 200))
def test_a_picture_has_the_asked_size_and_its_peak(counts: list[int], width: int) -> None:
    """Every line is as wide as asked, and the highest column reaches the top."""
    rows = braille(counts, width)
    assert {len(row) for row in rows} == {width}
    assert (set(rows[0]) == {chr(0x2800)}) == (max(counts) == 0)
    assert max(squeezed(counts, width)) == max(counts)


def test_a_picture_keeps_to_the_width_of_the_terminal() -> None:
    """With its axes it is no wider than the terminal, however narrow that is."""
    for width in (20, 60, 200):
        lines = in_terminal(visits(), width).splitlines()
        assert max(map(len, lines)) <= width
    assert "#" in in_plain(visits())
    assert in_plain(visits()).isascii()


class Page(HTMLParser):
    """Collects what a page would load, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_with_its_picture() -> None:
    """Nothing is loaded from elsewhere, every tag closes, and words from the file are text."""
    history = History("visits", 0, tuple(SALE), BadLines(), ("The time is its '<script>x</script>'.",))
    found = made(history=history)
    told = Page(page(found, "Plan & more"))
    assert (told.open, told.loads) == ([], [])
    assert "<script>x</script>" in told.text
    assert f"{found.proposal.total_active_users:,}" in told.text
    assert "<polyline" in page(found, "x")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A sale's orders as a shop exports them."""
    path, rows = tmp_path / "orders.csv", []
    for at, count in enumerate(thinned(SALE, 0.03, 1)):
        rows += [f"{at},{(NOON + timedelta(minutes=at)).isoformat()}\n"] * count
    path.write_text("id,created_at\n" + "".join(rows))
    return path


def test_a_plan_from_orders_is_told_and_written(export: Path) -> None:
    """The command shows curve, forecast and proposal, and writes the page and the scenario."""
    html, toml = export.with_suffix(".html"), export.with_suffix(".toml")
    result = command(
        "plan", "--orders", str(export), "--growth", "1.4", "--capacity", "100",
        "--html", str(html), "--write", str(toml),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.search(r"busiest minute to expect: [\d,]+ visits", result.output)
    assert "total_active_users = 3375, new_users_per_minute = 375" in result.output
    assert "Jongbloed" in result.output
    assert tomllib.loads(toml.read_text())["name"] == "orders"
    assert "<svg" in html.read_text()
    again = command("plan", "--orders", str(export), "--write", str(toml))
    assert (again.exit_code, "is there already" in again.output) == (2, True)


def test_a_plan_from_logs_as_json(tmp_path: Path) -> None:
    """Several logs are read in order, and the plan is one JSON document without anybody's address."""
    paths = [tmp_path / "a.log.gz", tmp_path / "b.log"]
    texts = [
        "\n".join(combined(NOON + timedelta(seconds=n + later), f"192.0.2.{n}") for n in range(99))
        for later in (0, 99)
    ]
    paths[0].write_bytes(gzip.compress(texts[0].encode()))
    paths[1].write_text(texts[1])
    result = command("plan", *(word for path in paths for word in ("--access-log", str(path))), "--json")
    told = json.loads(result.output)
    assert told["counted"]["visits"]["count"] == 99
    assert told["forecast"]["low"] <= told["forecast"]["high"]
    assert "192.0.2" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan",), "give --orders or --access-log"),
        (("plan", "--orders", "nowhere.csv"), "name a file that can be read"),
        (("plan", "--orders", "{export}", "--timezone", "Mars/Base"), "'Mars/Base' is unknown"),
        (("plan", "--orders", "{export}", "--timezone", "../x"), "'../x' is unknown"),
        (("plan", "--orders", "{export}", "--field", "time"), "write for example time=when"),
        (("plan", "--orders", "{export}", "--doubt", "-1"), "--doubt"),
        (("plan", "--orders", "{export}", "--html", "{export}/x"), "a file that can be written"),
        (("mix", "--visits", "1", "--page-views", "2", "--orders", "3"), "more than one a visit"),
        (("from-har", "{export}"), "no JSON"),
    ],
)
def test_misuse_is_told_with_the_remedy(export: Path, words: tuple[str, ...], said: str) -> None:
    """Whatever is wrong with what was given, the command says so in two lines and ends with 2."""
    result = command(*(word.format(export=export) for word in words))
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_the_mix_is_told_for_people_and_programs() -> None:
    """The fragment is TOML with what it implies above it; --json has the same."""
    words = ("mix", "--visits", "60000", "--page-views", "420000", "--orders", "1800")
    text = command(*words).output
    assert "3.00% order" in text
    assert implied(tomllib.loads(text)["chain"]) == pytest.approx((0.03, 7.0))
    assert json.loads(command(*words, "--json").output)["conversion"] == pytest.approx(0.03)


def test_on_a_terminal_the_curve_is_drawn(export: Path) -> None:
    """A terminal gets the picture in braille at its width; elsewhere the output is plain."""
    script = "import typer, loadtest.cli_history as c; a = typer.Typer(); c.mount(a, ''); a()"
    words = [sys.executable, "-c", script, "plan", "--orders", str(export)]
    main, side = pty.openpty()
    environment = os.environ | {"COLUMNS": "70", "PYTHONUTF8": "1", "TERM": "xterm"}
    with subprocess.Popen(words, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        seen = b""
        with os.fdopen(main, "rb", buffering=0) as terminal:
            try:
                while chunk := terminal.read(4096):
                    seen += chunk
            except OSError:
                pass  # how Linux says that the other side has closed
        assert process.wait(timeout=30) == 0
    drawn = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in seen.decode().splitlines()]
    rows = [line for line in drawn if any(0x2800 < ord(letter) <= 0x28FF for letter in line)]
    assert len(rows) >= 8
    assert max(map(len, rows)) <= 70


def test_the_scenario_and_the_mix_are_what_a_rehearsal_takes(tmp_path: Path) -> None:
    """What is written loads without a change, with the same weights, and its pages are the shop's."""
    found = made(Known(capacity=100), visits(Visits(1000, 6.0, 90.0, 20.0, 0.0)))
    planned, mixed = tmp_path / "planned.toml", tmp_path / "mixed.toml"
    planned.write_text(scenario(found, "planned"))
    mix = command("mix", "--visits", "600", "--page-views", "4200", "--orders", "18").output
    mixed.write_text(f'name = "mixed"\ntarget = "http://127.0.0.1:8080"\n{mix}')
    for path in (planned, mixed):
        loaded = scenarios.load(str(path))
        assert journeys.find(loaded) is journeys.shop
        assert implied(loaded.chain) == pytest.approx(implied(tomllib.loads(path.read_text())["chain"]))
    assert scenarios.load(str(planned)).shoppers.think_median == 13.1
