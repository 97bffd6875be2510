"""Made-up histories of visits, for judging forecasts: `python -m tests.histories` prints the figures.

Each has two halves, one to forecast from and one to be forecast. Both are drawn from one plan, never from
what the forecast assumes: noise is carried from minute to minute, waves move and differ in height and width,
and campaigns send spikes that rise within two minutes and decay.
"""

import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from loadtest.forecast import DAY, Growth, forecast

Halves = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Figures:
    """How forecasts of the busiest minute came out over many made-up histories.

    Attributes:
        error: median of how far the middle was off, as a share of what came.
        bias: mean of the logarithm of the middle over what came.
        covered: how often what came lay within the interval that nine in ten should.
        width: median of the interval's upper over its lower end.
    """

    error: float
    bias: float
    covered: float
    width: float


def two_sales(seed: int, grown: Growth, base: float = 60.0) -> Halves:
    """Two sale days a year apart: newsletter wave, doors open at noon, evening wave; the second has grown."""
    draw = random.Random(seed)
    factor = grown.factor * math.exp(draw.gauss(0.0, grown.spread))
    return _sale(draw, base), _sale(draw, base * factor)


def four_weeks(seed: int, grown: Growth, base: float = 60.0) -> Halves:
    """Four ordinary weeks with a newsletter twice a week, each as good as it happens to be."""
    draw = random.Random(seed)
    factor = grown.factor * math.exp(draw.gauss(0.0, grown.spread))
    rates = [
        rate for day in range(28) for rate in _ordinary(draw, base * (factor if day >= 14 else 1.0), day % 7)
    ]
    counts = _counts(draw, rates)
    return counts[: 14 * DAY], counts[14 * DAY :]


def _sale(draw: random.Random, base: float) -> list[int]:
    waves = [(9 * 60, 5.0, 40.0), (20 * 60, 7.0, 90.0)]
    rates = _day(draw, base)
    for at, height, width in waves:
        _wave(rates, at + draw.gauss(0, 4), base * height * _about(draw, 0.1), width * _about(draw, 0.1))
    _spike(rates, 12 * 60, base * 9.0 * _about(draw, 0.1), 12.0)
    return _counts(draw, rates)


def _ordinary(draw: random.Random, base: float, weekday: int) -> list[float]:
    rates = _day(draw, base * (1.0, 0.95, 0.95, 1.0, 1.1, 1.3, 1.4)[weekday] * _about(draw, 0.08))
    if weekday in (1, 3):
        _spike(rates, 10 * 60 + round(draw.gauss(0, 5)), base * 4.0 * _about(draw, 0.25), 25.0)
    return rates


def _about(draw: random.Random, spread: float) -> float:
    return math.exp(draw.gauss(0.0, spread))


def _day(draw: random.Random, base: float) -> list[float]:
    """Quiet at eight in the morning, busiest at eight in the evening."""
    level = base * _about(draw, 0.05)
    return [
        level * (1.0 - 0.8 * math.cos((at - 8 * 60 + 12 * 60) / DAY * math.tau + math.pi))
        for at in range(DAY)
    ]


def _wave(rates: list[float], at: float, height: float, width: float) -> None:
    for minute in range(len(rates)):
        rates[minute] += height * math.exp(-(((minute - at) / width) ** 2) / 2)


def _spike(rates: list[float], at: int, height: float, decay: float) -> None:
    for minute in range(at, len(rates)):
        rates[minute] += height * min(1.0, (minute - at + 1) / 2) * math.exp(-(minute - at) / decay)


def _counts(draw: random.Random, rates: Sequence[float]) -> list[int]:
    """Counts whose variance is about thrice their mean, with a mood that outlasts the minute."""
    counts, mood = [], 0.0
    for rate in rates:
        mood = 0.8 * mood + draw.gauss(0.0, 0.02)
        counts.append(round(draw.gammavariate(max(rate, 0.1) * math.exp(mood) / 3.0, 3.0)))
    return counts


def thinned(counts: Sequence[int], share: float, seed: int) -> list[int]:
    """Of each minute's visits those that order."""
    draw = random.Random(seed)
    return [sum(draw.random() < share for _ in range(count)) for count in counts]


def judged(
    made: Callable[[int, Growth], Halves],
    growth: Growth,
    seeds: Sequence[int],
    *,
    share: float = 1.0,
    draws: int = 400,
) -> Figures:
    """Forecast the second half of many histories from the first, and compare with what came."""
    errors, biases, inside, widths = [], [], [], []
    for seed in seeds:
        known, unseen = made(seed, growth)
        counts = known if share == 1.0 else thinned(known, share, seed)
        told, came = forecast(counts, growth, share=share, seed=seed, draws=draws), max(unseen)
        errors.append(abs(told.middle - came) / came)
        biases.append(math.log(told.middle / came))
        inside.append(told.low <= came <= told.high)
        widths.append(told.high / told.low)
    return Figures(median(errors), fmean(biases), fmean(inside), median(widths))


CASES: tuple[tuple[str, Callable[[int, Growth], Halves], Growth, float], ...] = (
    ("two sales, growth known", two_sales, Growth(1.4, 0.05), 1.0),
    ("two sales, growth +- 25 %", two_sales, Growth(1.4, 0.22), 1.0),
    ("two sales, from orders", two_sales, Growth(1.4, 0.22), 0.03),
    ("four weeks, growth known", four_weeks, Growth(1.0, 0.05), 1.0),
    ("four weeks, growth +- 25 %", four_weeks, Growth(1.2, 0.22), 1.0),
)


def main(runs: int) -> None:
    """Print a table of the figures."""
    sys.stdout.write(
        "| history | off by (median) | bias | 90 % interval holds | upper / lower |\n|---|--:|--:|--:|--:|\n"
    )
    for name, made, growth, share in CASES:
        found = judged(made, growth, range(runs), share=share)
        sys.stdout.write(
            f"| {name} | {found.error:.1%} | {found.bias:+.1%} | {found.covered:.0%} | {found.width:.2f} |\n"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
