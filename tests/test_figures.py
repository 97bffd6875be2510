"""What several workers have counted, as one: sums that never go back, and the store's word said once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.test_telemetry import QUEUEING, SALE, Clock
from waitingroom.figures import Export, Figures, Told, Total
from waitingroom.metrics import METRICS
from waitingroom.requestlog import Served
from waitingroom.room import Snapshot, Totals
from waitingroom.telemetry import Telemetry

REFERENCE = Path(__file__).parents[1] / "monitoring" / "METRICS.md"


def figures(telemetry: Telemetry) -> Figures:
    """What a worker tells, as it comes over the channel."""
    return Figures.parse(json.loads(json.dumps(telemetry.export())))


def served(telemetry: Telemetry, times: int) -> Telemetry:
    """Have so many requests counted."""
    for _ in range(times):
        telemetry.request(Served("sale", "forwarded", b"GET", b"/", 200, 0.02, 100))
        telemetry.origin("sale", 0.012)
    return telemetry


def worker(clock: Clock | None = None, times: int = 0) -> Telemetry:
    """A worker that has served so many requests."""
    return served(Telemetry(["sale"], clock=clock or Clock()), times)


def combined(
    total: Total, *living: Telemetry, now: float = 100.0, ages: dict[int, float] | None = None
) -> Figures:
    """What a supervisor with nothing to say of itself makes of these."""
    told = [Told(figures(each), (ages or {}).get(index, 0.0)) for index, each in enumerate(living)]
    return total.combine(figures(Telemetry(())), told, now)


def value(found: Figures, name: str, *labels: str) -> float | None:
    """One number, None where there is none."""
    return found.numbers[name].get(labels)


def test_what_workers_count_is_added_up() -> None:
    """Counters, histograms and gauges of their own."""
    first, second = worker(times=3), worker(times=4)
    first.connections("shopper", lambda: 5)
    second.connections("shopper", lambda: 6)
    found = combined(Total(), first, second)
    assert value(found, "requests_total", "sale", "forwarded") == 7
    assert value(found, "sent_bytes_total", "sale") == 700
    assert value(found, "connections_open", "shopper") == 11
    latency = found.distributions["origin_latency_seconds"]["sale",]
    assert sum(latency.counts) == 7
    assert latency.total == pytest.approx(7 * 0.012)


def test_the_dead_are_counted_on() -> None:
    """A worker's end takes nothing from a counter, and its gauges with it."""
    total, first, second = Total(), worker(times=3), worker(times=4)
    second.connections("shopper", lambda: 6)
    total.bury(figures(second))
    found = combined(total, first)
    assert value(found, "requests_total", "sale", "forwarded") == 7
    assert sum(found.distributions["origin_latency_seconds"]["sale",].counts) == 7
    assert value(found, "connections_open", "shopper") is None
    total.forget(["other"])
    assert value(combined(total, first), "requests_total", "sale", "forwarded") == 3


def test_the_stores_word_is_taken_from_who_heard_it_last() -> None:
    """It is the same for all, so never added up; nor taken back when those who know it best are gone."""
    clock = Clock()
    early, late, total = worker(clock), worker(clock), Total()
    early.tick("sale", 0.001)
    early.snapshot(SALE, Snapshot(inside=10, totals=Totals(joined=100)))
    clock.now += 0.5
    late.tick("sale", 0.001)
    late.snapshot(SALE, Snapshot(inside=12, totals=Totals(joined=105)))
    for order in ((early, late), (late, early)):
        found = combined(Total(), *order)
        assert value(found, "joined_total", "sale") == 105
        assert value(found, "shoppers_inside", "sale") == 12
        assert value(found, "limit_shoppers_inside", "sale") == SALE.total_active_users
    combined(total, early, late, now=100.0)
    assert value(combined(total, early, now=100.1), "joined_total", "sale") == 105
    early.tick("sale", 0.001)
    early.snapshot(SALE, Snapshot(inside=1, totals=Totals(joined=1)))
    assert value(combined(total, early, now=100.2), "joined_total", "sale") == 1


def test_ages_are_the_worst_and_grow_in_silence() -> None:
    """A worker that has not answered since has not ticked either, as far as anybody knows."""
    clock = Clock()
    first, second, total = worker(clock), worker(clock), Total()
    clock.now += 1
    for each in (first, second):
        each.tick("sale", 0.001)
        each.snapshot(SALE, QUEUEING)
    clock.now += 2
    second.tick("sale", 0.001)
    assert value(combined(total, first, second), "tick_age_seconds", "sale") == pytest.approx(2)
    found = combined(total, first, second, ages={1: 7.0})
    assert value(found, "tick_age_seconds", "sale") == pytest.approx(7)
    assert value(combined(total, now=130.0), "tick_age_seconds", "sale") == pytest.approx(30)


def test_one_worker_that_sees_a_stall_is_enough() -> None:
    """And one whose file differs from the store."""
    clock = Clock()
    first, second = worker(clock), worker(clock)
    first.snapshot(SALE, QUEUEING)
    second.differences("sale", 2)
    clock.now += 31
    found = combined(Total(), first, second)
    assert value(found, "stalled", "sale") == 1
    assert value(found, "room_differences", "sale") == 2
    assert value(found, "build_info", *next(iter(found.numbers["build_info"]))) == 1


def test_the_supervisor_speaks_for_itself() -> None:
    """Workers have their own numbers of what only it can know; those do not count."""
    own, first = Telemetry(()), worker()
    own.workers(2, looping=True)
    own.reloaded("refused")
    first.reloaded("done")
    found = Total().combine(figures(own), [Told(figures(first), 0.0)], 1.0)
    assert value(found, "workers_running") == 2
    assert value(found, "workers_crash_looping") == 1
    assert value(found, "config_reloads_total", "done") == 0
    assert value(found, "config_reloads_total", "refused") == 1


def test_a_process_is_measured_with_its_workers() -> None:
    """Memory and CPU are sums, the CPU of the dead included; the start is the supervisor's."""
    own, first, dead = (Figures() for _ in range(3))
    for each, cpu, start in ((own, 1.0, 10.0), (first, 2.0, 20.0), (dead, 4.0, 15.0)):
        each.process.update(
            {
                "process_cpu_seconds_total": cpu,
                "process_resident_memory_bytes": 100.0,
                "process_start_time_seconds": start,
            }
        )
    total = Total()
    total.bury(dead)
    assert total.combine(own, [Told(first, 0.0)], 1.0).process == {
        "process_cpu_seconds_total": 7.0,
        "process_resident_memory_bytes": 200.0,
        "process_start_time_seconds": 10.0,
    }


def test_what_another_version_tells_is_passed_over() -> None:
    """During an upgrade a worker may know metrics that its supervisor does not, or not know all."""
    document: dict[str, Any] = worker(times=1).export()
    document["numbers"]["tomorrow_total"] = [[[], 1.0]]
    del document["numbers"]["joined_total"]
    found = Figures.parse(json.loads(json.dumps(document)))
    assert value(found, "requests_total", "sale", "forwarded") == 1


def test_the_export_is_that_of_one_process() -> None:
    """Same families in the same order, with the same help, so that nobody need know how many there are."""
    single = served(worker(), 2)
    single.snapshot(SALE, QUEUEING)
    single.tick("sale", 0.001)
    together = combined(Total(), single)
    text, kind = Export(together).render("")

    def read(exposed: bytes) -> list[tuple[str, str, str]]:
        found = text_string_to_metric_families(exposed.decode())
        return [(family.name, family.documentation, family.type) for family in found]

    plain, plain_kind = single.render("")
    assert (read(text), kind) == (read(plain), plain_kind)
    assert b'waitingroom_requests_total{room="sale",verdict="forwarded"} 2.0' in text


def test_the_reference_says_how_each_is_combined() -> None:
    """METRICS.md has every metric that is not added up beside the word that says what becomes of it."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", REFERENCE.read_text(), re.MULTILINE)
    written = {how: re.findall(r"`(\w+)`", names) for how, names in rows if how != "sum"}
    assert written == {
        how: [row.name for row in METRICS if row.combine == how] for how in ("store", "worst", "age", "own")
    }
