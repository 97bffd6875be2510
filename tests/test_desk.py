"""What a gateway decides from memory between two ticks, with time as an argument."""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from waitingroom.desk import MOST_SEEN, MOST_TOUCHED, SOON, STALE, Desk
from waitingroom.handin import HandIn
from waitingroom.line import Line
from waitingroom.room import LANE, Method, Room, Snapshot, State, Totals
from waitingroom.tickets import Token, Use

ROOM = Room(name="sale", total_active_users=10, session_duration=300.0)
CLOCK = 1_000_000
SENT = 50.0
NOW = SENT + 1


def told(**changes: Any) -> Snapshot:
    """A snapshot in which the numbers 1 to 7 wait."""
    return replace(Snapshot(clock=CLOCK, epoch=1, issued=9, waiting=7, line=Line(0, [b"\x7f"])), **changes)


def opened(room: Room = ROOM, **changes: Any) -> Desk:
    """A desk that has just heard of the store."""
    desk = Desk(room)
    desk.absorb(room, told(**changes), HandIn(), SENT)
    return desk


def ticket(number: int = 3, **changes: Any) -> Token:
    token = Token(Use.TICKET, "sale", f"v{number}", number, 1, CLOCK + 86_400_000, 0, 0)
    return replace(token, **changes)


def seat(number: int = 3, end: int = CLOCK + 60_000, **changes: Any) -> Token:
    return ticket(number, use=Use.PASS, end=end, **changes)


def test_the_rooms_clock_runs_from_when_the_tick_was_sent() -> None:
    """A pass is never believed longer than its lease lives in the store."""
    desk = opened()
    assert desk.clock(SENT + 2.5) == CLOCK + 2500
    assert desk.holds(seat(end=CLOCK + 2501), SENT + 2.5)
    assert not desk.holds(seat(end=CLOCK + 2500), SENT + 2.5)


def test_nobody_inside_is_put_out_while_the_store_is_silent() -> None:
    """The room's clock stands still with the store: whoever was inside then stays inside."""
    desk = opened()
    long_after = SENT + 3600
    assert desk.stale(long_after)
    assert desk.holds(seat(end=CLOCK + 1), long_after)
    assert not desk.holds(seat(end=CLOCK), long_after)
    assert not desk.holds(ticket(), long_after)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (ticket(), None),
        (seat(), None),
        (seat(end=CLOCK - 1), None),
        (ticket(epoch=2), None),
        (ticket(epoch=0), "epoch"),
        (seat(epoch=0), "epoch"),
        (ticket(end=CLOCK), "expired"),
        (seat(8), "ended"),
    ],
)
def test_what_a_token_proves(token: Token, reason: str | None) -> None:
    """A pass past its end may still speak for a living seat, and an epoch yet unheard of is believed."""
    desk = opened(ended=(f"{LANE}:8:v8",))
    assert desk.refusal(token, NOW) == reason


def test_a_seat_given_back_is_refused_at_once() -> None:
    """Even before the store has heard of it; and nothing is handed in that could bring it back."""
    desk = opened()
    token = seat()
    desk.touch(token)
    desk.leave(token, NOW)
    assert desk.refusal(token, NOW) == "ended"
    assert (desk.hand_in.touched, desk.hand_in.left) == ({}, {token.seat})
    assert desk.renewed(token) is None


def test_ended_seats_are_remembered_until_no_pass_for_them_can_live() -> None:
    """Longer than a session, even one that was shortened meanwhile; not for ever."""
    desk = opened(ended=(f"{LANE}:8:v8",))
    short = replace(ROOM, session_duration=10.0)
    for minutes, reason in ((6, "ended"), (16, None)):
        clock = CLOCK // 16_000 * 16_000 + minutes * 64_000
        desk.absorb(short, told(clock=clock), HandIn(), SENT)
        assert desk.refusal(seat(8), NOW) == reason


def test_a_pass_is_signed_again_after_a_quarter_of_a_session() -> None:
    """Up to the end that the store has acknowledged for its lease, and no further."""
    desk = opened()
    touched = HandIn(touched={seat().seat: None})
    desk.absorb(ROOM, told(lease_end=CLOCK + 300_000), touched, SENT)
    assert desk.renewed(seat(end=CLOCK + 225_001)) is None
    assert desk.renewed(seat(end=CLOCK + 225_000)) == CLOCK + 300_000
    assert desk.renewed(seat(4)) is None


def test_a_poll_is_answered_and_handed_in() -> None:
    """The position counts who waits in front; the number goes with the next tick."""
    desk = opened()
    status = desk.poll(ticket(3), NOW, 0.0)
    assert (status.state, status.position) == (State.WAITING, 3)
    assert desk.take().seen == {3}
    assert desk.take() == HandIn()


def test_a_look_hands_nothing_in() -> None:
    """Who has just joined is present only once their cookie has come back."""
    desk = opened()
    assert desk.look(9, NOW, 0.0).position == 8
    assert desk.hand_in == HandIn()


def test_a_turn_has_an_end() -> None:
    """The offer's deadline is told in seconds."""
    desk = opened(offers={3: CLOCK + 90_000})
    status = desk.poll(ticket(3), NOW, 0.0)
    assert (status.state, status.until) == (State.YOUR_TURN, 90.0)


def test_a_spent_number_has_ended_unless_its_holder_has_just_entered() -> None:
    """Another tab of somebody whose pass is still on its way is not told that all is over."""
    desk = opened(spent=(3,))
    assert desk.poll(ticket(3), NOW, 0.0).state is State.ENDED
    desk.enter(seat(3), trial=False)
    assert desk.poll(ticket(3), NOW, 0.0).state is State.INSIDE
    assert desk.poll(ticket(3, visitor="somebody else"), NOW, 0.0).state is State.ENDED
    desk.leave(seat(3), NOW)
    assert desk.poll(ticket(3), NOW, 0.0).state is State.ENDED


def test_a_missed_turn_is_told_until_its_holder_says_so() -> None:
    """Polls alone change nothing; a visit does, and is handed in as one."""
    desk = opened(missed=(3,))
    assert desk.poll(ticket(3), NOW, 0.0).missed
    assert desk.hand_in.here == set()
    assert not desk.visit(ticket(3), NOW, 0.0).missed
    assert not desk.poll(ticket(3), NOW, 0.0).missed
    assert (desk.hand_in.here, desk.hand_in.seen) == ({3}, {3})


def test_a_silent_store_keeps_places_and_freezes_them() -> None:
    """The page says that the place is kept, and promises no time."""
    desk = opened()
    assert desk.poll(ticket(3), SENT + STALE, 0.0).state is State.WAITING
    status = desk.poll(ticket(3), SENT + STALE + 0.1, 0.0)
    assert (status.state, status.position, status.low, status.until) == (State.UNAVAILABLE, 3, None, None)


@pytest.mark.parametrize(("number", "asks"), [(3, False), (5, True), (6, True), (9, True)])
def test_the_store_is_asked_only_about_numbers_that_do_not_simply_wait(*, number: int, asks: bool) -> None:
    """Offered, spent, or in no line: these may have a seat. While the store is silent nobody asks."""
    desk = opened(offers={5: CLOCK}, spent=(6,))
    assert desk.called(number, NOW) is asks
    assert not desk.called(number, SENT + STALE + 1)


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, True),
        ({"inside": 9, "offered": 1}, False),
        ({"candidates": 1}, False),
        ({"calm": 500}, False),
    ],
)
def test_a_room_is_open_while_a_newcomer_may_expect_to_walk_in(
    *, changes: dict[str, Any], is_open: bool
) -> None:
    """Free seats, and nobody before them."""
    assert opened(**changes).open is is_open
    assert not opened(replace(ROOM, paused=True), **changes).open
    assert not opened(replace(ROOM, queue_all=True), **changes).open


def test_a_room_is_off_when_it_holds_nobody_back() -> None:
    """Suspended, or passing everybody through."""
    assert opened(replace(ROOM, suspended=True)).off
    assert opened(replace(ROOM, queueing_method=Method.PASSTHROUGH)).off
    assert not opened().off


def test_a_new_epoch_forgets_what_was_gathered_under_the_old() -> None:
    """Numbers and seats of requests that came during the tick would be ghosts in the new line."""
    desk = opened(spent=(2,), missed=(3,), ended=(seat(8).seat,))
    carried = desk.take()
    desk.poll(ticket(3), NOW, 0.0)
    desk.touch(seat(4))
    desk.absorb(replace(ROOM, epoch=2), told(epoch=2), carried, SENT)
    assert desk.hand_in == HandIn()
    assert desk.refusal(seat(8, epoch=2), NOW) is None
    assert desk.poll(ticket(2, epoch=2), NOW, 0.0).state is State.WAITING


def test_one_tick_carries_a_bounded_number_of_polls() -> None:
    """So that no crowd holds the store up; the rest goes with the next."""
    desk = opened()
    desk.hand_in.seen = set(range(MOST_SEEN + 5))
    assert len(desk.take().seen) == MOST_SEEN
    assert len(desk.take().seen) == 5


def test_busy_seats_are_handed_in_in_turn() -> None:
    """A tick carries a share of those inside, and whoever keeps asking is handed in with every fifth."""
    desk = opened()
    shoppers = [seat(number, end=CLOCK + 300_000) for number in range(1, 10 * MOST_TOUCHED + 1)]
    handed_in = []
    for _ in range(10):
        for shopper in shoppers:
            desk.touch(shopper)
        handed_in.append(list(desk.take().touched))
    assert {len(seats) for seats in handed_in} == {2 * MOST_TOUCHED}
    rounds = [list(chain(*handed_in[:5])), list(chain(*handed_in[5:]))]
    assert rounds == [[shopper.seat for shopper in shoppers]] * 2


def test_a_seat_about_to_end_is_handed_in_at_once() -> None:
    """However many are touched before it: a late touch could find the seat given to somebody else."""
    desk = opened()
    for number in range(1, 10 * MOST_TOUCHED + 1):
        desk.touch(seat(number, end=CLOCK + 300_000))
    ending = seat(99_999, end=CLOCK + SOON - 1)
    desk.touch(ending)
    assert ending.seat in desk.take().touched
    assert ending.seat not in desk.hand_in.touched


def test_a_cold_desk_believes_passes_and_promises_nothing() -> None:
    """A gateway that starts while the store is away serves those inside, and knows no position by heart."""
    desk = Desk(ROOM)
    assert not desk.warm
    assert desk.holds(seat(), NOW)
    assert desk.poll(ticket(3), NOW, 0.0).state is State.UNAVAILABLE


def test_who_came_a_moment_ago_counts_at_once() -> None:
    """Numbers that the line cannot show yet count as people in front; who entered or left here does not."""
    desk = opened()
    assert [desk.look(number, NOW, 0.0).position for number in (10, 12, 209)] == [8, 10, 207]
    desk.enter(seat(10), trial=False)
    desk.enter(seat(10), trial=False)
    desk.leave(ticket(11), NOW)
    assert desk.look(12, NOW, 0.0).position == 8
    for seconds in (1, 4):
        clock = CLOCK + 1000 * seconds
        desk.absorb(ROOM, told(clock=clock, issued=209, totals=Totals(joined=200)), HandIn(), SENT + seconds)
        assert desk.look(209, SENT + seconds, 0.0).position == (205 if seconds == 1 else 8)


def test_numbers_that_a_new_store_leaves_out_are_nobody() -> None:
    """A store that begins anew far above makes no line of the numbers between."""
    desk = opened()
    assert desk.look(1_790_000_000_001, NOW, 0.0).position == 8
    desk.absorb(ROOM, told(clock=CLOCK + 1000, issued=1_790_000_000_002), HandIn(), SENT + 1)
    assert desk.look(1_790_000_000_004, NOW, 0.0).position == 9
