"""The tick never dies: whatever happens in one, the next one comes, and nothing handed in is lost."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import redis

from tests.clockwork import SOURCE
from tests.conftest import eventually
from tests.house import ROOM, House, house
from waitingroom.handin import HandIn
from waitingroom.room import Room
from waitingroom.store import Store, StoreUnavailableError
from waitingroom.ticker import LONGEST, Ticker


def ticker(shop: House, seen: list[Room] | None = None) -> Ticker:
    """Another ticker of the first gateway's desks, which notes changes, or stumbles over them."""

    def stumble(room: Room) -> None:
        raise ZeroDivisionError(room.name)

    server = shop.gateways[0]
    return Ticker(
        server._desks, server._store, server._telemetry, stumble if seen is None else seen.append, 0.01
    )


async def test_a_changed_room_is_announced_once(valkey_url: str, tmp_path: Path) -> None:
    """With its new settings, by the first tick that brings them home."""
    async with house(valkey_url, tmp_path) as shop:
        seen: list[Room] = []
        await shop.change(message="Soon.")
        for _ in range(3):
            await ticker(shop, seen).tick(shop.desk())
        assert [(room.message, room.version) for room in seen] == [("Soon.", 2)]
        assert shop.desk().room == seen[0]


async def test_an_unanswered_tick_hands_in_again(valkey_url: str, tmp_path: Path) -> None:
    """The store was gone: polls, touches and leaves wait for it, with those that came meanwhile."""
    async with house(valkey_url, tmp_path) as shop:
        server, desk = shop.gateways[0], shop.desk()
        away = Store("unix:///nowhere.sock", "a", timeout=0.1, clock=SOURCE)
        cut_off = Ticker(server._desks, away, server._telemetry, server._changed)
        desk.hand_in = HandIn(seen={1}, here={1}, touched={"main:1:v": None}, left={"main:2:v"})
        with pytest.raises(StoreUnavailableError):
            await cut_off.tick(desk)
        await cut_off.attempt(desk)
        desk.hand_in.seen.add(3)
        assert desk.hand_in == HandIn({1, 3}, {1}, {"main:1:v": None}, {"main:2:v"})
        assert shop.metric("tick_failures_total", room="sale") == 1
        await away.close()


async def test_a_cancelled_tick_hands_in_again(valkey_url: str, tmp_path: Path) -> None:
    """A gateway that is told to stop in the middle of a tick hands everything in with its last one."""
    async with house(valkey_url, tmp_path) as shop:
        desk = shop.desk()
        with redis.Redis.from_url(valkey_url) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            desk.hand_in.left.add("main:2:v")
            task = asyncio.create_task(shop.gateways[0]._ticker.tick(desk))
            await eventually(lambda: desk.hand_in == HandIn())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            os.kill(pid, signal.SIGCONT)
        assert desk.hand_in.left == {"main:2:v"}


async def test_whatever_goes_wrong_the_next_tick_comes(
    valkey_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bug in what follows a tick is logged and counted, and the room ticks on."""
    async with house(valkey_url, tmp_path) as shop:
        await shop.change(message="Soon.")
        task = asyncio.create_task(ticker(shop).run())
        await eventually(lambda: shop.metric("tick_failures_total", room="sale") == 1)
        shop.clock.advance(1000)
        await eventually(lambda: shop.desk().snapshot.clock == shop.clock.now)
        assert shop.metric("tick_failures_total", room="sale") == 1
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert "tick_failed" in "".join(capfd.readouterr())


@pytest.mark.parametrize("key", ["config", "state", "offers", "active", "ended", "gateways", "blocks"])
async def test_no_room_holds_up_another(valkey_url: str, tmp_path: Path, key: str) -> None:
    """A room with a key that holds something else fails by itself, whoever knocks there gets an answer."""
    rooms = (ROOM, Room(name="broken", path="/broken"))
    async with house(valkey_url, tmp_path, *rooms) as shop:
        with redis.Redis.from_url(valkey_url) as client:
            client.set(f"wr:{{broken}}:{key}", "no JSON at all", px=600_000)
        task = asyncio.create_task(ticker(shop, []).run())
        await eventually(lambda: shop.metric("tick_failures_total", room="broken") >= 2)
        shop.clock.advance(1000)
        await eventually(lambda: shop.desk().snapshot.clock == shop.clock.now)
        assert shop.metric("tick_failures_total", room="sale") == 0
        assert (await shop.shopper().visit("/broken")).state in {"waiting", "unavailable"}
        assert (await shop.shopper().visit("/goods")).inside
        task.cancel()
        await asyncio.wait([task])
        with redis.Redis.from_url(valkey_url) as client:
            client.delete(*client.scan_iter("wr:{broken}:*"))


async def test_a_room_that_the_store_has_lost_is_given_to_it_again(valkey_url: str, tmp_path: Path) -> None:
    """Nobody has to restart anything: shoppers inside go on, and numbers continue above the highest known."""
    async with house(valkey_url, tmp_path) as shop:
        inside = await shop.enter()
        number = shop.desk().snapshot.issued
        with redis.Redis.from_url(valkey_url) as client:
            client.flushall()
        shop.clock.advance(1000)
        await shop.tick()
        assert (await inside.visit()).inside
        await shop.tick()
        assert (await inside.visit()).inside
        assert shop.desk().snapshot.inside == 1
        assert shop.desk().snapshot.issued > number


async def test_failures_are_tried_again_with_ever_longer_pauses(
    valkey_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """But never longer than two seconds, so that a store that is back is noticed; the log is not flooded."""
    async with house(valkey_url, tmp_path) as shop:
        server = shop.gateways[0]
        away = Store("unix:///nowhere.sock", "a", timeout=0.1, clock=SOURCE)
        cut_off = Ticker(server._desks, away, server._telemetry, server._changed, 0.25, lambda: 1.0)
        pauses = []
        for _ in range(20):
            await cut_off.attempt(shop.desk())
            pauses.append(cut_off._pause(shop.desk()))
        assert pauses[:5] == [0.25, 0.5, 1.0, 2.0, 2.0]
        assert max(pauses) == LONGEST
        cut_off._store = server._store
        await cut_off.attempt(shop.desk())
        assert cut_off._pause(shop.desk()) == 0.25
        await away.close()
    said = "".join(capfd.readouterr())
    assert said.count("store_unavailable") == 5
    assert said.count("store_answers_again") == 1


async def test_ticks_come_sooner_while_the_limiter_says_so(valkey_url: str, tmp_path: Path) -> None:
    """A rate that does not divide by the tick is reached all the same; bounded for the store's sake."""
    async with house(valkey_url, tmp_path, new_users_per_minute=90, queue_all=True) as shop:
        for _ in range(3):
            await shop.queue()
        await shop.change(queue_all=False)
        await shop.tick()
        slow = Ticker(shop.gateways[0]._desks, shop.gateways[0]._store, shop.gateways[0]._telemetry, print)
        assert shop.desk().snapshot.again is not None
        assert slow._pause(shop.desk()) < 1.0
