"""The busiest minute to expect, with an interval, from the counts of last time.

The curve of last time is taken apart into its shape (a moving mean), the chance from minute to minute
(variance over mean), and the chance from day to day. Then the same period is drawn again many times, each
time grown by a factor of which only the order of size is known, and the busiest minute of each drawing is
noted.

The ideas are those of the literature on arrivals at call centres, where counts vary more than a Poisson
process allows and a random busyness of the day is the larger part of it: Jongbloed and Koole, "Managing
uncertainty in call centres using Poisson mixtures" (Applied Stochastic Models in Business and Industry 17,
2001); Brown et al., "Statistical analysis of a telephone call center" (JASA 100, 2005). Drawing new data from
what was fitted is the parametric bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 6).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pvariance, quantiles

DAY = 24 * 60
"""Minutes."""

SOURCE = (
    "a parametric bootstrap of overdispersed counts with a log-normal growth, after Jongbloed and Koole "
    "(2001), Brown et al. (2005), and Efron and Tibshirani (1993)"
)
DRAWS = 2000
ASSUMED_SPREAD = 0.15
"""By how much the same campaign differs from itself, where less than two weeks are known: an assumption."""

_LEAST_IN_WINDOW = 200.0
_WIDEST = 15
_STANDS_OUT = 4.0
_MEDIAN_OF_CHI_SQUARE = 0.4549
_ERROR_OF_MEDIAN = 3.3  # relative, of neighbouring second differences: root 2 times that of independent ones
_COMPARABLE_DAYS = 14
_WEEK = 7
_EIGHTH_IN_TEN = 1.2816
_NEAR_THE_TOP = 5.0
_MOST_MINUTES_OF_A_DAY = 60


@dataclass(frozen=True, slots=True)
class Growth:
    """How much bigger it will be: a log-normal with this median.

    Attributes:
        factor: the median; 1.4 is forty per cent more.
        spread: standard deviation of the logarithm; 0.22 means that 25 % more or less is nothing unusual.
    """

    factor: float = 1.0
    spread: float = 0.22


@dataclass(frozen=True, slots=True)
class Shape:
    """A history taken apart.

    Attributes:
        mean: the smoothed count, a minute each.
        window: minutes over which it was smoothed.
        dispersion: variance over mean from minute to minute; 1 would be a Poisson process.
        dispersion_error: standard error of that.
        day_spread: standard deviation of the logarithm of a busy day's peak, against others of its weekday.
        pairs: of days a week apart, from which that is known; 0 where it is `ASSUMED_SPREAD`.
        shrink: of each day's peak, as a logarithm: how much of it was luck and will not return.
    """

    mean: tuple[float, ...]
    window: int
    dispersion: float
    dispersion_error: float
    day_spread: float
    pairs: int
    shrink: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The busiest minute to expect, in the unit of the history.

    Attributes:
        low: one in twenty drawings is below.
        middle: the median.
        high: one in twenty drawings is above.
        observed: the busiest minute of the history.
        shape: what it was drawn from.
        draws: how many drawings.
    """

    low: float
    middle: float
    high: float
    observed: int
    shape: Shape
    draws: int

    @property
    def method(self) -> str:
        """How it was made, in sentences."""
        days = (
            f"Busy days of one weekday differ by {self.shape.day_spread:.0%}, which was drawn as well."
            if self.shape.pairs
            else f"How much a campaign differs from the next cannot be seen in less than {_COMPARABLE_DAYS} "
            f"days; {ASSUMED_SPREAD:.0%} was assumed."
        )
        return (
            f"The shape is a moving mean over {self.shape.window} minutes; around it the counts of single "
            f"minutes vary {self.shape.dispersion:.1f} times as much as a Poisson process would. {days} "
            f"Drawn {self.draws:,} times: {SOURCE}."
        )


def take_apart(counts: Sequence[int]) -> Shape:
    """The shape of a history and the chance in it.

    Raises:
        ValueError: nothing was ever counted.
    """
    if not any(counts):
        raise ValueError("a history without a single count has no shape")
    window = 5
    while window < _WIDEST and max(smoothed(counts, window)) * window < _LEAST_IN_WINDOW:
        window += 2
    mean = smoothed(counts, window)
    spread, error = dispersion(counts, mean)
    # What stands out that far is no chance: doors that open are a peak of one or two minutes.
    mean = [
        count if count - level > _STANDS_OUT * math.sqrt(spread * max(level, 1.0)) else level
        for count, level in zip(counts, mean, strict=True)
    ]
    return Shape(tuple(mean), window, spread, error, *_days(mean))


def smoothed(counts: Sequence[float], window: int) -> list[float]:
    """The centred moving mean over an odd number of minutes, shorter at both ends."""
    half, sums = window // 2, [0.0]
    for count in counts:
        sums.append(sums[-1] + count)
    spans = ((max(0, at - half), min(len(counts), at + half + 1)) for at in range(len(counts)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def dispersion(counts: Sequence[int], mean: Sequence[float]) -> tuple[float, float]:
    """Variance over mean in the busier minutes, at least 1, and the standard error of that.

    From second differences, which a slope does not disturb (Gasser, Sroka and Jennen-Steinmetz, "Residual
    variance and residual pattern in nonlinear regression", Biometrika 73, 1986), and their median, which a
    jump does not.
    """
    enough = max(1.0, max(mean) / 4)
    ratios = [
        (counts[at - 1] - 2 * counts[at] + counts[at + 1]) ** 2 / (6 * mean[at])
        for at in range(1, len(counts) - 1)
        if mean[at] >= enough
    ]
    if not ratios:
        return 1.0, 0.0
    found = max(1.0, median(ratios) / _MEDIAN_OF_CHI_SQUARE)
    return found, found * _ERROR_OF_MEDIAN / math.sqrt(len(ratios))


def _days(mean: Sequence[float]) -> tuple[float, int, tuple[float, ...]]:
    """How much the peaks of busy days vary by chance, from how many pairs that is known, and each day's luck.

    The spread is the 80 % quantile of the differences from week to week, in the busier half, so that one sale
    among ordinary days is not taken for chance. A high peak was partly luck: it is drawn towards the others,
    but never by more than one standard deviation, because the sale is no ordinary day (Efron and Morris,
    "Limiting the risk of Bayes and empirical Bayes estimators", JASA 67, 1972).
    """
    logs = [math.log(max(0.1, *mean[start : start + DAY])) for start in range(0, len(mean), DAY)]
    if len(mean) < _COMPARABLE_DAYS * DAY:
        return ASSUMED_SPREAD, 0, (0.0,) * len(logs)
    pairs = sorted(zip(logs, logs[_WEEK:], strict=False), key=max)[-(len(logs) - _WEEK + 1) // 2 :]
    apart = [abs(after - before) for before, after in pairs]
    spread = quantiles(apart, n=10, method="inclusive")[7] / _EIGHTH_IN_TEN / math.sqrt(2)
    middle = median(logs)
    busy = [log for log in logs if log >= middle]
    centre, variance = fmean(busy), pvariance(busy)
    luck = min(1.0, spread**2 / variance) if variance else 0.0
    return spread, len(pairs), tuple(max(0.0, min(spread, luck * (log - centre))) for log in logs)


def forecast(
    counts: Sequence[int],
    growth: Growth = Growth(),
    *,
    share: float = 1.0,
    seed: int = 1,
    draws: int = DRAWS,
) -> Forecast:
    """What the busiest minute will be when the same period comes again.

    Args:
        counts: events a minute, without gaps.
        growth: how much bigger it will be.
        share: of those to be forecast, how many are in the counts: 0.03 forecasts visits from orders where
            three in a hundred visits order. Thinning brings counts nearer to a Poisson process, which is
            undone: if the counts have variance over mean v, the whole has 1 + (v - 1) / share; of an excess,
            what may be an error of estimation is not multiplied.
        seed: of the drawings.
        draws: how many.

    Raises:
        ValueError: nothing was ever counted, or the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} is none; it is above 0 and at most 1")
    shape = take_apart(counts)
    unsure = shape.dispersion_error if share < 1 else 0.0
    whole = 1 + max(0.0, shape.dispersion - 1 - unsure) / share
    days = _busy_minutes(shape, share, whole)
    highest = max(shape.mean)
    # The mean of a window is known only so well, and the highest of several such means was partly luck.
    doubt = math.sqrt(shape.dispersion / (shape.window * highest))
    draw, pairs, peaks = random.Random(seed), shape.pairs, list[float]()
    for _ in range(draws):
        grown = growth.factor * math.exp(draw.gauss(-doubt, math.hypot(growth.spread, doubt)))
        spread = shape.day_spread * (
            math.sqrt(pairs / (2 * draw.gammavariate(pairs / 2, 1.0))) if pairs else 1.0
        )
        peaks.append(
            max(
                draw.gammavariate(level * busy / whole, whole)
                for luck, minutes in days
                for busy in (grown * math.exp(draw.gauss(-luck, spread)),)
                for level in minutes
            )
        )
    cuts = quantiles(peaks, n=20, method="inclusive")
    return Forecast(cuts[0], cuts[9], cuts[-1], max(counts), shape, draws)


def _busy_minutes(shape: Shape, share: float, whole: float) -> list[tuple[float, list[float]]]:
    """For each day that may hold the peak: the luck in it, and the means of minutes that may be it."""
    top = max(shape.mean) / share
    reach = _NEAR_THE_TOP * math.sqrt(whole / top) + _NEAR_THE_TOP * shape.day_spread
    least = top * math.exp(-min(reach, math.log(4)))
    days = []
    for luck, start in zip(shape.shrink, range(0, len(shape.mean), DAY), strict=True):
        levels = sorted((level / share for level in shape.mean[start : start + DAY]), reverse=True)
        near = levels[0] * (1 - min(0.75, _NEAR_THE_TOP * math.sqrt(whole / max(levels[0], 1.0))))
        if levels[0] >= least:
            days.append((luck, [level for level in levels[:_MOST_MINUTES_OF_A_DAY] if level >= near]))
    return days


def grown_curve(shape: Shape, around: int, width: int, peak: float) -> list[float]:
    """The smoothed curve of `width` minutes about one minute, scaled so that its highest minute is `peak`."""
    start = max(0, min(around - width // 2, len(shape.mean) - width))
    piece = shape.mean[start : start + width]
    scale = peak / max(piece)
    return [level * scale for level in piece]
