"""Bounds that a scenario sets: what each looks at in the results, by windows or as a whole, and finds."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from loadtest import promises, scrape
from loadtest.histogram import Histogram
from loadtest.results import OUTCOMES, Interval, Results
from loadtest.scenario import Gate

RATIOS = ("errors", "dropped", "late", "told", *OUTCOMES)
COUNTS = ("errors", "dropped", "late", "requests", "admitted", *OUTCOMES)
_OF_INTERVALS = {"errors": "requests", "dropped": "offered", "late": "offered"}
_ALL_PAGES = "page"


class Outcome(StrEnum):
    """What is known of a gate, or of a run."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"


@dataclass(frozen=True)
class Finding:
    """What one gate found.

    Attributes:
        name: what the gate is about, as a heading.
        outcome: never `ABORTED`.
        figure: what was found, with its unit; "no data" where there is none.
        bound: what it must be.
        why: what the figure means and where it comes from, a sentence or two.
        fixed: whether it applies to every run, rather than being the scenario's own.
    """

    name: str
    outcome: Outcome
    figure: str
    bound: str
    why: str = ""
    fixed: bool = False


def gates_of(scenario: Mapping[str, Any]) -> list[Gate]:
    """Gates of a scenario as results keep it; tables from elsewhere may leave out what has a default."""
    named = (
        {"since" if key == "from" else key: value for key, value in each.items()}
        for each in scenario.get("gates", ())
    )
    return [Gate(**each) for each in named]


def complaint(gate: Gate) -> str:
    """What is wrong with a gate, as the end of a sentence, before anything runs; empty if nothing is."""
    if gate.most is None and gate.least is None:
        return "has no bound. Add most = … or least = …"
    if gate.measure == "metric":
        try:
            scrape.parse_query(gate.query)
        except scrape.FormatError as error:
            return f"has a query that cannot be asked: {error}"
    elif gate.abort and gate.window is None:
        return "can end a run only if it is judged by windows. Add window = …"
    elif gate.window is not None and not _has_windows(gate):
        return f"cannot be judged by windows: {gate.of} is known of the whole run only. Leave window out"
    return _unknown(gate)


def _unknown(gate: Gate) -> str:
    if gate.measure == "latency" and not gate.of:
        return 'has no of. Add for example of = "page:product", or of = "page" for all pages'
    known = {"ratio": RATIOS, "count": COUNTS}.get(gate.measure)
    failures = gate.measure == "count" and gate.of.startswith("failures:")
    if known is None or gate.of in known or failures:
        return ""
    near = get_close_matches(gate.of, known, 1)
    hint = f"Did you mean {near[0]}" if near else f"There are {', '.join(known)}"
    return f"knows no {gate.measure} of {gate.of!r}. {hint}"


def breached(results: Results) -> str:
    """Why a run must end now, by the gates with `abort`; empty as long as none is broken.

    `results` is what there is of it so far. Only whole windows count, and none that began in the grace.
    """
    for gate in gates_of(results.scenario):
        if gate.abort and (found := judged(gate, results, doubted=False)).outcome is Outcome.FAILED:
            return f"{found.name}: {found.figure}, must be {found.bound}"
    return ""


def _has_windows(gate: Gate) -> bool:
    if gate.measure == "metric":
        return True
    if gate.measure == "latency":
        return gate.of == _ALL_PAGES and gate.since == "start"
    return gate.of in (*_OF_INTERVALS, "requests", "admitted")


def judged(gate: Gate, results: Results, *, doubted: bool) -> Finding:
    """One gate of the scenario. Where the generator is `doubted`, so is whatever its clients measured."""
    name, bound = title(gate), _bound(gate)
    wrong = complaint(gate)
    if wrong:
        return Finding(name, Outcome.INCONCLUSIVE, "no data", bound, f"The gate {wrong}.")
    values = [(at, value) for at, value in _values(gate, results) if not math.isnan(value)]
    if not values:
        return Finding(name, Outcome.INCONCLUSIVE, "no data", bound, "Nothing of the kind was measured.")
    worst, broken = _worst(gate, values)
    figure, why = _told(gate, worst), ""
    if gate.window is not None or gate.measure == "metric":
        what = "windows" if gate.window is not None else "samples"
        why = f"Worst of {len(values)} {what}; {gate.sustained} in a row must be bad."
    if broken is not None:
        why += f" Broken after {broken:.0f} s." if why else ""
    outcome = Outcome.PASSED if broken is None else Outcome.FAILED
    if doubted and gate.measure != "metric":
        outcome, why = (
            Outcome.INCONCLUSIVE,
            f"{why} Measured by a generator that was itself the bottleneck.".strip(),
        )
    return Finding(name, outcome, figure, bound, why)


def title(gate: Gate) -> str:
    """What a gate is about, in words."""
    if gate.measure == "metric":
        return f"Metric {gate.query}"
    if gate.measure == "latency":
        since = " from when it was due" if gate.since == "intended" else ""
        return f"p{gate.percentile:g} of {gate.of}{since}"
    return f"{'Share' if gate.measure == 'ratio' else 'Count'} of {gate.of.removeprefix('failures:')}"


def _bound(gate: Gate) -> str:
    said = [
        f"at {word} {_told(gate, value)}"
        for word, value in (("most", gate.most), ("least", gate.least))
        if value is not None
    ]
    if gate.window is not None:
        said.append(f"in any {gate.sustained} windows of {gate.window:g} s")
    return " ".join(said)


def _told(gate: Gate, value: float) -> str:
    if gate.measure == "latency":
        return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"  # noqa: PLR2004 - from there on milliseconds say nothing
    return f"{value:.2%}" if gate.measure == "ratio" else f"{value:g}"


def _worst(gate: Gate, values: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """Worst value, and when `sustained` in a row had been out of bounds, None if they never were."""
    row, broken = 0, None
    for at, value in values:
        bad = (gate.most is not None and value > gate.most) or (gate.least is not None and value < gate.least)
        row = row + 1 if bad else 0
        if row >= gate.sustained and broken is None:
            broken = at
    figures = [value for _at, value in values]
    return (max(figures) if gate.most is not None else min(figures)), broken


def _values(gate: Gate, results: Results) -> Iterator[tuple[float, float]]:
    """What a gate looks at, as (end of the window in seconds, value): one for each, or a single one."""
    if gate.measure == "metric":
        series = scrape.query(results.metrics, gate.query)
        yield from _windowed(gate, series)
    elif gate.window is None:
        yield results.seconds, _whole(gate, results)
    else:
        whole = [each for each in results.intervals if each.at >= gate.grace]
        size = max(1, round(gate.window))
        for begin in range(0, len(whole) - size + 1, size):
            part = whole[begin : begin + size]
            yield part[-1].at + 1.0, _of_part(gate, part)


def _windowed(gate: Gate, series: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Samples after the grace; with windows, the worst of each."""
    worst: dict[int, tuple[float, float]] = {}
    for at, value in series:
        if at < gate.grace:
            continue
        if gate.window is None:
            yield at, value
            continue
        window = int((at - gate.grace) / gate.window)
        pick = max if gate.most is not None else min
        worst[window] = (
            gate.grace + (window + 1) * gate.window,
            pick(value, worst.get(window, (0, value))[1]),
        )
    yield from (worst[window] for window in sorted(worst))


def _of_part(gate: Gate, part: Sequence[Interval]) -> float:
    if gate.measure == "latency":
        return merged(each.latency for each in part).percentile(gate.percentile)
    count = sum(int(getattr(each, gate.of)) for each in part)
    if gate.measure == "count":
        return float(count)
    return share(count, sum(int(getattr(each, _OF_INTERVALS[gate.of])) for each in part))


def _whole(gate: Gate, results: Results) -> float:
    if gate.measure == "latency":
        return _latency(gate, results)
    if gate.of == "told":
        return share(*promises.kept_word(results.stories))
    if gate.of in OUTCOMES:
        count = sum(story.outcome == gate.of for story in results.stories)
        return share(count, len(results.stories)) if gate.measure == "ratio" else _counted(count, results)
    if gate.of.startswith("failures:"):
        return _counted(results.failures.get(gate.of.removeprefix("failures:"), 0), results)
    return _of_part(gate, results.intervals) if results.intervals else math.nan


def _counted(count: int, results: Results) -> float:
    return float(count) if results.stories else math.nan


def _latency(gate: Gate, results: Results) -> float:
    prefix = "open:" if gate.since == "intended" else ""
    if gate.of == _ALL_PAGES:
        wanted = [each for name, each in results.timings.items() if name.startswith(f"{prefix}page:")]
        return merged(wanted).percentile(gate.percentile)
    return results.timings.get(prefix + gate.of, Histogram()).percentile(gate.percentile)


def merged(parts: Iterable[Histogram]) -> Histogram:
    """One histogram of everything in the parts."""
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


def share(part: int, whole: int) -> float:
    """Part of a whole; NaN of nothing."""
    return part / whole if whole else math.nan
