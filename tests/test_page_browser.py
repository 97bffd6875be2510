import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import axe_core_python
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page

from tests.conftest import CHROMIUM, eventually
from waitingroom.documents import status_json
from waitingroom.pages import Page as Sent
from waitingroom.pages import Pages, Trouble
from waitingroom.room import Room, State, Status

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SHOP = '<!doctype html><link rel="icon" href="data:,"><title>Shop</title><h1>Shop</h1>'
ROOM = Room(name="sale", upstream="http://127.0.0.1:8000", shop_name="Lumen & Oak", shop_logo="")
WAITING = Status(
    "sale", State.WAITING, position=214, low=150, high=290, poll_after=0.3, updated=1_790_000_000
)
TURN = Status("sale", State.YOUR_TURN, poll_after=0.3, until=118, updated=1_790_000_000)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@dataclass
class Door:
    """A gateway played from a script: the page of `status` to all who ask, the shop once `open`.

    Attributes:
        answers: what polls are told; the last one stays.
        polls: query strings of the polls so far.
        requests: method and path of every other request so far.
        cut: whether polls fail.
    """

    pages: Pages
    url: str = ""
    status: Status = field(default_factory=lambda: WAITING)
    answers: list[Status] = field(default_factory=lambda: [WAITING])
    polls: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    open: bool = False
    cut: bool = False
    trouble: Trouble | None = None

    async def handle(self, request: web.Request) -> web.Response:
        """Answer any request."""
        if request.path == "/.waitingroom/status":
            self.polls.append(request.query_string)
            if self.cut:
                return web.Response(status=502, text="broken")
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return web.Response(body=status_json(answer), content_type="application/json")
        self.requests.append(f"{request.method} {request.path_qs}")
        if self.open:
            return web.Response(text=SHOP, content_type="text/html")
        return _response(self._page(request.headers.get("Accept-Language", ""), request.path_qs))

    def _page(self, languages: str, target: str) -> Sent:
        about = {"host": "a", "languages": languages, "target": target}
        if self.trouble:
            return self.pages.render_error(ROOM, self.trouble, **about, accepts_gzip=True, retry_after=1)
        return self.pages.render(ROOM, self.status, **about, accepts_gzip=True)


def _response(page: Sent) -> web.Response:
    return web.Response(
        body=page.body, headers=[(name.decode(), value.decode()) for name, value in page.headers]
    )


@pytest.fixture(scope="module")
def pages() -> Pages:
    """The pages of one room."""
    return Pages([ROOM])


@pytest_asyncio.fixture(loop_scope="module")
async def door(pages: Pages) -> AsyncIterator[Door]:
    """A gateway played from a script, on a real socket."""
    door = Door(pages)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", door.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    door.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield door
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def visitor(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A visitor with a phone and no history."""
    context = await browser.new_context(viewport={"width": 390, "height": 844}, locale="en-GB")
    context.set_default_timeout(5000)
    yield context
    await context.close()


async def watched(context: BrowserContext) -> tuple[Page, list[str]]:
    """Open a tab, and return it with the list in which its errors appear."""
    page, errors = await context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    return page, errors


def says(page: Page, selector: str, text: str) -> Callable[[], Awaitable[bool]]:
    """A condition: an element has a text."""

    async def holds() -> bool:
        return text in (await page.text_content(selector) or "")

    return holds


async def test_axe_finds_nothing(browser: Browser, pages: Pages) -> None:
    """No state, theme or language of the page has a flaw that axe can find."""
    context = await browser.new_context(viewport={"width": 390, "height": 844}, bypass_csp=True)
    page = await context.new_page()
    statuses = [
        replace(WAITING, state=state, until=100, message="Back soon.", poll_after=60) for state in State
    ]
    statuses += [replace(WAITING, missed=True, poll_after=60), replace(WAITING, slowed=True, poll_after=60)]
    found: list[str] = []
    for status, tag in product(statuses, ("en", "de", "ar")):
        sent = pages.render(ROOM, status, host="a", languages=tag, accepts_gzip=False)
        found += await _flaws(page, sent, f"{status.state} {tag}")
    for trouble, tag in product(Trouble, ("en", "ar")):
        sent = pages.render_error(ROOM, trouble, host="a", languages=tag, accepts_gzip=False, retry_after=60)
        found += await _flaws(page, sent, f"{trouble} {tag}")
    await context.close()
    assert found == []


async def _flaws(page: Page, sent: Sent, name: str) -> list[str]:
    await page.set_content(sent.body.decode())
    await page.evaluate(AXE)
    flaws = []
    for theme in ("light", "dark"):
        await page.emulate_media(color_scheme=theme)
        result = await page.evaluate("axe.run({resultTypes: ['violations']})")
        flaws += [f"{name} {theme}: {v['id']} {v['nodes'][0]['html']}" for v in result["violations"]]
    return flaws


@pytest.mark.parametrize("tag", ["en", "de", "ar"])
async def test_narrow_screen_needs_no_sideways_scrolling(browser: Browser, door: Door, tag: str) -> None:
    """On 320 px, which is also 1280 px at 400 %, nothing sticks out in any state."""
    context = await browser.new_context(viewport={"width": 320, "height": 600}, locale=tag)
    page, errors = await watched(context)
    for state in State:
        door.status = replace(WAITING, position=1_234_567, state=state, message="Back soon.", poll_after=60)
        door.answers = [door.status]
        await page.goto(door.url)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, state
    await context.close()
    assert errors == []


async def test_waits_and_goes_in_where_it_wanted_to(door: Door, visitor: BrowserContext) -> None:
    """A visitor sees the position fall, is told the turn, and lands where they wanted, fragment included."""
    door.answers = [WAITING, replace(WAITING, position=90), replace(WAITING, position=2), TURN]
    page, errors = await watched(visitor)
    wanted = f"{door.url}/drop?size=42&colour=red#reviews"
    await page.goto(wanted)
    await eventually(lambda: len(door.polls) >= 4)
    await eventually(says(page, "#held", "kept for 118 more seconds"))
    await eventually(says(page, "#live", "It is your turn"))
    assert await page.title() == "It is your turn · Lumen & Oak"
    door.open = True
    await page.wait_for_selector("h1:text-is('Shop')")
    assert page.url == wanted
    assert door.requests == ["GET /drop?size=42&colour=red"] * 2
    assert door.polls[:4] == [f"room=sale&shown={shown}" for shown in (214, 214, 90, 2)]
    assert errors == []


async def test_first_poll_comes_at_once(door: Door, visitor: BrowserContext) -> None:
    """The first poll does not wait for the server's delay, for only it makes the visitor present."""
    door.status = replace(WAITING, poll_after=60)
    page = await visitor.new_page()
    await page.goto(door.url)
    await eventually(lambda: len(door.polls) == 1, 1)


async def test_button_goes_in_without_waiting(door: Door, visitor: BrowserContext) -> None:
    """Whoever is called need not wait for the page: the keyboard reaches the button, and it goes in."""
    door.answers = [TURN]
    page = await visitor.new_page()
    await page.goto(f"{door.url}/drop#top")
    await page.wait_for_selector("text=Go in now")
    door.open = True
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Go in now"
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await page.wait_for_selector("h1:text-is('Shop')")
    assert page.url == f"{door.url}/drop#top"


async def test_looking_away_at_ones_turn_costs_nothing(door: Door, visitor: BrowserContext) -> None:
    """A hidden tab goes in when it is looked at again, not before as long as the seat is safe."""
    await visitor.add_init_script(
        "self.away = true; Object.defineProperty(document, 'hidden', {get: () => self.away})"
    )
    door.answers = [replace(TURN, poll_after=60)]
    page = await visitor.new_page()
    await page.clock.install()
    await page.goto(door.url)
    await eventually(says(page, "#held", "118 more seconds"))
    await page.clock.run_for(90_000)
    assert len(door.requests) == 1
    door.open = True
    await page.evaluate("self.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    await page.clock.run_for(1500)
    await page.wait_for_selector("h1:text-is('Shop')")


async def test_no_reloading_in_a_circle(door: Door, visitor: BrowserContext) -> None:
    """A door that stays shut although the turn was announced is tried ever more slowly."""
    door.answers = [replace(TURN, state=State.INSIDE, poll_after=2)]
    page = await visitor.new_page()
    await page.clock.install()
    await page.goto(door.url)
    for _ in range(30):
        polls = len(door.polls)
        await page.clock.run_for(6000)
        await eventually(lambda polls=polls: len(door.polls) > polls)  # type: ignore[misc]  # a default binds early
    assert 5 <= len(door.requests) <= 9


async def test_position_never_grows(door: Door, visitor: BrowserContext) -> None:
    """When people come back in front, the number that was shown stays."""
    door.answers = [replace(WAITING, position=50), replace(WAITING, position=70)]
    page = await visitor.new_page()
    await page.goto(door.url)
    await eventually(lambda: len(door.polls) >= 4)
    assert await page.text_content("#place") == "50"
    assert await page.text_content("#ahead") == "49 people ahead of you"
    assert (await page.title()).startswith("50 · You are in line")


async def test_progress_is_measured_from_joining(door: Door, visitor: BrowserContext) -> None:
    """The bar shows how much of the line at joining has gone in, with the same in words."""
    door.answers = [WAITING, replace(WAITING, position=107)]
    page = await visitor.new_page()
    await page.goto(door.url)
    await eventually(says(page, "#percent", "50%"))
    assert (
        await page.get_by_role("progressbar", name="Progress since you joined").get_attribute("value") == "50"
    )


async def test_two_tabs_ask_once(door: Door, visitor: BrowserContext) -> None:
    """Tabs share one place and one rhythm of polls; what one of them learns, all show."""
    door.answers = [replace(WAITING, poll_after=1)]
    first, second = await visitor.new_page(), await visitor.new_page()
    await first.goto(door.url)
    await second.goto(door.url)
    # Each tab asks once as it opens; only then is there one rhythm.
    await eventually(lambda: len(door.polls) >= 4)
    began, before = asyncio.get_running_loop().time(), len(door.polls)
    await eventually(lambda: len(door.polls) >= before + 3)
    took = asyncio.get_running_loop().time() - began
    assert took > 2.5, "three polls of two tabs took less than three intervals"
    door.answers = [replace(WAITING, position=7, poll_after=30)]
    await eventually(says(first, "#place", "7"))
    await eventually(says(second, "#place", "7"))


async def test_lost_connection_is_said_and_mended(door: Door, visitor: BrowserContext) -> None:
    """Without an answer the page says that the place is kept, and recovers by itself."""
    page = await visitor.new_page()
    await page.goto(door.url)
    await eventually(says(page, "#wait", "2 to 5 minutes"))
    door.cut = True
    await eventually(says(page, "#note", "There is no connection at the moment. Your place is kept"))
    await eventually(says(page, "#live", "There is no connection"))
    door.cut = False
    await eventually(says(page, "#note", ""), 1)
    await visitor.set_offline(offline=True)
    await eventually(says(page, "#note", "There is no connection"))
    await visitor.set_offline(offline=False)
    await eventually(lambda: page.locator("#note").is_hidden())


async def test_changes_of_state_show_without_reloading(door: Door, visitor: BrowserContext) -> None:
    """Paused, missed, lost store and the end of a place each appear on the open page, announced once."""
    page, errors = await watched(visitor)
    await page.goto(door.url)
    for answer, title in (
        (replace(WAITING, state=State.PAUSED, message="Back at 18:30."), "The line is paused for a moment"),
        (replace(WAITING, missed=True), "Your turn came while you were away"),
        (replace(WAITING, state=State.UNAVAILABLE), "Your place is kept"),
        (replace(WAITING, slowed=True), "You are in line"),
        (replace(WAITING, state=State.ENDED, position=None), "You are no longer in line"),
    ):
        door.answers = [answer]
        await page.wait_for_selector(f"h1:text-is('{title}'):visible")
        assert await page.locator("h1:visible").count() == 1
        await eventually(says(page, "#live", title))
        assert title in await page.title()
    assert len(door.requests) == 1
    assert errors == []


async def test_saying_here_keeps_the_fragment(door: Door, visitor: BrowserContext) -> None:
    """The link of somebody who missed their turn carries the fragment along, which a redirect then keeps."""
    door.answers = [replace(WAITING, missed=True)]
    page = await visitor.new_page()
    await page.goto(f"{door.url}/drop#top")
    await page.click("text=I am here")
    await page.wait_for_url(f"{door.url}/.waitingroom/here?room=sale#top")
    assert door.requests[-1] == "GET /.waitingroom/here?room=sale"


async def test_leaving_by_keyboard_asks_first(door: Door, visitor: BrowserContext) -> None:
    """The keyboard opens the question, and only its answer leaves the line."""
    page = await visitor.new_page()
    await page.goto(door.url)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.tagName") == "SUMMARY"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Yes, leave the line"
    for target in await page.locator("summary:visible, button:visible").all():
        box = await target.bounding_box()
        assert box
        assert box["height"] >= 44
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/leave?room=sale")
    assert door.requests[-1] == "POST /.waitingroom/leave?room=sale"


async def test_works_without_javascript(browser: Browser, door: Door) -> None:
    """Without JavaScript the page says everything, refreshes at the server's pace, and goes in.

    No server ever sees a fragment, and no browser keeps it in a refresh that names an address.
    """
    context = await browser.new_context(java_script_enabled=False, locale="en-GB")
    page = await context.new_page()
    wanted = f"{door.url}/drop?size=42#reviews"
    door.status = replace(WAITING, poll_after=1)
    await page.goto(wanted)
    assert await page.text_content("#place") == "214"
    assert "checks by itself every 2 seconds" in await page.locator("noscript p").inner_text()
    assert await page.is_hidden("#progress")
    door.open = True
    await page.wait_for_selector("h1:text-is('Shop')")
    assert page.url == wanted.removesuffix("#reviews")
    assert door.polls == []
    await context.close()


async def test_error_page_tries_again_by_itself(door: Door, visitor: BrowserContext) -> None:
    """When the shop is back, the page that said otherwise gives way to it."""
    door.trouble = Trouble.ORIGIN_DOWN
    page, errors = await watched(visitor)
    await page.goto(f"{door.url}/drop#top")
    assert await page.is_visible("text=The shop does not answer")
    door.open = True
    await page.wait_for_selector("h1:text-is('Shop')")
    assert page.url == f"{door.url}/drop#top"
    assert errors == []


async def test_motion_rests_when_it_should(browser: Browser, door: Door) -> None:
    """Nothing moves for those who asked for less motion, and the bar is seen in forced colours."""
    context = await browser.new_context(reduced_motion="reduce", forced_colors="active")
    page = await context.new_page()
    await page.goto(door.url)
    style = "[...document.querySelectorAll('*')].map(one => getComputedStyle(one).transitionDuration)"
    assert set(await page.evaluate(style)) == {"0s"}
    assert await page.evaluate("getComputedStyle(document.querySelector('progress')).borderTopWidth") == "1px"
    await context.close()
