"""The demonstration shop's log, and what can be told from it alone: who was inside, and how they fared."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile


@dataclass(slots=True)
class Visit:
    """One page asked of the shop.

    Attributes:
        at: arrival, on this machine's monotonic clock.
        visitor: the shop's session; the first request of a session does not carry it yet.
        returning: whether the request carried it.
        status: what was answered, 0 while unanswered.
        seconds: how long that took.
        leaving: whether the answer gave the seat back.
    """

    at: float
    visitor: str
    path: str
    returning: bool
    status: int = 0
    seconds: float = 0.0
    leaving: bool = False

    @property
    def failed(self) -> bool:
        """Whether the shop let its visitor down."""
        return self.status >= 500  # noqa: PLR2004 - HTTP's own number for a server's failure


class Ledger(list[Visit]):
    """The shop's own log, in order of arrival, and what it says."""

    def since(self, start: float) -> list[Visit]:
        """Visits that arrived at or after `start`, the latest first."""
        return list(takewhile(lambda visit: visit.at >= start, reversed(self)))

    def inside(self, now: float, window: float) -> int:
        """People inside at `now`.

        Somebody is inside from the first request that brings the shop's cookie back (a client that never
        does is no person) until leaving, or until `window` seconds without a request.
        """
        latest: dict[str, Visit] = {}
        for visit in self.since(now - window):
            latest.setdefault(visit.visitor, visit)
        return sum(visit.returning and not visit.leaving for visit in latest.values())

    def peak(self, window: float) -> int:
        """Most people inside at one instant since the beginning; `inside` says who counts."""
        inside = highest = 0
        for _at, left in sorted(
            change for start, end in self._stays(window) if start < end for change in ((start, -1), (end, 1))
        ):
            inside -= left
            highest = max(highest, inside)
        return highest

    def p95(self, start: float) -> float:
        """Seconds within which 95 in 100 of the pages since `start` were answered, well or badly."""
        return percentile([visit.seconds for visit in self.since(start) if visit.status], 0.95)

    def failures(self) -> int:
        """Pages that the shop answered with an error of its own."""
        return sum(visit.failed for visit in self)

    def _stays(self, window: float) -> Iterable[tuple[float, float]]:
        ends: dict[str, tuple[float, float]] = {}
        for visit in self:
            if not visit.returning:
                continue
            start, end = ends.get(visit.visitor, (visit.at, visit.at))
            if visit.at > end:
                yield start, end
                start = visit.at
            ends[visit.visitor] = start, visit.at + (0.0 if visit.leaving else window)
        yield from ends.values()


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed (nearest rank); 0 for none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0
