"""What the private listener promises to whoever runs the rooms, on a real gateway with a real store."""

import asyncio
import gzip
import json
import re
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis

from tests.conftest import eventually
from tests.test_architecture import ROOT
from waitingroom.access import Access, Role
from waitingroom.admin import application
from waitingroom.config import load_text
from waitingroom.console import SAMPLES, Sample, condition, per_minute
from waitingroom.guard import NUMBERS, PROBES
from waitingroom.room import Room, Snapshot
from waitingroom.server import Server
from waitingroom.store import Store
from waitingroom.telemetry import Telemetry

TOKEN = "a-token-for-the-tests-0123456789"
WHO = {"author": "ana", "reason": "rehearsal"}

CONFIGURATION = """
[server]
listen = "127.0.0.1:0"
private_listen = "127.0.0.1:0"
[store]
url = "{url}"
data = "{data}"
tick = "200ms"
timeout = "1s"
[tokens]
keys = ["a key for the tests, of more than 32 bytes"]
[admin]
token = "{token}"
[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:9"
[[rooms]]
name = "tickets"
path = "/tickets"
upstream = "http://127.0.0.1:9"
"""


class Operator:
    """Somebody with the token at one private listener."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self.session, self.server = session, server
        self.url = "http://{}:{}".format(*server.private_address)

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, document and headers of one exchange; `if_match` and the like become headers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=sent) as response:
            assert response.headers["Cache-Control"] == "no-store"
            if response.status >= 400:
                assert response.content_type == "application/problem+json"
                told = await response.json(content_type=None)
                assert {"status", "title", "detail", "remedy"} <= told.keys()
                assert told["status"] == response.status
            else:
                told = await response.json()
            return response.status, told, response.headers


@asynccontextmanager
async def gateway(url: str, data: Path) -> AsyncIterator[Server]:
    server = Server(load_text(CONFIGURATION.format(url=url, data=data, token=TOKEN), {}))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def operator(valkey_url: str, tmp_path: Path) -> AsyncIterator[Operator]:
    """Somebody with the token at a gateway with the rooms `sale` and `tickets`."""
    async with gateway(valkey_url, tmp_path) as server, aiohttp.ClientSession() as session:
        yield Operator(session, server)


async def test_reading_a_room_shows_settings_and_numbers(operator: Operator) -> None:
    """A room is told with every setting, its version as ETag, and what the last tick found."""
    status, room, headers = await operator.ask("GET", "/v1/rooms/sale")
    assert (status, headers["ETag"], room["version"]) == (200, '"1"', 1)
    assert room["settings"]["total_active_users"] == 500
    assert "version" not in room["settings"]
    numbers = {"inside", "offered", "waiting", "present", "admitted", "lapsed", "issued", "clock_age"}
    assert numbers <= room["snapshot"].keys()
    _, told, _ = await operator.ask("GET", "/v1/rooms")
    assert [room["name"] for room in told["rooms"]] == ["sale", "tickets"]


async def test_a_change_is_in_force_on_every_gateway_within_a_second(
    operator: Operator, valkey_url: str, tmp_path: Path
) -> None:
    """What is changed at one gateway is in force at another by its next tick, and at the first one too."""
    async with gateway(valkey_url, tmp_path / "other") as other:
        body = {"set": {"total_active_users": 40, "session_duration": "2m"}, **WHO}
        status, room, headers = await operator.ask("PATCH", "/v1/rooms/sale", body, If_Match='"1"')
        assert (status, headers["ETag"], room["settings"]["total_active_users"]) == (200, '"2"', 40)
        assert room["settings"]["session_duration"] == 120
        desks = [server._desks["sale"] for server in (operator.server, other)]
        await eventually(lambda: all(desk.room.total_active_users == 40 for desk in desks), 1.0)


async def test_change_without_a_version_is_refused(operator: Operator) -> None:
    """Whoever changes a room says which version they have seen; otherwise 428 says how."""
    body = {"set": {"paused": True}, **WHO}
    for headers in ({}, {"If_Match": "*"}, {"If_Match": "1"}, {"If_Match": 'W/"1"'}):
        status, told, _ = await operator.ask("PATCH", "/v1/rooms/sale", body, **headers)
        assert status == 428
        assert "If-Match" in told["remedy"]


async def test_conflict_names_who_changed_what(operator: Operator) -> None:
    """A change based on an old version is a 409 that names who was faster, what they set, and why."""
    first = {"set": {"new_users_per_minute": 60}, "author": "ben", "reason": "origin at its limit"}
    await operator.ask("PATCH", "/v1/rooms/sale", first, If_Match='"1"')
    late = {"set": {"new_users_per_minute": 900}, **WHO}
    status, told, headers = await operator.ask("PATCH", "/v1/rooms/sale", late, If_Match='"1"')
    assert (status, headers["ETag"], told["version"]) == (409, '"2"', 2)
    assert "ben" in told["detail"]
    assert "new_users_per_minute" in told["detail"]
    assert told["last_change"]["reason"] == "origin at its limit"
    _, room, _ = await operator.ask("GET", "/v1/rooms/sale")
    assert room["settings"]["new_users_per_minute"] == 60


async def test_two_changes_at_once_are_one_change(operator: Operator) -> None:
    """Of two changes based on the same version, sent together, exactly one stands."""
    bodies = [{"set": {"total_active_users": most}, **WHO} for most in (10, 20)]
    answers = await asyncio.gather(
        *(operator.ask("PATCH", "/v1/rooms/sale", body, If_Match='"1"') for body in bodies)
    )
    assert sorted(status for status, _, _ in answers) == [200, 409]


@pytest.mark.parametrize(
    ("action", "expected"),
    [("pause", {"paused": True}), ("drain", {"queue_all": True}), ("epoch", {"epoch": 2})],
)
async def test_actions_need_no_version(operator: Operator, action: str, expected: dict[str, Any]) -> None:
    """Pausing, draining and raising the epoch are one request each."""
    status, room, _ = await operator.ask("POST", f"/v1/rooms/sale/{action}", WHO)
    assert status == 200
    assert expected.items() <= room["settings"].items()


async def test_resume_lets_people_in_again(operator: Operator) -> None:
    """Resuming undoes both a pause and a drain."""
    for action in ("pause", "drain", "resume"):
        _, room, _ = await operator.ask("POST", f"/v1/rooms/sale/{action}", WHO)
    assert (room["settings"]["paused"], room["settings"]["queue_all"], room["version"]) == (False, False, 4)


async def test_actions_at_once_all_stand(operator: Operator) -> None:
    """Actions that meet are repeated on what the other left: none is lost, none is a conflict."""
    answers = await asyncio.gather(*(operator.ask("POST", "/v1/rooms/sale/epoch", WHO) for _ in range(5)))
    assert [status for status, _, _ in answers] == [200] * 5
    _, room, _ = await operator.ask("GET", "/v1/rooms/sale")
    assert room["settings"]["epoch"] == 6


async def test_action_based_on_an_old_version_is_refused_if_asked(operator: Operator) -> None:
    """An action that names a version is only done to that version."""
    assert (await operator.ask("POST", "/v1/rooms/sale/pause", WHO, If_Match='"1"'))[0] == 200
    assert (await operator.ask("POST", "/v1/rooms/sale/resume", WHO, If_Match='"1"'))[0] == 409


async def test_what_changes_nothing_is_no_new_version(operator: Operator) -> None:
    """Pausing a paused room is answered alike, and leaves no entry in the audit."""
    for _ in range(2):
        _, room, _ = await operator.ask("POST", "/v1/rooms/sale/pause", WHO)
    assert room["version"] == 2
    _, told, _ = await operator.ask("GET", "/v1/audit?room=sale")
    assert len(told["entries"]) == 1


async def test_audit_tells_who_did_what_and_why(operator: Operator) -> None:
    """Every change is in the audit, newest first, over all rooms or one, as many as asked for."""
    await operator.ask("POST", "/v1/rooms/sale/pause", WHO)
    await operator.ask("POST", "/v1/rooms/tickets/drain", {"author": "ben", "reason": "maintenance"})
    _, told, _ = await operator.ask("GET", "/v1/audit")
    newest, oldest = told["entries"]
    assert (newest["room"], newest["author"], newest["changed"]) == ("tickets", "ben", {"queue_all": True})
    assert (oldest["room"], oldest["reason"], oldest["version"]) == ("sale", "rehearsal", 2)
    _, told, _ = await operator.ask("GET", "/v1/audit?room=sale&limit=1")
    assert [entry["room"] for entry in told["entries"]] == ["sale"]
    for limit in ("0", "1001", "-1", "x", "٣"):
        assert (await operator.ask("GET", f"/v1/audit?limit={limit}"))[0] == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/rooms"),
        ("PATCH", "/v1/rooms/sale"),
        ("POST", "/v1/rooms/sale/pause"),
        ("GET", "/v1/audit"),
    ],
)
async def test_nothing_without_the_token(operator: Operator, method: str, path: str) -> None:
    """Reading and changing need the whole token; the 401 says where it is, and repeats nothing of it."""
    for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1], "ünïcode"):
        body = WHO if method != "GET" else None
        status, told, headers = await operator.ask(method, path, body, token=token)
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in json.dumps(told)
    assert operator.server._desks["sale"].room.paused is False


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"total_activ_users": 5}, "total_activ_users", "Did you mean total_active_users?"),
        ({"total_active_users": 0}, "total_active_users", "Most shoppers inside at one time."),
        ({"total_active_users": None}, "total_active_users", ""),
        ({"session_duration": "soon"}, "session_duration", ""),
        ({"session_duration": "9" * 400 + "s"}, "session_duration", ""),
        ({"session_duration": "999999999d"}, "session_duration", ""),
        ({"epoch": 10**40}, "epoch", ""),
        ({"epoch": 0}, "epoch", ""),
        ({"queueing_method": "auction"}, "queueing_method", ""),
        ({"upstream": "shop"}, "upstream", "Write for example http://127.0.0.1:8000."),
        ({"hosts": "shop.example"}, "hosts", ""),
        ({"accent_color": "#ffff00"}, "accent_color", ""),
        ({"shop_logo": "no such file.svg"}, "shop_logo", ""),
        ({"name": "other"}, "name", "Configure another room."),
        ({"version": 7}, "version", ""),
        ({}, "set", ""),
        ([], "set", ""),
        ("paused", "set", ""),
    ],
)
async def test_a_setting_that_cannot_stand_is_refused(
    operator: Operator, changes: Any, named: str, remedy: str
) -> None:
    """A change is checked as the file is: 422 names the setting and the remedy, and the old one stays."""
    status, told, _ = await operator.ask("PATCH", "/v1/rooms/sale", {"set": changes, **WHO}, If_Match='"1"')
    assert (status, told["setting"]) == (422, named)
    assert remedy in told["remedy"]
    assert (await operator.ask("GET", "/v1/rooms/sale"))[1]["version"] == 1


async def test_epoch_is_never_lowered(operator: Operator) -> None:
    """Tickets that were voided stay void."""
    await operator.ask("POST", "/v1/rooms/sale/epoch", WHO)
    body = {"set": {"epoch": 1}, **WHO}
    status, told, _ = await operator.ask("PATCH", "/v1/rooms/sale", body, If_Match='"2"')
    assert (status, told["setting"]) == (422, "epoch")


@pytest.mark.parametrize(
    ("body", "named", "remedy"),
    [
        ({"reason": "why"}, "author", ""),
        ({"author": "ana"}, "reason", ""),
        ({"author": "  ", "reason": "why"}, "author", ""),
        ({"author": ["ana"], "reason": "why"}, "author", ""),
        ({"author": "ana", "reason": "x" * 501}, "reason", ""),
        ({"author": "a\u0000na", "reason": "why"}, "author", ""),
        ({"author": "ana", "reson": "why"}, "reson", "Did you mean reason?"),
    ],
)
async def test_every_change_has_an_author_and_a_reason(
    operator: Operator, body: dict[str, Any], named: str, remedy: str
) -> None:
    """Who and why are mandatory, and a mistyped field is told with the nearest name."""
    status, told, _ = await operator.ask("POST", "/v1/rooms/sale/pause", body)
    assert (status, told["setting"]) == (422, named)
    assert remedy in told["remedy"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe\x00",
        b'{"author": "\\ud800", "reason": "x"}',
        b'{"set": {"session_duration": 1e999}}',
        b'{"set": {"session_duration": NaN}}',
        b"[" * 60_000,
        b"9" * 5000,
        b"[]",
        b'"author"',
        b"null",
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
async def test_a_body_that_is_not_json_is_a_400(operator: Operator, body: bytes) -> None:
    """What is not one JSON object that the store could keep is refused as malformed, never a 500."""
    assert (await operator.ask("PATCH", "/v1/rooms/sale", body, If_Match='"1"'))[0] == 400


async def test_a_body_is_limited(operator: Operator) -> None:
    """More than 64 KiB is not read."""
    status, _, _ = await operator.ask("POST", "/v1/rooms/sale/pause", b" " * 70_000)
    assert status == 413


async def test_unknown_names_are_told_with_the_nearest(operator: Operator) -> None:
    """A mistyped room, action, path or method is a problem document that helps."""
    status, told, _ = await operator.ask("GET", "/v1/rooms/sal")
    assert (status, told["remedy"]) == (404, "Did you mean sale?")
    assert (await operator.ask("GET", "/v1/audit?room=slae"))[0] == 404
    assert (await operator.ask("POST", "/v1/rooms/sale/pauze", WHO))[0] == 404
    status, _, headers = await operator.ask("DELETE", "/v1/rooms/sale")
    assert status == 405
    assert "PATCH" in headers["Allow"]


def test_the_reference_has_every_request_and_every_state() -> None:
    """docs/cli.md lists each path with its methods, the role that it needs, and each state of a room."""
    text = (ROOT / "docs" / "cli.md").read_text()
    store, access = Store("unix:///none", "test"), Access((), open_console=True)
    listed = dict(re.findall(r"^\| `(?:GET|PATCH|POST) (/[^`?]*).*\| ([a-z, ]+) \|$", text, re.MULTILINE))
    app = application({}, store, Telemetry([]), access, draining=lambda: False)
    paths = {
        re.sub(r"\{name\}", "<name>", resource.canonical).replace("{action}", "pause")
        for resource in app.router.resources()
    }
    assert listed.keys() == paths
    assert {path for path, role in listed.items() if role == "none"} == PROBES
    assert {path for path, role in listed.items() if role == "none on loopback"} == NUMBERS
    assert {role.split(",")[0] for role in listed.values()} - {"none", "none on loopback"} <= set(Role)
    states = set(re.findall(r"^\| `([a-z ]+)` \| ", text, re.MULTILINE))
    assert states == {"starting", "store lost", "stalled", "off", "paused", "draining", "queueing", "open"}


async def test_metrics_speak_the_format_that_is_asked_for(operator: Operator) -> None:
    """Prometheus gets its own text format, or OpenMetrics if it asks, without a token."""
    for accept, kind in (("text/plain", "text/plain"), ("application/openmetrics-text", "application/openm")):
        async with operator.session.get(operator.url + "/metrics", headers={"Accept": accept}) as response:
            assert response.headers["Content-Type"].startswith(kind)
            assert 'waitingroom_limit_shoppers_inside{room="sale"} 500.0' in await response.text()


async def test_a_gateway_that_never_reached_the_store_is_alive_but_not_ready(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Without a store from the start, `/readyz` names the rooms that wait; `/healthz` is untroubled."""
    async with gateway(f"unix://{tmp_path}/none.sock", tmp_path / "data") as server:
        operator = Operator(session, server)
        assert (await operator.ask("GET", "/healthz", token=None))[0] == 200
        status, told, headers = await operator.ask("GET", "/readyz", token=None)
        assert (status, told["missing"], headers["Retry-After"]) == (503, ["sale", "tickets"], "1")
        _, told, _ = await operator.ask("GET", "/v1/console.json", token=None)
        assert {room["state"] for room in told["rooms"]} == {"starting"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_losing_the_store_is_told_without_losing_readiness(operator: Operator, valkey_url: str) -> None:
    """Once warm, a gateway stays ready without its store; the admin API says 503 and when to retry."""
    async with redis.Redis.from_url(valkey_url) as client:
        await client.client_pause(2500)
    asked = [
        ("GET", "/v1/rooms/sale", None),
        ("POST", "/v1/rooms/sale/pause", WHO),
        ("GET", "/v1/audit", None),
    ]
    answers = await asyncio.gather(*(operator.ask(method, path, body) for method, path, body in asked))
    assert [(status, headers["Retry-After"]) for status, _, headers in answers] == [(503, "2")] * 3
    assert (await operator.ask("GET", "/readyz", token=None))[0] == 200
    assert (await operator.ask("GET", "/v1/console.json", token=None))[0] == 200

    async def back() -> bool:
        return (await operator.ask("GET", "/v1/rooms/sale"))[0] == 200

    await eventually(back)


async def test_a_room_that_the_store_lost_is_handed_in_again(operator: Operator, valkey_url: str) -> None:
    """After the store came back empty the API asks to try again, and soon has the room."""
    async with redis.Redis.from_url(valkey_url) as client:
        await client.flushall()
    status, _, _ = await operator.ask("GET", "/v1/rooms/sale")
    assert status in (200, 503)

    async def back() -> bool:
        return (await operator.ask("GET", "/v1/rooms/sale"))[0] == 200

    await eventually(back)


async def test_console_runs_its_own_script_and_nothing_else(operator: Operator) -> None:
    """The page is one response: no address elsewhere, no inline handler, and a policy with its hashes."""
    async with operator.session.get(operator.url + "/") as response:
        policy, page = response.headers["Content-Security-Policy"], await response.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for element in ("script", "style"):
        (inside,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy
    assert not re.search(r"(src|href)=\"(?!data:|/v1/)|\son\w+=|style=", page)


async def test_console_numbers_hold_no_secret_and_need_no_token(operator: Operator) -> None:
    """The numbers of the console are those of the room, with their last minutes, and nothing of a visitor."""
    _, told, _ = await operator.ask("GET", "/v1/console.json", token=None)
    sale, tickets = told["rooms"]
    assert (sale["name"], tickets["name"]) == ("sale", "tickets")
    assert (sale["state"], sale["level"], sale["inside"], sale["limit"]) == ("open", "good", 0, 500)
    assert sale["tick_age"] < 5
    assert sale["history"]["inside"]
    assert TOKEN not in json.dumps(told)


SEEN = Snapshot(clock=1, waiting=3, inside=500, candidates=3)


@pytest.mark.parametrize(
    ("word", "changes", "seen", "age", "stalled"),
    [
        ("starting", {}, Snapshot(), 0.0, False),
        ("store lost", {"paused": True}, SEEN, 6.0, True),
        ("stalled", {"paused": True}, SEEN, 0.1, True),
        ("off", {"suspended": True, "paused": True}, SEEN, 0.1, False),
        ("paused", {"paused": True, "queue_all": True}, SEEN, 0.1, False),
        ("draining", {"queue_all": True}, SEEN, 0.1, False),
        ("queueing", {}, SEEN, 0.1, False),
        ("open", {}, replace(SEEN, waiting=0), 0.1, False),
    ],
)
def test_console_says_the_worst_first(
    word: str, changes: dict[str, bool], seen: Snapshot, age: float, *, stalled: bool
) -> None:
    """Of everything that holds of a room, its state is what somebody who was woken has to know first."""
    how = condition(replace(Room("sale"), **changes), seen, age, stalled=stalled)  # type: ignore[arg-type] # flags
    assert how.word == word
    assert (how.level == "bad") == (word in ("starting", "store lost", "stalled"))


@pytest.mark.parametrize(
    ("admitted", "rate"),
    [([], None), ([5], None), ([0, 4, 8], 120), ([0] * 40 + [100], 100), ([90, 95, 0], 0)],
    ids=["nothing", "one", "steady", "last minute only", "store emptied"],
)
def test_admissions_are_told_by_the_minute(admitted: list[int], rate: float | None) -> None:
    """The rate is that of the last minute, unknown before two samples, and never below zero."""
    samples = deque((Sample(2.0 * at, 0, 0, count) for at, count in enumerate(admitted)), maxlen=SAMPLES)
    assert per_minute(samples) == rate


async def test_a_compressed_body_is_not_unpacked(operator: Operator) -> None:
    """Nobody makes much of little here: a packed body is no JSON."""
    packed = gzip.compress(json.dumps({"set": {"total_active_users": 40}, **WHO}).encode())
    status, told, _ = await operator.ask(
        "PATCH", "/v1/rooms/sale", packed, If_Match='"1"', Content_Encoding="gzip"
    )
    assert (status, told["title"]) == (400, "The body is not JSON")
