"""What a gateway vouches for, and who is counted while the store is away."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waitingroom import handin
from waitingroom.arrivals import Arrivals
from waitingroom.desk import Desk
from waitingroom.handin import MOST_VOUCHED, HandIn, Witness
from waitingroom.line import SEGMENT
from waitingroom.opening import Opening, rank_of
from waitingroom.room import Arrival, Block, Room, Snapshot
from waitingroom.tickets import Token, Use

ROOM = Room(name="sale", new_users_per_minute=120, on_store_outage="open", outage_share=0.5)


def pass_for(number: int, end: int = 90_000) -> Token:
    return Token(Use.PASS, "sale", f"v{number}", number, 1, end, 0, 0)


# Testimony


@pytest.mark.parametrize("leases", [0, 1, MOST_VOUCHED, MOST_VOUCHED + 1, 2 * MOST_VOUCHED])
def test_a_testimony_comes_in_parts(leases: int) -> None:
    """However many seats there are, each is said once, none with more than one tick can carry."""
    whole = handin.Testimony(leases={f"main:{n}:v": n for n in range(leases)}, offers={7: 1})
    parts = list(whole.parts())
    assert {seat: end for part in parts for seat, end in part.leases.items()} == whole.leases
    assert sum(len(part.leases) for part in parts) == leases
    assert max(len(part.leases) for part in parts) <= MOST_VOUCHED
    assert [part.offers for part in parts] == [{7: 1}] + [{}] * (len(parts) - 1)


@settings(deadline=None)
@given(st.sets(st.integers(0, 3 * SEGMENT), max_size=30))
def test_a_witness_remembers_who_was_inside(numbers: set[int]) -> None:
    """Every number that was told, and no other; segments that have ended are forgotten."""
    witness = Witness()
    witness.note(numbers)
    part, last = witness.next_part(handin.Testimony())
    assert last
    assert part is not None
    told = {
        segment * SEGMENT + at
        for segment, bits in part.entered.items()
        for byte, value in enumerate(bits)
        for at in range(8 * byte, 8 * byte + 8 if value else 8 * byte)
        if value & 128 >> at % 8
    }
    assert told == numbers
    witness.forget(2)
    witness.again()
    part, _ = witness.next_part(handin.Testimony())
    assert part is not None
    assert min(part.entered, default=2) >= 2


def test_a_gateway_has_said_all_only_with_its_last_part() -> None:
    """The store must not take it for heard out before; what was not heard is said from the beginning."""
    desk = Desk(ROOM)
    desk.absorb(ROOM, Snapshot(clock=1000, epoch=1, fence=1), HandIn(), 0.0)
    for number in range(MOST_VOUCHED + 5):
        desk.enter(pass_for(number), trial=False)
    first = desk.take()
    assert first.testimony is not None
    assert (len(first.testimony.leases), first.vouched) == (MOST_VOUCHED, 0)
    desk.take_back(first)
    again, rest = desk.take(), desk.take()
    assert again.testimony is not None
    assert rest.testimony is not None
    assert again.testimony.leases == first.testimony.leases
    assert (len(rest.testimony.leases), rest.vouched) == (5, 1)
    desk.absorb(ROOM, Snapshot(clock=2000, epoch=1, fence=1), rest, 0.0)
    assert desk.settled
    assert desk.take().testimony is None


def test_seats_on_trial_and_seats_given_back_are_said_to_be() -> None:
    """A first seat is restored as one, and one that was left is not restored at all."""
    desk = Desk(ROOM)
    desk.absorb(ROOM, Snapshot(clock=1000, epoch=1, fence=1), HandIn(), 0.0)
    for number in (1, 2, 3):
        desk.enter(pass_for(number), trial=number == 1)
    desk.leave(pass_for(3), 0.0)
    told = desk.take().testimony
    assert told is not None
    assert (list(told.trials), list(told.leases), told.ended) == (
        ["main:1:v1"],
        ["main:2:v2"],
        ("main:3:v3",),
    )


# Arrivals


def test_arrivals_of_a_second_have_their_places() -> None:
    """One after another, from wherever the second's numbers end."""
    arrivals = Arrivals()
    assert [arrivals.arrive("g", 7).place for _ in range(3)] == [0, 1, 2]
    arrivals.absorb([[Block("g", 7, 0, 3, 101)]])
    assert (arrivals.open, arrivals.waiting) == ({}, 0)
    assert arrivals.arrive("g", 7).place == 3
    assert (arrivals.open, arrivals.waiting) == ({("g", 7): 4}, 1)
    assert [arrivals.number(Arrival("g", 7, place)) for place in range(3)] == [101, 102, 103]


def test_whoever_shows_an_arrival_is_vouched_for() -> None:
    """The place says how many came before; a list of numbers that is told twice changes nothing."""
    arrivals = Arrivals()
    assert arrivals.number(Arrival("other", 7, 4)) is None
    assert arrivals.open == {("other", 7): 5}
    told = [[Block("other", 7, 0, 5, 11)], [Block("other", 7, 5, 2, 31)]]
    arrivals.absorb(told)
    arrivals.absorb(told)
    assert [arrivals.number(Arrival("other", 7, place)) for place in (4, 5, 6)] == [15, 31, 32]
    assert (len(arrivals.blocks()), arrivals.open) == (2, {})


# Opening


def ticket(number: int = 0, second: int = 0) -> Token:
    arrival = Arrival("g", second, 0) if second else None
    return replace(Token(Use.TICKET, "sale", "v", number, 1, 0, 0, 0), arrival=arrival)


def test_numbers_come_before_arrivals_and_arrivals_in_their_order() -> None:
    """Whoever waited longer goes first, though somebody else asks sooner."""
    ranks = [rank_of(token) for token in (ticket(3), ticket(9), ticket(second=5), ticket(second=6))]
    assert ranks == sorted(ranks)
    opening = Opening()
    for rank in reversed(ranks):
        opening.ask(ROOM, rank, 10.0)
    assert [opening.enter(ROOM, rank, 10.0) for rank in reversed(ranks)] == [False, False, False, True]
    assert opening.enter(ROOM, ranks[0], 10.0), "the same ticket again is the same person"
    assert not opening.enter(ROOM, ranks[1], 10.5)
    assert opening.enter(ROOM, ranks[1], 11.0)


def test_no_more_enter_than_the_share_allows() -> None:
    """Half of 120 a minute is one a second, and time in which nobody came is not saved up."""
    opening, waiting, entered = Opening(), list(range(1, 60)), []
    for step in range(120):
        for number in list(waiting):
            if opening.enter(ROOM, rank_of(ticket(number)), 100 + step / 4):
                waiting.remove(number)
                entered.append(number)
    assert 29 <= len(entered) <= 31
    assert entered == sorted(entered)


def test_whoever_stopped_asking_holds_nobody_up() -> None:
    """Fifteen seconds after somebody was last heard of, the next one is first."""
    opening = Opening()
    assert opening.enter(ROOM, rank_of(ticket(1)), 0.0)
    opening.ask(ROOM, rank_of(ticket(2)), 0.5)
    assert not opening.enter(ROOM, rank_of(ticket(3)), 10.0)
    assert opening.enter(ROOM, rank_of(ticket(3)), 16.0)


def test_whoever_only_polls_holds_nobody_up() -> None:
    """Somebody who is called and does not come is passed over after a while, and still may come."""
    opening = Opening()
    for second in range(40):
        opening.ask(ROOM, rank_of(ticket(2)), float(second))
        if opening.enter(ROOM, rank_of(ticket(3)), second + 0.1):
            break
    assert 15 <= second <= 18
    assert opening.enter(ROOM, rank_of(ticket(2)), second + 2.0)
