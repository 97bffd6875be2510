"""`waitingroom load`: rehearsals, by the load kit, which is loaded only when one is asked for."""

import json
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from loadtest.results import Results
    from loadtest.scenario import Scenario

MISUSE, OUT_OF_REACH, ABORTED = 2, 3, 5
_CODES = (
    "Exit codes: 0 passed; 1 a gate failed; 2 misuse, or a scenario that cannot stand; 3 out of reach; "
    "4 inconclusive: the generator was the bottleneck, or there is no data; 5 it was stopped before its end."
)
_ENDING = 30.0  # seconds for a run that was interrupted to hand in what it has

app = typer.Typer(
    help="Rehearse a sale: let a crowd come, and see what becomes of it.",
    epilog=_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _root() -> None:
    """Keep `load` a group, however few commands it has."""


@app.command(
    epilog="\b\nExamples:\n  waitingroom load run black-friday --scale 0.05\n"
    f"  waitingroom load run mine.toml --target http://127.0.0.1:8080 --json run.json\n\n{_CODES}"
)
def run(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A ready-made scenario, or a file.")],
    *,
    scale: Annotated[float | None, typer.Option("--scale", help="Times the arrivals.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Storefront's origin, for shoppers.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for all results, as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="File for the report, as one page.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="File with a case for each gate.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="File for a short report.")] = None,
) -> None:
    """Run a scenario against a storefront of your own.

    Refuses targets that are neither loopback nor listed in the scenario as yours. It ends by itself; Ctrl-C
    ends it at once, and what has happened by then is kept.
    """
    if find_spec("loadtest") is None or find_spec("locust") is None:
        _fail(MISUSE, "The load kit is not installed.", "Run it from the project's folder, after make setup.")
    from loadtest import cli_report, preflight
    from loadtest.gates import judge
    from loadtest.grammar import ScenarioError
    from loadtest.report import as_markdown

    try:
        made = preflight.ready(scenario, scale, target)
    except ScenarioError as error:
        _fail(MISUSE, f"{error.where} {error.what}", error.remedy)
    if trouble := preflight.reach(made):
        _fail(OUT_OF_REACH, trouble, "Start the storefront, or name it with --target.")
    with tempfile.TemporaryDirectory(prefix="waitingroom-load-") as folder:
        file = as_json or Path(folder) / "results.json"
        given = ["--scenario", scenario, "--results", str(file.absolute()), "--host", made.target]
        found = _run(made, [*given, "--scale", str(made.scale)], workers, file)
    _tell(found)
    verdict = judge(found)
    cli_report.write(found, verdict, html=html, junit=junit, markdown=markdown)
    typer.echo(as_markdown(found, verdict), nl=False)
    raise typer.Exit(ABORTED if found.stopped else verdict.exit_code)


def _run(made: "Scenario", given: list[str], workers: int, file: Path) -> "Results":
    """Let Locust make the crowd in processes of its own, because it changes the one that it runs in."""
    from loadtest import LOCUSTFILE
    from loadtest import results as kept

    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *given, "--headless", "--live"]
    command += ["--skip-log-setup", "--only-summary", "--json-file", "/dev/null"]
    if workers > 1:
        port = str(_free_port())
        command += ["--processes", str(workers), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port, "--expect-workers-max-wait", "60"]
    plan = f"{made.total:,.0f} people come within {made.arriving:.0f} s"
    typer.echo(f"{made.name}: {plan} to {made.target}", err=True)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, start_new_session=True) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        try:
            for line in process.stdout:
                _show(line)
        except KeyboardInterrupt:
            process.terminate()
            process.communicate(timeout=_ENDING)
        code = process.wait()
    if not file.exists():
        _fail(code if code in (MISUSE, OUT_OF_REACH) else ABORTED, "The run left no results.")
    return kept.load(file)


def _free_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _show(line: str) -> None:
    """Tell a second on a terminal, in place of the one before."""
    if line.startswith("{") and sys.stderr.isatty():
        second = json.loads(line)
        names = ("offered", "waiting", "inside", "admitted", "requests", "errors")
        told = "  ".join(f"{name} {second[name]}" for name in names)
        typer.echo(f"\r{second['at']:>5} s  {told}\x1b[K", nl=False, err=True)


def _tell(found: "Results") -> None:
    """Tell a run in a few lines."""
    if sys.stderr.isatty():
        typer.echo(err=True)
    totals = {
        name: sum(getattr(interval, name) for interval in found.intervals)
        for name in ("offered", "started", "dropped", "late", "admitted", "requests", "errors")
    }
    outcomes = Counter(story.outcome for story in found.stories)
    for counts in (totals, outcomes):
        typer.echo("  ".join(f"{name} {number}" for name, number in counts.items()))
    for kind, number in sorted(found.failures.items()):
        typer.echo(f"failed: {kind}: {number}")
    for name, each in sorted(found.timings.items()):
        p50, p95, p99 = (each.percentile(percent) for percent in (50, 95, 99))
        typer.echo(f"{name:<24}{each.count:>8}  p50 {p50:.3f} s  p95 {p95:.3f} s  p99 {p99:.3f} s")
    cpu, lag = found.generator.cpu_percent_p95, found.generator.lag_p99
    typer.echo(f"generator: {cpu:.0f} % of a core, arrivals {1000 * lag:.0f} ms late (p99)")


def _fail(code: int, what: str, remedy: str = "") -> NoReturn:
    typer.echo(f"waitingroom: {what}" + (f"\n  {remedy}" if remedy else ""), err=True)
    raise typer.Exit(code)


if find_spec("loadtest") is not None:
    from loadtest import cli_history, cli_report

    cli_history.mount(app, _CODES)
    cli_report.mount(app, _CODES)
