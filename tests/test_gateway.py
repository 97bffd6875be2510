"""A shopper's way: straight through while there is room, otherwise a place in line, a turn, a seat."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.house import GOODS, House, Shopper, calls, house
from tests.wire import dial


async def test_a_shopper_passes_straight_through_while_there_is_room(valkey_url: str, tmp_path: Path) -> None:
    """No redirect, no page: the origin's own bytes for the target as it was sent."""
    async with house(valkey_url, tmp_path) as shop:
        reply = await shop.shopper().visit("/goods?x=%41&y")
        assert (reply.status, reply.body) == (200, GOODS)
        assert shop.origin.paths == ["GET /goods?x=%41&y"]


@pytest.mark.parametrize(
    ("proto", "domain", "name", "attributes"),
    [
        ("http", "", "wr-sale", {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=86400"}),
        ("https", "", "__Host-wr-sale", {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=86400", "Secure"}),
        (
            "https",
            "shop.example",
            "__Secure-wr-sale",
            {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=86400", "Secure", "Domain=shop.example"},
        ),
    ],
)
async def test_the_cookie_says_how_the_visitor_came(
    valkey_url: str, tmp_path: Path, proto: str, domain: str, name: str, attributes: set[str]
) -> None:
    """It is out of reach of scripts and of other sites, and bound to TLS where the visitor came by TLS."""
    trusting = {"trusted_proxies": ("127.0.0.1/32",)}
    async with house(valkey_url, tmp_path, server=trusting, cookie_domain=domain) as shop:
        reply = await shop.shopper(f"X-Forwarded-Proto: {proto}").visit()
        pair, *rest = reply.cookies[0].split("; ")
        assert (pair.partition("=")[0], set(rest)) == (name, attributes)


async def test_a_stranger_cannot_claim_to_have_come_by_tls(valkey_url: str, tmp_path: Path) -> None:
    """Forwarding headers count only from trusted proxies; otherwise the cookie would be lost over HTTP."""
    async with house(valkey_url, tmp_path) as shop:
        reply = await shop.shopper("X-Forwarded-Proto: https").visit()
        assert reply.cookies[0].startswith("wr-sale=")


async def test_a_move_to_tls_loses_no_place(valkey_url: str, tmp_path: Path) -> None:
    """A ticket that comes under the old name counts, and is given back under the new one."""
    trusting = {"trusted_proxies": ("127.0.0.1/32",)}
    async with house(valkey_url, tmp_path, server=trusting, total_active_users=1) as shop:
        await shop.enter()
        waiting = await shop.queue()
        moved = await waiting.visit("/", "X-Forwarded-Proto: https")
        assert moved.state == "waiting"
        assert moved.cookies[0].startswith(f"__Host-wr-sale={waiting.jar['wr-sale']};")
        assert (await waiting.visit("/", "X-Forwarded-Proto: https")).cookies == []


@pytest.mark.parametrize("code", [200, 202, 429, 503])
async def test_a_full_room_shows_its_page_where_the_visitor_stands(
    valkey_url: str, tmp_path: Path, code: int
) -> None:
    """The page comes at the address asked for, is kept by nobody, and says when to ask again."""
    async with house(valkey_url, tmp_path, total_active_users=1, queueing_status_code=code) as shop:
        await shop.enter()
        reply = await shop.shopper().visit("/goods")
        assert (reply.status, reply.state) == (code, "waiting")
        assert reply.header("content-type").startswith("text/html")
        assert reply.header("cache-control") == "no-store"
        assert reply.header("x-robots-tag") == "noindex"
        assert int(reply.header("retry-after")) >= 1
        assert "GET /goods" not in shop.origin.paths


async def test_an_app_is_told_in_json_and_holds_a_place(valkey_url: str, tmp_path: Path) -> None:
    """The status document, and Cloudflare's shape inside it, for those who accept nothing but JSON."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        app = shop.shopper()
        reply = await app.ask("GET", "/api/goods", accept="application/json")
        assert reply.header("content-type") == "application/json"
        assert reply.document["state"] == "waiting"
        assert reply.document["updated"] > 1_700_000_000
        assert reply.document["cfWaitingRoom"]["inWaitingRoom"] is True
        assert app.token.use == "ticket"


@pytest.mark.parametrize(
    ("method", "accept", "lines"),
    [
        ("GET", "*/*", ()),
        ("GET", "image/webp,*/*", ("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image")),
        ("GET", "text/html", ("Sec-Purpose: prefetch", "Sec-Fetch-Mode: navigate")),
        ("DELETE", "application/json", ()),
        ("POST", "application/json", ()),
    ],
)
async def test_what_is_no_page_is_refused_and_joins_nothing(
    valkey_url: str, tmp_path: Path, method: str, accept: str, lines: tuple[str, ...]
) -> None:
    """429 with a problem document; nobody gets a place by it, and nothing reaches the origin."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        before = shop.desk().snapshot.issued
        stranger = shop.shopper()
        reply = await stranger.ask(method, "/cart", *lines, accept=accept)
        assert (reply.status, reply.header("content-type")) == (429, "application/problem+json")
        assert reply.document["status"] == 429
        assert int(reply.header("retry-after")) >= 1
        await shop.tick()
        assert (stranger.jar, shop.desk().snapshot.issued) == ({}, before)
        assert shop.origin.paths == ["GET /", "GET /"]


async def test_the_body_of_a_refused_upload_is_not_waited_for(valkey_url: str, tmp_path: Path) -> None:
    """The answer comes while the client has yet to send a gigabyte, and the origin hears of none of it."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        reached = len(shop.origin.paths)
        stranger = shop.shopper()
        async with dial(stranger.port) as wire:
            await wire.send(stranger.request("POST", "/upload", f"Content-Length: {1 << 30}", accept="*/*"))
            head, _ = await wire.answer(b"POST")
            assert (head.status, head.keep_alive) == (429, False)
        assert len(shop.origin.paths) == reached


async def test_store_calls_by_path(valkey_url: str, tmp_path: Path) -> None:
    """A poll and a proxied request cost no call, fifty joins at once next to none each, a claim one."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        calls(valkey_url)
        for _ in range(10):
            assert (await inside.visit()).inside
            assert (await waiting.poll()).document["state"] == "waiting"
            assert (await waiting.visit()).state == "waiting"
            assert (await waiting.ask("GET", "/pixel.png", accept="image/*")).status == 429
        assert calls(valkey_url) == 0
        crowd = [shop.shopper() for _ in range(50)]
        await asyncio.gather(*(shopper.visit() for shopper in crowd))
        assert len({shopper.token.number for shopper in crowd}) == 50
        assert 1 <= calls(valkey_url) < 25
        await inside.leave()
        await shop.tick()
        calls(valkey_url)
        assert (await waiting.visit()).inside
        assert calls(valkey_url) == 1


async def test_a_turn_is_taken_by_a_navigation_alone(valkey_url: str, tmp_path: Path) -> None:
    """Asking for the status neither joins nor claims, however often; coming to the page does."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        assert (await shop.shopper().poll()).document["state"] == "ended"
        await inside.leave()
        await shop.tick()
        for _ in range(3):
            told = (await waiting.poll()).document
            assert told["state"] == "your_turn"
            assert 0 < told["until"] <= 120
            await shop.tick()
        assert shop.desk().snapshot.inside == 0
        assert (await waiting.visit("/goods")).inside
        assert waiting.token.use == "pass"
        assert (await waiting.poll()).document["state"] == "inside"


async def called(shop: House, *, gateway: int = 0) -> Shopper:
    """Somebody whose turn it is in a room for one."""
    inside, waiting = await shop.enter(), await shop.queue(gateway)
    await inside.leave()
    await shop.tick()
    await shop.tick()
    return waiting


async def test_several_tabs_claim_one_seat(valkey_url: str, tmp_path: Path) -> None:
    """The same ticket twice, at once on two gateways or later, is the same seat."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        first = await called(shop)
        second = shop.shopper(gateway=1)
        second.jar = dict(first.jar)
        later = shop.shopper(gateway=1)
        later.jar = dict(first.jar)
        replies = await asyncio.gather(first.visit("/a"), second.visit("/b"))
        assert all(reply.inside for reply in replies)
        await shop.tick()
        assert (await later.visit("/c")).inside
        assert {first.token.seat} == {second.token.seat, later.token.seat}
        await shop.tick()
        assert shop.desk().snapshot.inside == 1


async def test_a_claim_whose_answer_was_lost_is_repeated(valkey_url: str, tmp_path: Path) -> None:
    """Who loses the connection at the door comes back with the old ticket, to any gateway, and is inside."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        shopper = await called(shop)
        async with dial(shopper.port) as wire:
            await wire.send(shopper.request("GET", "/slow"))
            await eventually(lambda: "GET /slow" in shop.origin.paths)
            # Another tab asks while the pass is still on the way.
            await shopper.poll()
            await shop.tick()
            await shop.tick()
            assert (await shopper.poll()).document["state"] == "inside"
        await shop.tick()
        for gateway in (1, 0):
            again = shop.shopper(gateway=gateway)
            again.jar = dict(shopper.jar)
            assert (await again.visit()).inside
        await shop.tick()
        assert shop.desk().snapshot.inside == 1


async def test_who_was_away_for_their_turn_is_passed_over_and_is_first(
    valkey_url: str, tmp_path: Path
) -> None:
    """A closed laptop holds nobody up and loses nothing: back at the page, its owner is next."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside = await shop.enter()
        away, second, third = [await shop.queue() for _ in range(3)]
        await shop.pass_time(210, waiting=[second, third], inside=[inside])
        await inside.leave()
        await shop.tick()
        assert (await second.visit()).inside
        await shop.pass_time(30, waiting=[third], inside=[second])
        assert (await away.visit()).state == "waiting"
        await shop.tick()
        await second.leave()
        await shop.tick()
        assert (await third.poll()).document["state"] == "waiting"
        assert (await away.visit()).inside


async def test_a_missed_turn_needs_a_word_not_a_poll(valkey_url: str, tmp_path: Path) -> None:
    """Polls alone keep a place but call nobody twice; "I am here" makes its holder first again."""
    async with house(valkey_url, tmp_path, total_active_users=1, session_duration=600.0) as shop:
        idle = await called(shop)
        await shop.pass_time(132, waiting=[idle])
        told = (await idle.poll()).document
        assert (told["state"], told["missed"], told["position"]) == ("waiting", True, 1)
        await shop.tick()
        assert shop.desk().snapshot.offered == 0
        here = await idle.ask("GET", "/.waitingroom/here?room=sale", "Referer: http://shop.example/goods?a=1")
        assert (here.status, here.header("location")) == (303, "/goods?a=1")
        await shop.tick()
        assert (await idle.visit()).inside


async def test_a_hidden_tab_keeps_its_place(valkey_url: str, tmp_path: Path) -> None:
    """One poll a minute is enough to stay in line and to be called."""
    async with house(valkey_url, tmp_path, total_active_users=1, session_duration=900.0) as shop:
        inside, hidden = await shop.enter(), await shop.queue()
        for _ in range(6):
            await shop.pass_time(60)
            assert (await hidden.poll()).document["position"] == 1
        await inside.leave()
        await shop.tick()
        assert (await hidden.poll()).document["state"] == "your_turn"


async def test_leaving_gives_the_seat_and_the_place_to_the_next(valkey_url: str, tmp_path: Path) -> None:
    """Whoever goes makes room at once, in the shop as in the line, and is told that it is over."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside, second, third = await shop.enter(), await shop.queue(), await shop.queue()
        assert (await third.poll()).document["position"] == 2
        await shop.pass_time(6, waiting=[second, third])
        gone = dict(second.jar)
        assert (await second.leave()).document["state"] == "ended"
        assert second.jar == {}
        await shop.tick()
        assert (await third.poll()).document["position"] == 1
        await inside.leave("Origin: http://shop.example")
        await shop.tick()
        assert (await third.visit()).inside
        second.jar = gone
        assert (await second.poll()).document["state"] == "ended"


@pytest.mark.parametrize(
    "line",
    [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)
async def test_no_other_site_can_make_a_shopper_leave(valkey_url: str, tmp_path: Path, line: str) -> None:
    """Leaving must come from a page of the shop, and be a POST."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        assert (await shopper.leave(line)).status == 403
        assert (await shopper.ask("GET", "/.waitingroom/leave?room=sale")).status == 405
        assert (await shopper.visit()).inside


async def test_a_spent_number_is_told_so_and_can_start_anew(valkey_url: str, tmp_path: Path) -> None:
    """The page of an ended place offers a new one; a link on somebody else's page cannot take a live one."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        shopper = await called(shop)
        ticket = dict(shopper.jar)
        assert (await shopper.visit()).inside
        await shop.pass_time(310)
        shopper.jar = dict(ticket)
        page = await shopper.visit()
        assert page.state == "ended"
        anew = "/.waitingroom/here?room=sale&anew=1"
        assert anew.replace("&", "&amp;").encode() in page.body
        await shopper.visit(anew, "Sec-Fetch-Site: cross-site")
        assert shopper.jar == ticket
        assert (await shopper.visit(anew, "Sec-Fetch-Site: same-origin")).status == 303
        assert shopper.jar == {}
        assert (await shopper.visit()).inside


async def test_the_shown_position_never_grows(valkey_url: str, tmp_path: Path) -> None:
    """A page that has shown 1 goes on showing 1, although somebody with a lower number has come back."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        shopper = await shop.queue()
        await shop.queue()
        later = await shop.queue()
        assert (await later.poll()).document["position"] == 3
        assert (await later.poll("&shown=2")).document["position"] == 2
        assert (await shopper.poll("&shown=999999999999")).document["position"] == 1
        assert (await shopper.poll("&shown=%00x")).document["position"] == 1


async def test_pipelined_requests_are_answered_in_order(valkey_url: str, tmp_path: Path) -> None:
    """A request that has to wait for the store holds back those behind it on its connection."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = shop.shopper()
        async with dial(shopper.port) as wire:
            await wire.send(
                shopper.request("GET", "/first")
                + shopper.request("GET", "/.waitingroom/front.json?room=sale")
                + shopper.request("GET", "/.waitingroom/nothing")
            )
            answers = [await wire.answer() for _ in range(3)]
        assert [head.status for head, _ in answers] == [200, 200, 404]
        assert answers[0][1] == GOODS
        assert answers[1][1].startswith(b'{"room":"sale"')


async def test_the_front_is_the_same_for_everybody(valkey_url: str, tmp_path: Path) -> None:
    """What a cache may answer names nobody: the lowest waiting number, and how many wait."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        waiting = await shop.queue()
        reply = await waiting.visit("/.waitingroom/front.json?room=sale")
        assert reply.header("cache-control") == "public, max-age=2"
        assert reply.document["front"] == waiting.token.number
        assert reply.document["waiting"] == 1
        assert reply.cookies == []
