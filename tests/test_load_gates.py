"""Every gate can pass, can fail, and passes on nothing but evidence."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loadtest import bounds, gates
from loadtest.bounds import Finding, Outcome
from loadtest.gates import judge
from loadtest.histogram import Histogram
from loadtest.results import Generator, Interval, Results, Story
from loadtest.scenario import Gate
from tests.rehearsal import LIMIT, honest, log_of

FIXED = (
    "Never over the limit",
    "Never over the rate",
    "Order kept",
    "No place lost",
    "No 5xx of the room's",
)


@pytest.fixture(scope="module")
def run() -> Results:
    """A run in which every promise was kept."""
    return honest()


def found(results: Results, name: str) -> Finding:
    return next(finding for finding in judge(results).findings if finding.name == name)


def with_stories(results: Results, change: Callable[[Story], Story]) -> Results:
    return replace(results, stories=[change(story) for story in results.stories])


def with_gate(results: Results, **gate: Any) -> Finding:
    """What a run comes to by a single gate of its scenario."""
    return judge(replace(results, scenario=results.scenario | {"gates": [gate]})).findings[-1]


def test_an_honest_run_passes(run: Results) -> None:
    """A room that keeps its promises passes every gate, and the process returns 0."""
    verdict = judge(run)
    assert {each.name: each.outcome for each in verdict.findings if each.outcome != "passed"} == {}
    assert {*FIXED, "Generator"} <= {each.name for each in verdict.findings}
    assert (verdict.outcome, verdict.exit_code) == (Outcome.PASSED, 0)


def test_an_honest_log_passes(run: Results) -> None:
    """The storefront's own log, where there is one, is what limit and rate are judged by."""
    finding = found(replace(run, origin=log_of(run)), "Never over the limit")
    assert finding.outcome is Outcome.PASSED
    assert "own log" in finding.why


def one_more(results: Results) -> list[Story]:
    """As many inside at one moment as fit, and one more."""
    return [*results.stories, *(Story(9000 + n, 0, 0, None, None, 60, 62, "left") for n in range(LIMIT + 1))]


def test_a_limit_passed_by_one_fails(run: Results) -> None:
    """One person more than fit inside fails the run, by the stories and by the log."""
    stories = [story for story in one_more(run) if story.index >= 9000]
    broken = replace(run, stories=stories)
    finding = found(broken, "Never over the limit")
    assert (finding.outcome, finding.figure) == (Outcome.FAILED, f"{LIMIT + 1} inside")
    assert found(replace(run, origin=log_of(broken)), "Never over the limit").outcome is Outcome.FAILED
    assert found(replace(run, stories=stories[1:]), "Never over the limit").outcome is Outcome.PASSED


def test_the_log_outweighs_what_shoppers_tell(run: Results) -> None:
    """A limit that the log shows passed is passed, however well the shoppers thought of it."""
    assert found(run, "Never over the limit").outcome is Outcome.PASSED
    broken = replace(run, origin=log_of(replace(run, stories=one_more(run))))
    assert judge(broken).outcome is Outcome.FAILED


def test_a_burst_fails_the_rate(run: Results) -> None:
    """People let in at once, though fewer than the limit, fail the rate."""

    def hurried(story: Story) -> Story:
        return replace(story, entered=50.0) if 50 <= (story.entered or 0) < 58 else story

    finding = found(with_stories(run, hurried), "Never over the rate")
    assert finding.outcome is Outcome.FAILED
    assert "over" in finding.figure


def test_an_order_swapped_fails(run: Results) -> None:
    """A room that lets late ones in early fails the order, and says how many pairs it swapped."""
    waiting = [story for story in run.stories if story.joined is not None and story.entered is not None]
    entered = [story.entered for story in waiting]
    swapped = {
        story.index: other for story, other in zip(waiting[20:60], reversed(entered[20:60]), strict=True)
    }

    def change(story: Story) -> Story:
        entered = swapped.get(story.index)
        return story if entered is None else replace(story, entered=entered, still=entered - 0.5)

    finding = found(with_stories(run, change), "Order kept")
    assert finding.outcome is Outcome.FAILED
    assert "while the first was told to wait on" in finding.why


def test_whoever_looked_away_may_enter_late(run: Results) -> None:
    """Skipped sleepers, who come back and go in late, are no breach of the order."""

    def sleeping(story: Story) -> Story:
        if story.index % 4 or story.entered is None:
            return story
        late = story.entered + 60
        return replace(story, habit="sleeper", still=late - 1, entered=late, ended=story.ended + 60)

    assert found(with_stories(run, sleeping), "Order kept").outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("changes", "figure"),
    [({"outcome": "lost"}, "1 lost, 0 set back"), ({"positions": (5, 4, 6)}, "0 lost, 1 set back")],
)
def test_a_place_lost_fails(run: Results, changes: dict[str, Any], figure: str) -> None:
    """One place gone, or one position that grew, fails the run and names the shopper."""
    broken = with_stories(run, lambda story: replace(story, **changes) if story.index == 77 else story)
    finding = found(broken, "No place lost")
    assert (finding.outcome, finding.figure) == (Outcome.FAILED, figure)
    assert "77" in finding.why


def test_a_5xx_of_the_room_fails(run: Results) -> None:
    """A single 5xx of the room's own fails; the shop's own, and a refusal, do not."""
    finding = found(replace(run, failures={"room: status 503": 1, "status 500": 9}), "No 5xx of the room's")
    assert (finding.outcome, finding.figure) == (Outcome.FAILED, "1 answer")
    others = replace(run, failures={"room: timeout": 4, "room: status 429": 2, "status 500": 9})
    assert found(others, "No 5xx of the room's").outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        (Generator(86.0, 0.004), "86 % of a core"),
        (Generator(30.0, 0.101), "101 ms late"),
        (Generator(30.0, 0.004, dropped=1), "1 of 200 arrivals never began"),
        (Generator(30.0, 0.004, lost_workers=1), "1 of its workers vanished"),
    ],
)
def test_a_saturated_generator_is_inconclusive(run: Results, generator: Generator, says: str) -> None:
    """A run whose generator was the bottleneck never passes, and its own latencies prove nothing."""
    verdict = judge(replace(run, generator=generator))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.INCONCLUSIVE, 4)
    assert says in verdict.findings[0].why
    by_name = {each.name: each.outcome for each in verdict.findings}
    assert by_name["p95 of page:product from when it was due"] is Outcome.INCONCLUSIVE
    assert by_name["Metric waitingroom_stalled"] is Outcome.PASSED


def test_a_saturated_generator_excuses_no_broken_promise(run: Results) -> None:
    """A limit that was passed was passed, whoever was busy."""
    broken = replace(run, stories=one_more(run), generator=Generator(99.0, 1.0))
    assert judge(broken).outcome is Outcome.FAILED


def test_no_data_is_never_passed() -> None:
    """Results without anything in them are inconclusive, gate by gate."""
    nothing = Results(scenario=honest(people=1).scenario, started_at=0.0, seconds=0.0)
    verdict = judge(nothing)
    assert {finding.outcome for finding in verdict.findings} == {Outcome.INCONCLUSIVE}
    assert verdict.exit_code == 4
    assert "no data" in verdict.findings[1].figure


def test_an_empty_log_proves_nothing(run: Results) -> None:
    """A log that was asked for and has no rows is no evidence that nobody was inside."""
    assert found(replace(run, origin=[]), "Never over the limit").outcome is Outcome.INCONCLUSIVE


def test_nobody_who_waited_shows_no_order(run: Results) -> None:
    """Where nobody had to wait, nothing is known of order and places."""
    free = with_stories(run, lambda story: replace(story, joined=None, still=None, positions=(), told=None))
    for name in ("Order kept", "No place lost"):
        assert found(free, name).outcome is Outcome.INCONCLUSIVE


def test_without_a_room_only_the_scenarios_gates_apply(run: Results) -> None:
    """A bare shop promises nothing about a line."""
    verdict = judge(replace(run, scenario=run.scenario | {"room": {"total_active_users": None}}))
    assert not {finding.name for finding in verdict.findings} & set(FIXED)
    assert verdict.outcome is Outcome.PASSED


def test_a_run_ended_early_is_aborted(run: Results) -> None:
    """A run that was ended before its time says why, and returns 5, whatever its gates found."""
    verdict = judge(replace(run, stopped="Ctrl-C"))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.ABORTED, 5)
    assert "Ctrl-C" in verdict.reason


def test_a_percentile_exceeded_fails(run: Results) -> None:
    """A latency above its bound fails, to the millisecond that the histogram knows."""
    gate = {"measure": "latency", "of": "page:product", "percentile": 95.0}
    exact = run.timings["page:product"].percentile(95)
    assert with_gate(run, **gate, most=exact * 1.001).outcome is Outcome.PASSED
    finding = with_gate(run, **gate, most=exact * 0.999)
    assert finding.outcome is Outcome.FAILED
    assert f"{exact * 1000:.0f} ms" in finding.figure


def test_latency_from_the_intended_start_is_another(run: Results) -> None:
    """A stall that held requests back shows in the latency from when they were due, and only there."""
    held = Histogram()
    held.record(3.0, times=500)
    stalled = replace(run, timings=run.timings | {"open:page:product": held})
    gate = {"measure": "latency", "of": "page:product", "most": 0.8}
    assert with_gate(stalled, **gate).outcome is Outcome.PASSED
    assert with_gate(stalled, **{"from": "intended"}, **gate).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ({"measure": "ratio", "of": "errors", "most": 0.01}, {"requests": 100, "errors": 2, "offered": 1}),
        ({"measure": "ratio", "of": "late", "most": 0.01}, {"offered": 100, "late": 2}),
        ({"measure": "count", "of": "admitted", "least": 5}, {"offered": 1, "admitted": 4}),
        ({"measure": "count", "of": "errors", "most": 0}, {"offered": 1, "requests": 100, "errors": 1}),
    ],
)
def test_a_ratio_or_count_beyond_its_bound_fails(
    run: Results, gate: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Shares and counts of the seconds of a run are held to their bounds."""
    bad = Interval(0, **changes)
    good = replace(bad, errors=0, late=0, admitted=9)
    assert with_gate(replace(run, intervals=[bad]), **gate).outcome is Outcome.FAILED
    assert with_gate(replace(run, intervals=[good]), **gate).outcome is Outcome.PASSED


@pytest.mark.parametrize("measure", ["ratio", "count"])
def test_outcomes_of_shoppers_are_bounded(run: Results, measure: str) -> None:
    """How many gave up, of all who came, can be a gate."""
    some = with_stories(run, lambda each: replace(each, outcome="gave_up") if each.index < 20 else each)
    assert with_gate(some, measure=measure, of="gave_up", most=0.09).outcome is Outcome.FAILED
    most = 0.11 if measure == "ratio" else 20
    assert with_gate(some, measure=measure, of="gave_up", most=most).outcome is Outcome.PASSED


def test_a_word_not_kept_fails(run: Results) -> None:
    """Waits told that do not hold can fail a run."""
    gate = {"measure": "ratio", "of": "told", "least": 0.8}
    assert with_gate(run, **gate).outcome is Outcome.PASSED
    liar = with_stories(run, lambda story: replace(story, told=story.told and (0.0, 0.1)))
    assert with_gate(liar, **gate).outcome is Outcome.FAILED


def test_failures_of_a_kind_are_counted(run: Results) -> None:
    """A kind of failure can be bounded by name."""
    gate = {"measure": "count", "of": "failures:timeout", "most": 1}
    assert with_gate(run, **gate).outcome is Outcome.PASSED
    assert with_gate(replace(run, failures={"timeout": 2}), **gate).outcome is Outcome.FAILED


def seconds(*errors: int) -> list[Interval]:
    latency = Histogram()
    latency.record(0.1, times=100)
    return [Interval(at, offered=1, requests=100, errors=n, latency=latency) for at, n in enumerate(errors)]


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ((9, 0, 9, 0, 9, 0), Outcome.PASSED),
        ((0, 9, 9, 9, 0, 0), Outcome.FAILED),
        ((9, 9, 0, 9, 9, 0), Outcome.PASSED),
    ],
)
def test_only_bad_windows_in_a_row_fail(run: Results, errors: tuple[int, ...], outcome: Outcome) -> None:
    """A gate with `sustained` bears single bad windows, and not as many in a row."""
    gate = {"measure": "ratio", "of": "errors", "most": 0.05, "window": 1.0, "sustained": 3}
    assert with_gate(replace(run, intervals=seconds(*errors)), **gate).outcome is outcome


def test_latency_is_judged_by_windows(run: Results) -> None:
    """The latency of all pages is bounded window by window, so that no stall is averaged away."""
    stall = seconds(*[0] * 20)
    for interval in stall[10:12]:
        slow = Histogram()
        slow.record(4.0, times=100)
        stall[interval.at] = replace(interval, latency=slow)
    gate = {"measure": "latency", "of": "page", "percentile": 50.0, "most": 1.0}
    finding = with_gate(replace(run, intervals=stall), **gate, window=2.0)
    assert (finding.outcome, "after 12 s" in finding.why) == (Outcome.FAILED, True)


def test_a_metric_above_its_bound_fails(run: Results) -> None:
    """What the gateway says of itself can fail a run."""
    gate = {"measure": "metric", "query": 'waitingroom_inside{room="sale"}', "most": 20.0}
    series = {'waitingroom_inside{room="sale"}': [(0.0, 3.0), (5.0, 21.0), (10.0, 4.0)]}
    finding = with_gate(replace(run, metrics=series), **gate)
    assert (finding.outcome, finding.figure) == (Outcome.FAILED, "21")
    assert with_gate(replace(run, metrics=series), **gate, sustained=2).outcome is Outcome.PASSED
    assert with_gate(replace(run, metrics=series), **gate, grace=6.0).outcome is Outcome.PASSED
    assert with_gate(replace(run, metrics={}), **gate).outcome is Outcome.INCONCLUSIVE


def test_a_metric_is_judged_by_windows(run: Results) -> None:
    """The worst sample of a window stands for it."""
    gate = {"measure": "metric", "query": "stalled", "most": 0.0, "window": 10.0, "sustained": 2}
    for values, outcome in (((1, 0, 0, 0), Outcome.PASSED), ((1, 0, 0, 1), Outcome.FAILED)):
        series = {"stalled": [(5.0 * n, float(value)) for n, value in enumerate(values)]}
        assert with_gate(replace(run, metrics=series), **gate).outcome is outcome


@pytest.mark.parametrize(
    "gate",
    [
        {"measure": "latency", "of": "page:wishlist", "most": 1.0},
        {"measure": "latency", "of": "page", "most": 1.0, "from": "intended"},
        {"measure": "ratio", "of": "errors", "most": 0.1, "window": 1000.0},
        {"measure": "ratio", "of": "told", "least": 0.1},
        {"measure": "count", "of": "bought", "least": 0},
        {"measure": "metric", "query": "nobody_scraped_this", "most": 1.0},
    ],
)
def test_what_was_not_measured_never_passes(run: Results, gate: dict[str, Any]) -> None:
    """A gate over something of which there is no data is inconclusive."""
    bare = replace(run, stories=[], metrics={}, timings={})
    assert with_gate(bare, **gate).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"measure": "ratio", "of": "errrors", "most": 1}, "Did you mean errors"),
        ({"measure": "count", "of": "zebras", "most": 1}, "There are errors, dropped"),
        ({"measure": "ratio", "of": "errors"}, "has no bound"),
        ({"measure": "latency", "most": 1}, "has no of"),
        ({"measure": "latency", "of": "page:home", "most": 1, "window": 5.0}, "Leave window out"),
        ({"measure": "ratio", "of": "errors", "most": 1, "abort": True}, "Add window"),
        ({"measure": "metric", "query": "rate(x)", "most": 1}, "over how long"),
        ({"measure": "metric", "query": "", "most": 1}, "no name"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_told_beforehand(
    run: Results, gate: dict[str, Any], says: str
) -> None:
    """A gate with a slip of the pen is explained before a run, and passes none."""
    assert says in bounds.complaint(Gate(**gate))
    finding = with_gate(run, **gate)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert says in finding.why


def test_a_run_is_ended_after_the_grace(run: Results) -> None:
    """A gate with `abort` ends a run once enough whole windows after the grace were bad, and not before."""
    gate = {"measure": "ratio", "of": "errors", "most": 0.05, "window": 2.0, "abort": True, "grace": 4.0}
    scenario = {"gates": [gate | {"sustained": 2}, {"measure": "ratio", "of": "errors", "most": 0.0}]}

    def so_far(*errors: int) -> str:
        return bounds.breached(replace(run, scenario=scenario, intervals=seconds(*errors)))

    assert so_far(9, 9, 9, 9) == ""
    assert so_far(9, 9, 9, 9, 9, 9, 9) == ""
    assert so_far(9, 9, 9, 9, 9, 9, 0, 0, 9, 9) == ""
    assert (
        so_far(9, 9, 9, 9, 9, 9, 9, 9)
        == "Share of errors: 9.00%, must be at most 5.00% in any 2 windows of 2 s"
    )


def test_the_verdict_names_what_failed(run: Results) -> None:
    """Failed outweighs unknown, and the sentence says which gates they are."""
    broken = replace(run, failures={"room: status 500": 1}, metrics={})
    verdict = judge(broken)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FAILED, 1)
    assert verdict.reason == "1 of 9 gates failed: No 5xx of the room's."
    assert "Metric waitingroom_stalled" in judge(replace(run, metrics={})).reason


def test_saturation_is_measured_against_the_offered() -> None:
    """One dropped arrival in a thousand is borne, two are not."""
    assert gates.saturation(Generator(dropped=1), 1000) == ""
    assert "2 of 1000" in gates.saturation(Generator(dropped=2), 1000)
