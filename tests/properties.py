"""What must hold for any bytes at all. `test_fuzz` and `make fuzz` look for bytes for which it does not.

The data path runs here as it does in the gateway, but its sockets are bytes and its clock stands still.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httptools

from tests.reference import FaultError, Message, read_answer, read_chunks, read_field, read_requests
from waitingroom.addresses import parse_origin
from waitingroom.bodies import Chunked
from waitingroom.config import ConfigError, Settings, dump_room, load_room, load_text
from waitingroom.documents import cloudflare_json, problem_json, status_json
from waitingroom.exchange import Exchange
from waitingroom.forwarded import Client, Network, client_of, forwarding_lines
from waitingroom.heads import BadRequestError, Head, ResponseHead, is_host, parse_head
from waitingroom.http1 import Listener
from waitingroom.proxy import Failure, Upstream
from waitingroom.room import Room, Status
from waitingroom.sockets import parse_address
from waitingroom.tickets import InvalidTokenError, Keyring, Token, Use, cookie_names
from waitingroom.upstream import Link
from waitingroom.visit import asked_for, cookies, plain_path, query_value, return_path

OWN_COOKIES = (b"wr-", b"__Host-wr-", b"__Secure-wr-")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
PEER = "203.0.113.7"
_ADDED = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"connection", b"te"}


def _still_loop() -> asyncio.AbstractEventLoop:
    """An event loop in which nothing happens by itself."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def refuse(_: Any, coro: Any) -> None:
        coro.close()
        raise AssertionError("nobody connects here")

    methods = {"time": lambda _: 0.0, "call_soon": nothing, "call_later": nothing, "create_task": refuse}
    return cast("asyncio.AbstractEventLoop", type("StillLoop", (asyncio.AbstractEventLoop,), methods)())


_LOOP = _still_loop()


@contextlib.contextmanager
def _still() -> Iterator[None]:
    asyncio.events._set_running_loop(_LOOP)
    try:
        yield
    finally:
        asyncio.events._set_running_loop(None)


class _Pipe:
    """A transport that keeps what it was given.

    Attributes:
        said: everything written.
        closed: nothing more is taken or given.
    """

    def __init__(self) -> None:
        self.said = b""
        self.closed = False

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return (PEER, 1) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.said += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(map(bytes, pieces)))

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close


class Path:
    """A client's connection through listener and proxy to one connection to the origin.

    Attributes:
        client, origin: what was said to either.
        outcomes: how each forwarded request ended.
    """

    def __init__(self, trusted: tuple[Network, ...] = ()) -> None:
        self.outcomes: list[tuple[int, Failure | None]] = []
        self.client, self.origin = _Pipe(), _Pipe()
        self._upstream: Upstream[Exchange] = Upstream(
            "http://origin.example", self, strip_cookies=OWN_COOKIES
        )
        self._link = Link(self._upstream.pool)
        self._link.connection_made(cast("asyncio.Transport", self.origin))
        self._upstream.pool.rest(self._link)
        self._listener = Listener(self, trusted=trusted)
        self._connection = self._listener()
        self._connection.connection_made(cast("asyncio.Transport", self.client))

    def handle(self, exchange: Exchange) -> None:
        self._upstream.forward(exchange, exchange)

    def answered(self, case: Exchange, head: ResponseHead) -> bytes:  # noqa: ARG002 - a Watcher's
        return b""

    def failed(self, case: Exchange, status: int, reason: str) -> None:
        case.respond(status, b"", reason.encode())

    def ended(
        self,
        case: Exchange,  # noqa: ARG002 - a Watcher's
        status: int,
        latency: float | None,  # noqa: ARG002 - a Watcher's
        sent: int,  # noqa: ARG002 - a Watcher's
        failure: Failure | None,
    ) -> None:
        self.outcomes.append((status, failure))

    def _turn(self) -> None:
        self._upstream.pool.outbox.flush()
        self._listener.outbox.flush()

    def ask(self, data: bytes) -> None:
        """Let the client say this."""
        if data and not self.client.closed:
            self._connection.data_received(data)
            self._turn()

    def answer(self, data: bytes) -> None:
        """Let the origin say this."""
        if data and not self.origin.closed:
            self._link.data_received(data)
            self._turn()

    def end(self) -> None:
        """Let the origin close."""
        if not self.origin.closed and not self._link.eof_received():
            self.origin.close()
            self._link.connection_lost(None)
            self._turn()

    def leave(self) -> None:
        """Let the client close."""
        self._connection.connection_lost(None)


def pieces(data: bytes, cut: int) -> list[bytes]:
    """`data` in pieces of `cut` bytes; in one for 0."""
    return [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]


def _heard(data: bytes, cut: int) -> tuple[list[Message], bool]:
    """The requests that the origin is sent for what a client says, and whether the client was refused."""
    with _still():
        path = Path()
        answered = 0
        for piece in pieces(data, cut):
            path.ask(piece)
            while answered < sum(one.body is not None for one in read_requests(path.origin.said)[0]):
                answered += 1
                path.answer(OK)
        heard, sound = read_requests(path.origin.said)
        assert sound
        complete = [one for one in heard if one.body is not None]
        assert answered == len(complete)
        refused = path.client.said.count(b"\r\nConnection: close\r\n\r\n4") > 0
        path.leave()
        return heard, refused


def check_requests(data: bytes, cut: int) -> None:
    """What a client says reaches the origin as the requests that it is, or not at all, however it is cut.

    No request appears that is not in `data` as the reference reads it; each that does has its method, body,
    target and end-to-end lines, one Host, one framing, no cookie of ours.
    """
    sent, _ = read_requests(data)
    heard, refused = _heard(data, 0)
    assert len(heard) <= len(sent)
    for ours, theirs in zip(heard, sent, strict=False):
        _check_forwarded(ours, theirs)
    again, refused_again = _heard(data, cut)
    whole = [one for one in heard if one.body is not None]
    assert [one for one in again if one.body is not None] == whole
    assert refused == refused_again


def _check_forwarded(ours: Message, theirs: Message) -> None:
    method, target, _ = theirs.start
    assert ours.start[0] == method
    assert ours.start[2] == b"HTTP/1.1"
    if target.startswith((b"/", b"*")):
        assert ours.start[1] == target
    else:
        assert target.endswith(ours.start[1]) or ours.start[1][:2] in (b"/", b"/?"), target
    assert ours.body in (theirs.body, None)
    assert len(ours.all(b"host")) == 1
    for name, value in ours.headers:
        assert name in _ADDED | {b"host", b"cookie", b"upgrade"} or (name, value) in theirs.headers, name
    for cookie in ours.all(b"cookie"):
        assert not any(pair.strip(b" \t").startswith(OWN_COOKIES) for pair in cookie.split(b";"))
    kept = [pair for line in theirs.all(b"cookie") for pair in line.split(b";")]
    strangers = [pair for pair in kept if not pair.lstrip(b" \t").startswith(OWN_COOKIES)]
    passed = [pair for line in ours.all(b"cookie") for pair in line.split(b";")]
    assert [pair.strip(b" \t") for pair in passed] == [pair.strip(b" \t") for pair in strangers]


def _told(method: bytes, data: bytes, cut: int) -> tuple[int, Failure | None, bytes]:
    """How one request ends whose origin says this and closes, and what the client gets."""
    with _still():
        path = Path()
        path.ask(method + b" / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        for piece in pieces(data, cut):
            path.answer(piece)
        path.end()
        assert len(path.outcomes) == 1
        (status, failure), said = path.outcomes[0], path.client.said
        path.leave()
        return status, failure, said


def check_answers(method: bytes, data: bytes, cut: int) -> None:
    """What the origin says reaches the client as the answer that it is, or as 502, however it is cut."""
    status, failure, said = _told(method, data, 0)
    assert (status, failure) == _told(method, data, cut)[:2]
    try:
        theirs, _ = read_answer(data, method, ended=True)
    except FaultError:
        theirs = []
    if failure is None:
        final = theirs[-1]
        ours, behind = read_answer(said, method, ended=True)
        assert behind == b""
        assert (int(final.start[1]), ours[-1].start[1], ours[-1].body) == (status, final.start[1], final.body)
        assert [one.start[1] for one in ours] == [one.start[1] for one in theirs]
        recut, _ = read_answer(_told(method, data, cut)[2], method, ended=True)
        assert recut[-1].body == final.body
    elif failure is not Failure.MALFORMED:
        assert theirs == [] or theirs[-1].body is None or theirs[-1].start[1][:1] == b"1"


def _decoded(data: bytes, cut: int) -> tuple[bytes, bytes, bytes] | str | None:
    body, got, rest = Chunked(), b"", b""
    try:
        for piece in pieces(data, cut):
            if body.done:
                rest += piece
            else:
                part, left = body.feed(piece)
                got += part
                rest += left
    except httptools.HttpParserError:
        return "fault"
    return (got, rest, body.trailers) if body.done else None


def check_chunks(data: bytes, cut: int) -> None:
    """A chunked body is what the reference says, or refused, however it is cut."""
    found = _decoded(data, 0)
    assert found == _decoded(data, cut)
    try:
        expected = read_chunks(data)
    except FaultError:
        assert not isinstance(found, tuple)
        return
    if isinstance(found, tuple):
        assert expected is not None
        got, rest, trailers = found
        lines = trailers.split(b"\r\n")
        assert lines.pop() == b""
        assert (got, rest, tuple(map(read_field, lines))) == expected
    else:
        assert expected is None or found == "fault"


RING = Keyring([b"k" * 32])
GENUINE = RING.sign(
    Token(Use.PASS, "sale", "visitor", 1_800_046_379_008, 3, 1_800_046_979_000, 1_800_046_379, 1_800_046_979)
).encode()


def check_token(data: bytes) -> None:
    """Bytes that nobody signed prove nothing; what is signed under our key is read, or refused politely."""
    if data != GENUINE:
        with contextlib.suppress(InvalidTokenError):
            raise AssertionError(RING.verify(data, "sale"))
    signed = GENUINE.partition(b".")[0] + b"." + base64.urlsafe_b64encode(data).rstrip(b"=")
    digest = hmac.digest(b"k" * 32, signed, "sha256")
    try:
        token = RING.verify(signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"="), "sale")
    except InvalidTokenError:
        return
    assert token.room == "sale"
    assert {type(token.number), type(token.epoch), type(token.end)} == {int}


def check_flip(at: int, bit: int) -> None:
    """A genuine token with one bit turned over proves nothing."""
    data = bytearray(GENUINE)
    data[at % len(data)] ^= 1 << bit % 8
    with contextlib.suppress(InvalidTokenError):
        raise AssertionError(RING.verify(bytes(data), "sale"))


def _head(*lines: bytes) -> Head | None:
    """The head with these lines, if they are header lines."""
    try:
        return parse_head(b"\r\n".join([b"GET / HTTP/1.1", b"Host: shop.example", *lines, b"", b""]))
    except BadRequestError:
        return None


def check_cookies(line: bytes) -> None:
    """Every cookie of a room is found, strictest name first, with the value that a literal reader finds."""
    head = _head(b"Cookie: " + line, b"cookie:" + line)
    if head is None:
        return
    names = cookie_names("sale")
    pairs = [pair.strip(b" \t").partition(b"=") for pair in line.strip(b" \t").split(b";")] * 2
    expected = [
        (name, value.strip(b'"'))
        for wanted in names
        for name, equals, value in pairs
        if equals and name == wanted
    ]
    assert cookies(head, names) == expected


_LINE = re.compile(rb"[A-Za-z-]+: [\t -~\x80-\xff]*")
_NODE = re.compile(rb'for=(?:unknown|[0-9.]+|"\[[0-9a-f:.]+\]");proto=https?(?:;host="[^"\\]*")?')


def check_forwarded(value: bytes) -> None:
    """Whatever a trusted proxy is made to say, the client is an address, and the origin gets sound lines."""
    kinds = (b"X-Forwarded-For: ", b"X-Forwarded-Proto: ", b"X-Forwarded-Host: ", b"Forwarded: ")
    for lines in (*([kind + value] for kind in kinds), [kind + value for kind in kinds]):
        head = _head(*lines)
        if head is None:
            continue
        for trusted in ((), (ip_network("203.0.113.0/24"), ip_network("10.0.0.0/8"))):
            client = client_of(head, PEER, trusted)
            assert client.scheme in ("http", "https")
            assert is_host(client.host)
            assert str(ip_address(client.address)) == client.address
            assert trusted or client == Client(PEER, "http", b"shop.example")
            written = forwarding_lines(client, PEER).split(b"\r\n")
            assert written.pop() == b""
            assert all(_LINE.fullmatch(line) for line in written)
            assert _NODE.fullmatch(written[-1].removeprefix(b"Forwarded: ")), written[-1]


def check_configuration(text: str, environ: Mapping[str, str] = MappingProxyType({})) -> None:
    """A configuration is taken, or refused with a place; there is no third way."""
    told = "", "", ""
    settings: Settings | None
    try:
        settings = load_text(text, environ, "waitingroom.toml")
    except ConfigError as error:
        told = error.where, error.what, str(error)
        settings = None
    if settings is None:
        assert all(told)
        assert told[2].startswith(told[0])
        return
    assert all(parse_address(address) for address in (settings.server.listen, settings.server.private_listen))
    assert len(settings.trusted) == len(settings.server.trusted_proxies)
    for room in settings.rooms:
        assert any(parse_origin(room.upstream)[:2])
        assert load_room(dump_room(room)) == room
        assert len(cookie_names(room.name)) == len(set(cookie_names(room.name)))


def check_status(status: Status) -> None:
    """The status document is what an encoder would write of the same facts, in each of its shapes."""
    low, high, position = status.low, status.high, status.position
    known = low is not None and high is not None
    expected: dict[str, Any] = {
        "room": status.room,
        "state": status.state,
        "position": position,
        "ahead": None if position is None else position - 1,
        "wait": {"low": round(low or 0), "high": math.ceil(high or 0)} if known else None,
        "poll_after": float(f"{status.poll_after:.1f}"),
        "message": status.message,
        "updated": round(status.updated),
    }
    if status.until is not None:
        expected["until"] = int(status.until)
    if status.missed:
        expected["missed"] = True
    said = status_json(status)
    assert said == json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode()
    problem = json.loads(problem_json(status))
    assert expected.items() <= problem.items()
    assert problem["status"] == 429
    theirs = json.loads(cloudflare_json(Room(name=status.room), status))
    assert theirs.pop("cfWaitingRoom")["waitTimeKnown"] is known
    assert theirs == expected


def check_return(referer: bytes, authority: bytes = b"shop.example", path: str = "/sale") -> None:
    """However a Referer is spelt, the way back is a path on this very host, to a browser too."""
    head = _head(b"Referer: " + referer)
    if head is None:
        return
    back = return_path(head, authority, path)
    assert re.fullmatch(rb"/(?:[!-\[\]-~][!-\[\]-~]*)?", back), back
    assert not back.startswith(b"//")
    base = f"http://{authority.decode()}/.waitingroom/here"
    assert urlsplit(urljoin(base, back.decode())).netloc == authority.decode()


def _plain(target: bytes) -> str:
    """`plain_path`, literally: up to the query, decoded once, each segment looked at by itself."""
    path = unquote_to_bytes(target.split(b"?")[0].split(b"#")[0]).replace(b"\\", b"/")
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        name = segment.split(b";")[0]
        if name == b"..":
            kept = kept[:-1]
        elif name not in (b"", b"."):
            kept = [*kept, name]
    return "/" + b"/".join(kept).decode("utf-8", "replace")


def check_path(target: bytes) -> None:
    """The path that says which room protects a target is the literal reading of it; so is a query's value."""
    target = b"/" + target
    path, ours = asked_for(target)
    assert path == plain_path(target)
    assert (path.rstrip("/") or "/") == _plain(target)
    assert (ours is not None) == (f"{path}/".startswith("/.waitingroom/"))
    pairs = [pair.partition(b"=") for pair in target.partition(b"?")[2].split(b"&")]
    values = [unquote_to_bytes(value.replace(b"+", b" ")) for name, _, value in pairs if name == b"room"]
    assert query_value(target, b"room") == (values[0] if values else None)
