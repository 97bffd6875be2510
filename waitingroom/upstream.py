"""Connections to one origin: a bounded pool that keeps them alive, and an orderly line when all are taken.

A `Job` is what wants a connection. It is given a `Link`, talks through it, and gives it back.
"""

import asyncio
import math
import ssl
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from waitingroom.addresses import parse_origin
from waitingroom.deadlines import Sweep
from waitingroom.heads import Memory, ResponseHead
from waitingroom.outbox import Outbox, Speaker


@dataclass(frozen=True, slots=True)
class OriginLimits:
    """What one origin is asked to bear, and how long it is waited for. Times in seconds, sizes in bytes."""

    connections: int = 256
    line: int = 1024
    """Requests that may wait for a connection; the next is answered 503 at once."""
    line_timeout: float = 10.0
    connect_timeout: float = 5.0
    first_byte_timeout: float = 60.0
    idle_timeout: float = 60.0
    tunnel_timeout: float = 3600.0
    keepalive_timeout: float = 30.0
    head_bytes: int = 64 * 1024
    high_water: int = 256 * 1024
    low_water: int = 64 * 1024

    @property
    def look_every(self) -> float:
        """Seconds between two looks at all deadlines."""
        return min(1.0, min(self.line_timeout, self.first_byte_timeout, self.idle_timeout) / 4)


class Failure(StrEnum):
    """Why an exchange with the origin did not come to its proper end."""

    CONNECT = "connect"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    RESET = "reset"
    MALFORMED = "malformed"
    BUSY = "busy"
    GONE = "gone"
    """The client left first."""

    @property
    def status(self) -> int:
        """The status that says so."""
        if self is Failure.BUSY:
            return 503
        return 504 if self.value.endswith("_timeout") else 502


class Job(Protocol):
    """What wants a connection to the origin."""

    deadline: float
    done: bool

    def begin(self, link: "Link") -> None:
        """Talk through this link now."""

    def received(self, data: bytes) -> None:
        """The origin said something."""

    def half_closed(self) -> bool:
        """The origin will say no more; True keeps our side open."""

    def lost(self, link: "Link", error: Exception | None) -> None:
        """The connection is no more."""

    def failed(self, failure: Failure) -> None:
        """No connection could be had."""

    def expired(self) -> None:
        """A deadline has passed, in the line or on the link."""

    def choke(self) -> None:
        """The origin reads too slowly: stop the request for now."""

    def unchoke(self) -> None:
        """The origin has caught up."""


class Link(Speaker):
    """One connection to the origin.

    Attributes:
        reused: it served another request before, so the origin may have closed it meanwhile.
        deadline: when silence becomes a failure.
    """

    __slots__ = ("_job", "_paused", "_pool", "_time", "deadline", "reused")

    def __init__(self, pool: "Pool") -> None:
        super().__init__(pool.outbox)
        self._pool = pool
        self._time = asyncio.get_running_loop().time
        self._job: Job | None = None
        self.reused = self._paused = False
        self.deadline = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The origin has accepted."""
        limits = self._pool.limits
        self.connected(transport, limits.high_water, limits.low_water)
        self._pool.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more, by whoever's doing."""
        self._pool.departed(self)
        job, self._job = self._job, None
        if job is not None:
            job.lost(self, exc)
        self._pool.advance()

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer; at rest they answer nothing, and what follows them cannot be trusted."""
        if self._job is None:
            self.cut()
        else:
            self._job.received(data)

    def eof_received(self) -> bool:
        """The origin will say no more."""
        return self._job is not None and self._job.half_closed()

    def pause_writing(self) -> None:
        """The origin does not keep up with the request."""
        if self._job is not None:
            self._job.choke()

    def resume_writing(self) -> None:
        """The origin has caught up."""
        if self._job is not None:
            self._job.unchoke()

    def expired(self) -> None:
        """Silence for too long; at rest that is only the end of keep-alive."""
        if self._job is None:
            self.cut()
        else:
            self._job.expired()

    def assign(self, job: Job) -> None:
        """Serve this job until it gives the link back."""
        self._job = job
        job.begin(self)

    def pause(self) -> None:
        """Read no more for now; waiting is not the origin's fault then."""
        self.deadline = math.inf
        self._paused = True
        self._transport.pause_reading()

    def resume(self, timeout: float) -> None:
        """Read on."""
        self.wait(timeout)
        self._paused = False
        self._transport.resume_reading()

    def wait(self, timeout: float) -> None:
        """Expect something within `timeout` seconds."""
        self.deadline = self._time() + timeout

    def release(self) -> None:
        """Give the link back in a state fit for the next job."""
        self._job = None
        self.reused = True
        if self._transport.is_closing():
            return
        if self._paused:
            # The end of an answer may come while its shopper is slow to take it.
            self.resume(0)
        self._pool.rest(self)

    def close(self) -> None:
        """Give the link up once everything written has been sent."""
        self._job = None
        super().close()

    def abandon(self) -> None:
        """Break off; the job learns that its link is lost."""
        self.abort()

    def cut(self) -> None:
        """Give the link up at once."""
        self._job = None
        self.abort()


class Pool:
    """At most `limits.connections` links to the origin at `url` (http, https or unix).

    Raises:
        ValueError: `url` names no origin.
    """

    def __init__(self, url: str, limits: OriginLimits, context: ssl.SSLContext | None = None) -> None:
        origin = parse_origin(url)
        self.limits = limits
        self.outbox = Outbox()
        self.memory: Memory[ResponseHead] = Memory()
        self.unix, self.host, self.port = origin.unix, origin.host, origin.port
        self._context = (context or ssl.create_default_context()) if origin.tls else None
        self._idle: list[Link] = []
        self.line: deque[Job] = deque()
        self._links: set[Link] = set()
        self._opening = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sweep = Sweep(limits.look_every)

    @property
    def size(self) -> int:
        """Connections open or being opened."""
        return len(self._links) + self._opening

    def adapt(self, limits: OriginLimits) -> None:
        """Keep to other limits from now on; links that are open stay."""
        self.limits = limits
        self._sweep.interval = limits.look_every
        self.advance()

    def serve(self, job: Job) -> None:
        """Give `job` a link: one at rest, a new one, or the next that comes free."""
        if self._idle:
            self._idle.pop().assign(job)
        elif self.size < self.limits.connections:
            self.open(job)
        elif len(self.line) < self.limits.line:
            job.deadline = asyncio.get_running_loop().time() + self.limits.line_timeout
            self.line.append(job)
            self._sweep.add(job)
        else:
            job.failed(Failure.BUSY)

    def open(self, job: Job) -> None:
        """Connect anew for `job`."""
        self._opening += 1
        task = asyncio.get_running_loop().create_task(self._connect(job))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def leave(self, job: Job) -> None:
        """Take `job` out of the line, if it stands there."""
        if job in self._sweep.members:
            self._sweep.discard(job)
            self.line.remove(job)

    async def _connect(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_timeout):
                if self.unix:
                    _, link = await loop.create_unix_connection(self._link, self.unix)
                else:
                    _, link = await loop.create_connection(
                        self._link, self.host, self.port, ssl=self._context
                    )
        except (OSError, UnicodeError) as error:  # a name can be so odd that it is not even looked up
            self._opening -= 1
            job.failed(Failure.CONNECT_TIMEOUT if isinstance(error, TimeoutError) else Failure.CONNECT)
            self.advance()
            return
        self._opening -= 1
        if link not in self._links:
            job.failed(Failure.RESET)
            self.advance()
        elif job.done:
            self.rest(link)
        else:
            link.assign(job)

    def _link(self) -> Any:
        return Link(self)

    def arrived(self, link: Link) -> None:
        """A link has connected."""
        self._links.add(link)
        self._sweep.add(link)
        link.wait(self.limits.keepalive_timeout)

    def departed(self, link: Link) -> None:
        """A link is no more."""
        self._links.discard(link)
        self._sweep.discard(link)
        if link in self._idle:
            self._idle.remove(link)

    def rest(self, link: Link) -> None:
        """A link is free: give it to whoever is first in line, or keep it."""
        if self._closed:
            link.close()
        elif self.line:
            link.assign(self._first())
        else:
            link.wait(self.limits.keepalive_timeout)
            self._idle.append(link)

    def advance(self) -> None:
        """There may be room for more links: connect for those in line."""
        while self.line and not self._closed and self.size < self.limits.connections:
            self.open(self._first())

    def _first(self) -> Job:
        job = self.line.popleft()
        self._sweep.discard(job)
        return job

    async def close(self) -> None:
        """Close every link; jobs under way learn that theirs is lost."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        while self.line:
            self._first().failed(Failure.BUSY)
        for link in list(self._links):
            link.abandon()
