"""Reports say what was found, in formats that others read, whatever the names in them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from loadtest import charts, cli_report, terminal
from loadtest.gates import judge
from loadtest.page import as_html
from loadtest.report import as_json, as_junit, as_markdown, figures, outcomes
from loadtest.results import Generator, Results, save
from tests.rehearsal import LIMIT, honest, log_of

EMPTY = Results(scenario={"name": "nothing"}, started_at=0.0, seconds=0.0)


@pytest.fixture(scope="module")
def run() -> Results:
    return honest()


@pytest.fixture(scope="module")
def broken(run: Results) -> Results:
    """A run with a 5xx of the room's, and a metric that nobody scraped."""
    return replace(run, failures={"room: status 503": 3, "timeout": 2}, metrics={})


def test_the_figures_are_those_of_the_run(run: Results) -> None:
    """What a report opens with is what the results hold."""
    found = {figure.name: figure.plain for figure in figures(run)}
    bought = sum(story.outcome == "bought" for story in run.stories)
    assert found["Arrivals"] == 200
    assert found["Bought"] == bought / 200
    assert found["Wait as told"] == 1
    assert 0 < found["Most inside"] <= LIMIT
    assert {f.name: f.plain for f in figures(replace(run, origin=log_of(run)))} == found
    assert dict(outcomes(run))["bought"] == bought


def test_json_is_strict_and_whole(broken: Results) -> None:
    """The JSON report has schema, verdict, every gate and the results, and no number that JSON lacks."""
    odd = replace(broken, metrics={"x": [(0.0, math.nan)]})
    document = json.loads(as_json(odd, judge(odd)), parse_constant=pytest.fail)
    assert (document["schema"], document["results"]["schema"]) == (1, 1)
    assert (document["verdict"]["outcome"], document["verdict"]["exit_code"]) == ("failed", 1)
    assert {"name", "outcome", "figure", "bound", "why", "fixed"} == set(document["verdict"]["gates"][0])
    assert document["results"]["metrics"]["x"] == [[0.0, None]]


def test_junit_has_a_case_for_each_gate(broken: Results) -> None:
    """A failed gate is a failure, one that nobody can tell an error, and the totals are theirs."""
    suite = ET.fromstring(as_junit(broken, judge(broken)))[0]
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases["No 5xx of the room's"] == ["failure"]
    assert cases["Metric waitingroom_stalled"] == ["error"]
    assert cases["Order kept"] == ["system-out"]
    assert len(cases) == len(judge(broken).findings) + 1
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(cases)), "1", "1")
    stopped = ET.fromstring(as_junit(replace(broken, stopped="Ctrl-C"), judge(broken)))[0]
    assert stopped.get("errors") == "2"


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_any_name_is_told_safely(name: str) -> None:
    """Whatever a scenario is called, XML stays well-formed, and neither HTML nor Markdown runs it."""
    odd = replace(EMPTY, scenario={"name": name, "about": f"<script>{name}", "target": "'\"><img src=x>"})
    verdict = judge(odd)
    ET.fromstring(as_junit(odd, verdict))
    page = as_html(odd, verdict)
    assert "<script" not in page
    assert "<img" not in page
    assert "\n## " not in as_markdown(odd, verdict)[3:]


def test_markdown_is_short_and_names_what_failed(broken: Results) -> None:
    """A pull request is told verdict, figures, gates, and why those failed that did."""
    text = as_markdown(broken, judge(broken))
    assert text.startswith("## Load test doors-open: failed\n")
    assert "| failed | No 5xx of the room's | 3 answers | none |" in text
    assert "- No 5xx of the room's: Of 2000 answers" in text
    assert len(text.splitlines()) < 30


def test_nothing_at_all_can_be_reported() -> None:
    """A run without data has reports too, and they say so."""
    verdict = judge(EMPTY)
    for text in (as_html(EMPTY, verdict), as_markdown(EMPTY, verdict), as_junit(EMPTY, verdict)):
        assert "no data" in text
    assert json.loads(as_json(EMPTY, verdict))["verdict"]["outcome"] == "inconclusive"


def test_the_page_asks_nothing_of_the_network(run: Results) -> None:
    """The HTML names no other resource, runs no script, and forbids itself both."""
    page = as_html(run, judge(run))
    assert "default-src 'none'" in page
    for sign in ("<script", "@import", "url(", "<iframe", 'src="'):
        assert sign not in page, sign
    assert page.count("http") == page.count("http://127.0.0.1:8080") + page.count("http-equiv")


def test_the_page_of_a_long_run_stays_small(run: Results) -> None:
    """An hour with twenty thousand people fits into a file that can be sent by mail."""
    hour = [replace(run.intervals[n % 150], at=n) for n in range(3600)]
    long = replace(run, intervals=hour, stories=run.stories * 100, seconds=3600.0)
    assert len(as_html(long, judge(long))) < 200_000


def test_charts_stay_within_their_box() -> None:
    """Values beyond the scale are drawn at its edge, gaps are gaps, and scales are round."""
    assert charts.line([1, math.nan, 300], 100) == "M166.7 99h0M833.3 0h0"
    assert charts.line([0, 50], 100) == "M250 100h0L750 50"
    assert [charts.top(values) for values in ([], [0], [7.2], [1300, 20], [math.inf, 3])] == [
        1,
        1,
        8,
        1500,
        3,
    ]
    assert charts.ticks(240) == [0, 60, 120, 180, 240]
    assert [len(group) for group in charts.buckets(700)] == [3] * 233 + [1]
    assert charts.grouped([1, 2, 3], max, 2) == [2, 3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0874, "87 ms"), (1.239, "1.24 s"), (45, "45 s"), (200, "3:20 min"), (math.nan, "—")],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    """A duration has as many digits as matter."""
    assert charts.duration(seconds) == text


def test_the_live_view_shows_where_the_run_is(run: Results) -> None:
    """Redrawn or as a line, it tells time, load, line, shop and gates."""
    half = replace(run, seconds=75.0, intervals=run.intervals[:75])
    console = Console(width=100, force_terminal=False, record=True)
    console.print(terminal.view(half, 240.0, judge(half).findings))
    text = console.export_text()
    for part in (
        "doors-open",
        "1:15 min of 4:00 min",
        "200 started",
        f"of {LIMIT}",
        "Pages, p95",
        "● Order kept",
    ):
        assert part in text, part
    now = half.intervals[-1]
    assert (
        f"1:15 min of 4:00 min: offered 200, started 200, waiting {now.waiting}, inside {now.inside}, "
    ) in terminal.told(half, 240.0)
    behind = replace(half, intervals=[replace(half.intervals[0], late=3)])
    console.print(terminal.view(behind, 240.0))
    assert "3 late, 0 dropped" in console.export_text()


def test_a_log_gets_a_line_now_and_then(run: Results) -> None:
    """Where there is no terminal, a line comes every five seconds of the run, beginning with the first."""
    console = Console(width=200, force_terminal=False, record=True)
    with terminal.Watch(console, 150.0) as watch:
        for at in range(12):
            watch.show(replace(run, seconds=float(at), intervals=run.intervals[:at]))
    assert [line.split(" of ")[0] for line in console.export_text().splitlines()] == ["0 s", "5 s", "10 s"]


def test_a_terminal_is_redrawn(run: Results) -> None:
    """On a terminal one view takes the place of the last, with the gates as of late."""
    console = Console(width=100, height=40, force_terminal=True, record=True)
    with terminal.Watch(console, 150.0) as watch:
        watch.show(replace(run, seconds=9.0, intervals=run.intervals[:9]))
        watch.show(replace(run, seconds=10.0, intervals=run.intervals[:10]))
    text = console.export_text()
    assert "9 s of" in text
    assert "Never over the limit" in text


def invoke(*words: str | Path) -> Any:
    app = typer.Typer()
    app.command()(cli_report.report)
    app.command()(cli_report.compare)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_report_writes_what_it_is_asked_for(broken: Results, tmp_path: Path) -> None:
    """Each format goes into its file, the verdict to the terminal, and its code to the shell."""
    save(broken, tmp_path / "run.json")
    files = [tmp_path / name for name in ("run.html", "run.xml", "run.md")]
    told = invoke(
        "report", tmp_path / "run.json", "--html", files[0], "--junit", files[1], "--markdown", files[2]
    )
    assert told.exit_code == 1
    assert [file.read_text()[:5] for file in files] == ["<!doc", "<?xml", "## Lo"]
    assert told.stdout == files[2].read_text()
    told = invoke("report", tmp_path / "run.json", "--json")
    assert json.loads(told.stdout)["verdict"]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"generator": Generator(99.0)}, 4),
        ({"stopped": "Ctrl-C"}, 5),
        ({"failures": {"room: status 500": 1}}, 1),
    ],
)
def test_report_returns_the_verdict(run: Results, tmp_path: Path, changes: dict[str, Any], code: int) -> None:
    """Passed is 0, failed 1, inconclusive 4, aborted 5."""
    save(replace(run, **changes), tmp_path / "run.json")
    assert invoke("report", tmp_path / "run.json").exit_code == code


def test_misuse_is_told(run: Results, tmp_path: Path) -> None:
    """A file that is none, and one that cannot be written, are errors in plain words."""
    told = invoke("report", tmp_path / "gone.json")
    assert (told.exit_code, "cannot be read" in told.stderr) == (2, True)
    save(run, tmp_path / "run.json")
    told = invoke("report", tmp_path / "run.json", "--html", tmp_path / "no" / "run.html")
    assert (told.exit_code, "Name another file" in told.stderr) == (2, True)


def test_compare_tells_what_is_worse(run: Results, tmp_path: Path) -> None:
    """Worse is 1, the same is 0; unlike runs are refused, unless asked for."""
    save(run, tmp_path / "a.json")
    save(honest(seed=2, slower=1.5), tmp_path / "b.json")
    save(replace(run, scenario=run.scenario | {"scale": 0.5}), tmp_path / "c.json")
    told = invoke("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert told.exit_code == 1
    assert "worse    Pages, median" in told.stdout
    assert invoke("compare", tmp_path / "a.json", tmp_path / "a.json").exit_code == 0
    told = invoke("compare", tmp_path / "a.json", tmp_path / "c.json")
    assert (told.exit_code, "Scale: 1.0 and 0.5" in told.stderr) == (2, True)
    told = invoke("compare", tmp_path / "a.json", tmp_path / "c.json", "--anyway", "--json")
    document = json.loads(told.stdout, parse_constant=pytest.fail)
    assert (told.exit_code, document["unlike"]) == (0, ["Scale: 1.0 and 0.5."])
    assert {change["verdict"] for change in document["changes"]} <= {"same", "unknown"}
