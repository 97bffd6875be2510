"""People who wait by the hundred thousand, inside a gateway's process or at its sockets; for `million`.

Inside, a poll goes through everything but the socket: the connection's parser, the cookie's signature, the
desk, the document, the line of log.
"""

import asyncio
import json
import random
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from waitingroom.desk import Desk
from waitingroom.http1 import Listener
from waitingroom.room import Entry, Knock
from waitingroom.server import Server
from waitingroom.tickets import Keyring, Token, Use

STAY = 20.0
"""Seconds that somebody who was let in stays inside."""

_BUCKETS = 128
_AT_A_TIME = 50


def number_token(number: int, end: int, use: Use = Use.TICKET) -> Token:
    """The token of the visitor with this number."""
    return Token(use, "sale", f"v{number}", number, 1, end, 1, 2)


def request_of(cookie: str) -> bytes:
    """A poll as a browser sends it."""
    return (
        "GET /.waitingroom/status?room=sale HTTP/1.1\r\nHost: shop.test\r\nAccept: application/json\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
        f"Accept-Encoding: gzip, deflate, br\r\nCookie: wr-sale={cookie}\r\n\r\n"
    ).encode()


class _Nowhere(asyncio.Transport):
    """The socket of a visitor who is inside this process."""

    said = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.said = bytes(data)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


@dataclass
class Crowd:
    """The waiting people of one gateway: who polls when, and what they are told.

    Attributes:
        offered: numbers that were offered a seat, as the snapshots say.
        called: how many were told that it is their turn; `inside` how many took their seat, `left` it again.
        polls, seconds: answered, and the processor time that this took.
    """

    server: Server
    listener: Listener
    desk: Desk
    ring: Keyring
    offered: set[int] = field(default_factory=set)
    called: int = 0
    inside: int = 0
    left: int = 0
    polls: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._transport = _Nowhere()
        self._connection: Any = self.listener()
        self._connection.connection_made(self._transport)
        self._agenda = [array("Q") for _ in range(_BUCKETS)]
        self._end = self.desk.snapshot.clock + 86_400_000
        self._chance = random.Random(7)
        self._tasks: set[asyncio.Task[None]] = set()

    def expect(self, numbers: Iterable[int], over: int) -> None:
        """Let these people poll for the first time within so many seconds."""
        for number in numbers:
            self._agenda[int(self._chance.random() * over)].append(number)

    async def poll(self, seconds: int) -> None:
        """Let everybody poll when they were told to."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for second in range(seconds):
            self.offered.update(self.desk.snapshot.offers)
            due, self._agenda[second % _BUCKETS] = self._agenda[second % _BUCKETS], array("Q")
            for at in range(0, len(due), _AT_A_TIME):
                self._ask(due[at : at + _AT_A_TIME], second)
                share = (at + _AT_A_TIME) / max(1, len(due))
                await asyncio.sleep(max(0.0, begun + second + share - loop.time()))
            await asyncio.sleep(max(0.0, begun + second + 1 - loop.time()))

    def ask(self, number: int) -> dict[str, Any]:
        """What one of them is told."""
        self._connection.data_received(request_of(self.ring.sign(number_token(number, self._end))))
        self.listener.outbox.flush()
        told: dict[str, Any] = json.loads(self._transport.said.partition(b"\r\n\r\n")[2])
        return told

    def _ask(self, numbers: "array[int]", second: int) -> None:
        requests = [request_of(self.ring.sign(number_token(number, self._end))) for number in numbers]
        connection, transport, flush = self._connection, self._transport, self.listener.outbox.flush
        said = []
        before = time.thread_time()
        for request in requests:
            connection.data_received(request)
            flush()
            said.append(transport.said)
        self.seconds += time.thread_time() - before
        self.polls += len(said)
        for number, answer in zip(numbers, said, strict=True):
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            if told["state"] == "your_turn":
                self.called += 1
                task = asyncio.create_task(self._enter(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif told["state"] in ("waiting", "paused", "unavailable"):
                later = second + max(1, round(told["poll_after"]))
                self._agenda[later % _BUCKETS].append(number)
            else:
                raise AssertionError(f"number {number} is told {told}")

    async def _enter(self, number: int) -> None:
        answer = await self.server._store.knock("sale", Knock(f"v{number}", number, 1, join=False))  # noqa: SLF001 - a claim without a shop behind it
        if answer.entry is Entry.MOMENT:
            await asyncio.sleep(answer.until / 1000)
            await self._enter(number)
            return
        self.inside += answer.entry is Entry.INSIDE
        await asyncio.sleep(STAY)
        self.desk.leave(number_token(number, answer.until, Use.PASS), asyncio.get_running_loop().time())
        self.left += 1


class Browser(asyncio.Protocol):
    """One real connection that polls when it is told to.

    Attributes:
        polls: answered; `lost` whether the connection broke.
        waits: milliseconds from each question to its answer.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport
        self._asked = 0.0
        self.polls = 0
        self.lost = False
        self.waits: list[float] = []

    def connection_made(self, transport: Any) -> None:
        """Ask at once."""
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if not self._transport.is_closing():
            self._asked = time.perf_counter()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """An answer: small enough to come in one piece."""
        self.waits.append(1000 * (time.perf_counter() - self._asked))
        self.polls += 1
        told = json.loads(data.partition(b"\r\n\r\n")[2])
        asyncio.get_running_loop().call_later(told["poll_after"], self._ask)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Not expected before the end."""
        self.lost = True
