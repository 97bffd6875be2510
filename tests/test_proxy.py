import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.wire import (
    OK,
    Outcome,
    Storefront,
    Wire,
    dial,
    gate,
    get,
    post,
    storefront,
    tls_contexts,
    unchunked,
)
from waitingroom.heads import ResponseHead, parse_head
from waitingroom.http1 import Limits
from waitingroom.proxy import Failure, OriginLimits, outbound_head
from waitingroom.upstream import Pool

MEBIBYTE = 1 << 20


async def test_connections_are_kept_on_both_sides() -> None:
    """Many requests of one shopper take one connection to the origin."""
    async with storefront(OK) as shop, gate(shop.url) as front, dial(front.port) as client:
        for number in range(20):
            await client.send(get(f"/{number}"))
            assert (await client.answer())[1] == b"ok"
        assert (shop.opened, len(shop.heads)) == (1, 20)


async def test_the_origin_is_never_asked_by_more_connections_than_allowed() -> None:
    """Requests beyond the bound wait in line and are served in order."""
    gates: list[asyncio.Event] = []
    served: list[bytes] = []

    async def wait(wire: Wire, head: bytes) -> None:
        served.append(head.split(b" ")[1])
        gates.append(asyncio.Event())
        await gates[-1].wait()
        await wire.send(OK)

    async with storefront(wait) as shop, gate(shop.url, origin=OriginLimits(connections=2)) as front:
        clients = [await asyncio.open_connection("127.0.0.1", front.port) for _ in range(6)]
        for number, (_, writer) in enumerate(clients):
            writer.write(get(f"/{number}"))
            waiting = max(0, number - 1)
            await eventually(lambda: len(gates) + len(front.upstream.pool.line) == number + 1)  # noqa: B023 - awaited at once
            assert len(front.upstream.pool.line) == waiting
        for number in range(6):
            await eventually(lambda: len(gates) > number)  # noqa: B023 - awaited at once
            gates[number].set()
        for reader, writer in clients:
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()
        assert shop.opened == 2
        assert sorted(served[:2]) == [b"/0", b"/1"]
        assert served[2:] == [b"/2", b"/3", b"/4", b"/5"]


async def test_a_line_that_does_not_move_is_answered_503() -> None:
    """Waiting for a connection has a deadline, the line a length."""
    limits = OriginLimits(connections=1, line=1, line_timeout=0.2)
    async with storefront(None) as shop, gate(shop.url, origin=limits) as front:  # noqa: SIM117 - too wide
        async with dial(front.port) as first, dial(front.port) as second, dial(front.port) as third:
            await first.send(get("/1"))
            await eventually(lambda: len(shop.heads) == 1)
            await second.send(get("/2"))
            await eventually(lambda: len(front.upstream.pool.line) == 1)
            await third.send(get("/3"))
            assert (await third.answer())[0].status == 503
            assert (await second.answer())[0].status == 503
            assert [outcome.failure for outcome in front.outcomes] == [Failure.BUSY, Failure.BUSY]
            assert len(shop.heads) == 1


async def test_someone_who_leaves_the_line_is_not_served() -> None:
    """A shopper who gives up while in line costs the origin nothing."""
    async with storefront(None) as shop, gate(shop.url, origin=OriginLimits(connections=1)) as front:
        async with dial(front.port) as first, dial(front.port) as second:
            await first.send(get("/1"))
            await eventually(lambda: len(shop.heads) == 1)
            await second.send(get("/2"))
            await eventually(lambda: len(front.upstream.pool.line) == 1)
            second.reset()
            await eventually(lambda: len(front.upstream.pool.line) == 0)
        await eventually(lambda: shop.closed == 1)
        assert len(shop.heads) == 1


ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n", b"abc"),
    "until close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", b"abc"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", b""),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, b"ok"),
}  # fmt: skip


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(("answer", "body"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_framing_of_an_answer_passes(answer: bytes, body: bytes, cut: int) -> None:
    """However the origin frames its answer and the network cuts it, the shopper gets it and may ask again."""

    async def say(wire: Wire, _head: bytes) -> None:
        await wire.send(*(answer[at : at + cut] for at in range(0, len(answer), cut)))
        if b"close" in answer or b"HTTP/1.0" in answer:
            wire.close()

    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        for _ in range(2):
            await client.send(get())
            if b" 103 " in answer:
                assert await client.head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            assert (await client.answer())[1] == body


async def test_head_answers_keep_the_connection() -> None:
    """The length in an answer to HEAD announces no body."""
    say = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        for _ in range(2):
            await client.send(get().replace(b"GET", b"HEAD"))
            assert (await client.answer(b"HEAD"))[0].get(b"content-length") == b"99"
        assert shop.opened == 1


async def test_old_clients_get_no_chunks() -> None:
    """A chunked answer to HTTP/1.0 is sent bare and ends with the connection."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with storefront(chunked) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get("/", "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await client.rest()
        assert answer == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"
        assert shop.heads[0].startswith(b"GET / HTTP/1.1\r\n")


async def echo(wire: Wire, head: bytes) -> None:
    """Send the body back as it came over the wire."""
    parsed = parse_head(head)
    body = await (
        wire.until(b"\r\n\r\n") if parsed.fields.chunked else wire.exactly(parsed.fields.length or 0)
    )
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def test_request_bodies_pass_in_either_framing() -> None:
    """Length stays length, chunks stay chunks, trailers that may pass do, and the next request is clean."""
    async with storefront(echo) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(post(b"abc"))
        assert (await client.answer())[1] == b"abc"
        chunked = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: Chunked\r\nTrailer: X-Sum")
        await client.send(
            chunked, b"2;e\r\nab\r\n", b"1\r\nc\r\n", b"0\r\nX-Sum: 6\r\nCookie: wr-a=b\r\n\r\n"
        )
        body = (await client.answer())[1]
        assert unchunked(body) == b"abc"
        assert body.endswith(b"0\r\nX-Sum: 6\r\n\r\n")
        assert b"\r\nTrailer: X-Sum\r\n" in shop.heads[1]
        await client.send(post(b"again"))
        assert (await client.answer())[1] == b"again"
        assert shop.opened == 1


async def test_trailers_of_an_answer_pass() -> None:
    """A checksum behind the body arrives; a cookie behind the body does not."""
    say = (
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nX-Sum: 6\r\nSet-Cookie: a=b\r\n\r\n"
    )
    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        assert b"\r\nTrailer: X-Sum\r\n" in await client.head()
        assert await client.until(b"\r\n\r\n") == b"1\r\na\r\n0\r\nX-Sum: 6\r\n\r\n"


async def test_expectations_are_the_origins_to_meet() -> None:
    """`Expect: 100-continue` reaches the origin, its interim answer the client, and then the body flows."""

    async def encourage(wire: Wire, _head: bytes) -> None:
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await wire.exactly(3)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

    async with storefront(encourage) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(post(b"abc", "Expect: 100-continue")[:-3])
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.answer())[1] == b"abc"
        assert b"\r\nExpect: 100-continue\r\n" in shop.heads[0]


async def test_a_refused_expectation_ends_the_connection() -> None:
    """If the origin refuses before the body is sent, nothing behind it can be taken for a request."""
    no = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
    async with storefront(no) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(post(b"abc", "Expect: 100-continue")[:-3])
        assert (await client.rest()).startswith(b"HTTP/1.1 417 ")
        await eventually(lambda: shop.closed == 1)


async def test_events_are_not_buffered() -> None:
    """A server-sent event arrives before the next one exists."""
    more = asyncio.Event()

    async def stream(wire: Wire, _head: bytes) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            await wire.send(b"data: %d\n\n" % number)
            await more.wait()
            more.clear()

    async with storefront(stream) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        await client.head()
        for number in range(3):
            assert b"data: %d\n\n" % number in await client.until(b"\n\n\r\n")
            more.set()


ASKED = b"""GET /a%20b?x=%2F&y=\xc3\xa4 HTTP/1.1
Host: shop.example
X-MiXed:  spaced\x20
X-Dup: 1
X-dup: 2
X-Latin: \xe4
Cookie: wr-sale=t; basket=1;  __Host-wr-sale=p; __Secure-wr-a=q; wrong=2
Connection: keep-alive, X-Private, Host, Content-Length
X-Private: 1
Keep-Alive: 5
Proxy-Connection: x
Proxy-Authorization: y
TE: gzip, trailers
Trailer: X
Upgrade: h2c
HTTP2-Settings: z
X-Forwarded-For: 6.6.6.6
X-Forwarded-Proto: https
X-Forwarded-Host: evil
Forwarded: for=6.6.6.6
Waiting-Room: inside
Waiting-Room-Visitor: me
Cf-Waiting-Room-Command: revoke
X-Last: end

"""
PASSED = b"""GET /a%20b?x=%2F&y=\xc3\xa4 HTTP/1.1
Host: shop.example
X-MiXed:  spaced\x20
X-Dup: 1
X-dup: 2
X-Latin: \xe4
Cookie: basket=1; wrong=2
X-Last: end
X-Forwarded-For: 127.0.0.1
X-Forwarded-Proto: http
X-Forwarded-Host: shop.example
Forwarded: for=127.0.0.1;proto=http;host="shop.example"
Connection: TE
TE: trailers

"""


async def test_only_end_to_end_headers_reach_the_origin() -> None:
    """Target and other header bytes arrive as sent; what is for this hop, ours or forged does not."""
    async with storefront(OK) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(ASKED.replace(b"\n", b"\r\n"))
        assert (await client.answer())[1] == b"ok"
    assert shop.heads == [PASSED.replace(b"\n", b"\r\n")]


async def test_trusted_proxies_are_believed() -> None:
    """Behind a configured proxy the origin learns of the shopper that the proxy saw."""
    networks = (ip_network("127.0.0.0/8"),)
    async with storefront(OK) as shop, gate(shop.url, trusted=networks) as front, dial(front.port) as client:
        await client.send(get("/", "X-Forwarded-For: 6.6.6.6, 9.9.9.9", "X-Forwarded-Proto: https"))
        await client.answer()
    assert b"\r\nX-Forwarded-For: 9.9.9.9, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n" in shop.heads[0]


async def test_only_end_to_end_headers_reach_the_shopper() -> None:
    """Every Set-Cookie stays a line of its own; commands of the origin are seen by us and by nobody else."""
    say = (
        b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Raw:  \xe4 \r\nConnection: X-Hop\r\n"
        b"X-Hop: 1\r\nKeep-Alive: 9\r\nWaiting-Room-Command: revoke\r\ncf-waiting-room-command: x\r\n"
        b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok"
    )
    seen: list[bytes | None] = []

    def note(head: ResponseHead) -> bytes:
        seen.append(head.get(b"waiting-room-command"))
        return b"Set-Cookie: wr-a=b\r\n"

    async with storefront(say) as shop, gate(shop.url, on_head=note) as front, dial(front.port) as client:
        await client.send(get())
        assert await client.head() == (
            b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Raw:  \xe4 \r\n"
            b"Content-Encoding: br\r\nContent-Length: 2\r\nSet-Cookie: wr-a=b\r\n\r\n"
        )
    assert seen == [b"revoke"]


def test_host_is_kept_or_taken_from_the_target() -> None:
    """One Host reaches the origin: the shopper's, or that of an absolute target."""
    plain = parse_head(get("/p"))
    assert outbound_head(plain) == get("/p")
    absolute = parse_head(get("http://other.example/p?q"))
    assert outbound_head(absolute) == b"GET /p?q HTTP/1.1\r\nHost: other.example\r\n\r\n"


def test_cookies_of_ours_alone_leave_no_empty_line() -> None:
    """A request that carried nothing but our cookies reaches the origin without a Cookie header."""
    head = parse_head(get("/", "Cookie: wr-a=b", "cookie: x=y; wr-a=b"))
    assert outbound_head(head, strip_cookies=(b"wr-",)) == get("/", "Cookie: x=y")


async def test_a_slow_shopper_leaves_a_sound_connection_behind() -> None:
    """Once a large answer is taken at last, the connection that brought it serves the next request."""
    size = 3 * MEBIBYTE
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size
    limits = Limits(high_water=1000, low_water=100)
    async with storefront(big) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        for _ in range(5):
            await client.send(get())
            assert len((await client.answer())[1]) == size
        assert shop.opened == 1
        assert [outcome.sent for outcome in front.outcomes] == [size] * 5


async def test_a_shopper_who_takes_nothing_is_cut() -> None:
    """An answer that nobody reads does not hold memory or the origin for ever."""
    size = 30 * MEBIBYTE
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size
    limits = Limits(body_idle_timeout=0.2)
    async with storefront(big) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        await client.send(get())
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes[0].failure is Failure.GONE


async def test_a_shopper_who_leaves_is_not_worked_for() -> None:
    """The origin sees its connection end, before the answer and in the middle of it."""

    async def stall(wire: Wire, head: bytes) -> None:
        if b"/begun" in head:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
        await wire.rest()

    async with storefront(stall) as shop, gate(shop.url) as front:
        for path in ("/silent", "/begun"):
            async with dial(front.port) as client:
                await client.send(get(path))
                await eventually(lambda: len(shop.heads) == shop.closed + 1)
                if path == "/begun":
                    await client.until(b"abc")
            await eventually(lambda: len(shop.heads) == shop.closed)
    assert [(outcome.status, outcome.failure) for outcome in front.outcomes] == [(499, Failure.GONE)] * 2


async def test_origins_may_speak_tls(tmp_path: Path) -> None:
    """An https origin is reached if its certificate is good for its address, and is 502 otherwise."""
    server, client_context = tls_contexts(tmp_path)
    async with storefront(OK, server) as shop:
        async with gate(shop.url, context=client_context) as front, dial(front.port) as client:
            for _ in range(2):
                await client.send(get())
                assert (await client.answer())[1] == b"ok"
            assert shop.opened == 1
        async with gate(shop.url) as front, dial(front.port) as client:
            await client.send(get())
            assert (await client.answer())[0].status == 502


async def test_origins_may_listen_on_a_unix_socket(tmp_path: Path) -> None:
    """A storefront on the same machine needs no port."""
    shop = Storefront(lambda wire, _head: wire.send(OK))
    server = await asyncio.start_unix_server(shop.accept, tmp_path / "shop.sock")
    async with gate(f"unix://{tmp_path}/shop.sock") as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.answer())[1] == b"ok"
    server.close()
    await shop.stop()


def test_an_origin_needs_an_address() -> None:
    """What names no origin is refused at once."""
    for url in ("shop.example", "ftp://shop.example", "http://", "unix://"):
        with pytest.raises(ValueError, match="not the address of an origin"):
            Pool(url, OriginLimits())


async def test_an_origin_that_is_not_there_is_502(free_port: Callable[[], int]) -> None:
    """A refused connection is answered at once, and the shopper may ask again."""
    async with gate(f"http://127.0.0.1:{free_port()}") as front, dial(front.port) as client:
        for _ in range(2):
            await client.send(get())
            assert (await client.answer())[0].status == 502
        assert [outcome.failure for outcome in front.outcomes] == [Failure.CONNECT] * 2


async def test_an_origin_that_does_not_accept_is_504() -> None:
    """Connecting has a time-out."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with gate(url, origin=OriginLimits(connect_timeout=0.2)) as front, dial(front.port) as client:
            await client.send(get())
            assert (await client.answer())[0].status == 504
            assert front.outcomes[0].failure is Failure.CONNECT_TIMEOUT


HASTY = OriginLimits(first_byte_timeout=0.2, idle_timeout=0.2)


async def test_an_origin_that_says_nothing_is_504() -> None:
    """The first byte has a time-out; the connection is not used again."""
    async with storefront(None) as shop, gate(shop.url, origin=HASTY) as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.answer())[0].status == 504
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes == [Outcome(504, None, 0, Failure.FIRST_BYTE_TIMEOUT)]


async def test_an_origin_that_stops_in_the_middle_is_cut() -> None:
    """A shopper never takes half an answer for a whole one."""

    async def stop(wire: Wire, _head: bytes) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await wire.rest()

    async with storefront(stop) as shop, gate(shop.url, origin=HASTY) as front, dial(front.port) as client:
        await client.send(get())
        answer = await client.rest()
        assert answer.endswith(b"abc\r\n")
        assert front.outcomes[0].failure is Failure.IDLE_TIMEOUT


async def test_an_origin_that_hangs_up_at_once_is_502() -> None:
    """A connection that is gone as soon as it is made holds nobody."""
    server = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with gate(url) as front, dial(front.port) as client:
        for _ in range(20):
            await client.send(get())
            assert (await client.answer())[0].status == 502
    server.close()


async def test_an_origin_with_an_impossible_name_is_502() -> None:
    """A name that cannot be looked up is answered like one that is not there."""
    async with gate("http://a..b") as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.answer())[0].status == 502


@pytest.mark.parametrize("say", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"], ids=["silent", "half a head"])
async def test_an_origin_that_hangs_up_is_502(say: bytes) -> None:
    """A fresh connection that closes without an answer is not tried again."""

    async def hang_up(wire: Wire, _head: bytes) -> None:
        await wire.send(say)
        wire.close()

    async with storefront(hang_up) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.answer())[0].status == 502
        assert (shop.opened, front.outcomes[0].failure) == (1, Failure.RESET)


async def test_a_truncated_answer_is_cut() -> None:
    """An answer shorter than announced ends in a broken connection, not in a shorter answer."""

    async def stop(wire: Wire, _head: bytes) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        wire.close()

    async with storefront(stop) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.rest()).endswith(b"abc")
        assert front.outcomes[0].failure is Failure.RESET


@pytest.mark.parametrize(
    ("request_bytes", "status", "opened"), [(get(), 200, 2), (post(b"abc"), 502, 1), (post(b""), 502, 1)]
)
async def test_stale_connections_are_tried_again_where_that_is_safe(
    request_bytes: bytes, status: int, opened: int
) -> None:
    """A kept connection that closes just as it is used costs a GET nothing, and is never a second POST."""
    posted = 0

    async def once(wire: Wire, head: bytes) -> None:
        nonlocal posted
        posted += head.startswith(b"POST")
        if len(shop.heads) == 2:
            wire.close()
        else:
            await wire.send(OK)

    async with storefront(once) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        await client.answer()
        await client.send(request_bytes)
        assert (await client.answer())[0].status == status
        assert shop.opened == opened
        assert posted <= 1


BROKEN = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "length list": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "other coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2": b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "not HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "unasked upgrade": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_malformed_answers_are_502(answer: bytes) -> None:
    """An answer that could be read in two ways is not passed on, and its connection not used again."""
    async with storefront(answer) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        assert (await client.answer())[0].status == 502
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes[0].failure is Failure.MALFORMED


async def test_bytes_behind_an_answer_poison_nobody() -> None:
    """What an origin sends beyond its answer is never taken for the answer to somebody else."""
    say = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        for opened in (1, 2):
            await client.send(get())
            assert (await client.answer())[1] == b"ok"
            assert shop.opened == opened


async def test_late_bytes_behind_an_answer_poison_nobody() -> None:
    """A connection at rest that speaks unasked is closed."""
    later = asyncio.Event()

    async def mutter(wire: Wire, _head: bytes) -> None:
        await wire.send(OK)
        await later.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    async with storefront(mutter) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(get())
        await client.answer()
        later.set()
        await eventually(lambda: shop.closed == 1)
        await client.send(get())
        assert (await client.answer())[1] == b"ok"


async def test_broken_request_chunks_complete_nothing() -> None:
    """When a chunked upload breaks the grammar, the origin sees an unfinished request and the client 400."""
    async with storefront(None) as shop, gate(shop.url) as front, dial(front.port) as client:
        request = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        await client.send(request + b"1\r\na\r\n")
        await eventually(lambda: len(shop.heads) == 1)
        await client.send(b"+1\r\nb\r\n0\r\n\r\n" + get("/evil"))
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        await eventually(lambda: shop.closed == 1)
        assert len(shop.heads) == 1


async def test_an_early_answer_to_an_upload_arrives() -> None:
    """An origin may refuse while the body still comes; the connections are not used for another request."""
    say = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    async with storefront(say) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(post(b"a" * MEBIBYTE)[:-100_000])
        assert (await client.rest()).startswith(b"HTTP/1.1 413 Too Large\r\n")
        await eventually(lambda: shop.closed == 1)


async def test_uploads_that_stop_are_cut() -> None:
    """A client that goes silent in the middle of its body does not hold a connection to the origin."""
    limits = Limits(body_idle_timeout=0.2)
    async with storefront(None) as shop, gate(shop.url, limits=limits) as front, dial(front.port) as client:
        await client.send(post(b"abc")[:-1])
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes[0].failure is Failure.GONE
