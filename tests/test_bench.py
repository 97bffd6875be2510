import subprocess
import sys
import time

import pytest

from benchmarks.rig import MissingToolError, cpu_seconds, parse_wrk, ratio, require_tools
from benchmarks.smoke import table

REPORT = """Running 2s test @ http://127.0.0.1:8080
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.10ms    1.02ms  24.64ms   92.65%
  60411 requests in 2.05s, 12.00MB read
"""


def test_report_of_wrk_is_read() -> None:
    """Requests, seconds and every kind of failed request are taken from what wrk prints."""
    assert parse_wrk(REPORT) == (60411, 2.05, 0)
    failed = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert parse_wrk(REPORT + failed) == (60411, 2.05, 15)


def test_no_report_is_an_error() -> None:
    """What wrk says instead of a report is shown, not taken for a measurement."""
    with pytest.raises(ValueError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_ratio_compares_neighbours() -> None:
    """A slow moment that falls on neighbouring runs of both does not move the ratio."""
    assert ratio([10, 5, 20], [20, 10, 40]) == 0.5


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every missing program is named, with the line that installs it."""
    monkeypatch.setattr("shutil.which", lambda name: None if name == "wrk" else f"/usr/bin/{name}")
    with pytest.raises(MissingToolError, match=r"wrk.*sudo apt-get install wrk$"):
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


def test_table_shows_every_path() -> None:
    """Each path has a line with its rate, its cost, and nginx beside it."""
    row = {"path": "poll", "beside": "a file", "rate": 20000.0, "nginx_rate": 40000.0, "rate_ratio": 0.5}
    row |= {"cpu_us": 40.0, "nginx_cpu_us": 20.0, "cpu_ratio": 0.5, "spread": 0.1, "others": 0.2}
    lines = table([row | {"errors": 0, "store_calls_per_1000": 0.0}]).splitlines()
    assert lines[1].split() == [
        "poll",
        "20,000",
        "40,000",
        "0.50",
        "40.0",
        "20.0",
        "0.50",
        "10%",
        "20%",
        "0",
        "0.00",
    ]


def test_help_says_how_it_is_called() -> None:
    """The command explains itself without measuring anything."""
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.smoke", "--help"], capture_output=True, text=True, check=True
    )
    assert "--json FILE" in shown.stdout
