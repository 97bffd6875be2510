"""Pictures as paths of SVG, 1000 wide and 100 high: pure functions from numbers to the `d` of a path.

The drawings are stretched to whatever width there is, so nothing in them is text; labels are the page's own.
"""

import math
from collections.abc import Callable, Iterable, Sequence

WIDTH, HEIGHT = 1000, 100
MOST_POINTS = 300
"""Of a curve, and half of a cloud: more than a screen shows, and few enough for a small file."""

_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def top(values: Iterable[float]) -> float:
    """A round number that none of the values exceeds, and not much more than the highest; 1 for none."""
    peak = max((value for value in values if math.isfinite(value)), default=0)
    if peak <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(peak))
    return next(factor * power for factor in _ROUND if factor * power >= peak * (1 - 1e-12))


def buckets(count: int, most: int = MOST_POINTS) -> list[range]:
    """Indexes of `count` values in groups of the same size, at most so many."""
    size = max(1, math.ceil(count / most))
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def grouped(
    values: Sequence[float], how: Callable[[list[float]], float], most: int = MOST_POINTS
) -> list[float]:
    """Values in so few groups that each can be seen, each group as one number."""
    return [how([values[index] for index in group]) for group in buckets(len(values), most)]


def line(values: Sequence[float], highest: float) -> str:
    """Path of a curve over the whole width; it pauses where a value is NaN."""
    parts, pen = [], "M"
    for index, value in enumerate(values):
        if math.isnan(value):
            pen = "M"
            continue
        parts.append(f"{pen}{_x(index + 0.5, len(values))} {_y(value, highest)}")
        if pen == "M":
            parts.append("h0")
        pen = "L"
    return "".join(parts)


def area(values: Sequence[float], highest: float) -> str:
    """Path of what is under a curve; NaN counts as zero."""
    if not values:
        return ""
    points = (
        f"L{_x(index + 0.5, len(values))} {_y(0 if math.isnan(value) else value, highest)}"
        for index, value in enumerate(values)
    )
    return f"M0 {HEIGHT}{''.join(points)}L{WIDTH} {HEIGHT}Z"


def bars(counts: Sequence[int]) -> str:
    """Path of columns side by side, the highest of them by `top`."""
    highest, wide = top(counts), WIDTH / max(1, len(counts))
    return "".join(
        f"M{_short(index * wide + wide * 0.06)} {HEIGHT}V{_y(count, highest)}h{_short(wide * 0.88)}V{HEIGHT}Z"
        for index, count in enumerate(counts)
        if count
    )


def dots(points: Iterable[tuple[float, float]], right: float, highest: float) -> str:
    """Path of a cloud: strokes of no length, which round ends make dots."""
    return "".join(f"M{_x(x, right)} {_y(y, highest)}h0" for x, y in points)


def spans(values: Iterable[tuple[float, float, float]], right: float, highest: float) -> str:
    """Path of upright strokes, each at x from low to high."""
    return "".join(f"M{_x(x, right)} {_y(low, highest)}V{_y(high, highest)}" for x, low, high in values)


def level(value: float, highest: float) -> str:
    """Path of a line across at a value."""
    return f"M0 {_y(value, highest)}H{WIDTH}"


def ticks(seconds: float, most: int = 6) -> list[float]:
    """Round moments from 0 to `seconds` to write at an axis, at most about so many."""
    step = next((step for step in _STEPS if seconds / step <= most), _STEPS[-1])
    return [float(at) for at in range(0, int(seconds) + 1, step)]


def upright(moments: Iterable[float], right: float) -> str:
    """Path of lines from top to bottom at these moments."""
    return "".join(f"M{_x(at, right)} 0V{HEIGHT}" for at in moments)


def clock(seconds: float) -> str:
    """Seconds as a reader says them: 45 s, 2:30 min."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def duration(seconds: float) -> str:
    """A duration to as many digits as matter: 87 ms, 1.24 s, 3:20 min; a dash for NaN."""
    if math.isnan(seconds):
        return "—"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else clock(seconds)  # noqa: PLR2004 - from there on hundredths say nothing


def percent(share: float) -> str:
    """A share of 1 in per cent; a dash for NaN."""
    if math.isnan(share):
        return "—"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def thinned(items: Sequence[object], most: int = 2 * MOST_POINTS) -> list[int]:
    """Indexes of at most so many items, evenly spread."""
    count = min(len(items), most)
    return [index * len(items) // count for index in range(count)]


def _x(value: float, right: float) -> str:
    return _short(value / right * WIDTH if right else 0)


def _y(value: float, highest: float) -> str:
    return _short(HEIGHT - min(value / highest, 1) * HEIGHT if highest else HEIGHT)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
