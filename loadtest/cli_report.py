"""Commands about runs that are over: `load report` and `load compare`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loadtest import compare as comparison
from loadtest import report as reports
from loadtest import results as kept
from loadtest.charts import duration, percent
from loadtest.gates import Verdict, judge
from loadtest.results import Results

MISUSE = 2

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ONE_FILE = "One HTML file that needs no network."


_REPORTED = "\b\nExamples:\n  waitingroom load report run.json --html report.html"
_COMPARED = "\b\nExamples:\n  waitingroom load compare before.json after.json"


def mount(app: typer.Typer, codes: str) -> None:
    """Add the commands to a group whose exit codes mean this."""
    app.command("report", epilog=f"{_REPORTED}\n\n{codes}")(report)
    app.command("compare", epilog=f"{_COMPARED}\n\n{codes}")(compare)


def report(
    run: Annotated[Path, typer.Argument(metavar="RESULTS", help="What a run wrote.")],
    *,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help=_ONE_FILE)] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JUnit XML, a case for each gate.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Short, for a pull request.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a run that is over, and write reports of it. Returns what the run itself did."""
    results = _load(run)
    verdict = judge(results)
    write(results, verdict, html=html, junit=junit, markdown=markdown)
    typer.echo(
        reports.as_json(results, verdict) if as_json else reports.as_markdown(results, verdict), nl=False
    )
    raise typer.Exit(verdict.exit_code)


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="What one run wrote.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="What another run of it wrote.")],
    *,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare runs that are not alike, too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples that are drawn.")] = 1,
    as_json: Json = False,
) -> None:
    """Say what changed between two runs beyond what chance would have changed. 1: something is worse."""
    one, other = _load(before), _load(after)
    reasons = comparison.unlike(one, other)
    if reasons and not anyway:
        said = "\n".join(f"  {reason}" for reason in reasons)
        typer.echo(f"These runs are not alike:\n{said}\nTo compare them nevertheless: --anyway", err=True)
        raise typer.Exit(MISUSE)
    changes = comparison.compare(one, other, seed)
    if as_json:
        document = {
            "schema": reports.SCHEMA,
            "unlike": reasons,
            "changes": [asdict(each) for each in changes],
        }
        typer.echo(json.dumps(reports.strict(document), ensure_ascii=False, allow_nan=False))
    else:
        typer.echo("\n".join([*(f"Not alike: {reason}" for reason in reasons), *map(_row, changes)]))
    raise typer.Exit(int(any(change.verdict == "worse" for change in changes)))


def write(
    results: Results,
    verdict: Verdict,
    *,
    html: Path | None = None,
    junit: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Write reports of a judged run into these files; exits where one cannot be written."""
    try:
        if html is not None:
            from loadtest.page import as_html  # noqa: PLC0415 - its template engine is for this alone

            html.write_text(as_html(results, verdict), encoding="utf-8")
        if junit is not None:
            junit.write_text(reports.as_junit(results, verdict), encoding="utf-8")
        if markdown is not None:
            markdown.write_text(reports.as_markdown(results, verdict), encoding="utf-8")
    except OSError as error:
        typer.echo(f"{error.filename} cannot be written: {error.strerror}. Name another file.", err=True)
        raise typer.Exit(MISUSE) from error


def _load(path: Path) -> Results:
    try:
        return kept.load(path)
    except kept.ResultsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(MISUSE) from error


def _row(change: comparison.Change) -> str:
    """A change as a line: what it is, both figures, and between what the difference surely lies."""
    told = duration if change.unit else percent
    line = f"{change.verdict:8} {change.name:18} {told(change.before):>9} → {told(change.after):>9}"
    if change.verdict == "unknown":
        return f"{line}  too little to tell"
    low, high = (f"{'-' if value < 0 else '+'}{told(abs(value))}" for value in (change.low, change.high))
    return f"{line}  difference {low} to {high}"
