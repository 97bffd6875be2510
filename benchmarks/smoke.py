"""What a request costs on the gateway's three paths, beside nginx on the same machine in the same minute.

    python -m benchmarks.smoke [--json FILE] [--seconds 2] [--rounds 3]

Runs of the gateway and of nginx take turns; ratios are medians over neighbouring runs.
Exit codes: 0 measured; 1 some requests were not answered as they should; 2 a program is missing.
"""

import argparse
import asyncio
import json
import platform
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import redis

from benchmarks.rig import (
    OTHER_CORE,
    ROOM_FULL,
    ROOM_OPEN,
    SERVER_CORE,
    MissingToolError,
    Rig,
    Run,
    Target,
    ratio,
    require_tools,
)
from tests.test_simulation import store_bytes
from waitingroom.embedded import EmbeddedValkey

VISITORS = 200

FILES = {
    "item": b"x" * 1024,
    "page": b"x" * 2048,
    "status": b'{"room":"full","state":"waiting","position":214,"ahead":213}'.ljust(120),
}
"""What the origin sells, and what nginx serves where the gateway answers by itself."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A path through the gateway, and what nginx does beside it."""

    name: str
    ours: Target
    theirs: Target
    beside: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one path has cost.

    Attributes:
        calls: store calls a thousand requests, those of the ticks taken off.
    """

    lane: Lane
    ours: list[Run]
    theirs: list[Run]
    calls: float

    def figures(self) -> dict[str, Any]:
        """The figures of the table."""
        ours, theirs = self.ours, self.theirs
        return {
            "path": self.lane.name,
            "beside": self.lane.beside,
            "rate": median(run.rate for run in ours),
            "nginx_rate": median(run.rate for run in theirs),
            "rate_ratio": ratio([run.rate for run in ours], [run.rate for run in theirs]),
            "cpu_us": median(run.cost for run in ours),
            "nginx_cpu_us": median(run.cost for run in theirs),
            "cpu_ratio": ratio([run.cost for run in theirs], [run.cost for run in ours]),
            "spread": max(run.cost for run in ours) / min(run.cost for run in ours) - 1,
            "others": max(run.others for run in (*ours, *theirs)),
            "errors": sum(run.errors for run in (*ours, *theirs)),
            "store_calls_per_1000": self.calls,
            "runs": [asdict(run) for run in (*ours, *theirs)],
        }


def lanes(rig: Rig, passes: tuple[str, ...], tickets: tuple[str, ...]) -> list[Lane]:
    """The three paths, each beside the least that nginx can do for the same request."""
    status = "/.waitingroom/status?room=full"
    return [
        Lane(
            "proxied",
            Target(rig.gateway, "/item", ROOM_OPEN, passes),
            Target(rig.proxy, "/item", ROOM_OPEN, passes),
            "nginx as a proxy to the same origin, 1 KiB",
        ),
        Lane(
            "poll",
            Target(rig.gateway, status, ROOM_FULL, tickets),
            Target(rig.files, "/status", ROOM_FULL, tickets),
            "nginx with a file of 120 bytes",
        ),
        Lane(
            "join",
            Target(rig.gateway, "/item", ROOM_FULL),
            Target(rig.files, "/page", ROOM_FULL),
            "nginx with a file of 2 KiB",
        ),
    ]


def visitors(rig: Rig, host: str) -> tuple[str, ...]:
    """Cookies of so many visitors to a room, who have been there for a few ticks."""
    held = [rig.ask("/item", host)[0] for _ in range(VISITORS)]
    for _ in range(2):
        time.sleep(1.2)  # a pass of the first moments is renewed once a tick has made the seat a full one
        held = [rig.ask("/item", host, cookie)[0] or cookie for cookie in held]
    return tuple(held)


def script_calls(client: "redis.Redis") -> int:
    """Scripts that the store has run so far; every call of a gateway is one."""
    stats: dict[str, Any] = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


def measure(rig: Rig, lane: Lane, seconds: int, rounds: int, tick_rate: float) -> Result:
    """Let both take turns on one path."""
    ours: list[Run] = []
    theirs: list[Run] = []
    calls = 0.0
    with redis.Redis.from_url(rig.store_url) as client:
        for _ in range(rounds):
            before, began = script_calls(client), time.monotonic()
            ours.append(rig.run(lane.ours, seconds))
            calls += script_calls(client) - before - tick_rate * (time.monotonic() - began)
            theirs.append(rig.run(lane.theirs, seconds))
    return Result(lane, ours, theirs, 1000 * max(0.0, calls) / sum(run.requests for run in ours))


def idle_calls(rig: Rig, seconds: float) -> float:
    """Store calls a second while nobody asks for anything: the ticks."""
    with redis.Redis.from_url(rig.store_url) as client:
        before = script_calls(client)
        time.sleep(seconds)
        return (script_calls(client) - before) / seconds


async def waiting_bytes(folder: Path) -> dict[int, int]:
    """Bytes that the store takes for so many people who wait and poll."""
    found = {}
    for people in (100_000, 1_000_000):
        store = EmbeddedValkey(folder / f"waiting-{people}")
        try:
            found[people] = await store_bytes(await store.start(), people)
        finally:
            await store.stop()
    return found


def table(results: list[dict[str, Any]]) -> str:
    """The figures as text."""
    head = (
        f"{'path':8} {'req/s':>8} {'nginx':>8} {'ratio':>6}   {'CPU us':>7} {'nginx':>7} {'ratio':>6}   "
        f"{'spread':>6} {'others':>6} {'errors':>6} {'store calls/1000':>17}"
    )
    lines = [
        f"{row['path']:8} {row['rate']:8,.0f} {row['nginx_rate']:8,.0f} {row['rate_ratio']:6.2f}   "
        f"{row['cpu_us']:7.1f} {row['nginx_cpu_us']:7.1f} {row['cpu_ratio']:6.2f}   {row['spread']:6.0%} "
        f"{row['others']:6.0%} {row['errors']:6} {row['store_calls_per_1000']:17.2f}"
        for row in results
    ]
    notes = [f"{row['path']:8} beside {row['beside']}" for row in results]
    return "\n".join([head, *lines, "", *notes])


def run(folder: Path, seconds: int, rounds: int) -> dict[str, Any]:
    """Measure everything."""
    rig = Rig(folder)
    with rig.running(FILES):
        tick_rate = idle_calls(rig, 2.0)
        _, page = rig.ask("/item", ROOM_FULL)
        passes, tickets = visitors(rig, ROOM_OPEN), visitors(rig, ROOM_FULL)
        results = [
            measure(rig, lane, seconds, rounds, tick_rate).figures() for lane in lanes(rig, passes, tickets)
        ]
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, built {_build()}",
        "cores": [SERVER_CORE, OTHER_CORE],
        "paths": results,
        "page_bytes": len(page),
        "store_bytes": asyncio.run(waiting_bytes(folder)),
    }


def _build() -> str:
    """Whether the interpreter was built for speed: without, everything takes markedly longer."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return "with profile-guided optimisation" if "enable-optimizations" in options else "without optimisation"


def main() -> int:
    """Measure, print, and say by the exit code whether it can be relied on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taking turns (default: 3)")
    options = parser.parse_args()
    try:
        require_tools()
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = run(Path(folder), options.seconds, options.rounds)
    print(f"{found['machine']}; servers on core {SERVER_CORE}, the rest on core {OTHER_CORE}\n")
    print(table(found["paths"]))
    print(f"\nwaiting page, compressed: {found['page_bytes']:,} bytes")
    for people, size in found["store_bytes"].items():
        print(f"store with {people:,} waiting: {size:,} bytes")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if any(row["errors"] for row in found["paths"]) else 0


if __name__ == "__main__":
    sys.exit(main())
