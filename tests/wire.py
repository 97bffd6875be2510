"""Raw-socket peers: a shopper and a storefront that send exactly the bytes they are told to."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from waitingroom.exchange import Exchange
from waitingroom.forwarded import Network
from waitingroom.heads import ResponseHead, parse_response
from waitingroom.http1 import Limits, Listener
from waitingroom.proxy import Failure, OriginLimits, Upstream

OnHead = Callable[[ResponseHead], bytes]
"""What is added to an answer with this head."""

LIMITS = Limits()
ORIGIN_LIMITS = OriginLimits()

PATIENCE = 5.0
"""Seconds after which a test stops waiting for bytes."""

OWN_COOKIES = (b"wr-", b"__Host-wr-", b"__Secure-wr-")


class Wire:
    """One end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write each piece so that it leaves before the next."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def head(self) -> bytes:
        """Everything up to and including an empty line."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)

    async def exactly(self, size: int) -> bytes:
        """So many bytes."""
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and including a mark."""
        return await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE)

    async def rest(self) -> bytes:
        """Everything until the other end closes; a reset counts as closed."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(65536), PATIENCE):
                data += piece
        return data

    async def answer(self, method: bytes = b"GET") -> tuple[ResponseHead, bytes]:
        """One final answer and its body, chunks joined."""
        head = parse_response(await self.head(), method)
        if head.chunked:
            body = unchunked(await self.until(b"0\r\n\r\n"))
        elif head.length is None:
            body = await self.rest()
        else:
            body = await self.exactly(head.length)
        return head, body

    def close(self) -> None:
        """Close this end in an orderly way."""
        self.writer.close()

    def reset(self) -> None:
        """Break off."""
        self.writer.transport.abort()


def unchunked(wire: bytes) -> bytes:
    """The body that well-formed chunks without extensions carry."""
    body = b""
    while wire:
        size, _, wire = wire.partition(b"\r\n")
        if size == b"0":
            break
        body += wire[: int(size, 16)]
        wire = wire[int(size, 16) + 2 :]
    return body


@asynccontextmanager
async def dial(port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """A shopper's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


class Storefront:
    """A TCP server that answers as its script says.

    Attributes:
        heads: every request head that reached it.
        opened: connections accepted so far.
        closed: connections that have ended.
    """

    def __init__(self, script: Callable[[Wire, bytes], Awaitable[None]] | None) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.heads: list[bytes] = []
        self.opened = 0
        self.closed = 0
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        self.opened += 1
        task = asyncio.get_running_loop().create_task(self._serve(Wire(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, wire: Wire) -> None:
        try:
            while True:
                head = await wire.reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if self._script is None:
                    await wire.rest()
                    return
                await self._script(wire, head)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed += 1
            wire.reset()

    async def stop(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def storefront(
    script: Callable[[Wire, bytes], Awaitable[None]] | bytes | None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Storefront]:
    """A storefront that runs `script` for every request, or always sends the same bytes, or none (None)."""
    if isinstance(script, bytes):
        answer = script

        async def say(wire: Wire, _head: bytes) -> None:
            await wire.send(answer)

        script = say
    shop = Storefront(script)
    server = await asyncio.start_server(shop.accept, "127.0.0.1", 0, limit=1 << 20, ssl=context)
    shop.url = f"{'https' if context else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield shop
    finally:
        server.close()
        await shop.stop()


def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS settings of a server with a self-signed certificate, and of a client that trusts it alone."""
    both = folder / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    subject = ["-addext", "subjectAltName=IP:127.0.0.1"]
    made = subprocess.run([*command.split(), *subject, "-keyout", "-"], capture_output=True, check=True)
    both.write_bytes(made.stdout)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(both)
    return server, ssl.create_default_context(cafile=str(both))


class Outcome(NamedTuple):
    """How a forwarded request has ended, as a `Watcher` is told."""

    status: int
    latency: float | None
    sent: int
    failure: Failure | None


@dataclass
class Gate:
    """A listener in front of an upstream, and what it has noted."""

    port: int
    listener: Listener
    upstream: Upstream[Exchange]
    outcomes: list[Outcome]


class Forwarder:
    """Sends everything to one upstream, and notes how it ends."""

    upstream: Upstream[Exchange]

    def __init__(self, on_head: OnHead) -> None:
        self._on_head = on_head
        self.outcomes: list[Outcome] = []

    def handle(self, exchange: Exchange) -> None:
        self.upstream.forward(exchange, exchange)

    def answered(self, case: Exchange, head: ResponseHead) -> bytes:  # noqa: ARG002 - a Watcher's
        return self._on_head(head)

    def failed(self, case: Exchange, status: int, reason: str) -> None:
        case.respond(status, b"Content-Type: text/plain\r\n", f"{status} {reason}\n".encode())

    def ended(
        self,
        case: Exchange,  # noqa: ARG002 - a Watcher's
        status: int,
        latency: float | None,
        sent: int,
        failure: Failure | None,
    ) -> None:
        self.outcomes.append(Outcome(status, latency, sent, failure))


class _Asker:
    """Calls a function for every request."""

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        self.handle = answer


@asynccontextmanager
async def listening(
    answer: Callable[[Exchange], None],
    limits: Limits = LIMITS,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[int, Listener]]:
    """A listener that answers by itself: its port and itself."""
    listener = Listener(_Asker(answer), limits)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(listener, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], listener
    finally:
        server.close()
        await listener.premises.drain(0)


@asynccontextmanager
async def gate(
    url: str,
    *,
    limits: Limits = LIMITS,
    origin: OriginLimits = ORIGIN_LIMITS,
    trusted: Iterable[Network] = (),
    on_head: OnHead = lambda _head: b"",
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Gate]:
    """A listener that sends everything to `url`."""
    forwarder = Forwarder(on_head)
    upstream = Upstream(url, forwarder, limits=origin, strip_cookies=OWN_COOKIES, context=context)
    forwarder.upstream = upstream
    listener = Listener(forwarder, limits, tuple(trusted))
    server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
    try:
        yield Gate(server.sockets[0].getsockname()[1], listener, upstream, forwarder.outcomes)
    finally:
        server.close()
        await listener.premises.drain(0)
        await upstream.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(path: str = "/", *lines: str) -> bytes:
    """A GET request with further header lines."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: shop.example", *lines, "", ""]).encode("latin-1")


def post(body: bytes, *lines: str) -> bytes:
    """A POST request with its length and further header lines."""
    head = ["POST /cart HTTP/1.1", "Host: shop.example", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
