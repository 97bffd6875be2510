"""Measurements are read, compared and shown as they are; what they measure is no test's business."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import check, million, report
from benchmarks.rig import MissingToolError, Run, cpu_seconds, parse_wrk, percentile, ratio, require_tools

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks" / "figures.json"
REPORT = """Running 2s test @ http://127.0.0.1:8080
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.10ms    1.02ms  24.64ms   92.65%
  Latency Distribution
     50%  802.00us
     99%    1.25s
  60411 requests in 2.05s, 12.00MB read
"""


def run(requests: int, cpu: float, **changes: Any) -> dict[str, Any]:
    """One run of two seconds, as it is written down."""
    plain = {"requests": requests, "seconds": 2.0, "errors": 0, "cpu": cpu, "p50": 1.0, "p99": 3.0}
    return plain | {"others": 1.0} | changes


def measured(path: str = "poll", *, void: bool = False, **runs: list[dict[str, Any]]) -> report.Measured:
    """A path on which `runs` were made, by stand."""
    named = {name.replace("_", ", ", 1): made for name, made in runs.items()}
    return {
        "path": path,
        "pause": 0,
        "runs": named,
        "void": {name: ["a core was full" if void else ""] * len(made) for name, made in named.items()},
        "calls_per_1000": 0.0,
    }


POLL = measured(
    gateway=[run(200_000, 1.9), run(100_000, 1.9)], nginx_file=[run(200_000, 1.0), run(100_000, 1.0)]
)


def test_report_of_wrk_is_read() -> None:
    """Requests, seconds, every kind of failed request and the percentiles are taken from what wrk prints."""
    assert parse_wrk(REPORT) == (60411, 2.05, 0)
    assert (percentile(REPORT, 50), percentile(REPORT, 99)) == (0.802, 1250.0)
    failed = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert parse_wrk(REPORT + failed) == (60411, 2.05, 15)


def test_no_report_is_an_error() -> None:
    """What wrk says instead of a report is shown, not taken for a measurement."""
    with pytest.raises(ValueError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_ratio_compares_neighbours() -> None:
    """A slow moment that falls on neighbouring runs of both does not move the ratio."""
    assert ratio([10, 5, 20], [20, 10, 40]) == 0.5
    goal = report.Goal("poll", "gateway", "nginx, file", "cpu", 2.0, most=True)
    assert report.value(POLL, goal) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("pause", "cpu", "others", "void"),
    [
        (0, 1.95, 1.98, False),  # the server's core was full: what others did is of no account
        (0, 1.2, 1.98, True),  # it was not, and the generator could do no more
        (0, 1.2, 0.5, False),
        (8, 0.6, 0.8, False),
        (8, 0.6, 1.94, True),
    ],
)
def test_a_run_that_measured_somebody_else_is_void(
    pause: int, cpu: float, others: float, *, void: bool
) -> None:
    """At full speed the server must have been the bottleneck, at a pace nobody; else the run says so."""
    assert bool(Run(100_000, 2.0, 0, cpu, 1.0, 2.0, others).void(pause)) is void


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every missing program is named, with the line that installs it."""
    monkeypatch.setattr("shutil.which", lambda name: None if name == "wrk" else f"/usr/bin/{name}")
    monkeypatch.setattr("benchmarks.rig.LUA_MODULE", Path("/nowhere"))
    with pytest.raises(
        MissingToolError, match=r"wrk, nginx with Lua.*apt-get install wrk libnginx-mod-http-lua$"
    ):
        require_tools()


def test_cpu_time_counts_children() -> None:
    """The CPU time of a server is that of its workers too."""
    code = "import os, sys, time\nburn = 0 if os.fork() else 0.4\nwhile time.process_time() < burn: pass\n"
    command = [sys.executable, "-c", code + "sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        deadline = time.monotonic() + 20
        while cpu_seconds(process.pid) < 0.3:
            assert time.monotonic() < deadline
        process.stdin.close()


def test_a_target_is_reached_missed_or_void() -> None:
    """Each target has its figure, and no target is reached by runs that do not count."""
    held = {row["goal"]: row["held"] for row in report.goals([POLL])}
    assert [held[goal] for goal in held if "nginx" in goal] == [True]
    slow = measured(gateway=[run(100_000, 2.1)], nginx_file=[run(100_000, 1.0)])
    assert [row["held"] for row in report.goals([slow]) if "nginx" in row["goal"]] == [False]
    nothing = measured(void=True, gateway=[run(100_000, 0.1)], nginx_file=[run(100_000, 1.0)])
    assert [row["held"] for row in report.goals([nothing]) if "nginx" in row["goal"]] == [None]
    assert "NOT REACHED" in report.verdicts(report.goals([slow]))


def test_failed_requests_make_a_measurement_unsound() -> None:
    """A run with errors, or a stand all of whose runs are void, is said to be no measurement."""
    assert not report.unsound(POLL)
    assert report.unsound(measured(gateway=[run(10, 1.0, errors=1)], nginx_file=[run(10, 1.0)]))
    assert report.unsound(measured(void=True, gateway=[run(10, 1.0)], nginx_file=[run(10, 1.0)]))


def test_table_and_picture_show_every_stand() -> None:
    """Each stand has a line and a bar, with its multiple of the second's."""
    lines = report.table(POLL).splitlines()
    assert lines[1].split()[:5] == ["gateway", "75,000", "1.00", "14.2", "1.90"]
    drawn = ET.fromstring(report.picture([POLL]))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"poll", "gateway", "nginx, file", "1.90", "1.00"} <= set(texts)


def test_slower_than_the_noise_is_a_regression() -> None:
    """A ratio to nginx that has grown by more than what runs differ by is named; one that has not is not."""
    before = {"paths": [POLL]}
    same = {"paths": [measured(gateway=[run(100_000, 2.0)], nginx_file=[run(100_000, 1.0)])]}
    worse = {"paths": [measured(gateway=[run(100_000, 2.6)], nginx_file=[run(100_000, 1.0)])]}
    assert check.regressions(before, same) == []
    (found,) = check.regressions(before, worse)
    assert "poll" in found
    assert "1.90" in found
    assert "2.60" in found


def test_the_committed_figures_are_those_of_the_paths() -> None:
    """What `make bench-check` compares with has every path that has a target, and every run that it names."""
    figures = json.loads(FIGURES.read_text())
    by_path = {path["path"]: path for path in figures["paths"]}
    for goal in report.GOALS:
        assert goal.stand in by_path[goal.path]["runs"]
    assert figures["goals"] == report.goals(figures["paths"])


def test_who_is_first_in_a_crowd_is_counted() -> None:
    """The judge's own arithmetic: present numbers below another are those that a plain count finds."""
    for number in range(100, 140):
        counted = sum(million.is_present(other) for other in range(100, number))
        assert million.present_below(number, 100) == counted


@pytest.mark.parametrize("module", ["paths", "million", "many", "check"])
def test_help_says_how_it_is_called(module: str) -> None:
    """Each command explains itself without measuring anything."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--json FILE" in shown.stdout
