"""What happens in a run while it happens, until it becomes `Results`. It has no clock of its own."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadtest.browser import OWN_LIMIT
from loadtest.histogram import Histogram
from loadtest.results import Generator, Interval, Results, Story

if TYPE_CHECKING:
    from collections.abc import Callable

LATE = 0.05  # seconds after which an arrival is late
MOST_LAG, MOST_DROPPED, MOST_CPU = 0.1, 0.001, 85.0  # beyond: the generator was the bottleneck


@dataclass(slots=True)
class _Second:
    counts: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)


class Record:
    """Counts by second, durations by name, and everybody's story.

    Attributes:
        waiting: people in the waiting room now.
        inside: people in the shop now.
        present: people who have come and not left.
        heard: told of each request: name, seconds, and what went wrong, empty if nothing.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.inside = 0
        self.present = 0
        self.heard: Callable[[str, float, str], None] = lambda _name, _seconds, _wrong: None
        self.stories: list[Story] = []
        self._seconds: dict[int, _Second] = {}
        self._timings: dict[str, Histogram] = {}
        self._failures: Counter[str] = Counter()
        self._lag = Histogram()
        self._cpu: list[float] = []

    def offered(self, due: float) -> None:
        """An arrival was due at this second of the run."""
        self._at(due).counts["offered"] += 1

    def dropped(self, due: float) -> None:
        """An arrival that was due could not begin."""
        self._at(due).counts["dropped"] += 1

    def began(self, due: float, now: float) -> None:
        """An arrival began."""
        second = self._at(now).counts
        second["started"] += 1
        second["late"] += now - due > LATE
        self._lag.record(max(0.0, now - due))

    def admitted(self, now: float) -> None:
        """Somebody saw their first page of the shop."""
        self._at(now).counts["admitted"] += 1

    def page(self, name: str, begun: float, meant: float, now: float, wrong: str = "") -> None:
        """A page of the shop came, or did not: `wrong` says how it failed.

        Args:
            name: of the page.
            begun: when it was asked for.
            meant: when it was meant to be.
            now: when it ended.
            wrong: empty, or the kind of failure.
        """
        second = self._at(now)
        second.counts["requests"] += 1
        second.counts["errors"] += bool(wrong)
        second.latency.record(now - begun)
        self._time(f"page:{name}", now - begun)
        self._time(f"open:page:{name}", now - meant)
        if wrong:
            self._failures[wrong] += 1
        self.heard(f"page:{name}", now - begun, wrong)

    def room(self, name: str, seconds: float, wrong: str = "") -> None:
        """The waiting room answered, or did not."""
        self._time(f"room:{name}", seconds)
        if wrong:
            self._failures[f"room: {wrong}"] += 1
        self.heard(f"room:{name}", seconds, wrong)

    def close(self, at: int, cpu_percent: float) -> Interval:
        """Note who is where at the end of a second, and give what is known of that second."""
        counts = self._at(at).counts
        counts["waiting"], counts["inside"] = self.waiting, self.inside
        self._cpu.append(cpu_percent)
        return self._interval(at)

    def results(
        self, scenario: dict[str, Any], started_at: float, seconds: float, stopped: str = ""
    ) -> Results:
        """Everything so far."""
        cpu = sorted(self._cpu)
        totals = Counter[str]()
        for second in self._seconds.values():
            totals.update(second.counts)
        return Results(
            scenario=scenario,
            started_at=started_at,
            seconds=seconds,
            intervals=[self._interval(at) for at in range(max(self._seconds, default=-1) + 1)],
            stories=sorted(self.stories, key=lambda story: story.index),
            timings=self._timings,
            failures=dict(self._failures),
            generator=Generator(
                cpu_percent_p95=cpu[int(0.95 * (len(cpu) - 1))] if cpu else 0.0,
                lag_p99=self._lag.percentile(99) if self._lag.count else 0.0,
                dropped=totals["dropped"],
                late=totals["late"],
            ),
            stopped=stopped,
        )

    def _at(self, moment: float) -> _Second:
        at = max(0, int(moment))
        second = self._seconds.get(at)
        if second is None:
            second = self._seconds[at] = _Second()
        return second

    def _interval(self, at: int) -> Interval:
        second = self._seconds.get(at) or _Second()
        latency = Histogram()
        latency.merge(second.latency)
        return Interval(at=at, latency=latency, **second.counts)

    def _time(self, name: str, seconds: float) -> None:
        histogram = self._timings.get(name)
        if histogram is None:
            histogram = self._timings[name] = Histogram()
        histogram.record(max(0.0, seconds))


def doubts(results: Results) -> list[str]:
    """Why a run proves nothing, a sentence each: the generator could not make the crowd, or nobody came."""
    generator, found = results.generator, []
    offered = sum(interval.offered for interval in results.intervals)
    if not results.stories or not results.timings:
        found.append("There is no data: nobody came.")
    if generator.lag_p99 > MOST_LAG:
        found.append(f"Arrivals were late: {generator.lag_p99 * 1000:.0f} ms at the 99th percentile.")
    if generator.dropped > MOST_DROPPED * offered:
        found.append(f"{generator.dropped:,} of {offered:,} arrivals were dropped: at_once was reached.")
    if generator.cpu_percent_p95 > MOST_CPU:
        found.append(f"The generator was busy: {generator.cpu_percent_p95:.0f} % of a core.")
    if any(OWN_LIMIT in kind for kind in results.failures):
        found.append("The generator ran out of files or ports for connections.")
    if generator.lost_workers:
        found.append(f"{generator.lost_workers} workers vanished.")
    return found
