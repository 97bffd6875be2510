"""Faults on purpose: a relay between a client and a server that misbehaves as told, and processes that stop.

    async with relay("redis://127.0.0.1:6379") as proxy:
        proxy.url                       # what the client is given instead of the server's address
        slow = proxy.add(Latency(300))  # in force at once, on open connections too
        proxy.remove(slow)
        await proxy.down()              # refuses connections, and cuts those that are open
        await proxy.up()

What there is to add is in `toxics`.
"""

import asyncio
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from waitingroom.toxics import End, Passed, Piece, Stream, Toxic, shaped

_MOST_HELD = 256 * 1024  # bytes on their way in one direction, beyond which nothing more is read
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

AnyToxic = TypeVar("AnyToxic", bound=Toxic)


class Proxy:
    """A place where clients are taken to be the server's; made by `relay`.

    Attributes:
        url: the target's, with this place in it.
        port: on loopback, 0 on a Unix socket.
        toxics: in force, in the order in which data goes through them.
    """

    def __init__(self, target: str, path: Path | None, port: int, chance: Random) -> None:
        self.toxics: list[Toxic] = []
        self.port = port
        self.chance = chance
        self._target = urlsplit(target)
        self._host, self._host_port = self._target.hostname or "", self._target.port or 0
        if not ((self._host and self._host_port) or self._target.scheme == "unix"):
            raise ValueError(
                f"{target!r} names no place: say redis://host:port, http://host:port or unix:///path"
            )
        self._path = path
        self._links: set[_Link] = set()
        self._server: asyncio.AbstractServer | None = None

    @property
    def url(self) -> str:
        """Where clients go. A Unix socket's counterpart on a port is taken for a store's."""
        if self._path is not None:
            return f"unix://{self._path}"
        here = f"127.0.0.1:{self.port}"
        if self._target.scheme == "unix":
            return f"redis://{here}"
        user, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{user}{at}{here}").geturl()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(not link.ended for link in self._links)

    def add(self, toxic: AnyToxic) -> AnyToxic:
        """Let a fault befall every connection, those that are open and those to come; gives it back.

        Raises:
            ValueError: an equal one is there already.
        """
        if toxic in self.toxics:
            raise ValueError(f"{toxic} is in force already")
        self.toxics.append(toxic)
        for link in self._links:
            link.fear(toxic)
        return toxic

    def remove(self, toxic: Toxic) -> None:
        """End a fault; connections in which it lost data are closed, as nobody could go on in them.

        Raises:
            ValueError: it is not there.
        """
        self.toxics.remove(toxic)
        for link in list(self._links):
            link.forget(toxic)

    def clear(self) -> None:
        """End all faults."""
        for toxic in list(self.toxics):
            self.remove(toxic)

    async def up(self) -> None:
        """Take connections, at the same place as before.

        Raises:
            OSError: somebody else has the place by now.
        """
        loop = asyncio.get_running_loop()
        if self._server is not None:
            return
        if self._path is not None:
            self._server = await loop.create_unix_server(self._accept, self._path)
        else:
            server = await loop.create_server(self._accept, "127.0.0.1", self.port, backlog=1024)
            self._server, self.port = server, server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._server is not None:
            self._server.close()
            for link in list(self._links):
                link.end(End.RESET)
            await self._server.wait_closed()
            self._server = None

    def _accept(self) -> asyncio.BaseProtocol:
        return _Link(self._links, self.toxics, self.chance, self._dial).client

    async def _dial(self, protocol: "_Side") -> None:
        loop = asyncio.get_running_loop()
        if self._target.scheme == "unix":
            await loop.create_unix_connection(lambda: protocol, self._target.path)
        else:
            await loop.create_connection(lambda: protocol, self._host, self._host_port)


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(
        self,
        links: "set[_Link]",
        toxics: Sequence[Toxic],
        chance: Random,
        dial: "Callable[[_Side], Any]",
    ) -> None:
        self.toxics = toxics
        self.chance = chance
        self.client = _Side(self, Stream.UPSTREAM)
        self.server = _Side(self, Stream.DOWNSTREAM)
        self._links = links
        self._dial = dial
        self._dialling: asyncio.Task[None] | None = None
        self._timers: dict[Toxic, asyncio.TimerHandle] = {}
        self.ended = False

    def begin(self) -> None:
        """The client is there: turn to the server."""
        self._links.add(self)
        for toxic in self.toxics:
            self.fear(toxic)
        self._dialling = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._dial(self.server)
        except OSError:
            self.end(End.RESET)

    def fear(self, toxic: Toxic) -> None:
        """Have a toxic end this connection when it will."""
        if toxic.cuts is not None:
            after, how = toxic.cuts
            self._timers[toxic] = asyncio.get_running_loop().call_later(after, self.end, how)

    def forget(self, toxic: Toxic) -> None:
        """A toxic is gone."""
        if toxic in self._timers:
            self._timers.pop(toxic).cancel()
        if toxic.swallows:
            self.end(End.CLOSE)

    def end(self, how: End) -> None:
        """End both connections; with `FINISH`, once both directions have finished."""
        if how is End.FINISH and not (self.client.finished and self.server.finished):
            return
        self.ended = True
        if self._dialling is not None:
            self._dialling.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for side in (self.client, self.server):
            side.close(how)

    def lost(self) -> None:
        """One of the connections is gone."""
        if self.client.transport is self.server.transport is None:
            self._links.discard(self)


class _Side(asyncio.Protocol):
    """One connection of the two: what is read here leaves by the other.

    Attributes:
        finished: everything that was to be read here has left by the other side.
        transport: None before the connection is made, and once it is lost.
        full: nothing more is to be written here for now.
    """

    def __init__(self, link: _Link, stream: Stream) -> None:
        self.finished = False
        self._link = link
        self._stream = stream
        self.transport: asyncio.Transport | None = None
        self._passed: dict[Toxic, Passed] = {}
        self._pending: deque[Piece] = deque()
        self._held = 0
        self.full = False
        self._resting = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _other(self) -> "_Side":
        return self._link.server if self is self._link.client else self._link.client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        if self._link.ended:
            self.transport.abort()
        elif self is self._link.client:
            self._link.begin()
        else:
            self._other.flush()

    def data_received(self, data: bytes) -> None:
        self._take(Piece(data, asyncio.get_running_loop().time()))

    def eof_received(self) -> bool:
        self._take(Piece(b"", asyncio.get_running_loop().time(), End.FINISH))
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._link.end(End.CLOSE if error is None else End.RESET)
        self._link.lost()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._other.flush()

    def close(self, how: End) -> None:
        """End this connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._pending.clear()
        if self.transport is None:
            return
        if how is End.RESET:
            handle = self.transport.get_extra_info("socket")
            if handle is not None:  # closed, and its protocol is about to hear of it
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()

    def _take(self, piece: Piece) -> None:
        befall = [toxic for toxic in self._link.toxics if toxic.stream in (self._stream, Stream.BOTH)]
        pieces = shaped(piece, befall, self._passed, self._link.chance)
        self._pending.extend(pieces)
        self._held += sum(len(piece.data) for piece in pieces)
        self.flush()

    def flush(self) -> None:
        """Pass on what is due, and look again when more is."""
        loop = asyncio.get_running_loop()
        now, other = loop.time(), self._other
        if other.transport is None:
            return
        while self._pending and self._pending[0].at <= now and not other.full:
            piece = self._pending.popleft()
            self._held -= len(piece.data)
            other.transport.write(piece.data)
            if piece.end is not None:
                self._finish(other.transport, piece.end)
        if self._timer is not None:
            self._timer.cancel()
        wait = self._pending and not other.full
        self._timer = loop.call_at(self._pending[0].at, self.flush) if wait else None
        self._rest()

    def _finish(self, out: asyncio.Transport, how: End) -> None:
        if how is End.FINISH:
            self.finished = True
            out.write_eof()
        self._link.end(how)

    def _rest(self) -> None:
        """Read nothing while too much is on its way."""
        if (
            self.transport is None
            or self.transport.is_closing()
            or self._resting == (self._held > _MOST_HELD)
        ):
            return
        self._resting = not self._resting
        if self._resting:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


@asynccontextmanager
async def relay(
    target: str, *, path: Path | None = None, port: int = 0, chance: Random | None = None
) -> AsyncIterator[Proxy]:
    """Stand between clients and a server until the end of the block.

    Args:
        target: the server: `redis://host:port`, `http://host:port` or `unix:///path`; TLS passes as it is.
        path: of the Unix socket to listen on; without, it is a loopback port.
        port: to listen on, 0 for a free one.
        chance: source of jitter and sizes, for runs that can be repeated.

    Raises:
        ValueError: the target names no place.
        OSError: the place to listen at is taken.
    """
    proxy = Proxy(target, path, port, chance or Random())  # noqa: S311 - nothing is kept secret with it
    await proxy.up()
    try:
        yield proxy
    finally:
        await proxy.down()


def freeze(pid: int) -> None:
    """Stop a process as it stands, with its connections open: it answers nothing until it is thawed.

    Raises:
        ProcessLookupError: there is no such process.
    """
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let a frozen process go on.

    Raises:
        ProcessLookupError: there is no such process.
    """
    os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """End a process without a warning, as a machine that fails does.

    Raises:
        ProcessLookupError: there is no such process.
    """
    os.kill(pid, signal.SIGKILL)
