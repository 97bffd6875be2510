"""Commands that read what happened last time: `plan`, `from-har` and `mix`; mounted on `waitingroom load`.

What only one command needs is imported inside it, so that `--help` answers at once.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from loadtest.inputs import InputError

if TYPE_CHECKING:
    from loadtest.history import History
    from loadtest.plan import Plan

MISUSE = 2

_Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_Orders = Annotated[Path | None, typer.Option("--orders", help="CSV with one order a row.")]
_AccessLog = Annotated[
    list[Path] | None,
    typer.Option("--access-log", help="Access log, also gzipped; several, oldest first."),
]
_Growth = Annotated[float, typer.Option("--growth", help="How much bigger it will be: 1.4 is 40 %.")]
_Doubt = Annotated[float, typer.Option("--doubt", help="How far off that may well be: 0.25 is 25 %.")]
_Conversion = Annotated[float, typer.Option("--conversion", help="Orders a visit.")]
_Capacity = Annotated[
    float | None, typer.Option("--capacity", help="Pages a second at which the shop begins to slow down.")
]
_Safe = Annotated[float, typer.Option("--safe", help="Share of that which is safe.")]
_Pages = Annotated[float | None, typer.Option("--pages", help="Pages a visit.")]
_Visit = Annotated[float | None, typer.Option("--visit", help="Seconds of a visit.")]
_Idle = Annotated[float, typer.Option("--idle", help="The room's session_duration, in seconds.")]
_Timezone = Annotated[str, typer.Option("--timezone", help="Of times that do not say theirs.")]
_Column = Annotated[str | None, typer.Option("--column", help="Column with the time of an order.")]
_Field = Annotated[
    list[str] | None,
    typer.Option("--field", help="ROLE=NAME of a field in JSON lines, such as time=when."),
]
_Cookie = Annotated[str | None, typer.Option("--cookie", help="Cookie that tells people apart.")]
_Seed = Annotated[int, typer.Option("--seed", help="Of the drawings.")]
_Html = Annotated[Path | None, typer.Option("--html", help="File for the plan as a page.")]
_Write = Annotated[Path | None, typer.Option("--write", help="New file for a scenario.")]
_Target = Annotated[str, typer.Option("--target", help="Storefront of that scenario.")]


def mount(app: typer.Typer, codes: str) -> None:
    """Add the commands to a group whose exit codes mean this."""
    app.command("plan", epilog=f"{_EPILOGS['plan']}\n\n{codes}")(plan)
    app.command("from-har", epilog=f"{_EPILOGS['from-har']}\n\n{codes}")(from_har)
    app.command("mix", epilog=f"{_EPILOGS['mix']}\n\n{codes}")(mix)


def plan(  # noqa: PLR0913 - each is an option
    *,
    orders: _Orders = None,
    access_log: _AccessLog = None,
    growth: _Growth = 1.0,
    doubt: _Doubt = 0.25,
    conversion: _Conversion = 0.03,
    capacity: _Capacity = None,
    safe: _Safe = 0.75,
    pages: _Pages = None,
    visit: _Visit = None,
    idle: _Idle = 300.0,
    timezone: _Timezone = "UTC",
    column: _Column = None,
    field: _Field = None,
    cookie: _Cookie = None,
    seed: _Seed = 1,
    html: _Html = None,
    write: _Write = None,
    target: _Target = "http://127.0.0.1:8080",
    as_json: _Json = False,
) -> None:
    """Forecast the busiest minute from last year's orders or access logs, and propose limits.

    Shows the curve, the forecast with its interval, and limits of the room by Little's law with the
    reasoning. Logs may be combined (nginx, Apache), HAProxy's, or JSON lines, of any size. Nothing personal
    is kept: people are told apart by hashes under a key that is thrown away.
    """
    from loadtest.forecast import Growth
    from loadtest.plan import Known, scenario
    from loadtest.plan import plan as made

    with _told():
        known = Known(conversion, capacity, safe, pages, visit, idle)
        if not 0 <= doubt < math.inf:
            raise InputError("--doubt", f"{doubt:g} is no doubt", "give 0.25 for 25 %")
        if (orders is None) == (not access_log):
            raise InputError("waitingroom load plan", "one source is needed", "give --orders or --access-log")
        fields = dict(_pair(each) for each in field or ())
        history = _history(orders, access_log or [], column, fields, cookie, _zone(timezone))
        found = made(history, Growth(growth, math.log1p(doubt)), known, seed)
        if write is not None:
            name = re.sub(r"[^\w-]+", "-", write.stem) or "last-time"
            _new_file(write, scenario(found, name, target))
        if html is not None:
            from loadtest.pictures import page

            _put(html, page(found, "Plan for the next sale"))
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _show(found)
        for file, what in ((html, "The plan as a page"), (write, "The scenario")):
            if file is not None:
                typer.echo(f"{what}: {file}")


def from_har(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Session that a browser saved as HAR.")],
    *,
    host: Annotated[str | None, typer.Option("--host", help="Whose pages; else of the first page.")] = None,
    name: Annotated[str, typer.Option("--name", help="Of the function.")] = "recorded",
    write: Annotated[Path | None, typer.Option("--write", help="New file, in place of the output.")] = None,
) -> None:
    """Turn a recorded session into a journey for shoppers.

    Pages stay, with their think times; other hosts, pictures and scripts go. Headers, cookies and tokens are
    never written, nor what somebody typed. Name it in a scenario as journey = "file:function".
    """
    from loadtest.har import journey, read_har

    with _told():
        found = read_har(file, host)
        text = journey(found, name)
        if write is not None:
            _new_file(write, text)
    if write is None:
        typer.echo(text, nl=False)
    dropped = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items())
    typer.echo(
        f"{len(found.steps)} pages of {found.host}" + (f"; dropped: {dropped}" if dropped else ""), err=True
    )


def mix(
    visits: Annotated[float, typer.Option("--visits", help="In the busiest hour.")],
    page_views: Annotated[float, typer.Option("--page-views", help="In the same hour.")],
    orders: Annotated[float, typer.Option("--orders", help="In the same hour.")],
    *,
    as_json: _Json = False,
) -> None:
    """Weights and arrivals with which a rehearsal has the visits, page views and orders of an hour.

    Says which conversion they imply, so that whoever knows the shop can confirm it.
    """
    from loadtest.mix import fragment, solve

    with _told():
        found = solve(visits, page_views, orders)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    hour = found.rate * 3600
    typer.echo(
        f"# {hour / 60:,.1f} visits a minute, {found.pages:.2f} pages each; {found.conversion:.2%} order:\n"
        f"# {hour:,.0f} visits, {hour * found.pages:,.0f} page views and "
        f"{hour * found.conversion:,.0f} orders an hour. For a scenario:\n\n{fragment(found)}",
        nl=False,
    )


_EPILOGS = {
    "plan": "\b\nExamples:\n  waitingroom load plan --orders 2025.csv --growth 1.4 --capacity 100\n"
    "  waitingroom load plan --access-log access.log.gz --growth 1.4 --html plan.html --write sale.toml",
    "from-har": "\b\nExamples:\n  waitingroom load from-har session.har --write my_shop.py",
    "mix": "\b\nExamples:\n  waitingroom load mix --visits 60000 --page-views 420000 --orders 1800",
}


@contextmanager
def _told() -> Iterator[None]:
    """Tell what is wrong with what was handed in, and end with the code of misuse."""
    try:
        yield
    except InputError as error:
        _fail(f"{error.where}: {error.what}", error.remedy)


def _fail(what: str, remedy: str) -> NoReturn:
    typer.echo(f"waitingroom: {what}\n  {remedy}", err=True)
    raise typer.Exit(MISUSE)


def _history(
    orders: Path | None,
    logs: list[Path],
    column: str | None,
    fields: dict[str, str],
    cookie: str | None,
    zone: tzinfo,
) -> "History":
    from loadtest.accesslog import Reading, read_access_log
    from loadtest.history import read_orders

    paths = logs if orders is None else [orders]
    with _progress(paths) as read:
        if orders is not None:
            return read_orders(orders, column=column, zone=zone, read=read)
        return read_access_log(logs, Reading(fields, cookie, zone), read)


@contextmanager
def _progress(paths: list[Path]) -> Iterator[Callable[[int], None]]:
    """A bar on standard error by bytes read, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(path.stat().st_size for path in paths if path.is_file())
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.disable = not bar.console.is_terminal
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.update(task, completed=count)


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "--timezone", f"{name!r} is unknown", "write a name such as Europe/Berlin"
        ) from error


def _pair(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not name:
        raise InputError("--field", f"{text!r} names no field", "write for example time=when")
    return role, name


def _new_file(path: Path, text: str) -> None:
    if path.exists():
        raise InputError(str(path), "is there already", "name a new file, or move that one away")
    _put(path, text)


def _put(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            str(path), error.strerror or str(error), "name a file that can be written"
        ) from error


def _as_json(found: "Plan") -> dict[str, Any]:
    from loadtest.pictures import noted

    history, told, proposal = found.history, found.forecast, found.proposal
    middle, high = found.queues
    return {
        "counted": {
            "kind": history.kind,
            "from": history.at(0).isoformat(),
            "minutes": len(history.counts),
            "total": sum(history.counts),
            "busiest": max(history.counts),
            "busiest_at": history.at(history.busiest).isoformat(),
            "bad_lines": history.bad.count,
            "visits": asdict(history.visits) if history.visits else None,
        },
        "forecast": {
            "visits_in_the_busiest_minute": round(told.middle, 1),
            "low": round(told.low, 1),
            "high": round(told.high, 1),
            "interval": 0.9,
            "growth": found.growth.factor,
            "method": told.method,
        },
        "proposal": asdict(proposal),
        "queue": {"middle": asdict(middle), "high": asdict(high)},
        "assumed": noted(found),
    }


def _show(found: "Plan") -> None:
    from rich.console import Console

    from loadtest.pictures import in_plain, in_terminal, noted

    console = Console(highlight=False, markup=False)
    history, told, proposal = found.history, found.forecast, found.proposal
    middle, high = found.queues
    drawn = console.is_terminal and console.encoding.lower().startswith("utf")
    picture = in_terminal(history, console.width) if drawn else in_plain(history)
    console.print(picture, soft_wrap=True, style="magenta" if drawn else "")
    peak = f"{told.middle:,.0f} visits, nine in ten times between {told.low:,.0f} and {told.high:,.0f}"
    limits = (
        f"total_active_users = {proposal.total_active_users}, "
        f"new_users_per_minute = {proposal.new_users_per_minute}"
    )
    waits = (
        f"Then the longest wait is {middle.wait / 60:,.0f} min with {middle.people:,.0f} waiting; "
        f"{high.wait / 60:,.0f} min with {high.people:,.0f} at the upper end"
    )
    sections: tuple[tuple[str, list[str]], ...] = (
        (f"The busiest minute to expect: {peak}", [told.method]),
        (f"Proposal: {limits}", list(proposal.reasons)),
        (waits, []),
        ("Read and assumed", noted(found)),
    )
    for title, sentences in sections:
        console.print()
        console.print(title, style="bold", soft_wrap=not console.is_terminal)
        for sentence in sentences:
            console.print(f"  {sentence}", soft_wrap=not console.is_terminal)
