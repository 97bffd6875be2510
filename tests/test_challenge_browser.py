import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.conftest import CHROMIUM, eventually
from tests.house import House, house

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
STAY = "HTMLFormElement.prototype.submit = function () { self.sent = this.action; };"
"""What keeps a browser on the page when it has done its work."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest_asyncio.fixture(loop_scope="module")
async def shop(valkey_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """A room in which everybody queues, and shows a browser first, at the usual difficulty."""
    async with house(valkey_url, tmp_path, challenge="on", queue_all=True, shop_name="Lumen & Oak") as shop:
        yield shop


def address(shop: House, path: str = "/drop?size=42&colour=red") -> str:
    """Where somebody wants to go."""
    return f"http://127.0.0.1:{shop.gateways[0].public_address[1]}{path}"


async def opened(browser: Browser, script: str = "", **options: Any) -> tuple[Page, list[str]]:
    """A visitor's tab on a phone, and the list in which its errors appear."""
    phone = {"viewport": {"width": 390, "height": 844}, "locale": "en-GB"}
    context = await browser.new_context(**(phone | options))
    context.set_default_timeout(20_000)
    await context.add_init_script(script)
    page, errors = await context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    return page, errors


def says(page: Page, selector: str, text: str) -> Callable[[], Awaitable[bool]]:
    """A condition: an element has a text."""

    async def holds() -> bool:
        return text in (await page.text_content(selector) or "")

    return holds


async def test_a_browser_shows_itself_and_lands_where_it_wanted_to(browser: Browser, shop: House) -> None:
    """Nobody has to do anything: the page works, goes on by itself, and the fragment is still there."""
    page, errors = await opened(browser)
    await page.goto(address(shop) + "#reviews")
    await page.wait_for_selector("#place")
    assert "You are in line" in await page.title() or "Your place is kept" in await page.title()
    assert page.url == address(shop) + "#reviews"
    await shop.tick()
    assert shop.desk().snapshot.totals.joined == 1
    assert shop.metric("challenges_total", room="sale", outcome="solved") == 1
    await page.reload()
    await page.wait_for_selector("#place")
    assert shop.metric("challenges_total", room="sale", outcome="issued") == 1
    assert errors == []
    await page.context.close()


async def test_the_work_is_shown_and_its_end_is_said(browser: Browser, shop: House) -> None:
    """A bar with a name fills up, a status tells its end, and there is no button that nobody needs."""
    page, errors = await opened(browser, STAY)
    await page.goto(address(shop))
    await eventually(says(page, "#live", "Done. The page that you asked for opens now."), 20)
    assert await page.get_attribute("#live", "role") == "status"
    assert await page.get_by_role("progressbar", name="Check").get_attribute("value") == "1"
    assert await page.text_content("#percent") == "100%"
    assert await page.locator("button:visible, #cookies:visible").count() == 0
    assert errors == []
    await page.context.close()


async def test_without_scripts_a_button_works_after_a_while(
    browser: Browser, valkey_url: str, tmp_path: Path
) -> None:
    """The page says how long it takes; pressed too early, the button says what is left of it."""
    async with house(valkey_url, tmp_path, challenge="on", queue_all=True, challenge_difficulty=20) as shop:
        page, _ = await opened(browser, java_script_enabled=False)
        await page.goto(address(shop))
        assert "takes 30 seconds" in await page.inner_text("main")
        await shop.pass_time(12)
        await page.keyboard.press("Tab")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        assert re.search("takes 1[0-9] seconds", await page.inner_text("main"))
        assert page.url == address(shop)
        await shop.pass_time(21)
        async with page.expect_navigation():
            await page.click("button")
        assert await page.text_content("#place") == "1"
        assert page.url == address(shop)
        assert shop.metric("challenges_total", room="sale", outcome="waited") == 1
        await page.context.close()


@pytest.mark.parametrize("tag", ["en", "de", "ar"])
async def test_the_page_has_no_flaw(browser: Browser, shop: House, tag: str) -> None:
    """With and without scripts, in either theme, axe finds nothing, and on 320 px nothing sticks out."""
    narrow = {"viewport": {"width": 320, "height": 600}, "locale": tag, "bypass_csp": True}
    page, _ = await opened(browser, STAY, **narrow)
    await page.goto(address(shop))
    await page.wait_for_function("self.sent")
    found = await flaws(page)
    bare = await shop.shopper(f"Accept-Language: {tag}").visit()
    # Axe itself is a script: it is shown what browsers show that run none.
    html = re.sub(
        r"</?noscript>|<script.*?</script>|<meta http-equiv.*?>", "", bare.body.decode(), flags=re.DOTALL
    )
    await page.set_content(html)
    assert await page.locator("button:visible").count() == 1
    assert [*found, *await flaws(page)] == []
    await page.context.close()


async def flaws(page: Page) -> list[str]:
    """What axe finds in both themes, and whether something sticks out."""
    found = []
    for theme in ("light", "dark"):
        await page.emulate_media(color_scheme=theme)
        await page.evaluate(AXE)
        result = await page.evaluate("axe.run({resultTypes: ['violations']})")
        found += [f"{theme}: {flaw['id']} {flaw['nodes'][0]['html']}" for flaw in result["violations"]]
    width = await page.evaluate("document.documentElement.scrollWidth")
    return found if width <= 320 else [*found, f"{width} px wide"]


@pytest.mark.parametrize(
    "script",
    [
        "Object.defineProperty(navigator, 'cookieEnabled', {get: () => false});",
        "sessionStorage.setItem('wr-join-sale', JSON.stringify({tries: 5, last: Date.now()}));",
    ],
    ids=["no cookies", "back again and again"],
)
async def test_no_coming_back_in_a_circle(browser: Browser, shop: House, script: str) -> None:
    """A browser that keeps no cookie is told why it does not get on, and does not ask in a frenzy."""
    page, errors = await opened(browser, STAY + script)
    await page.clock.install()
    await page.goto(address(shop))
    await page.wait_for_selector("text=allow cookies for this site")
    await page.wait_for_selector("button:visible")
    if "tries" in script:
        await eventually(says(page, "#percent", "100%"), 20)
    await page.clock.run_for(20_000)
    assert await page.evaluate("self.sent") is None
    assert errors == []
    await page.context.close()
