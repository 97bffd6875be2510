import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.conftest import eventually
from tests.wire import OK, Wire, dial, gate, get, storefront
from waitingroom.proxy import Failure, OriginLimits

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: telnet\r\n\r\n"
UPGRADE = get("/", "Connection: Upgrade", "Upgrade: telnet")


async def chat(socket: ServerConnection) -> None:
    """Send every message back; close when asked to."""
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as you wish")
        else:
            await socket.send(message)


def address(server: Server) -> str:
    """Where a WebSocket server listens."""
    port: int = server.sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


async def test_websockets_pass_both_ways() -> None:
    """An independent client and server talk through the gateway in small and large messages."""
    async with serve(chat, "127.0.0.1", 0, max_size=None) as server, gate(address(server)) as front:
        async with connect(f"ws://127.0.0.1:{front.port}/chat", max_size=None, proxy=None) as socket:
            for message in ("hello", b"\0" * 3_000_000, "ä" * 70_000):
                await socket.send(message)
                assert await socket.recv() == message
        await eventually(lambda: bool(front.outcomes))
        assert (front.outcomes[0].status, front.outcomes[0].failure) == (101, None)


async def test_closings_pass_both_ways() -> None:
    """Whoever closes, the other end hears the code and the reason."""
    heard: list[int | None] = []

    async def listen(socket: ServerConnection) -> None:
        try:
            await chat(socket)
        finally:
            heard.append(socket.close_code)

    async with serve(listen, "127.0.0.1", 0) as server, gate(address(server)) as front:
        url = f"ws://127.0.0.1:{front.port}/"
        async with connect(url, proxy=None) as socket:
            await socket.close(4000, "enough")
        await eventually(lambda: heard == [4000])
        async with connect(url, proxy=None) as socket:
            await socket.send("bye")
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")
        await eventually(lambda: front.listener.connections == 0 and front.upstream.pool.size == 0)


async def test_tunnels_carry_bytes_and_half_closings() -> None:
    """Any protocol passes; one side may finish while the other still talks."""

    async def talk(wire: Wire, _head: bytes) -> None:
        await wire.send(SWITCHED + b"welcome")
        said = await wire.rest()
        await wire.send(b"you said " + said)
        wire.close()

    async with storefront(talk) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(UPGRADE)
        assert await client.head() == SWITCHED.replace(b"upgrade", b"Upgrade")
        assert await client.exactly(7) == b"welcome"
        await client.send(b"GET /\0\r\n\r\n")
        client.writer.write_eof()
        assert await client.rest() == b"you said GET /\0\r\n\r\n"
        assert b"\r\nConnection: Upgrade\r\nUpgrade: telnet\r\n" in shop.heads[0]
        await eventually(lambda: front.upstream.pool.size == 0)


async def test_bytes_behind_an_upgrade_wait_for_the_101() -> None:
    """Eager bytes enter the tunnel once there is one; before, the origin sees none of them."""
    switch = asyncio.Event()

    async def consider(wire: Wire, _head: bytes) -> None:
        early = asyncio.create_task(wire.reader.read(5))
        await switch.wait()
        assert not early.done()
        await wire.send(SWITCHED)
        await wire.send(await early)

    async with storefront(consider) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(UPGRADE + b"eager")
        await eventually(lambda: len(shop.heads) == 1)
        switch.set()
        await client.head()
        assert await client.exactly(5) == b"eager"


async def test_a_declined_upgrade_is_no_tunnel() -> None:
    """Without a 101 the bytes behind the request are the next request, checked as any other."""
    async with storefront(OK) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(UPGRADE + b"GET / HTTP/1.1\r\nHost : evil\r\n\r\n")
        assert (await client.answer())[1] == b"ok"
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        assert len(shop.heads) == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
        get("/", "Upgrade: telnet"),
        get("/", "Connection: Upgrade", "Upgrade: telnet", "Content-Length: 3") + b"abc",
        get("/", "Connection: Upgrade", "Upgrade: telnet").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["h2c", "not named by Connection", "with a body", "HTTP/1.0"],
)  # fmt: skip
async def test_some_upgrades_are_not_passed_on(request_bytes: bytes) -> None:
    """Cleartext HTTP/2 would carry requests past every check; half-asked upgrades are not asked for."""
    async with storefront(SWITCHED) as shop, gate(shop.url) as front, dial(front.port) as client:
        await client.send(request_bytes)
        assert (await client.answer())[0].status == 502
        assert b"upgrade" not in shop.heads[0].lower()


async def test_tunnels_end_with_either_side() -> None:
    """A shopper or an origin that vanishes takes the other side of the tunnel along."""

    async def hold(wire: Wire, head: bytes) -> None:
        await wire.send(SWITCHED)
        if b"/hold" in head:
            await wire.rest()
        wire.reset()

    async with storefront(hold) as shop, gate(shop.url) as front:
        async with dial(front.port) as client:
            await client.send(UPGRADE.replace(b" / ", b" /hold "))
            await client.head()
        await eventually(lambda: shop.closed == 1)
        async with dial(front.port) as client:
            await client.send(UPGRADE)
            await client.rest()
        await eventually(lambda: front.listener.connections == 0)


async def test_silent_tunnels_end() -> None:
    """A tunnel in which nobody speaks is closed after its own time-out."""

    async def hush(wire: Wire, _head: bytes) -> None:
        await wire.send(SWITCHED)
        await wire.rest()

    limits = OriginLimits(tunnel_timeout=0.2, idle_timeout=0.1)
    async with storefront(hush) as shop, gate(shop.url, origin=limits) as front, dial(front.port) as client:
        await client.send(UPGRADE)
        await client.head()
        assert await client.rest() == b""
        await eventually(lambda: shop.closed == 1)
        assert front.outcomes[0].failure is Failure.IDLE_TIMEOUT
