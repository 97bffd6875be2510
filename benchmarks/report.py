"""From runs to figures: medians, ratios, targets, a table and a picture, all of them pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any, Literal

from benchmarks.rig import ratio

Measured = dict[str, Any]
"""What `paths.measure` gives: `path`, `runs` by stand, `void` (why, or "") by stand, `calls_per_1000`."""

Quantity = Literal["cpu", "rate", "p99", "added p50", "per second", "calls"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A target: a quantity of one stand on a path, as a ratio to another's where there is another.

    Attributes:
        most: whether `limit` is the most that it may be, else the least.
    """

    path: str
    stand: str
    beside: str
    quantity: Quantity
    limit: float
    most: bool


GOALS = (
    Goal("proxied, 1 KiB, at a pace", "gateway", "nginx", "cpu", 1.8, True),
    Goal("proxied, 1 KiB", "gateway", "nginx", "cpu", 1.8, True),
    Goal("proxied, 1 KiB, every head new, at a pace", "gateway", "nginx", "cpu", 1.8, True),
    Goal("proxied, 1 KiB", "gateway", "nginx", "rate", 0.55, False),
    Goal("proxied, 1 KiB, 256 connections", "gateway", "nginx", "rate", 0.55, False),
    Goal("proxied, 1 KiB, at a pace", "gateway", "nginx", "added p50", 1.0, True),
    Goal("proxied, 1 KiB, at a pace, 256 connections", "gateway", "nginx", "added p50", 1.0, True),
    Goal("proxied, 1 KiB, at a pace", "gateway", "nginx", "p99", 3.0, True),
    Goal("proxied, 1 KiB, at a pace, 256 connections", "gateway", "nginx", "p99", 3.0, True),
    Goal("proxied, 50 KiB", "gateway", "nginx", "rate", 0.85, False),
    Goal("proxied, 1 MiB, at a pace", "gateway", "nginx", "cpu", 1 / 0.85, True),
    Goal("poll", "gateway", "nginx, file", "cpu", 2.0, True),
    Goal("poll", "gateway", "aiohttp handler", "rate", 3.0, False),
    Goal("poll", "gateway", "", "calls", 0.0, True),
    Goal("waiting page for a newcomer", "gateway", "", "per second", 8000, False),
    Goal("an edge that asks", "nginx asking gateway", "nginx", "rate", 0.35, False),
    Goal("an edge that asks", "nginx asking gateway", "nginx asking aiohttp", "rate", 2.0, False),
    Goal("HAProxy that verifies", "haproxy verifying", "haproxy", "rate", 0.65, False),
    Goal("nginx that verifies", "nginx verifying", "nginx", "rate", 0.65, False),
    Goal("proxied, 1 KiB", "gateway", "nginx asking redis", "rate", 1.5, False),
    Goal("proxied, 1 KiB", "gateway", "aiohttp proxy", "rate", 4.0, False),
)


def values(measured: Measured, stand: str, quantity: Quantity, beside: str = "") -> list[float]:
    """One value a run of a stand, of the rounds that count for it and for who is beside it."""
    void = measured["void"]
    theirs = void[beside or stand]
    runs = [
        run
        for run, ours, other in zip(measured["runs"][stand], void[stand], theirs, strict=True)
        if not ours and not other
    ]
    if quantity in ("rate", "per second"):
        return [run["requests"] / run["seconds"] for run in runs]
    if quantity == "cpu":
        return [1e6 * run["cpu"] / max(1, run["requests"]) for run in runs]
    return [run["p99" if quantity == "p99" else "p50"] for run in runs]


def value(measured: Measured, goal: Goal) -> float | None:
    """What was reached; None where no round counts."""
    if goal.quantity == "calls":
        return float(round(measured["calls_per_1000"], 2))
    ours = values(measured, goal.stand, goal.quantity, goal.beside)
    if not ours:
        return None
    if not goal.beside:
        return median(ours)
    theirs = values(measured, goal.beside, goal.quantity, goal.stand)
    if goal.quantity == "added p50":
        return median(one - other for one, other in zip(ours, theirs, strict=True))
    return ratio(ours, theirs)


def goals(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every target on the paths that were measured, with what was reached; None where the runs are void."""
    by_path = {measured["path"]: measured for measured in found}
    rows = []
    for goal in GOALS:
        measured = by_path.get(goal.path)
        if measured is None or not {goal.stand, goal.beside} <= {"", *measured["runs"]}:
            continue
        reached = value(measured, goal)
        held = None if reached is None else reached <= goal.limit if goal.most else reached >= goal.limit
        rows.append({"goal": described(goal), "limit": goal.limit, "reached": reached, "held": held})
    return rows


def described(goal: Goal) -> str:
    """A target in words, without its figure."""
    what = {
        "cpu": "CPU a request",
        "rate": "requests a second",
        "p99": "p99",
        "added p50": "p50 added, ms",
        "per second": "requests a second",
        "calls": "store calls for 1,000 requests",
    }[goal.quantity]
    beside = f" beside {goal.beside}" if goal.beside else ""
    return f"{goal.path}: {what} of {goal.stand}{beside}, {'at most' if goal.most else 'at least'}"


def verdicts(rows: Sequence[dict[str, Any]]) -> str:
    """Targets as text."""
    words = {True: "reached", False: "NOT REACHED", None: "void"}
    return "\n".join(
        f"{row['goal']:105} {row['limit']:8,.2f} {row['reached'] or 0:10,.2f}  {words[row['held']]}"
        for row in rows
    )


def table(measured: Measured) -> str:
    """A path as text: a line a stand, with its ratio to the second; `core` is the share it took of one."""
    stands = list(measured["runs"])
    beside = stands[1]
    columns = f"{'req/s':>9} {'x':>5} {'CPU us':>8} {'x':>5} {'p50 ms':>7} {'p99 ms':>7} {'core':>5} errors"
    lines = [f"{measured['path']:44} {columns}"]
    for stand in stands:
        runs, void = measured["runs"][stand], measured["void"][stand]
        reasons = [why for why in void if why]
        if len(reasons) == len(runs):
            lines.append(f"  {stand:42} void: {reasons[0]}")
            continue
        rate, cost, p50, p99 = (
            median(values(measured, stand, name)) for name in ("rate", "cpu", "added p50", "p99")
        )
        rates, costs = (times(measured, stand, beside, name) for name in ("rate", "cpu"))
        core = median(run["cpu"] / run["seconds"] for run in runs)
        errors = sum(run["errors"] for run in runs)
        note = f"  {len(reasons)} void: {reasons[0]}" if reasons else ""
        lines.append(
            f"  {stand:42} {rate:9,.0f} {rates} {cost:8.1f} {costs} {p50:7.2f} {p99:7.2f} {core:5.0%} "
            f"{errors:6}{note}"
        )
    if measured["calls_per_1000"] is not None:
        lines.append(f"  store calls for 1,000 requests of the gateway: {measured['calls_per_1000']:.2f}")
    return "\n".join(lines)


def times(measured: Measured, stand: str, beside: str, quantity: Quantity) -> str:
    """A ratio as text, "-" where no round counts for both."""
    ours, theirs = values(measured, stand, quantity, beside), values(measured, beside, quantity, stand)
    return f"{ratio(ours, theirs):5.2f}" if ours else f"{'-':>5}"


def unsound(measured: Measured) -> bool:
    """Whether requests failed, or no run of some stand counts."""
    failed = any(run["errors"] for made in measured["runs"].values() for run in made)
    return failed or any(all(void) for void in measured["void"].values())


_WIDTH, _LEFT, _ROW, _MOST = 860, 330, 20, 8.0
_COLOURS = {"gateway": "#0b57d0", "nginx asking gateway": "#0b57d0", "gateway, interpreted": "#7ba7ea"}


def picture(found: Sequence[Measured]) -> str:
    """An SVG: the CPU time of a request, as a multiple of what the second stand of each path takes."""
    rows: list[str] = []
    top = 40
    for measured in found:
        stands = list(measured["runs"])
        rows.append(f'<text x="12" y="{top + 14}" class="path">{escape(measured["path"])}</text>')
        top += _ROW + 4
        for stand in stands:
            ours, theirs = (
                values(measured, one, "cpu", other) for one, other in ((stand, stands[1]), (stands[1], stand))
            )
            if ours:
                rows.append(_bar(stand, ratio(ours, theirs), top))
            top += _ROW
        top += 10
    style = "text{font:13px sans-serif;fill:#222}.path{font-weight:600}.name{text-anchor:end}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img" '
        f'aria-label="CPU time of a request, by path and server"><style>{style}</style>'
        f'<rect width="{_WIDTH}" height="{top}" fill="#fff"/>'
        f'<text x="12" y="22" class="path">CPU time of a request; 1 is the second server of each group</text>'
        f"{''.join(rows)}</svg>\n"
    )


def _bar(stand: str, times: float, top: int) -> str:
    wide = (_WIDTH - _LEFT - 70) * min(times, _MOST) / _MOST
    cut = " →" if times > _MOST else ""
    return (
        f'<text x="{_LEFT - 10}" y="{top + 14}" class="name">{escape(stand)}</text>'
        f'<rect x="{_LEFT}" y="{top + 2}" width="{wide:.1f}" height="{_ROW - 5}" rx="2" '
        f'fill="{_COLOURS.get(stand, "#9aa0a6")}"/>'
        f'<text x="{_LEFT + wide + 6:.1f}" y="{top + 14}">{times:.2f}{cut}</text>'
    )
