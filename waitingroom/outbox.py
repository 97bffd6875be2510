"""Connections whose writes wait for the end of the event loop's turn.

A write to a socket wakes the process at its other end, which costs more than the write. What a turn has to
say is said at its end in one go: the first write wakes the others, the rest find them awake, and the pieces
for one connection leave as one.
"""

import asyncio
import socket
import struct
from typing import Any, Final, cast

_TCP_INFO: Final = getattr(socket, "TCP_INFO", 0)
_INFO: Final = struct.Struct("=24xI92xQ16xI")
"""Of Linux's tcp_info: packets not acknowledged yet, bytes acknowledged in all, bytes not sent yet."""

LARGE = 16 * 1024
"""Bytes that are worth a write at once, so that little waits in memory, and not worth copying."""

Data = bytes | memoryview


class Outbox:
    """Everybody who has something to say at the end of this turn."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[Speaker] = []

    def add(self, speaker: "Speaker") -> None:
        """Have `speaker.flush` called before the loop looks at its sockets again."""
        if not self._waiting:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        self._waiting.append(speaker)

    def flush(self) -> None:
        """Let everybody speak."""
        waiting, self._waiting = self._waiting, []
        for speaker in waiting:
            speaker.flush()


class Speaker:
    """One connection, as far as writing to it goes.

    What derives from it is an `asyncio.Protocol` by what it does and not by inheritance, so that it compiles.
    """

    __slots__ = ("_outbox", "_transport", "_unsent")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._transport: asyncio.Transport
        self._unsent = b""

    def connected(self, transport: asyncio.BaseTransport, high: int, low: int) -> asyncio.Transport:
        """Take over the transport; writing is paused and resumed at these bytes."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high, low)
        return self._transport

    def write(self, data: Data) -> None:
        """Send in this turn, unless the other end is known to be gone. A view's bytes must never change."""
        unsent = self._unsent
        if len(data) + len(unsent) >= LARGE:
            self._unsent = b""
            if not self._transport.is_closing():
                self._transport.writelines((unsent, data) if unsent else (data,))
        elif unsent:
            self._unsent = unsent + data
        elif data:
            self._unsent = bytes(data)
            self._outbox.add(self)

    def flush(self) -> None:
        """Send what has waited."""
        data, self._unsent = self._unsent, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def taken(self) -> tuple[int, bool]:
        """Bytes that the other end has taken since some point, and whether any are on their way to it.

        As the kernel tells it, where it does; over TLS nobody else knows.
        """
        waiting = self._transport.get_write_buffer_size()
        peer: Any = self._transport.get_extra_info("socket")
        try:
            told = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size)
            unacknowledged, taken, unsent = _INFO.unpack(told)
        except (AttributeError, OSError, struct.error):
            return -waiting, waiting > 0
        return taken, bool(waiting or unacknowledged or unsent)

    def half_close(self) -> None:
        """Tell the other end that nothing more will come, over TLS by closing."""
        self.flush()
        if not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Close once everything written has been sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self._unsent = b""
        self._transport.abort()
