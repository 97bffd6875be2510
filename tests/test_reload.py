"""A configuration that is read anew: what is good is in force everywhere, what is not changes nothing."""

import os
import signal
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import eventually
from tests.house import KEY
from tests.processes import Gateway, configuration, launched, room, serving, shop
from tests.wire import dial, get
from waitingroom.config import load_text
from waitingroom.orders import RESTART, Orders, Source, waiting_for_restart

Port = Callable[[], int]

both = pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["one process", "workers"])
OLD, NEW = "an old signing key of more than 32 bytes", "a new signing key of more than 32 bytes"


async def reload(gateway: Gateway, text: str = "") -> None:
    """Have the gateway read its configuration, after changing it, and wait until it has counted that."""
    done = await gateway.metrics()
    if text:
        gateway.config.write_text(text)
    gateway.send(signal.SIGHUP)

    async def counted() -> bool:
        now = await gateway.metrics()
        return any(
            now["config_reloads_total", (outcome,)] > done["config_reloads_total", (outcome,)]
            for outcome in ("done", "refused")
        )

    await eventually(counted, 20)


async def visit(
    gateway: Gateway, path: str = "/", *lines: str, host: str = "shop.example"
) -> tuple[int, str]:
    """Status of one request, and the Set-Cookie line, if there is any."""
    async with dial(gateway.port) as wire:
        request = get(path, "Accept: text/html", "X-Id: visit", *lines)
        await wire.send(request.replace(b"Host: shop.example", f"Host: {host}".encode()))
        head, _ = await wire.answer()
        return head.status, (head.get(b"set-cookie") or b"").decode()


@both
async def test_rooms_come_and_go(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """A new room is served at once and ticks; one that is gone from the file is nowhere, and not measured."""
    async with shop() as origin:
        first = room("first", upstream=origin.url, hosts=["first.example"])
        second = room("second", upstream=origin.url, hosts=["second.example"])
        async with serving(tmp_path, valkey_url, free_port, *words, rooms=first) as gateway:
            assert (await visit(gateway, host="first.example"))[0] == 200
            assert (await visit(gateway, host="second.example"))[0] == 404
            await reload(gateway, gateway.config.read_text().replace(first, first + second))
            for _ in range(8):
                assert (await visit(gateway, host="second.example"))[0] == 200
            await gateway.until("joined_total", "second", is_=8)
            assert (await gateway.ask("/readyz"))[1]["rooms"] == ["first", "second"]
            await reload(gateway, gateway.config.read_text().replace(first, ""))
            for _ in range(8):
                assert (await visit(gateway, host="first.example"))[0] == 404
            assert (await visit(gateway, host="second.example"))[0] == 200
            rooms = {labels[0] for name, labels in await gateway.metrics() if name == "tick_age_seconds"}
            assert rooms == {"second"}


@both
async def test_what_cannot_stand_changes_nothing(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """It is logged with place and remedy, counted, and told until a good one comes; shoppers see nothing."""
    async with shop() as origin:
        rooms = room(upstream=origin.url)
        async with serving(tmp_path, valkey_url, free_port, *words, rooms=rooms) as gateway:
            good = gateway.config.read_text()
            for bad, where in (
                (good.replace("[store]", "lissten = 1\n[store]"), "lissten"),
                (good.replace(KEY, "short"), "[tokens] keys"),
                (good.replace(rooms, ""), "waitingroom.toml"),
                (good.replace("[store]", 'tls_certificate = "/no.pem"\ntls_key = "/no.pem"\n[store]'), "tls"),
            ):
                count = len(gateway.events("config_refused"))
                await reload(gateway, bad)
                told = await gateway.event("config_refused", count + 1)
                assert (told["level"], where in told["where"]) == ("error", True)
                assert told["what"]
                assert told["remedy"]
                assert "short" not in gateway.log.read_text()
                assert await gateway.metric("config_reload_refused") == 1
                assert (await visit(gateway))[0] == 200
            await reload(gateway, good)
            assert await gateway.metric("config_reload_refused") == 0
            assert await gateway.metric("config_reloads_total", "refused") == 4
            assert await gateway.metric("config_reloads_total", "done") == 1


async def test_rotating_keys_loses_nobody(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Who carries a ticket of the old key keeps their place for as long as the key is listed."""
    keys = tmp_path / "keys"
    keys.write_text(OLD)
    async with shop() as origin:
        port, private = free_port(), free_port()
        text = configuration(tmp_path, valkey_url, port, private, room(upstream=origin.url, queue_all=True))
        text = text.replace(f'keys = ["{KEY}"]', f'keys_file = "{keys}"')
        with launched(tmp_path, text, port, private, "--workers", "2") as gateway:
            await gateway.event("gateway_started")
            ticket = (await visit(gateway))[1].partition(";")[0]
            assert await positions(gateway, ticket) == {1}
            keys.write_text(f"{NEW}\n{OLD}\n")
            await reload(gateway)
            assert await positions(gateway, ticket) == {1}
            fresh = (await visit(gateway))[1].partition(";")[0]
            assert fresh.partition(".")[0] != ticket.partition(".")[0]
            assert await positions(gateway, fresh) == {2}
            keys.write_text(NEW)
            await reload(gateway)
            assert await positions(gateway, ticket) == {None}
            assert await positions(gateway, fresh) == {2}


async def positions(gateway: Gateway, ticket: str) -> set[int | None]:
    """What somebody with this cookie is told on many connections, once the ticks have caught up."""
    seen: set[int | None] = set()

    async def agreed() -> bool:
        seen.clear()
        async with aiohttp.ClientSession() as session:
            for _ in range(12):
                url = f"http://127.0.0.1:{gateway.port}/.waitingroom/status?room=sale"
                async with session.get(url, headers={"Cookie": ticket, "Connection": "close"}) as answer:
                    seen.add((await answer.json())["position"])
        return len(seen) == 1

    await eventually(agreed, 10)
    return seen


def certify(folder: Path, name: str) -> dict[str, str]:
    """A new certificate with this common name in the files `cert.pem` and `key.pem`."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*new.split(), "-subj", f"/CN={name}", *files], check=True, capture_output=True)
    return {"tls_certificate": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}


async def presented(gateway: Gateway, port: int = 0) -> bytes:
    """The certificate that a new connection, else to the public port, is shown, without SNI."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with dial(port or gateway.port, context) as wire:
        found: bytes = wire.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found


async def test_a_new_certificate_is_shown_to_new_handshakes(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """Open connections go on; a pair that does not belong together is refused, and the old one stays."""
    server = "".join(f'{key} = "{value}"\n' for key, value in certify(tmp_path, "old").items())
    async with shop() as origin:
        where = {"rooms": room(upstream=origin.url), "server": server}
        async with serving(tmp_path, valkey_url, free_port, **where) as gateway:
            context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
            context.check_hostname = False
            old = await presented(gateway)
            async with dial(gateway.port, context) as wire:
                certify(tmp_path, "new")
                await reload(gateway)
                new = await presented(gateway)
                assert b"new" in new
                assert b"old" in old
                await wire.send(get("/", "X-Id: open"))
                assert (await wire.answer())[0].status == 200
            key = (tmp_path / "key.pem").read_bytes()
            certify(tmp_path, "other")
            (tmp_path / "key.pem").write_bytes(key)
            await reload(gateway)
            assert await gateway.metric("config_reload_refused") == 1
            assert {await presented(gateway) for _ in range(6)} == {new}


@both
async def test_a_new_private_certificate_is_shown_to_new_handshakes(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """Where the private listener has TLS, a restart is not needed for its certificate either."""
    port, private = free_port(), free_port()
    server = "".join(f'private_{key} = "{value}"\n' for key, value in certify(tmp_path, "old").items())
    text = configuration(tmp_path, valkey_url, port, private, room(upstream="http://127.0.0.1:9"), server)
    with launched(tmp_path, text, port, private, *words) as gateway:
        await gateway.event("gateway_started")
        old = await presented(gateway, private)
        certify(tmp_path, "new")
        gateway.send(signal.SIGHUP)

        async def renewed() -> bool:
            return await presented(gateway, private) != old

        await eventually(renewed, 20)
        assert b"new" in await presented(gateway, private)
        assert b"old" in old


@both
async def test_what_could_not_start_again_is_refused(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """A private listener in clear text for everybody is refused now, not at the next start."""
    async with serving(
        tmp_path, valkey_url, free_port, *words, rooms=room(upstream="http://127.0.0.1:9")
    ) as gateway:
        text = gateway.config.read_text()
        await reload(gateway, text.replace('private_listen = "127.0.0.1', 'private_listen = "0.0.0.0'))
        assert (await gateway.event("config_refused"))["where"] == "[server] private_listen"
        await reload(gateway, text)
        assert await gateway.metric("config_reload_refused") == 0


async def test_limits_proxies_and_tokens_are_taken_over(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """What the listener allows, whom it believes, whose token counts, what is logged: without a restart."""
    token = tmp_path / "token"
    token.write_text("the first token of the test")
    more = f'[admin]\ntoken_file = "{token}"\n[log]\nlevel = "info"\n'
    async with shop() as origin:
        where = {"rooms": room(upstream=origin.url), "more": more}
        async with serving(tmp_path, valkey_url, free_port, "--workers", "2", **where) as gateway:
            forwarded = "X-Forwarded-Proto: https"
            long = "X-Long: " + "x" * 3000
            assert (await visit(gateway, "/", forwarded))[1].startswith("wr-sale=")
            assert (await visit(gateway, "/", long))[0] == 200
            text = gateway.config.read_text().replace('level = "info"', 'level = "warning"')
            settings = 'trusted_proxies = ["127.0.0.0/8"]\nmax_head_bytes = 2048\n'
            token.write_text("the second token of the test")
            await reload(gateway, text.replace("[store]", settings + "[store]"))
            assert (await visit(gateway, "/", forwarded))[1].startswith("__Host-wr-sale=")
            assert (await visit(gateway, "/", long))[0] == 431
            for given, status in (("first", 401), ("second", 200)):
                headers = {"Authorization": f"Bearer the {given} token of the test"}
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"{gateway.private}/v1/rooms", headers=headers) as answer,
                ):
                    assert answer.status == status
            await visit(gateway, "/quiet")
            await reload(gateway, text.replace('level = "warning"', 'level = "info"'))
            await visit(gateway, "/loud")

            def written() -> set[str]:
                return {line["path"] for line in gateway.events("request")}

            await eventually(lambda: "/loud" in written(), 10)
            assert "/quiet" not in written()


@both
async def test_what_needs_a_restart_is_named(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """The rest is taken over; differences between file and store are told anew."""
    async with shop() as origin:
        rooms = room(upstream=origin.url)
        async with serving(tmp_path, valkey_url, free_port, *words, rooms=rooms) as gateway:
            assert await gateway.metric("room_differences", "sale") == 0
            text = gateway.config.read_text().replace('tick = "200ms"', 'tick = "300ms"')
            text = text.replace(f":{gateway.port}", f":{free_port()}").replace(
                "users = 100000\n", "users = 90000\n"
            )
            await reload(gateway, text)
            told = await gateway.event("restart_needed")
            assert (told["level"], told["settings"]) == ("warning", ["[server] listen", "[store] tick"])
            assert await gateway.metric("room_differences", "sale") == 1
            assert (await visit(gateway))[0] == 200
            differs = await gateway.event("room_differs_from_file")
            assert differs["settings"] == ["total_active_users"]


async def test_sigusr2_without_workers_is_harmless(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """There is nothing to restart one after another; the gateway says so and goes on."""
    rooms = room(upstream="http://127.0.0.1:9")
    async with serving(tmp_path, valkey_url, free_port, rooms=rooms) as gateway:
        os.kill(gateway.process.pid, signal.SIGUSR2)
        await gateway.event("restart_refused")
        assert (await gateway.ask("/readyz"))[0] == 200


async def test_a_replaced_worker_has_the_orders_of_the_others(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """Whatever has become of the files: a key that was not taken over yet must not sign for one of them."""
    keys = tmp_path / "keys"
    keys.write_text(OLD)
    async with shop() as origin:
        port, private = free_port(), free_port()
        text = configuration(tmp_path, valkey_url, port, private, room(upstream=origin.url, queue_all=True))
        text = text.replace(f'keys = ["{KEY}"]', f'keys_file = "{keys}"')
        with launched(tmp_path, text, port, private, "--workers", "2") as gateway:
            await gateway.event("gateway_started")
            ticket = (await visit(gateway))[1].partition(";")[0]
            assert await positions(gateway, ticket) == {1}
            keys.write_text("")
            gateway.config.write_text("nonsense")
            for pid in gateway.workers().values():
                os.kill(pid, signal.SIGKILL)
            await gateway.event("worker_ready", 4)
            assert await positions(gateway, ticket) == {1}


def test_the_settings_that_wait_for_a_restart_exist() -> None:
    """The list names settings, and only what differs from the start is told."""
    settings = load_text("", {})
    for section, names in RESTART.items():
        for name in names:
            assert hasattr(getattr(settings, section), name)
    assert waiting_for_restart(settings, settings) == []
    other = load_text('[server]\nworkers = 2\nkeepalive_timeout = "5s"\n[log]\nformat = "json"\n', {})
    assert waiting_for_restart(settings, other) == ["[server] workers", "[log] format"]


def test_workers_share_what_a_gateway_may_take(tmp_path: Path) -> None:
    """Connections of shoppers and to the storefront are limits of the gateway, not of each worker."""
    file = tmp_path / "waitingroom.toml"
    file.write_text(
        f"[server]\nmax_connections = 10\nupstream_connections = 8\n{room(upstream='http://127.0.0.1:9')}"
    )
    source = Source(file, workers=4)
    assert source.read().server.workers == 4
    orders = Orders(str(file), source.text(), 4, "unix:///store", ["k" * 32], "00", as_json=None)
    settings = orders.settings()
    assert (settings.server.max_connections, settings.server.upstream_connections) == (3, 2)
    assert (settings.store.url, settings.tokens.keys) == ("unix:///store", ("k" * 32,))
