"""What the connections of one listening address share: limits, time-outs, and who gives way to whom.

When all connections are taken, a newcomer gets the place of one that nothing is under way on. Which those are
is looked up for many newcomers at a time, so that it costs nothing with each request, and in a flood next to
nothing with each newcomer.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Protocol, cast

from waitingroom.deadlines import Sweep
from waitingroom.exchange import Handler
from waitingroom.forwarded import Client, Network, client_of
from waitingroom.heads import Head, Memory, RequestFields
from waitingroom.outbox import Outbox

_REST: Final = 1e-5
"""Seconds without another look for each connection that one was in vain for: a few percent of a core."""

_ENOUGH: Final = 20
"""One in so many connections found makes a look worth its cost."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them together, may take. Sizes in bytes, times in seconds."""

    head_bytes: int = 32 * 1024
    head_fields: int = 100
    head_timeout: float = 10.0
    keepalive_timeout: float = 75.0
    body_idle_timeout: float = 60.0
    body_rate: int = 500
    """Bytes a second that a body must come or go at, on average; 0 is any."""
    connections: int = 10_000
    high_water: int = 256 * 1024
    low_water: int = 64 * 1024
    drain_bytes: int = 64 * 1024
    """Rest of an unread request body that is read past to keep the connection."""
    first_word: float = 1.0
    """Time in which somebody who has just connected says something, if they mean to."""
    rest: float = 0.25
    """Time after an answer in which the next request may well be on its way."""

    @property
    def look_every(self) -> float:
        """Seconds between two looks at all deadlines."""
        return min(1.0, min(self.head_timeout, self.keepalive_timeout, self.body_idle_timeout) / 4)


LIMITS: Final = Limits()


class Guest(Protocol):
    """A connection as far as the others are concerned."""

    deadline: float

    def expired(self) -> None:
        """Its deadline has passed."""

    def idles(self) -> bool:
        """Whether nothing is under way: no request has begun, or none that is whole."""

    def give_way(self) -> bool:
        """Close at once, to make room; False if some of an answer would be lost."""

    def retire(self, now: float) -> None:
        """Close if nothing is under way, and nothing is to be expected."""

    def cut(self) -> None:
        """Close at once, whatever is unsent."""


_deadline = attrgetter("deadline")


class Premises:
    """The connections of one listening address, and what they have in common.

    Attributes:
        refusals: how many requests were refused before the handler saw them, by status.
        draining: every answer is the last one of its connection.
        called, made: connections accepted so far, and those of them whose handshake was completed.
        sweep: every connection, and its deadline.
    """

    def __init__(self, handler: Handler, limits: Limits, trusted: tuple[Network, ...]) -> None:
        self.handler = handler
        self.limits = limits
        self.trusted = trusted
        self.refusals: Counter[int] = Counter()
        self.draining = False
        self.outbox = Outbox()
        self.memory: Memory[RequestFields] = Memory()
        self.sweep = Sweep(limits.look_every)
        self.called = 0
        self.made = 0
        self._spare: list[tuple[float, Guest]] = []
        self._next_look = 0.0

    def adapt(self, limits: Limits, trusted: tuple[Network, ...]) -> None:
        """Work with other limits from now on; what was read under the old ones is forgotten."""
        self.limits = limits
        self.trusted = trusted
        self.memory = Memory()
        self.sweep.interval = limits.look_every

    def client(self, head: Head, peer: str, scheme: str) -> Client:
        """Who sent a request that may have come through a trusted proxy; `peer` is the socket's."""
        asked = head.fields.client
        if asked is None or asked[0] != (peer, scheme, head.host):
            client = client_of(head, peer, self.trusted, scheme)
            asked = head.fields.client = (peer, scheme, head.host), client
        return cast("Client", asked[1])

    def admit(self, guest: Guest) -> bool:
        """Take a newcomer in; False if there is no place, and nobody to give one up.

        Whoever is closed for it is the one whose own time is up first: never somebody with a request under
        way, and somebody who has not said anything yet before a shopper between two pages.
        """
        self.made += 1
        full = len(self.sweep.members) >= self.limits.connections
        admitted = not full or self._clear() or (self._look() and self._clear())
        self.sweep.add(guest)
        return admitted

    def _clear(self) -> bool:
        """Close the first of those found who still idle as they did then."""
        while self._spare:
            deadline, guest = self._spare.pop()
            if guest.deadline == deadline and guest.idles() and guest.give_way():
                return True
        return False

    def _look(self) -> bool:
        """Find everybody who idles, unless that was in vain just now."""
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return False
        guests = self._guests()
        idle = sorted((guest for guest in guests if guest.idles()), key=_deadline, reverse=True)
        self._spare = [(guest.deadline, guest) for guest in idle]
        if len(idle) * _ENOUGH < len(guests):
            self._next_look = now + _REST * len(guests)
        return True

    def _guests(self) -> set[Guest]:
        return cast("set[Guest]", self.sweep.members)

    async def drain(self, timeout: float, *, gently: bool = False) -> None:  # noqa: ASYNC109 - the rest is cut then
        """Let requests under way finish for at most `timeout` seconds, then cut what is left.

        Connections at rest close at once, or, `gently`, with the answer to their next request, as the others
        do.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(3):  # what has arrived is read before anybody is taken for idle
            await asyncio.sleep(0)
        while (now := loop.time()) < begun + timeout and (self.sweep.members or self._expects(now - begun)):
            if not gently:
                for guest in list(self._guests()):
                    guest.retire(now)
            await asyncio.sleep(0.02)
        for guest in list(self._guests()):
            guest.cut()

    def _expects(self, waited: float) -> bool:
        """Whether somebody who was accepted may still complete a handshake; who has failed to is not told."""
        return self.made < self.called and waited < self.limits.first_word
