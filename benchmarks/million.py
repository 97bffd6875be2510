"""A million people who wait, at two gateways on one store; `make bench-million`.

    python -m benchmarks.million [--people 1000000] [--sockets 20000] [--seconds 50] [--json FILE]

Of the numbers issued 60 % are present and poll when they are told to, the rest have gone away. For a minute
the room is paused, until everybody present was heard of; then seats are freed at 5,000 a minute. Polls come
from inside the gateways, where sockets would measure the generator; real sockets poll besides. In the end
every call is compared with who was first in line, and a sample of positions with the exact count.
Exit codes: 0 measured, and everybody was told the truth; 1 somebody was not.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import redis
import uvloop

from benchmarks.crowd import STAY, Browser, Crowd, number_token, request_of
from benchmarks.rig import Rig, free_ports, resident
from benchmarks.stands import KEY
from waitingroom import embedded
from waitingroom.config import load_text
from waitingroom.logs import configure_logging
from waitingroom.requestlog import RequestLog
from waitingroom.room import Room
from waitingroom.scripts import script_source
from waitingroom.server import Server
from waitingroom.signals import allow_files
from waitingroom.store import Store
from waitingroom.tickets import Keyring

GATEWAYS = 2
_SAFE = ["-P"] if sys.flags.safe_path else []
"""With `-P` a compiled package on PYTHONPATH goes before the source in the current folder."""

SEATS = int(5000 / 60 * STAY)
"""As many as are freed at 5,000 a minute."""

GATHERING = 64
"""Seconds for which the room is paused, so that everybody present has polled once."""

_CONFIG = """
[server]
listen = "127.0.0.1:{port}"
private_listen = "127.0.0.1:0"
max_connections = 16000
keepalive_timeout = "10m"
[store]
url = "{url}"
data = "{data}"
timeout = 2
[tokens]
keys = ["{key}"]
[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:1"
total_active_users = {seats}
new_users_per_minute = 6000
"""

TARGETS = {
    "store, MiB above its base": 6.0,
    "gateway, MiB": 150.0,
    "tick in the store, p99 ms": 50.0,
    "event loop late, p99 ms": 50.0,
    "positions wrong": 0,
    "calls out of order": 0,
    "sockets lost": 0,
}
"""The most that each figure may be."""


def is_present(number: int) -> bool:
    """Whether the visitor with this number still waits for it."""
    return number % 10 < 6


def present_below(number: int, first: int) -> int:
    """How many present numbers there are from `first`, a multiple of ten, up to below `number`."""
    tens, rest = divmod(number - first, 10)
    return 6 * tens + min(rest, 6)


async def gateway(
    log: RequestLog | None, text: str, first: int, people: int, index: int, seconds: int
) -> dict[str, Any]:
    """One gateway with its share of the crowd inside: what it has seen."""
    server = Server(load_text(text, {}), log)
    await server.start()
    listener = server._listener  # noqa: SLF001 - the crowd stands inside
    desk = server._desks["sale"]  # noqa: SLF001 - and looks over its shoulder
    crowd = Crowd(server, listener, desk, Keyring([KEY.encode()]))
    crowd.expect(filter(is_present, range(first + index, first + people, GATEWAYS)), GATHERING - 4)
    late: list[float] = []
    watching = asyncio.create_task(_lateness(late))
    await crowd.poll(seconds)
    watching.cancel()
    told = {
        "resident": resident(os.getpid()),
        "polls_a_second": crowd.polls / seconds,
        "poll_us": 1e6 * crowd.seconds / max(1, crowd.polls),
        "late": late,
        "wrong": _wrong(crowd, first, people),
        "offered": sorted(crowd.offered),
        "called": crowd.called,
        "inside": crowd.inside,
        "left": crowd.left,
    }
    await server.stop()
    return told


async def _lateness(late: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        late.append(1000 * max(0.0, time.monotonic() - due))


def _wrong(crowd: Crowd, first: int, people: int) -> list[tuple[int, int, int]]:
    """Number, position told and right position, for a sample of those waiting who are told a wrong one."""
    snapshot = crowd.desk.snapshot
    chance = random.Random(11)
    wrong = []
    for number in filter(is_present, [chance.randrange(first, first + people) for _ in range(400)]):
        right = present_below(number, first) - snapshot.totals.offered + 1
        told = crowd.ask(number)["position"]
        if right > 0 and told != right:
            wrong.append((number, told, right))
    return wrong


def _itself(browser: Browser) -> Browser:
    return browser


async def browsers(port: int, count: int, first: int, seconds: int) -> dict[str, Any]:
    """So many real connections to one gateway: what became of them."""
    allow_files()
    loop, ring, end = (
        asyncio.get_running_loop(),
        Keyring([KEY.encode()]),
        1000 * int(time.time()) + 86_400_000,
    )
    made: list[Browser] = []
    refused = 0
    for index in range(count):
        browser = Browser(
            request_of(ring.sign(number_token(first + 50_000 + index % 6 + 10 * (index % 9), end)))
        )
        try:
            await loop.create_connection(partial(_itself, browser), "127.0.0.1", port)
            made.append(browser)
        except OSError:
            refused += 1
        if index % 100 == 99:
            await asyncio.sleep(0.02)
    await asyncio.sleep(seconds)
    waits = [wait for browser in made for wait in browser.waits]
    return {
        "connected": len(made),
        "lost": refused + sum(browser.lost for browser in made),
        "polls": sum(browser.polls for browser in made),
        "p50": median(waits),
        "p99": quantiles(waits, n=100)[98],
    }


def measure(folder: Path, people: int, sockets: int, seconds: int) -> dict[str, Any]:
    """Bring it all up, let it run, and gather what everybody has seen."""
    rig, total = Rig(folder), GATHERING + seconds
    with ExitStack() as stack:
        address = folder / "store.sock"
        command = [str(embedded.binary()), "--port", "0", "--save", "", "--unixsocket", str(address)]
        command += [
            "--slowlog-log-slower-than",
            "300",
            "--slowlog-max-len",
            "4000",
        ]  # us; what a script calls is less
        stack.enter_context(rig.process("store", command, (), core=None))
        url = f"unix://{address}"
        client = stack.enter_context(redis.Redis.from_url(url))
        while not address.exists():
            time.sleep(0.02)
        base = int(client.info("memory")["used_memory"])
        first = asyncio.run(_issue(url, client, people))
        ports = free_ports(GATEWAYS)
        helpers = []
        for index, port in enumerate(ports):
            config = folder / f"{index}.toml"
            config.write_text(
                _CONFIG.format(port=port, url=url, data=folder / str(index), key=KEY, seats=SEATS)
            )
            helpers.append(Helper(folder, f"gateway{index}", "gateway", config, first, people, index, total))
        time.sleep(5)
        visitors = [
            Helper(folder, f"browsers{port}", "browsers", port, sockets // GATEWAYS, first, total - 30)
            for port in ports
            if sockets
        ]
        time.sleep(GATHERING - 5)
        client.slowlog_reset()
        asyncio.run(_resume(url))
        gateways = [helper.findings() for helper in helpers]
        told = [visitor.findings() for visitor in visitors]
        sha = client.script_load(script_source("tick"))
        ticks = [
            entry["duration"] / 1000 for entry in client.slowlog_get(4000) if sha.encode() in entry["command"]
        ]
        used = int(client.info("memory")["used_memory"]) - base
    return {
        "people": people,
        "first": first,
        "store": used,
        "ticks": ticks,
        "gateways": gateways,
        "sockets": told,
    }


class Helper:
    """A process of this module, and the file that it writes its findings to."""

    def __init__(self, folder: Path, name: str, *words: object) -> None:
        self._findings = folder / f"{name}.json"
        command = [
            sys.executable,
            *_SAFE,
            "-m",
            "benchmarks.million",
            "--as",
            str(self._findings),
            *map(str, words),
        ]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[1])

    def findings(self) -> dict[str, Any]:
        """Wait for the process, and read what it has found."""
        if self._process.wait():
            raise RuntimeError(f"{self._process.args!r} has failed")
        found: dict[str, Any] = json.loads(self._findings.read_text())
        return found


async def _issue(url: str, client: "redis.Redis", people: int) -> int:
    """Open the room, paused, and count so many numbers as given; returns the first, a multiple of ten."""
    store = Store(url, "bench", timeout=5)
    await store.seed(
        Room(
            "sale",
            upstream="http://127.0.0.1:1",
            total_active_users=SEATS,
            new_users_per_minute=6000,
            paused=True,
        )
    )
    await store.close()
    issued = int(client.hget("wr:{sale}:state", "issued") or 0)
    first = issued // 10 * 10 + 10
    # A join leaves nothing in the store but the count, so that giving numbers is counting them.
    client.hset("wr:{sale}:state", "issued", first + people - 1)
    return first


async def _resume(url: str) -> None:
    store = Store(url, "bench", timeout=5)
    room = await store.load("sale")
    await store.change(replace(room, paused=False), room, "bench", "everybody is here")
    await store.close()


def figures(found: dict[str, Any]) -> dict[str, float]:
    """What was reached, by the name of its target."""
    gateways = found["gateways"]
    first = found["first"]
    offered = set(gateways[0]["offered"]).union(*(gateway["offered"] for gateway in gateways))
    right = [number for number in range(first, first + 2 * len(offered) + 20) if is_present(number)]
    late = [value for gateway in gateways for value in gateway["late"]]
    return {
        "store, MiB above its base": found["store"] / 2**20,
        "gateway, MiB": max(gateway["resident"] for gateway in gateways) / 2**20,
        "tick in the store, p99 ms": quantiles(found["ticks"], n=100)[98],
        "event loop late, p99 ms": quantiles(late, n=100)[98],
        "positions wrong": sum(len(gateway["wrong"]) for gateway in gateways),
        "calls out of order": len(offered.symmetric_difference(right[: len(offered)])),
        "sockets lost": sum(told["lost"] for told in found["sockets"]),
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    reached = figures(found)
    lines = [f"{found['people']:,} numbers issued, {found['people'] * 6 // 10:,} people present", ""]
    for name, most in TARGETS.items():
        verdict = "reached" if reached[name] <= most else "NOT REACHED"
        lines.append(f"{name:32} {reached[name]:10,.1f}   at most {most:6,.0f}   {verdict}")
    for index, gateway in enumerate(found["gateways"]):
        polls = f"{gateway['polls_a_second']:,.0f} polls a second at {gateway['poll_us']:.1f} us of CPU"
        lines.append(
            f"gateway {index}: {polls}, {gateway['called']:,} called, {gateway['inside']:,} entered, "
            f"{gateway['left']:,} left; event loop at most {max(gateway['late']):.0f} ms late"
        )
    lines += [
        f"sockets: {told['connected']:,} connected, {told['polls']:,} polls, "
        f"p50 {told['p50']:.1f} ms, p99 {told['p99']:.1f} ms"
        for told in found["sockets"]
    ]
    lines.append(
        f"ticks in the store: median {median(found['ticks']):.1f} ms, most {max(found['ticks']):.1f} ms"
    )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; or be one of the processes that a measurement needs."""
    if sys.argv[1:2] == ["--as"]:
        findings, role, *words = sys.argv[2:]
        allow_files()
        with Path(os.devnull).open("w") as nowhere:
            _, log = configure_logging(nowhere, as_json=True)
            if role == "gateway":
                first, people, index, seconds = map(int, words[1:])
                work = gateway(log, Path(words[0]).read_text(), first, people, index, seconds)
            else:
                port, count, first, seconds = map(int, words)
                work = browsers(port, count, first, seconds)
            Path(findings).write_text(json.dumps(uvloop.run(work)))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=1_000_000, help="numbers issued (default: 1000000)")
    parser.add_argument("--sockets", type=int, default=20_000, help="real connections (default: 20000)")
    parser.add_argument("--seconds", type=int, default=50, help="of admission (default: 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = measure(Path(folder), options.people, options.sockets, options.seconds)
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(figures(found), indent=1) + "\n")
    reached = figures(found)
    return int(reached["positions wrong"] > 0 or reached["calls out of order"] > 0)


if __name__ == "__main__":
    sys.exit(main())
