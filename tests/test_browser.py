from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page

from tests.conftest import CHROMIUM, eventually
from waitingroom.config import load_text
from waitingroom.server import Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]

OFF = {"java_script_enabled": False}

SHOP = (
    "<!doctype html><html lang=en><title>Shop</title><h1>Shop</h1>"
    "<form method=post action=/basket><button>Buy</button></form>"
)


@dataclass
class Street:
    """A shop with one seat behind a real gateway, and somebody who sits on it.

    Attributes:
        url: of the gateway.
        server: the gateway.
        requests: method and path of everything that reached the shop.
    """

    url: str
    server: Server
    requests: list[str]

    async def occupy(self, browser: Browser) -> BrowserContext:
        """Take the one seat."""
        context = await browser.new_context()
        page = await context.new_page()
        for _ in range(2):
            await page.goto(self.url)
            assert await page.title() == "Shop"
        self.requests.clear()
        return context

    async def vacate(self, context: BrowserContext) -> None:
        """Give the seat back."""
        await context.request.post(f"{self.url}/.waitingroom/leave?room=sale")


def says(page: Page, selector: str, text: str) -> Callable[[], Awaitable[bool]]:
    """A condition: an element has a text."""

    async def holds() -> bool:
        return await page.text_content(selector) == text

    return holds


@pytest_asyncio.fixture(loop_scope="module")
async def street(tmp_path: Path, valkey_url: str) -> AsyncIterator[Street]:
    """A shop on a real socket, and a gateway with one seat before it."""
    requests: list[str] = []

    async def shop(request: web.Request) -> web.Response:
        if request.path != "/favicon.ico":  # browsers ask for it whenever they like
            requests.append(f"{request.method} {request.path_qs}")
        return web.Response(text=SHOP, content_type="text/html")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", shop)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    text = (
        '[server]\nlisten = "127.0.0.1:0"\nprivate_listen = "127.0.0.1:0"\n'
        f'[store]\nurl = "{valkey_url}"\ndata = "{tmp_path}"\ntick = 0.2\ntimeout = 2\n'
        f'[tokens]\nkeys = ["{"k" * 40}"]\n[[rooms]]\nname = "sale"\n'
        f'upstream = "http://127.0.0.1:{runner.addresses[0][1]}"\n'
        "total_active_users = 1\nnew_users_per_minute = 6000\nsession_duration = 20\n"
    )
    server = Server(load_text(text, {}))
    await server.start()
    yield Street(f"http://127.0.0.1:{server.public_address[1]}", server, requests)
    await server.stop()
    await runner.cleanup()


@pytest.mark.parametrize("scripts", [pytest.param({}, id="scripts"), pytest.param(OFF, id="no-scripts")])
async def test_waits_and_lands_where_it_wanted_to(
    browser: Browser, street: Street, scripts: dict[str, Any]
) -> None:
    """Somebody who opens a deep link while the shop is full waits there, and ends there.

    The fragment too, unless scripts are off: no server ever sees it, and no refresh keeps it.
    """
    inside = await street.occupy(browser)
    visitor = await browser.new_context(locale="en-GB", **scripts)
    page = await visitor.new_page()
    wanted, fragment = f"{street.url}/drop?size=42&colour=red", "#reviews"
    await page.goto(wanted + fragment)
    assert "You are in line" in await page.title()
    assert await page.text_content("#place") == "1"
    assert page.url == wanted + fragment
    assert street.requests == []
    await street.vacate(inside)
    await page.wait_for_selector("h1:text-is('Shop')", timeout=15_000)
    assert page.url == (wanted if scripts else wanted + fragment)
    assert street.requests == ["GET /drop?size=42&colour=red"]
    await inside.close()
    await visitor.close()


async def test_tabs_share_one_place(browser: Browser, street: Street) -> None:
    """A second tab gets the same place, not another one, and both enter on one seat."""
    inside = await street.occupy(browser)
    visitor, stranger = await browser.new_context(), await browser.new_context()
    first, second, behind = await visitor.new_page(), await visitor.new_page(), await stranger.new_page()
    await first.goto(street.url)
    await eventually(lambda: waiting(street) == 1)
    await behind.goto(street.url)
    await second.goto(street.url)
    await eventually(says(second, "#place", "1"))
    await eventually(says(behind, "#place", "2"))
    await street.vacate(inside)
    for tab in (first, second):
        await tab.wait_for_selector("h1:text-is('Shop')", timeout=15_000)
    await eventually(says(behind, "#place", "1"))
    for context in (inside, visitor, stranger):
        await context.close()


async def test_closed_tab_keeps_the_place(browser: Browser, street: Street) -> None:
    """Whoever closes the tab and comes back stands where they stood, before those who came later."""
    inside = await street.occupy(browser)
    visitor, later = await browser.new_context(), await browser.new_context()
    page = await visitor.new_page()
    await page.goto(f"{street.url}/drop")
    await eventually(lambda: waiting(street) == 1)
    await page.close()
    behind = await later.new_page()
    await behind.goto(street.url)
    await eventually(says(behind, "#place", "2"))
    page = await visitor.new_page()
    await page.goto(f"{street.url}/drop")
    assert await page.text_content("#place") == "1"
    await street.vacate(inside)
    await page.wait_for_selector("h1:text-is('Shop')", timeout=15_000)
    assert await behind.title() != "Shop"
    for context in (inside, visitor, later):
        await context.close()


def waiting(street: Street) -> int:
    """How many people the gateway knows to be waiting."""
    return next(iter(street.server._desks.values())).snapshot.waiting


async def test_form_is_not_lost_silently(browser: Browser, street: Street) -> None:
    """A form sent after the seat has gone reaches nobody, and the page says that it was not sent."""
    shopper = await street.occupy(browser)
    page = shopper.pages[0]
    other = await browser.new_context()
    waiter = await other.new_page()
    await waiter.goto(street.url)
    await eventually(lambda: waiting(street) == 1)
    await street.vacate(shopper)
    await waiter.wait_for_selector("h1:text-is('Shop')", timeout=15_000)
    street.requests.clear()
    await page.click("text=Buy")
    await page.wait_for_selector("h1:text-is('This step was not carried out')")
    assert street.requests == []
    for context in (shopper, other):
        await context.close()
