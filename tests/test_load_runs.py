"""Rehearsals of seconds, by Locust in processes of its own, against real gateways and the demo storefront."""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest import results
from loadtest.results import Results
from loadtest.scenario import load
from tests.conftest import eventually
from tests.test_architecture import ROOT
from waitingroom import config
from waitingroom.server import Server
from waitingroom.storefront import Capacity, Storefront

pytestmark = pytest.mark.slow

GATEWAY = """
[server]
listen = "127.0.0.1:0"
private_listen = "127.0.0.1:0"
[store]
url = "{store}"
tick = "200ms"
timeout = "2s"
[tokens]
keys = ["a signing key of the tests, of more than 32 bytes"]
[admin]
token = "a token of the tests, of more than 32 characters"
[log]
level = "error"
[[rooms]]
name = "sale"
upstream = "http://{shop}"
total_active_users = {inside}
new_users_per_minute = {rate}
session_duration = "10s"
"""

SCENARIO = """
name = "small"
target = "{target}"
[safety]
at_once = {at_once}
[[arrivals]]
curve = "{curve}"
rate = {rate}
duration = "{duration}"
[shoppers]
think_median = "100ms"
think_sigma = 0.3
patience_scale = "{patience}"
patience_shape = 8
finish = "{finish}"
away = "1s"
habits = {habits}
[room]
name = "sale"
[chain]
home = {{ product = 1 }}
product = {{ basket = 4, exit = 1 }}
basket = {{ checkout = 1 }}
checkout = {{ pay = 1 }}
"""


@dataclass
class Run:
    """A rehearsal that was: its exit code, what it printed, and what it left."""

    code: int
    told: str
    results: Results

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(story.outcome for story in self.results.stories)

    def total(self, name: str) -> int:
        return sum(getattr(interval, name) for interval in self.results.intervals)


@asynccontextmanager
async def storefront(
    *, room: str = "", inside: int = 10, rate: int = 600
) -> AsyncIterator[tuple[str, Storefront]]:
    """A shop, behind a waiting room if `room` is the URL of a store; where it is, and the shop itself."""
    shop = Storefront(0, Capacity(workers=50, service=0.005, backlog=1000))
    host, port = await shop.start()
    try:
        if not room:
            yield f"http://{host}:{port}", shop
            return
        text = GATEWAY.format(store=room, shop=f"{host}:{port}", inside=inside, rate=rate)
        server = Server(config.load_text(text, {}))
        await server.start()
        try:
            yield "http://{}:{}".format(*server.public_address), shop
        finally:
            await server.stop()
    finally:
        await shop.stop()


def scenario(folder: Path, target: str, **changes: object) -> Path:
    """A small scenario in a file."""
    values: dict[str, object] = {
        "curve": "constant",
        "rate": 20,
        "duration": "3s",
        "at_once": 1000,
        "patience": "20s",
        "finish": "10s",
        "habits": "{ patient = 1 }",
    }
    path = folder / "small.toml"
    path.write_text(SCENARIO.format(target=target, **values | changes))
    return path


async def rehearse(path: Path, *options: str, interrupt_after: float | None = None) -> Run:
    """Run a scenario as its user does."""
    kept = path.with_suffix(".json")
    command = [sys.executable, "-m", "waitingroom", "load", "run", str(path), "--json", str(kept), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        if interrupt_after is not None:
            assert process.stdout is not None
            await process.stdout.readline()
            await asyncio.sleep(interrupt_after)
            process.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(process.communicate(), 50)
    finally:
        if process.returncode is None:
            process.terminate()
    assert process.returncode is not None
    assert kept.exists(), said.decode()
    return Run(process.returncode, said.decode(), results.load(kept))


async def test_offered_is_the_curve_and_shoppers_queue_and_buy(tmp_path: Path, valkey_url: str) -> None:
    """As many come as the curve says, each second; they wait, go in by their turn, and some buy."""
    async with storefront(room=valkey_url, inside=12, rate=3000) as (target, shop):
        path = scenario(tmp_path, target, duration="1s", finish="16s")
        done = await rehearse(path)
        orders = shop.orders
    assert done.code == 0, done.told
    due = Counter(int(moment) for _, moment in load(str(path)).due())
    offered = {interval.at: interval.offered for interval in done.results.intervals if interval.offered}
    assert offered == due
    assert done.total("offered") == done.total("started") == 20 == len(done.results.stories)
    assert done.outcomes["bought"] == orders > 0
    assert set(done.outcomes) <= {"bought", "left"}
    assert done.total("admitted") == 20
    waited = [story for story in done.results.stories if story.joined is not None]
    assert waited
    assert all(story.entered is not None and story.joined < story.entered for story in waited if story.joined)
    assert all(list(story.positions) == sorted(story.positions, reverse=True) for story in waited)
    assert done.results.failures == {}
    pages = [each.count for name, each in done.results.timings.items() if name.startswith("page:")]
    assert done.total("requests") == sum(pages)


async def test_every_habit_follows_the_protocol_in_its_way(tmp_path: Path, valkey_url: str) -> None:
    """Hidden, asleep, back again, in tabs, without cookies, reloading: the room loses nobody's place."""
    names = ("hidden", "sleeper", "returner", "tabs", "forgetful", "f5", "retry", "bot")
    habits = "{ " + ", ".join(f"{name} = 1" for name in names) + " }"
    async with storefront(room=valkey_url, inside=8) as (target, _):
        done = await rehearse(scenario(tmp_path, target, habits=habits, rate=12, patience="5s", finish="5s"))
    assert done.code == 0, done.told
    assert {story.habit for story in done.results.stories} == set(names)
    assert done.outcomes["lost"] == 0
    assert done.outcomes["failed"] == 0
    assert done.outcomes["gave_up"] > 0
    assert done.results.failures == {}


async def test_two_workers_are_one_crowd(tmp_path: Path) -> None:
    """A run of two workers has the arrivals, shoppers and outcomes of one process, each once."""
    async with storefront() as (target, _):
        path = scenario(tmp_path, target, rate=30, duration="2s")
        alone = await rehearse(path)
        shared = await rehearse(path, "--workers", "2")
    assert (alone.code, shared.code) == (0, 0), alone.told + shared.told
    assert (alone.results.workers, shared.results.workers) == (1, 2)
    for name in ("offered", "started", "dropped", "requests", "admitted"):
        assert shared.total(name) == alone.total(name), name
    assert [(story.index, story.due, story.outcome) for story in shared.results.stories] == [
        (story.index, story.due, story.outcome) for story in alone.results.stories
    ]
    assert {name: each.count for name, each in shared.results.timings.items()} == {
        name: each.count for name, each in alone.results.timings.items()
    }


async def test_a_generator_at_its_limit_says_so(tmp_path: Path) -> None:
    """Who cannot begin is counted as dropped, and the run is inconclusive, not passed."""
    async with storefront() as (target, _):
        done = await rehearse(scenario(tmp_path, target, rate=40, duration="2s", at_once=3))
    assert done.code == 4
    assert done.total("offered") == 80 == done.total("started") + done.total("dropped")
    assert done.results.generator.dropped == done.total("dropped") > 0
    assert "arrivals were dropped" in done.told


async def test_a_freeze_shows_in_open_latency(tmp_path: Path) -> None:
    """While the shop stands still people keep coming, and each of them waited from when they came."""
    async with storefront() as (target, shop):
        path = scenario(tmp_path, target, rate=20, duration="5s")
        running = asyncio.create_task(rehearse(path))
        await eventually(lambda: len(shop.log) > 20, 30)
        # Nothing in this process goes on, the shop included.
        time.sleep(2)  # noqa: ASYNC251 - that it blocks is the point
        done = await running
    latency = done.results.timings["open:page:home"]
    assert latency.count == 100
    # Two seconds of five: at least a third of those who came met it, spread evenly over its length.
    assert latency.above(0.2) >= 30
    assert latency.most == pytest.approx(2, abs=0.3)
    assert all(interval.offered > 5 for interval in done.results.intervals[:4])


async def test_a_run_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it at once; what has happened is kept, and the exit code says that it was stopped."""
    async with storefront() as (target, _):
        done = await rehearse(scenario(tmp_path, target, duration="60s"), interrupt_after=5)
    assert done.code == 5, done.told
    assert done.results.stopped
    assert 0 < done.total("offered") < 1200
    assert done.outcomes["unfinished"] <= done.total("started")


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("http://127.0.0.1:9", 3, "Nobody answers at http://127.0.0.1:9"),
        ("http://shop.example", 2, "may not load shop.example"),
    ],
)
async def test_what_cannot_be_run_is_said_at_once(tmp_path: Path, target: str, code: int, says: str) -> None:
    """A target that is not one's own is misuse, one that is not there is out of reach; nothing is sent."""
    command = [sys.executable, "-m", "waitingroom", "load", "run", str(scenario(tmp_path, target))]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, says in said.decode()) == (code, True), said.decode()


async def test_it_runs_by_plain_locust(tmp_path: Path) -> None:
    """`locust -f loadtest/locustfile.py` runs the same scenario, and Locust's own table has its pages."""
    async with storefront() as (target, _):
        path = scenario(tmp_path, target, duration="1s")
        command = ["-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--scenario",
            str(path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, said.decode()
    assert "product" in said.decode()


def test_gevent_stays_out_of_what_does_not_need_it() -> None:
    """Everything but the executor and the locustfile can be imported without Locust or gevent."""
    modules = [
        path.stem
        for path in (ROOT / "loadtest").glob("*.py")
        if path.stem not in ("__init__", "executor", "locustfile")
    ]
    script = f"import sys\nfrom loadtest import {', '.join(modules)}\nprint('gevent' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
