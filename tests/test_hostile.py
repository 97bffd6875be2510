"""Clients that are slow, greedy or many: what they can hold is bounded, in time and in memory."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.conftest import eventually
from tests.test_architecture import modules
from tests.wire import OK, Wire, dial, gate, get, listening, post, storefront, tls_contexts, unchunked
from waitingroom.exchange import Exchange
from waitingroom.http1 import Connection, Limits
from waitingroom.proxy import Failure, OriginLimits

MEBIBYTE = 1 << 20
UPLOAD = b"POST /cart HTTP/1.1\r\nHost: shop.example\r\n"
CHUNKED = UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n"
SLOW = Limits(body_idle_timeout=1.0, body_rate=1000)
"""A second's patience, which a thousand bytes a second keep up."""


def hello(exchange: Exchange) -> None:
    """Answer with the path that was asked for."""
    exchange.respond(200, b"", exchange.head.path)


async def swallow(wire: Wire, head: bytes) -> None:
    """Take a body of known length, then answer."""
    await wire.exactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
    await wire.send(OK)


async def drip(client: Wire, piece: bytes, pause: float, times: int) -> None:
    """Send the same again and again, until that cannot be done any more."""
    try:
        for _ in range(times):
            await client.send(piece)
            await asyncio.sleep(pause)
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (UPLOAD + b"Content-Length: 100000\r\n\r\n", b"x"),
        (CHUNKED + b"1\r\nx\r\n", b"1\r\nx\r\n"),
        (CHUNKED + b"1\r\nx\r\n1;", b"extension"),
        (UPLOAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 99_000, b"x"),
    ],
    ids=["length", "chunks", "one chunk's endless extension", "fast at first"],
)
async def test_a_body_that_trickles_is_cut(start: bytes, piece: bytes) -> None:
    """Nobody holds a connection to the storefront by sending just enough not to be silent."""
    async with storefront(None) as shop, gate(shop.url, limits=SLOW) as front, dial(front.port) as client:
        await client.send(start)
        trickling = asyncio.create_task(drip(client, piece, 0.05, 1000))
        answer = await client.rest()
        trickling.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        await eventually(lambda: shop.closed == 1)
        assert [outcome.failure for outcome in front.outcomes] == [Failure.GONE]


@pytest.mark.parametrize("rate", [1000, 0])
async def test_a_body_that_keeps_up_the_rate_passes(rate: int) -> None:
    """A slow upload may take as long as it needs; without a rate any upload that is not silent may."""
    limits = Limits(body_idle_timeout=2.0, body_rate=rate)
    size = 250 if rate else 2
    async with (
        storefront(swallow) as shop,
        gate(shop.url, limits=limits) as front,
        dial(front.port) as client,
    ):
        await client.send(UPLOAD + b"Content-Length: %d\r\n\r\n" % (50 * size))
        await drip(client, b"x" * size, 0.05, 50)
        assert (await client.answer())[1] == b"ok"


async def test_who_is_held_back_is_not_blamed() -> None:
    """While the storefront does not take it, an upload is nobody's fault."""
    limits = Limits(body_idle_timeout=0.3, body_rate=100_000)
    body = b"x" * (16 * MEBIBYTE)

    async def dawdle(wire: Wire, head: bytes) -> None:
        # Several times the client's patience: that so much time passes is what is tested.
        await asyncio.sleep(1.5)
        await swallow(wire, head)

    async with storefront(dawdle) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        sending = asyncio.create_task(client.send(post(body)))
        assert (await client.answer())[1] == b"ok"
        await sending


@asynccontextmanager
async def reading(size: int, limits: Limits) -> AsyncIterator[tuple[socket.socket, Connection]]:
    """A client with small buffers that was sent so many bytes, and the connection that sends them."""
    async with listening(lambda exchange: exchange.respond(200, b"", b"x" * size), limits) as (
        port,
        listener,
    ):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await eventually(lambda: listener.connections == 1)
            (connection,) = listener.sweep.members
            assert isinstance(connection, Connection)
            connection._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 8192
            )
            await loop.sock_sendall(client, get())
            yield client, connection


async def taken(client: socket.socket, piece: int, pause: float) -> int:
    """How much a client gets that reads so many bytes at a time."""
    got = 0
    try:
        while data := await asyncio.get_running_loop().sock_recv(client, piece):
            got += len(data)
            await asyncio.sleep(pause)
    except ConnectionError:
        pass
    return got


@pytest.mark.parametrize(("high", "low"), [(50_000, 1000), (MEBIBYTE, 1000)], ids=["held", "all written"])
async def test_who_takes_an_answer_slowly_gets_all_of_it(high: int, low: int) -> None:
    """However large it is, and whether it waits here or behind us: whoever keeps up the rate is sent it."""
    limits = Limits(
        body_idle_timeout=1.0, keepalive_timeout=0.5, body_rate=10_000, high_water=high, low_water=low
    )
    async with reading(400_000, limits) as (client, _), asyncio.timeout(20):
        taking = asyncio.create_task(taken(client, 4000, 0.02))
        assert await taking > 400_000


async def test_who_takes_next_to_nothing_is_cut() -> None:
    """A few bytes now and then do not keep an answer waiting."""
    limits = Limits(
        body_idle_timeout=0.5, keepalive_timeout=0.5, body_rate=10_000, high_water=50_000, low_water=1000
    )
    async with reading(400_000, limits) as (client, connection):
        taking = asyncio.create_task(taken(client, 40, 0.05))
        await eventually(connection._transport.is_closing, 20)
        taking.cancel()


async def test_who_takes_next_to_nothing_holds_no_storefront() -> None:
    """The connection that brings a large answer is given up with the client that does not take it."""
    size = 30 * MEBIBYTE
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size
    limits = Limits(body_idle_timeout=0.3, body_rate=10_000)
    async with storefront(big) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        await client.send(get())
        for _ in range(200):
            try:
                await client.exactly(10)
            except asyncio.IncompleteReadError:
                break
            if shop.closed:
                break
            await asyncio.sleep(0.02)
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes[0].failure is Failure.GONE


BAD_SIZES = [
    b"zz\r\n",
    b"\r\n",
    b"-1\r\n",
    b"1 \r\n",
    b"1\n",
    b"GET / HTTP/1.1\r\n",
    b"1" * 2000,
    b"1;a\x01\r\n",
]


@pytest.mark.parametrize("wire", BAD_SIZES)
@pytest.mark.parametrize("at_once", [True, False], ids=["in one piece", "behind the head"])
async def test_a_malformed_first_chunk_reaches_nobody(wire: bytes, *, at_once: bool) -> None:
    """A chunked upload is begun with the storefront only when its first size line stands."""
    async with storefront(None) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(*([CHUNKED + wire] if at_once else [CHUNKED, wire]))
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        assert (shop.heads, shop.opened, front.outcomes) == ([], 0, [])


async def test_a_chunked_upload_may_begin_in_any_pieces() -> None:
    """A head, a size line and a chunk that come byte by byte are one request."""

    async def take(wire: Wire, _head: bytes) -> None:
        assert unchunked(await wire.until(b"0\r\n\r\n")) == b"abc"
        await wire.send(OK)

    async with storefront(take) as shop, gate(shop.url) as front, dial(front.port) as client:
        raw = CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n"
        await client.send(*(raw[at : at + 1] for at in range(len(raw))))
        assert (await client.answer())[1] == b"ok"
        assert len(shop.heads) == 1


async def test_a_chunked_upload_that_does_not_begin_is_408() -> None:
    """A head that announces chunks has the time of a head for the first of them."""
    limits = Limits(head_timeout=0.3)
    async with storefront(None) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        await client.send(CHUNKED)
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        assert shop.opened == 0


async def test_shoppers_are_served_when_all_connections_are_taken() -> None:
    """Newcomers get the places of those who say nothing; whoever has a request under way keeps theirs."""
    waiting: list[Exchange] = []

    def answer(exchange: Exchange) -> None:
        if exchange.head.path == b"/busy":
            waiting.append(exchange)
        else:
            hello(exchange)

    async with listening(answer, Limits(connections=20)) as (port, listener), AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(dial(port)) for _ in range(5)]
        for one in busy:
            await one.send(get("/busy"))
        await eventually(lambda: len(waiting) == 5)
        for _ in range(15):
            await stack.enter_async_context(dial(port))
        await eventually(lambda: listener.connections == 20)
        for number in range(100):
            newcomer = await stack.enter_async_context(dial(port))
            await newcomer.send(get(f"/{number}"))
            assert (await newcomer.answer())[1] == b"/%d" % number
        for exchange in waiting:
            exchange.respond(200, b"", b"done")
        for one in busy:
            assert (await one.answer())[1] == b"done"
        assert listener.refusals == {}
        assert listener.connections <= 21


async def test_those_go_first_whose_time_is_up_first() -> None:
    """Of two silent clients the older goes, and both of them before a shopper between two pages."""
    async with (
        listening(hello, Limits(connections=3)) as (port, listener),
        dial(port) as shopper,
        dial(port) as older,
    ):
        await shopper.send(get("/shopper"))
        await shopper.answer()
        await eventually(lambda: listener.connections == 2)
        # The event loop's clock has milliseconds.
        await asyncio.sleep(0.01)
        async with dial(port) as younger:
            await eventually(lambda: listener.connections == 3)
            async with dial(port) as first:
                assert await older.rest() == b""
                async with dial(port) as second:
                    assert await younger.rest() == b""
                    for one in (shopper, first, second):
                        await one.send(get("/still"))
                        assert (await one.answer())[1] == b"/still"


async def test_a_half_sent_head_is_nothing_under_way() -> None:
    """Whoever has sent the beginning of a head gives way too; whoever does not take an answer does not."""
    big = Limits(connections=2, high_water=10_000, low_water=1000)

    def answer(exchange: Exchange) -> None:
        exchange.respond(200, b"", b"x" * (8 * MEBIBYTE))

    async with listening(answer, big) as (port, listener), dial(port) as reader, dial(port) as half:
        await reader.send(get())
        await reader.head()
        await half.send(get()[:-3])
        await eventually(lambda: listener.connections == 2)
        async with dial(port):
            assert await half.rest() == b""
            await eventually(lambda: listener.connections == 2)
            assert len(await reader.exactly(8 * MEBIBYTE)) == 8 * MEBIBYTE


async def test_what_holds_for_sockets_holds_for_tls(tmp_path: Path) -> None:
    """Over TLS too the silent give way, the idle are closed, and a large answer arrives whole if slowly."""
    server, client_context = tls_contexts(tmp_path)
    limits = Limits(connections=2, keepalive_timeout=0.5, body_idle_timeout=1.0)

    def answer(exchange: Exchange) -> None:
        exchange.respond(200, b"", b"x" * (24 * MEBIBYTE))

    async with (
        listening(answer, limits, server) as (port, listener),
        dial(port, client_context) as silent,
        dial(port, client_context) as reader,
    ):
        await reader.send(get())
        await reader.head()
        await eventually(lambda: listener.connections == 2)
        async with dial(port, client_context):
            assert await silent.rest() == b""
            for _ in range(96):
                assert len(await reader.exactly(MEBIBYTE // 4)) == MEBIBYTE // 4
                await asyncio.sleep(0.01)
            assert await reader.rest() == b""


async def test_looking_in_vain_is_not_repeated_at_once() -> None:
    """Where everybody is busy, a flood of newcomers does not make each of them look at everybody."""
    waiting: list[Exchange] = []
    async with (
        listening(waiting.append, Limits(connections=200)) as (port, listener),
        AsyncExitStack() as stack,
    ):
        for _ in range(200):
            await (await stack.enter_async_context(dial(port))).send(get())
        await eventually(lambda: len(waiting) == 200)
        refused = [await stack.enter_async_context(dial(port)) for _ in range(50)]
        for one in refused:
            assert (await one.rest()).startswith(b"HTTP/1.1 503 ")
        assert listener.refusals == {503: 50}


async def test_a_compressed_answer_passes_as_bytes() -> None:
    """What would unpack to a gibibyte is passed on packed."""
    bomb = gzip.compress(b"\0" * (64 * MEBIBYTE))
    say = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb
    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get("/", "Accept-Encoding: gzip"))
        assert (await client.answer())[1] == bomb


async def test_a_compressed_upload_passes_as_bytes() -> None:
    """A body is as long as it was sent, however large it would be unpacked."""
    bomb = gzip.compress(b"\0" * (64 * MEBIBYTE))

    async def echo(wire: Wire, _head: bytes) -> None:
        body = await wire.exactly(len(bomb))
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(bomb) + body)

    async with storefront(echo) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(post(bomb, "Content-Encoding: gzip"))
        assert (await client.answer())[1] == bomb


def test_nothing_is_ever_unpacked() -> None:
    """No module unpacks anything, neither server nor supervisor by itself; the demo's crowd are browsers."""
    packing = r"gzip\.(?!compress\b)|zlib\.(?!crc32|compressobj|[A-Z])|brotli|zstd|lzma|bz2|decompress"
    for path in modules():
        text = path.read_text()
        takers = len(re.findall(r"AppRunner\(|UnixConnector\(", text))
        assert takers == text.count("auto_decompress=False"), path.name
        assert not re.findall(packing, text.replace("auto_decompress=False", "")), path.name


async def test_bytes_of_a_head_one_at_a_time_cost_little() -> None:
    """The longest head byte by byte is read in a moment, and refused if it grows too long."""
    limits = Limits(head_bytes=8000)
    async with listening(hello, limits) as (port, _), dial(port) as client, asyncio.timeout(20):
        raw = get("/", "X: " + "a" * 9000)
        sending = asyncio.create_task(client.send(*(raw[at : at + 1] for at in range(len(raw)))))
        assert (await client.rest()).startswith(b"HTTP/1.1 431 ")
        sending.cancel()


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"X"], ids=["lines", "a line"])
async def test_header_lines_without_end_are_refused(piece: bytes) -> None:
    """However they come, they are never more than the limit in memory, and then nothing more is taken."""
    async with listening(hello) as (port, listener), dial(port) as client:
        await client.send(get()[:-2])
        flooding = asyncio.create_task(drip(client, piece * 50, 0, 100_000))
        assert (await client.rest()).startswith(b"HTTP/1.1 431 ")
        for connection in listener.sweep.members:
            assert isinstance(connection, Connection)
            assert (connection._lingering, connection._buffer) == (True, b"")
        flooding.cancel()


async def test_requests_without_end_and_nobody_reading_are_held() -> None:
    """A pipeline whose answers nobody takes is not read on, and ends when its time is up."""
    say = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    limits = Limits(body_idle_timeout=1.0, keepalive_timeout=1.0)
    async with (
        storefront(say) as shop,
        gate(shop.url, limits=limits, origin=OriginLimits(connections=2)) as front,
        dial(front.port) as client,
    ):
        cast("asyncio.Transport", client.writer.transport).pause_reading()
        flooding = asyncio.create_task(drip(client, get() * 100, 0, 10_000))
        await eventually(lambda: front.listener.connections == 1)
        (connection,) = front.listener.sweep.members
        assert isinstance(connection, Connection)
        await eventually(lambda: connection._choked)
        assert len(connection._buffer) < MEBIBYTE
        assert connection._transport.get_write_buffer_size() < MEBIBYTE
        await eventually(lambda: front.listener.connections == 0, 10)
        assert len(shop.heads) < 1000
        flooding.cancel()


async def test_who_sends_on_and_does_not_read_holds_no_storefront() -> None:
    """More requests behind an answer do not prolong the time in which it has to be taken."""
    size = 30 * MEBIBYTE
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size
    limits = Limits(body_idle_timeout=0.3)
    async with storefront(big) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        cast("asyncio.Transport", client.writer.transport).pause_reading()
        flooding = asyncio.create_task(drip(client, get() * 100, 0, 10_000))
        await eventually(lambda: len(shop.heads) == 1)
        await eventually(lambda: shop.closed == 1, 20)
        assert front.outcomes[0].failure is Failure.GONE
        flooding.cancel()
