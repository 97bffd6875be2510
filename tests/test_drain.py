"""How a gateway stops: nobody whom the kernel has let in goes without an answer."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.house import house
from tests.processes import Crowd, admitted, judge, room, serving, shop
from tests.wire import dial, get, tls_contexts

Port = Callable[[], int]


@pytest.mark.parametrize(
    ("words", "everybody"),
    [((), False), (("--workers", "2"), False), (("--workers", "2"), True)],
    ids=["one process", "workers", "workers signalled as well"],
)
async def test_sigterm_loses_nobody(
    tmp_path: Path,
    valkey_url: str,
    free_port: Port,
    words: tuple[str, ...],
    everybody: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """With many requests under way, slow ones and uploads among them, each that has come in is answered."""
    async with shop() as origin:
        where = {"rooms": room(upstream=origin.url)}
        async with serving(tmp_path, valkey_url, free_port, *words, **where) as gateway:
            crowd = Crowd(gateway.port, await admitted(gateway.port))
            async with crowd.pressing(60):
                await crowd.more(200)
                for pid in gateway.workers().values() if everybody else ():
                    os.kill(pid, signal.SIGTERM)  # as a service manager does that ends a whole group
                gateway.send(signal.SIGTERM)
                await crowd.turned_away()
            assert await gateway.ended() == 0
            judge(crowd, origin)


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["one process", "workers"])
async def test_probes_answer_until_the_end(
    tmp_path: Path, valkey_url: str, free_port: Port, words: tuple[str, ...]
) -> None:
    """Not ready at once; alive and measured for as long as anything is under way."""
    async with shop() as origin:
        where = {"rooms": room(upstream=origin.url)}
        async with serving(tmp_path, valkey_url, free_port, *words, **where) as gateway:
            cookie = await admitted(gateway.port)
            async with dial(gateway.port) as wire:
                await wire.send(get("/held", f"Cookie: {cookie}", "X-Id: held"))
                await eventually(lambda: "held" in origin.begun)
                gateway.send(signal.SIGTERM)

                async def drains() -> bool:
                    status, document = await gateway.ask("/readyz")
                    return status == 503 and "draining" in document["title"]

                await eventually(drains)
                assert (await gateway.ask("/healthz"))[0] == 200
                assert await gateway.metric("connections_open", "shopper") == 1
                origin.release.set()
                head, body = await wire.answer()
                assert (head.status, body, head.keep_alive) == (200, b"held 0", False)
            assert await gateway.ended() == 0


async def test_requests_have_the_drain_timeout_and_no_longer(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """Whoever is not finished by then is cut off, and the gateway ends as it should."""
    async with shop() as origin:
        where = {"rooms": room(upstream=origin.url), "server": 'drain_timeout = "300ms"'}
        async with serving(tmp_path, valkey_url, free_port, **where) as gateway:
            cookie = await admitted(gateway.port)
            async with dial(gateway.port) as wire:
                await wire.send(get("/held", f"Cookie: {cookie}", "X-Id: held"))
                await eventually(lambda: "held" in origin.begun)
                gateway.send(signal.SIGTERM)
                assert await wire.rest() == b""
            assert await gateway.ended() == 0


async def test_who_waits_to_be_accepted_is_served(valkey_url: str, tmp_path: Path) -> None:
    """Connections that the kernel has made count, and requests in them, though no process has seen them."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        server = shop.gateways[0]
        request = shopper.request("GET", "/")
        waiting = [socket.create_connection(("127.0.0.1", shopper.port)) for _ in range(20)]
        for client in waiting:
            client.sendall(request)
        # The event loop has not turned since: all of them are in the kernel's queue.
        await server.stop()
        for client in waiting:
            with client:
                client.settimeout(5)
                assert client.recv(15) == b"HTTP/1.1 200 OK"


async def test_idle_connections_close_at_once(valkey_url: str, tmp_path: Path) -> None:
    """One that was used before is not waited for, one that has said nothing is for a moment only."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        async with dial(shopper.port) as used, dial(shopper.port) as fresh:
            await used.send(shopper.request("GET", "/"))
            await used.answer()
            began = asyncio.get_running_loop().time()
            stopping = asyncio.create_task(shop.gateways[0].stop())
            assert await used.rest() == b""
            assert asyncio.get_running_loop().time() - began < 0.9
            await fresh.send(shopper.request("GET", "/"))
            head, _ = await fresh.answer()
            assert (head.status, head.keep_alive) == (200, False)
            await stopping


async def test_an_answer_that_had_begun_is_the_last_of_its_connection(
    valkey_url: str, tmp_path: Path
) -> None:
    """Its head could not say so, but the connection closes after it, and nobody waits for the time-out."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        async with dial(shopper.port) as wire:
            await wire.send(shopper.request("GET", "/begun"))
            assert b"keep-alive" not in (await wire.head()).lower()
            stopping = asyncio.create_task(shop.gateways[0].stop())
            await eventually(lambda: shop.gateways[0]._listener.premises.draining)
            shop.origin.release.set()
            assert await wire.rest() == b"whole"
            await asyncio.wait_for(stopping, 5)


async def test_a_handshake_of_tls_is_waited_for(valkey_url: str, tmp_path: Path) -> None:
    """Who has connected and has not finished the handshake is served as well."""
    _, client = tls_contexts(tmp_path)
    files = {"tls_certificate": str(tmp_path / "both.pem"), "tls_key": str(tmp_path / "both.pem")}
    async with house(valkey_url, tmp_path, server=files) as shop:
        shopper = shop.shopper()
        raw = socket.create_connection(("127.0.0.1", shopper.port))
        raw.setblocking(False)
        await eventually(lambda: shop.gateways[0]._listener.premises.called == 1)
        stopping = asyncio.create_task(shop.gateways[0].stop())
        await eventually(lambda: shop.gateways[0]._listener.premises.draining)
        reader, writer = await asyncio.open_connection(sock=raw, ssl=client, server_hostname="127.0.0.1")
        assert not stopping.done()
        writer.write(shopper.request("GET", "/"))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        await stopping
