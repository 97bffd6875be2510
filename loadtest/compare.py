"""What changed between two runs, beyond what chance alone would have changed.

Both runs are cut into blocks of seconds, because people who come together, and pages that are asked for
together, share their fate. Blocks are drawn anew, with replacement, some hundred times (a bootstrap), the
same ones of either run, because the same curve lets as many come. A change counts if 95 in 100 of the draws
agree on its direction, and if it is large enough to matter.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

from loadtest import promises
from loadtest.bounds import merged, share
from loadtest.gates import saturation
from loadtest.histogram import Histogram
from loadtest.results import Interval, Results, Story

DRAWS = 400
"""Of the bootstrap: the ends of an interval of 95 % rest on ten draws each."""

BLOCK = 5
"""Seconds of a run that are drawn together."""

FEWEST = 8
"""Blocks without which a run has no spread to speak of."""

BEYOND = 10
"""Waits or pages beyond a percentile without which it is one slow page's luck."""

FLOOR = 0.05
"""Share of itself by which a duration must change to matter; and of shares, `FLOOR_OF_SHARES` as it is."""

FLOOR_OF_SHARES = 0.005
_LEVEL = 0.95
_SAME_LOAD = 0.02


@dataclass(frozen=True)
class Change:
    """One figure in both runs.

    Attributes:
        name: of the figure.
        unit: "s" for durations, "" for shares.
        before: in the first run.
        after: in the second.
        low: of the interval in which the true difference (after - before) lies in 95 of 100 cases.
        high: of the same.
        verdict: "better", "worse", "same", or "unknown" where there was too little of it.
    """

    name: str
    unit: str
    before: float
    after: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class _Block:
    """What happened in `BLOCK` seconds of a run: to the people who were due in them, and to the shop's pages.

    Attributes:
        waits: of those of them who went in, in seconds, sorted.
        outcomes: how it ended for them.
        kept: for how many the wait that they were told held.
        told: how many were told one.
        requests: pages that ended.
        errors: those of them that failed.
        latency: of these pages.
    """

    waits: list[float]
    outcomes: Counter[str]
    kept: int
    told: int
    requests: int
    errors: int
    latency: Histogram


def unlike(one: Results, other: Results) -> list[str]:
    """Why two runs cannot be compared, a sentence each; empty if they can.

    The seed may differ, and so may the gates and where on the network the target was.
    """
    reasons = [
        f"{what}: {_shown(ours)} and {_shown(theirs)}."
        for what, ours, theirs in zip(_ALIKE, _nature(one), _nature(other), strict=True)
        if ours != theirs
    ]
    ours, theirs = _offered(one), _offered(other)
    if abs(ours - theirs) > _SAME_LOAD * max(ours, theirs) and not reasons:
        reasons.append(f"Offered load: {ours:,} and {theirs:,} arrivals.")
    for word, run in (("first", one), ("second", other)):
        if run.stopped:
            reasons.append(f"The {word} run was ended before its time: {run.stopped}.")
        elif busy := saturation(run.generator, _offered(run)):
            reasons.append(f"The generator of the {word} run was the bottleneck: {busy}.")
    return reasons


def compare(one: Results, other: Results, seed: int = 1) -> list[Change]:
    """Every figure of both runs with how it changed; the same seed draws the same samples."""
    before, after = _blocks(one), _blocks(other)
    nothing = _block([], [])
    chance = Random(seed)
    changes = []
    for figures, counts in ((_of_people, _has_people), (_of_pages, _has_pages)):
        pairs = [(before.get(at, nothing), after.get(at, nothing)) for at in sorted(before | after)]
        pairs = [pair for pair in pairs if any(map(counts, pair))]
        enough = min(sum(map(counts, before.values())), sum(map(counts, after.values()))) >= FEWEST
        drawn = [_both(figures, chance.choices(pairs, k=len(pairs))) for _ in range(DRAWS if enough else 0)]
        ours, theirs = _both(figures, pairs)
        for name in ours:
            differences = [b[name] - a[name] for a, b in drawn]
            changes.append(_change(name, ours[name], theirs[name], differences))
    return changes


def _both(
    figures: Callable[[Sequence[_Block]], dict[str, float]], pairs: Sequence[tuple[_Block, _Block]]
) -> tuple[dict[str, float], dict[str, float]]:
    return figures([ours for ours, _theirs in pairs]), figures([theirs for _ours, theirs in pairs])


def _change(name: str, before: float, after: float, differences: list[float]) -> Change:
    """One figure, with the differences that the draws gave."""
    unit = "" if name in _SHARES else "s"
    drawn = sorted(each for each in differences if not math.isnan(each))
    if len(drawn) < DRAWS / 2 or math.isnan(after - before):
        return Change(name, unit, before, after, math.nan, math.nan, "unknown")
    tail = (1 - _LEVEL) / 2
    low, high = drawn[int(tail * len(drawn))], drawn[math.ceil((1 - tail) * len(drawn)) - 1]
    floor = FLOOR * abs(before) if unit else FLOOR_OF_SHARES
    verdict = "same"
    if (low > 0 or high < 0) and abs(after - before) > floor:
        verdict = "better" if (after > before) == (name in _GOOD) else "worse"
    return Change(name, unit, before, after, low, high, verdict)


def _blocks(results: Results) -> dict[int, _Block]:
    people: dict[int, list[Story]] = {}
    for story in results.stories:
        people.setdefault(int(story.due / BLOCK), []).append(story)
    seconds: dict[int, list[Interval]] = {}
    for interval in results.intervals:
        seconds.setdefault(interval.at // BLOCK, []).append(interval)
    return {key: _block(people.get(key, []), seconds.get(key, [])) for key in people | seconds}


def _block(stories: list[Story], intervals: list[Interval]) -> _Block:
    kept, told = promises.kept_word(stories)
    return _Block(
        waits=sorted(promises.waited(story) for story in stories if story.entered is not None),
        outcomes=Counter(story.outcome for story in stories),
        kept=kept,
        told=told,
        requests=sum(interval.requests for interval in intervals),
        errors=sum(interval.errors for interval in intervals),
        latency=merged(interval.latency for interval in intervals),
    )


def _has_people(block: _Block) -> bool:
    return bool(block.outcomes)


def _has_pages(block: _Block) -> bool:
    return bool(block.requests)


def _of_people(blocks: Sequence[_Block]) -> dict[str, float]:
    waits = sorted(wait for block in blocks for wait in block.waits)
    outcomes = sum((block.outcomes for block in blocks), Counter[str]())
    people = outcomes.total()
    return {
        "Wait, median": _percentile(waits, 50),
        "Wait, p95": _percentile(waits, 95),
        "Wait as told": share(sum(block.kept for block in blocks), sum(block.told for block in blocks)),
        "Bought": share(outcomes["bought"], people),
        "Gave up waiting": share(outcomes["gave_up"], people),
        "Failed": share(outcomes["failed"], people),
        "Lost their place": share(outcomes["lost"], people),
    }


def _of_pages(blocks: Sequence[_Block]) -> dict[str, float]:
    latency = merged(block.latency for block in blocks)
    found = {
        name: latency.percentile(percent) if _enough(latency.count, percent) else math.nan
        for name, percent in (("Pages, median", 50), ("Pages, p95", 95), ("Pages, p99", 99))
    }
    errors = sum(block.errors for block in blocks)
    return found | {"Errors of pages": share(errors, sum(block.requests for block in blocks))}


def _percentile(ranked: Sequence[float], percent: float) -> float:
    """Nearest rank; NaN where too few lie beyond it to know."""
    if not _enough(len(ranked), percent):
        return math.nan
    return ranked[math.ceil(len(ranked) * percent / 100) - 1]


def _enough(count: int, percent: float) -> bool:
    return count * (100 - percent) / 100 >= BEYOND


_SHARES = ("Wait as told", "Bought", "Gave up waiting", "Failed", "Lost their place", "Errors of pages")
_GOOD = ("Wait as told", "Bought")
_ALIKE = ("Scenario", "Scale", "Arrivals", "Shoppers", "Limits of the room", "Kind of target")


def _nature(results: Results) -> tuple[Any, ...]:
    """What must be the same in both runs, in the order of `_ALIKE`."""
    scenario = results.scenario
    room: Mapping[str, Any] = scenario.get("room") or {}
    return (
        scenario.get("name"),
        scenario.get("scale", 1.0),
        scenario.get("arrivals"),
        (scenario.get("shoppers"), scenario.get("chain")),
        (room.get("total_active_users"), room.get("new_users_per_minute")),
        _kind(str(scenario.get("target", ""))),
    )


def _kind(target: str) -> str:
    parts = urlsplit(target)
    host = parts.hostname or ""
    near = host == "localhost" or host.startswith("127.") or host == "::1"
    return f"{parts.scheme} on {'this machine' if near else 'the network'}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004 - as much as fits on a line


def _offered(results: Results) -> int:
    return sum(interval.offered for interval in results.intervals)
