"""How a run looks while it runs: redrawn on a terminal, a line every few seconds anywhere else."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.bounds import Finding, Outcome, merged, share
from loadtest.charts import clock, duration, percent
from loadtest.gates import judge
from loadtest.results import Interval, Results

LINES_EVERY = 5.0
"""Seconds between two lines where the output is no terminal."""

GATES_EVERY = 10.0
"""Seconds between two judgements: each looks at all of the run, on a machine that has a crowd to make."""

_BARS = "▁▂▃▄▅▆▇█"
_MARKS = {
    Outcome.PASSED: ("●", "green"),
    Outcome.FAILED: ("▲", "bold red"),
    Outcome.INCONCLUSIVE: ("■", "dim"),
}
_CHART = 40
_RECENT = 10


def sparkline(values: Sequence[float], width: int = _CHART) -> str:
    """The last `width` values as bars, the highest of them full."""
    last = values[-width:]
    peak = max(last, default=0) or 1
    return "".join(_BARS[round(value / peak * (len(_BARS) - 1))] for value in last)


def view(results: Results, longest: float, findings: Sequence[Finding] = ()) -> RenderableType:
    """A run so far, for a terminal.

    Args:
        results: what there is of it.
        longest: seconds that it may last.
        findings: of its gates, when they were last judged.
    """
    seconds = results.intervals
    recent = seconds[-_RECENT:]
    offered, started = sum(each.offered for each in seconds), sum(each.started for each in seconds)
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=max(longest, 1), completed=min(results.seconds, longest), width=_CHART),
        f"{clock(results.seconds)} of {clock(longest)} at most",
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_column(style="cyan")
    table.add_row("Offered", f"{offered:,}", f"{started:,} started", _line(seconds, "offered"))
    for name, note in (("waiting", "now"), ("inside", _limit(results)), ("admitted", "a second")):
        value = _mean(recent, name) if name == "admitted" else _last(seconds, name)
        table.add_row(name.capitalize(), f"{value:,.4g}", note, _line(seconds, name))
    latency = merged(each.latency for each in recent)
    table.add_row(
        "Pages, p95", duration(latency.percentile(95)), f"in the last {_RECENT} s", _slowness(seconds)
    )
    table.add_row("Errors", _errors(recent), f"in the last {_RECENT} s", _line(seconds, "errors"))
    head = Text.assemble(
        (str(results.scenario.get("name", "")), "bold"), f" → {results.scenario.get('target', '')}"
    )
    return Group(head, bar, table, *_gates(findings), *_doubt(results))


def told(results: Results, longest: float) -> str:
    """The same in one line, for a log."""
    seconds = results.intervals
    recent = seconds[-_RECENT:]
    latency = merged(each.latency for each in recent)
    return (
        f"{clock(results.seconds)} of {clock(longest)}: offered {sum(each.offered for each in seconds):,}, "
        f"started {sum(each.started for each in seconds):,}, waiting {_last(seconds, 'waiting'):,}, "
        f"inside {_last(seconds, 'inside'):,}, admitted {_mean(recent, 'admitted'):.1f} a second, "
        f"p95 {duration(latency.percentile(95))}, errors {_errors(recent)}"
    )


class Watch:
    """Shows a run while it runs; a context, so that the terminal is left as it was.

    Args:
        console: where to.
        longest: seconds that the run may last.
    """

    def __init__(self, console: Console, longest: float) -> None:
        self._console = console
        self._longest = longest
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._findings: Sequence[Finding] = ()
        self._judged = 0.0
        self._said = -LINES_EVERY

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, results: Results) -> None:
        """Show what there is of the run; to be called about once a second of it."""
        if self._live is None:
            if results.seconds - self._said >= LINES_EVERY:
                self._said = results.seconds
                self._console.print(
                    told(results, self._longest), soft_wrap=True, markup=False, highlight=False
                )
            return
        if results.seconds - self._judged >= GATES_EVERY:
            self._judged = results.seconds
            self._findings = judge(results).findings
        self._live.update(view(results, self._longest, self._findings), refresh=True)


def _gates(findings: Sequence[Finding]) -> list[Text]:
    return [
        Text.assemble((f"{mark} ", style), finding.name, (f"  {finding.figure}", "dim"))
        for finding in findings
        for mark, style in [_MARKS[finding.outcome]]
    ]


def _doubt(results: Results) -> list[Text]:
    dropped, late = (sum(getattr(each, name) for each in results.intervals) for name in ("dropped", "late"))
    if not dropped and not late:
        return []
    return [Text(f"The generator is behind: {late:,} late, {dropped:,} dropped.", style="yellow")]


def _limit(results: Results) -> str:
    limit = (results.scenario.get("room") or {}).get("total_active_users")
    return f"of {limit:,}" if limit else "now"


def _line(seconds: Sequence[Interval], name: str) -> str:
    return sparkline([getattr(each, name) for each in seconds[-_CHART:]])


def _slowness(seconds: Sequence[Interval]) -> str:
    each = [interval.latency.percentile(95) for interval in seconds[-_CHART:]]
    return sparkline([0.0 if math.isnan(value) else value for value in each])


def _last(seconds: Sequence[Interval], name: str) -> int:
    return int(getattr(seconds[-1], name)) if seconds else 0


def _mean(seconds: Sequence[Interval], name: str) -> float:
    return sum(getattr(each, name) for each in seconds) / len(seconds) if seconds else 0.0


def _errors(seconds: Sequence[Interval]) -> str:
    return percent(share(sum(each.errors for each in seconds), sum(each.requests for each in seconds)))
