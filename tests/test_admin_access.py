"""Who may do what at the private listener of a real gateway, and what hostile peers get from it."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import house
from tests.conftest import eventually
from tests.test_admin import WHO, Operator
from tests.test_architecture import ROOT
from tests.test_cli import serving
from tests.test_http1 import SMUGGLED
from tests.wire import dial, tls_contexts
from waitingroom import problems
from waitingroom.access import Role, Token, digest, token_line
from waitingroom.config import AdminSettings, ConfigError
from waitingroom.keys import admin_tokens
from waitingroom.metrics import ADMIN_OUTCOMES
from waitingroom.private import MOST_CONNECTIONS, MOST_FROM_ONE, open_private
from waitingroom.room import Room
from waitingroom.server import Server
from waitingroom.telemetry import Telemetry

PLAIN = "plain-token-of-the-tests-0123456789"
SECRETS = {role: f"{role}-token-of-the-tests-0123456789" for role in Role}
LISTED = "".join(f"{role}-of-ours {role} sha256:{digest(SECRETS[role]).hex()}\n" for role in Role)
PACKED = gzip.compress(json.dumps(WHO).encode())
SHOP = replace(house.ROOM, upstream="http://127.0.0.1:9")


@asynccontextmanager
async def gateway(
    url: str, data: Path, *, listed: str = LISTED, server: dict[str, Any] | None = None, **chosen: Any
) -> AsyncIterator[Server]:
    """A gateway with a file of tokens; `chosen` are settings of [admin]."""
    file = data / "admin.tokens"
    file.write_text(listed)
    admin_settings = AdminSettings(**({"tokens_file": str(file) if listed else ""} | chosen))
    running = Server(replace(house.settings(url, data, SHOP, **(server or {})), admin=admin_settings))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def operator(
    valkey_url: str, tmp_path: Path, session: aiohttp.ClientSession
) -> AsyncIterator[Operator]:
    """Somebody at a gateway that knows a token of each role, and the plain one."""
    async with gateway(valkey_url, tmp_path, token=PLAIN) as server:
        yield Operator(session, server)


def counted(server: Server, outcome: str) -> float:
    labels = {"outcome": outcome}
    found = server._telemetry.registry.get_sample_value("waitingroom_admin_requests_total", labels)
    assert found is not None
    return found


PAUSE = ("POST", "/v1/rooms/sale/pause", WHO)
LIMIT = ("PATCH", "/v1/rooms/sale", {"set": {"total_active_users": 7, "message": "Soon."}, **WHO})


@pytest.mark.parametrize(
    ("method", "path", "body", "needed"),
    [
        ("GET", "/v1/rooms", None, Role.VIEWER),
        ("GET", "/v1/rooms/sale", None, Role.VIEWER),
        ("GET", "/v1/audit", None, Role.VIEWER),
        (*PAUSE, Role.OPERATOR),
        ("POST", "/v1/rooms/sale/drain", WHO, Role.OPERATOR),
        ("POST", "/v1/rooms/sale/resume", WHO, Role.OPERATOR),
        (*LIMIT, Role.OPERATOR),
        ("POST", "/v1/rooms/sale/epoch", WHO, Role.ADMIN),
        *(
            ("PATCH", "/v1/rooms/sale", {"set": {"paused": True} | change, **WHO}, Role.ADMIN)
            for change in (
                {"epoch": 2},
                {"upstream": "http://127.0.0.1:8"},
                {"hosts": ["a.example"]},
                {"cookie_domain": "a.example"},
                {"bypass_paths": ["/pay"]},
                {"suspended": True},
                {"session_duration": "10s"},
            )
        ),
    ],
)
async def test_each_role_may_do_what_is_its_own(
    operator: Operator, method: str, path: str, body: Any, needed: Role
) -> None:
    """A role that does not suffice is a 403 that names the one that does, and leaves the room alone."""
    for role in Role:
        version = (await operator.ask("GET", "/v1/rooms/sale", token=PLAIN))[1]["version"]
        status, told, _ = await operator.ask(method, path, body, token=SECRETS[role], If_Match=f'"{version}"')
        if role.covers(needed):
            assert status == 200
        else:
            assert (status, told["needed"]) == (403, Role.OPERATOR if role is Role.VIEWER else needed)
            assert role in told["detail"]
            assert (await operator.ask("GET", "/v1/rooms/sale", token=PLAIN))[1]["version"] == version
    assert counted(operator.server, "forbidden") == list(Role).index(needed)


async def test_an_operator_learns_nothing_about_files(operator: Operator) -> None:
    """Settings that are not theirs are refused before they are looked at; what is none is told as ever."""
    for logo in ("/etc/passwd", "/nowhere.svg"):
        body = {"set": {"shop_logo": logo}, **WHO}
        status, told, _ = await operator.ask(
            "PATCH", "/v1/rooms/sale", body, token=SECRETS[Role.OPERATOR], If_Match='"1"'
        )
        assert (status, "shop_logo" in json.dumps(told)) == (403, False)
    body = {"set": {"total_activ_users": 5}, **WHO}
    status, told, _ = await operator.ask(
        "PATCH", "/v1/rooms/sale", body, token=SECRETS[Role.OPERATOR], If_Match='"1"'
    )
    assert (status, told["remedy"]) == (422, "Did you mean total_active_users?")


async def test_the_audit_names_the_token(operator: Operator, valkey_url: str) -> None:
    """`by` is the token's name whatever author is given; entries of old and newer gateways are read."""
    await operator.ask(*PAUSE, token=SECRETS[Role.OPERATOR])
    await operator.ask("POST", "/v1/rooms/sale/resume", WHO, token=PLAIN)
    old = {"version": 0, "author": "ben", "reason": "long ago", "changed": {}, "at": 1.0}
    async with redis.Redis.from_url(valkey_url) as client:
        for entry in (old, old | {"at": 0.5, "by": "carl", "lane": "main"}):
            await client.xadd("wr:{sale}:audit", {"entry": json.dumps(entry)})
    _, told, _ = await operator.ask("GET", "/v1/audit", token=SECRETS[Role.VIEWER])
    assert [(entry["author"], entry["by"]) for entry in told["entries"]] == [
        ("ana", "admin"),
        ("ana", "operator-of-ours"),
        ("ben", ""),
        ("ben", "carl"),
    ]
    _, told, _ = await operator.ask(*LIMIT, token=PLAIN, If_Match='"1"')
    assert told["last_change"]["by"] == "carl"


async def test_failed_attempts_are_limited_and_lock_nobody_out(operator: Operator) -> None:
    """After ten in a minute an address gets 429 and when to go on; a right token from there is let in."""
    tokens = [None, "wrong", SECRETS[Role.ADMIN][:-1], *["wrong"] * 9]
    answers = [await operator.ask("GET", "/v1/rooms", token=token) for token in tokens]
    assert [status for status, _, _ in answers] == [401] * 10 + [429] * 2
    assert 1 <= int(answers[-1][2]["Retry-After"]) <= 6
    assert (await operator.ask(*PAUSE, token=SECRETS[Role.OPERATOR]))[0] == 200
    assert (await operator.ask("GET", "/v1/console.json", token="wrong"))[0] == 200
    found = {outcome: counted(operator.server, outcome) for outcome in ADMIN_OUTCOMES}
    assert found == dict.fromkeys(ADMIN_OUTCOMES, 0) | {"ok": 1, "unauthenticated": 10, "limited": 2}


async def test_changes_are_limited_by_token(operator: Operator) -> None:
    """A token that floods has to wait, whatever it sends; reading goes on, and so do the others."""
    send = [operator.ask("POST", "/v1/rooms/sale/pause", {}, token=PLAIN) for _ in range(61)]
    answers = await asyncio.gather(*send)
    assert sorted(status for status, _, _ in answers) == [422] * 60 + [429]
    assert {headers.get("Retry-After") for _, _, headers in answers} == {None, "1"}
    assert (await operator.ask("GET", "/v1/rooms", token=PLAIN))[0] == 200
    assert (await operator.ask(*PAUSE, token=SECRETS[Role.OPERATOR]))[0] == 200


async def test_tokens_are_swapped_while_it_runs(operator: Operator, tmp_path: Path) -> None:
    """Who may come in is one attribute: from then on the new tokens count, and the old are none."""
    server = operator.server
    fresh = "a-fresh-token-of-the-tests-0123456789"
    (tmp_path / "admin.tokens").write_text(token_line("dora", Role.ADMIN, fresh))
    server.access.tokens = admin_tokens(server.settings, tmp_path)
    assert (await operator.ask("GET", "/v1/rooms", token=SECRETS[Role.ADMIN]))[0] == 401
    assert (await operator.ask("GET", "/v1/rooms", token=fresh))[0] == 200


async def test_a_token_is_made_only_where_none_is_given(valkey_url: str, tmp_path: Path) -> None:
    """The made one lies in the data folder for its owner, known by digest; with a file there is none."""
    async with gateway(valkey_url, tmp_path, listed="") as server:
        made = (tmp_path / "admin.token").read_text().strip()
        assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600
        assert server.access.tokens == (Token("admin", Role.ADMIN, digest(made)),)
    (tmp_path / "admin.token").unlink()
    async with gateway(valkey_url, tmp_path):
        assert not (tmp_path / "admin.token").exists()


@pytest.mark.parametrize(
    ("listed", "chosen", "where"),
    [
        ("anna boss sha256:x", {}, "admin.tokens line 1"),
        ("", {"tokens_file": "/nowhere/tokens"}, "[admin] tokens_file"),
        ("", {"token_file": "/nowhere/token"}, "[admin] token_file"),
        ("", {"token_file": "/dev/null"}, "[admin] token"),
        ("", {"tokens_file": "/bin/sh"}, "[admin] tokens_file"),
    ],
)
async def test_no_start_with_tokens_that_cannot_stand(
    valkey_url: str, tmp_path: Path, listed: str, chosen: dict[str, Any], where: str
) -> None:
    """A file that is missing, no text, empty, or wrong in a line is named, with what to do."""
    with pytest.raises(ConfigError) as raised:
        async with gateway(valkey_url, tmp_path, listed=listed, **chosen):
            pass
    assert raised.value.where.endswith(where)
    assert raised.value.remedy


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[dict[str, str], Any]:
    """Settings of a private listener with TLS, and a client's context that trusts it."""
    _, client = tls_contexts(tmp_path)
    both = str(tmp_path / "both.pem")
    return {"private_tls_certificate": both, "private_tls_key": both}, client


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "gateway.example:9090"])
async def test_no_start_beyond_loopback_without_tls_or_a_word(
    valkey_url: str, tmp_path: Path, listen: str
) -> None:
    """Tokens never travel in clear text unless somebody has said that they may."""
    with pytest.raises(ConfigError) as raised:
        async with gateway(valkey_url, tmp_path, server={"private_listen": listen}):
            pass
    assert (raised.value.where, listen in raised.value.what) == ("[server] private_listen", True)
    assert "allow_plaintext" in raised.value.remedy
    assert "private_tls_certificate" in raised.value.remedy


async def test_a_private_certificate_that_cannot_be_used_is_named(valkey_url: str, tmp_path: Path) -> None:
    """It is the private listener's setting that is named, not the other's."""
    files = {"private_tls_certificate": "/nowhere.pem", "private_tls_key": "/nowhere.key"}
    with pytest.raises(ConfigError, match=r"^\[server\] private_tls_certificate: /nowhere.pem"):
        async with gateway(valkey_url, tmp_path, server=files):
            pass


NUMBERS = ("/", "/metrics", "/v1/console.json")


async def test_beyond_loopback_all_but_probes_needs_a_token(
    valkey_url: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Console and metrics need a token of any role there, unless the console is said to be open."""
    elsewhere = {"private_listen": "0.0.0.0:0"}
    for is_open in (False, True):
        async with gateway(
            valkey_url, tmp_path, server=elsewhere, allow_plaintext=True, open_console=is_open
        ) as server:
            url = f"http://127.0.0.1:{server.private_address[1]}"
            for path in ("/healthz", "/readyz"):
                async with session.get(url + path) as answer:
                    assert answer.status == 200
            for path in NUMBERS:
                async with session.get(url + path) as answer:
                    assert answer.status == (200 if is_open else 401)
                    assert is_open or "open_console" in await answer.text()
                headers = {"Authorization": f"Bearer {SECRETS[Role.VIEWER]}"}
                async with session.get(url + path, headers=headers) as answer:
                    assert answer.status == 200


@pytest.mark.parametrize("path", NUMBERS)
async def test_a_page_elsewhere_cannot_read_by_a_name_of_its_own(
    valkey_url: str, tmp_path: Path, session: aiohttp.ClientSession, path: str
) -> None:
    """A name that was pointed here reads nothing without a token; names that were given do, and addresses."""
    async with gateway(valkey_url, tmp_path, hosts=("ops.example",)) as server:
        url = "http://{}:{}".format(*server.private_address)
        held = {"Authorization": f"Bearer {SECRETS[Role.VIEWER]}"}
        for headers, status in (
            ({"Host": "evil.example"}, 421),
            ({"Host": "evil.example:9090"}, 421),
            ({"Host": "evil.example", **held}, 200),
            ({"Host": "ops.example:9090"}, 200),
            ({"Host": "localhost"}, 200),
            ({}, 200),
        ):
            async with session.get(url + path, headers=headers) as answer:
                assert answer.status == status
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert answer.headers["Server"] == "waitingroom"
                assert not [name for name in answer.headers if name.startswith("Access-Control")]
        async with session.get(url + "/healthz", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 200


async def test_tls_has_the_certificate_for_names(
    valkey_url: str, tmp_path: Path, certificate: tuple[dict[str, str], Any], session: aiohttp.ClientSession
) -> None:
    """Over TLS the private listener may be asked under any name that its certificate has."""
    files, context = certificate
    async with gateway(valkey_url, tmp_path, server=files) as server:
        url = "https://{}:{}".format(*server.private_address)
        async with session.get(url + "/metrics", ssl=context, headers={"Host": "gw.internal"}) as answer:
            assert answer.status == 200
        async with session.get(url + "/v1/rooms", ssl=context) as answer:
            assert answer.status == 401
        async with dial(server.private_address[1]) as wire:
            await wire.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"waitingroom" not in await wire.rest()


@pytest.mark.parametrize("name", sorted(SMUGGLED.keys() - {"HTTP/0.9"}))
async def test_what_cannot_be_read_is_not_repeated(
    operator: Operator, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A request that could be read in two ways is refused in few words, and neither answered nor logged."""
    capfd.readouterr()
    async with dial(operator.server.private_address[1]) as wire:
        marked = SMUGGLED[name].replace(b"\r\n\r\n", b"\r\nX-Mark: " + PLAIN.encode() + b"\r\n\r\n", 1)
        await wire.send(marked)
        head, body = await wire.answer()
        assert head.status in (400, 401, 421)
        assert json.loads(body)["status"] == head.status
        assert PLAIN.encode() not in body
        if head.status == 400:
            assert head.get(b"cache-control") == b"no-store"
            assert await wire.rest() == b""
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (["Content-Encoding: gzip", f"Content-Length: {len(PACKED)}"], PACKED, 400),
        (["Transfer-Encoding: chunked"], b"2\r\n{}\r\n5\r\nab\r\n0\r\n\r\n", 400),
        (["Transfer-Encoding: chunked"], b"zz\r\n", 400),
        (["Expect: the impossible", "Content-Length: 2"], b"{}", 417),
        ([f"X-{number}: a" for number in range(70)], b"", 400),
        (["X: " + "a" * 9000], b"", 400),
        (["Upgrade: websocket", "Connection: Upgrade", "Content-Length: 0"], b"", 422),
    ],
    ids=["packed", "chunk too short", "no chunk", "expects", "many lines", "long line", "upgrade"],
)
async def test_hostile_framing_is_a_problem_not_a_fault(
    operator: Operator, lines: list[str], body: bytes, status: int
) -> None:
    """Bodies that lie about their length or form, and heads that are too large, are told so."""
    start = [
        "POST /v1/rooms/sale/pause HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {PLAIN}",
        *lines,
        "",
        "",
    ]
    async with dial(operator.server.private_address[1]) as wire:
        await wire.send("\r\n".join(start).encode() + body)
        head, told = await wire.answer()
    assert (head.status, json.loads(told)["status"]) == (status, status)
    assert counted(operator.server, "failed") == 0


async def test_whoever_breaks_off_is_no_fault(operator: Operator, capfd: pytest.CaptureFixture[str]) -> None:
    """A body that ends with its connection is refused, counted so, and not logged."""
    head = f"POST /v1/rooms/sale/pause HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {PLAIN}\r\n"
    capfd.readouterr()
    async with dial(operator.server.private_address[1]) as wire:
        await wire.send(head.encode() + b"Content-Length: 9\r\n\r\n{")
        await eventually(lambda: len(operator.server.access._changes) == 1)
    await eventually(lambda: counted(operator.server, "refused") == 1)
    assert counted(operator.server, "failed") == 0
    assert "".join(capfd.readouterr()) == ""


async def test_a_slow_body_is_not_waited_for(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends half of what was promised is told so, and let go."""
    monkeypatch.setattr(problems, "BODY_PATIENCE", 0.1)
    async with dial(operator.server.private_address[1]) as wire:
        await wire.send(
            b"POST /v1/rooms/sale/pause HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
            b"Authorization: Bearer " + PLAIN.encode() + b"\r\n\r\n{"
        )
        told = await wire.rest()
    assert told.startswith(b"HTTP/1.1 408 ")


@asynccontextmanager
async def small(patience: float, size: int = 2) -> AsyncIterator[tuple[int, Telemetry]]:
    """A private listener that answers everything with so many bytes: its port, and what it counts."""
    app, telemetry = web.Application(), Telemetry([])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * size)

    app.router.add_get("/", answer)
    async with open_private(app, "127.0.0.1", 0, None, telemetry, patience=patience) as address:
        yield address[1], telemetry


async def test_silence_and_slow_heads_end() -> None:
    """A connection that says nothing, half a head, or nothing more after an answer is closed."""
    async with small(0.2) as (port, _):
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            async with dial(port) as wire:
                await wire.send(sent)
                assert (b"200 OK" in await wire.rest()) == sent.endswith(b"\r\n\r\n")


async def test_an_answer_that_nobody_takes_is_dropped() -> None:
    """Whoever asks for more than the sockets hold, and does not read, loses the connection."""
    async with small(0.2, 32 << 20) as (port, _), dial(port) as wire:
        transport = wire.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined] # of a socket, which reads, too
        await wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

        def dropped() -> bool:
            transport.write(b"more")
            return transport.is_closing()

        await eventually(dropped)


@asynccontextmanager
async def connections(port: int, origin: str, count: int) -> AsyncIterator[None]:
    """So many connections from one address that say nothing."""
    held = [await asyncio.open_connection("127.0.0.1", port, local_addr=(origin, 0)) for _ in range(count)]
    try:
        yield
    finally:
        for _, writer in held:
            writer.transport.abort()


async def test_one_address_cannot_have_every_connection() -> None:
    """Beyond its share an address is turned away until it gives back; others come in until all are taken."""
    async with small(20.0) as (port, telemetry):

        async def comes_in(origin: str) -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(origin, 0))
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return bool(await reader.read(100))
            except ConnectionError:
                return False
            finally:
                writer.transport.abort()

        async with connections(port, "127.0.0.1", MOST_FROM_ONE):
            assert not await comes_in("127.0.0.1")
            assert await comes_in("127.0.0.2")
            assert turned_away(telemetry) == 1
            async with connections(port, "127.0.0.2", MOST_CONNECTIONS - MOST_FROM_ONE):
                assert not await comes_in("127.0.0.3")
                assert turned_away(telemetry) == 2
        await eventually(lambda: comes_in("127.0.0.1"))


def turned_away(telemetry: Telemetry) -> float | None:
    labels = {"outcome": "turned_away"}
    return telemetry.registry.get_sample_value("waitingroom_admin_requests_total", labels)


async def test_a_fault_of_ours_tells_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception is logged and answered without a word of it, or cuts the answer off."""
    app = web.Application()

    async def fail(request: web.Request) -> web.Response:
        if request.path == "/later":
            answer = web.StreamResponse()
            await answer.prepare(request)
            await answer.write(b"so far")
        raise RuntimeError("the inner works")

    app.router.add_get("/{when}", fail)
    async with open_private(app, "127.0.0.1", 0, None, Telemetry([])) as address:
        for path, start, end in (
            (b"/now", b"HTTP/1.1 500 ", b'"}'),
            (b"/later", b"HTTP/1.1 200 ", b"so far\r\n"),
        ):
            async with dial(address[1]) as wire:
                await wire.send(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                told = await wire.rest()
            assert told.startswith(start)
            assert told.endswith(end)
            assert b"inner works" not in told
            assert "inner works" in "".join(capfd.readouterr())


TOKENS = {f"token-{number}": f"a token of the hostile tests, number {number}" for number in range(16)}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Iterator[str]]]:
    """Port of a gateway in a process of its own, and tokens that it knows, in turn."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tokens").write_text("\n".join(token_line(name, Role.ADMIN, TOKENS[name]) for name in TOKENS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAITINGROOM__ADMIN__TOKENS_FILE", str(folder / "tokens"))
        with serving(folder) as running:
            yield int(running.event("gateway_started")["private"].rpartition(":")[2]), cycle(TOKENS.values())


def everything(wire: socket.socket) -> bytes:
    """All that comes until the other end closes; a reset counts as closed."""
    told = b""
    with contextlib.suppress(ConnectionError):
        while piece := wire.recv(65536):
            told += piece
    return told


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "set": st.dictionaries(st.sampled_from([item.name for item in fields(Room)]), JSONS, max_size=3)
        | JSONS,
        "author": JSONS | st.just("ana"),
        "reason": JSONS | st.just("why"),
    },
)
NAMES = st.sampled_from(["If-Match", "Host", "Content-Type", "Accept", "Cookie", "Range", "Connection", "X"])
VALUES = st.just(b'"1"') | st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"])).map(
    str.encode
)
PATHS = st.sampled_from(["/v1/rooms/sale", "/v1/rooms/sale/pause", "/v1/rooms/", "/", "*"])
QUERIES = (
    st.just(b"") | st.integers().map(lambda number: b"/v1/audit?limit=%d" % number) | st.binary(max_size=12)
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"]),
    path=PATHS,
    more=QUERIES,
    lines=st.lists(st.tuples(NAMES, VALUES | st.binary(max_size=30)), max_size=3),
    body=st.binary(max_size=60) | SHAPED.map(lambda shaped: json.dumps(shaped).encode()),
)
@settings(deadline=None, max_examples=200)  # a busy machine takes its time for a request
def test_no_request_is_a_fault(
    hostile: tuple[int, Iterator[str]],
    method: str,
    path: str,
    more: bytes,
    lines: list[tuple[str, bytes]],
    body: bytes,
) -> None:
    """Whatever comes with an administrator's token is done or refused, never a 5xx, never silence."""
    port, tokens = hostile
    more_lines = [name.encode() + b": " + value for name, value in lines]
    told = exchange(port, f"{method} {path}".encode() + more, next(tokens), *more_lines, body=body)
    assert re.match(rb"HTTP/(0\.9 4|1\.[01] [24])\d\d ", told), told[:200]


@given(SHAPED)
@settings(deadline=None)  # the same
def test_no_change_is_a_fault(hostile: tuple[int, Iterator[str]], body: dict[str, Any]) -> None:
    """Whatever is to be set, it is set or refused, and the room can be read after it."""
    port, tokens = hostile
    token = next(tokens)
    seen = re.search(rb'ETag: ("\d+")', exchange(port, b"GET /v1/rooms/sale", token))
    assert seen is not None
    based_on = b"If-Match: " + seen[1]
    told = exchange(port, b"PATCH /v1/rooms/sale", token, based_on, body=json.dumps(body).encode())
    assert re.match(rb"HTTP/1\.1 (200|400|422) ", told), told[:200]


def exchange(port: int, start: bytes, token: str, *lines: bytes, body: bytes = b"") -> bytes:
    """All that a gateway says to one request."""
    head = [start + b" HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close", *lines]
    head += [b"Authorization: Bearer " + token.encode(), b"Content-Length: %d" % len(body)]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(b"\r\n".join([*head, b"", body]))
        return everything(wire)


def test_no_token_and_no_digest_ever_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither log nor metrics nor any answer has a token or a digest in it, however they were sent."""
    digests = [digest(secret).hex() for secret in (*SECRETS.values(), PLAIN)]
    (tmp_path / "tokens").write_text(LISTED)
    monkeypatch.setenv("WAITINGROOM__ADMIN__TOKENS_FILE", str(tmp_path / "tokens"))
    monkeypatch.setenv("WAITINGROOM__ADMIN__TOKEN", PLAIN)
    monkeypatch.setenv("WAITINGROOM__LOG__LEVEL", "debug")
    told = b""
    with serving(tmp_path) as running:
        port = int(running.event("gateway_started")["private"].rpartition(":")[2])
        sent = [
            line.encode() % secret.encode()
            for secret in (*SECRETS.values(), PLAIN, *digests)
            for line in (
                "Authorization: Bearer %b",
                "Authorization: Bearer %b\x00",
                "Authorization: Basic %b",
                "Authorization : Bearer %b",
                "Cookie: token=%b",
                "Host: %b",
                "Expect: %b",
                "Content-Length: %b",
                "%b",
            )
        ]
        for line in sent:
            for request in (b"GET /v1/rooms HTTP/1.1", b"POST /v1/rooms/sale/epoch HTTP/1.1"):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
                    wire.sendall(
                        request + b"\r\nHost: localhost\r\nConnection: close\r\n" + line + b"\r\n\r\n"
                    )
                    told += everything(wire)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
            wire.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            told += everything(wire)
        running.process.terminate()
        assert running.process.stdout is not None
        log = running.process.stdout.read() + json.dumps(running.lines)
    assert b'waitingroom_admin_requests_total{outcome="limited"}' in told
    assert b"401 Unauthorized" in told
    for secret in (*SECRETS.values(), PLAIN, *digests):
        assert secret.encode() not in told
        assert secret not in log


@pytest.mark.parametrize("word", ADMIN_OUTCOMES)
def test_every_outcome_is_explained(word: str) -> None:
    """monitoring/METRICS.md has a line for each outcome."""
    text = (ROOT / "monitoring" / "METRICS.md").read_text().partition("## The private listener")[2]
    assert re.search(rf"^\| `{word}` \| .+ \|$", text, re.MULTILINE)
    assert str(MOST_CONNECTIONS) in text
    assert str(MOST_FROM_ONE) in text
