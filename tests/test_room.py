"""Decisions about rooms and numbers, which depend on nothing but their arguments."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitingroom.forecast import (
    LATEST,
    SOONEST,
    estimate_wait,
    poll_after,
    seen_number,
    shown_position,
    smooth_pace,
)
from waitingroom.line import BLOCK, SEGMENT, Line
from waitingroom.room import (
    Room,
    Snapshot,
    State,
    Totals,
    bypasses,
    protects,
    rank_rooms,
)
from waitingroom.tickets import seat_of

FIRST = 1_716_658
EDGES = [
    base + near
    for base in (FIRST * SEGMENT, FIRST * SEGMENT + BLOCK, (FIRST + 1) * SEGMENT, (FIRST + 2) * SEGMENT)
    for near in (-BLOCK, -9, -8, -1, 0, 1, 7, 8, BLOCK - 1)
]
numbers = st.sets(
    st.one_of(
        st.sampled_from([n for n in EDGES if FIRST * SEGMENT <= n < (FIRST + 3) * SEGMENT]),
        st.integers(FIRST * SEGMENT, (FIRST + 3) * SEGMENT - 1),
        st.integers(FIRST * SEGMENT, FIRST * SEGMENT + 3 * BLOCK),
    ),
    max_size=40,
)
ROOM = Room(name="sale", new_users_per_minute=60, message="Back soon.")


def line_of(waiting: set[int]) -> Line:
    """A line as the store would send it: bitmaps end with their last byte that is set."""
    parts = []
    for segment in range(FIRST, FIRST + 3):
        bits = bytearray()
        for offset in sorted(n - segment * SEGMENT for n in waiting if n // SEGMENT == segment):
            bits.extend(bytes(offset // 8 + 1 - len(bits)))
            bits[offset // 8] |= 128 >> offset % 8
        parts.append(bytes(bits))
    return Line(FIRST, parts)


@given(waiting=numbers, asked=st.one_of(numbers, st.just({0, *EDGES, (FIRST + 9) * SEGMENT})))
def test_line_counts_as_counting_by_hand_does(waiting: set[int], asked: set[int]) -> None:
    """Who waits, how many, and how many are ahead of a number is exact, at every edge."""
    line = line_of(waiting)
    assert list(line.numbers()) == sorted(waiting)
    assert (line.waiting, line.front) == (len(waiting), min(waiting, default=None))
    for number in asked | waiting:
        assert line.ahead(number) == sum(n < number for n in waiting)
        assert (number in line) == (number in waiting)


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        ("shop.example", "/", "shop"),
        ("shop.example", "/sale", "sale"),
        ("shop.example", "/sale/shoes", "sale"),
        ("shop.example", "/sales", "shop"),
        ("other.example", "/sale/shoes", "any-sale"),
        ("other.example", "/", None),
        ("shop.example", "/sale/shoes/red", "red"),
    ],
)
def test_most_specific_room_protects(host: str, path: str, found: str | None) -> None:
    """The longest path wins, whole segments only; a room that names the host before one that does not."""
    rooms = [
        Room(name="any-sale", path="/sale/"),
        Room(name="shop", hosts=("shop.example",)),
        Room(name="sale", hosts=("shop.example",), path="/sale/"),
        Room(name="red", path="/sale/shoes/red"),
    ]
    for order in itertools.permutations(rooms):
        room = next((room for room in rank_rooms(order, host) if protects(room, path)), None)
        assert (room.name if room else None) == found


def test_bypassed_paths_never_wait() -> None:
    """A payment's return and all below it pass; a path that only begins alike does not."""
    room = replace(ROOM, bypass_paths=("/pay/return", "/hooks/"))
    passing = [
        path for path in ("/pay/return", "/pay/return/1", "/hooks/", "/hooks/x") if bypasses(room, path)
    ]
    assert len(passing) == 4
    assert not any(bypasses(room, path) for path in ("/pay/returned", "/", "/hooksx"))


def test_estimate_is_unknown_when_nothing_can_be_said() -> None:
    """No range is given while the room calls nobody, or before anybody was called."""
    for room in (replace(ROOM, paused=True), replace(ROOM, queue_all=True)):
        assert estimate_wait(room, 1.0, 5) is None
    assert estimate_wait(ROOM, None, 5) is None
    assert estimate_wait(ROOM, 0.0, 5) is None


@given(ahead=st.integers(0, 10**6), pace=st.floats(0.001, 1000), rate=st.integers(1, 10**6))
def test_estimate_is_a_range_that_the_rate_bounds(ahead: int, pace: float, rate: int) -> None:
    """Nobody is promised less than the rate allows, and the range holds what the pace foretells."""
    wait = estimate_wait(replace(ROOM, new_users_per_minute=rate), pace, ahead)
    assert wait is not None
    low, high = wait
    assert (ahead + 1) * 60 / rate <= low < high
    assert high >= (ahead + 1) / pace


@given(
    low=st.none() | st.floats(0, 10**6),
    ahead=st.integers(0, 10**6),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_polls_are_neither_too_often_nor_too_seldom(low: float | None, ahead: int, jitter: float) -> None:
    """Asking again is of use after two seconds to a minute, sooner near the front."""
    seconds = poll_after(low, ahead, jitter)
    assert SOONEST <= seconds <= LATEST
    assert poll_after(low and low / 2, ahead // 2, jitter) <= seconds


def test_shown_position_never_grows() -> None:
    """A page is told the smaller of the true position and the last one it showed, if that was one."""
    assert [shown_position(5, shown) for shown in (None, 0, -3, 4, 5, 6)] == [5, 5, 5, 4, 5, 5]


def test_waiting_visitor_is_told_place_and_wait() -> None:
    """Position, honest range and message; the estimate goes by the true place, not by the one shown."""
    front = FIRST * SEGMENT
    snapshot = Snapshot(clock=1000, line=line_of({front, front + 3, front + 9}), pace=0.5)
    status = seen_number(snapshot, front + 9, 0.0, ROOM, shown=2)
    assert (status.state, status.position, status.ahead) == (State.WAITING, 2, 1)
    assert (status.low, status.high) == pytest.approx((3.6, 1.6 * 6 + SOONEST))
    assert status.message == "Back soon."
    paused = seen_number(snapshot, front, 0.0, replace(ROOM, paused=True))
    assert (paused.state, paused.position, paused.low) == (State.PAUSED, 1, None)


def test_called_visitor_is_told_how_long_the_seat_is_held() -> None:
    """The seconds left count on the room's clock, and are never negative; there is no position any more."""
    snapshot = Snapshot(clock=100_000, offers={7: 130_500, 8: 90_000})
    statuses = [seen_number(snapshot, number, 0.5, ROOM) for number in (7, 8)]
    assert [status.until for status in statuses] == [30.5, 0.0]
    assert {(status.state, status.position, status.ahead) for status in statuses} == {
        (State.YOUR_TURN, None, None)
    }


def test_pace_is_smoothed_over_a_minute_in_which_people_waited() -> None:
    """The pace follows what was offered; idle time, another epoch or a standing clock leave it as it was."""
    before = Snapshot(clock=60_000, epoch=1, waiting=5, totals=Totals(offered=10))
    after = replace(before, clock=66_000, totals=Totals(offered=16))
    assert smooth_pace(ROOM, replace(before, pace=2.0), after) == pytest.approx(1.9)
    assert smooth_pace(ROOM, before, replace(after, clock=180_000)) == pytest.approx(6 / 120)
    for unlike in (
        (replace(before, clock=0), after),
        (before, replace(after, clock=60_000)),
        (before, replace(after, epoch=2)),
        (replace(before, waiting=0), replace(after, waiting=0)),
    ):
        assert smooth_pace(ROOM, replace(unlike[0], pace=3.0), unlike[1]) == 3.0


def test_pace_begins_with_what_the_limits_allow() -> None:
    """Before anybody was called: the rate, or a full room whose seats turn over once a session, if slower."""
    fast, small = replace(ROOM, new_users_per_minute=120), replace(ROOM, total_active_users=30)
    paces = [smooth_pace(room, Snapshot(), Snapshot()) for room in (fast, small)]
    assert paces == [500 / 300, 0.1]


def test_names_and_sentences() -> None:
    """A seat's key joins visitor and number; a snapshot reads as a sentence."""
    assert seat_of("main", 7, "anna") == "main:7:anna"
    assert repr(Snapshot(inside=2, waiting=3)) == (
        "<2 inside, 0 offered, 3 waiting, 0 present, issued 0, epoch 0>"
    )
