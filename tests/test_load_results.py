"""What a run leaves behind: durations as they were, and results that survive a file and a merge."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import results
from loadtest.histogram import Histogram
from loadtest.results import Generator, Interval, Results, ResultsError, Story

SECONDS = st.floats(1e-5, 1e4)


def recorded(*seconds: float) -> Histogram:
    made = Histogram()
    for each in seconds:
        made.record(each)
    return made


def run(**changes: object) -> Results:
    whole = Results(
        scenario={"name": "spike"},
        started_at=1_795_000_000.5,
        seconds=2.0,
        intervals=[
            Interval(0, offered=3, started=2, dropped=1, latency=recorded(0.1)),
            Interval(1, waiting=4, inside=2, admitted=1, requests=5, errors=1, late=1),
        ],
        stories=[Story(4, 0.5, 0.51, 0.6, 7, 1.5, 1.9, "bought", (7, 3), (1.0, 4.0), "returner")],
        timings={"page:home": recorded(0.1, 0.2)},
        failures={"status 500": 1},
        generator=Generator(40.0, 0.002, 1, 1),
        metrics={'waitingroom_inside{room="sale"}': [(0.0, 1.0), (1.0, 2.0)]},
        origin=[{"at": 0.2, "visitor": "a", "path": "/", "status": 200, "seconds": 0.02}],
    )
    return replace(whole, **changes)  # type: ignore[arg-type] # the names of the fields are the tests' own


@given(st.lists(SECONDS, min_size=1, max_size=300), st.floats(0, 100))
def test_a_percentile_is_within_one_per_cent(values: list[float], percent: float) -> None:
    """Any percentile of any durations is within one per cent of the recorded one."""
    ordered = sorted(values)
    exact = ordered[max(1, math.ceil(len(ordered) * percent / 100 - 1e-9)) - 1]
    assert recorded(*values).percentile(percent) == pytest.approx(exact, rel=0.01)


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_merging_is_recording_everything(one: list[float], other: list[float]) -> None:
    """Two histograms merged are the histogram of everything that either recorded."""
    merged, whole = recorded(*one), recorded(*one, *other)
    merged.merge(recorded(*other))
    assert merged.to_json() == whole.to_json() | {"total": pytest.approx(whole.total)}


def test_extremes_and_mean_are_exact() -> None:
    """The longest, the shortest, the sum and the average are not rounded at all."""
    values = [Random(3).lognormvariate(-2, 1) for _ in range(1000)]
    made = recorded(*values)
    assert (made.most, made.least, made.count) == (max(values), min(values), 1000)
    assert made.percentile(100) == max(values)
    assert made.mean == pytest.approx(sum(values) / 1000)


def test_nothing_recorded_has_no_percentile() -> None:
    """Without data there is no number, rather than a zero that looks fast."""
    assert math.isnan(Histogram().percentile(99))
    assert math.isnan(Histogram().mean)
    assert Histogram.from_json(Histogram().to_json()) == Histogram()


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_a_percentile_beyond_a_hundred_is_refused(percent: float) -> None:
    """A percentile that cannot be is an error."""
    with pytest.raises(ValueError, match="between 0 and 100"):
        recorded(1).percentile(percent)


def test_zero_and_less_are_kept() -> None:
    """A clock that stepped back a little does not break a run."""
    made = recorded(0.0, -0.001, 0.5)
    assert (made.count, made.least, made.percentile(50)) == (3, -0.001, 0.0)


def test_above_counts_the_slow() -> None:
    """How many were slower than a bound is known."""
    assert recorded(0.1, 0.2, 0.3, 3.0).above(0.25) == 2


def test_results_survive_a_file(tmp_path: Path) -> None:
    """What is saved is what is loaded."""
    results.save(run(), tmp_path / "run.json")
    assert results.load(tmp_path / "run.json") == run()
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == results.SCHEMA


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "are not results of schema 1"),
        ('{"schema": 2}', "but of schema 2"),
        ('{"schema": 1}', "are damaged"),
        (json.dumps(run().to_json() | {"intervals": [{"at": 1}]}), "are damaged"),
        (json.dumps(run().to_json() | {"stories": [{}]}), "are damaged"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A file of another kind or age is named, with what to do."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=says) as caught:
        results.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is an error in plain words."""
    with pytest.raises(ResultsError, match=r"gone\.json cannot be read: No such file"):
        results.load(tmp_path / "gone.json")


def test_workers_add_up() -> None:
    """Counts are added by second, histograms merged, shoppers sorted by arrival; the worst lag counts."""
    story = run().stories[0]
    other = run(
        seconds=4.0,
        intervals=[Interval(1, waiting=1, latency=recorded(0.7)), Interval(3, offered=9)],
        stories=[replace(story, index=1), replace(story, index=9)],
        timings={"page:home": recorded(0.3), "page:pay": recorded(1.0)},
        failures={"status 500": 2, "timeout": 1},
        generator=Generator(95.0, 0.001, 2, 0),
    )
    whole = results.merge([run(), other])
    assert [interval.at for interval in whole.intervals] == [0, 1, 2, 3]
    assert [interval.waiting for interval in whole.intervals] == [0, 5, 0, 0]
    assert whole.intervals[1].latency == recorded(0.7)
    assert [each.index for each in whole.stories] == [1, 4, 9]
    assert {name: each.count for name, each in whole.timings.items()} == {"page:home": 3, "page:pay": 1}
    assert whole.failures == {"status 500": 3, "timeout": 1}
    assert whole.generator == Generator(95.0, 0.002, 3, 1)
    assert (whole.seconds, whole.workers) == (4.0, 2)


def test_merging_leaves_the_parts_alone() -> None:
    """A part may be merged again and again, as a live view does."""
    parts = [run(), run()]
    results.merge(parts)
    assert parts == [run(), run()]
    with pytest.raises(ValueError, match="nothing to merge"):
        results.merge([])
