"""Bodies of HTTP/1.1 messages, taken apart as they arrive (RFC 9112, 6 and 7).

Chunked bodies are decoded by llhttp with no leniency switched on. Nothing here knows a socket.
"""

import re
from typing import Final

import httptools

from waitingroom.heads import CRLF2, BadRequestError

_SIZE_LINE = re.compile(rb"[0-9A-Fa-f]+(?:;[\t -~\x80-\xff]*)?\r\n")
_LONGEST_SIZE_LINE: Final = 1024


def begins_chunk(data: bytes, at: int) -> bool:
    """Whether the line of a chunk's size stands at `at`; False while it is incomplete.

    Raises:
        BadRequestError: 400; something else stands there.
    """
    end = data.find(b"\n", at, at + _LONGEST_SIZE_LINE) + 1
    if end == 0 and len(data) < at + _LONGEST_SIZE_LINE:
        return False
    if _SIZE_LINE.fullmatch(data, at, end) is None:
        raise BadRequestError(400, "malformed chunked body")
    return True


class Counted:
    """A body of known length."""

    __slots__ = ("done", "left")
    trailers: Final = b""

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what arrived; gives (body, what lies behind the end of the body)."""
        if len(data) < self.left:
            self.left -= len(data)
            return data, b""
        end, self.left, self.done = self.left, 0, True
        return (data, b"") if end == len(data) else (data[:end], data[end:])


class Endless:
    """A body that lasts until the connection closes."""

    __slots__ = ()
    trailers: Final = b""
    done: Final = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Everything that arrives is body."""
        return data, b""


class Chunked:
    """A chunked body. Extensions are read past and dropped, trailer lines are kept.

    Raises httptools.HttpParserError from `feed` for anything not exactly in the grammar.
    """

    __slots__ = ("_idle", "_parser", "_pieces", "_tail", "done", "trailers")
    _START = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    _MOST_OVERHEAD = 64 * 1024
    """Bytes of extensions or trailers in a row without any body, so that neither goes on for ever."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._tail = b""
        self._idle = 0
        self.done = False
        self.trailers = b""
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(self._START)
        self.trailers = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp: a header of the made-up head, later a trailer line."""
        self.trailers += name + b": " + value + b"\r\n"

    def on_body(self, data: bytes) -> None:
        """Called by llhttp."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Called by llhttp."""
        self.done = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what arrived; gives (body, what lies behind the end of the body).

        llhttp does not say where a message ended, but every chunked body ends with an empty line: it is fed
        up to one empty line after the other until it is content.
        """
        window = self._tail + data
        offset = len(self._tail)
        fed = 0
        while not self.done and fed < len(data):
            mark = window.find(CRLF2, max(0, fed + offset - 3))
            end = len(data) if mark < 0 else mark + 4 - offset
            self._parser.feed_data(data[fed:end])
            fed = end
        self._tail = window[-3:]
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._idle = 0 if body else self._idle + len(data)
        if self._idle > self._MOST_OVERHEAD:
            raise httptools.HttpParserError("too much chunk overhead")
        return body, data[fed:]


Body = Counted | Endless | Chunked
