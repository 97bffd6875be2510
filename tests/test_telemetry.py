"""What is counted, how it is exported, and that its reference says the same."""

import asyncio
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.conftest import eventually
from waitingroom.metrics import METRICS, NO_ROOM, PREFIX, VERDICTS, Row
from waitingroom.requestlog import Served
from waitingroom.room import Room, Snapshot, Totals
from waitingroom.telemetry import LoopLag, Telemetry

REFERENCE = Path(__file__).parents[1] / "monitoring" / "METRICS.md"

SALE = Room(name="sale", total_active_users=100, new_users_per_minute=600, version=7)
QUEUEING = Snapshot(inside=90, offered=5, waiting=40, present=30, candidates=20, totals=Totals(offered=5))


class Clock:
    """Monotonic seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(clock: Clock) -> Telemetry:
    return Telemetry(["sale", "drop"], clock=clock)


def scrape(telemetry: Telemetry) -> dict[str, Metric]:
    text = telemetry.render()[0].decode()
    return {family.name: family for family in parse_text(text)}


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    """One sample of a scrape, as a Prometheus server would read it."""
    found = [
        sample.value
        for family in scrape(telemetry).values()
        for sample in family.samples
        if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1, f"{name} {labels} is ambiguous"
    return found[0] if found else None


def used(telemetry: Telemetry) -> Telemetry:
    """Touch every metric once."""
    telemetry.request(Served("sale", "forwarded", b"GET", b"/", 200, 0.02, 512))
    telemetry.origin("sale", 0.012)
    telemetry.origin_failed("sale", "connect")
    telemetry.ticket_rejected("signature")
    telemetry.connections("shopper", lambda: 1)
    telemetry.store_call("tick", 0.0007)
    telemetry.tick("sale", 0.0009)
    telemetry.loop_lag(0.0001)
    telemetry.snapshot(SALE, QUEUEING)
    return telemetry


def test_the_export_is_the_table(telemetry: Telemetry) -> None:
    """A scrape has every row of the table with its type and its help, and nothing else of ours."""
    families = scrape(used(telemetry))
    ours = {name: family for name, family in families.items() if name.startswith(PREFIX)}
    assert {name: (family.type, family.documentation) for name, family in ours.items()} == {
        PREFIX + row.name.removesuffix("_total"): (row.kind, row.doc) for row in METRICS
    }
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= families.keys()


def test_every_sample_has_the_labels_of_its_row(telemetry: Telemetry) -> None:
    """No sample carries a label that the table does not name."""
    families = scrape(used(telemetry))
    for row in METRICS:
        for sample in families[PREFIX + row.name.removesuffix("_total")].samples:
            assert set(sample.labels) - {"le"} == set(row.labels), sample


def test_the_first_event_is_an_increase(telemetry: Telemetry) -> None:
    """Series that alerts take rates of exist from the start, at zero."""
    for verdict in VERDICTS:
        assert value(telemetry, "requests_total", room="drop", verdict=verdict) == 0
        assert value(telemetry, "requests_total", room=NO_ROOM, verdict=verdict) == 0
    assert value(telemetry, "origin_errors_total", room="drop", kind="timeout") == 0
    assert value(telemetry, "tick_failures_total", room="drop") == 0


def test_requests_are_counted_by_verdict(telemetry: Telemetry) -> None:
    """Each answer counts once, under its room and verdict, with the bytes that were sent."""
    telemetry.request(Served("sale", "waiting_page", b"GET", b"/", 200, 0.001, 9000))
    telemetry.request(Served("sale", "waiting_page", b"GET", b"/", 200, 0.001, 9001))
    telemetry.request(Served(NO_ROOM, "malformed", b"", b"", 400, 0.001))
    assert value(telemetry, "requests_total", room="sale", verdict="waiting_page") == 2
    assert value(telemetry, "requests_total", room="sale", verdict="forwarded") == 0
    assert value(telemetry, "requests_total", room=NO_ROOM, verdict="malformed") == 1
    assert value(telemetry, "sent_bytes_total", room="sale") == 18001


def test_latencies_fall_into_their_buckets(telemetry: Telemetry) -> None:
    """A value on an edge belongs to the bucket below it; the last bucket holds all; the sum is exact."""
    for seconds in (0.001, 0.0011, 0.01, 99.0):
        telemetry.origin("sale", seconds)
    name = "origin_latency_seconds"
    expected = {"0.001": 1, "0.0025": 2, "0.005": 2, "0.01": 3, "10.0": 3, "+Inf": 4}
    for edge, count in expected.items():
        assert value(telemetry, f"{name}_bucket", room="sale", le=edge) == count
    assert value(telemetry, f"{name}_count", room="sale") == 4
    assert value(telemetry, f"{name}_sum", room="sale") == pytest.approx(99.0121)


def test_a_snapshot_is_taken_over_whole(telemetry: Telemetry) -> None:
    """Gauges, limits and totals of a room are those of the last snapshot."""
    totals = Totals(joined=9, offered=8, admitted=7, lapsed=6, left=5, expired=4, vanished=3, abandoned=2)
    telemetry.snapshot(SALE, Snapshot(inside=1))
    telemetry.snapshot(
        SALE, Snapshot(inside=90, offered=5, waiting=40, present=30, candidates=20, totals=totals)
    )
    expected = {
        "shoppers_inside": 90,
        "offers_open": 5,
        "visitors_waiting": 40,
        "visitors_present": 30,
        "candidates": 20,
        "limit_shoppers_inside": 100,
        "limit_new_users_per_minute": 600,
        "room_version": 7,
        "joined_total": 9,
        "offered_total": 8,
        "admitted_total": 7,
        "lapsed_total": 6,
        "left_total": 5,
        "expired_total": 4,
        "vanished_total": 3,
        "abandoned_total": 2,
    }
    assert {name: value(telemetry, name, room="sale") for name in expected} == expected
    assert value(telemetry, "shoppers_inside", room="drop") is None


def test_the_age_of_the_tick_grows_until_the_next(telemetry: Telemetry, clock: Clock) -> None:
    """The age counts from the start where no tick has succeeded, and a failed one does not make it young."""
    clock.now += 3
    assert value(telemetry, "tick_age_seconds", room="sale") == 3
    telemetry.tick_failed("sale")
    assert value(telemetry, "tick_age_seconds", room="sale") == 3
    assert value(telemetry, "tick_failures_total", room="sale") == 1
    telemetry.tick("sale", 0.001)
    clock.now += 1
    assert value(telemetry, "tick_age_seconds", room="sale") == 1


def test_waiting_without_movement_is_a_stall(telemetry: Telemetry, clock: Clock) -> None:
    """People wait, seats are free and nobody is called: the room is named; one call ends it."""
    telemetry.snapshot(SALE, QUEUEING)
    clock.now += 30
    telemetry.snapshot(SALE, QUEUEING)
    assert value(telemetry, "stalled", room="sale") == 0
    clock.now += 1
    assert value(telemetry, "stalled", room="sale") == 1
    telemetry.snapshot(SALE, Snapshot(inside=90, candidates=19, totals=Totals(offered=6)))
    assert value(telemetry, "stalled", room="sale") == 0


@pytest.mark.parametrize(
    ("seen", "arrivals", "stalled"),
    [
        (Snapshot(waiting=20, candidates=20), 0, 1),
        (Snapshot(inside=100, waiting=20), 0, 1),
        (Snapshot(), 3, 1),
        (Snapshot(inside=100), 0, 0),
    ],
    ids=["people could be called", "the room was full", "people came since", "nobody waits"],
)
def test_a_store_that_is_away_is_a_stall_if_anybody_waits(
    telemetry: Telemetry, clock: Clock, seen: Snapshot, arrivals: int, stalled: int
) -> None:
    """When no snapshots arrive at all, the last one still says who waited, and the gateway who came since."""
    telemetry.tick("sale", 0.001)
    telemetry.snapshot(SALE, seen)
    telemetry.arrivals("sale", arrivals)
    clock.now += 29
    assert value(telemetry, "stalled", room="sale") == 0
    clock.now += 2
    assert value(telemetry, "stalled", room="sale") == stalled


@pytest.mark.parametrize(
    ("room", "seen"),
    [
        (SALE, Snapshot(inside=95, offered=5, candidates=20)),
        (SALE, Snapshot(inside=10, waiting=40, candidates=0)),
        (Room(name="sale", total_active_users=100, paused=True), QUEUEING),
        (Room(name="sale", total_active_users=100, queue_all=True), QUEUEING),
    ],
    ids=["full", "nobody to call", "paused", "queue_all"],
)
def test_standing_still_for_a_reason_is_no_stall(
    telemetry: Telemetry, clock: Clock, room: Room, seen: Snapshot
) -> None:
    """A full, a held or an empty room may stand still for as long as it likes."""
    for _ in range(10):
        telemetry.tick("sale", 0.001)
        telemetry.snapshot(room, seen)
        clock.now += 20
    assert value(telemetry, "stalled", room="sale") == 0


def test_a_slow_room_has_longer_to_move(telemetry: Telemetry, clock: Clock) -> None:
    """One visitor a minute is a pace, not a stall."""
    slow = Room(name="sale", total_active_users=100, new_users_per_minute=1)
    telemetry.snapshot(slow, QUEUEING)
    clock.now += 119
    assert value(telemetry, "stalled", room="sale") == 0
    clock.now += 2
    assert value(telemetry, "stalled", room="sale") == 1


def test_connections_are_counted_both_ways(telemetry: Telemetry) -> None:
    """The gauge is those open now, by side."""
    telemetry.connections("shopper", lambda: 3)
    telemetry.connections("origin", lambda: 1)
    assert value(telemetry, "connections_open", side="shopper") == 3
    assert value(telemetry, "connections_open", side="origin") == 1


def test_store_calls_are_counted_by_outcome(telemetry: Telemetry) -> None:
    """Successes and failures of each script are told apart, and both are timed."""
    telemetry.store_call("enter", 0.0004)
    telemetry.store_call("enter", 0.2, "timeout")
    assert value(telemetry, "store_calls_total", call="enter", outcome="ok") == 1
    assert value(telemetry, "store_calls_total", call="enter", outcome="timeout") == 1
    assert value(telemetry, "store_call_seconds_count", call="enter") == 2


def test_differences_and_rejections_are_told(telemetry: Telemetry) -> None:
    """A room whose file and store disagree, and cookies that do not verify, both show."""
    telemetry.differences("sale", 2)
    telemetry.ticket_rejected("signature")
    assert value(telemetry, "room_differences", room="sale") == 2
    assert value(telemetry, "tickets_rejected_total", reason="signature") == 1


async def test_a_blocked_loop_is_seen() -> None:
    """Whatever keeps the event loop busy shows as lag of about its length."""
    lags: list[float] = []
    lag = LoopLag(asyncio.get_running_loop(), lags.append)

    def keep_busy() -> None:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            pass

    asyncio.get_running_loop().call_soon(keep_busy)
    await eventually(lambda: bool(lags))
    assert 0.3 <= lags[0] < 3
    lag.stop()


def test_openmetrics_is_served_to_those_who_ask(telemetry: Telemetry) -> None:
    """The format follows `Accept`, the content type says which it is, and both parse to the same samples."""
    plain, plain_type = used(telemetry).render("*/*")
    opened, opened_type = telemetry.render("application/openmetrics-text; version=1.0.0")
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert opened_type.startswith("application/openmetrics-text; version=1.0.0")
    assert opened.endswith(b"# EOF\n")
    names = {family.name for family in parse_text(plain.decode())}
    families = parse_openmetrics(opened.decode())  # type: ignore[no-untyped-call]  # untyped in the library
    assert names == {family.name for family in families}


def test_a_room_costs_few_series() -> None:
    """Twenty rooms in full use stay far below what a Prometheus server minds."""
    rooms = [f"room-{number}" for number in range(20)]
    telemetry = Telemetry(rooms)
    for name in rooms:
        telemetry.snapshot(Room(name=name), QUEUEING)
        telemetry.tick(name, 0.001)
        telemetry.origin(name, 0.01)
    samples = sum(len(family.samples) for family in scrape(telemetry).values())
    assert samples < 100 * len(rooms)


def test_promtool_has_no_complaint(telemetry: Telemetry) -> None:
    """Names, types and help follow the conventions of Prometheus, as its own linter sees them."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    text = used(telemetry).render()[0]
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", b"")


def test_the_scrape_configuration_is_valid() -> None:
    """Prometheus accepts the example that ships with the project."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    path = REFERENCE.with_name("prometheus.yml")
    result = subprocess.run([promtool, "check", "config", path], capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def described(row: Row) -> str:
    """The line under a metric's heading in the reference."""
    labels = ", ".join(f"`{label}`" for label in row.labels) or "no labels"
    return f"{row.kind} · {labels} · {row.doc}"


def test_the_reference_is_the_table() -> None:
    """METRICS.md has every metric in the table's order and words, and says how to read it."""
    sections = re.split(r"^### ", REFERENCE.read_text(), flags=re.MULTILINE)[1:]
    written = {}
    for section in sections:
        heading, description, *prose = section.split("\n## ")[0].strip().split("\n\n")
        written[heading.strip("`")] = description
        assert sum(map(len, prose)) > 40, f"{heading}: say where it is counted and how to read it"
    assert written == {PREFIX + row.name: described(row) for row in METRICS}
    assert list(written) == [PREFIX + row.name for row in METRICS]


@pytest.mark.parametrize("word", VERDICTS)
def test_every_verdict_is_explained(word: str) -> None:
    """The reference has a line for each verdict."""
    assert re.search(rf"^\| `{word}` \| .+ \|$", REFERENCE.read_text(), re.MULTILINE)


def test_challenges_are_counted_and_asked_about(telemetry: Telemetry) -> None:
    """Each outcome is there from the start; the gauge is asked for whenever metrics are read."""
    telemetry.challenge("sale", "solved")
    challenging = {"sale"}
    telemetry.challenging(lambda room: room in challenging)
    assert value(telemetry, "challenges_total", room="sale", outcome="solved") == 1
    assert value(telemetry, "challenges_total", room="drop", outcome="waited") == 0
    assert value(telemetry, "challenging", room="sale") == 1
    assert value(telemetry, "challenging", room="drop") == 0
    challenging.clear()
    assert value(telemetry, "challenging", room="sale") == 0
