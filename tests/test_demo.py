"""The demonstration shows what it is for, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from tests.conftest import eventually
from waitingroom import demo

DEMO = """
import asyncio
from rich.console import Console
from waitingroom import demo
asyncio.run(demo.run(Console(width=200), {limits}, shoppers=20, port=0))
"""


@pytest.fixture
async def started(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A demonstration in a process of its own: the process and the address that it names first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DEMO.format(limits=request.param),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stdout is not None
    told = await asyncio.wait_for(process.stdout.readuntil(b"A crowd is on its way"), 20)
    yield process, re.findall(r"http://127\.0\.0\.1:\d+/", told.decode())[0]
    if process.returncode is None:
        process.kill()
        await process.wait()


def children(pid: int) -> list[int]:
    """Processes started by another."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def left_in(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


async def test_bare_shop_meets_the_crowd() -> None:
    """Without a room the crowd reaches the shop itself, and the closing words say so."""
    told = StringIO()
    summary = await demo.run(Console(file=told, width=200), None, shoppers=30, seconds=2.5, port=0)
    assert summary.limit is None
    assert summary.pages > 0
    assert "The bare shop, no waiting room" in told.getvalue()
    assert "no limit" in told.getvalue()


@pytest.mark.slow
async def test_room_keeps_its_limit_before_the_same_crowd() -> None:
    """With a room, a line forms, the shop never sees more people than allowed, and no page fails."""
    told = StringIO()
    limits = demo.Limits(total_active_users=4, new_users_per_minute=600)
    summary = await demo.run(Console(file=told, width=200), limits, shoppers=40, seconds=7, port=0)
    assert summary.longest_line > 0
    assert 0 < summary.peak <= 4
    assert summary.kept
    assert summary.failed == 0
    assert re.search(r"inside \d of 4 .* waiting \d+ .* orders \d+", told.getvalue())
    assert "the limit is 4" in told.getvalue()


@pytest.mark.parametrize("started", ["demo.Limits()", "None"], indirect=True)
async def test_interrupt_ends_everything(
    started: tuple[asyncio.subprocess.Process, str], tmp_path: Path
) -> None:
    """Ctrl-C ends within three seconds with the comparison: no process, no listener and no file is left."""
    process, address = started
    page = {"Accept": "text/html"}
    async with aiohttp.ClientSession(headers=page) as browser, browser.get(address) as response:
        assert response.status == 200
    below = children(process.pid)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output, _ = await asyncio.wait_for(process.communicate(), 10)
    assert time.monotonic() - start < 3
    assert process.returncode == 0
    assert "How it went" in output.decode()
    await eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in below))
    assert not left_in(tmp_path)


def test_broken_promise_is_not_hidden() -> None:
    """More people inside than allowed is named a defect in the closing words."""
    told = StringIO()
    summary = demo.Summary(peak=5, limit=4, pages=10, failed=0, p95=0.1, orders=1, longest_line=3)
    Console(file=told, width=200).print(demo.closing(summary))
    assert not summary.kept
    assert "a defect of the waiting room" in told.getvalue()
