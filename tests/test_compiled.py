"""The wheel whose data path is compiled keeps the promises that the source keeps."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, tracked

PROMISES = [
    *("test_http1", "test_memory", "test_proxy", "test_proxy_tunnels", "test_proxy_streams", "test_tickets"),
    *("test_gateway", "test_gateway_rooms", "test_gateway_tokens", "test_gateway_outages", "test_decision"),
    *("test_hostile", "test_many", "test_differential", "test_fuzz"),
    *("test_desk", "test_room", "test_visit", "test_ticker", "test_server", "test_telemetry", "test_logs"),
    *("test_newcomers", "test_drain", "test_figures"),
]
"""Tests of what is compiled."""

HEADER = Path(sysconfig.get_path("include")) / "Python.h"
COMPILER = sysconfig.get_config_var("CC") or "cc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which(COMPILER.split()[0]) is None or not HEADER.exists(), reason="there is no C compiler"
    ),
]


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")} | environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled package and the tests, and without the source."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("compiled")
    for path in tracked():
        if path.is_relative_to(ROOT / "waitingroom") or path.parent == ROOT:
            (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, source / path.relative_to(ROOT))
    build = ("-m", "hatchling", "build", "--target", "wheel", "--directory", source / "dist")
    run(source, *build, HATCH_BUILD_HOOK_ENABLE_MYPYC="1")
    (wheel,) = (source / "dist").glob("*.whl")
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in ("tests", "monitoring", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    # Hypothesis makes a table of characters once a folder, and would take the time for that of a slow test.
    run(folder, "-c", "from hypothesis import find, strategies as st; find(st.text(), lambda text: True)")
    return folder


def test_the_data_path_is_compiled(elsewhere: Path) -> None:
    """Every module that a request crosses is an extension there."""
    script = """
import importlib, json
names = ["http1", "heads", "exchange", "proxy", "upstream", "hop", "gateway", "desk", "tickets", "outbox",
         "premises", "bodies"]
print(json.dumps({name: importlib.import_module(f"waitingroom.{name}").__file__ for name in names}))
"""
    files = json.loads(run(elsewhere, "-c", script))
    assert {Path(file).suffix for file in files.values()} == {".so"}
    assert {Path(file).parent for file in files.values()} == {elsewhere / "waitingroom"}


def test_the_compiled_data_path_keeps_its_promises(elsewhere: Path) -> None:
    """What the tests say of the source holds for what was compiled from it."""
    files = [f"tests/{name}.py" for name in PROMISES]
    said = run(elsewhere, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *files)
    assert "passed" in said
