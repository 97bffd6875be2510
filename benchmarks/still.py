"""Ten million people who wait, without sockets, on a clock of its own; `make bench-ten-million`.

    python -m benchmarks.still [--people 10000000] [--json FILE]

One store and eight gateways' worth of ticks. Polls are only handed in, as gateways do, so that two cores can
stand for the many that so many polls would take; the store, the ticks and what a gateway does with a snapshot
are real.
Exit codes: 0 measured, and the right numbers were called; 1 others were.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import redis

from benchmarks.million import is_present, present_below
from benchmarks.rig import Rig, resident
from tests.clockwork import SOURCE, Clock
from waitingroom import embedded
from waitingroom.desk import Desk
from waitingroom.room import Room
from waitingroom.scripts import script_source
from waitingroom.store import Store

GATEWAYS = 8
ROOM = Room("sale", upstream="http://127.0.0.1:1", total_active_users=100_000, new_users_per_minute=60_000)
ADMITTING = 20
"""Seconds of the room's clock in which people are called."""


async def play(url: str, people: int) -> dict[str, Any]:
    """Let everybody be heard of within 75 seconds of the room's clock, then call people for a while."""
    with Clock(url) as clock, redis.Redis.from_url(url) as client:
        base, room_base = int(client.info("memory")["used_memory"]), resident(os.getpid())
        stores = [Store(url, f"g{index}", timeout=10, clock=SOURCE) for index in range(GATEWAYS)]
        desks = [Desk(await store.seed(ROOM)) for store in stores]
        first = int(client.hget("wr:{sale}:state", "issued") or 0) // 10 * 10 + 10
        client.hset("wr:{sale}:state", "issued", first + people - 1)
        blocks: list[float] = []
        for second in range(-74, ADMITTING):
            clock.advance(1000)
            if second == 0:
                client.slowlog_reset()
            # Until everybody was heard of, nobody is called: who is first could not be known.
            client.hset("wr:{sale}:state", "calm_until", clock.now + 1000 if second < 0 else 0)
            for index, (store, desk) in enumerate(zip(stores, desks, strict=True)):
                step = 75 * GATEWAYS * 10
                start = first + ((second % 75) * GATEWAYS + index) * 10
                desk.hand_in.seen.update(
                    number for ten in range(start, first + people, step) for number in range(ten, ten + 6)
                )
                blocks.append(await _tick(store, desk))
        desk = desks[-1]
        found = {
            "people": people,
            "store": int(client.info("memory")["used_memory"]) - base,
            "gateway": (resident(os.getpid()) - room_base) / GATEWAYS,
            "blocks": blocks[-GATEWAYS * ADMITTING :],
            "ticks": _ticks(client),
            "waiting": desk.snapshot.waiting,
            "called": desk.snapshot.totals.offered,
            "wrong": _wrong(desk, first, people),
        }
        for store in stores:
            await store.close()
        return found


async def _tick(store: Store, desk: Desk) -> float:
    """One exchange; milliseconds of processor time that it took this process, all of it on the event loop."""
    before = time.thread_time()
    carried = desk.take()
    room, snapshot = await store.tick(desk.room, desk.snapshot, carried)
    desk.absorb(room, snapshot, carried, time.monotonic())
    return 1000 * (time.thread_time() - before)


def _ticks(client: "redis.Redis") -> list[float]:
    sha = client.script_load(script_source("tick", SOURCE))
    return [
        entry["duration"] / 1000 for entry in client.slowlog_get(4000) if sha.encode() in entry["command"]
    ]


def _wrong(desk: Desk, first: int, people: int) -> int:
    """How many of a sample are called out of order, or told a wrong position."""
    called, chance = desk.snapshot.totals.offered, random.Random(5)
    right = [number for number in range(first, first + 2 * called) if is_present(number)][:called]
    wrong = len(desk.snapshot.offers.keys() ^ right)
    for number in filter(is_present, [chance.randrange(first, first + people) for _ in range(2000)]):
        ahead = present_below(number, first) - called
        wrong += ahead >= 0 and desk.snapshot.line.ahead(number) != ahead
    return wrong


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    ticks, blocks = found["ticks"], found["blocks"]
    lines = [
        f"{found['people']:,} numbers issued, {found['waiting']:,} waiting, {found['called']:,} called",
        f"{found['wrong']} called out of order or told a wrong position",
        f"store: {found['store'] / 2**20:.1f} MiB",
        f"tick in the store: p50 {median(ticks):.0f} ms, p99 {quantiles(ticks, n=100)[98]:.0f} ms",
        f"gateway: {found['gateway'] / 2**20:.1f} MiB for the room",
        f"event loop blocked: p50 {median(blocks):.0f} ms, p99 {quantiles(blocks, n=100)[98]:.0f} ms",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=10_000_000, help="numbers issued (default: 10000000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        address = Path(folder) / "store.sock"
        command = [str(embedded.binary()), "--port", "0", "--save", "", "--unixsocket", str(address)]
        command += [
            "--slowlog-log-slower-than",
            "300",
            "--slowlog-max-len",
            "4000",
        ]  # us; what a script calls is less
        stack.enter_context(Rig(Path(folder)).process("store", command, (), core=None))
        while not address.exists():
            time.sleep(0.02)
        found = asyncio.run(play(f"unix://{address}", options.people))
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(found["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
