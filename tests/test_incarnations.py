"""States of a room that are lost, old, or begun by somebody new: what others know counts more."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clockwork import EDGE, OPENING, Clock, Teller
from tests.house import KEY, house, opened
from tests.test_store_outages import frozen, settle
from waitingroom.desk import Desk
from waitingroom.forecast import smooth_pace
from waitingroom.line import SEGMENT
from waitingroom.room import Entry, Knock, Room, Snapshot, Totals
from waitingroom.tickets import Keyring, Token, Use

SALE = Room(name="sale", total_active_users=4, new_users_per_minute=60_000, session_duration=300.0)

Opener = Callable[..., Awaitable[Teller]]


@pytest.fixture
def clock(valkey_url: str) -> Iterable[Clock]:
    """The store's time."""
    with Clock(valkey_url) as found:
        yield found


@pytest.fixture
async def teller(clock: Clock) -> AsyncIterator[Opener]:
    """Return a function that opens one more gateway; the room as it has it in its file may be changed."""
    made: list[Teller] = []

    async def start(**changes: Any) -> Teller:
        store = clock.store(f"gateway-{len(made)}")
        file = replace(SALE, **changes)
        made.append(Teller(store, Desk(await store.seed(file))))
        return made[-1]

    yield start
    for each in made:
        await each.store.close()


def forget(url: str, *kept: str) -> None:
    """The store loses the room, but for these keys."""
    with redis.Redis.from_url(url) as client:
        names = client.scan_iter("wr:*")
        client.delete(*(name for name in names if name.decode().rpartition(":")[2] not in kept))


def ticket(number: int, visitor: str = "v") -> Token:
    return Token(Use.TICKET, "sale", visitor, number, 1, 1 << 50, 0, 0)


async def rounds(clock: Clock, *gateways: Teller, times: int = 4, polls: Iterable[int] = ()) -> None:
    """Time passes, and gateways tick in turn; holders of these numbers poll at the first."""
    for _ in range(times):
        clock.advance(1000)
        for number in polls:
            gateways[0].desk.poll(ticket(number), 0.0, 0.0)
        for gateway in gateways:
            await gateway.tick()


async def line_of(clock: Clock, gateway: Teller, people: int, *others: Teller) -> list[int]:
    """A room whose seats are taken, and so many who wait: their numbers."""
    await rounds(clock, gateway, *others, times=2)
    inside = await gateway.join(*(f"inside{index}" for index in range(4)))
    for index, answer in enumerate(inside):
        if answer.entry is Entry.TRIAL:
            seat = Token(Use.PASS, "sale", f"inside{index}", answer.number, 1, answer.until, 0, 0)
            gateway.desk.touch(seat)
            await rounds(clock, gateway, *others, times=1)
            inside += await gateway.join(f"more{index}")
    numbers = [answer.number for answer in await gateway.join(*(f"w{index}" for index in range(people)))]
    await rounds(clock, gateway, *others, times=2, polls=numbers)
    return numbers


async def test_a_fresh_gateway_that_is_first_voids_nothing(
    valkey_url: str, clock: Clock, teller: Opener
) -> None:
    """It seeds an empty store before those who know more are back: they tell it places and seats."""
    old = await teller(total_active_users=1)
    numbers = await line_of(clock, old, 3)
    inside, offered = old.desk.snapshot.inside, old.desk.snapshot.offered
    # The room's clock stays behind the store's, as after a long pause.
    clock.advance(600_000)
    await rounds(clock, old, polls=numbers)
    forget(valkey_url)
    clock.advance(1_500_000)
    fresh = await teller(total_active_users=1)
    await rounds(clock, fresh, times=2)
    await rounds(clock, old, fresh, polls=numbers)
    snapshot = old.desk.snapshot
    assert (snapshot.inside, snapshot.offered) == (inside, offered)
    assert not set(snapshot.spent) & set(numbers)
    assert list(snapshot.line.numbers()) == numbers
    (answer,) = await fresh.join("late")
    assert answer.number > max(numbers) + 10_000


async def test_the_front_of_the_line_may_lie_in_an_earlier_segment(
    valkey_url: str, clock: Clock, teller: Opener
) -> None:
    """A state that begins anew still knows the segments in which people wait."""
    clock.set(EDGE)
    at = await teller(total_active_users=1)
    numbers = await line_of(clock, at, 12)
    assert numbers[0] // SEGMENT < numbers[-1] // SEGMENT
    forget(valkey_url, "config")
    await rounds(clock, at, polls=numbers)
    assert list(at.desk.snapshot.line.numbers()) == numbers
    assert at.desk.snapshot.spent == ()


async def test_tickets_alone_prove_their_numbers(valkey_url: str, clock: Clock, teller: Opener) -> None:
    """With every gateway new and the state lost, places are kept, and nobody enters at once."""
    at = await teller(total_active_users=1)
    numbers = await line_of(clock, at, 3)
    forget(valkey_url, "config")
    clock.advance(1_200_000)
    fresh = await teller()
    for number in numbers:
        fresh.desk.vouch(ticket(number), stands=False)
    await rounds(clock, fresh, polls=numbers)
    assert list(fresh.desk.snapshot.line.numbers()) == numbers
    assert fresh.desk.snapshot.calm > 200_000
    (answer,) = await fresh.join("new")
    assert answer.entry is Entry.WAIT


async def test_seats_of_which_nobody_has_spoken_stay_counted(
    valkey_url: str, clock: Clock, teller: Opener
) -> None:
    """However many enter meanwhile, and whoever gives up waiting, until each is given back or over."""
    dead, alive = await teller(total_active_users=40), await teller()
    await rounds(clock, dead, alive, times=2)
    inside = [(await dead.join(f"d{index}"))[0] for index in range(4)]
    await rounds(clock, dead, alive, times=2)
    assert {answer.entry for answer in inside} == {Entry.TRIAL}
    before = alive.desk.room
    after = replace(before, total_active_users=6)
    alive.desk.room = await alive.store.change(after, before, "anna", "the sale is on")
    await rounds(clock, alive, times=1)
    forget(valkey_url, "config")
    await rounds(clock, alive, times=13)
    waiting = await alive.join("w1", "w2", "w3", "w4", "w5", "w6")
    numbers = [answer.number for answer in waiting if answer.entry is Entry.WAIT]
    for number in numbers[2:]:
        alive.desk.leave(ticket(number, f"w{number}"), 0.0)
    await rounds(clock, alive, polls=numbers[:2])
    snapshot = alive.desk.snapshot
    assert snapshot.inside + snapshot.offered + 4 <= 6
    assert snapshot.taken >= 4
    # A second loss does not make anybody forget them.
    forget(valkey_url, "config")
    await rounds(clock, alive, times=3, polls=numbers[:2])
    assert alive.desk.snapshot.inside + alive.desk.snapshot.offered + 4 <= 6


async def test_an_old_copy_of_the_state_ends_no_seat(valkey_url: str, clock: Clock, teller: Opener) -> None:
    """A snapshot from a minute ago is loaded: leases that gateways know of are there again."""
    at = await teller(total_active_users=4, session_duration=60.0)
    await line_of(clock, at, 2)
    with redis.Redis.from_url(valkey_url) as client:
        copy = {key: client.dump(key) for key in client.scan_iter("wr:*")}
        seats = [*at.desk._leases]
        for _ in range(40):
            clock.advance(2000)
            for seat in seats:
                at.desk.hand_in.touched[seat] = None
            await at.tick()
        inside = at.desk.snapshot.inside
        client.delete(*client.scan_iter("wr:*"))
        for key, value in copy.items():
            client.restore(key, 600_000 if not key.endswith(b":config") else 0, value)
        client.hset("wr:{sale}:state", "server", "another")
    await rounds(clock, at)
    assert (at.desk.snapshot.inside, at.desk.snapshot.calm) == (inside, 0)


async def test_a_gateway_that_knows_more_is_not_refused_for_ever(
    valkey_url: str, clock: Clock, teller: Opener
) -> None:
    """Others who know less do not keep it out: after ten seconds it is believed."""
    at, other = await teller(), await teller()
    await rounds(clock, at, other)
    at.store._known["sale"]["fence"] = 9
    with redis.Redis.from_url(valkey_url) as client:
        client.hset("wr:{sale}:state", "born", 0)
    at.store._known["sale"]["born"] = 0
    refused = 0
    for _ in range(20):
        clock.advance(1000)
        await other.tick()
        refused += not await at.tick()
    assert 8 <= refused <= 11
    assert at.desk.snapshot.fence == 10


async def test_a_lost_epoch_costs_nobody_their_seat(valkey_url: str, tmp_path: Path) -> None:
    """A fresh gateway seeds the first epoch; one that knows the third gives it back, with its seats."""
    async with house(valkey_url, tmp_path, total_active_users=2) as shop:
        await shop.change(epoch=3)
        await shop.tick()
        inside = [await shop.enter() for _ in range(2)]
        forget(valkey_url)
        shop.clock.advance(30_000)
        async with opened(shop.gateways[0].settings):
            await settle(shop)
            await settle(shop)
            assert (shop.desk().room.epoch, shop.desk().snapshot.inside) == (3, 2)
            for shopper in inside:
                assert (await shopper.visit()).inside
            assert (await shop.shopper().visit()).state == "waiting"


async def test_whose_turn_it_was_is_known_after_a_loss(valkey_url: str, clock: Clock, teller: Opener) -> None:
    """Though they have not polled since: their offer stands, and nobody behind them is called instead."""
    at = await teller(total_active_users=1)
    numbers = await line_of(clock, at, 3)
    (inside,) = at.desk._leases
    at.desk.hand_in.left.add(inside)
    await rounds(clock, at, times=1)
    (called,) = at.desk.snapshot.offers
    assert called == numbers[0]
    forget(valkey_url, "config")
    await rounds(clock, at)
    at.desk.poll(ticket(numbers[-1]), 0.0, 0.0)
    await rounds(clock, at)
    assert list(at.desk.snapshot.offers) == [called]
    assert list(at.desk.snapshot.line.numbers()) == numbers[1:]


async def test_a_gathering_that_ends_by_time_lets_nobody_pass_the_arrivals(
    clock: Clock, teller: Opener
) -> None:
    """A newcomer who knocks in the moment after it has no number before those who came in the outage."""
    at, dead = await teller(), await teller()
    await rounds(clock, at, dead)
    clock.advance(60_000)
    arrivals = [at.desk.arrive("g", 0.0, OPENING / 1000) for _ in range(3)]
    await at.tick()
    for _ in range(4):
        clock.advance(2400)
        await at.tick()
    clock.advance(1000)
    (early,) = await dead.store.enter("sale", [Knock("newcomer")])
    assert early.entry is Entry.LATER
    (asset,) = await dead.store.enter("sale", [Knock("script", wait=False)])
    assert asset.entry is Entry.LATER
    await rounds(clock, at, times=3)
    (late,) = await dead.store.enter("sale", [Knock("newcomer")])
    numbers = [at.desk.arrivals.number(arrival) for arrival in arrivals]
    assert all(number is not None and number < late.number for number in numbers)


async def test_without_renewal_a_loss_shortens_no_session(
    valkey_url: str, clock: Clock, teller: Opener
) -> None:
    """A seat whose cookie had come back is restored for its session, not for its first half minute."""
    at = await teller(disable_session_renewal=True)
    await rounds(clock, at, times=2)
    (answer,) = await at.join("v")
    at.desk.touch(Token(Use.PASS, "sale", "v", answer.number, 1, answer.until, 0, 0))
    await rounds(clock, at)
    forget(valkey_url, "config")
    await rounds(clock, at, times=60)
    assert at.desk.snapshot.inside == 1


async def test_a_gateway_that_starts_in_an_outage_loses_no_arrival(valkey_url: str, tmp_path: Path) -> None:
    """It has never heard of the room's clock, and its tickets live as long as any."""
    now = int(time.time() * 1000)
    async with house(valkey_url, tmp_path, server={"timeout": 0.1}, total_active_users=1, now=now) as shop:
        await shop.enter()
        with frozen(valkey_url):
            async with opened(shop.gateways[0].settings) as late:
                shopper = shop.shopper()
                shopper.port = late.public_address[1]
                assert (await shopper.visit()).state == "unavailable"
            shopper.port = shop.shopper().port
            await shopper.poll()
        await settle(shop)
        assert (await shopper.poll()).document["state"] == "waiting"
        assert shopper.token.number > 0


async def test_a_gateway_that_starts_in_an_outage_believes_no_old_pass(
    valkey_url: str, tmp_path: Path
) -> None:
    """Yesterday's shoppers still carry theirs; its own time says that it is over."""
    async with house(valkey_url, tmp_path, server={"timeout": 0.1}) as shop:
        stale, fresh = await shop.enter(), await shop.enter()
        old = replace(stale.token, issued=1, expires=2)
        stale.jar["wr-sale"] = Keyring([KEY.encode()]).sign(old)
        with frozen(valkey_url):
            async with opened(shop.gateways[0].settings) as late:
                for shopper in (stale, fresh):
                    shopper.port = late.public_address[1]
                assert not (await stale.visit()).inside
                assert (await fresh.visit()).inside


def test_a_store_that_began_anew_leaves_the_pace_alone() -> None:
    """Its counts begin again, which says nothing about how fast people are called."""
    before = Snapshot(clock=1000, epoch=1, waiting=5, totals=Totals(offered=900), pace=3.0)
    after = Snapshot(clock=2000, epoch=1, waiting=5, totals=Totals(offered=2))
    assert smooth_pace(SALE, before, after) == 3.0
