"""The demonstration shop works as a shop, fails as shops do, and its log is a fair judge."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from random import Random

import aiohttp
import pytest

from tests.conftest import eventually
from waitingroom.ledger import Ledger, Visit, percentile
from waitingroom.storefront import CATALOGUE, Capacity, Storefront

BRISK = Capacity(service=0.0)


@pytest.fixture
async def shop() -> AsyncIterator[Storefront]:
    """A shop that serves at once, with three lamps of each kind."""
    shop = Storefront(capacity=BRISK, made=3)
    yield shop
    await shop.stop()


@pytest.fixture
async def browser(shop: Storefront) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a cookie jar that starts at the shop's door."""
    async with await visitor(shop) as session:
        yield session


async def visitor(shop: Storefront) -> aiohttp.ClientSession:
    """Open a shop, if it is not open yet, to a visitor with cookies of their own."""
    host, port = await shop.start()
    return aiohttp.ClientSession(f"http://{host}:{port}", cookie_jar=aiohttp.CookieJar(unsafe=True))


async def text(browser: aiohttp.ClientSession, path: str) -> str:
    """A page that has to be there."""
    async with browser.get(path) as response:
        assert response.status == 200
        return await response.text()


async def test_catalogue_shows_every_lamp(browser: aiohttp.ClientSession) -> None:
    """Each lamp is shown with its name, a link and how many are left."""
    page = await text(browser, "/")
    for product in CATALOGUE:
        assert product.name in page
        assert f'href="/product/{product.id}"' in page
    assert page.count("3 left") == len(CATALOGUE)


@pytest.mark.parametrize("path", ["/", "/product/ember", "/basket", "/photos", "/static/shop.css"])
async def test_nothing_comes_from_elsewhere(browser: aiohttp.ClientSession, path: str) -> None:
    """No page or style sheet names another host: the shop works without a network."""
    page = await text(browser, path)
    assert "://" not in page
    assert "//" not in page.replace("</", "")


async def test_basket_checkout_and_thanks(shop: Storefront, browser: aiohttp.ClientSession) -> None:
    """A lamp goes into the basket, is ordered, and the stock is one less."""
    await browser.post("/basket", data={"product": "morel"})
    assert "€ 215.00" in await text(browser, "/basket")
    async with browser.post("/checkout", data={"delivery": "parcel"}) as response:
        assert response.url.path == "/thanks/1"
        assert "Thank you" in await response.text()
    assert shop.orders == 1
    assert ">2</b> of 3 left" in await text(browser, "/product/morel")


async def test_thanks_gives_the_seat_back(browser: aiohttp.ClientSession) -> None:
    """Only the thank-you page carries the command that ends the seat, and it ends the shop's session too."""
    await browser.post("/basket", data={"product": "morel"})
    async with browser.get("/basket") as response:
        assert "Waiting-Room-Command" not in response.headers
    async with browser.post("/checkout") as response:
        assert response.headers["Waiting-Room-Command"] == "revoke"
    assert not list(browser.cookie_jar)


async def test_empty_basket_cannot_be_ordered(shop: Storefront, browser: aiohttp.ClientSession) -> None:
    """Checking out with nothing leads back to the basket and makes no order."""
    async with browser.post("/checkout") as response:
        assert response.url.path == "/basket"
    assert shop.orders == 0


async def test_sold_out_is_said(shop: Storefront, browser: aiohttp.ClientSession) -> None:
    """More than there is cannot be ordered; the basket says which lamp is gone and stays as it was."""
    for _ in range(4):
        await browser.post("/basket", data={"product": "gable"})
    async with browser.post("/checkout") as response:
        assert "Sold out while you were choosing: Gable." in await response.text()
    assert shop.orders == 0
    assert "€ 656.00" in await text(browser, "/basket")


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/product/nothing", None, 404),
        ("/nowhere", None, 404),
        ("/static/..%2Fbase.html", None, 404),
        ("/basket", {"product": "nothing"}, 400),
    ],
)
async def test_nonsense_is_refused(
    shop: Storefront, browser: aiohttp.ClientSession, path: str, form: dict[str, str] | None, status: int
) -> None:
    """What does not exist is the client's mistake, and no failure of the shop."""
    async with browser.request("POST" if form else "GET", path, data=form) as response:
        assert response.status == status
    assert shop.log.failures() == 0


async def test_stock_is_told_live(browser: aiohttp.ClientSession) -> None:
    """The WebSocket tells the stock at once, and again whenever it is asked."""
    async with browser.ws_connect("/live/vesper") as socket:
        assert await socket.receive_json() == {"left": 3, "watching": 1}
        await browser.post("/basket", data={"product": "vesper"})
        await browser.post("/checkout")
        await socket.send_str("and now?")
        assert await socket.receive_json() == {"left": 2, "watching": 1}


async def test_orders_are_told_as_events(browser: aiohttp.ClientSession) -> None:
    """The event stream sends the number of orders when the page opens and when it changes."""
    async with browser.get("/orders") as stream:
        assert stream.content_type == "text/event-stream"
        assert await stream.content.readuntil(b"\n\n") == b"data: 0\n\n"
        await browser.post("/basket", data={"product": "vesper"})
        await browser.post("/checkout")
        assert await stream.content.readuntil(b"\n\n") == b"data: 1\n\n"


async def test_upload_is_measured_not_kept(browser: aiohttp.ClientSession) -> None:
    """A photograph, as a form or bare, is streamed through; its size and SHA-256 come back."""
    photo = bytes(range(256)) * 8192
    expected = {"size": len(photo), "sha256": hashlib.sha256(photo).hexdigest()}
    async with browser.post("/photos", data=io.BytesIO(photo)) as response:
        assert await response.json() == expected
    form = aiohttp.FormData()
    form.add_field("photo", io.BytesIO(photo), filename="lamp.jpg", content_type="image/jpeg")
    async with browser.post("/photos", data=form) as response:
        assert await response.json() == expected


async def test_upload_from_a_browser_is_answered_with_a_page(browser: aiohttp.ClientSession) -> None:
    """A browser that asks for HTML sees the digest on the page."""
    async with browser.post("/photos", data=b"light", headers={"Accept": "text/html"}) as response:
        assert hashlib.sha256(b"light").hexdigest() in await response.text()


async def test_too_many_at_once_are_turned_away() -> None:
    """Beyond its backlog the shop answers 503 at once, and its static files still come."""
    shop = Storefront(capacity=Capacity(workers=1, service=0.3, backlog=2))
    async with await visitor(shop) as crowd:
        waiting = [asyncio.create_task(text(crowd, "/")) for _ in range(2)]
        await eventually(lambda: len(shop.log) == 2)
        async with crowd.get("/") as response:
            assert response.status == 503
        assert await text(crowd, "/static/shop.css")
        await asyncio.gather(*waiting)
        assert shop.log.failures() == 1
    await shop.stop()


async def test_waiting_too_long_times_out() -> None:
    """Whoever stands longer in the shop's own queue than its patience gets 504."""
    shop = Storefront(capacity=Capacity(service=5.0, patience=0.05))
    async with await visitor(shop) as browser, browser.get("/") as response:
        assert response.status == 504
    await shop.stop()


def test_every_request_in_flight_slows_the_others() -> None:
    """A page takes its plain time alone, twice that at the comfortable number, five times at twice that."""
    capacity = Capacity(service=0.1, comfort=10)
    assert [capacity.seconds(n) for n in (0, 10, 20)] == pytest.approx([0.1, 0.2, 0.5])


async def test_stats_tell_how_it_goes(shop: Storefront, browser: aiohttp.ClientSession) -> None:
    """Requests, failures, latency, people and orders are told as JSON; asking is not itself a visit."""
    for path in ("/", "/basket"):
        await text(browser, path)
    async with browser.get("/_shop/stats?window=60") as response:
        stats = await response.json()
    assert stats.pop("p95_seconds") >= 0
    assert stats == {"requests": 2, "failures": 0, "inside": 1, "in_flight": 0, "orders": 0}
    assert len(shop.log) == 2


async def test_a_session_is_one_person(shop: Storefront, browser: aiohttp.ClientSession) -> None:
    """Pages of one cookie are one visitor; whoever keeps none is a new one each time, and nobody inside."""
    await text(browser, "/")
    await text(browser, "/basket")
    async with aiohttp.ClientSession(browser._base_url, cookie_jar=aiohttp.DummyCookieJar()) as bot:
        await text(bot, "/")
        await text(bot, "/")
    visitors = [visit.visitor for visit in shop.log]
    assert visitors[0] == visitors[1]
    assert len(set(visitors)) == 3
    assert shop.inside(shop.log[-1].at, 60) == 1


def log(*visits: tuple[float, str]) -> Ledger:
    """A log of (second, visitor), where a name in capitals is somebody leaving."""
    seen: set[str] = set()
    ledger = Ledger()
    for at, name in sorted(visits):
        visitor = name.lower()
        ledger.append(Visit(at, visitor, "/", visitor in seen, 200, at / 10, leaving=name.isupper()))
        seen.add(visitor)
    return ledger


def test_inside_are_those_seen_lately_who_did_not_leave() -> None:
    """Somebody silent for the window, somebody who left and a client seen once are not inside."""
    ledger = log((0, "a"), (1, "a"), (5, "b"), (6, "b"), (7, "c"), (8, "C"), (8.5, "once"))
    assert ledger.inside(9, 5) == 1
    assert ledger.inside(9, 20) == 2


def test_peak_is_the_most_stays_at_one_instant() -> None:
    """Stays that overlap add up, those one after the other do not, and a client seen once is nobody."""
    assert log((0, "a"), (1, "a"), (4, "A"), (2, "b"), (3, "b"), (9, "B"), (6, "once")).peak(60) == 2
    assert log((0, "a"), (1, "a"), (4, "A"), (3, "b"), (5, "b"), (9, "B")).peak(60) == 1
    assert log().peak(60) == 0


def test_peak_ends_a_stay_after_silence() -> None:
    """Somebody silent for the window had gone, even if they came back later."""
    visits = ((0.0, "a"), (1.0, "a"), (20.0, "a"), (21.0, "A"), (6.0, "b"), (7.0, "b"), (8.0, "B"))
    assert log(*visits).peak(5) == 1
    assert log(*visits).peak(60) == 2


@pytest.mark.parametrize("seed", range(20))
def test_peak_is_the_highest_ever_inside(seed: int) -> None:
    """Looking back gives what somebody who had looked all the time would have seen."""
    chance = Random(seed)
    visits = [(float(at), chance.choice("abcdABefghE")) for at in range(60)]
    ledger = log(*visits)
    seen = (Ledger(ledger[: at + 1]).inside(at, 9.5) for at in range(60))
    assert ledger.peak(9.5) == max(seen)


def test_percentile_is_a_value_that_occurred() -> None:
    """The nearest rank is taken, and an empty log has none."""
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([], 0.95) == 0.0
    assert log((10, "a"), (20, "b")).p95(15) == 2.0
