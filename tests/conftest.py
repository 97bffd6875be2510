"""Real servers for the tests: each is started once a session, and emptied for every test that asks for it."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import redis
import uvloop
from playwright.async_api import Browser, async_playwright

from waitingroom import embedded

REDIS = Path("/usr/bin/redis-server")
CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


async def eventually(holds: Callable[[], bool | Awaitable[bool]], seconds: float = 5.0) -> None:
    """Wait until a condition holds; fail, naming it, when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer if isinstance(answer, bool) else await answer:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"{holds!r} did not hold within {seconds} s")
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests of a module."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        await chromium.close()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that names loopback ports on which nobody listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the session's one Valkey, the bundled binary; tests ask for `valkey_url` instead."""
    with _server(embedded.binary(), tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def redis7_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the session's one Redis, Debian's; tests ask for `redis7_url` instead."""
    if not REDIS.exists():
        pytest.skip(f"{REDIS} is not installed")
    with _server(REDIS, tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def valkey_url(valkey_server: str) -> Iterator[str]:
    """URL of an empty Valkey; a key left without a TTL fails the test."""
    yield from _emptied(valkey_server)


@pytest.fixture
def redis7_url(redis7_server: str) -> Iterator[str]:
    """URL of an empty Redis 7, skipped where not installed; a key left without a TTL fails the test."""
    yield from _emptied(redis7_server)


@contextmanager
def _server(binary: Path, folder: Path) -> Iterator[str]:
    address = folder / "store.sock"
    options = ["--port", "0", "--save", "", "--dir", str(folder), "--logfile", str(folder / "log")]
    with subprocess.Popen([binary, *options, "--unixsocket", str(address)]) as process:
        try:
            _await_ping(f"unix://{address}")
            yield f"unix://{address}"
        finally:
            process.terminate()


def _await_ping(url: str) -> None:
    deadline = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


def _emptied(url: str) -> Iterator[str]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield url
        endless = sorted(
            key.decode()
            for key in client.scan_iter()
            if client.pttl(key) == -1 and not key.endswith(b":config")
        )
        client.flushall()
    assert not endless, f"keys without a TTL were left behind: {endless}"
