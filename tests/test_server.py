"""What a gateway refuses to start with, what it starts with, and how it ends."""

import asyncio
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tests.house import GOODS, ROOM, Shopper, house, settings
from tests.wire import OK, dial, storefront
from waitingroom.access import digest
from waitingroom.config import ConfigError, Settings, TokenSettings
from waitingroom.keys import admin_tokens, data_folder
from waitingroom.server import Server
from waitingroom.sockets import parse_address

SHOP = replace(ROOM, upstream="http://127.0.0.1:9")


async def refusal(chosen: Settings) -> ConfigError:
    """How a gateway refuses to start."""
    server = Server(chosen)
    with pytest.raises(ConfigError) as raised:
        await server.start()
    await server.stop()
    return raised.value


@pytest.mark.parametrize(
    ("tokens", "where"),
    [
        (TokenSettings(), "[tokens] keys"),
        (TokenSettings(keys=("",)), "[tokens] keys"),
        (TokenSettings(keys=("too short",)), "[tokens] keys"),
        (TokenSettings(keys_file="/nowhere/keys"), "[tokens] keys_file"),
    ],
)
async def test_no_start_without_a_key_that_gateways_can_share(
    valkey_url: str, tmp_path: Path, tokens: TokenSettings, where: str
) -> None:
    """With a store of its own each gateway would sign for itself, and refuse what the others signed."""
    error = await refusal(replace(settings(valkey_url, tmp_path, SHOP), tokens=tokens))
    assert error.where == where
    assert error.remedy
    assert "too short" not in str(error)


@pytest.mark.parametrize(
    ("server", "where"),
    [
        ({"listen": "192.0.2.1:8080"}, "[server] listen"),
        ({"private_listen": "192.0.2.1:9090"}, "[server] private_listen"),
        ({"tls_certificate": "/nowhere.pem", "tls_key": "/nowhere.key"}, "[server] tls_certificate"),
    ],
)
async def test_no_start_on_what_cannot_be_listened_on(
    valkey_url: str, tmp_path: Path, server: dict[str, Any], where: str
) -> None:
    """The message names the setting, the address or file, and the way out."""
    error = await refusal(settings(valkey_url, tmp_path, SHOP, **server))
    assert error.where == where
    assert next(iter(server.values())) in error.what
    assert error.remedy


async def test_no_start_on_an_address_that_is_taken(valkey_url: str, tmp_path: Path) -> None:
    """Another gateway has it; ours leaves nothing behind, and starts once it is free."""
    first = Server(settings(valkey_url, tmp_path, SHOP))
    await first.start()
    chosen = settings(valkey_url, tmp_path, SHOP, listen="{}:{}".format(*first.public_address))
    error = await refusal(chosen)
    assert (error.where, "in use" in error.what) == ("[server] listen", True)
    await first.stop()
    second = Server(chosen)
    await second.start()
    await second.stop()


@pytest.mark.parametrize(
    ("look", "what"),
    [
        ({"accent_color": "#ffff00"}, "accent_color"),
        ({"shop_logo": "/nowhere.svg"}, "shop_logo"),
    ],
)
async def test_no_start_with_a_look_that_cannot_be_shown(
    valkey_url: str, tmp_path: Path, look: dict[str, Any], what: str
) -> None:
    """A colour that nobody can read, a logo that is not there: the room and the setting are named."""
    error = await refusal(settings(valkey_url, tmp_path, replace(SHOP, **look)))
    assert error.where == "room sale"
    assert what in error.what
    assert error.remedy


async def test_no_start_with_a_store_address_that_is_none(tmp_path: Path) -> None:
    """What redis-py cannot read is a setting to be mended, not a traceback."""
    error = await refusal(settings("redis://127.0.0.1:port", tmp_path, SHOP))
    assert error.where == "[store] url"
    assert "redis://" in error.remedy


async def test_no_start_with_a_data_folder_that_cannot_be_made(valkey_url: str, tmp_path: Path) -> None:
    """A file stands in its place."""
    (tmp_path / "file").write_text("")
    error = await refusal(settings(valkey_url, tmp_path / "file" / "data", SHOP))
    assert error.where == "[store] data"
    assert error.remedy


async def test_the_embedded_default_makes_its_own_secrets(tmp_path: Path) -> None:
    """Nobody else may read them, and a restart finds them and every place again."""
    async with storefront(OK) as shop:
        room = replace(ROOM, upstream=shop.url, queue_all=True)
        chosen = replace(settings("embedded", tmp_path / "data", room), tokens=TokenSettings())
        shopper = Shopper(0)
        positions = []
        for _ in range(2):
            server = Server(chosen)
            await server.start()
            shopper.port = server.public_address[1]
            assert (await shopper.visit()).state == "waiting"
            positions.append((await shopper.poll()).document["position"])
            await server.stop()
    assert positions == [1, 1]
    for name in ("signing.key", "admin.token"):
        assert (tmp_path / "data" / name).stat().st_mode & 0o777 == 0o600


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """Of many who start at the same time one makes it, and all read the same, whole."""
    chosen = settings("embedded", tmp_path / "data", SHOP)
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: admin_tokens(chosen, data_folder(chosen)), range(64)))
    ((token,),) = found
    made = (tmp_path / "data" / "admin.token").read_text().strip()
    assert len(made) > 40
    assert token.digest == digest(made)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["admin.token"]


async def test_stopping_finishes_what_is_under_way(valkey_url: str, tmp_path: Path) -> None:
    """A request that the origin still works on gets its answer; new connections get none; nothing is lost."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        server = shop.gateways[0]
        async with dial(shopper.port) as busy, dial(shopper.port) as idle:
            await busy.send(shopper.request("GET", "/slow"))
            await eventually(lambda: "GET /slow" in shop.origin.paths)
            stopping = asyncio.create_task(server.stop())
            assert await idle.rest() == b""
            with pytest.raises(ConnectionError):
                await shopper.visit()
            shop.origin.release.set()
            head, body = await busy.answer()
            assert (head.status, body, head.keep_alive) == (200, GOODS, False)
        await stopping


async def test_stopping_hands_in_what_is_known(valkey_url: str, tmp_path: Path) -> None:
    """Whoever left in the last second leaves no seat behind."""
    async with house(valkey_url, tmp_path, gateways=2) as shop:
        shopper = await shop.enter()
        await shopper.leave()
        await shop.gateways[0].stop()
        await shop.tick(1)
        assert shop.desk(1).snapshot.inside == 0


async def test_a_gateway_ticks_by_itself(valkey_url: str, tmp_path: Path) -> None:
    """From the first second on, and ends with its server."""
    server = Server(settings(valkey_url, tmp_path, SHOP))
    await server.start()
    first = server._desks["sale"].snapshot.clock
    await eventually(lambda: server._desks["sale"].snapshot.clock > first)
    await server.stop()
    assert server._ticking.done()


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """Settings with a certificate of a day, and its key."""
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    new = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=shop.example"
    )
    out = ["-keyout", files["tls_key"], "-out", files["tls_certificate"]]
    subprocess.run([*new.split(), *out], check=True, capture_output=True)
    return files


async def test_tls_is_served(valkey_url: str, tmp_path: Path, certificate: dict[str, str]) -> None:
    """The cookie is bound to it, and only to it."""
    context = ssl.create_default_context(cafile=certificate["tls_certificate"])
    context.check_hostname = False
    async with house(valkey_url, tmp_path, server=certificate) as shop:
        shopper = shop.shopper()
        async with dial(shopper.port, context) as wire:
            await wire.send(shopper.request("GET", "/"))
            head, body = await wire.answer()
    assert body == GOODS
    assert (head.get(b"set-cookie") or b"").startswith(b"__Host-wr-sale=")


async def test_a_slow_handshake_has_the_time_of_a_head(
    valkey_url: str, tmp_path: Path, certificate: dict[str, str]
) -> None:
    """Who connects to the TLS listener and says nothing, or not enough, is cut."""
    async with house(valkey_url, tmp_path, server=certificate | {"head_timeout": 0.3}) as shop:
        port = shop.shopper().port
        async with dial(port) as silent, dial(port) as slow:
            await slow.send(b"\x16\x03\x01\x02\x00\x01\x00")
            assert (await silent.rest(), await slow.rest()) == (b"", b"")


async def test_the_stores_room_counts_and_a_difference_is_told(
    valkey_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file seeds a room that the store does not have; it never overwrites what operators have set."""
    async with house(valkey_url, tmp_path, gateways=1) as shop:
        await shop.change(total_active_users=7)
        other = Server(settings(valkey_url, tmp_path, replace(SHOP, upstream=shop.desk().room.upstream)))
        await other.start()
        assert other._desks["sale"].room.total_active_users == 7
        await other.stop()
    assert "room_differs_from_file" in "".join(capfd.readouterr())


async def test_a_live_change_that_this_machine_cannot_show_leaves_the_page_standing(
    valkey_url: str, tmp_path: Path
) -> None:
    """A logo that only another machine has must not take the waiting page away here."""
    async with house(valkey_url, tmp_path, queue_all=True) as shop:
        await shop.change(shop_logo="/nowhere.svg", message="Soon.")
        await shop.tick()
        page = await shop.shopper().visit()
        assert (page.status, page.state, b"Soon." in page.body) == (200, "waiting", True)
        assert shop.metric("tick_failures_total", room="sale") == 0


def test_addresses_are_split() -> None:
    """Host and port, IPv6 in brackets."""
    assert parse_address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert parse_address("[::1]:8080") == ("::1", 8080)
