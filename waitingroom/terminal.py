"""How things look in a terminal: tables for people, plain lines where the output goes elsewhere."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from waitingroom.checks import Finding, Level
from waitingroom.explain import Explained
from waitingroom.remote import OutOfReachError, RefusedError

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"good": "green", "notice": "yellow", "bad": "bold red"}
_MARKS = {"good": "●", "notice": "■", "bad": "▲"}
_FINDINGS = {
    Level.OK: ("green", "ok"),
    Level.NOTICE: ("cyan", "notice"),
    Level.WARNING: ("yellow", "warning"),
    Level.ERROR: ("bold red", "error"),
}
_CHART = 30
LINES_EVERY = 5.0
"""Seconds between two tellings where the output is no terminal."""


def sparkline(values: Sequence[float], width: int = _CHART) -> str:
    """The last `width` values as bars, the highest of them full."""
    last = values[-width:]
    peak = max(last, default=0) or 1
    return "".join(_BARS[round(value / peak * (len(_BARS) - 1))] for value in last)


def rate(told: dict[str, Any]) -> str:
    """Admissions a minute, as a word where they are not known yet."""
    known = told["admitted_per_minute"]
    return "?" if known is None else f"{known:.0f}"


def status_table(numbers: dict[str, Any], url: str) -> RenderableType:
    """All rooms of a gateway at one moment."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("Room", "State", "Inside", "Waiting", "Offered", "Admitted/min", "Store", "Last minute"):
        table.add_column(name, justify="left" if name in ("Room", "State", "Last minute") else "right")
    for room in numbers["rooms"]:
        style = _STYLES[room["level"]]
        table.add_row(
            Text(room["name"], style="bold"),
            Text(f"{_MARKS[room['level']]} {room['state']}", style=style),
            f"{room['inside']}/{room['limit']}",
            str(room["waiting"]),
            str(room["offered"]),
            f"{rate(room)}/{room['rate_limit']}",
            Text(f"{room['tick_age']:.1f} s", style=style),
            Text(sparkline(room["history"]["waiting"]), style=style),
        )
    said = [
        Text(f"{room['name']}: {room['sentence']}", style=_STYLES[room["level"]])
        for room in numbers["rooms"]
        if room["level"] != "good"
    ]
    return Group(Text(f"Gateway {numbers['version']} at {url}", style="dim"), table, *said)


def status_lines(numbers: dict[str, Any]) -> list[str]:
    """The same for a log or a screen reader: a line for each room."""
    return [
        f"{room['name']}: {room['state']}, inside {room['inside']} of {room['limit']}, "
        f"waiting {room['waiting']}, offered {room['offered']}, admitted {rate(room)} a minute, "
        f"store {room['tick_age']:.1f} s ago"
        for room in numbers["rooms"]
    ]


def watch(ask: Callable[[], dict[str, Any]], url: str, *, as_json: bool) -> None:
    """Tell how the rooms are until interrupted: redrawn on a terminal, lines or JSON lines elsewhere.

    A gateway that stops answering is said to, and waited for; one that never answered is an error of `ask`.
    """
    console = stdout()
    numbers = ask()
    with suppress(KeyboardInterrupt):
        if not console.is_terminal or as_json:
            while True:
                lines = [json.dumps(numbers)] if as_json else status_lines(numbers)
                console.print(*lines, sep="\n", soft_wrap=True, markup=False)
                time.sleep(LINES_EVERY)
                numbers = ask()
        with Live(status_table(numbers, url), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(1.0)
                try:
                    numbers, lost = ask(), ""
                except (OutOfReachError, RefusedError) as error:
                    lost = f"{error}; the numbers above are old"
                live.update(Group(status_table(numbers, url), Text(lost, style="bold red")), refresh=True)


def findings(found: Iterable[Finding]) -> RenderableType:
    """What a check has found, worst last, because that is what stays on the screen."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    for finding in found:
        style, word = _FINDINGS[finding.level]
        table.add_row(Text(word, style=style), Text.assemble((finding.subject, "bold"), f": {finding.what}"))
        if finding.level is not Level.OK:
            table.add_row(Text("why", style="dim"), finding.why)
            table.add_row(Text("mend", style="dim"), finding.mend)
    return table


def explained(rows: Iterable[Explained]) -> RenderableType:
    """Settings, each with what is known of it."""
    lines: list[Text] = []
    for row in rows:
        lines += [
            Text.assemble((row.key, "bold"), " = ", (row.value, "cyan")),
            Text(f"  {row.meaning}"),
            Text(f"  from: {row.source}; default: {row.default}" + (f"; {row.bounds}" if row.bounds else "")),
        ]
    return Group(*lines)


def rooms(views: Iterable[dict[str, Any]]) -> RenderableType:
    """Rooms with their limits and numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("Room", "Version", "Inside", "Waiting", "Admitted", "Limits", "Switches"):
        table.add_column(name)
    for view in views:
        settings, seen = view["settings"], view["snapshot"]
        switches = [name for name in ("paused", "queue_all", "suspended") if settings[name]]
        table.add_row(
            Text(view["name"], style="bold"),
            str(view["version"]),
            str(seen["inside"]),
            str(seen["waiting"]),
            str(seen["admitted"]),
            f"{settings['total_active_users']} inside, {settings['new_users_per_minute']} a minute",
            Text(", ".join(switches) or "none", style="yellow" if switches else ""),
        )
    return table


def room(view: dict[str, Any], changes: Iterable[dict[str, Any]]) -> RenderableType:
    """Everything about one room, and who last changed it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for group in ("snapshot", "settings"):
        table.add_row(Text(group, style="dim"))
        for name, value in view[group].items():
            table.add_row(name, Text(_value(value), style="cyan"))
    table.add_row(Text("last changes", style="dim"))
    for change in changes:
        table.add_row(f"version {change['version']}", Text(_change(change)))
    return table


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What a change has done, in a sentence."""
    old, new = before["settings"], after["settings"]
    changed = [f"{key}: {_value(old[key])} → {_value(new[key])}" for key in new if old.get(key) != new[key]]
    if not changed:
        return f"{after['name']}: nothing to change, still version {after['version']}"
    return f"{after['name']}: {', '.join(changed)} (version {after['version']})"


def stdout() -> Console:
    """Standard output, in colour where it is a terminal."""
    return Console(highlight=False, markup=False)


def _change(change: dict[str, Any]) -> str:
    changed = ", ".join(f"{name} = {_value(value)}" for name, value in change["changed"].items())
    by = f", token {change['by']}" if change.get("by") else ""
    return f"{change['author']}: {changed} ({change['reason']}){by}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value) or "empty"
