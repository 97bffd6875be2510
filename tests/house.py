"""A shop with its waiting room in the hands of a test: real gateways, store and origin, and one clock."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis

from tests.clockwork import OPENING, SOURCE, Clock
from tests.wire import Storefront, Wire, dial, storefront
from waitingroom import config
from waitingroom.desk import Desk
from waitingroom.heads import ResponseHead
from waitingroom.room import Room
from waitingroom.server import Server
from waitingroom.tickets import Keyring, Token

KEY = "a signing key of the tests, of more than 32 bytes"

GOODS = bytes(range(256)) * 40
"""What the origin shows to everybody, byte for byte."""

ROOM = Room(name="sale", total_active_users=100, new_users_per_minute=60_000)


@dataclass
class Origin:
    """A storefront that answers by path; `release` lets /slow begin, and /begun end."""

    front: Storefront | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def heads(self) -> list[bytes]:
        """Every request head that reached it."""
        assert self.front is not None
        return self.front.heads

    @property
    def paths(self) -> list[str]:
        """Method and target of every request that reached it."""
        return [" ".join(head.decode("latin-1").split(" ", 2)[:2]) for head in self.heads]

    async def answer(self, wire: Wire, head: bytes) -> None:
        """Serve one request."""
        path = head.split(b" ", 2)[1]
        if path == b"/slow":
            await self.release.wait()
        if path.endswith(b"/broken"):
            await wire.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            return
        if path == b"/begun":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            await self.release.wait()
            await wire.send(b"whole")
            return
        extra = {
            b"/public": b"Cache-Control: public, max-age=60\r\n",
            b"/thanks": b"Waiting-Room-Command: revoke\r\n",
            b"/merci": b"Cf-Waiting-Room-Command: Revoke\r\n",
            b"/shop-cookie": b"Set-Cookie: basket=3\r\n",
        }.get(path, b"")
        await wire.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(GOODS), GOODS))


@dataclass(frozen=True)
class Reply:
    """One answer as a shopper got it."""

    head: ResponseHead
    body: bytes

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def inside(self) -> bool:
        """Whether the origin answered."""
        return self.body == GOODS

    @property
    def state(self) -> str:
        """What the visitor was told, "" if the origin answered."""
        return self.header("waiting-room")

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def cookies(self) -> list[str]:
        """Every Set-Cookie line."""
        return [line.decode() for line in self.head.get_all(b"set-cookie")]

    def header(self, name: str) -> str:
        return (self.head.get(name.encode()) or b"").decode()


class Shopper:
    """Somebody with a browser, that keeps cookies, at one gateway.

    Attributes:
        port: of the gateway that they are sent to.
        jar: their cookies.
        lines: header lines of every request.
    """

    def __init__(self, port: int, *lines: str, host: str = "shop.example") -> None:
        self.port = port
        self.jar: dict[str, str] = {}
        self.lines = lines
        self.host = host

    def request(self, method: str, target: str, *lines: str, accept: str = "text/html") -> bytes:
        """The bytes of a request without a body."""
        fields = [f"{method} {target} HTTP/1.1", f"Host: {self.host}", f"Accept: {accept}"]
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        fields += [f"Cookie: {cookie}"] if cookie else []
        return "\r\n".join([*fields, *self.lines, *lines, "", ""]).encode("latin-1")

    async def ask(
        self, method: str, target: str, *lines: str, accept: str = "text/html", body: bytes = b""
    ) -> Reply:
        """Send one request and keep what its answer says about cookies."""
        if method == "POST":
            lines = (*lines, f"Content-Length: {len(body)}")
        async with dial(self.port) as wire:
            await wire.send(self.request(method, target, *lines, accept=accept) + body)
            reply = Reply(*await wire.answer(method.encode()))
        for line in reply.cookies:
            pair, _, attributes = line.partition(";")
            name, _, value = pair.partition("=")
            self.jar[name] = value
            if "Max-Age=0" in attributes:
                del self.jar[name]
        return reply

    async def visit(self, target: str = "/", *lines: str) -> Reply:
        """Open a page."""
        return await self.ask("GET", target, *lines)

    async def poll(self, query: str = "", room: str = "sale") -> Reply:
        """Ask where they stand."""
        return await self.ask("GET", f"/.waitingroom/status?room={room}{query}", accept="application/json")

    async def leave(self, *lines: str) -> Reply:
        """Give up the place or the seat."""
        return await self.ask("POST", "/.waitingroom/leave?room=sale", *lines, accept="*/*")

    @property
    def token(self) -> Token:
        """What their cookie proves."""
        return Keyring([KEY.encode()]).verify(self.jar["wr-sale"], "sale")


@dataclass
class House:
    """Gateways on one store before one origin; `clock` is the store's, and ticks come when told to."""

    origin: Origin
    clock: Clock
    gateways: list[Server]

    def desk(self, gateway: int = 0, room: str = "sale") -> Desk:
        return self.gateways[gateway]._desks[room]

    def shopper(self, *lines: str, gateway: int = 0, host: str = "shop.example") -> Shopper:
        return Shopper(self.gateways[gateway].public_address[1], *lines, host=host)

    def metric(self, name: str, **labels: str) -> float:
        """What the first gateway's telemetry has counted."""
        found = self.gateways[0]._telemetry.registry.get_sample_value(f"waitingroom_{name}", labels)
        return found or 0.0

    def silence(self, seconds: float) -> None:
        """Let it be so long since any gateway has heard of the store."""
        for server in self.gateways:
            for desk in server._desks.values():
                desk._at -= seconds

    async def tick(self, gateway: int | None = None) -> None:
        """Let one gateway exchange with the store, or all of them in turn."""
        for index, server in enumerate(self.gateways):
            if gateway in (None, index):
                for desk in server._desks.values():
                    await server._ticker.attempt(desk)

    async def pass_time(
        self, seconds: float, waiting: Iterable[Shopper] = (), inside: Iterable[Shopper] = ()
    ) -> None:
        """Let the clock run in steps that it follows, while people poll and look at pages twice a minute."""
        spent = 0.0
        while spent < seconds:
            if spent % 30 == 0:
                for shopper in waiting:
                    await shopper.poll()
                for shopper in inside:
                    assert (await shopper.visit()).inside
            step = min(3.0, seconds - spent)
            self.clock.advance(round(step * 1000))
            await self.tick()
            spent += step

    async def enter(self) -> Shopper:
        """Somebody new who walks in, and whose cookie has come back."""
        shopper = self.shopper()
        assert (await shopper.visit()).inside
        assert (await shopper.visit()).inside
        await self.tick()
        return shopper

    async def queue(self, gateway: int = 0) -> Shopper:
        """Somebody new who has to wait, and has been seen to."""
        shopper = self.shopper(gateway=gateway)
        assert (await shopper.visit()).state == "waiting"
        await shopper.poll()
        await self.tick()
        return shopper

    async def change(self, room: str = "sale", **settings: Any) -> None:
        """Change a room in the store, as any gateway's operator may."""
        store = self.gateways[0]._store
        now = await store.load(room)
        await store.change(replace(now, **settings), now, "anna", "the sale is on")


def settings(url: str, data: Path, *rooms: Room, timeout: float = 2.0, **server: Any) -> config.Settings:
    """Settings of a gateway on free ports; `timeout` is the store's."""
    listeners = {"listen": "127.0.0.1:0", "private_listen": "127.0.0.1:0"}
    return config.Settings(
        server=config.Server(**(listeners | server)),
        store=config.StoreSettings(url=url, data=str(data), timeout=timeout),
        tokens=config.TokenSettings(keys=(KEY,)),
        rooms=rooms,
    )


@asynccontextmanager
async def opened(chosen: config.Settings) -> AsyncIterator[Server]:
    """A gateway on the clock of the tests, whose ticks come when the test says so."""
    gateway = Server(chosen, clock=SOURCE)
    await gateway.start()
    try:
        gateway._ticking.cancel()
        await asyncio.wait([gateway._ticking])
        yield gateway
    finally:
        await gateway.stop()


@asynccontextmanager
async def house(
    url: str,
    data: Path,
    *rooms: Room,
    gateways: int = 1,
    server: dict[str, Any] | None = None,
    at: str | None = None,
    now: int = OPENING,
    **changes: Any,
) -> AsyncIterator[House]:
    """Open a shop: one room, `ROOM` with `changes`, unless others are given.

    `at` is the store's address as gateways have it, if it is not the clock's; `now` is when it opens.
    """
    async with AsyncExitStack() as stack:
        origin = Origin()
        front = origin.front = await stack.enter_async_context(storefront(origin.answer))
        clock = stack.enter_context(Clock(url, now))
        behind = [
            replace(room, upstream=room.upstream or front.url) for room in rooms or [replace(ROOM, **changes)]
        ]
        chosen = settings(at or url, data, *behind, **(server or {}))
        servers = [await stack.enter_async_context(opened(chosen)) for _ in range(gateways)]
        yield House(origin, clock, servers)


def calls(url: str) -> int:
    """Script calls that the store has served since it was last asked."""
    with redis.Redis.from_url(url) as client:
        stats: dict[str, dict[str, int]] = client.info("commandstats")
        client.config_resetstat()
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))
