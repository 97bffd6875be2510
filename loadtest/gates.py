"""Gates: what a run must have shown. Pure functions from results to findings, and from findings to a verdict.

A gate passes only on evidence. Without data, or with a generator that could not make the crowd as it was
meant to be, nobody knows; and what nobody knows is inconclusive.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtest import promises
from loadtest.bounds import Finding, Outcome, gates_of, judged
from loadtest.results import Generator, Results, Story

LEAST_TAU = 0.99
"""Order kept: one pair in two hundred may be overtaken. An honest room has none but where a gateway lags; one
that lets every tenth person in as it likes has one pair in ten."""

FEWEST = 10
"""People present all along without whom the order says nothing."""

SLACK_OF_LOG, SLACK_OF_STORIES = 0.5, 2.0
"""Seconds by which a first page may be seen to come late, and the next one not: in the origin's log it has
only been passed on, and with shoppers it has been built and sent as well."""

MOST_LAG, MOST_DROPPED, MOST_CPU = 0.1, 0.001, 85.0
"""Seconds, share and per cent of a core beyond which the generator was the bottleneck."""
_ROUNDING = 1e-6
_NAMED = 5

EXIT_CODES = {Outcome.PASSED: 0, Outcome.FAILED: 1, Outcome.INCONCLUSIVE: 4, Outcome.ABORTED: 5}
"""Of a run. 2 is misuse and 3 a target out of reach, which no results come of."""


@dataclass(frozen=True)
class Verdict:
    """What a run comes to.

    Attributes:
        outcome: of the whole.
        reason: the same in a sentence.
        findings: one for each gate, the fixed ones first.
    """

    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """What the process that judged returns."""
        return EXIT_CODES[self.outcome]


def judge(results: Results) -> Verdict:
    """Judge a whole run by the fixed gates and those of its scenario."""
    generator = _generator(results)
    saturated = generator.outcome is not Outcome.PASSED
    findings = [generator, *_fixed(results)]
    findings += [judged(gate, results, doubted=saturated) for gate in gates_of(results.scenario)]
    return _verdict(results, findings)


def saturation(generator: Generator, offered: int) -> str:
    """How the generator was the bottleneck, in words; empty if it was not."""
    said = []
    if generator.lag_p99 > MOST_LAG:
        said.append(
            f"arrivals began up to {generator.lag_p99 * 1000:.0f} ms late (p99; {MOST_LAG * 1000:.0f} may be)"
        )
    if generator.dropped > MOST_DROPPED * offered:
        said.append(f"{generator.dropped} of {offered} arrivals never began")
    if generator.cpu_percent_p95 > MOST_CPU:
        said.append(f"it used {generator.cpu_percent_p95:.0f} % of a core (p95; {MOST_CPU:.0f} may be)")
    if generator.lost_workers:
        said.append(f"{generator.lost_workers} of its workers vanished")
    return "; ".join(said)


def _verdict(results: Results, findings: list[Finding]) -> Verdict:
    by_outcome = {outcome: [each.name for each in findings if each.outcome is outcome] for outcome in Outcome}
    failed, unknown = by_outcome[Outcome.FAILED], by_outcome[Outcome.INCONCLUSIVE]
    if results.stopped:
        outcome, reason = Outcome.ABORTED, f"The run was ended: {results.stopped}."
    elif failed:
        outcome, reason = (
            Outcome.FAILED,
            f"{len(failed)} of {len(findings)} gates failed: {', '.join(failed)}.",
        )
    elif unknown:
        outcome, reason = Outcome.INCONCLUSIVE, f"Nobody can tell: {', '.join(unknown)}."
    else:
        outcome, reason = Outcome.PASSED, f"All {len(findings)} gates passed."
    return Verdict(outcome, reason, tuple(findings))


def _generator(results: Results) -> Finding:
    offered = sum(interval.offered for interval in results.intervals)
    generator, said = results.generator, saturation(results.generator, offered)
    lag, cpu = f"lag {generator.lag_p99 * 1000:.0f} ms", f"CPU {generator.cpu_percent_p95:.0f} %"
    figure = f"{lag}, {generator.dropped} dropped, {cpu}"
    bound = f"at most {MOST_LAG * 1000:.0f} ms, {MOST_DROPPED:.1%}, {MOST_CPU:.0f} %"
    why = "The crowd came as it was meant to." if not said else f"The generator was the bottleneck: {said}."
    if not offered:
        figure, why = "no data", "Nobody was due, so nothing was rehearsed."
    return Finding(
        "Generator",
        Outcome.PASSED if offered and not said else Outcome.INCONCLUSIVE,
        figure,
        bound,
        why,
        fixed=True,
    )


def _fixed(results: Results) -> Iterator[Finding]:
    room = results.scenario.get("room") or {}
    limit, rate = room.get("total_active_users"), room.get("new_users_per_minute")
    if limit is None and rate is None:
        return
    if results.origin is None:
        stays, slack = promises.stays_of_stories(results.stories), SLACK_OF_STORIES
        source = "By what shoppers saw; there is no log of the storefront."
    else:
        stays, slack = promises.stays_of_log(results.origin), SLACK_OF_LOG
        source = "By the storefront's own log."
    if limit is not None:
        yield _limit(stays, int(limit), source)
    if rate is not None:
        yield _rate(stays, float(rate), slack, source)
    yield _order(results.stories)
    yield _place(results.stories)
    yield _ours(results)


def _nobody_knows(name: str, bound: str, why: str) -> Finding:
    return Finding(name, Outcome.INCONCLUSIVE, "no data", bound, why, fixed=True)


def _known(name: str, bound: str, figure: str, why: str, *, held: bool) -> Finding:
    return Finding(name, Outcome.PASSED if held else Outcome.FAILED, figure, bound, why, fixed=True)


def _limit(stays: Sequence[promises.Stay], limit: int, source: str) -> Finding:
    name, bound = "Never over the limit", f"at most {limit}"
    most, when = promises.most_inside(stays)
    if not most:
        return _nobody_knows(name, bound, f"Nobody was seen inside. {source}")
    why = f"Most people inside at once, first after {when:.0f} s. {source}"
    return _known(name, bound, f"{most} inside", why, held=most <= limit)


def _rate(stays: Sequence[promises.Stay], rate: float, slack: float, source: str) -> Finding:
    name, bound = "Never over the rate", f"at most {rate:.0f} a minute in any window"
    moments = promises.entries(stays)
    if not moments:
        return _nobody_knows(name, bound, f"Nobody was seen to enter. {source}")
    excess = promises.over_the_rate(moments, rate, slack)
    worst = f"{excess:.1f} people over" if excess > _ROUNDING else "within"
    why = f"A window may hold its share, one tick's worth, and {slack:g} s more for what is seen late."
    figure = f"{len(moments)} entered, worst window {worst}"
    return _known(name, bound, figure, f"{why} {source}", held=excess <= _ROUNDING)


def _order(stories: Iterable[Story]) -> Finding:
    name, bound = "Order kept", f"tau at least {LEAST_TAU}"
    found = promises.order(promises.waits(stories))
    if found.people < FEWEST or not found.pairs:
        why = f"{found.people} waited, were there all along and went in; fewer than {FEWEST} show no order."
        return _nobody_knows(name, bound, f"{why} Let more come, or lower the room's limit.")
    why = (
        f"Kendall's tau of arrival against admission among {found.people} people who waited, were there "
        f"all along and went in: in {found.overtaken} of {found.pairs} pairs of whom one surely came first "
        f"the other was inside while the first was told to wait on; one person by {found.worst} at worst."
    )
    return _known(name, bound, f"tau {found.tau:.4f}", why, held=found.tau >= LEAST_TAU)


def _place(stories: Iterable[Story]) -> Finding:
    name, bound = "No place lost", "nobody"
    shown = [story for story in stories if story.positions or story.outcome == "lost"]
    if not shown:
        return _nobody_knows(name, bound, "Nobody was shown a position, so no place could be lost.")
    lost = {story.index for story in shown if story.outcome == "lost"}
    back = {story.index for story in promises.grown(shown)}
    why = f"Of {len(shown)} people who were shown a position: whose place was gone, and whose position grew."
    if lost | back:
        named = ", ".join(map(str, sorted(lost | back)[:_NAMED]))
        why += f" Arrivals {named}{' …' if len(lost | back) > _NAMED else ''}."
    return _known(name, bound, f"{len(lost)} lost, {len(back)} set back", why, held=not lost | back)


def _ours(results: Results) -> Finding:
    name, bound = "No 5xx of the room's", "none"
    ours = {kind: count for kind, count in results.failures.items() if kind.startswith("room: ")}
    errors = sum(count for kind, count in ours.items() if re.fullmatch(r"room: status 5\d\d", kind))
    asked = sum(each.count for part, each in results.timings.items() if part.startswith("room:"))
    if not asked and not ours:
        return _nobody_knows(name, bound, "The waiting room was never asked anything.")
    why = f"Of {max(asked, errors)} answers of the waiting room itself."
    if ours:
        failed = (f"{kind.removeprefix('room: ')} {count}" for kind, count in sorted(ours.items()))
        why += f" Failed: {', '.join(failed)}."
    return _known(name, bound, f"{errors} {'answer' if errors == 1 else 'answers'}", why, held=not errors)
