"""The console as an on-call person sees it: a real gateway, a real store, a real Chromium."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import axe_core_python
import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.conftest import CHROMIUM, QUIET
from tests.test_admin import TOKEN, gateway
from waitingroom.server import Server

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


def address(server: Server) -> str:
    return "http://{}:{}/".format(*server.private_address)


async def violations(page: Page) -> list[Any]:
    """What axe-core finds; its script comes in through the debugger, which no policy of the page binds."""
    await page.evaluate(AXE)
    found: dict[str, list[Any]] = await page.evaluate("rules => axe.run(document, rules)", RULES)
    return [(item["id"], [node["target"] for node in item["nodes"]]) for item in found["violations"]]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page that must not complain."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page(viewport={"width": 1100, "height": 700})
        page.set_default_timeout(5000)
        yield page
        await browser.close()


async def test_console_shows_every_room_live(page: Page, valkey_url: str, tmp_path: Path) -> None:
    """Each room has numbers, charts and state, a change shows by itself, and the browser has no complaint."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    async with gateway(valkey_url, tmp_path) as server:
        await page.goto(address(server))
        sale = page.locator("article").first
        await expect(page.locator("h2")).to_have_text(["sale", "tickets"])
        await expect(sale.locator("[data-is=limit]")).to_have_text("500")
        await expect(sale.locator(".state")).to_have_text("open")
        await expect(sale.locator(".inside .curve")).to_have_attribute("points", re.compile(r"\d,\d"))
        await page.request.post(
            address(server) + "v1/rooms/sale/pause",
            headers={"Authorization": f"Bearer {TOKEN}"},
            data={"author": "ana", "reason": "test"},
        )
        await expect(sale.locator(".state")).to_have_text("paused")
        await expect(sale).to_have_class("notice")
    assert said == []


@pytest.mark.slow
async def test_console_says_when_its_numbers_are_old(page: Page, valkey_url: str, tmp_path: Path) -> None:
    """When the gateway is gone the title says so at once, and soon a notice that the numbers are old."""
    async with gateway(valkey_url, tmp_path) as server:
        await page.goto(address(server))
        await expect(page.locator("h2").first).to_be_visible()
    await expect(page).to_have_title("▲ gateway does not answer")
    await expect(page.get_by_role("alert")).to_contain_text("has not answered since", timeout=9000)
    assert await violations(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_console_is_accessible(
    page: Page, valkey_url: str, tmp_path: Path, theme: Literal["light", "dark"]
) -> None:
    """axe-core finds nothing, with good news and bad, in either theme; it fits a phone without scrolling."""
    await page.emulate_media(color_scheme=theme)
    for url, level in ((valkey_url, "good"), (f"unix://{tmp_path}/none.sock", "bad")):
        async with gateway(url, tmp_path / level) as server:
            await page.set_viewport_size({"width": 320, "height": 800})
            await page.goto(address(server))
            await expect(page.locator("article").first).to_have_class(level)
            assert await violations(page) == []
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320
