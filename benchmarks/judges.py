"""What a soak is judged by: plain functions of what was seen, without a clock, a socket or a process."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from statistics import median

MEBIBYTE = 2**20

LEAK_SECONDS = 600.0
"""A leak is what grows by the bound below in this time."""

REMEMBERED = 4 * 1024
"""Bytes that a gateway may keep of each new visitor, while what it remembers is not yet full."""

AT_REST = 3.0
"""Seconds by which somebody must have been heard of before a call to have been first in line for it."""

LAG = 8.0
"""Seconds for which a gateway may still say "waiting": five without a word of the store, and some."""

LEAVING = "/bye"
"""The shop's page that gives the seat back."""

UNSURE = 5.0
"""Seconds of a session that a killed gateway may take with it: requests that it had not handed in."""

Point = tuple[float, float]
Period = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the storefront's log; `at` is seconds on the machine's monotonic clock."""

    at: float
    visitor: str
    path: str


@dataclass(slots=True)
class Place:
    """What somebody was told of one number; moments are monotonic seconds.

    Attributes:
        heard: when a poll with this number was first answered.
        waited: when they were last told to wait.
        called: when they were told that it is their turn, or let in.
        absent: whether they were silent for a while, or missed a turn, so that others may have gone before.
        gateway: which had given the number.
    """

    number: int
    heard: float = math.inf
    waited: float = -math.inf
    called: float = math.inf
    absent: bool = False
    gateway: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure and the most, or for `least` the least, that it may be."""

    name: str
    value: float
    bound: float
    unit: str = ""
    least: bool = False

    @property
    def held(self) -> bool:
        """Whether the promise was kept; what is not a number was not."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def slope(points: Sequence[Point]) -> float:
    """The median of the slopes between any two points (Theil and Sen): a few wild points do not move it."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    return median(slopes) if slopes else math.nan


def thinned(points: Sequence[Point], most: int = 120) -> list[Point]:
    """At most so many points, each the median of its neighbours."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def since(points: Iterable[Point], start: float) -> list[Point]:
    """The points from a moment on."""
    return [point for point in points if point[0] >= start]


def growth(points: Sequence[Point]) -> float:
    """By how much a series has grown from its first to its last point, as its slope tells."""
    return slope(thinned(points)) * (points[-1][0] - points[0][0]) if len(points) > 1 else math.nan


def allowed_growth(points: Sequence[Point], filling: float = 0.0) -> float:
    """Bytes by which memory may grow in the time of these points: 1 MiB or 1 % in ten minutes.

    A shorter time is allowed as much, because the allocator takes memory by the MiB. `filling` is what may
    come on top where what is remembered is not yet full.
    """
    level = median(size for _, size in points)
    longer = max(1.0, (points[-1][0] - points[0][0]) / LEAK_SECONDS)
    return max(MEBIBYTE, level / 100) * longer + filling


def read_log(lines: Iterable[str]) -> list[Request]:
    """The storefront's log; a last line that was not written to its end is left out."""
    parts = [line.split() for line in lines if line.endswith("\n")]
    return [Request(float(at), visitor, path) for at, visitor, path in parts]


def stays(log: Iterable[Request], session: float, left: Mapping[str, float]) -> list[Period]:
    """From when to when somebody held a seat for certain.

    That is until they left, by the shop's page for it or at the moment that `left` has for them, or else
    until their session has run out since their last request.
    """
    found: dict[str, Period] = {}
    over: list[Period] = []
    for who, at, path in ((request.visitor, request.at, request.path) for request in log):
        start, end = found.get(who, (at, at))
        if at > end:
            over.append((start, end))
            start = at
        idle = at if path == LEAVING else at + session - UNSURE
        found[who] = start, max(at, min(idle, left.get(who, math.inf)))
    return over + list(found.values())


def most_at_once(periods: Iterable[Period]) -> int:
    """The greatest number of periods that overlap at one instant."""
    changes = sorted(change for start, end in periods for change in ((start, -1), (end, 1)))
    return max((-inside for inside in accumulate(change for _, change in changes)), default=0)


def entries(log: Iterable[Request], spared: Sequence[Period] = ()) -> list[float]:
    """When each visitor came in first, but for those who did in a period that is spared."""
    first: dict[str, float] = {}
    for request in log:
        first.setdefault(request.visitor, request.at)
    return sorted(at for at in first.values() if not within(at, spared))


def within(at: float, periods: Iterable[Period]) -> bool:
    """Whether a moment lies in any of these periods."""
    return any(start <= at <= end for start, end in periods)


def most_over(moments: Iterable[float], rate: float) -> float:
    """The most by which the moments in any window of time exceed `rate` times its length."""
    # From moment i to moment j there are j - i + 1 in (tj - ti): the worst i has the lowest i - rate * ti.
    excess, lowest = 0.0, math.inf
    for index, at in enumerate(moments):
        lowest = min(lowest, index - rate * at)
        excess = max(excess, index + 1 - rate * at - lowest)
    return excess


def overtaken(places: Iterable[Place]) -> list[int]:
    """Numbers whose holder was there, and still told to wait when a higher number had long been called."""
    known = list(places)
    calls: list[tuple[float, int]] = sorted(
        (place.called, place.number) for place in known if place.called < math.inf
    )
    moments = [at for at, _ in calls]
    highest = _Highest([number for _, number in calls])
    found = []
    for place in known:
        first = bisect_left(moments, place.heard + AT_REST)
        last = bisect_left(moments, min(place.waited, place.called) - LAG)
        if not place.absent and first < last and highest.between(first, last) > place.number:
            found.append(place.number)
    return sorted(found)


class _Highest:
    """The highest of any run of numbers, from the highest of each run whose length is a power of two."""

    def __init__(self, numbers: list[int]) -> None:
        self._runs: list[list[int]] = [numbers]
        while 1 << len(self._runs) <= len(numbers):
            half, below = 1 << (len(self._runs) - 1), self._runs[-1]
            self._runs.append([max(below[at], below[at + half]) for at in range(len(below) - half)])

    def between(self, first: int, last: int) -> int:
        """The highest from index `first` up to before `last`, which must be greater."""
        level = (last - first).bit_length() - 1
        return max(self._runs[level][first], self._runs[level][last - (1 << level)])


def repeated(holders: Iterable[tuple[int, str]]) -> list[int]:
    """Numbers that more than one visitor holds."""
    holder: dict[int, str] = {}
    return sorted({number for number, who in holders if holder.setdefault(number, who) != who})


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """The edge of the bucket below which that share of the observations lies; counts are cumulative."""
    total = max(buckets.values(), default=0.0)
    return next((edge for edge in sorted(buckets) if total and buckets[edge] >= share * total), math.nan)


def longest_pause(moments: Sequence[float]) -> float:
    """The longest time between two moments that follow one another."""
    return max((later - at for at, later in pairwise(moments)), default=math.inf)
