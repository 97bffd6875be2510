"""The judgements themselves, against slow and obvious ones, and against runs that break a promise by one."""

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import promises
from loadtest.promises import Order, Stay, Wait, most_inside, order, over_the_rate, stays_of_log
from loadtest.results import Story

MOMENTS = st.integers(0, 60).map(float)
WAITS = st.lists(
    st.tuples(MOMENTS, MOMENTS, MOMENTS, MOMENTS).map(
        lambda t: Wait(t[0], t[0] + t[1], t[0] + t[1] + t[2], sum(t))
    ),
    max_size=40,
)


def story(index: int = 0, **changes: object) -> Story:
    plain = {
        "due": 0.0,
        "began": 0.0,
        "joined": 1.0,
        "still": 8.0,
        "number": 3,
        "entered": 9.0,
        "ended": 12.0,
    }
    return Story(**{"index": index, "outcome": "bought", **plain, **changes})  # type: ignore[arg-type] # named by tests


def row(at: float, visitor: str = "a", **more: object) -> dict[str, object]:
    return {"at": at, "visitor": visitor, "path": "/", "status": 200, "seconds": 0.1, **more}


@given(WAITS, st.sampled_from([0.0, 5.0]))
def test_order_is_what_counting_every_pair_gives(waits: list[Wait], lag: float) -> None:
    """Pairs, overtakings and the worst of them are those of a comparison of everybody with everybody."""
    pairs = [(a, b) for a, b in permutations(waits, 2) if b.came > a.joined]
    passed = [(a, b) for a, b in pairs if b.entered < a.still - lag]
    worst = max(
        (sum(b.came > a.joined and b.entered < a.still - lag for b in waits) for a in waits), default=0
    )
    assert order(waits, lag) == Order(len(waits), len(pairs), len(passed), worst)


def test_tau_of_known_orders() -> None:
    """Nobody overtaken is 1, everybody is -1, and one pair of three is a third."""
    times = [0.0, 10.0, 20.0]
    assert order([Wait(at, at + 1, at + 100, at + 100) for at in times]).tau == 1
    assert order([Wait(at, at + 1, 99 - at, 100 - at) for at in times]).tau == -1
    entered = [110.0, 100.0, 120.0]
    assert order(
        [Wait(a, a + 1, e - 1, e) for a, e in zip(times, entered, strict=True)]
    ).tau == pytest.approx(1 / 3)
    assert math.isnan(order([]).tau)


def test_people_whose_order_nobody_knows_are_no_pair() -> None:
    """Two who came before either was answered may have been numbered either way."""
    assert order([Wait(0, 2, 89, 90), Wait(1, 3, 9, 10)]).pairs == 0


def test_whoever_is_called_while_not_asking_is_not_overtaken() -> None:
    """Going in after a later one is no breach unless one asked in between and was told to wait on."""
    later = Wait(10, 11, 49, 50)
    assert order([Wait(0, 1, 40, 70), later]).overtaken == 0
    assert order([Wait(0, 1, 51, 70), later]).overtaken == 0
    assert order([Wait(0, 1, 53, 70), later]).overtaken == 1


def test_waiting_again_is_another_wait() -> None:
    """Whoever went in, left and waits anew has not been overtaken by those who went in meanwhile."""
    assert promises.waits([story(still=99.0)]) == [Wait(0.0, 1.0, 9.0, 9.0)]


def test_fifty_thousand_people_are_judged_at_once() -> None:
    """The count does not grow with the square of the people: so many take seconds, not hours."""
    waits = [Wait(float(n), n + 0.5, 99_999.5 - n, 100_000.0 - n) for n in range(50_000)]
    assert order(waits, 0).tau == -1


@pytest.mark.parametrize(
    "changes",
    [
        {"joined": None},
        {"still": None},
        {"entered": None},
        {"habit": "sleeper"},
        {"habit": "hidden"},
        {"missed": True},
    ],
)
def test_only_those_present_all_along_are_judged(changes: dict[str, object]) -> None:
    """Whoever looked away, missed the turn, never waited or never went in has no claim to the order."""
    assert promises.present([story(1), story(2, **changes)]) == [story(1)]


@given(st.lists(st.tuples(MOMENTS, MOMENTS), max_size=30))
def test_most_inside_is_the_highest_of_all_moments(spans: list[tuple[float, float]]) -> None:
    """The peak is the highest count at any half second, and happens when it is said to."""
    stays = [Stay(str(n), start, start + length) for n, (start, length) in enumerate(spans)]
    counts = {at / 2: sum(s.start <= at / 2 < s.end for s in stays) for at in range(250)}
    most, when = most_inside(stays)
    assert most == max(counts.values())
    assert most == 0 or counts[when] == most


def test_a_seat_passed_on_at_once_is_one_seat() -> None:
    """Whoever enters at the moment at which somebody leaves takes that seat."""
    assert most_inside([Stay("a", 0, 5), Stay("b", 5, 9)])[0] == 1
    assert most_inside([Stay("a", 0, 5.1), Stay("b", 5, 9)])[0] == 2


def test_the_log_proves_stays() -> None:
    """A stay ends with the last request before a long silence, or with the answer that ends it."""
    rows = [row(50), row(1), row(90, leaving=True), row(100), row(300), row(5, "b"), row(7, "")]
    assert stays_of_log(rows) == [Stay("a", 1, 90), Stay("b", 5, 5), Stay("a", 100, 100), Stay("a", 300, 300)]


def test_a_single_request_takes_no_seat() -> None:
    """Clients that never return a cookie appear once each, and are nobody inside."""
    assert most_inside(stays_of_log([row(1, str(n)) for n in range(50)]))[0] == 0


@given(st.lists(MOMENTS, max_size=20), st.sampled_from([6.0, 60.0, 300.0]), st.sampled_from([0.0, 2.0]))
def test_the_worst_window_is_the_worst_of_all(moments: list[float], rate: float, slack: float) -> None:
    """One pass finds what a look at every window finds."""
    moments.sort()
    share = rate / 60
    burst = max(1.0, share) + slack * share
    each = [
        (j - i + 1) - (moments[j] - moments[i]) * share - burst
        for j in range(len(moments))
        for i in range(j + 1)
    ]
    assert over_the_rate(moments, rate, slack) == pytest.approx(max(each, default=-math.inf))


def test_one_too_many_is_over_the_rate() -> None:
    """At one a second a tick lets one in; a second one in the same moment is one too many, and is counted."""
    assert over_the_rate([0.0, 1.0, 2.0], 60, 0) == pytest.approx(0)
    assert over_the_rate([0.0, 1.0, 1.0, 2.0], 60, 0) == pytest.approx(1)


def test_unused_rate_is_not_banked() -> None:
    """An hour in which nobody came allows nobody more afterwards."""
    assert over_the_rate([0.0, 3600.0, 3600.0, 3600.0], 60, 0) == pytest.approx(2)


def test_whoever_comes_back_enters_once() -> None:
    """Entries are counted by person."""
    assert promises.entries([Stay("a", 5, 6), Stay("b", 1, 2), Stay("a", 90, 91)]) == [1, 5]


def test_a_position_that_grows_is_found() -> None:
    """A position may stay or fall; a single step up is a place lost."""
    assert promises.grown([story(1, positions=(9, 4, 1)), story(2, positions=(4, 5, 1))]) == [
        story(2, positions=(4, 5, 1))
    ]


def test_a_word_is_kept_within_its_range() -> None:
    """The wait that was told holds if the true one lies in its range; who was told nothing does not count."""
    stories = [story(told=(5.0, 8.0)), story(told=(9.0, 20.0)), story(), story(told=(5, 9), entered=None)]
    assert promises.kept_word(stories) == (1, 2)


def test_waiting_is_measured_for_everybody() -> None:
    """Those who gave up have waited until they left, and those who walked in not at all."""
    assert [promises.waited(s) for s in (story(), story(entered=None), story(joined=None))] == [8, 11, 0]
