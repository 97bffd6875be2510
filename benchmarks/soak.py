"""Whether it stays as it is: a steady surge for a long time, with churn and faults; `make soak`.

    python -m benchmarks.soak [--minutes 20] [--arrivals 25] [--compiled FOLDER] [--json FILE]

Exit codes: 0 everything held; 1 something did not; 2 it was ended before its time.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from benchmarks.judges import (
    MEBIBYTE,
    REMEMBERED,
    Finding,
    Place,
    Point,
    allowed_growth,
    entries,
    growth,
    longest_pause,
    most_at_once,
    most_over,
    overtaken,
    quantile,
    read_log,
    repeated,
    since,
    stays,
    thinned,
    within,
)
from benchmarks.paths import machine
from benchmarks.rig import cpu_seconds
from benchmarks.scene import DURATIONS, KILLED, SESSION, Fault, Life, Part, Scene, lag, running, schedule
from benchmarks.shoppers import ROOM, Crowd, Notes, Trouble, request_of
from benchmarks.stands import KEY
from waitingroom.signals import allow_files
from waitingroom.tickets import Keyring, Token, Use

LONG = 600.0
"""Seconds from which on a run fills beforehand what the gateways remember of visitors."""

STRANGERS = 66_000
"""Visitors of whom a gateway keeps something: the length of the longest of the lists that it keeps."""

BROWSERS = 24_000
"""As many as whose header lines it keeps; it does once they have come three times."""

TRAVEL = 1.0
"""Seconds that a request may be under way between the store's answer and the storefront's log."""

HELD_UP = 12.0
"""Seconds by which a fault may hold up somebody who was let in."""

SETTLED = 240.0
"""Seconds after which the store keeps as many periods in which people were seen as it ever will."""

KEPT = 4.0 * MEBIBYTE
"""Bytes: who was seen in the last minutes, a bitmap each 15 seconds, and a thousand answers a gateway."""

LATE = 250.0
"""Milliseconds; the machine need not be the soak's alone."""

STILL = 30.0
"""Seconds: the longest fault, the ten of calm after it, and a second one on its heels."""

TICK = 1.0
"""Seconds between two ticks of a gateway, as it is by default."""

TROUBLES = {
    "failed": "requests of shoppers that failed",
    "put out": "shoppers put out of the shop",
    "lost": "places lost",
    "broken": "connections broken",
    "unanswered": "requests without an answer in time",
    "malformed": "malformed requests not refused",
}
"""Kinds of trouble and what they mean, in the verdict."""

DESCRIPTORS = 3
"""Descriptors that a process may have open more than before: those of connections to the store that are made
anew, or whose other end is gone, and which its client keeps until it needs them again."""


@dataclass
class Seen:
    """Everything that was seen of a run; moments are monotonic seconds.

    Attributes:
        began, ended: of the crowd's coming.
        before, after: descriptors of each process when nobody was connected to it.
        exits: how the gateways say that they ended.
        cores: of the machine that each process kept busy, and this one.
    """

    scene: Scene
    notes: Notes
    began: float = 0.0
    ended: float = 0.0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long people came."""
        return self.ended - self.began

    def judged(self, life: Life) -> list[Point]:
        """The memory of a process in the second half, and once it has been alive for a while."""
        settled = life.began + min(SETTLED, self.seconds / 5)
        return since(life.memory, max(self.began + self.seconds / 2, settled))

    def filling(self, part: Part, points: list[Point]) -> float:
        """Bytes by which a process may grow in a short run, in which what it keeps is not yet all there."""
        if self.seconds >= LONG:
            return 0.0
        if part is self.scene.store:
            return KEPT
        return self.notes.counts["arrived"] * REMEMBERED * (points[-1][0] - points[0][0]) / self.seconds

    def excused(self, trouble: Trouble) -> bool:
        """Whether the storefront itself failed, or the gateway had just been killed."""
        refusing = self.scene.periods("origin refusing", after=3.0)
        killed = self.scene.periods("gateway killed", after=1.0) if trouble.gateway == KILLED else []
        periods = {"failed": refusing, "broken": refusing + killed}.get(trouble.kind, [])
        return within(trouble.at, periods)


def stranger(number: int) -> Token:
    """A ticket as long as a real one, for a day."""
    now = round(time.time())
    end = (now + 86_400) * 1000
    return Token(Use.TICKET, ROOM, f"{number:022}", 1000 * now + number, 1, end, now, now + 86_400)


async def fill(port: int) -> None:
    """Let as many strangers come by as a gateway remembers; they hold tickets, and are only looked at."""
    ring, target = Keyring([KEY.encode()]), f"/.waitingroom/decision?room={ROOM}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for first in range(0, STRANGERS, 50):
            requests = b"".join(
                request_of("GET", target, "application/json", f"v{number}.0", ring.sign(stranger(number)))
                for number in range(first, first + 50)
            )
            for _ in range(3 if first < BROWSERS else 1):
                writer.write(requests)
                answered = 0
                while answered < 50:
                    answered += (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).count(b" 401 ")
            await asyncio.sleep(0.005)
    finally:
        writer.transport.abort()


async def plague(scene: Scene, faults: list[Fault], began: float, *, full: bool) -> None:
    """Let one fault after the other happen when it is due."""
    last = max((fault.at for fault in faults if fault.name == "gateway killed"), default=0.0)
    for fault in faults:
        await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
        await scene.befall(fault)
        if full and fault.at == last:
            await fill(scene.public[KILLED])


async def surge(scene: Scene, seconds: float, arrivals: float) -> Seen:
    """Let people come for so long, with everything that befalls a shop meanwhile."""
    crowd, full = Crowd(scene.public, SESSION, Random(7)), seconds >= LONG
    seen = Seen(scene, crowd.notes, before=await at_rest(scene))
    works = [asyncio.create_task(scene.sample())]
    try:
        if full:
            await fill(scene.public[0])
        busy, seen.began = cpu_seconds(os.getpid()), time.monotonic()
        works.append(asyncio.create_task(crowd.arrive(arrivals)))
        works.append(asyncio.create_task(plague(scene, schedule(seconds), seen.began, full=full)))
        await watch(scene, crowd, works, seen.began + seconds)
        seen.ended = time.monotonic()
    finally:
        for work in works:
            work.cancel()
        await asyncio.wait(works)
    seen.cores = {part.name: sum(life.cpu for life in part.lives) / seen.seconds for part in scene.parts}
    seen.cores["crowd and relays"] = (cpu_seconds(os.getpid()) - busy) / seen.seconds
    seen.after = await at_rest(scene)
    for gateway in scene.gateways:
        seen.exits[gateway.name] = await gateway.end(lambda pid: os.kill(pid, signal.SIGTERM))
    return seen


async def watch(scene: Scene, crowd: Crowd, works: list[asyncio.Task[None]], until: float) -> None:
    """Say how it goes until it is over; whatever fails in the crowd or the scene ends it."""
    terminal = sys.stdout.isatty()
    said = 0.0
    while (left := until - time.monotonic()) > 0:
        for work in works:
            if work.done() and (error := work.exception()) is not None:
                raise error
        if terminal or time.monotonic() - said > 30:
            said = time.monotonic()
            print(progress(scene, crowd, left), end="\r" if terminal else "\n", flush=True)
        await asyncio.sleep(1)


def progress(scene: Scene, crowd: Crowd, left: float) -> str:
    """One line that says how it goes."""
    told, counts = scene.gateways[0].life.metrics, crowd.notes.counts
    inside = told.get('waitingroom_shoppers_inside{room="sale"}', 0)
    waiting = told.get('waitingroom_visitors_waiting{room="sale"}', 0)
    minutes, seconds = divmod(round(left), 60)
    memory = [part.life.memory[-1][1] / MEBIBYTE for part in scene.gateways if part.life.memory]
    return (
        f"{minutes:3}:{seconds:02} left  {inside:4.0f} of {scene.seats} inside  "
        f"{waiting:5.0f} waiting  {counts['entered']:7,} entered  {len(crowd.notes.troubles):4} troubles  "
        f"gateways {' and '.join(f'{size:.1f}' for size in memory)} MiB  {scene.now:15}"
    )


async def at_rest(scene: Scene) -> dict[str, int]:
    """The descriptors of each process once every connection was cut: the fewest within four seconds."""
    for way in (scene.shop_way, scene.store_way):
        await way.down()
        await way.up()
    counts: dict[str, int] = {}
    for _ in range(40):
        for part in scene.parts:
            part.life.sample()
            now = part.life.descriptors[-1]
            counts[part.name] = min(counts.get(part.name, now), now)
        await asyncio.sleep(0.1)
    return counts


def of_processes(seen: Seen) -> list[Finding]:
    """Memory, descriptors, event loops, and how processes ended."""
    found = []
    for part in (*seen.scene.gateways, seen.scene.store):
        points = seen.judged(part.life)
        if not points:
            found.append(Finding(f"{part.name}: memory grew", math.nan, 0, "MiB"))
            continue
        most = allowed_growth(points, seen.filling(part, points)) / MEBIBYTE
        found.append(Finding(f"{part.name}: memory grew", growth(points) / MEBIBYTE, most, "MiB"))
    for name, before in seen.before.items():
        found.append(Finding(f"{name}: descriptors left open", seen.after[name] - before, DESCRIPTORS))
    for gateway in seen.scene.gateways:
        buckets: Counter[float] = Counter()
        for life in gateway.lives:
            buckets.update(lag(life.metrics))
        late = 1000 * quantile(buckets, 0.99)
        found.append(Finding(f"{gateway.name}: event loop late, p99", late, LATE, "ms"))
    said = sum(len(part.said.read_text().splitlines()) for part in seen.scene.parts)
    complaints = said + sum(len(part.complaints) for part in seen.scene.parts)
    alone = sum(part.ended_alone for part in seen.scene.parts) + sum(map(bool, seen.exits.values()))
    return [
        *found,
        Finding("errors in the logs", complaints, 0),
        Finding("processes that ended by themselves, or badly", alone, 0),
    ]


def of_promises(seen: Seen) -> list[Finding]:
    """Limits, order and places, by the storefront's log and by what people were told."""
    scene, rate = seen.scene, seen.scene.rate / 60
    with scene.log.open() as lines:
        log = read_log(lines)
    faults = [name for name in DURATIONS if name.startswith(("store", "origin"))]
    quiet = entries(log, scene.periods(*faults, after=HELD_UP))
    burst = max(1.0, rate * TICK)
    pause = longest_pause(entries(log))
    return [
        Finding(
            "shoppers inside at one time", most_at_once(stays(log, SESSION, seen.notes.left)), scene.seats
        ),
        Finding("entered over the rate, undisturbed", most_over(quiet, rate), burst + rate * TRAVEL),
        Finding("entered over the rate, at any time", most_over(entries(log), rate), burst + rate * HELD_UP),
        Finding("overtaken while present", len(overtaken(seen.notes.places)), 0),
        Finding("numbers held by two", len(repeated(seen.notes.holders)), 0),
        Finding("longest time in which nobody entered", pause, STILL, "s"),
        Finding("entered", seen.notes.counts["entered"], rate * seen.seconds / 4, least=True),
        Finding("kinds of faults", len({one.name for one in scene.happened}), len(DURATIONS), least=True),
    ]


def of_troubles(seen: Seen) -> list[Finding]:
    """What people lived through that they should not have."""
    kinds = Counter(trouble.kind for trouble in seen.notes.troubles if not seen.excused(trouble))
    return [Finding(meaning, kinds[kind], 0) for kind, meaning in TROUBLES.items()]


def overtaking(place: Place) -> Trouble:
    """Somebody who was overtaken, for the list of troubles."""
    heard, called = place.heard - place.waited, place.called - place.waited
    said = f"heard of {heard:.1f} s, called {called:+.1f} s from when they were last told to wait"
    return Trouble(place.waited, "overtaken", f"number {place.number}", place.gateway, said)


def report(seen: Seen) -> dict[str, Any]:
    """The run as it is written to a file."""
    found = [*of_processes(seen), *of_promises(seen), *of_troubles(seen)]
    unexcused = [trouble for trouble in seen.notes.troubles if not seen.excused(trouble)]
    excused = len(seen.notes.troubles) - len(unexcused)
    behind = set(overtaken(seen.notes.places))
    unexcused += [overtaking(place) for place in seen.notes.places if place.number in behind]
    return {
        "machine": machine(),
        "seconds": seen.seconds,
        "findings": [asdict(finding) | {"held": finding.held} for finding in found],
        "counts": dict(seen.notes.counts) | {"troubles excused": excused},
        "faults": Counter(one.name for one in seen.scene.happened),
        "cores": seen.cores,
        "memory": {
            part.name: [
                [[round(at - seen.began), size] for at, size in thinned(life.memory, 60)]
                for life in part.lives
            ]
            for part in seen.scene.parts
        },
        "troubles": [asdict(trouble) | {"at": trouble.at - seen.began} for trouble in unexcused[:50]],
        "complaints": [line for part in seen.scene.parts for line in part.complaints[:20]],
    }


def table(told: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{told['machine']}; {told['seconds'] / 60:.1f} minutes", ""]
    for row in told["findings"]:
        unit = f" {row['unit']}" if row["unit"] else ""
        bound = f"at {'least' if row['least'] else 'most '} {row['bound']:10,.1f}"
        verdict = "held" if row["held"] else "NOT HELD"
        lines.append(f"{row['name']:46} {row['value']:10,.1f}{unit:4} {bound}{unit:4}  {verdict}")
    for heading in ("counts", "faults"):
        lines += ["", ", ".join(f"{count:,} {name}" for name, count in told[heading].items())]
    cores = [f"{name} {share:.2f}" for name, share in told["cores"].items()]
    lines += ["", f"cores kept busy: {', '.join(cores)}"]
    for trouble in told["troubles"]:
        lines.append("{at:8.1f} s  {kind}: {who} at gateway {gateway}: {said}".format(**trouble))
    return "\n".join([*lines, *told["complaints"]])


async def soak(folder: Path, seconds: float, arrivals: float, compiled: Path | None) -> dict[str, Any]:
    """Run, and tell what was found; SIGTERM ends it with everything that it has started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # Six in ten who come may enter, and a seat is taken for some eight seconds: both limits bind at times.
    rate = 0.6 * arrivals
    async with running(folder, max(10, round(8 * rate)), max(1, round(60 * rate)), compiled) as scene:
        return report(await surge(scene, seconds, arrivals))


def main() -> int:
    """Run, print and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for which people come (default: 20)")
    parser.add_argument("--arrivals", type=float, default=25.0, help="people a second (default: 25)")
    parser.add_argument(
        "--compiled", type=Path, metavar="FOLDER", help="an installed wheel, data path compiled"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    options = parser.parse_args()
    allow_files()
    compiled = options.compiled and options.compiled.resolve()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            told = uvloop.run(soak(Path(folder), 60 * options.minutes, options.arrivals, compiled))
        except (asyncio.CancelledError, KeyboardInterrupt):
            print("Ended before its time; nothing was judged.", file=sys.stderr)
            return 2
    print(table(told))
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(not all(row["held"] for row in told["findings"]))


if __name__ == "__main__":
    sys.exit(main())
