"""One request and its answer, as the two sides of the data path see it.

The connection to the shopper makes an `Exchange`; a `Handler` decides about it; whoever streams bodies to and
from somewhere else does so as its `Relay`.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from waitingroom.forwarded import Client
from waitingroom.heads import Head
from waitingroom.outbox import Data

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Handler(Protocol):
    """What decides about requests."""

    def handle(self, exchange: "Exchange") -> None:
        """Answer now, later, or attach a relay. Called once a request; must not block."""


class Relay(Protocol):
    """Whoever streams an exchange's bodies to and from somewhere else."""

    def body(self, data: bytes) -> None:
        """More of the request's body, or of what the client says in a tunnel."""

    def body_end(self, trailers: bytes) -> None:
        """The request's body is complete, or the client has said all it will in a tunnel."""

    def hold(self) -> None:
        """The client reads too slowly: stop the answer for now."""

    def flow(self) -> None:
        """The client has caught up."""

    def gone(self) -> None:
        """The client has left, or broke the protocol, before its answer was complete."""


class Channel(Protocol):
    """What an exchange needs of the connection that it came by."""

    peer: str

    def client(self, head: Head) -> Client: ...  # noqa: D102 - each is described where it is implemented
    def write(self, data: Data) -> None: ...  # noqa: D102
    def persists(self, head: Head) -> bool: ...  # noqa: D102
    def skips(self, head: Head) -> bool: ...  # noqa: D102
    def answered(self, *, keep: bool) -> None: ...  # noqa: D102
    def pull(self) -> None: ...  # noqa: D102
    def pause(self) -> None: ...  # noqa: D102
    def resume(self) -> None: ...  # noqa: D102
    def tunnel(self) -> None: ...  # noqa: D102
    def half_close(self) -> None: ...  # noqa: D102
    def cut(self) -> None: ...  # noqa: D102


class Exchange:
    """One request and its answer. Every method is harmless once the client is gone or the answer complete.

    Attributes:
        head: the request's head.
        client: who asked, behind trusted proxies.
        peer: address of the socket's other end, "" on a Unix socket.
        relay: whoever streams the bodies, and is told of the client from then on.
        gone: the client left before its answer was complete.
        started: the final answer has begun.
        pulling: the relay takes the request's body.
    """

    def __init__(self, head: Head, channel: Channel) -> None:
        self.head = head
        self.relay: Relay | None = None
        self.gone = False
        self.started = False
        self.pulling = False
        self._keep = True
        self.client = channel.client(head)
        self.peer = channel.peer
        self._channel: Channel | None = channel

    def respond(
        self, status: int, headers: bytes | Iterable[tuple[str, str]] = b"", body: bytes = b""
    ) -> None:
        """Send a whole answer; Content-Length and Connection are added, HEAD gets no body.

        Args:
            status: final status, 200 to 599.
            headers: header lines, each ended by CRLF, or pairs.
            body: the content.

        Raises:
            ValueError: a pair holds a line break.
        """
        channel = self._channel
        if channel is None or self.started:
            return
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        bodyless = status in {204, 304}
        size = b"" if bodyless else b"Content-Length: %d\r\n" % len(body)
        self._keep = self._keep and channel.skips(self.head)
        silent = bodyless or self.head.method == b"HEAD"
        self.start(
            b"HTTP/1.1 %d %b\r\n%b%b" % (status, REASONS.get(status, b"Unknown"), lines, size),
            b"" if silent else body,
        )
        self.finish()

    def pull(self) -> None:
        """Send the request's body to the relay as it arrives."""
        self.pulling = True
        if self._channel is not None:
            self._channel.pull()

    def pause(self) -> None:
        """Stop reading from the client."""
        if self._channel is not None:
            self._channel.pause()

    def resume(self) -> None:
        """Read from the client again."""
        if self._channel is not None:
            self._channel.resume()

    def interim(self, head: bytes) -> None:
        """Send a whole 1xx head; HTTP/1.0 clients do not know of those."""
        if self._channel is not None and not self.started and self.head.fields.minor == 1:
            self._channel.write(head)

    def close_after(self) -> None:
        """Let the end of the answer be the end of the connection."""
        self._keep = False

    def start(self, head: bytes, body: Data = b"") -> None:
        """Begin the answer: status line and header lines without the empty line, and some of the body."""
        channel = self._channel
        if channel is None or self.started:
            return
        self.started = True
        self._keep = self._keep and channel.persists(self.head)
        if not self._keep:
            end = b"Connection: close\r\n\r\n"
        else:
            end = b"\r\n" if self.head.fields.minor else b"Connection: keep-alive\r\n\r\n"
        if isinstance(body, bytes):
            channel.write(head + end + body)
        else:
            channel.write(head + end)
            channel.write(body)

    def write(self, data: bytes) -> None:
        """Send more of the answer's body, framed already."""
        if self._channel is not None:
            self._channel.write(data)

    def finish(self) -> None:
        """The answer is complete; after a tunnel, both sides have said all they will."""
        channel, self._channel = self._channel, None
        self.relay = None
        if channel is not None:
            channel.answered(keep=self._keep)

    def cut(self) -> None:
        """The answer cannot be completed: break the connection off, so that nobody takes it for whole."""
        channel, self._channel = self._channel, None
        self.relay = None
        if channel is not None:
            channel.cut()

    def tunnel(self, head: bytes) -> None:
        """Send a whole 101 head; from here on the relay gets and writes bare bytes."""
        channel = self._channel
        if channel is not None:
            self.started = self.pulling = True
            self._keep = False
            channel.write(head)
            channel.tunnel()

    def half_close(self) -> None:
        """Tell the client that nothing more comes through the tunnel."""
        if self._channel is not None:
            self._channel.half_close()

    def lose(self) -> None:
        """Called by the connection: the client has left, or must."""
        if self._channel is None:
            return
        self._channel = None
        self.gone = True
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.gone()


def refusal(status: int, reason: str) -> bytes:
    """The whole answer, the last on its connection, to a request that nobody acts on."""
    text = f"{status} {HTTPStatus(status).phrase}: {reason}\n".encode()
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b" % (status, REASONS[status], len(text), text)
    )


def header_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Header lines of name and value pairs. Raises ValueError for a line break in either."""
    lines = [f"{name}: {value}" for name, value in pairs]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("line break in a header")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")
