"""Latencies counted in buckets that grow by one per cent: small, mergeable, and nearly exact."""

import math
from collections.abc import Mapping
from typing import Any

GROWTH = 1.01  # each bucket ends one per cent above where it begins; its middle is off by half of that
SMALLEST = 1e-6  # seconds; shorter ones, zero and less share the first bucket
_STEP = math.log(GROWTH)
_MIDDLE = 2 / (1 + GROWTH)


class Histogram:
    """Durations in seconds. Any percentile is off by at most half a per cent of itself (or by a microsecond).

    Attributes:
        buckets: how often each bucket was hit.
        count: how many were recorded.
        total: their sum in seconds, exact.
        least: the shortest, exact; infinity while there is none.
        most: the longest, exact; 0 while there is none.
    """

    __slots__ = ("buckets", "count", "least", "most", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0
        self.buckets: dict[int, int] = {}

    def record(self, seconds: float, times: int = 1) -> None:
        """Add a duration, so many `times`."""
        bucket = math.ceil(math.log(seconds / SMALLEST) / _STEP) if seconds > SMALLEST else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + times
        self.count += times
        self.total += seconds * times
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)

    def merge(self, other: "Histogram") -> None:
        """Add everything that `other` holds, as if each duration had been recorded here."""
        for bucket, times in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + times
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)

    def percentile(self, percent: float) -> float:
        """Shortest duration, in seconds, that `percent` of 100 do not exceed; NaN where nothing was recorded.

        Raises:
            ValueError: `percent` is not between 0 and 100.
        """
        if not 0 <= percent <= 100:  # noqa: PLR2004 - per cent
            raise ValueError(f"a percentile lies between 0 and 100, not at {percent}")
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(self.count * percent / 100 - 1e-9))
        if rank == self.count:
            return self.most
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return min(max(_middle(bucket), self.least), self.most)
        return self.most

    def above(self, seconds: float) -> int:
        """How many were longer than `seconds`, give or take those within one per cent of it."""
        return sum(times for bucket, times in self.buckets.items() if _middle(bucket) > seconds)

    @property
    def mean(self) -> float:
        """Average in seconds, exact; NaN where nothing was recorded."""
        return self.total / self.count if self.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it: sum, extremes, and count by bucket."""
        return {
            "total": self.total,
            "least": self.least if self.count else None,
            "most": self.most,
            "buckets": {str(bucket): self.buckets[bucket] for bucket in sorted(self.buckets)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Histogram":
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        made = cls()
        made.buckets = {int(bucket): int(times) for bucket, times in data["buckets"].items()}
        made.count = sum(made.buckets.values())
        made.total = float(data["total"])
        made.least = math.inf if data["least"] is None else float(data["least"])
        made.most = float(data["most"])
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment] # it grows, so it cannot be a key

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, p50={self.percentile(50):.4g}, most={self.most:.4g})"


def _middle(bucket: int) -> float:
    """The value, in seconds, that stands for a bucket: equally far from both ends, in per cent."""
    return SMALLEST * GROWTH**bucket * _MIDDLE if bucket else 0.0
