"""What a waiting room promises, judged from outside: pure functions of when people came, waited and went in.

Each judgement errs on the side of the room, by as much as an observer cannot know and no more, so that a
breach that it reports is one.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.results import Story

TICK = 1.0
"""Seconds between two admissions; one tick's worth may go in at once."""

SESSION = 60.0
"""Seconds without a request after which an observer no longer takes a seat as held; unless told otherwise."""

LAG = 2.0
"""Seconds by which a gateway's answer may be behind: two ticks, as it hears of the others once in each."""


@dataclass(frozen=True)
class Stay:
    """Somebody's time inside, in seconds since the run began: from `start`, and surely until `end`."""

    who: str
    start: float
    end: float


@dataclass(frozen=True)
class Wait:
    """Somebody who waited, in seconds since the run began.

    Attributes:
        came: when they came.
        joined: when they were first told to wait.
        still: when they last asked and were told to wait on.
        entered: when they went in.
    """

    came: float
    joined: float
    still: float
    entered: float


@dataclass(frozen=True)
class Order:
    """How far admission followed arrival among people who were there all along.

    Attributes:
        people: how many of them there were.
        pairs: of them, of whom one surely came before the other.
        overtaken: pairs in which the other was let in while the first was told to wait.
        worst: most people who so overtook a single one.
    """

    people: int
    pairs: int
    overtaken: int
    worst: int

    @property
    def tau(self) -> float:
        """Kendall's tau: 1 if nobody was overtaken, -1 if everybody was; NaN without a pair."""
        return 1 - 2 * self.overtaken / self.pairs if self.pairs else math.nan


def stays_of_log(rows: Iterable[Mapping[str, Any]], session: float = SESSION) -> list[Stay]:
    """Stays that the origin's own log proves, ordered by their start.

    A stay runs from one's first request until the last, and a new one begins after more than `session`
    seconds without any, or after a row with `leaving` (an answer that gave the seat back). What came later of
    the seat nobody outside can know, so it does not count; nor does a single request, whose stay has no
    length.
    """
    stays: list[Stay] = []
    open_stays: dict[str, Stay] = {}
    for row in sorted(rows, key=lambda row: float(row["at"])):
        who, at = str(row.get("visitor") or ""), float(row["at"])
        if not who:
            continue
        stay = open_stays.pop(who, None)
        if stay is not None and at - stay.end > session:
            stays.append(stay)
            stay = None
        stay = Stay(who, at if stay is None else stay.start, at)
        if row.get("leaving"):
            stays.append(stay)
        else:
            open_stays[who] = stay
    return sorted([*stays, *open_stays.values()], key=lambda stay: stay.start)


def stays_of_stories(stories: Iterable[Story]) -> list[Stay]:
    """Stays of which shoppers tell: from the first page of the shop that they saw until they had left."""
    stays = [
        Stay(str(story.index), story.entered, story.ended) for story in stories if story.entered is not None
    ]
    return sorted(stays, key=lambda stay: stay.start)


def most_inside(stays: Iterable[Stay]) -> tuple[int, float]:
    """Most people inside at one instant, and when that was first so (NaN if nobody was ever inside).

    A seat that is given up at the very instant at which another is taken counts once.
    """
    changes = [
        change for stay in stays if stay.end > stay.start for change in ((stay.start, 1), (stay.end, -1))
    ]
    inside, most, when = 0, 0, math.nan
    for at, change in sorted(changes):
        inside += change
        if inside > most:
            most, when = inside, at
    return most, when


def entries(stays: Iterable[Stay]) -> list[float]:
    """When each person first went in, in order. Somebody who comes back counts once."""
    first: dict[str, float] = {}
    for stay in stays:
        first[stay.who] = min(stay.start, first.get(stay.who, math.inf))
    return sorted(first.values())


def over_the_rate(moments: Sequence[float], per_minute: float, slack: float) -> float:
    """By how many people the worst window of any length exceeds what may enter in it; negative while within.

    A window from entry i to entry j holds j - i + 1 people. It may hold its share of the rate, one tick's
    worth (one person at least), and what may enter in `slack` seconds, because people are seen to enter some
    time after they were let in. `moments` are seconds in ascending order. Minus infinity without any.
    """
    interval = 60 / per_minute
    burst = max(1.0, TICK / interval) + slack / interval
    lowest, worst = math.inf, -math.inf
    for index, moment in enumerate(moments):
        level = index - moment / interval
        lowest = min(lowest, level)
        worst = max(worst, level - lowest + 1 - burst)
    return worst


def present(stories: Iterable[Story]) -> list[Story]:
    """People among whom the order must hold: made to wait, asking all along until their turn, and let in.

    Whoever looks away (sleepers, hidden tabs), goes and returns, gives up or misses the turn is passed over
    by design and goes in late; nor do clients count that do not ask as they are told.
    """
    return [
        story
        for story in stories
        if None not in (story.joined, story.still, story.entered)
        and story.habit == "patient"
        and not story.missed
    ]


def waits(stories: Iterable[Story]) -> list[Wait]:
    """Waits of those present all along, until they first went in; some have to wait again afterwards."""
    return [
        Wait(story.began, story.joined, min(story.still, story.entered), story.entered)
        for story in present(stories)
        if story.joined is not None and story.still is not None and story.entered is not None
    ]


def order(waits: Iterable[Wait], lag: float = LAG) -> Order:
    """How far people were let in in the order in which they came.

    Of two people one was first if they had been told to wait before the other came; of others nobody outside
    knows who was, so they are no pair. The first was overtaken if the other was inside already, for more than
    `lag` seconds, when the first asked and was told to wait on. When people went in would say less: one who
    is called while they wait to ask again goes in late, and nobody barged. Counted in O(n log n).
    """
    people = list(waits)
    coming = sorted(people, key=lambda each: each.came)
    moments = sorted(each.entered for each in people)
    later = _Counts(len(moments))
    pairs = overtaken = worst = added = 0
    for first in sorted(people, key=lambda each: each.joined, reverse=True):
        while coming and coming[-1].came > first.joined:
            later.add(bisect_left(moments, coming.pop().entered))
            added += 1
        before = later.below(bisect_left(moments, first.still - lag))
        pairs, overtaken, worst = pairs + added, overtaken + before, max(worst, before)
    return Order(len(people), pairs, overtaken, worst)


def grown(stories: Iterable[Story]) -> list[Story]:
    """Shoppers who were shown a position greater than one before; a missed turn does not excuse it."""
    return [
        story
        for story in stories
        if any(later > earlier for earlier, later in zip(story.positions, story.positions[1:], strict=False))
    ]


def kept_word(stories: Iterable[Story]) -> tuple[int, int]:
    """Of people present all along who were told a wait: for how many it held, and how many they are."""
    told = [story for story in present(stories) if story.told is not None]
    held = sum(story.told[0] <= waited(story) <= story.told[1] for story in told if story.told is not None)
    return held, len(told)


def waited(story: Story) -> float:
    """Seconds from joining until going in, or until leaving without; 0 for whoever never had to."""
    if story.joined is None:
        return 0.0
    return (story.ended if story.entered is None else story.entered) - story.joined


class _Counts:
    """How many were added at each rank, with sums of all ranks below one (a Fenwick tree)."""

    def __init__(self, ranks: int) -> None:
        self._sums = [0] * (ranks + 1)

    def add(self, rank: int) -> None:
        """Count one more at `rank`, from 0."""
        node = rank + 1
        while node < len(self._sums):
            self._sums[node] += 1
            node += node & -node

    def below(self, rank: int) -> int:
        """How many were counted at ranks less than `rank`."""
        total = 0
        while rank:
            total += self._sums[rank]
            rank &= rank - 1
        return total
