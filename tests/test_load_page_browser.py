"""The report in a real browser: on phones, in the dark, and for those who do not see it."""

from dataclasses import replace
from pathlib import Path

import axe_core_python
import pytest
from playwright.async_api import Browser, Page

from loadtest.gates import judge
from loadtest.page import as_html
from loadtest.results import Results
from tests.conftest import CHROMIUM
from tests.rehearsal import honest

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RUNS = {
    "passed": honest(),
    "failed": honest(failures={"room: status 503": 3, "timeout": 2}, metrics={}),
    "aborted": replace(honest(), stopped="Share of errors"),
    "inconclusive": Results(scenario={"name": "nothing"}, started_at=0.0, seconds=0.0),
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


async def opened(page: Page, name: str) -> None:
    """Show a report with all its tables open."""
    await page.set_content(as_html(RUNS[name], judge(RUNS[name])))
    await page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.mark.parametrize("name", RUNS)
async def test_axe_finds_nothing(browser: Browser, name: str) -> None:
    """No verdict's report has a flaw that axe can find, in either theme."""
    context = await browser.new_context(bypass_csp=True)
    page = await context.new_page()
    await opened(page, name)
    await page.evaluate(AXE)
    flaws = []
    for theme in ("light", "dark"):
        await page.emulate_media(color_scheme=theme)
        result = await page.evaluate("axe.run({resultTypes: ['violations']})")
        flaws += [f"{theme}: {each['id']} {each['nodes'][0]['html']}" for each in result["violations"]]
    await context.close()
    assert flaws == []


@pytest.mark.parametrize("name", RUNS)
async def test_a_phone_needs_no_sideways_scrolling(browser: Browser, name: str) -> None:
    """On 320 px nothing but the wide tables scrolls, and those within themselves."""
    page = await browser.new_page(viewport={"width": 320, "height": 600})
    await opened(page, name)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    await page.close()


async def test_nothing_is_asked_of_the_network(browser: Browser) -> None:
    """The page loads from a single file, makes no request, and breaks no rule of its own policy."""
    page, said = await browser.new_page(), list[str]()
    page.on("request", lambda request: said.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    await opened(page, "failed")
    assert await page.locator("svg[role=img]").count() == 9
    assert await page.locator("h1").inner_text() == "doors-open"
    assert [each for each in said if not each.startswith("data:")] == []
    await page.close()
