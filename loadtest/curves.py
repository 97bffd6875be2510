"""When people come: rates over time, how many have come by then, and the moment at which each of them is due.

Every curve is a row of straight pieces, so counting and its inverse are exact. Pure: seeds are arguments.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random

_PIECES_OF_A_WAVE = 64  # to each side of its crest, over four widths: off by less than a thousandth


@dataclass(frozen=True, slots=True)
class Piece:
    """Arrivals from `start` to `end`, in seconds; the rate runs straight from `first` to `last` a second.

    `before` have come by its start, `after` by its end. Without a length, `after - before` come at once.
    """

    start: float
    end: float
    first: float
    last: float
    before: float
    after: float


class Curve:
    """A rate of arrivals over time, in seconds since the run began.

    Args:
        pieces: without gaps, in order.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)
        self._starts = [piece.start for piece in self.pieces]
        self._befores = [piece.before for piece in self.pieces]

    @property
    def duration(self) -> float:
        """Seconds after which nobody is due any more."""
        return self.pieces[-1].end if self.pieces else 0.0

    @property
    def total(self) -> float:
        """How many come in all."""
        return self.pieces[-1].after if self.pieces else 0.0

    @property
    def peak(self) -> float:
        """Highest rate, in arrivals a second, of pieces that have a length."""
        return max((max(p.first, p.last) for p in self.pieces if p.end > p.start), default=0.0)

    def rate(self, at: float) -> float:
        """Arrivals a second at this moment."""
        if not 0 <= at < self.duration:
            return 0.0
        piece = self.pieces[max(0, bisect_right(self._starts, at) - 1)]
        return piece.first + (piece.last - piece.first) * (at - piece.start) / (piece.end - piece.start)

    def count(self, at: float) -> float:
        """How many have come by this moment."""
        position = bisect_right(self._starts, at) - 1
        if position < 0:
            return 0.0
        piece = self.pieces[position]
        if at >= piece.end:
            return piece.after
        passed = at - piece.start
        slope = (piece.last - piece.first) / (piece.end - piece.start)
        return piece.before + passed * (piece.first + slope * passed / 2)

    def when(self, count: float) -> float:
        """The moment by which so many have come: the inverse of `count`."""
        position = max(0, bisect_right(self._befores, count) - 1)
        piece = self.pieces[position]
        wanted, length = max(0.0, min(count, piece.after) - piece.before), piece.end - piece.start
        if length <= 0:
            return piece.start
        slope = (piece.last - piece.first) / length
        # The stable form of the quadratic formula: it holds for a level piece, too.
        root = piece.first + math.sqrt(max(0.0, piece.first**2 + 2 * slope * wanted))
        return piece.start + (min(length, 2 * wanted / root) if root else 0.0)

    def scaled(self, factor: float) -> "Curve":
        """The same in form, with `factor` times the arrivals."""
        return Curve(
            Piece(p.start, p.end, p.first * factor, p.last * factor, p.before * factor, p.after * factor)
            for p in self.pieces
        )

    def shifted(self, seconds: float) -> "Curve":
        """The same, so much later."""
        if not seconds:
            return self
        moved = (
            Piece(p.start + seconds, p.end + seconds, p.first, p.last, p.before, p.after) for p in self.pieces
        )
        return Curve((Piece(0.0, seconds, 0.0, 0.0, 0.0, 0.0), *moved))


def through(*knots: tuple[float, float]) -> Curve:
    """The curve whose rate runs straight from knot to knot, each a second and a rate; two at once are a jump.

    Raises:
        ValueError: time goes back, or a rate is negative.
    """
    pieces: list[Piece] = []
    come = 0.0
    for (start, first), (end, last) in pairwise(knots):
        if end < start:
            raise ValueError(f"it goes back in time, from {start:g} s to {end:g} s")
        if min(first, last) < 0:
            raise ValueError("a rate is negative")
        if end > start:
            after = come + (first + last) / 2 * (end - start)
            pieces.append(Piece(start, end, first, last, come, after))
            come = after
    return Curve(pieces)


def constant(rate: float, duration: float) -> Curve:
    """So many a second, for so many seconds."""
    return through((0, rate), (duration, rate))


def ramp(first: float, last: float, duration: float) -> Curve:
    """From one rate to another."""
    return through((0, first), (duration, last))


def step(rates: Sequence[float], each: float) -> Curve:
    """One rate after another, `each` for so many seconds."""
    return through(
        *((at * each, rate) for number, rate in enumerate(rates) for at in (number, number + 1)),
    )


def spike(base: float, peak: float, at: float, rise: float, hold: float, duration: float) -> Curve:
    """`base`, and from second `at` on within `rise` seconds up to `peak`, held, and down as it came up.

    Raises:
        ValueError: it does not fit into `duration`.
    """
    if at + 2 * rise + hold > duration:
        raise ValueError(f"rise, hold and fall end at {at + 2 * rise + hold:g} s, after {duration:g} s")
    top = at + rise
    return through(
        (0, base), (at, base), (top, peak), (top + hold, peak), (top + hold + rise, base), (duration, base)
    )


def wave(base: float, peak: float, at: float, width: float, duration: float) -> Curve:
    """A bell on top of `base`, as a newsletter makes it: `peak` at second `at`; `width` is one deviation."""
    step_by = 4 * width / _PIECES_OF_A_WAVE
    places = {0.0, duration} | {at + step_by * n for n in range(-_PIECES_OF_A_WAVE, _PIECES_OF_A_WAVE + 1)}

    def height(t: float) -> float:
        return base + (peak - base) * math.exp(-(((t - at) / width) ** 2) / 2)

    return through(*((t, height(t)) for t in sorted(places) if 0 <= t <= duration))


def replay(moments: Iterable[float], factor: float = 1.0) -> Curve:
    """Arrivals as they were once: due as far apart as these seconds are, and `factor` times as many.

    Raises:
        ValueError: there is no moment.
    """
    ordered = sorted(moments)
    if not ordered:
        raise ValueError("there is no timestamp in it")
    # Half an arrival before and after each moment, so that with factor 1 arrival i is due at moment i.
    knots = [(at - ordered[0], (number + 0.5) * factor) for number, at in enumerate(ordered)]
    knots = [(0.0, 0.0), *knots, (knots[-1][0], len(ordered) * factor)]
    pieces = []
    for (start, before), (end, after) in pairwise(knots):
        rate = (after - before) / (end - start) if end > start else 0.0
        pieces.append(Piece(start, end, rate, rate, before, after))
    return Curve(pieces)


def moments(path: Path) -> list[float]:
    """Timestamps from a file, one a line: Unix seconds, or ISO 8601. What follows a # is skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no timestamp.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not (stamp := line.partition("#")[0].strip()):
            continue
        try:
            found.append(float(stamp))
        except ValueError:
            try:
                found.append(datetime.fromisoformat(stamp).timestamp())
            except ValueError:
                raise ValueError(f"line {number} of {path.name} is no timestamp: {stamp!r}") from None
    return found


def due_times(curve: Curve, spacing: str, seed: int) -> Iterator[float]:
    """When each arrival of a curve is due, in order.

    Args:
        curve: of the rate.
        spacing: "regular", or "poisson": as independent people come. Their number is the curve's either way.
        seed: of the chance in it.
    """
    total = curve.total
    number = math.floor(total + 0.5)
    if spacing == "regular":
        yield from (curve.when(n + 0.5) for n in range(number))
        return
    # A Poisson process of which one knows how many came is so many points at random, in order.
    chance, share = Random(seed), 0.0
    for left in range(number, 0, -1):
        share = 1 - (1 - share) * (1 - chance.random()) ** (1 / left)
        yield curve.when(share * total)


def arrivals(
    parts: Iterable[tuple[Curve, str]], seed: int, worker: int = 0, workers: int = 1
) -> Iterator[tuple[int, float]]:
    """Number and due second of each arrival that one worker of several takes: those with i mod n = k.

    Args:
        parts: curves that add up, each with its spacing.
        seed: of the whole run.
        worker: k, from 0.
        workers: n.
    """
    streams = [
        due_times(curve, spacing, seed * 1_000_003 + number)
        for number, (curve, spacing) in enumerate(parts)
        if curve.pieces
    ]
    for index, due in enumerate(heapq.merge(*streams)):
        if index % workers == worker:
            yield index, due
