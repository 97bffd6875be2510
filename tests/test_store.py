"""What the store promises, each promise by itself, on Valkey and on Redis 7."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clockwork import EDGE, Clock, Gateway, over_the_rate, seat
from waitingroom.handin import HandIn
from waitingroom.line import SEGMENT
from waitingroom.room import Entry, Knock, Method, Room, Snapshot
from waitingroom.store import ConflictError, Store, StoreUnavailableError, UnknownRoomError

ROOM = Room(name="sale", total_active_users=2, new_users_per_minute=6000)

Opener = Callable[..., Awaitable[Gateway]]


@pytest.fixture(params=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty store of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[Opener]:
    """Return a function that starts one more gateway on one and the same clock; settings open the room."""
    gateways: list[Gateway] = []
    with Clock(url) as clock:

        async def start(**settings: Any) -> Gateway:
            clock.set(settings.pop("opening", clock.now))
            store = clock.store(f"gateway-{len(gateways)}")
            gateways.append(Gateway(clock, store, await store.seed(replace(ROOM, **settings))))
            await gateways[-1].tick()
            return gateways[-1]

        yield start
        for each in gateways:
            await each.store.close()


async def queue(at: Gateway, people: int) -> list[Knock]:
    """People who wait with a number each, because everybody queues for a moment."""
    await at.change(queue_all=True)
    tickets = await at.join(*(f"v{i}" for i in range(people)))
    await at.change(queue_all=False)
    return tickets


async def let_in(at: Gateway, people: int) -> list[Knock]:
    """People who have waited, been called, and taken their seats."""
    tickets = await queue(at, people)
    await at.tick(tickets)
    assert {answer.entry for answer in await at.knock(*tickets)} == {Entry.INSIDE}
    return tickets


# Limits


async def test_two_claims_at_once_are_one_seat(gateway: Opener) -> None:
    """The same ticket on two gateways at the same time takes one seat, and both are told so."""
    one, other = await gateway(), await gateway()
    (ticket,) = await queue(one, 1)
    await one.tick([ticket])
    answers = await asyncio.gather(*(at.store.knock("sale", ticket) for at in (one, other) * 10))
    assert {(answer.entry, answer.number) for answer in answers} == {(Entry.INSIDE, ticket.number)}
    snapshot = await other.tick()
    assert (snapshot.inside, snapshot.offered, snapshot.totals.admitted) == (1, 0, 1)


async def test_entering_from_everywhere_at_once_stays_within_the_limit(gateway: Opener) -> None:
    """Gateways that tick, join and claim at the same time never exceed the limit with all they do."""
    gateways = [await gateway(total_active_users=25) for _ in range(4)]
    tickets: list[Knock] = []
    for turn in range(6):
        joins = (at.join(*(f"{turn}-{name}-{i}" for i in range(10))) for name, at in enumerate(gateways))
        tickets += [ticket for joined in await asyncio.gather(*joins) for ticket in joined]
        gateways[0].clock.advance(1000)
        snapshots = await asyncio.gather(*(at.tick(tickets) for at in gateways))
        assert max(snapshot.inside + snapshot.offered for snapshot in snapshots) <= 25
        called = [ticket for ticket in tickets if ticket.number in snapshots[-1].offers]
        await asyncio.gather(*(at.store.knock("sale", ticket) for at in gateways for ticket in called))
    snapshot = await gateways[0].tick(tickets)
    assert snapshot.inside == 25
    assert len({ticket.number for ticket in tickets}) == len(tickets) == 240


@pytest.mark.parametrize("rate", [1, 7, 60, 90, 601, 5000])
async def test_delivered_rate_is_the_rate_asked_for(gateway: Opener, rate: int) -> None:
    """Over five minutes 98 % of the rate enters or more; no window exceeds its share and a tick's worth."""
    at = await gateway(total_active_users=10_000_000, new_users_per_minute=rate, session_duration=3600.0)
    tickets = {ticket.number: ticket for ticket in await queue(at, 5 * rate + 200)}
    start, entered, next_poll = at.clock.now, list[int](), 0
    while at.clock.now < start + 300_000:
        snapshot = await at.tick(tickets.values() if at.clock.now >= next_poll else ())
        next_poll = next_poll if at.clock.now < next_poll else at.clock.now + 60_000
        answers = await at.knock(*(tickets.pop(number) for number in snapshot.offers))
        assert {answer.entry for answer in answers} <= {Entry.INSIDE}
        entered += [at.clock.now] * len(answers)
        at.clock.advance(min(1000, math.ceil(1000 if snapshot.again is None else snapshot.again)) or 1)
    assert len(entered) >= 0.98 * 5 * rate
    assert over_the_rate(entered, rate) <= 0.001


async def test_unused_rate_is_not_banked(gateway: Opener) -> None:
    """After an hour without visitors no more than one tick's worth is called at once."""
    at = await gateway(total_active_users=1000, new_users_per_minute=600)
    await at.pass_time(3600)
    snapshot = await at.tick(await queue(at, 100))
    assert snapshot.offered == 10


async def test_claims_in_a_bunch_are_told_a_moment_and_keep_their_offers(gateway: Opener) -> None:
    """Offers taken up all at once enter at the room's rate; who is told to wait loses nothing."""
    at = await gateway(total_active_users=100, new_users_per_minute=60)
    tickets = await queue(at, 5)
    before = (await at.pass_time(6, tickets, step=1000)).offers
    await at.change(claim_window=90.0)
    answers = await at.knock(*tickets)
    after = (await at.tick()).offers
    assert after == {number: deadline for number, deadline in before.items() if number != tickets[0].number}
    assert [answer.entry for answer in answers] == [Entry.INSIDE] + [Entry.MOMENT] * 4
    for ticket in tickets[1:]:
        at.clock.advance(answers[1].until)
        assert (await at.knock(ticket))[0].entry is Entry.INSIDE
    assert (await at.tick()).inside == 5


async def test_offers_count_as_inside(gateway: Opener) -> None:
    """A seat that is held for somebody is nobody else's."""
    at = await gateway()
    tickets = await queue(at, 5)
    snapshot = await at.pass_time(30, tickets)
    assert (snapshot.inside, snapshot.offered, snapshot.waiting) == (0, 2, 3)
    assert [answer.entry for answer in await at.knock(*tickets)] == [Entry.INSIDE] * 2 + [Entry.WAIT] * 3


async def test_lowering_a_limit_throws_nobody_out(gateway: Opener) -> None:
    """Those inside stay; nobody is called until there are fewer than the new limit."""
    at = await gateway(total_active_users=5)
    inside = await let_in(at, 5)
    waiting = await queue(at, 2)
    await at.change(total_active_users=2)
    snapshot = await at.tick(waiting, touched=inside)
    assert (snapshot.inside, snapshot.offered) == (5, 0)
    snapshot = await at.tick(waiting, left=inside[:3])
    assert (snapshot.inside, snapshot.offered) == (2, 0)
    snapshot = await at.tick(waiting, left=inside[3:4])
    assert list(snapshot.offers) == [waiting[0].number]


# Order


async def test_newcomers_never_barge_past_people_who_wait(gateway: Opener) -> None:
    """A seat that falls free is for the one who waits, though a newcomer on another gateway comes first."""
    one, other = await gateway(total_active_users=1), await gateway()
    inside = await let_in(one, 1)
    waiting = await queue(one, 1)
    await one.pass_time(6, waiting, touched=inside)
    one.clock.advance(1000)
    await one.tick(left=inside)
    assert (await other.knock(Knock("newcomer")))[0].entry is Entry.WAIT
    assert list((await other.tick()).offers) == [waiting[0].number]


async def test_newcomers_do_not_barge_through_lag(gateway: Opener) -> None:
    """Somebody told to wait and not yet heard of bars walk-ins; once they are heard of, it is over."""
    at = await gateway()
    (early,) = await queue(at, 1)
    at.clock.advance(2000)
    (late,) = await at.knock(Knock("late"))
    assert late.entry is Entry.WAIT
    snapshot = await at.tick([early, Knock("late", late.number, late.epoch)])
    assert list(snapshot.offers) == [early.number, late.number]
    await at.tick(left=[early])
    assert (await at.knock(Knock("later")))[0].entry is Entry.TRIAL


async def test_somebody_not_yet_heard_of_bars_walk_ins_though_later_ones_were(gateway: Opener) -> None:
    """The first who was told to wait counts, until the time is over."""
    at = await gateway(total_active_users=20)
    _, late = await queue(at, 2)
    at.clock.advance(1000)
    assert list((await at.tick([late])).offers) == [late.number]
    assert (await at.knock(Knock("newcomer")))[0].entry is Entry.WAIT


async def test_joins_that_never_come_back_bar_walk_ins_for_five_seconds(gateway: Opener) -> None:
    """Whoever takes a number and leaves stops nobody for longer."""
    at = await gateway(total_active_users=20)
    await queue(at, 1)
    await at.pass_time(4)
    assert (await at.knock(Knock("newcomer")))[0].entry is Entry.WAIT
    await at.pass_time(5)
    assert (await at.knock(Knock("another")))[0].entry is Entry.TRIAL


async def test_numbers_are_unique_across_gateways(gateway: Opener) -> None:
    """Gateways that give numbers at the same time share one sequence without a gap."""
    gateways = [await gateway(queue_all=True) for _ in range(4)]
    joins = [at.store.knock("sale", Knock(f"{i}")) for i in range(250) for at in gateways]
    numbers = sorted(answer.number for answer in await asyncio.gather(*joins))
    assert numbers == list(range(numbers[0], numbers[0] + 1000))


async def test_absent_visitor_is_passed_over_and_first_on_return(gateway: Opener) -> None:
    """Who is away at their turn holds up nobody for a moment, and is called first when they come back."""
    at = await gateway(total_active_users=1)
    inside = await let_in(at, 1)
    away, second, third = await queue(at, 3)
    await at.pass_time(100, [second, third], touched=inside)
    assert list((await at.tick([second, third], left=inside)).offers) == [second.number]
    await at.knock(second)
    assert (await at.tick(here=[away], seen=[third])).line.ahead(away.number) == 0
    await at.tick(left=[second])
    at.clock.advance(1000)
    offers = [*(await at.tick([away, third])).offers]
    await at.tick(left=[away])
    at.clock.advance(1000)
    assert [*offers, *(await at.tick([third])).offers] == [away.number, third.number]


async def test_turn_not_taken_up_lapses_and_waits_for_a_word(gateway: Opener) -> None:
    """An offer lapses after the claim window; polls keep the place, "I am here" makes it count again."""
    at = await gateway(total_active_users=1, claim_window=90.0)
    first, second = await queue(at, 2)
    assert list((await at.tick([first, second])).offers) == [first.number]
    assert list((await at.pass_time(88, [first, second])).offers) == [first.number]
    snapshot = await at.pass_time(3, [first, second])
    assert list(snapshot.offers) == [second.number]
    assert (snapshot.totals.lapsed, snapshot.waiting) == (1, 1)
    assert (await at.tick([first])).missed == (first.number,)
    assert list((await at.tick([first], left=[second])).offers) == []
    assert (await at.knock(first))[0].entry is Entry.WAIT
    snapshot = await at.tick(here=[first])
    assert (list(snapshot.offers), snapshot.missed) == ([first.number], ())


async def test_hidden_tab_keeps_place_and_candidacy(gateway: Opener) -> None:
    """One poll a minute, which is what browsers allow a hidden tab, is enough to be called."""
    at = await gateway(total_active_users=1)
    inside = await let_in(at, 1)
    hidden, awake = await queue(at, 2)
    for _ in range(3):
        await at.tick([hidden])
        snapshot = await at.pass_time(60, [awake], touched=inside)
        assert (snapshot.waiting, snapshot.present) == (2, 2)
    assert list((await at.tick([awake], left=inside)).offers) == [hidden.number]


async def test_people_who_return_take_at_most_half_while_others_wait(gateway: Opener) -> None:
    """Old places that come back in a crowd share the seats by halves with those who waited all along."""
    at = await gateway(total_active_users=1000, new_users_per_minute=60)
    tickets = await queue(at, 160)
    away, patient = tickets[:40:2], tickets[1:40:2] + tickets[40:]
    await at.pass_time(105, patient)
    before = set(at.snapshot.offers)
    for _ in range(20):
        at.clock.advance(1000)
        await at.tick(here=away, seen=patient)
    called = set(at.snapshot.offers) - before
    returned = called & {ticket.number for ticket in away}
    assert (len(called), len(returned)) == (20, 11)  # half, and the one that the first tick is smoothed by
    assert sorted(called - returned) == [ticket.number for ticket in patient[len(before) :][:9]]


async def test_seats_that_nobody_else_wants_go_to_people_who_return(gateway: Opener) -> None:
    """The half is a bound only while others wait; a seat is never left empty for it."""
    at = await gateway(total_active_users=12)
    *away, last = await queue(at, 21)
    await at.tick([last])
    await at.pass_time(31, [])
    others = await queue(at, 2)
    snapshot = await at.tick(here=away, seen=others)
    assert sorted(snapshot.offers) == [n.number for n in (*away[:9], last, *others)]


async def test_a_late_first_poll_does_not_make_a_newcomer_one_who_returns(gateway: Opener) -> None:
    """Whoever is first heard of a few seconds after a higher number was called is simply next."""
    at = await gateway(total_active_users=12)
    *late, early = await queue(at, 21)
    await at.tick([early])
    others = await queue(at, 2)
    snapshot = await at.tick([*late, *others])
    assert sorted(snapshot.offers) == [n.number for n in (*late[:11], early)]


async def test_one_tick_calls_thousands_lowest_first(gateway: Opener) -> None:
    """However many seats there are, those called are the lowest present, none left out and none twice."""
    at = await gateway(total_active_users=10_000_000, new_users_per_minute=10_000_000)
    await at.change(queue_all=True)
    present = [ticket for turn in range(4) for ticket in await at.join(*(f"{turn}.{i}" for i in range(2000)))]
    del present[3000:5500:2]
    await at.change(queue_all=False, total_active_users=5000)
    snapshot = await at.tick(present)
    assert sorted(snapshot.offers) == [ticket.number for ticket in present[:5000]]
    assert list(snapshot.line.numbers()) == [ticket.number for ticket in present[5000:]]


# Seats


async def test_trial_seat_ends_and_its_number_waits_again(gateway: Opener) -> None:
    """A walk-in whose cookie stays away frees the seat in half a minute; the number waits from then on."""
    at = await gateway(total_active_users=20)
    (ticket,) = await at.join("walk-in")
    assert (await at.tick()).inside == 1
    snapshot = await at.pass_time(34)
    assert (snapshot.inside, snapshot.totals.vanished) == (0, 1)
    assert list((await at.tick([ticket])).offers) == [ticket.number]


async def test_cookie_that_comes_back_makes_the_seat_a_full_one(gateway: Opener) -> None:
    """A request with the pass of a trial seat keeps the seat for a whole session."""
    at = await gateway(total_active_users=20)
    tickets = await at.join("a", "b")
    await at.tick(touched=tickets[:1])
    assert (await at.knock(tickets[1]))[0].entry is Entry.INSIDE
    assert (await at.pass_time(290)).inside == 2
    snapshot = await at.pass_time(15)
    assert (snapshot.inside, snapshot.totals.expired, snapshot.totals.vanished) == (0, 2, 0)


@pytest.mark.parametrize(("limit", "rate", "trials"), [(50, 6000, 5), (5000, 240, 60), (3, 6000, 1)])
async def test_clients_without_cookies_cannot_fill_the_room(
    gateway: Opener, limit: int, rate: int, trials: int
) -> None:
    """First seats are at most a tenth of the limit or a quarter of the rate, and one in any case."""
    at = await gateway(total_active_users=limit, new_users_per_minute=rate)
    for turn in range(20):
        await at.pass_time(1)
        await at.join(*(f"bot{turn}.{i}" for i in range(4)))
    assert (await at.tick()).inside == trials


async def test_request_keeps_the_seat_and_silence_ends_it(gateway: Opener) -> None:
    """A touch now and then keeps a seat; without one it ends after the session, and not before."""
    at = await gateway(total_active_users=2, session_duration=60.0)
    busy, idle = await let_in(at, 2)
    assert (await at.pass_time(60, touched=[busy])).inside == 2
    snapshot = await at.pass_time(4, touched=[busy])
    assert (snapshot.inside, snapshot.totals.expired) == (1, 1)
    assert snapshot.lease_end == snapshot.clock + 60_000
    assert (await at.knock(replace(idle, join=False)))[0].entry is Entry.ENDED
    assert (await at.knock(replace(busy, join=False)))[0].until == snapshot.lease_end


async def test_session_without_renewal_ends_however_busy(gateway: Opener) -> None:
    """With `disable_session_renewal` neither requests nor knocks prolong a seat."""
    at = await gateway(disable_session_renewal=True, session_duration=60.0)
    (busy,) = await let_in(at, 1)
    end = at.clock.now + 60_000
    snapshot = await at.pass_time(57, touched=[busy])
    assert ((await at.knock(busy))[0].until, snapshot.lease_end) == (end, None)
    await at.pass_time(2)
    at.clock.advance(2000)
    assert (await at.knock(replace(busy, join=False)))[0].entry is Entry.ENDED
    assert (await at.pass_time(4)).inside == 0


async def test_ended_seats_refuse_touches(gateway: Opener) -> None:
    """Who has left is out, though another gateway hands in a request of theirs a moment later."""
    one, other = await gateway(), await gateway()
    (ticket,) = await let_in(one, 1)
    await one.tick(left=[ticket])
    snapshot = await other.tick(touched=[ticket])
    assert (snapshot.inside, snapshot.ended, snapshot.totals.left) == (0, (seat(ticket),), 1)
    assert (await other.knock(replace(ticket, join=False)))[0].entry is Entry.ENDED
    await one.tick(left=[ticket])
    assert (await other.tick()).totals.left == 1


async def test_seat_stays_ended_for_as_long_as_any_pass_can_last(gateway: Opener) -> None:
    """Passes were given for the longer session of before; the shorter one of now does not revive them."""
    at = await gateway(session_duration=300.0)
    (ticket,) = await let_in(at, 1)
    await at.tick(left=[ticket])
    await at.change(session_duration=10.0)
    assert (await at.pass_time(300, touched=[ticket])).inside == 0


async def test_touch_restores_a_seat_that_the_store_lost(gateway: Opener, url: str) -> None:
    """A request with a valid pass brings back the seat, and its number does not wait."""
    at = await gateway()
    (ticket,) = await let_in(at, 1)
    with redis.Redis.from_url(url) as client:
        client.delete("wr:{sale}:active", f"wr:{{sale}}:gone:main:{ticket.number // SEGMENT}")
    snapshot = await at.tick([ticket], touched=[ticket])
    assert (snapshot.inside, snapshot.waiting, snapshot.spent) == (1, 0, (ticket.number,))


async def test_leaving_while_called_frees_the_seat_and_is_counted(gateway: Opener) -> None:
    """Somebody who gives up at their turn, or before it, has abandoned; the seat goes to the next."""
    at = await gateway(total_active_users=1)
    first, second, third = await queue(at, 3)
    await at.tick([first, second, third])
    snapshot = await at.tick(left=[first, second])
    assert (list(snapshot.offers), snapshot.totals.abandoned) == ([third.number], 2)
    assert set((await at.tick([first, second])).spent) == {first.number, second.number}


async def test_spent_numbers_are_told_and_never_make_a_seat(gateway: Opener) -> None:
    """A number whose seat has ended is named as spent, and a claim for it joins anew at most."""
    at = await gateway(session_duration=30.0)
    tickets = await let_in(at, 2)
    await at.pass_time(40)
    assert set((await at.tick(tickets)).spent) == {ticket.number for ticket in tickets}
    ended, anew = await at.knock(replace(tickets[0], join=False), tickets[1])
    assert (ended.entry, ended.number) == (Entry.ENDED, 0)
    assert anew.number > tickets[1].number


async def test_raised_epoch_voids_everything(gateway: Opener) -> None:
    """After it nobody is inside or waits, old tickets prove nothing on any gateway, and numbers go on."""
    one, other = await gateway(), await gateway()
    inside = await let_in(one, 1)
    waiting = await queue(one, 3)
    await one.tick(waiting)
    await one.change(epoch=2)
    snapshot = await other.tick(waiting, touched=inside)
    assert (snapshot.inside, snapshot.offered, snapshot.waiting, snapshot.epoch) == (0, 0, 0, 2)
    assert (await other.tick()).epoch == other.room.epoch == 2
    answers = await other.knock(*(replace(ticket, join=False) for ticket in inside + waiting))
    assert {answer.entry for answer in answers} == {Entry.ENDED}
    (anew,) = await other.knock(waiting[0])
    assert (anew.number, anew.epoch) == (waiting[-1].number + 1, 2)


# Settings


@pytest.mark.parametrize("setting", ["paused", "queue_all"])
async def test_closed_room_calls_nobody_and_keeps_its_offers(gateway: Opener, setting: str) -> None:
    """While paused, or while everybody queues, nobody new is called; who was called before may enter."""
    at = await gateway()
    tickets = await queue(at, 3)
    await at.tick(tickets[:1])
    await at.change(**{setting: True})
    snapshot = await at.pass_time(10, tickets)
    assert list(snapshot.offers) == [tickets[0].number]
    answers = await at.knock(*tickets, Knock("newcomer"))
    assert [answer.entry for answer in answers] == [Entry.INSIDE, Entry.WAIT, Entry.WAIT, Entry.WAIT]


async def test_room_that_rejects_gives_no_numbers_when_full(gateway: Opener) -> None:
    """With `reject` a full room answers so, and counts nobody."""
    at = await gateway(queueing_method=Method.REJECT, total_active_users=1)
    entries = [answer.entry for answer in await at.knock(Knock("a"), Knock("b"))]
    assert entries == [Entry.TRIAL, Entry.FULL]
    assert (await at.tick()).totals.joined == 1


async def test_change_that_comes_second_is_told_what_is_now(gateway: Opener) -> None:
    """Two changes of one version: the second is refused, with the room as the first has left it."""
    one, other = await gateway(), await gateway()
    await one.change(total_active_users=7)
    with pytest.raises(ConflictError, match="sale is at version 2") as refused:
        await other.change(total_active_users=9)
    assert refused.value.current == await other.store.load("sale") == one.room
    await other.tick()
    assert other.room == one.room


async def test_every_change_leaves_who_and_why(gateway: Opener) -> None:
    """The audit trail names author, reason, version and the settings that changed, newest first."""
    at = await gateway()
    await at.change(total_active_users=7)
    await at.change(paused=True, message="Back soon.")
    second, first = await at.store.audit("sale")
    assert (first.version, first.author, first.reason, first.changed) == (
        2,
        "anna",
        "the sale is on",
        {"total_active_users": 7},
    )
    assert (second.version, second.changed) == (3, {"paused": True, "message": "Back soon."})
    assert second.at >= first.at > time.time() - 60


async def test_seeding_leaves_a_known_room_alone(gateway: Opener) -> None:
    """The file's room does not overwrite what operators have set since."""
    at = await gateway()
    await at.change(total_active_users=7)
    assert await at.store.seed(ROOM) == at.room


async def test_unknown_room_is_named(gateway: Opener) -> None:
    """A room that the store does not have is an error that says so, whatever was asked."""
    at = await gateway()
    stranger = Room(name="stranger")
    for call in (
        at.store.knock("stranger", Knock("v")),
        at.store.tick(stranger, Snapshot(), HandIn()),
        at.store.load("stranger"),
        at.store.change(stranger, stranger, "anna", "why not"),
    ):
        with pytest.raises(UnknownRoomError, match="stranger"):
            await call


async def test_odd_durations_are_whole_milliseconds(gateway: Opener) -> None:
    """Durations finer than a millisecond neither fail nor lose a deadline."""
    at = await gateway(claim_window=90.00012, session_duration=30.00049)
    tickets = await queue(at, 1)
    assert list((await at.tick(tickets)).offers.values()) == [at.clock.now + 90_000]
    assert (await at.knock(*tickets))[0].until == at.clock.now + 30_000


# Calls


async def calls(url: str) -> int:
    """How many scripts the server has run."""
    with redis.Redis.from_url(url) as client:
        stats: dict[str, Any] = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def test_joins_of_one_turn_of_the_loop_are_one_call(gateway: Opener, url: str) -> None:
    """A thousand visitors at the same moment cost the store one script call; a claim costs one."""
    at = await gateway()
    await at.knock()
    before = await calls(url)
    answers = await asyncio.gather(*(at.store.knock("sale", Knock(f"v{i}")) for i in range(1000)))
    assert await calls(url) == before + 1
    (ticket,) = [a for a in answers if a.entry is Entry.TRIAL]
    await at.store.knock("sale", Knock(f"v{answers.index(ticket)}", ticket.number, ticket.epoch))
    assert await calls(url) == before + 2


async def test_repeated_call_is_answered_not_executed(gateway: Opener) -> None:
    """A call whose answer was lost can be sent again: the same answers, and nothing has happened twice."""
    at = await gateway(total_active_users=20)
    knocks = [Knock("a"), Knock("b"), Knock("c")]
    answers = await at.store.enter("sale", knocks, 7)
    at.clock.advance(500)
    assert await at.store.enter("sale", knocks, 7) == answers
    other = await gateway()
    assert (await other.tick()).totals.joined == 3
    assert await other.store.enter("sale", knocks, 7) != answers


async def test_crowd_at_the_door_is_taken_in_calls_of_bounded_size(gateway: Opener, url: str) -> None:
    """More people than one call carries share the next ones, and each gets an answer of their own."""
    at = await gateway()
    await at.knock()
    before = await calls(url)
    answers = await asyncio.gather(*(at.store.knock("sale", Knock(f"v{i}")) for i in range(4100)))
    assert await calls(url) == before + 3
    assert len({answer.number for answer in answers}) == 4100


async def test_store_whose_scripts_were_flushed_answers(gateway: Opener, url: str) -> None:
    """A store that has restarted knows no script; the next call brings it."""
    at = await gateway()
    with redis.Redis.from_url(url) as client:
        client.script_flush()
    assert (await at.knock(Knock("v")))[0].entry is Entry.TRIAL
    assert (await at.tick()).inside == 1


async def test_store_that_does_not_answer_fails_in_time_and_once(tmp_path: Path) -> None:
    """A silent or absent store is an error within the time-out, is not asked again, and is observed."""
    silent, heard, told = tmp_path / "silent", [0], list[tuple[str, str]]()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard[0] += 1
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(say_nothing, silent):
        for name in (silent, tmp_path / "absent"):
            store = Store(
                f"unix://{name}", "a", timeout=0.2, observer=lambda call, _, how: told.append((call, how))
            )
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="enter"):
                await store.knock("sale", Knock("v"))
            assert time.monotonic() - started < 1
            await store.close()
    assert told == [("enter", "error")] * 2
    assert heard == [1]


async def test_store_says_how_it_is(gateway: Opener) -> None:
    """A ping takes some time, and the server tells its version."""
    at = await gateway()
    assert 0 < await at.store.ping() < 5
    assert "redis_version" in await at.store.info()


# Time


async def test_nothing_ends_and_nobody_is_called_in_the_calm_after_a_pause(gateway: Opener) -> None:
    """After the store stood still, nothing ends until gateways had ten seconds to hand in what they kept."""
    at = await gateway(total_active_users=3, session_duration=60.0)
    inside = await let_in(at, 2)
    waiting = await queue(at, 3)
    assert (await at.pass_time(57, waiting)).offered == 1
    await gateway()
    at.clock.advance(3_600_000)
    snapshot = await at.tick(waiting)
    assert (snapshot.inside, snapshot.offered, snapshot.calm) == (2, 1, 10_000)
    assert (await at.pass_time(9, waiting)).inside == 2
    assert (await at.knock(inside[0]))[0].entry is Entry.INSIDE
    snapshot = await at.pass_time(3, waiting)
    assert (snapshot.inside, snapshot.totals.expired, snapshot.offered, snapshot.calm) == (1, 1, 2, 0)


async def test_calm_is_over_once_every_gateway_has_said_what_it_kept(gateway: Opener) -> None:
    """Nobody waits for gateways that have all spoken, nor for one that said goodbye or was long gone."""
    long_gone = await gateway(total_active_users=3)
    one = await gateway()
    await one.pass_time(18)
    other, leaving = await gateway(), await gateway()
    await leaving.store.tick(leaving.room, leaving.snapshot, HandIn(goodbye=True))
    one.clock.advance(60_000)
    assert set((await one.tick()).gateways) == {"gateway-1", "gateway-2"}
    assert (await one.tick()).calm > 0
    assert (await other.tick()).calm > 0
    assert (await other.tick()).calm == 0
    assert (await long_gone.tick()).calm == 0


async def test_clock_that_is_set_back_stops_nothing(gateway: Opener) -> None:
    """The room's clock never goes back, and goes on from wherever the store's clock was put."""
    at = await gateway()
    tickets = await queue(at, 3)
    before = (await at.tick(tickets)).clock
    at.clock.advance(-86_400_000)
    assert (await at.tick()).clock == before
    assert (await at.pass_time(123, tickets)).clock == before + 123_000
    assert at.snapshot.totals.lapsed == 2


async def test_presence_does_not_come_back_when_its_period_comes_round(gateway: Opener) -> None:
    """Periods share a ring of bitmaps; somebody heard of a whole round ago is not taken for present."""
    at = await gateway(queue_all=True)
    gone, here = await at.join("gone", "here")
    await at.tick([gone])
    assert (await at.pass_time(64 * 15, [here])).waiting == 1
    assert list(at.snapshot.line.numbers()) == [here.number]


# Numbers


async def test_line_is_exact_across_the_edge_of_a_segment(gateway: Opener) -> None:
    """Numbers of thirteen digits and two bitmaps: who waits and who is ahead is exact on either side."""
    at = await gateway(opening=EDGE)
    tickets = await queue(at, 30)
    numbers = [ticket.number for ticket in tickets]
    assert numbers == list(range(EDGE + 1, EDGE + 31))
    assert numbers[6] % SEGMENT == SEGMENT - 1
    snapshot = await at.tick(tickets[:5] + tickets[10:])
    assert sorted(snapshot.offers) == numbers[:2]
    assert list(snapshot.line.numbers()) == numbers[2:5] + numbers[10:]
    assert [snapshot.line.ahead(number) for number in numbers[2:12]] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 4]
    assert (await at.knock(tickets[1]))[0].number == numbers[1]


async def test_full_segment_goes_when_its_places_have_ended(gateway: Opener) -> None:
    """Places are kept for `hold_for`; later their bitmaps are gone and the numbers told as spent."""
    at = await gateway(opening=EDGE, hold_for=600.0)
    tickets = await queue(at, 30)
    assert (await at.pass_time(500)).first == EDGE // SEGMENT
    assert set((await at.tick(tickets)).spent) == set()
    await at.pass_time(400)
    snapshot = await at.tick(tickets)
    assert snapshot.first == EDGE // SEGMENT + 1
    assert set(snapshot.spent) == {ticket.number for ticket in tickets[:7]}
    assert sorted(snapshot.offers) == [ticket.number for ticket in tickets[7:9]]


async def test_whoever_waits_longer_than_places_are_held_keeps_theirs(gateway: Opener) -> None:
    """`hold_for` bounds how long somebody may be away; who is there all the time loses nothing."""
    at = await gateway(opening=EDGE, hold_for=600.0, total_active_users=1)
    inside = await let_in(at, 1)
    tickets = await queue(at, 20)
    snapshot = await at.pass_time(900, tickets, touched=inside)
    assert (snapshot.waiting, snapshot.spent, snapshot.line.ahead(tickets[-1].number)) == (20, (), 19)
    snapshot = await at.tick(tickets, left=inside)
    assert list(snapshot.offers) == [tickets[0].number]


async def test_store_that_lost_its_state_goes_on_above_every_known_number(gateway: Opener, url: str) -> None:
    """Whoever vouches is believed: numbers never repeat, and those known to be inside still count."""
    at = await gateway(total_active_users=2)
    (inside, _) = await let_in(at, 2)
    await at.tick()
    with redis.Redis.from_url(url) as client:
        client.delete(*(key for key in client.scan_iter("wr:*") if not key.endswith(b":config")))
    assert (await at.knock(Knock("early")))[0].entry is Entry.LATER
    await at.tick()
    assert (await at.tick(touched=[inside])).calm == 0
    (waiting,) = await at.join("newcomer")
    assert waiting.number > inside.number + 10_000
    snapshot = await at.tick([waiting])
    assert (snapshot.inside, snapshot.offered) == (1, 0)


async def test_store_that_nobody_vouches_for_waits_out_old_seats(gateway: Opener, url: str) -> None:
    """With all knowledge lost nobody enters until every old seat has ended, and numbers begin far above."""
    at = await gateway(session_duration=60.0)
    with redis.Redis.from_url(url) as client:
        client.delete(*(key for key in client.scan_iter("wr:*") if not key.endswith(b":config")))
    fresh = at.clock.store("fresh")
    (answer,) = await fresh.enter("sale", [Knock("v")])
    await fresh.close()
    assert (answer.entry, answer.number) == (Entry.WAIT, at.clock.now // 1000 * 1000 + 1)
    ticket = Knock("v", answer.number, answer.epoch)
    assert (await at.pass_time(57, [ticket])).offered == 0
    assert (await at.pass_time(6, [ticket])).offered == 1
