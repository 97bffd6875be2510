"""Curves as pictures: in a terminal, in plain text, and in one HTML file that needs nothing else."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from loadtest.forecast import grown_curve
from loadtest.history import MINUTE, History
from loadtest.plan import Plan

_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))  # of a braille character, by column, from below
_BRAILLE = 0x2800
_PLAIN_ROWS = 24
_PLAIN_BAR = 50
_ACROSS, _DOWN, _MARGIN = 860, 260, 56
_POINTS = 430


def squeezed(values: Sequence[float], columns: int) -> list[float]:
    """At most so many values, each the highest of those that it stands for, so that a peak stays."""
    if len(values) <= columns:
        return list(values)
    edges = [column * len(values) // columns for column in range(columns + 1)]
    return [max(values[start:end]) for start, end in pairwise(edges)]


def braille(values: Sequence[float], width: int, height: int = 8) -> list[str]:
    """The area below a curve in braille dots: `height` lines of `width` characters, the highest first."""
    dots = squeezed(values, 2 * max(1, width))
    if len(dots) < 2 * width:
        dots = [dots[at * len(dots) // (2 * width)] for at in range(2 * width)]
    top = max(dots) or 1.0
    levels = [math.ceil(dot / top * height * 4) for dot in dots]
    rows = []
    for row in reversed(range(height)):
        cells = []
        for at in range(0, len(levels), 2):
            mask = 0
            for column, level in enumerate(levels[at : at + 2]):
                for step in range(max(0, min(4, level - row * 4))):
                    mask |= _DOTS[column][step]
            cells.append(chr(_BRAILLE + mask))
        rows.append("".join(cells))
    return rows


def in_terminal(history: History, width: int) -> str:
    """The counts of a history as a braille picture with its axes, within `width` columns."""
    label = f"{max(history.counts):,}"
    inner = max(10, width - len(label) - 2)
    lines = braille(history.counts, inner)
    marks = [label] + [""] * (len(lines) - 2) + ["0"]
    text = [f"{mark:>{len(label)}} {line}" for mark, line in zip(marks, lines, strict=True)]
    first, last = (f"{history.at(at):%Y-%m-%d %H:%M}" for at in (0, len(history.counts) - 1))
    if inner >= len(first) + len(last) + 6:
        text.append(" " * (len(label) + 1) + first + f"{last} UTC".rjust(inner - len(first)))
    return "\n".join([f"{history.kind} a minute", *text])


def in_plain(history: History) -> str:
    """The same for a log or a screen reader: a row for each stretch of time, with its busiest minute."""
    rows = squeezed(history.counts, _PLAIN_ROWS)
    top = max(rows)
    lines = [f"{history.kind} a minute, the busiest minute of each stretch (times in UTC)"]
    for at, value in enumerate(rows):
        begin = history.at(at * len(history.counts) // len(rows))
        bar = "#" * round(value / top * _PLAIN_BAR)
        lines.append(f"{begin:%Y-%m-%d %H:%M} {value:>8,.0f} {bar}".rstrip())
    return "\n".join(lines)


def page(plan: Plan, title: str) -> str:
    """The plan as one HTML document: the picture, the forecast, the proposal and what was assumed."""
    told, proposal, history = plan.forecast, plan.proposal, plan.history
    middle, high = plan.queues
    figures = (
        (
            "Busiest minute to expect",
            f"{told.middle:,.0f} visits",
            f"{told.low:,.0f} to {told.high:,.0f}, nine in ten",
        ),
        ("total_active_users", f"{proposal.total_active_users:,}", f"{proposal.browsing:,} of them browse"),
        (
            "new_users_per_minute",
            f"{proposal.new_users_per_minute:,}",
            f"{proposal.pages_a_second:,.1f} pages a second",
        ),
        ("Longest wait", f"{middle.wait / 60:,.0f} min", f"{high.wait / 60:,.0f} min at the upper end"),
    )
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><small>{escape(more)}</small></dd></div>"
        for name, value, more in figures
    )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in proposal.reasons)
    notes = "".join(f"<li>{escape(note)}</li>" for note in noted(plan))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<dl>{cards}</dl><figure>{drawing(plan)}<figcaption>Visits a minute: what was, drawn to the size of "
        "the forecast; the band is its interval. Times in UTC.</figcaption></figure>"
        f"<h2>How it was forecast</h2><p>{escape(told.method)}</p>"
        f"<h2>Why these limits</h2><ol>{reasons}</ol>"
        f"<h2>What was read and assumed</h2><ul>{notes}</ul>"
        f"<p>{history.at(0):%Y-%m-%d %H:%M} to {history.at(len(history.counts) - 1):%Y-%m-%d %H:%M} UTC, "
        f"{sum(history.counts):,} {history.kind}.</p></main></body></html>\n"
    )


def noted(plan: Plan) -> list[str]:
    """What was assumed, as sentences."""
    history, growth = plan.history, plan.growth
    notes = [*history.notes, f"Lines of the file: {history.bad}."]
    if plan.share < 1:
        notes.append(f"Of a hundred visits {plan.share * 100:g} were taken to order.")
    notes.append(
        f"Growth by {growth.factor:g} was taken as the middle; {math.exp(growth.spread) - 1:.0%} more or "
        "less is nothing unusual."
    )
    notes.append("Waits are reckoned as if everybody who waits takes the turn; with fewer they are shorter.")
    return notes


def drawing(plan: Plan) -> str:
    """The curve of last time at the size of the forecast, as SVG: a band from low to high, and the middle."""
    told, history = plan.forecast, plan.history
    curve = squeezed(grown_curve(told.shape, 0, len(history.counts), 1.0), _POINTS)
    top = _round_up(max(told.high, plan.proposal.new_users_per_minute))
    step = (_ACROSS - _MARGIN) / max(1, len(curve) - 1)

    def points(peak: float) -> list[str]:
        scale = _DOWN * peak / top
        return [f"{_MARGIN + at * step:.1f},{_DOWN - scale * level:.1f}" for at, level in enumerate(curve)]

    band = " ".join([*points(told.high), *reversed(points(told.low))])
    limit = _DOWN * (1 - plan.proposal.new_users_per_minute / top)
    ticks = "".join(
        f'<text x="{_MARGIN - 6}" y="{_DOWN * (1 - part) + 4:.0f}" text-anchor="end">{top * part:,.0f}</text>'
        f'<path class="grid" d="M{_MARGIN} {_DOWN * (1 - part):.1f}H{_ACROSS}"/>'
        for part in (0.0, 0.5, 1.0)
    )
    times = "".join(
        f'<text x="{_MARGIN + part * (_ACROSS - _MARGIN):.0f}" y="{_DOWN + 20}" text-anchor="{anchor}">'
        f"{history.at(round(part * (len(history.counts) - 1))):%d %b %H:%M}</text>"
        for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    told_title = (
        f"Visits a minute over {len(history.counts) * MINUTE / 3600:,.0f} hours; the busiest minute is "
        f"{told.middle:,.0f}, between {told.low:,.0f} and {told.high:,.0f}"
    )
    return (
        f'<svg viewBox="0 -12 {_ACROSS + 10} {_DOWN + 44}" role="img"><title>{escape(told_title)}</title>'
        f'{ticks}{times}<polygon class="band" points="{band}"/>'
        f'<polyline class="middle" points="{" ".join(points(told.middle))}"/>'
        f'<path class="limit" d="M{_MARGIN} {limit:.1f}H{_ACROSS}"/>'
        f'<text class="limit" x="{_MARGIN + 4}" y="{limit - 5:.1f}">may enter a minute</text></svg>'
    )


def _round_up(value: float) -> float:
    """The next number of one or two figures, so that an axis ends well."""
    size: float = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return math.ceil(value / size * 2) / 2 * size


_STYLE = (
    ":root{color-scheme:light dark;--ink:#1c1b22;--dim:#5f5d6b;--line:#d9d7e0;--fill:#6b4ee6;--warn:#b3401f;"
    "--paper:#fff}@media(prefers-color-scheme:dark){:root{--ink:#eceaf4;--dim:#a9a6b8;--line:#3a3845;"
    "--fill:#a48bff;--warn:#ff9a76;--paper:#16151c}}body{margin:0;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,sans-serif}main{max-width:56rem;margin:0 auto;padding:2rem 1rem}"
    "dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1rem}"
    "dt{color:var(--dim);font-size:.85rem}dd{margin:0}dd b{display:block;font-size:1.6rem}"
    "small,figcaption{color:var(--dim)}figure{margin:2rem 0}svg{width:100%;height:auto}"
    "svg text{fill:var(--dim);font-size:12px}.grid{stroke:var(--line)}.band{fill:var(--fill);opacity:.25}"
    ".middle{fill:none;stroke:var(--fill);stroke-width:1.5}"
    "path.limit{stroke:var(--warn);stroke-dasharray:5 4}svg text.limit{fill:var(--warn)}"
)
