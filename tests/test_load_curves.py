"""When people come: curves, their counts, and the share of each worker."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import curves
from loadtest.curves import Curve

ALL = {
    "constant": curves.constant(7.5, 40),
    "ramp": curves.ramp(0, 30, 60),
    "falling": curves.ramp(30, 0, 60),
    "step": curves.step([1, 0, 20], 10),
    "spike": curves.spike(2, 80, 10, 3, 8, 60),
    "wave": curves.wave(1, 40, 60, 15, 120),
    "later": curves.constant(5, 10).shifted(7),
    "replay": curves.replay([100, 100.5, 100.5, 103, 110], 3),
}
each_curve = pytest.mark.parametrize("curve", ALL.values(), ids=ALL)
JUMPING = ("replay",)  # several come at one moment, where a count has no single inverse
steady = pytest.mark.parametrize("curve", [ALL[name] for name in ALL if name not in JUMPING])


@steady
def test_the_due_time_is_the_inverse_of_the_count(curve: Curve) -> None:
    """By the moment at which arrival i is due, i have come."""
    for share in range(101):
        count = curve.total * share / 100
        assert curve.count(curve.when(count)) == pytest.approx(count, abs=1e-6)
        assert 0 <= curve.when(count) <= curve.duration


@steady
def test_the_count_is_the_sum_of_the_rates(curve: Curve) -> None:
    """Adding up the rate in small steps gives the total, within one in a hundred."""
    steps = 20_000
    width = curve.duration / steps
    summed = sum(curve.rate((n + 0.5) * width) for n in range(steps)) * width
    assert summed == pytest.approx(curve.total, rel=0.01)


@each_curve
@pytest.mark.parametrize("spacing", ["regular", "poisson"])
def test_as_many_come_as_the_curve_says(curve: Curve, spacing: str) -> None:
    """The number of arrivals is the curve's, whatever their spacing, and they are due in order."""
    due = list(curves.due_times(curve, spacing, 1))
    assert len(due) == math.floor(curve.total + 0.5)
    assert due == sorted(due)
    assert not due or (due[0] >= 0 and due[-1] <= curve.duration)


def test_the_wave_is_a_bell() -> None:
    """A wave counts what the integral of a bell does, within a thousandth."""
    exact = 100 * 20 * math.sqrt(2 * math.pi)
    assert curves.wave(0, 100, 100, 20, 200).total == pytest.approx(exact, rel=1e-3)
    assert ALL["wave"].peak == 40


def test_regular_arrivals_are_evenly_spaced() -> None:
    """At a constant rate, regular arrivals are equally far apart."""
    due = list(curves.due_times(curves.constant(4, 10), "regular", 0))
    assert {round(later - earlier, 9) for earlier, later in pairwise(due)} == {0.25}


def test_poisson_arrivals_are_as_uneven_as_people() -> None:
    """Gaps between Poisson arrivals spread as much as they are long on average."""
    due = list(curves.due_times(curves.constant(100, 100), "poisson", 5))
    gaps = [later - earlier for earlier, later in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(1, abs=0.05)


def test_a_replay_repeats_what_was() -> None:
    """With factor 1 each timestamp is an arrival, as far from the first as it was."""
    moments = [100.0, 100.5, 100.5, 103.0, 110.0]
    replayed = list(curves.due_times(curves.replay(moments), "regular", 0))
    assert replayed == pytest.approx([0, 0.5, 0.5, 3, 10])
    assert len(list(curves.due_times(curves.replay(moments, 1.4), "regular", 0))) == 7


def test_a_curve_can_be_scaled_and_moved() -> None:
    """Scaling changes how many come, moving changes when."""
    assert ALL["spike"].scaled(0.05).total == pytest.approx(ALL["spike"].total / 20)
    assert ALL["spike"].scaled(2).peak == 160
    assert ALL["later"].count(7) == 0
    assert ALL["later"].rate(8) == 5
    assert ALL["later"].rate(99) == 0


@given(st.integers(1, 7), st.integers(0, 100))
def test_workers_share_all_arrivals(workers: int, seed: int) -> None:
    """Whatever the number of workers, each arrival is one worker's, and at the same moment."""
    parts = [(ALL["spike"], "poisson"), (ALL["later"], "regular")]
    whole = list(curves.arrivals(parts, seed))
    shared = [list(curves.arrivals(parts, seed, k, workers)) for k in range(workers)]
    assert sorted(arrival for share in shared for arrival in share) == whole
    assert Counter(index % workers for share in shared for index, _ in share) == Counter(
        k for k in range(workers) for _ in shared[k]
    )


def test_a_seed_decides_everything() -> None:
    """The same seed gives the same arrivals, another seed others."""
    parts = [(ALL["wave"], "poisson")]
    assert list(curves.arrivals(parts, 3)) == list(curves.arrivals(parts, 3))
    assert list(curves.arrivals(parts, 3)) != list(curves.arrivals(parts, 4))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: curves.spike(1, 9, 50, 5, 5, 60), "after 60 s"),
        (lambda: curves.constant(-1, 5), "negative"),
        (lambda: curves.through((5, 1), (4, 1)), "back in time"),
        (lambda: curves.replay([]), "no timestamp"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(make: object, says: str) -> None:
    """What makes no sense is an error that says why."""
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator] # each of them is a function
