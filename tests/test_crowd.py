"""Simulated shoppers behave at the door as people's browsers do."""

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from waitingroom.crowd import Kind, Shopper, Tally
from waitingroom.storefront import Capacity, Storefront

ROOM = "demo"


class Hasty(Random):
    """Chance that makes everybody as quick, and as impatient, as they can be."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - Random's signature
        """Nobody waits for anything."""
        return 0.0


class Door:
    """The waiting room's protocol, played from a script of status documents, before one plain page."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.asked: list[str] = []
        self.origins: list[str] = []
        self._statuses = list(statuses)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Waiting until the script is at its end, then inside."""
        self.asked.append(f"{request.method} {request.path}")
        if request.path.endswith("/status"):
            assert request.query["room"] == ROOM
            return web.json_response({"poll_after": 0.001, **self._statuses.pop(0)})
        if request.path.endswith("/leave"):
            self.origins.append(request.headers["Origin"])
        waiting = {"Waiting-Room": "waiting"} if self._statuses else None
        return web.Response(text="page", headers=waiting)


Visit = Callable[[Kind, Door | Storefront], Awaitable[Tally]]


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    """Return a function that lets one shopper visit a door or a shop, and tells how it went."""
    runners: list[web.AppRunner] = []

    async def go(kind: Kind, door: Door | Storefront) -> Tally:
        if isinstance(door, Door):
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", door.answer)
            runners.append(web.AppRunner(app, access_log=None, shutdown_timeout=0.1))
            await runners[0].setup()
            await web.TCPSite(runners[0], "127.0.0.1", 0).start()
            host, port = runners[0].addresses[0][:2]
        else:
            host, port = await door.start()
        url, tally = f"http://{host}:{port}", Tally()
        jar = aiohttp.DummyCookieJar() if kind is Kind.BOT else aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(url, cookie_jar=jar) as browser:
            await Shopper(kind, browser, url, ROOM, tally, Hasty(7)).visit()
        return tally

    yield go
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def shop() -> AsyncIterator[Storefront]:
    """A shop that serves at once."""
    shop = Storefront(capacity=Capacity(service=0.0))
    yield shop
    await shop.stop()


WAIT, TURN = {"state": "waiting"}, {"state": "your_turn"}


async def test_buyer_orders_one_lamp(visit: Visit, shop: Storefront) -> None:
    """A buyer looks at lamps, orders one, sees the thank-you page, and is one visitor to the shop."""
    tally = await visit(Kind.BUYER, shop)
    assert (tally.admitted, tally.orders, tally.failed, tally.gave_up) == (1, 1, 0, 0)
    assert shop.orders == 1
    assert shop.log[-1].leaving
    assert len({entry.visitor for entry in shop.log}) == 1


async def test_browser_leaves_without_an_order(visit: Visit, shop: Storefront) -> None:
    """Somebody who only looks orders nothing."""
    tally = await visit(Kind.BROWSER, shop)
    assert (tally.admitted, tally.orders) == (1, 0)
    assert len(tally.times) == len(shop.log) > 1


async def test_bot_keeps_no_cookie(visit: Visit, shop: Storefront) -> None:
    """A bot is somebody new to the shop with each request, and nobody inside."""
    await visit(Kind.BOT, shop)
    assert len({entry.visitor for entry in shop.log}) == len(shop.log) >= 10
    assert shop.log.peak(60) == 0


async def test_waits_for_its_turn_and_then_navigates(visit: Visit) -> None:
    """On the waiting page it polls until told that its turn has come, and then asks for its page again."""
    door = Door(WAIT, WAIT, TURN)
    tally = await visit(Kind.BUYER, door)
    assert door.asked[:5] == ["GET /", *["GET /.waitingroom/status"] * 3, "GET /"]
    assert (tally.longest_line, tally.waiting, tally.admitted) == (1, 0, 1)


async def test_says_that_it_is_here_after_a_missed_turn(visit: Visit) -> None:
    """Told that it missed its turn, it says 'I am here'."""
    door = Door({"state": "waiting", "missed": True}, TURN)
    await visit(Kind.BUYER, door)
    assert door.asked.index("GET /.waitingroom/here") == 2


async def test_impatient_gives_up_and_says_so(visit: Visit) -> None:
    """Whoever loses patience leaves the line by its button, with the origin of the page."""
    door = Door(WAIT)
    tally = await visit(Kind.IMPATIENT, door)
    assert door.asked == ["GET /", "POST /.waitingroom/leave"]
    assert door.origins[0].startswith("http://127.0.0.1:")
    assert (tally.gave_up, tally.admitted, tally.waiting) == (1, 0, 0)


async def test_absent_returns_to_the_same_place(visit: Visit) -> None:
    """Whoever closes the tab comes back with the same cookie and enters."""
    tally = await visit(Kind.ABSENT, Door(WAIT, TURN))
    assert (tally.admitted, tally.gave_up) == (1, 0)


async def test_failing_shop_is_tried_three_times(visit: Visit) -> None:
    """An error is tried twice again; then its visitor has had enough, and each failure is counted."""
    shop = Storefront(capacity=Capacity(backlog=0))
    tally = await visit(Kind.BUYER, shop)
    assert (tally.failed, tally.gave_up, tally.admitted) == (3, 1, 0)
    await shop.stop()
