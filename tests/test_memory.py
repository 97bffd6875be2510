"""What is remembered of requests read before changes what they cost, never what they mean."""

import asyncio
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import OK, OWN_COOKIES, dial, gate, get, storefront
from waitingroom import heads
from waitingroom.heads import BadRequestError, Memory, RequestFields, ResponseHead, parse_head, parse_response
from waitingroom.hop import inbound_head, outbound_head
from waitingroom.outbox import LARGE, Outbox, Speaker

names = st.sampled_from(
    [b"Cookie", b"cookie", b"TE", b"Upgrade", b"X-A", b"Content-Length", b"Trailer", b"Expect"]
)
values = st.sampled_from(
    [b"a=b; wr-sale=x", b"trailers", b"websocket", b"7", b"100-continue", b"", b"chunked"]
)
options = st.sampled_from([b"close", b"keep-alive", b"upgrade", b"te", b"x-a"])


def told(memory: Memory[RequestFields] | None, raw: bytes, address: str) -> tuple[Any, ...]:
    """Everything that anybody is told of a request."""
    try:
        head = parse_head(raw, memory=memory)
    except BadRequestError as error:
        return error.status, error.reason
    fields = head.fields
    sent = outbound_head(head, f"X-Forwarded-For: {address}\r\n".encode(), OWN_COOKIES)
    framing = fields.length, fields.chunked, fields.has_body, fields.keep_alive, fields.upgrade
    return head.method, head.target, head.path, head.host, framing, fields.expects_continue, sent


@given(
    lines=st.lists(st.tuples(names, values), max_size=4),
    connection=st.lists(options, max_size=2),
    starts=st.lists(
        st.sampled_from([b"GET /", b"GET /a?b", b"OPTIONS *", b"GET http://x.example/y", b"CONNECT a:1"])
    ),
    minor=st.sampled_from([b"0", b"1"]),
)
def test_a_request_read_before_means_the_same(
    lines: list[tuple[bytes, bytes]], connection: list[bytes], starts: list[bytes], minor: bytes
) -> None:
    """For any lines, whatever came before: all that is derived is as if nothing were remembered."""
    rest = b" HTTP/1." + minor + b"\r\nHost: shop.example\r\n"
    rest += b"".join(b"%b: %b\r\n" % line for line in lines)
    rest += b"Connection: %b\r\n\r\n" % b", ".join(connection)
    memory: Memory[RequestFields] = Memory()
    for number, start in enumerate(starts * 3):
        address = f"192.0.2.{number % 2}"
        assert told(memory, start + rest, address) == told(None, start + rest, address)


def test_a_line_named_twice_is_taken_out_once() -> None:
    """Connection may name the same line any number of times."""
    head = parse_head(get("/", "X-A: 1", "Connection: x-a, x-a, X-A", "X-B: 2"))
    assert outbound_head(head) == get("/", "X-B: 2")


def test_lines_that_come_again_are_read_once() -> None:
    """From their third coming on lines are recognised by their bytes, under any method and target."""
    memory: Memory[RequestFields] = Memory()
    first, second, third, fourth = (
        parse_head(get(path), memory=memory).fields for path in ("/", "/a", "/b?c", "/")
    )
    assert first is not second
    assert second is third is fourth


def test_what_is_refused_is_refused_again() -> None:
    """A malformed head leaves nothing behind."""
    memory: Memory[RequestFields] = Memory()
    for _ in range(3):
        with pytest.raises(BadRequestError):
            parse_head(get("/", "Content-Length: 1", "Content-Length: 2"), memory=memory)


def test_answers_are_remembered_by_their_bytes_but_not_those_to_head() -> None:
    """The answer to a HEAD has no body, though its bytes are those of one that has."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    memory: Memory[ResponseHead] = Memory()
    lengths = [
        parse_response(raw, method, memory).length for method in (b"GET", b"HEAD", b"GET", b"HEAD", b"GET")
    ]
    assert lengths == [5, 0, 5, 0, 5]
    plain = parse_response(raw, b"GET", memory)
    assert inbound_head(plain, chunked=True).endswith(b"Transfer-Encoding: chunked\r\n")
    assert inbound_head(plain) == raw[:-2]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest lines are forgotten first, long ones and those that never come again are not kept at all."""
    monkeypatch.setattr(heads, "MOST_KEPT", 20_000)
    memory: Memory[RequestFields] = Memory()

    def meet(*lines: str) -> RequestFields:
        return [parse_head(get("/", *lines), memory=memory).fields for _ in range(3)][-1]

    for number in range(50):
        meet(f"X-A: {number:04}")
    for number in range(50, 60):
        parse_head(get("/", f"X-A: {number:04}"), memory=memory)
    meet("X-A: " + "a" * 5000)
    kept = [number for number in range(60) if memory.get(get("/", f"X-A: {number:04}")[5:]) is not None]
    assert kept == list(range(50 - len(kept), 50))
    assert len(kept) == 20_000 // (len(get("/", "X-A: 0000")[5:]) + heads.DERIVED)


async def test_shoppers_with_equal_browsers_are_told_apart() -> None:
    """The origin learns each one's own address, though all else they send is the same, byte for byte."""
    networks = (ip_network("127.0.0.0/8"),)
    async with storefront(OK) as shop, gate(shop.url) as front, gate(shop.url, trusted=networks) as behind:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"):
            for port in (front.port, front.port, behind.port):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
                writer.write(get() + get())
                await reader.readuntil(b"\r\n\r\nok")
                await reader.readuntil(b"\r\n\r\nok")
                writer.close()
                assert all(f"X-Forwarded-For: {source}\r\n".encode() in head for head in shop.heads)
                shop.heads.clear()


async def test_an_answer_that_comes_again_is_sent_again() -> None:
    """Answers with the same head and different bodies keep their own."""
    bodies = iter([b"one", b"two", b"six", b"ten"])

    async def answer(wire: Any, _head: bytes) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + next(bodies))

    async with storefront(answer) as shop, gate(shop.url) as front, dial(front.port) as client:
        got = []
        for _ in range(4):
            await client.send(get())
            got.append((await client.answer())[1])
        assert got == [b"one", b"two", b"six", b"ten"]


class Peer(asyncio.Protocol):
    """A connection that only speaks."""

    def __init__(self) -> None:
        self.speaker = Speaker(Outbox())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.speaker.connected(transport, 1 << 20, 1 << 10)


async def spoken(*pieces: bytes | memoryview, ending: str) -> bytes:
    """What arrives of what somebody says in one turn, and then ends."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        try:
            while piece := await reader.read(1 << 16):
                data += piece
        except ConnectionError:
            pass
        heard.set_result(data)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, peer = await asyncio.get_running_loop().create_connection(Peer, "127.0.0.1", port)
    for piece in pieces:
        peer.speaker.write(piece)
    getattr(peer.speaker, ending)()
    data = await asyncio.wait_for(heard, 5)
    server.close()
    return data


@pytest.mark.parametrize("ending", ["close", "half_close"])
async def test_what_was_said_before_the_end_arrives(ending: str) -> None:
    """Small pieces wait for the end of the turn, large ones do not; all arrive, in order, before the end."""
    large = b"b" * (LARGE + 1)
    said: list[bytes | memoryview] = [b"a", large, b"c", b"", b"d", memoryview(large)[1:], b"e"]
    assert await spoken(*said, ending=ending) == b"".join(said)


async def test_what_waits_is_dropped_when_broken_off() -> None:
    """Breaking off drops what was not yet sent, so that nobody takes a piece for a whole."""
    assert await spoken(b"half an answer", ending="abort") == b""
