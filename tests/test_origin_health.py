"""A storefront in trouble is not sent more people than it can bear, and those who wait are told why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.house import House, Shopper, house
from waitingroom.faults import Proxy, relay
from waitingroom.room import fair_share
from waitingroom.toxics import Latency


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_the_share_is_a_share(asked: float, failed: float, before: float) -> None:
    """Whatever was seen, between nobody and everybody who may come is let in."""
    assert 0 <= fair_share(asked, min(asked, failed), before) <= 1


@pytest.mark.parametrize(
    ("asked", "failed", "before", "share"),
    [
        *((1000, 0, 0.5, 1), (1000, 50, 0, 1), (1000, 275, 1, 0.5), (1000, 500, 1, 0), (1000, 1000, 1, 0)),
        *(
            (2, 0, 0, 1),
            (2, 2, 1, 0.05),
            (0.5, 0.5, 1, 1),
            (0.5, 0.5, 0, 0.05),
            (0, 0, 0.05, 0.05),
            (0, 0, 1, 1),
        ),
    ],
)
def test_fewer_are_let_in_the_more_fails(asked: float, failed: float, before: float, share: float) -> None:
    """All up to one failure in twenty, nobody from one in two, and a few to find out whether it is over."""
    assert fair_share(asked, failed, before) == pytest.approx(share)


@asynccontextmanager
async def waiting_room(url: str, folder: Path) -> AsyncIterator[tuple[House, Proxy]]:
    """A shop with ten seats, and a relay before its storefront that may misbehave."""
    async with (
        house(url, folder, total_active_users=10, slow_after=0.2, gateways=2) as shop,
        relay(shop.desk().room.upstream) as between,
    ):
        await shop.change(upstream=between.url)
        await shop.tick()
        yield shop, between


async def serve(shop: House, inside: list[Shopper], times: int = 1) -> None:
    """Everybody inside looks at a page, and the gateway hands in how it went; so many times."""
    for _ in range(times):
        for shopper in inside:
            await shopper.visit("/goods")
        await shop.tick(0)


async def fill(shop: House) -> list[Shopper]:
    """Ten people who are inside."""
    return [await shop.enter() for _ in range(10)]


async def test_nobody_is_sent_to_a_storefront_that_is_gone(valkey_url: str, tmp_path: Path) -> None:
    """Admissions pause everywhere while it answers nothing, the page says why, and all resumes by itself."""
    async with waiting_room(valkey_url, tmp_path) as (shop, between):
        inside = await fill(shop)
        waiting = await shop.queue(gateway=1)
        await between.down()
        assert (await inside[0].visit()).status == 502
        await serve(shop, inside, 3)
        await shop.pass_time(3)
        assert shop.desk().snapshot.share == 0
        await shop.change(total_active_users=20)
        await shop.pass_time(3, waiting=[waiting])
        told = (await waiting.poll()).document
        assert (told["state"], told["slowed"], told["wait"]) == ("waiting", True, None)
        page = await waiting.visit()
        assert b"having a hard time" in page.body
        assert (await shop.shopper().visit()).state == "waiting"
        assert shop.metric("admission_share", room="sale") == 0
        await between.up()
        for _ in range(4):
            await serve(shop, inside)
            await shop.pass_time(3, waiting=[waiting])
        assert (await waiting.poll()).document["state"] == "your_turn"
        assert (await waiting.visit()).inside


async def test_fewer_are_sent_to_a_storefront_that_is_slow(valkey_url: str, tmp_path: Path) -> None:
    """Answers that come too late count as failed: people are let in at a part of the rate."""
    async with waiting_room(valkey_url, tmp_path) as (shop, between):
        inside = await fill(shop)
        await serve(shop, inside, 3)
        slow = between.add(Latency(250))
        await serve(shop, inside)
        between.remove(slow)
        await shop.tick(0)
        assert 0.4 < shop.desk().snapshot.share < 0.8


async def test_a_storefront_that_nobody_asks_is_tried_again(valkey_url: str, tmp_path: Path) -> None:
    """When its last shopper has given up, somebody has to find out whether it is back."""
    async with waiting_room(valkey_url, tmp_path) as (shop, between):
        inside = await fill(shop)
        waiting = await shop.queue()
        await between.down()
        await serve(shop, inside, 3)
        for shopper in inside:
            await shopper.leave("Sec-Fetch-Site: same-origin")
        await shop.pass_time(3)
        assert shop.desk().snapshot.share == 0
        await shop.pass_time(30, waiting=[waiting])
        assert shop.desk().snapshot.share == 0.05
        assert (await waiting.poll()).document["state"] == "your_turn"


async def test_no_single_visitor_can_stop_the_sale(valkey_url: str, tmp_path: Path) -> None:
    """Requests without a pass say nothing, and each seat has one voice, however often it asks."""
    async with house(
        valkey_url, tmp_path, bypass_paths=("/webhook",), total_active_users=20, slow_after=0.2
    ) as shop:
        inside = await fill(shop)
        for _ in range(40):
            assert (await shop.shopper().visit("/webhook/broken")).status == 500
            assert (await inside[0].visit("/broken")).status == 500
        await serve(shop, inside[1:], 3)
        assert shop.desk().snapshot.share == 1
        assert (await shop.shopper().visit()).inside
