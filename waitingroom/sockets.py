"""The public address as sockets: bound once, shared among processes, given up without losing who had come.

A connection counts from the handshake of TCP on, which the kernel does by itself: its client may have sent a
request before any process has accepted it. So a socket is closed only after nobody can come in any more and
everybody who came in has been accepted.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext

BACKLOG = 4096
"""Connections that the kernel keeps for each socket until they are accepted."""

HANDSHAKE = 0.25
"""Seconds in which a handshake that has begun is completed by most networks."""

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

_NO_NEWCOMERS = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags of the TCP header
        (0x54, 0, 0, 0x12),  # and SYN|ACK
        (0x15, 0, 1, 0x02),  # a SYN alone begins a connection:
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFF_FFFF),  # keep all else
    )
)
"""A classic BPF program (linux/filter.h) that lets handshakes be completed and none begin."""

LONGEST_FOLDER = 60
"""Characters of a folder's path that leave room for the name of a Unix socket in it; it has 103."""

Address = tuple[str, int]


def parse_address(text: str) -> Address:
    """Host and port of "127.0.0.1:8080" or "[::1]:8080"."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def shown(address: Address) -> str:
    """The text that `parse_address` takes."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(address: str) -> list[socket.socket]:
    """Sockets of this process alone, one for each address that a name stands for; not yet listening.

    Raises:
        OSError: the address is not of this machine, or somebody has it.
    """
    return _bind(*parse_address(address), shared=False)


def bind_shared(address: str, shares: int) -> list[list[socket.socket]]:
    """The same for several processes: so many lists, among which the kernel spreads the connections.

    Raises:
        OSError: as `bind`; so that nobody shares an address by accident, also if others share it already.
    """
    host, port = parse_address(address)
    for sock in _bind(host, port, shared=False):
        # A port that was free to choose is kept for the shares.
        port = sock.getsockname()[1]
        sock.close()
    return [_bind(host, port, shared=True) for _ in range(shares)]


def _bind(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing = OSError("no such address")
    with contextlib.ExitStack() as undo:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                sock = undo.enter_context(socket.socket(family, kind, protocol))
            except OSError as error:
                # A name may stand for addresses of a family that this machine has not.
                missing = error
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            bound.append(sock)
        undo.pop_all()
    if not bound:
        raise missing
    return bound


def unix_folder() -> Path:
    """A new folder that only we may look into, for Unix sockets."""
    usual = len(tempfile.gettempdir()) <= LONGEST_FOLDER
    return Path(tempfile.mkdtemp(prefix="waitingroom-", dir=None if usual else "/tmp"))  # noqa: S108 - made for us


class Doors:
    """The listening sockets of one process, and how they are closed.

    Args:
        sockets: bound; listened on from `open` on.
        factory: makes a protocol for each connection.
        tls: None for plain TCP.
        patience: seconds in which a handshake of TLS is completed, or given up.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.Protocol],
        tls: SSLContext | None,
        patience: float,
    ) -> None:
        self._sockets = sockets
        self._factory = factory
        self._tls = tls
        self._patience = patience if tls else None
        self._servers: list[asyncio.Server] = []
        self._late: set[asyncio.Task[object]] = set()

    @property
    def address(self) -> Address:
        """Where the first of them is."""
        host, port = self._sockets[0].getsockname()[:2]
        return host, port

    async def open(self) -> None:
        """Take connections.

        Raises:
            OSError: somebody else listens there.
        """
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            # The event loop closes what it is given, and with it the connections that wait.
            server = await loop.create_server(
                self._factory,
                sock=sock.dup(),
                ssl=self._tls,
                ssl_handshake_timeout=self._patience,
                backlog=BACKLOG,
            )
            self._servers.append(server)

    async def close(self, *, alone: bool) -> None:
        """Take no more connections.

        Args:
            alone: no other process has these sockets, so that who waits at them is accepted here or never.
        """
        if alone and self._servers:
            for sock in self._sockets:
                _refuse_newcomers(sock)
            if not all(map(_is_near, self._sockets)):
                await asyncio.sleep(HANDSHAKE)
        for server in self._servers:
            server.close()
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            for waiting in _accepted(sock) if alone and self._servers else ():
                late = loop.connect_accepted_socket(
                    self._factory, waiting, ssl=self._tls, ssl_handshake_timeout=self._patience
                )
                task = loop.create_task(late, name="late connection")
                self._late.add(task)
                task.add_done_callback(self._settle)
            sock.close()

    def _settle(self, task: "asyncio.Task[object]") -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # a handshake that failed concerns nobody but its client

    async def abandon(self) -> None:
        """Give up on handshakes of TLS that are still not complete."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)


def _refuse_newcomers(sock: socket.socket) -> None:
    """Let nobody begin a handshake; they will ask again, and find another gateway or a closed port.

    Without this, connections made between the last accept and the close would be reset.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(_NO_NEWCOMERS)
        told = struct.pack("HL", len(_NO_NEWCOMERS) // 8, ctypes.addressof(program))
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, told)


def _is_near(sock: socket.socket) -> bool:
    """Whether only this machine can reach it, so that no handshake is on its way."""
    return ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def _accepted(sock: socket.socket) -> list[socket.socket]:
    """Whoever has been waiting to be accepted."""
    found = []
    while True:
        try:
            found.append(sock.accept()[0])
        except ConnectionAbortedError:
            continue
        except OSError:  # nobody waits any more, or no descriptor is left
            return found
