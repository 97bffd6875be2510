"""Two runs are told apart by more than chance, and are compared only if they are alike."""

from dataclasses import replace
from typing import Any

import pytest

from loadtest.compare import Change, compare, unlike
from loadtest.histogram import Histogram
from loadtest.results import Generator, Interval, Results, Story
from tests.rehearsal import honest


@pytest.fixture(scope="module")
def run() -> Results:
    return honest(seed=1)


def changes(one: Results, other: Results) -> dict[str, Change]:
    return {change.name: change for change in compare(one, other)}


def test_another_seed_is_no_change(run: Results) -> None:
    """The same crowd drawn anew differs in next to nothing: by chance, one figure in twenty may."""
    noted = [
        each.name
        for seed in range(2, 7)
        for each in compare(run, honest(seed=seed))
        if each.verdict in ("better", "worse")
    ]
    assert len(noted) <= 3, noted


def test_a_run_is_the_same_as_itself(run: Results) -> None:
    """Nothing changed between a run and itself, and an interval holds zero."""
    for change in compare(run, run):
        assert change.verdict in ("same", "unknown")
        assert change.verdict == "unknown" or change.low <= 0 <= change.high


def test_a_slower_shop_is_noticed(run: Results) -> None:
    """Pages slower by a third are worse, by an interval that holds the third; the reverse is better."""
    slower = honest(seed=2, slower=1.33)
    found = changes(run, slower)["Pages, median"]
    assert found.verdict == "worse"
    assert found.low < run_third(run) < found.high
    assert changes(slower, run)["Pages, median"].verdict == "better"
    assert changes(run, slower)["Bought"].verdict == "same"


def run_third(results: Results) -> float:
    return 0.33 * changes(results, results)["Pages, median"].before


def test_fewer_buyers_are_worse(run: Results) -> None:
    """More is better of what is good, and worse of what is not."""

    def poorer(story: Story) -> Story:
        return replace(story, outcome="gave_up") if story.index % 3 == 0 else story

    found = changes(run, replace(run, stories=[poorer(story) for story in run.stories]))
    assert (found["Bought"].verdict, found["Gave up waiting"].verdict) == ("worse", "worse")


@pytest.mark.parametrize(("factor", "verdict"), [(1.03, "same"), (1.08, "worse")])
def test_a_difference_too_small_to_matter_is_none(run: Results, factor: float, verdict: str) -> None:
    """A change of three in a hundred does not count, however sure it is; one of eight does."""
    found = changes(steady(run, 0.1), steady(run, 0.1 * factor))["Pages, median"]
    assert found.low > 0
    assert found.verdict == verdict


def steady(run: Results, seconds: float) -> Results:
    latency = Histogram()
    latency.record(seconds, times=50)
    return replace(run, intervals=[Interval(at, offered=1, requests=50, latency=latency) for at in range(60)])


def test_the_same_seed_draws_the_same(run: Results) -> None:
    """A comparison can be repeated to the last digit."""
    assert repr(compare(run, honest(seed=2))) == repr(compare(run, honest(seed=2)))


def test_too_little_is_unknown(run: Results) -> None:
    """A handful of shoppers proves no change."""
    few = replace(run, stories=run.stories[:5], intervals=run.intervals[:20])
    assert {change.verdict for change in compare(run, few)} == {"unknown"}


def scenario(run: Results, **changes: Any) -> Results:
    return replace(run, scenario=run.scenario | changes)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"name": "soak"}, "Scenario: doors-open and soak"),
        ({"scale": 0.5}, "Scale: 1.0 and 0.5"),
        ({"arrivals": []}, "Arrivals"),
        ({"shoppers": {"think_median": 2.0}}, "Shoppers"),
        ({"room": {"total_active_users": 21, "new_users_per_minute": 120}}, "Limits of the room"),
        ({"target": "https://shop.example"}, "Kind of target: http on this machine and https on the network"),
    ],
)
def test_unlike_runs_are_named(run: Results, other: dict[str, Any], says: str) -> None:
    """Another scenario, scale, crowd, room or kind of target is said, and nothing else."""
    reasons = unlike(run, scenario(run, **other))
    assert len(reasons) == 1
    assert reasons[0].startswith(says)


def test_another_load_and_an_early_end_are_unlike(run: Results) -> None:
    """A run that offered less, that was ended, or whose generator was too busy is not compared."""
    assert "Offered load" in unlike(run, replace(run, intervals=run.intervals[:20]))[0]
    assert "second run was ended" in unlike(run, replace(run, stopped="Ctrl-C"))[0]
    assert "first run was the bottleneck" in unlike(replace(run, generator=Generator(99.0)), run)[0]


def test_port_seed_and_gates_may_differ(run: Results) -> None:
    """What does not make another run of it is no reason to refuse."""
    assert unlike(run, scenario(run, target="http://localhost:9999", seed=7, gates=[])) == []
