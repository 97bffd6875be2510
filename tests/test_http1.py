import asyncio
import contextlib
import socket
import ssl
from ipaddress import ip_network
from pathlib import Path
from random import Random
from types import SimpleNamespace

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import eventually
from tests.wire import dial, get, listening, post, tls_contexts
from waitingroom.bodies import Chunked
from waitingroom.exchange import Exchange, header_lines
from waitingroom.forwarded import client_of, forwarding_lines
from waitingroom.heads import BadRequestError, parse_head
from waitingroom.http1 import Connection, Limits


def hello(exchange: Exchange) -> None:
    """Answer with the path that was asked for."""
    exchange.respond(200, b"Content-Type: text/plain\r\n", exchange.head.path)


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    """A request head of these lines."""
    return b"\r\n".join([start, *lines, b"", b""])


SHOP = b"shop.example"
HOST = b"Host: " + SHOP

SMUGGLED = {
    "both lengths": head(HOST, b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "two lengths": head(HOST, b"Content-Length: 3", b"Content-Length: 4"),
    "two equal lengths": head(HOST, b"Content-Length: 3", b"Content-Length: 3"),
    "length with plus": head(HOST, b"Content-Length: +1"),
    "negative length": head(HOST, b"Content-Length: -1"),
    "hexadecimal length": head(HOST, b"Content-Length: 0x1"),
    "length list": head(HOST, b"Content-Length: 1,1"),
    "length with space": head(HOST, b"Content-Length: 1 1"),
    "length with tab": head(HOST, b"Content-Length:\t1"),
    "huge length": head(HOST, b"Content-Length: 99999999999999999999"),
    "empty length": head(HOST, b"Content-Length: "),
    "length in other digits": head(HOST, b"Content-Length: \xd9\xa1"),
    "chunked twice": head(HOST, b"Transfer-Encoding: chunked, chunked"),
    "chunked on two lines": head(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "gzip and chunked": head(HOST, b"Transfer-Encoding: gzip, chunked"),
    "xchunked": head(HOST, b"Transfer-Encoding: xchunked"),
    "identity": head(HOST, b"Transfer-Encoding: identity"),
    "chunked behind a tab": head(HOST, b"Transfer-Encoding:\tchunked"),
    "chunked with garbage": head(HOST, b"Transfer-Encoding: chunked;q=1"),
    "chunked with vertical tab": head(HOST, b"Transfer-Encoding: \x0bchunked"),
    "empty coding": head(HOST, b"Transfer-Encoding: "),
    "chunked in HTTP/1.0": head(HOST, b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
    "bare line feed": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare line feeds throughout": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare carriage return": b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    "space before the colon": head(HOST, b"Content-Length : 3"),
    "folded line": head(HOST, b"X: a", b" b"),
    "folded first line": head(b" X: a", HOST),
    "NUL in a value": head(HOST, b"X: a\0b"),
    "control character": head(HOST, b"X: a\x01b"),
    "delete character": head(HOST, b"X: a\x7fb"),
    "NUL in a name": head(HOST, b"X\0: a"),
    "empty name": head(HOST, b": a"),
    "line without colon": head(HOST, b"nonsense"),
    "non-ASCII name": head(HOST, b"X-\xe4: a"),
    "no Host": head(b"X: a"),
    "two Hosts": head(HOST, HOST),
    "Host with path": head(b"Host: a/b"),
    "Host with user": head(b"Host: a@b"),
    "Host with space": head(b"Host: a b"),
    "empty Host": head(b"Host:"),
    "two spaces in the request line": head(HOST, start=b"GET  / HTTP/1.1"),
    "tab in the request line": head(HOST, start=b"GET\t/ HTTP/1.1"),
    "space in the target": head(HOST, start=b"GET /a b HTTP/1.1"),
    "control character in the target": head(HOST, start=b"GET /\x01 HTTP/1.1"),
    "relative target": head(HOST, start=b"GET a HTTP/1.1"),
    "asterisk for GET": head(HOST, start=b"GET * HTTP/1.1"),
    "other scheme": head(HOST, start=b"GET ftp://a/ HTTP/1.1"),
    "user in the target": head(HOST, start=b"GET http://u@a/ HTTP/1.1"),
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": head(HOST, start=b"GET / HTTP/1.2"),
    "lower-case version": head(HOST, start=b"GET / http/1.1"),
    "empty line first": b"\r\n" + head(HOST),
    "no request line": head(HOST, start=b""),
}


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_ambiguous_requests_never_reach_the_handler(request_bytes: bytes) -> None:
    """What two readers could read in two ways is answered 400, the connection closes, nobody acts on it."""
    served: list[Exchange] = []
    async with listening(served.append) as (port, listener), dial(port) as client:
        await client.send(request_bytes + get("/smuggled"))
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert served == []
    assert listener.refusals[400] == 1


async def test_connect_is_refused() -> None:
    """Nobody gets an open proxy."""
    async with listening(hello) as (port, _), dial(port) as client:
        await client.send(head(HOST, start=b"CONNECT shop.example:443 HTTP/1.1"))
        assert (await client.rest()).startswith(b"HTTP/1.1 405 ")


BAD_CHUNKS = {
    "plus": b"+1\r\na\r\n0\r\n\r\n",
    "prefix": b"0x1\r\na\r\n0\r\n\r\n",
    "space before": b" 1\r\na\r\n0\r\n\r\n",
    "space behind": b"1 \r\na\r\n0\r\n\r\n",
    "overflow": b"fffffffffffffffff\r\na",
    "no size": b"\r\na\r\n0\r\n\r\n",
    "negative": b"-1\r\na\r\n0\r\n\r\n",
    "bare line feed": b"1\na\r\n0\r\n\r\n",
    "bare line feed behind data": b"1\r\na\n0\r\n\r\n",
    "longer than said": b"1\r\nab\r\n0\r\n\r\n",
    "line feed in extension": b"1;a\nb\r\na\r\n0\r\n\r\n",
    "control character in extension": b"1;a=\x01\r\na\r\n0\r\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "length as trailer": b"0\r\nContent-Length: 3\r\n\r\n",
    "bare end": b"0\r\n\n",
}


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_chunks_outside_the_grammar_are_refused(body: bytes) -> None:
    """A chunk is read in one way or not at all."""
    with pytest.raises(httptools.HttpParserError):
        Chunked().feed(body)


def test_endless_chunk_overhead_is_refused() -> None:
    """Extensions or trailers that never end do not go on for ever."""
    body = Chunked()
    body.feed(b"1;")
    for _ in range(15):
        body.feed(b"a" * 4096)
    with pytest.raises(httptools.HttpParserError):
        body.feed(b"a" * 8192)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.binary(max_size=10),
    st.randoms(use_true_random=False),
)
def test_chunked_bodies_survive_any_cut(chunks: list[bytes], behind: bytes, random: Random) -> None:
    """However the network cuts a chunked body, the body, its trailers and its end are found."""
    wire = b"".join(b"%x;e=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    wire += b"0\r\nA: b\r\nC: d\r\n\r\n" + behind
    body = Chunked()
    got = rest = b""
    while wire:
        cut = random.randint(1, 9)
        piece, wire = wire[:cut], wire[cut:]
        if body.done:
            rest += piece
        else:
            data, left = body.feed(piece)
            got += data
            rest += left
    assert body.done
    assert (got, rest, body.trailers) == (b"".join(chunks), behind, b"A: b\r\nC: d\r\n")


PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n", b"transfer-encoding", b"Connection: close\r\n", b"X: y\r\n", b": ",
        b" ", b"\t", b"\r\n", b"\n", b"\r", b"\0", b"\xe4", b",", b"chunked", b"3", b"\x0b", b"HTTP/1.0",
    ]
)  # fmt: skip


@given(st.lists(PARTS, max_size=8).map(b"".join))
def test_what_is_accepted_is_accepted_by_llhttp(middle: bytes) -> None:
    """No head passes here that another strict parser refuses or frames differently."""
    raw = b"POST / HTTP/1.1\r\nHost: shop.example\r\n" + middle + b"\r\n"
    end = raw.find(b"\r\n\r\n") + 4
    try:
        parsed = parse_head(raw[:end])
    except BadRequestError:
        return
    complete: list[bool] = []
    witness = SimpleNamespace(on_message_complete=lambda: complete.append(True))
    httptools.HttpRequestParser(witness).feed_data(raw[:end])
    assert bool(complete) is not parsed.fields.has_body


def test_header_bytes_are_found_by_name() -> None:
    """Values come as sent, in order, never folded; names are found in any case."""
    parsed = parse_head(head(HOST, b"X-A:  one ", b"x-a: \xe4", b"X-Ab: no"))
    assert parsed.get(b"x-a") == b"one"
    assert parsed.fields.get_all(b"x-a") == [b"one", b"\xe4"]
    assert parsed.get(b"x") is None
    assert (parsed.method, parsed.target, parsed.fields.minor, parsed.host) == (b"GET", b"/", 1, SHOP)


def test_absolute_targets_name_their_own_host() -> None:
    """The authority of an absolute target stands above Host (RFC 9112, 3.2.2)."""
    parsed = parse_head(head(HOST, start=b"GET http://Other.example:81?q HTTP/1.1"))
    assert (parsed.host, parsed.path) == (b"other.example:81", b"/?q")


@pytest.mark.parametrize(
    ("lines", "peer", "expected"),
    [
        ([b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-Proto: https"], "8.8.8.8", ("8.8.8.8", "http", SHOP)),
        ([b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-Proto: https"], "10.0.0.1", ("9.9.9.9", "https", SHOP)),
        ([b"X-Forwarded-For: 1.1.1.1, 9.9.9.9, 10.0.0.2"], "10.0.0.1", ("9.9.9.9", "http", SHOP)),
        ([b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 9.9.9.9:1"], "10.0.0.1", ("9.9.9.9", "http", SHOP)),
        ([b"X-Forwarded-For: 1.1.1.1, nonsense"], "10.0.0.1", ("10.0.0.1", "http", SHOP)),
        ([b"X-Forwarded-Proto: javascript"], "10.0.0.1", ("10.0.0.1", "http", SHOP)),
        ([b"X-Forwarded-Host: a b"], "10.0.0.1", ("10.0.0.1", "http", SHOP)),
        ([b"X-Forwarded-Host: www.example"], "10.0.0.1", ("10.0.0.1", "http", b"www.example")),
        ([b'Forwarded: for="[2001:db8::1]:4711";proto=https;host=www.example'], "10.0.0.1",
         ("2001:db8::1", "https", b"www.example")),
        ([b"Forwarded: for=1.1.1.1, for=9.9.9.9"], "::ffff:10.0.0.1", ("9.9.9.9", "http", SHOP)),
        ([b'X-Forwarded-For: fe80::1%";proto=https'], "10.0.0.1", ("fe80::1", "http", SHOP)),
        ([], "", ("", "http", SHOP)),
    ],
)  # fmt: skip
def test_forwarding_headers_count_from_trusted_peers_only(
    lines: list[bytes], peer: str, expected: tuple[str, str, bytes]
) -> None:
    """The chain is walked from the right, and ends at the first stranger."""
    trusted = (ip_network("10.0.0.0/8"),)
    assert client_of(parse_head(head(HOST, *lines)), peer, trusted) == expected


def test_the_origin_is_told_who_asked() -> None:
    """Both families of forwarding headers say the same; an IPv6 address is quoted."""
    client = client_of(parse_head(head(HOST)), "::1", ())
    assert forwarding_lines(client, "::1") == (
        b"X-Forwarded-For: ::1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: shop.example\r\n"
        b'Forwarded: for="[::1]";proto=http;host="shop.example"\r\n'
    )


async def test_pipelined_requests_are_answered_in_order() -> None:
    """The next request is served only when the last one is answered, however late that is."""
    waiting: list[Exchange] = []
    async with listening(waiting.append) as (port, _), dial(port) as client:
        await client.send(get("/1") + get("/2") + get("/3"))
        for path in (b"/1", b"/2", b"/3"):
            await eventually(lambda: len(waiting) == 1)
            assert waiting[0].head.path == path
            waiting.pop().respond(200, b"", path)
            assert (await client.answer())[1] == path


async def test_thousands_of_pipelined_requests_need_no_stack() -> None:
    """A long pipeline is served in a loop, and no more is written ahead than the client reads."""
    async with listening(hello) as (port, _), dial(port) as client:
        sending = asyncio.create_task(client.send(get("/a") * 5000))
        for _ in range(5000):
            assert (await client.answer())[1] == b"/a"
        await sending


async def test_unread_answers_stop_the_pipeline() -> None:
    """A client that pipelines and never reads costs a bounded amount of memory."""
    served = 0

    def big(exchange: Exchange) -> None:
        nonlocal served
        served += 1
        exchange.respond(200, b"", b"x" * 100_000)

    async with listening(big) as (port, _), dial(port) as client:
        client.writer.write(get("/a") * 4000)
        await eventually(lambda: served > 0)
        before = -1
        while before != served:
            before = served
            await asyncio.wait_for(client.reader.read(1), 1)
        assert served < 400


async def test_head_requests_get_no_body() -> None:
    """HEAD is answered with the length of what GET would have sent."""
    async with listening(hello) as (port, _), dial(port) as client:
        await client.send(get("/abc").replace(b"GET", b"HEAD") + get("/next"))
        assert b"Content-Length: 4\r\n" in await client.head()
        assert (await client.answer())[1] == b"/next"


@pytest.mark.parametrize(
    ("lines", "version", "ending"),
    [
        ([], "1.1", b""),
        (["Connection: close"], "1.1", b"Connection: close\r\n"),
        (["Connection: foo, CLOSE"], "1.1", b"Connection: close\r\n"),
        ([], "1.0", b"Connection: close\r\n"),
        (["Connection: keep-alive"], "1.0", b"Connection: keep-alive\r\n"),
    ],
)
async def test_connections_persist_as_asked(lines: list[str], version: str, ending: bytes) -> None:
    """HTTP/1.1 persists unless told not to, HTTP/1.0 only when asked to."""
    async with listening(hello) as (port, _), dial(port) as client:
        await client.send(get("/", *lines).replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        answer, _ = await client.answer()
        assert answer.raw.endswith(b"\r\n" + ending + b"\r\n")
        if b"close" in ending:
            assert await client.rest() == b""
        else:
            await client.send(get("/again"))
            assert (await client.answer())[1] == b"/again"


async def test_small_unread_bodies_are_read_past() -> None:
    """An answer that ignores a small body keeps the connection, and the body is not the next request."""
    async with listening(hello) as (port, _), dial(port) as client:
        await client.send(post(get("/evil")))
        assert (await client.answer())[1] == b"/cart"
        request = post(get("/evil"))
        await client.send(request[:-30])
        assert (await client.answer())[1] == b"/cart"
        await client.send(request[-30:], get("/next"))
        assert (await client.answer())[1] == b"/next"


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 99999999") + b"\r\n\r\nsome",
        post(b"")[:-4].replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"\r\n\r\n3\r\nabc\r\n",
        post(b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 3\r\nExpect: 100-continue")
        + b"\r\n\r\n",
    ],
    ids=["long", "chunked", "expects 100-continue"],
)
async def test_other_unread_bodies_close_the_connection(request_bytes: bytes) -> None:
    """The answer arrives whole, says that it is the last, and nothing behind it is taken for a request."""
    served: list[bytes] = []

    def refuse(exchange: Exchange) -> None:
        served.append(exchange.head.path)
        exchange.respond(429, b"", b"later")

    async with listening(refuse) as (port, _), dial(port) as client:
        await client.send(request_bytes + get("/evil"))
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert answer.endswith(b"Connection: close\r\n\r\nlater")
    assert served == [b"/cart"]


async def test_handlers_learn_that_the_client_left() -> None:
    """An exchange whose client is gone says so, and answering it does no harm."""
    waiting: list[Exchange] = []
    async with listening(waiting.append) as (port, listener), dial(port) as client:
        await client.send(get())
        await eventually(lambda: bool(waiting))
        client.reset()
        await eventually(lambda: waiting[0].gone)
        waiting[0].respond(200, b"", b"too late")
        assert listener.connections == 0


async def test_a_failing_handler_costs_one_request(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a handler is a 500 for one shopper and a line in the log."""

    def fail(exchange: Exchange) -> None:
        raise RuntimeError(exchange.head.path)

    def answer_and_fail(exchange: Exchange) -> None:
        hello(exchange)
        fail(exchange)

    async with listening(fail) as (port, _), dial(port) as client:
        await client.send(get())
        assert (await client.rest()).startswith(b"HTTP/1.1 500 ")
    async with listening(answer_and_fail) as (port, _), dial(port) as client:
        await client.send(get())
        assert b"500" not in await client.rest()
    assert caplog.text.count("could not be handled") == 2


TIGHT = Limits(head_bytes=1000, head_fields=5, head_timeout=0.2, keepalive_timeout=0.3, body_idle_timeout=0.2)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/", "X: " + "a" * 2000), b"431"),
        (get("/")[:-2] + b"X: " + b"a" * 2000, b"431"),
        (get("/", *(f"X{n}: a" for n in range(9))), b"431"),
        (get("/")[:-2], b"408"),
    ],
    ids=["long", "long and unfinished", "many lines", "slow"],
)
async def test_heads_are_limited(request_bytes: bytes, status: bytes) -> None:
    """Too many bytes or lines are 431, too slow is 408; the connection closes."""
    async with listening(hello, TIGHT) as (port, _), dial(port) as client:
        await client.send(request_bytes)
        assert (await client.rest()).split(b" ")[1] == status


async def test_dripping_heads_do_not_extend_their_time() -> None:
    """A byte now and then does not keep a connection (slow-loris)."""
    async with listening(hello, TIGHT) as (port, _), dial(port) as client:

        async def drip() -> None:
            for byte in get("/", "X: " + "a" * 900):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()


async def test_idle_connections_close_silently() -> None:
    """Between requests a connection ends without an answer that could be taken for one."""
    async with listening(hello, TIGHT) as (port, listener), dial(port) as client:
        await client.send(get())
        await client.answer()
        assert await client.rest() == b""
        assert listener.refusals == {}


async def test_connections_are_limited() -> None:
    """The one too many is told 503 while all others are busy; when one leaves, the next may come."""
    waiting: list[Exchange] = []
    async with listening(waiting.append, Limits(connections=1)) as (port, listener):
        async with dial(port) as first:
            await first.send(get())
            await eventually(lambda: bool(waiting))
            async with dial(port) as second:
                assert (await second.rest()).startswith(b"HTTP/1.1 503 ")
        await eventually(lambda: listener.connections == 0)
        async with dial(port) as third:
            await third.send(get("/third"))
            await eventually(lambda: len(waiting) == 2)


async def test_draining_lets_requests_finish() -> None:
    """At the end idle connections close at once, busy ones with their answer."""
    waiting: list[Exchange] = []
    async with listening(waiting.append) as (port, listener), dial(port) as idle, dial(port) as busy:
        await busy.send(get())
        await eventually(lambda: bool(waiting) and listener.connections == 2)
        draining = asyncio.create_task(listener.premises.drain(5))
        assert await idle.rest() == b""
        waiting[0].respond(200, b"", b"done")
        assert (await busy.rest()).endswith(b"Connection: close\r\n\r\ndone")
        await draining
        assert listener.connections == 0


async def test_headers_cannot_be_split() -> None:
    """A line break in a header value of ours is an error, not a second header."""
    with pytest.raises(ValueError, match="line break"):
        header_lines([("Location", "/\r\nSet-Cookie: a=b")])
    assert header_lines([("A", "b"), ("C", "ä")]) == b"A: b\r\nC: \xe4\r\n"


async def test_tls_is_served(tmp_path: Path) -> None:
    """With a context the same listener speaks TLS, and exchanges know it."""

    def scheme(exchange: Exchange) -> None:
        exchange.respond(200, b"", exchange.client.scheme.encode() * 50_000)

    server, client_context = tls_contexts(tmp_path)
    async with listening(scheme, context=server) as (port, _), dial(port, client_context) as client:
        await client.send(get() + get("/", "Connection: close"))
        assert (await client.answer())[1] == b"https" * 50_000
        assert (await client.rest()).endswith(b"https")


async def test_who_sends_on_without_reading_is_not_served_on() -> None:
    """Answers that nobody reads do not pile up, however many requests came at once."""
    served = 0

    def answer(exchange: Exchange) -> None:
        nonlocal served
        served += 1
        exchange.respond(200, b"", b"x" * 8000)

    limits = Limits(high_water=100_000, low_water=10_000)
    async with listening(answer, limits) as (port, listener):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            requests = get() * 5000
            await asyncio.get_running_loop().sock_sendall(client, requests[: len(requests) // 2])
            await eventually(lambda: served > 0)
            (connection,) = listener.sweep.members
            assert isinstance(connection, Connection)
            await eventually(lambda: connection._choked)
            assert connection._transport.get_write_buffer_size() < 150_000
            assert len(connection._unsent) < 20_000
            assert served < 2500


async def test_an_answer_outruns_the_end_of_tls(tmp_path: Path) -> None:
    """Over TLS a request and the client's goodbye may come in one piece; the answer is sent all the same."""
    server, client_context = tls_contexts(tmp_path)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def answer(exchange: Exchange) -> None:
        exchange.respond(200, b"", b"x" * 8000)

    async with listening(answer, context=server) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await asyncio.wait_for(reader.read(65536), 5))
        tls.write(get())
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        writer.write(outgoing.read())
        received = b""
        while piece := await asyncio.wait_for(reader.read(65536), 5):
            received += piece
        writer.close()
        assert len(received) > 8000
