"""Which room protects what, how its switches work, and how changes reach every gateway."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.house import ROOM, house
from tests.wire import dial, storefront
from waitingroom.room import Method, Room


@pytest.mark.parametrize("change", [{"suspended": True}, {"queueing_method": Method.PASSTHROUGH}])
async def test_a_room_switched_off_lets_everybody_through(
    valkey_url: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Newcomers are neither counted nor given a cookie, and whoever waits is called in by the next poll."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        waiting = await shop.queue()
        await shop.change(**change)
        await shop.tick()
        assert (await waiting.poll()).document["state"] == "inside"
        assert (await waiting.visit()).inside
        newcomer = await shop.shopper().ask("POST", "/cart", accept="*/*", body=b"3 pears")
        assert (newcomer.inside, newcomer.cookies) == (True, [])
        assert shop.metric("requests_total", room="sale", verdict="bypassed") == 2


async def test_a_room_that_rejects_says_full_and_keeps_no_line(valkey_url: str, tmp_path: Path) -> None:
    """There is no place to lose: the page says so, and no cookie is set."""
    full = replace(ROOM, total_active_users=1, queueing_method=Method.REJECT)
    async with house(valkey_url, tmp_path, full) as shop:
        inside = await shop.enter()
        newcomer = shop.shopper()
        assert ((await newcomer.visit()).state, newcomer.jar) == ("full", {})
        await inside.leave()
        await shop.tick()
        assert (await newcomer.visit()).inside


@pytest.mark.parametrize(
    ("change", "state"), [({"paused": True}, "paused"), ({"queue_all": True}, "waiting")]
)
async def test_a_stopped_room_calls_nobody_until_it_goes_on(
    valkey_url: str, tmp_path: Path, change: dict[str, Any], state: str
) -> None:
    """Whoever is inside stays, everybody else queues; afterwards those in line go on, and first."""
    async with house(valkey_url, tmp_path) as shop:
        inside = await shop.enter()
        await shop.change(**change)
        await shop.tick()
        waiting = shop.shopper()
        assert (await waiting.visit()).state == state
        await shop.pass_time(30, waiting=[waiting], inside=[inside])
        assert (await waiting.poll()).document["state"] == state
        calling: dict[str, Any] = dict.fromkeys(change, False)
        await shop.change(**calling)
        await shop.tick()
        assert (await waiting.visit()).inside


async def test_a_change_is_in_force_everywhere_after_a_tick(valkey_url: str, tmp_path: Path) -> None:
    """Whichever gateway's operator made it: limits, texts and switches come home with the tick."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        await shop.enter()
        second = await shop.queue(gateway=1)
        await shop.change(total_active_users=2, message="Two at a time.", queueing_status_code=503)
        await shop.tick()
        await shop.tick()
        assert (await second.visit()).inside
        third = await shop.shopper(gateway=1).visit()
        assert (third.status, b"Two at a time." in third.body) == (503, True)


async def test_raising_the_epoch_voids_every_ticket_and_pass(valkey_url: str, tmp_path: Path) -> None:
    """After one tick of each gateway nobody is inside and nobody has a place, not even by a late request."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        await shop.change(epoch=2)
        assert (await inside.visit()).inside
        await waiting.poll()
        await shop.tick()
        assert (await inside.poll()).document["state"] == "ended"
        assert (await waiting.poll()).document["state"] == "ended"
        await shop.tick()
        assert (shop.desk().snapshot.inside, shop.desk(1).snapshot.waiting) == (0, 0)
        waiting.port = shop.gateways[1].public_address[1]
        assert (await waiting.visit()).inside
        assert (await inside.visit()).state == "waiting"
        assert {inside.token.epoch, waiting.token.epoch} == {2}


async def test_a_gateway_that_lags_behind_honours_the_next_epoch(valkey_url: str, tmp_path: Path) -> None:
    """Somebody who got their place under the new epoch does not lose it at a gateway yet to hear of it."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        await shop.enter()
        await shop.change(epoch=2)
        await shop.tick(0)
        assert (await shop.shopper().visit()).inside
        waiting = shop.shopper()
        assert (await waiting.visit()).state == "waiting"
        number = waiting.token.number
        waiting.port = shop.gateways[1].public_address[1]
        assert (await waiting.visit()).state == "waiting"
        assert waiting.token.number == number


PAYMENT = "/payment/return"


@pytest.mark.parametrize(
    ("target", "passes"),
    [
        ("/payment/return", True),
        ("/payment/return/paid?id=3", True),
        ("/payment/returned", False),
        ("/Payment/return", False),
        ("/payment/return/../../cart", False),
        ("/payment/return/%2e%2e/%2E%2e/cart", False),
        ("/payment/return%2f..%2f..%2fcart", False),
        ("/payment/return/..;/..;/cart", False),
        ("/payment/return/..\\..\\cart", False),
        ("//payment/return", False),
        ("/x/../payment/return", False),
    ],
)
async def test_only_a_path_with_one_reading_goes_round_the_queue(
    *,
    valkey_url: str,
    tmp_path: Path,
    target: str,
    passes: bool,
) -> None:
    """Payments come back whatever happens; no spelling of another path gets through with them."""
    async with house(valkey_url, tmp_path, total_active_users=1, bypass_paths=(PAYMENT,)) as shop:
        await shop.enter()
        reply = await shop.shopper().ask("POST", target, accept="*/*", body=b"paid")
        assert reply.inside is passes
        assert (f"POST {target}" in shop.origin.paths) is passes


async def test_the_most_specific_room_protects(valkey_url: str, tmp_path: Path) -> None:
    """A room by path within a room by host within a room for all; a host that none is for is told so."""
    async with storefront(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother") as other:
        rooms = (
            Room(name="shop", hosts=("shop.example",)),
            Room(name="tickets", hosts=("shop.example",), path="/tickets", queue_all=True),
            Room(name="blog", hosts=("blog.example",), upstream=other.url),
        )
        async with house(valkey_url, tmp_path, *rooms) as shop:
            assert (await shop.shopper(host="SHOP.example:80").visit("/")).inside
            assert (await shop.shopper(host="shop.example.").visit("/")).inside
            assert (await shop.shopper().visit("/ticketsale")).inside
            assert (await shop.shopper().visit("/tickets")).state == "waiting"
            assert (await shop.shopper(host="blog.example").visit("/tickets")).body == b"other"
            assert (await shop.shopper(host="elsewhere.example").visit("/")).status == 404
            assert (await shop.shopper().poll(room="nowhere")).status == 404


@pytest.mark.parametrize(
    "target",
    [
        "/tickets/",
        "/%74ickets/1",
        "//tickets",
        "/./tickets",
        "/x/../tickets",
        "/x/%2e%2e/tickets",
        "/x%2f..%2ftickets",
        "/\\tickets",
        "/tickets;id=3",
        "/x/..;/tickets",
        "http://shop.example/tickets",
    ],
)
async def test_no_spelling_of_a_path_evades_its_room(valkey_url: str, tmp_path: Path, target: str) -> None:
    """Whatever an origin may take for a protected path is protected."""
    rooms = (Room(name="shop"), Room(name="tickets", path="/tickets", queue_all=True))
    async with house(valkey_url, tmp_path, *rooms) as shop:
        reply = await shop.shopper().visit(target)
        assert reply.state == "waiting"
        assert shop.origin.paths == []


async def test_a_room_may_have_a_path_in_any_script(valkey_url: str, tmp_path: Path) -> None:
    """Its visitors wait, and find their way back."""
    async with house(valkey_url, tmp_path, Room(name="sale", path="/продажа", queue_all=True)) as shop:
        visitor = shop.shopper()
        path = "/%D0%BF%D1%80%D0%BE%D0%B4%D0%B0%D0%B6%D0%B0"
        assert (await visitor.visit(path)).state == "waiting"
        assert (await visitor.visit("/.waitingroom/here?room=sale")).header("location") == path


async def test_each_room_has_its_own_cookie(valkey_url: str, tmp_path: Path) -> None:
    """Somebody may be inside one room and wait for another, and neither cookie reaches the origin."""
    rooms = (Room(name="shop"), Room(name="tickets", path="/tickets", queue_all=True))
    async with house(valkey_url, tmp_path, *rooms) as shop:
        visitor = shop.shopper()
        assert (await visitor.visit("/")).inside
        assert (await visitor.visit("/tickets")).state == "waiting"
        assert set(visitor.jar) == {"wr-shop", "wr-tickets"}
        assert (await visitor.visit("/")).inside
        assert b"Cookie" not in shop.origin.heads[-1]


async def test_our_own_paths_never_reach_the_origin(valkey_url: str, tmp_path: Path) -> None:
    """Not even those that do not exist, in whatever spelling."""
    async with house(valkey_url, tmp_path, suspended=True) as shop:
        for target in (
            "/.waitingroom/",
            "/.waitingroom",
            "/.waitingroom/x",
            "/%2ewaitingroom/x",
            "//.waitingroom/x",
        ):
            assert (await shop.shopper().visit(target)).status == 404
        assert shop.origin.paths == []


async def test_an_upgrade_waits_like_everything_else(valkey_url: str, tmp_path: Path) -> None:
    """A WebSocket is no way around the queue."""
    async with house(valkey_url, tmp_path, queue_all=True) as shop:
        visitor = shop.shopper()
        async with dial(visitor.port) as wire:
            await wire.send(
                visitor.request("GET", "/live", "Connection: Upgrade", "Upgrade: websocket", accept="*/*")
            )
            head, _ = await wire.answer()
        assert (head.status, shop.origin.paths) == (429, [])
