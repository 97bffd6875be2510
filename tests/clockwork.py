"""A clock in the hands of the test, put in the place of the store's own, and a gateway that a test plays."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import redis

from waitingroom.desk import Desk
from waitingroom.handin import HandIn
from waitingroom.room import Answer, Entry, Knock, Room, Snapshot
from waitingroom.store import Store, StoreUnavailableError
from waitingroom.tickets import Token, Use, seat_of

SOURCE = "local function store_time() return tonumber(redis.call('GET', 'test:clock')) end"

EDGE = 1_800_046_379_000
"""Milliseconds; a room opened now numbers from here, and the seventh number is the last of its segment."""

OPENING = EDGE + 1000
"""A second later numbers begin early in a segment, where bitmaps are short."""


class Clock:
    """The store's time in milliseconds, which moves when told to."""

    def __init__(self, url: str, now: int = OPENING) -> None:
        self._client = redis.Redis.from_url(url)
        self._url = url
        self.now = now
        self.set(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def set(self, now: int) -> None:
        """Set the time; it may go back."""
        self.now = now
        self._client.set("test:clock", now, px=600_000)

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self.set(self.now + milliseconds)

    def store(self, gateway: str = "a", *, tick: float = 1.0) -> Store:
        """A gateway's store that runs on this clock; with time to spare on a busy machine."""
        return Store(self._url, gateway, tick=tick, timeout=5, clock=SOURCE)


@dataclass
class Gateway:
    """One gateway in the hands of a test: what it last took home, and the store that it talks to."""

    clock: Clock
    store: Store
    room: Room
    snapshot: Snapshot = field(default_factory=Snapshot)

    async def join(self, *visitors: str) -> list[Knock]:
        """Newcomers, all in one call; each comes back with their number."""
        knocks = [Knock(visitor) for visitor in visitors]
        answers = await self.store.enter(self.room.name, knocks)
        return [
            replace(knock, number=answer.number, epoch=answer.epoch)
            for knock, answer in zip(knocks, answers, strict=True)
        ]

    async def knock(self, *tickets: Knock) -> list[Answer]:
        """Holders of numbers at the door, all in one call."""
        return await self.store.enter(self.room.name, tickets)

    async def tick(
        self,
        seen: Iterable[Knock] = (),
        *,
        here: Iterable[Knock] = (),
        touched: Iterable[Knock] = (),
        left: Iterable[Knock] = (),
    ) -> Snapshot:
        """One exchange: who polled, who said so themselves, who made requests, who left."""
        present = {ticket.number for ticket in here}
        handed = HandIn(
            seen={ticket.number for ticket in seen} | present,
            here=present,
            touched=dict.fromkeys(seat(ticket) for ticket in touched),
            left={seat(ticket) for ticket in left},
            vouched=self.snapshot.fence,
        )
        self.room, self.snapshot = await self.store.tick(self.room, self.snapshot, handed)
        return self.snapshot

    async def pass_time(
        self, seconds: float, seen: Iterable[Knock] = (), *, touched: Iterable[Knock] = (), step: int = 3000
    ) -> Snapshot:
        """Tick every `step` milliseconds, as `seen` poll and `touched` make requests."""
        seen, touched, end = list(seen), list(touched), self.clock.now + round(seconds * 1000)
        while self.clock.now < end:
            self.clock.advance(min(step, end - self.clock.now))
            await self.tick(seen, touched=touched)
        return self.snapshot

    async def change(self, **settings: Any) -> None:
        """Change the room, as an operator does."""
        new = replace(self.room, **settings)
        self.room = await self.store.change(new, self.room, "anna", "the sale is on")


@dataclass
class Teller:
    """A gateway's store and the desk that it keeps, in the hands of a test."""

    store: Store
    desk: Desk

    async def tick(self) -> bool:
        """Exchange; whether the store was there."""
        carried = self.desk.take()
        sent = asyncio.get_running_loop().time()
        try:
            room, snapshot = await self.store.tick(self.desk.room, self.desk.snapshot, carried)
        except StoreUnavailableError:
            self.desk.take_back(carried)
            return False
        self.desk.absorb(room, snapshot, carried, sent)
        return True

    async def join(self, *visitors: str) -> list[Answer]:
        """Newcomers; those who enter are noted as the gateway notes them."""
        answers = await self.store.enter("sale", [Knock(visitor) for visitor in visitors])
        for visitor, answer in zip(visitors, answers, strict=True):
            if answer.entry is Entry.TRIAL:
                seat = Token(Use.PASS, "sale", visitor, answer.number, 1, answer.until, 0, 0)
                self.desk.enter(seat, trial=True)
        return answers


def seat(ticket: Knock) -> str:
    """The key of the seat that a ticket may become."""
    return seat_of(ticket.lane, ticket.number, ticket.visitor)


def over_the_rate(moments: Sequence[float], per_minute: int, tick: float = 1.0) -> float:
    """By how many people the worst window among `moments` (ms, ascending) exceeds what it may hold.

    A window from entry i to entry j holds j - i + 1 people and may hold its share, (t_j - t_i) / interval,
    and one tick's worth; going over j once, only the smallest (i - t_i / interval) so far matters.
    """
    interval = 60_000 / per_minute
    burst = max(1.0, tick * 1000 / interval)
    lowest, worst = math.inf, -math.inf
    for index, moment in enumerate(moments):
        level = index - moment / interval
        lowest = min(lowest, level)
        worst = max(worst, level - lowest + 1 - burst)
    return worst
