"""What a run was, second by second and shopper by shopper: all that report, gates and comparison read."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtest.histogram import Histogram

SCHEMA = 1
OUTCOMES = ("bought", "left", "gave_up", "refused", "failed", "lost", "unfinished")


class ResultsError(ValueError):
    """A file of results that cannot be read: where, what, and what to do about it."""

    def __init__(self, where: str, what: str, remedy: str) -> None:
        super().__init__(f"{where} {what} {remedy}")
        self.where, self.what, self.remedy = where, what, remedy


@dataclass(frozen=True)
class Interval:
    """One second of the run.

    Attributes:
        at: whole seconds since the run began; what is counted happened from `at` until `at + 1`.
        offered: arrivals that were due.
        started: arrivals that began.
        dropped: arrivals that could not begin, because the generator had no room for another shopper.
        late: arrivals that began more than 50 ms after they were due.
        waiting: shoppers in the waiting room at the end of the second.
        inside: shoppers in the shop at the end of the second.
        admitted: shoppers who saw their first page of the shop.
        requests: pages asked of the shop that ended; pages of the waiting room are not among them.
        errors: those of them that failed.
        latency: seconds of those requests, from their start.
    """

    at: int
    offered: int = 0
    started: int = 0
    dropped: int = 0
    late: int = 0
    waiting: int = 0
    inside: int = 0
    admitted: int = 0
    requests: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class Story:
    """What one shopper lived through. All times are seconds since the run began.

    Attributes:
        index: of the arrival, from 0, over all workers.
        due: when they were to come, by the curve.
        began: when they came.
        joined: when they were first told to wait (anew, after they had dropped their place themselves);
            None if they never were.
        number: the first position they were shown; None if they never were.
        entered: when they saw their first page of the shop; None if they did not.
        ended: when they had left.
        outcome: `bought`; `left` without buying; `gave_up` waiting; `refused` (the room was full or over);
            `failed` (errors of the shop, or of the room); `lost` (their place was gone, and not by their
            doing); `unfinished` (the run ended first).
        positions: those they were shown, in order, one for each change.
        told: the wait they were told first, least and most seconds; None if they never were.
        habit: how they behave, as `shoppers.habits` of the scenario names it.
        missed: whether they were told that they had missed their turn.
        still: when they last asked and were told to wait on; None if they never did.
    """

    index: int
    due: float
    began: float
    joined: float | None
    number: int | None
    entered: float | None
    ended: float
    outcome: str
    positions: tuple[int, ...] = ()
    told: tuple[float, float] | None = None
    habit: str = "patient"
    missed: bool = False
    still: float | None = None


@dataclass(frozen=True)
class Generator:
    """Whether the crowd could be made as it was meant to be; of several workers, the worst.

    Attributes:
        cpu_percent_p95: of one core, the 95th percentile over the seconds of the run.
        lag_p99: seconds that arrivals began after they were due, the 99th percentile.
        dropped: arrivals that never began.
        late: arrivals that began more than 50 ms after they were due.
        lost_workers: workers that vanished during the run, and their shoppers with them.
    """

    cpu_percent_p95: float = 0.0
    lag_p99: float = 0.0
    dropped: int = 0
    late: int = 0
    lost_workers: int = 0


@dataclass(frozen=True)
class Results:
    """A whole run, or one worker's part of it.

    Attributes:
        scenario: as `scenario.to_dict` gives it.
        started_at: Unix seconds.
        seconds: how long it lasted.
        workers: processes that made the crowd.
        intervals: each second, in order, without gaps.
        stories: each shopper, in order of arrival; whoever was dropped has none.
        timings: durations by name: "page:home" from the start of the request, "open:page:home" for the same
            requests from when they were meant to start; "room:page", "room:status" and so on for what the
            waiting room was asked.
        failures: how many failed, by kind: "status 500", "refused", "timeout", ... of the shop, and the same
            behind "room: " for answers of the waiting room itself.
        generator: whether the generator was the bottleneck.
        metrics: series that were scraped, by "name{labels}": seconds since the start, and value.
        origin: rows of the storefront's own log with `at` in seconds since the start; None without one.
        stopped: why it ended before its time; empty if it did not.
    """

    scenario: dict[str, Any]
    started_at: float
    seconds: float
    workers: int = 1
    intervals: list[Interval] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    timings: dict[str, Histogram] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    generator: Generator = field(default_factory=Generator)
    metrics: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    origin: list[dict[str, Any]] | None = None
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it, `schema` first."""
        plain = {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("scenario", "started_at", "seconds", "workers")},
            "intervals": [interval_to_json(interval) for interval in self.intervals],
            "stories": [asdict(story) for story in self.stories],
            "timings": {name: each.to_json() for name, each in sorted(self.timings.items())},
            "generator": asdict(self.generator),
        }
        return plain | {name: getattr(self, name) for name in ("failures", "metrics", "origin", "stopped")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "The results") -> "Results":
        """What `to_json` gave. `where` names them in an error.

        Raises:
            ResultsError: another schema, or none at all.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else None
            what = f"are not results of schema {SCHEMA}" + (f", but of schema {found}." if found else ".")
            raise ResultsError(where, what, "Run the scenario again with --json.")
        try:
            return cls(
                **{name: data[name] for name in ("scenario", "started_at", "seconds", "workers")},
                intervals=[interval_from_json(each) for each in data["intervals"]],
                stories=[_story_from_json(each) for each in data["stories"]],
                timings={name: Histogram.from_json(each) for name, each in data["timings"].items()},
                failures=dict(data["failures"]),
                generator=Generator(**data["generator"]),
                metrics={name: [(at, value) for at, value in each] for name, each in data["metrics"].items()},
                origin=data["origin"],
                stopped=data["stopped"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"are damaged ({type(error).__name__}: {error})."
            raise ResultsError(where, what, "Run the scenario again with --json.") from error


def merge_intervals(parts: Iterable[Interval]) -> list[Interval]:
    """Add up intervals of several workers by their second; seconds that none of them has are empty ones."""
    merged: dict[int, Interval] = {}
    for part in parts:
        whole = merged.get(part.at)
        merged[part.at] = part if whole is None else _sum(whole, part)
    return [merged.get(at, Interval(at)) for at in range(max(merged, default=-1) + 1)]


def merge(parts: Iterable[Results]) -> Results:
    """One run from the parts of its workers, which began at the same moment.

    Raises:
        ValueError: there is no part.
    """
    each = list(parts)
    if not each:
        raise ValueError("there is nothing to merge")
    timings: dict[str, Histogram] = {}
    failures: dict[str, int] = {}
    for part in each:
        for name, histogram in part.timings.items():
            timings.setdefault(name, Histogram()).merge(histogram)
        for kind, count in part.failures.items():
            failures[kind] = failures.get(kind, 0) + count
    return replace(
        each[0],
        started_at=min(part.started_at for part in each),
        seconds=max(part.seconds for part in each),
        workers=sum(part.workers for part in each),
        intervals=merge_intervals(interval for part in each for interval in part.intervals),
        stories=sorted((story for part in each for story in part.stories), key=lambda story: story.index),
        timings=timings,
        failures=failures,
        generator=_worst([part.generator for part in each]),
        metrics={name: series for part in each for name, series in part.metrics.items()},
        origin=next((part.origin for part in each if part.origin is not None), None),
        stopped=next((part.stopped for part in each if part.stopped), ""),
    )


def save(results: Results, path: Path) -> None:
    """Write results as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(results.to_json(), separators=(",", ":"), ensure_ascii=False) + "\n")


def load(path: Path) -> Results:
    """Read results that `save` wrote.

    Raises:
        ResultsError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(str(path), f"cannot be read: {error.strerror}.", "Check the name.") from error
    except ValueError as error:
        remedy = "Name the file that --json wrote."
        raise ResultsError(str(path), f"is not JSON: {error}.", remedy) from error
    return Results.from_json(data, str(path))


def _sum(one: Interval, other: Interval) -> Interval:
    latency = Histogram()
    latency.merge(one.latency)
    latency.merge(other.latency)
    counts = [name for name in Interval.__dataclass_fields__ if name not in ("at", "latency")]
    added = {name: getattr(one, name) + getattr(other, name) for name in counts}
    return Interval(at=one.at, latency=latency, **added)


def _worst(each: list[Generator]) -> Generator:
    return Generator(
        cpu_percent_p95=max(part.cpu_percent_p95 for part in each),
        lag_p99=max(part.lag_p99 for part in each),
        dropped=sum(part.dropped for part in each),
        late=sum(part.late for part in each),
        lost_workers=sum(part.lost_workers for part in each),
    )


def interval_to_json(interval: Interval) -> dict[str, Any]:
    """One second as JSON knows it."""
    plain = {name: getattr(interval, name) for name in Interval.__dataclass_fields__}
    return plain | {"latency": interval.latency.to_json()}


def interval_from_json(data: Mapping[str, Any]) -> Interval:
    """What `interval_to_json` gave.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    return Interval(**{**data, "latency": Histogram.from_json(data["latency"])})


def _story_from_json(data: Mapping[str, Any]) -> Story:
    told = data["told"]
    return Story(
        **{**data, "positions": tuple(data["positions"]), "told": None if told is None else tuple(told)}
    )
