"""Sales during which the store fails for real: what shoppers and the storefront's own log say about it.

python -m tests.outages [FAULT...]    the table of all faults, or of these; `--long` for a minute each
"""

import argparse
import asyncio
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path

import redis
import redis.asyncio
import uvloop

from tests.conftest import eventually
from tests.fleet import Fleet, Visitor, running
from tests.servers import Watched
from tests.servers import running as servers_of
from waitingroom import embedded
from waitingroom.faults import Proxy, freeze, kill, relay, thaw
from waitingroom.toxics import Latency, Timeout

SEATS = 12
STEADY = 6
"""Shoppers who are inside all the time."""

RATE = 1200
"""New shoppers a minute at most."""


class OwnStore:
    """A Valkey server of the sale's own, on a Unix socket, with its data on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/own.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its data are as they were."""
        options = {"--port": "0", "--unixsocket": f"{self.folder}/own.sock", "--dir": str(self.folder)}
        options |= {"--save": "", "--appendonly": "yes"}
        words = [word for option in options.items() for word in option]
        log = (self.folder / "store.log").open("ab")
        with log:
            self.process = subprocess.Popen([embedded.binary(), *words], stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until it answers."""

        async def answers() -> bool:
            try:
                return bool(await client.ping())
            except redis.RedisError:
                return False

        async with redis.asyncio.from_url(self.url) as client:
            await eventually(answers, 20)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it without a warning."""
        assert self.process is not None
        kill(self.process.pid)
        self.process.wait(10)

    def ask(self, *words: str) -> None:
        """Send it one command."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command(*words)


@dataclass
class Sale:
    """The store, what stands before it, servers that fail over instead, and how long a fault lasts."""

    store: OwnStore
    between: Proxy
    watched: Watched | None
    seconds: float


Fault = Callable[[Sale], Awaitable[None]]
"""Does harm, waits, and undoes it."""


async def frozen(sale: Sale) -> None:
    """The process stands still, its connections open."""
    freeze(sale.store.pid)
    await asyncio.sleep(2.0)
    thaw(sale.store.pid)


async def unreachable(sale: Sale) -> None:
    """Nothing arrives, and nothing says so."""
    away = sale.between.add(Timeout(0))
    await asyncio.sleep(sale.seconds)
    sale.between.remove(away)


async def killed(sale: Sale) -> None:
    """Killed, and started again with its data."""
    sale.store.kill()
    await asyncio.sleep(1.0)
    sale.store.start()
    await sale.store.ready()


async def emptied(sale: Sale) -> None:
    """Killed, and started again without any data, the configuration of rooms included."""
    sale.store.kill()
    for path in (sale.store.folder / "appendonlydir").iterdir():
        path.unlink()
    await asyncio.sleep(1.0)
    sale.store.start()
    await sale.store.ready()


async def slow(sale: Sale) -> None:
    """Each call takes 300 ms."""
    toxic = sale.between.add(Latency(300))
    await asyncio.sleep(sale.seconds)
    sale.between.remove(toxic)


async def read_only(sale: Sale) -> None:
    """A replica of somebody who is not there."""
    sale.store.ask("REPLICAOF", "127.0.0.1", "1")
    await asyncio.sleep(sale.seconds)
    sale.store.ask("REPLICAOF", "NO", "ONE")


async def out_of_memory(sale: Sale) -> None:
    """It takes nothing more."""
    sale.store.ask("CONFIG", "SET", "maxmemory", "1")
    await asyncio.sleep(sale.seconds)
    sale.store.ask("CONFIG", "SET", "maxmemory", "0")


async def failing_over(sale: Sale) -> None:
    """The primary is frozen until another server has taken its place, and then thaws."""
    servers = sale.watched
    assert servers is not None
    before = servers.primary()
    before.freeze()
    await eventually(lambda: servers.primary() is not before, 30)
    before.thaw()


FAULTS: dict[str, Fault] = {
    "frozen 2 s": frozen,
    "unreachable": unreachable,
    "killed, with its data": killed,
    "killed, emptied": emptied,
    "slow, 300 ms a call": slow,
    "read-only": read_only,
    "out of memory": out_of_memory,
    "failing over": failing_over,
}


@dataclass
class Verdict:
    """What came of one sale.

    Attributes:
        failed: requests of people inside that the storefront did not answer.
        slowest: seconds that one of them took at most.
        lost: people whose place was taken from them: another number, or none at all.
        repeated: numbers that two people had.
        inversions: pairs who came more than two seconds apart and were numbered the other way round.
        overtaken: lower numbers that were still outside when somebody entered, at most.
        inside: people inside at one instant, at most.
        resumed: seconds from the end of the fault until somebody entered.
        came: people who came; `served` of whom were inside in the end.
    """

    failed: int = 0
    slowest: float = 0.0
    lost: int = 0
    repeated: int = 0
    inversions: int = 0
    overtaken: int = 0
    inside: int = 0
    resumed: float = math.inf
    came: int = 0
    served: int = 0
    statuses: set[int] = field(default_factory=set)


@dataclass
class Guest:
    """A visitor and their story."""

    visitor: Visitor
    came: float
    numbers: list[int] = field(default_factory=list)
    entered: float = math.inf
    ended: bool = False

    def note(self) -> None:
        """Look at the number that they carry now."""
        if self.visitor.number and self.visitor.number not in self.numbers:
            self.numbers.append(self.visitor.number)

    async def go_through(self) -> None:
        """Arrive, wait, shop for a moment, and leave."""
        await self.visitor.visit()
        self.note()
        while not self.visitor.inside:
            document = await self.visitor.poll()
            self.note()
            self.ended |= document["state"] == "ended"
            if document["state"] in {"your_turn", "ended"}:
                await self.visitor.visit()
                self.note()
            if not self.visitor.inside:
                await asyncio.sleep(0.2)
        self.entered = time.monotonic()
        await asyncio.sleep(0.4)
        await self.visitor.visit("/more")
        await self.visitor.leave()


async def stay(visitor: Visitor, verdict: Verdict, over: asyncio.Event) -> None:
    """Somebody who is inside all the time, and looks at pages."""
    while not over.is_set():
        started = time.monotonic()
        await visitor.visit()
        verdict.slowest = max(verdict.slowest, time.monotonic() - started)
        verdict.failed += not visitor.inside
        await asyncio.sleep(0.05)


def judge(verdict: Verdict, guests: list[Guest], fleet: Fleet, ended: float) -> Verdict:
    """What the visitors' cookies and the storefront's log say."""
    verdict.came = len(guests)
    verdict.served = sum(guest.entered < math.inf for guest in guests)
    verdict.lost = sum(len(guest.numbers) != 1 or guest.ended for guest in guests)
    given = [number for guest in guests for number in guest.numbers]
    verdict.repeated = len(given) - len(set(given))
    numbered = sorted((guest for guest in guests if guest.numbers), key=lambda guest: guest.came)
    verdict.inversions = sum(
        early.numbers[0] > late.numbers[0]
        for index, late in enumerate(numbered)
        for early in numbered[:index]
        if late.came - early.came > 2
    )
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for seen in fleet.log():
        first.setdefault(seen.visitor, seen.at)
        last[seen.visitor] = seen.at
    ends = ((at, 1) for at in first.values()), ((at + 1e-9, -1) for at in last.values())
    verdict.inside = max(accumulate(step for _, step in sorted(chain(*ends))))
    entered = [at for name, at in first.items() if at > ended]
    verdict.resumed = min(entered, default=math.inf) - ended
    numbers = {guest.visitor.name: guest.numbers[0] for guest in guests if guest.numbers}
    order = [numbers[name] for name in sorted(first, key=lambda name: first[name]) if name in numbers]
    for index, number in enumerate(order):
        verdict.overtaken = max(verdict.overtaken, sum(later < number for later in order[index:]))
    verdict.statuses = {status for guest in guests for status in guest.visitor.statuses}
    return verdict


async def hold(
    fleet: Fleet, sale: Sale, fault: Fault, *, before: float = 2.0, after: float = 5.0, crowd: int = 2
) -> Verdict:
    """One sale with one fault in the middle, until everybody who came has been inside.

    `crowd` people come every quarter of a second, from `before` the fault until `after` it.
    """
    verdict, over, closing = Verdict(), asyncio.Event(), asyncio.Event()
    steady = fleet.visitors(STEADY, "steady")
    for visitor in steady:
        await visitor.enter()
    guests: list[Guest] = []

    async def arrivals() -> None:
        async with asyncio.TaskGroup() as group:
            while not closing.is_set():
                for visitor in fleet.visitors(crowd, f"guest{len(guests)}-"):
                    guests.append(Guest(visitor, time.monotonic()))
                    group.create_task(guests[-1].go_through())
                await asyncio.sleep(0.25)

    async with asyncio.TaskGroup() as group:
        for visitor in steady:
            group.create_task(stay(visitor, verdict, over))
        coming = group.create_task(arrivals())
        await asyncio.sleep(before)
        await fault(sale)
        ended = time.monotonic()
        await asyncio.sleep(after)
        closing.set()
        await coming
        over.set()
    return judge(verdict, guests, fleet, ended)


@asynccontextmanager
async def held(
    folder: Path, seconds: float, tick: float = 1.0, *, watched: bool = False
) -> AsyncIterator[tuple[Fleet, Sale]]:
    """Two gateways, their storefront, a store, and a relay between the two; or servers that fail over."""
    async with AsyncExitStack() as stack:
        servers: Watched | None = None
        if watched:
            (folder / "watched").mkdir()
            servers = stack.enter_context(servers_of(Watched, folder / "watched"))
        store = OwnStore(folder)
        store.start()
        stack.callback(store.kill)
        await store.ready()
        between = await stack.enter_async_context(relay(store.url))
        limits = {"total_active_users": SEATS, "new_users_per_minute": RATE}
        fleet = await stack.enter_async_context(
            running(folder, servers.url if servers else between.url, free_port, tick, timeout=0.3, **limits)
        )
        yield fleet, Sale(store, between, servers, seconds)


def free_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def table(names: list[str], seconds: float) -> bool:
    """Hold a sale for each fault, and say how it went; whether every promise was kept."""
    columns = "failed inside | slowest inside | places lost | numbers repeated | inversions | inside / limit"
    sys.stdout.write(f"| fault | {columns} | resumed after |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
    kept = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            async with held(Path(folder), seconds, watched=name == "failing over") as (fleet, sale):
                told = await hold(fleet, sale, FAULTS[name], crowd=1 if seconds > 10 else 2)
        kept &= told.inside <= SEATS and not (told.failed or told.lost or told.repeated or told.inversions)
        sys.stdout.write(
            f"| {name} | {told.failed} | {told.slowest * 1000:.0f} ms | {told.lost} of {told.came} | "
            f"{told.repeated} | {told.inversions} | {told.inside} / {SEATS} | {told.resumed:.1f} s |\n"
        )
        sys.stdout.flush()
    return kept


def main() -> int:
    """Tell how sales go while the store fails."""
    parser = argparse.ArgumentParser(prog="make outages", description=main.__doc__)
    parser.add_argument("fault", nargs="*", choices=[*FAULTS, []], help="of these faults only")
    parser.add_argument("--long", action="store_true", help="let faults that last do so for a minute")
    chosen = parser.parse_args()
    return 0 if uvloop.run(table(chosen.fault or [*FAULTS], 60.0 if chosen.long else 4.0)) else 1


if __name__ == "__main__":
    sys.exit(main())
