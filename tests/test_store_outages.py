"""The store fails in every way there is, and afterwards nobody has lost, gained or repeated anything."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import eventually
from tests.house import House, Shopper, calls, house, opened
from waitingroom.embedded import EmbeddedValkey
from waitingroom.faults import freeze, kill, relay, thaw
from waitingroom.toxics import Latency

QUICK = {"timeout": 0.1}


def pid_of(url: str) -> int:
    """The store's process."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """The store's process stands still."""
    pid = pid_of(url)
    freeze(pid)
    try:
        yield
    finally:
        thaw(pid)


async def come(shop: House, gateway: int = 0) -> Shopper:
    """A newcomer while the store is away."""
    shopper = shop.shopper(gateway=gateway)
    assert (await shopper.visit("/goods")).state in {"unavailable", "waiting"}
    assert shopper.token.arrival is not None
    return shopper


async def settle(shop: House) -> None:
    """Every gateway says what it knows, and hears what came of it."""
    for _ in range(4):
        shop.clock.advance(250)
        await shop.tick()


async def numbers(shoppers: Sequence[Shopper]) -> list[int]:
    """The numbers that these people carry, once they have polled."""
    for shopper in shoppers:
        await shopper.poll()
    return [shopper.token.number for shopper in shoppers]


# Newcomers


async def test_newcomers_are_numbered_in_the_order_in_which_they_came(
    valkey_url: str, tmp_path: Path
) -> None:
    """At whichever gateway they came and whoever polls first, behind all who had a number before."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=1) as shop:
        await shop.enter()
        early = await shop.queue()
        came = []
        with frozen(valkey_url):
            for second in range(4):
                came += [await come(shop, gateway) for gateway in (second % 2, second % 2, 1 - second % 2)]
                shop.silence(1)
        shop.clock.advance(8000)
        await settle(shop)
        late = await shop.queue(gateway=1)
        given = (await numbers(came[::-1]))[::-1]
        seconds = [given[at : at + 3] for at in range(0, 12, 3)]
        assert early.token.number < given[0]
        assert [max(one) < min(other) for one, other in pairwise(seconds)] == [True] * 3
        assert all(one[0] < one[1] for one in seconds)
        assert len(set(given)) == 12
        assert late.token.number > max(given)
        assert [(await shopper.poll()).document["state"] for shopper in came] == ["waiting"] * 12


async def test_arrivals_at_a_gateway_that_dies_are_vouched_for_by_the_next(
    valkey_url: str, tmp_path: Path
) -> None:
    """The cookie proves when they came: whichever gateway they turn to hands it in."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=1) as shop:
        await shop.enter()
        with frozen(valkey_url):
            first, second = await come(shop), await come(shop)
            shop.silence(1)
            third = await come(shop, gateway=1)
            # The first gateway never speaks again; its people turn to the other.
            for shopper in (second, first):
                shopper.port = third.port
                assert (await shopper.poll()).document["state"] in {"unavailable", "waiting"}
        shop.clock.advance(60_000)
        for _ in range(9):
            shop.clock.advance(2000)
            await shop.tick(1)
        given = await numbers([third, second, first])
        assert given == sorted(given, reverse=True)
        assert len(set(given)) == 3


async def test_who_comes_after_the_outage_is_behind_those_who_came_in_it(
    valkey_url: str, tmp_path: Path
) -> None:
    """Until those are numbered, newcomers get no number either, though the store would give them one."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=1) as shop:
        await shop.enter()
        with frozen(valkey_url):
            first = await come(shop, gateway=1)
        shop.clock.advance(8000)
        await shop.tick(0)
        second = await come(shop, gateway=0)
        await settle(shop)
        third = shop.shopper()
        assert (await third.visit()).state == "waiting"
        given = await numbers([third, second, first])
        assert given == sorted(given, reverse=True)


async def test_an_arrival_may_leave_again(valkey_url: str, tmp_path: Path) -> None:
    """Whoever gives up holds no place, and takes nobody else's away."""
    async with house(valkey_url, tmp_path, server=QUICK, total_active_users=1) as shop:
        await shop.enter()
        with frozen(valkey_url):
            gone, stays = await come(shop), await come(shop)
            assert (await gone.leave("Sec-Fetch-Site: same-origin")).document["state"] == "ended"
            assert gone.jar == {}
        shop.clock.advance(8000)
        await settle(shop)
        await stays.poll()
        await shop.pass_time(6, waiting=[stays])
        assert (await stays.poll()).document["position"] == 1


async def test_a_room_that_refuses_gives_no_arrivals(valkey_url: str, tmp_path: Path) -> None:
    """Where nobody queues, nobody is told that they have a place."""
    async with house(valkey_url, tmp_path, server=QUICK, queueing_method="reject") as shop:
        with frozen(valkey_url):
            shopper = shop.shopper()
            assert (await shopper.visit()).state == "unavailable"
            assert shopper.jar == {}


# What it costs


async def test_no_shopper_waits_for_a_store_that_is_known_to_be_away(valkey_url: str, tmp_path: Path) -> None:
    """The first pays the time-out, and so do those who knock with it; all others are answered at once."""
    async with house(valkey_url, tmp_path, server={"timeout": 0.3}) as shop:
        with frozen(valkey_url):
            started = time.monotonic()
            replies = await asyncio.gather(*(shop.shopper().visit() for _ in range(20)))
            assert {reply.state for reply in replies} <= {"unavailable", "waiting"}
            assert time.monotonic() - started < 1.5
            before = shop.metric("store_calls_total", call="enter", outcome="error")
            for _ in range(100):
                assert (await shop.shopper().visit()).status == 200
            assert shop.metric("store_calls_total", call="enter", outcome="error") == before
        await settle(shop)
        assert (await shop.shopper().visit()).state == "waiting"


async def test_a_slow_store_is_asked_by_ticks_alone(valkey_url: str, tmp_path: Path) -> None:
    """At 300 ms a call nobody waits for it, and numbers and seats are given all the same, by the ticks."""
    with redis.Redis.from_url(valkey_url) as client:
        client.ping()
    async with relay(valkey_url) as between:
        slow = between.add(Latency(150))
        async with house(valkey_url, tmp_path, server={"timeout": 0.1}, at=between.url) as shop:
            await shop.tick()
            await shop.tick()
            first = await come(shop)
            calls(valkey_url)
            second = await come(shop)
            assert calls(valkey_url) == 0
            await settle(shop)
            assert (await numbers([first, second]))[0] < second.token.number
            await settle(shop)
            assert [(await shopper.poll()).document["state"] for shopper in (first, second)] == [
                "your_turn"
            ] * 2
            assert (await first.visit()).state == "your_turn"
            between.remove(slow)
            await settle(shop)
            assert [(await shopper.visit()).inside for shopper in (first, second)] == [True] * 2
            assert (await shop.shopper().visit()).inside


# A store that refuses


@dataclass
class Refusal:
    """A store that answers, and takes no writes."""

    setting: str
    value: str
    normal: str


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal("maxmemory", "1", "0"),
        Refusal("min-replicas-to-write", "1", "0"),
        Refusal("replicaof", "127.0.0.1 1", "no one"),
    ],
    ids=lambda refusal: refusal.setting,
)
async def test_a_store_that_takes_no_writes_is_away(
    valkey_url: str, tmp_path: Path, refusal: Refusal
) -> None:
    """Out of memory, without replicas, or a replica itself: nothing is changed by halves or lost."""

    def told(value: str) -> None:
        with redis.Redis.from_url(valkey_url) as client:
            if refusal.setting == "replicaof":
                client.execute_command("REPLICAOF", *value.split(" "))
            else:
                client.config_set(refusal.setting, value)

    async with house(valkey_url, tmp_path, server=QUICK, total_active_users=2) as shop:
        inside, leaving, waiting = await shop.enter(), await shop.enter(), await shop.queue()
        told(refusal.value)
        try:
            assert (await inside.visit()).inside
            await leaving.leave("Sec-Fetch-Site: same-origin")
            before = _state(valkey_url)
            await shop.tick()
            assert shop.metric("tick_failures_total", room="sale") == 1
            assert _state(valkey_url) == before
            newcomer = await come(shop)
            assert (await waiting.poll()).document["position"] == 1
        finally:
            told(refusal.normal)
        await settle(shop)
        assert (await inside.visit()).inside
        await waiting.poll()
        await settle(shop)
        assert (await waiting.visit()).inside
        assert (await numbers([newcomer]))[0] > waiting.token.number


def _state(url: str) -> dict[bytes, bytes]:
    with redis.Redis.from_url(url) as client:
        names: list[bytes] = sorted(key for key in client.scan_iter("wr:*") if b"scratch" not in key)
        return {name: client.dump(name) for name in names}


# A store that forgets


async def lose(shop: House, url: str, *, config: bool = True) -> None:
    """The store comes back without anything."""
    with redis.Redis.from_url(url) as client:
        names = [key for key in client.scan_iter("wr:*") if config or not key.endswith(b":config")]
        client.delete(*names)
    shop.clock.advance(60_000)


@pytest.mark.parametrize("config", [True, False], ids=["with its configuration", "without it"])
async def test_a_store_that_comes_back_empty_is_told_everything(
    valkey_url: str,
    tmp_path: Path,
    config: bool,  # noqa: FBT001 - drawn
) -> None:
    """Seats, offers, the line and its order are there again, the limit holds, and numbers go on higher up."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=3) as shop:
        inside = [await shop.enter() for _ in range(3)]
        waiting = [await shop.queue(index % 2) for index in range(5)]
        await shop.change(total_active_users=4)
        await settle(shop)
        called = waiting.pop(0)
        assert (await called.poll()).document["state"] == "your_turn"
        highest = shop.desk().snapshot.issued
        await lose(shop, valkey_url, config=config)
        await settle(shop)
        snapshot = shop.desk().snapshot
        assert (snapshot.inside, snapshot.offered, snapshot.calm) == (3, 1, 0)
        assert snapshot.issued >= highest + 10_000
        for shopper in inside:
            assert (await shopper.visit()).inside
        await numbers(waiting)
        await settle(shop)
        told = [(await shopper.poll()).document for shopper in waiting]
        assert [(each["state"], each["position"]) for each in told] == [("waiting", n) for n in (1, 2, 3, 4)]
        assert (await called.visit()).inside
        await inside[0].leave("Sec-Fetch-Site: same-origin")
        await settle(shop)
        assert [(await shopper.poll()).document["state"] for shopper in waiting] == ["your_turn"] + [
            "waiting"
        ] * 3
        assert (await waiting[0].visit()).inside
        snapshot = shop.desk().snapshot
        assert snapshot.inside + snapshot.offered <= 4


async def test_a_store_that_forgot_does_not_forget_who_has_been_inside(
    valkey_url: str, tmp_path: Path
) -> None:
    """A seat given back stays given back, and a number that was used up does not wait at the front again."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=3) as shop:
        left, idle, stays = [await shop.enter() for _ in range(3)]
        waiting = await shop.queue()
        old = dict(left.jar)
        await left.leave("Sec-Fetch-Site: same-origin")
        await settle(shop)
        assert (await waiting.visit()).inside
        await settle(shop)
        await lose(shop, valkey_url)
        await settle(shop)
        left.jar = old
        assert not (await left.visit()).inside
        assert left.token.number > 10_000 + waiting.token.number
        await shop.pass_time(330, inside=[stays, waiting])
        assert not (await idle.visit()).inside or idle.token.number > 10_000 + waiting.token.number


async def test_arrivals_keep_their_numbers_when_the_store_forgets_them(
    valkey_url: str, tmp_path: Path
) -> None:
    """Who was numbered after one outage and comes back after the next still has the number of the first."""
    async with house(valkey_url, tmp_path, gateways=2, server=QUICK, total_active_users=1) as shop:
        await shop.enter()
        with frozen(valkey_url):
            first, asleep = await come(shop), await come(shop)
        shop.clock.advance(8000)
        await settle(shop)
        (number,) = await numbers([first])
        await lose(shop, valkey_url)
        await settle(shop)
        assert (await numbers([asleep])) == [number + 1]


async def test_an_epoch_that_the_store_has_lost_is_known_by_the_tokens(
    valkey_url: str, tmp_path: Path
) -> None:
    """Tickets that were voided stay void although the file still says the first epoch."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.change(epoch=3)
        await shop.tick()
        await shop.enter()
        waiting = await shop.queue()
        assert waiting.token.epoch == 3
        with redis.Redis.from_url(valkey_url) as client:
            client.delete(*client.scan_iter("wr:*"))
        async with opened(shop.gateways[0].settings) as fresh:
            desk = fresh._desks["sale"]
            assert desk.room.epoch == 1
            waiting.port = fresh.public_address[1]
            await waiting.poll()
            for _ in range(2):
                await fresh._ticker.attempt(desk)
            assert (desk.room.epoch, desk.snapshot.epoch) == (3, 3)
            audit = await fresh._store.audit("sale")
            assert [(change.author, change.changed) for change in audit] == [("waitingroom", {"epoch": 3})]


# A room that opens


async def test_a_room_may_open_while_nobody_counts(valkey_url: str, tmp_path: Path) -> None:
    """A share of the rate enters, those in line first, for a limited time; their passes end with it."""
    limits: dict[str, Any] = {"new_users_per_minute": 120, "outage_share": 0.5, "outage_limit": 60.0}
    async with house(
        valkey_url, tmp_path, server=QUICK, total_active_users=1, on_store_outage="open", **limits
    ) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        with frozen(valkey_url):
            shop.silence(6)
            assert (await waiting.poll()).document["state"] == "your_turn"
            first, second = shop.shopper(), shop.shopper()
            assert not (await first.visit()).inside
            assert (await waiting.visit("/goods")).inside
            assert (await waiting.visit("/goods")).inside
            assert waiting.token.use == "guest"
            # Half of 120 a minute is one a second, for whoever came first.
            started = time.monotonic()

            async def let_in() -> bool:
                assert not (await second.visit()).inside
                return (await first.visit()).inside

            await eventually(let_in)
            assert time.monotonic() - started > 0.8
            shop.silence(60)
            assert not (await shop.shopper().visit()).inside
            assert (await inside.visit()).inside
        shop.clock.advance(70_000)
        await settle(shop)
        for shopper in (waiting, first):
            assert (await shopper.visit()).state == "waiting"
            assert shopper.token.use == "ticket"
        assert waiting.token.number < first.token.number
        assert (await inside.visit()).inside


# The real thing


@asynccontextmanager
async def own_store(folder: Path) -> AsyncIterator[EmbeddedValkey]:
    """A store of its own, which may be killed."""
    valkey = EmbeddedValkey(folder)
    try:
        await valkey.start()
        yield valkey
    finally:
        await valkey.stop()


async def test_a_killed_store_is_back_with_its_data_and_says_so(tmp_path: Path) -> None:
    """Another process is another server, though its data are the same: gateways are asked what they know."""
    async with own_store(tmp_path / "data") as valkey:
        url = f"unix://{tmp_path / 'data' / 'valkey.sock'}"
        async with house(url, tmp_path, gateways=2, server=QUICK, total_active_users=2) as shop:
            inside, _, waiting = await shop.enter(), await shop.enter(), await shop.queue()
            fence, issued = shop.desk().snapshot.fence, shop.desk().snapshot.issued
            before = valkey.pid
            assert before is not None
            kill(before)

            async def back() -> bool:
                if valkey.pid == before:
                    return False
                await shop.tick(0)
                return shop.desk().snapshot.fence > fence

            await eventually(back, 20)
            await settle(shop)
            snapshot = shop.desk().snapshot
            assert (snapshot.inside, snapshot.calm) == (2, 0)
            assert snapshot.issued >= issued + 10_000
            assert (await inside.visit()).inside
            await inside.leave("Sec-Fetch-Site: same-origin")
            await waiting.poll()
            await settle(shop)
            assert (await waiting.visit()).inside
