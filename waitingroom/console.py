"""What an on-call person looks at: a few numbers of every room, their last minutes, and a plain sentence.

The numbers are what the gateway has in memory, so they can be had while the store is away.
"""

import asyncio
import base64
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from typing import Any, Literal, NamedTuple

from waitingroom import __version__
from waitingroom.desk import STALE, Desk
from waitingroom.room import Room, Snapshot
from waitingroom.telemetry import Telemetry

STEP = 2.0
"""Seconds between two samples."""

SAMPLES = 150
"""Samples kept of a room: five minutes."""

Level = Literal["good", "notice", "bad"]


class Condition(NamedTuple):
    """How a room is: a word, what it means for people, and how bad that is."""

    word: str
    sentence: str
    level: Level


class Sample(NamedTuple):
    """One moment of a room; `admitted` counts from the beginning, `at` is monotonic seconds."""

    at: float
    inside: int
    waiting: int
    admitted: int


def condition(room: Room, seen: Snapshot, tick_age: float, *, stalled: bool) -> Condition:
    """The worst that can be said of a room, which is what somebody who was woken wants to know first."""
    return next(how for holds, how in _conditions(room, seen, tick_age, stalled=stalled) if holds)


def _conditions(
    room: Room, seen: Snapshot, tick_age: float, *, stalled: bool
) -> Iterator[tuple[bool, Condition]]:
    """Worst first."""
    cold = "The store has not been reached yet; nobody can enter."
    lost = (
        f"No exchange with the store for {tick_age:.0f} s. Shoppers inside notice nothing; places are kept, "
        "nobody is called."
    )
    yield not seen.clock, Condition("starting", cold, "bad")
    yield tick_age > STALE, Condition("store lost", lost, "bad")
    yield stalled, Condition("stalled", "People wait, seats are free, and nobody is let in.", "bad")
    off = "The room is suspended: everybody enters, nobody is counted."
    yield room.suspended, Condition("off", off, "notice")
    yield (
        room.paused,
        Condition("paused", "Nobody is called; the page says that the queue is paused.", "notice"),
    )
    yield room.queue_all, Condition("draining", "Everybody queues; people inside finish.", "notice")
    yield bool(seen.waiting), Condition("queueing", "People wait and are called in order.", "good")
    yield True, Condition("open", "Nobody waits; shoppers pass straight through.", "good")


def per_minute(samples: "deque[Sample]", span: float = 60.0) -> float | None:
    """People admitted a minute over the last `span` seconds; None until there is enough to tell."""
    if len(samples) <= 1:
        return None
    last = samples[-1]
    first = next(sample for sample in samples if sample.at >= last.at - span)
    if last.at <= first.at:
        return None
    # A store that came back empty counts from zero again.
    return max(0, last.admitted - first.admitted) * 60 / (last.at - first.at)


@dataclass(slots=True)
class Watch:
    """Samples every room of a gateway, and tells how things are.

    Args:
        desks: the rooms.
        telemetry: knows how old the last exchange is, and who is stalled.
    """

    desks: Mapping[str, Desk]
    telemetry: Telemetry
    _samples: dict[str, deque[Sample]] = field(default_factory=dict)

    async def run(self, _app: object) -> AsyncIterator[None]:
        """Sample for as long as the application runs."""
        task = asyncio.create_task(self._run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _run(self) -> None:
        while True:
            self.sample(time.monotonic())
            await asyncio.sleep(STEP)

    def sample(self, now: float) -> None:
        """Take one sample of every room that the store has been heard of."""
        for name, desk in self.desks.items():
            if desk.warm:
                seen = desk.snapshot
                kept = self._samples.setdefault(name, deque(maxlen=SAMPLES))
                kept.append(Sample(now, seen.inside, seen.waiting, seen.totals.admitted))

    def tell(self) -> dict[str, Any]:
        """All of it as plain values; no secret, and nothing of any one visitor."""
        return {
            "version": __version__,
            "at": time.time(),
            "rooms": [self._tell(name, desk) for name, desk in self.desks.items()],
        }

    def _tell(self, name: str, desk: Desk) -> dict[str, Any]:
        room, seen, samples = desk.room, desk.snapshot, self._samples.get(name, deque())
        age = self.telemetry.tick_age(name)
        stalled = self.telemetry.stalled(name)
        how = condition(room, seen, age, stalled=stalled)
        return {
            "name": name,
            "state": how.word,
            "level": how.level,
            "sentence": how.sentence,
            "inside": seen.inside,
            "limit": room.total_active_users,
            "offered": seen.offered,
            "waiting": seen.waiting,
            "present": seen.present,
            "admitted_per_minute": per_minute(samples),
            "rate_limit": room.new_users_per_minute,
            "lapsed": seen.totals.lapsed,
            "paused": room.paused,
            "queue_all": room.queue_all,
            "suspended": room.suspended,
            "stalled": stalled,
            "tick_age": round(age, 3),
            "epoch": room.epoch,
            "version": room.version,
            "history": {
                "step": STEP,
                "inside": [sample.inside for sample in samples],
                "waiting": [sample.waiting for sample in samples],
            },
        }


def page() -> tuple[str, str]:
    """The console's page, and the `Content-Security-Policy` under which only its own script runs."""
    text = (resources.files("waitingroom") / "templates" / "console.html").read_text()
    hashes = {kind: _hash(text, kind) for kind in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src "
        "'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str, element: str) -> str:
    found = re.search(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(sha256(found[1].encode()).digest()).decode()}'"
