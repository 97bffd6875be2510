"""What the mix calculator promises."""

import math
import tomllib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loadtest.inputs import InputError
from loadtest.mix import fragment, implied, solve


@given(st.floats(1, 1e7), st.floats(1, 60), st.floats(0, 1))
def test_every_possible_hour_comes_out_exactly(visits: float, pages: float, conversion: float) -> None:
    """Whatever an hour may be, the weights are probabilities and imply its conversion and pages a visit."""
    assume(pages >= 1 + 4 * conversion)
    mix = solve(visits, visits * pages, visits * conversion)
    assert (mix.conversion, mix.pages) == pytest.approx((conversion, pages), rel=1e-6, abs=1e-6)
    assert mix.rate == pytest.approx(visits / 3600)
    for weights in mix.chain.values():
        assert all(0 <= weight <= 1 for weight in weights.values())
        assert sum(weights.values()) == pytest.approx(1)


def test_a_usual_hour_keeps_usual_weights() -> None:
    """With a usual conversion people take detours: they search, and leave baskets behind."""
    chain = solve(60_000, 420_000, 1_800).chain
    assert chain["basket"] == pytest.approx({"checkout": 0.55, "exit": 0.45})
    assert chain["home"]["search"] > 0.1
    assert chain["home"]["exit"] == pytest.approx(0.25)


def test_the_shortest_visits_are_possible() -> None:
    """One page a visit without orders, and five where everybody orders, are the edges of what can be."""
    assert solve(10, 10, 0).chain["home"]["exit"] == 1
    assert solve(10, 50, 10).conversion == pytest.approx(1)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((0, 10, 1), "--visits: 0 is no count"),
        ((10, -1, 1), "--page-views: -1 is no count"),
        ((10, 50, math.nan), "--orders: nan is no count"),
        ((10, 500, 11), "more than one a visit"),
        ((10, 9, 0), "less than one a visit"),
        ((10, 20, 5), "5 orders take at least 30 page views"),
    ],
)
def test_impossible_numbers_are_refused_with_the_reason(
    numbers: tuple[float, float, float], reason: str
) -> None:
    """No weights are made up for an hour that cannot have been."""
    with pytest.raises(InputError, match=reason):
        solve(*numbers)


@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3))
def test_any_numbers_are_solved_or_refused(numbers: tuple[float, float, float]) -> None:
    """Never anything but weights or a clear error."""
    try:
        assert 0 <= solve(*numbers).conversion <= 1 + 1e-6
    except InputError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right


def test_what_a_chain_implies_is_counted_whoever_wrote_it() -> None:
    """Weights need not add up to one, and a chain without an end is refused."""
    assert implied({"home": {"pay": 1, "exit": 3}}) == pytest.approx((0.25, 1.25))
    with pytest.raises(InputError, match="never left"):
        implied({"home": {"home": 1}})


def test_the_fragment_says_what_was_solved() -> None:
    """The TOML for a scenario carries the weights without loss."""
    mix = solve(60_000, 420_000, 1_800)
    written = tomllib.loads(fragment(mix))
    assert implied(written["chain"]) == pytest.approx((0.03, 7.0))
    assert written["arrivals"][0]["rate"] == pytest.approx(60_000 / 3600, rel=1e-5)
