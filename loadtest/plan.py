"""From what happened last time to what is to be configured and rehearsed, with the reasoning in sentences.

How many are inside follows from how many enter and how long they count (Little, "A proof for the queuing
formula L = λW", Operations Research 9, 1961). A visitor counts until the idle time-out has passed after the
last page, so the number counted is about twice the number who really browse.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.forecast import Forecast, Growth, forecast, grown_curve
from loadtest.history import History
from loadtest.inputs import InputError
from loadtest.mix import Chain, solve

USUAL_PAGES, USUAL_VISIT = 12.0, 240.0
"""Pages a visit and its seconds, where nothing is known: what shops commonly report for a sale."""

REHEARSED = 30
"""Minutes about the peak that the scenario rehearses."""

_HARMLESS = 0.01
_CAUTION = 0.75


@dataclass(frozen=True, slots=True)
class Known:
    """What the owner knows of the shop; None where it is to be taken from the log, or from what is usual.

    Attributes:
        conversion: orders a visit.
        capacity: pages a second at which the shop begins to slow down, as a load test has shown.
        safe: share of it that is safe.
        pages: pages a visit.
        visit: seconds from the first page of a visit to its last.
        idle: seconds after which the room forgets who does nothing (`session_duration`).
    """

    conversion: float = 0.03
    capacity: float | None = None
    safe: float = _CAUTION
    pages: float | None = None
    visit: float | None = None
    idle: float = 300.0

    def __post_init__(self) -> None:
        """Check all.

        Raises:
            InputError: a number that cannot be.
        """
        for name in ("conversion", "safe"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(
                    f"--{name}", f"{getattr(self, name):g} is no such share", "give 0.03 for 3 %"
                )
        for name, least in (("capacity", 1e-6), ("pages", 1.0), ("visit", 0.0), ("idle", 0.0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"--{name}", f"{value:g} cannot be", f"give a number of at least {least:g}")


@dataclass(frozen=True, slots=True)
class Proposal:
    """Limits of the room, and why.

    Attributes:
        total_active_users: how many may count as inside.
        new_users_per_minute: how many may enter.
        browsing: how many of those inside really open pages.
        pages_a_second: what that asks of the shop.
        reasons: sentences.
    """

    total_active_users: int
    new_users_per_minute: int
    browsing: int
    pages_a_second: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue that limits make of a crowd: the most people in it, and the longest wait in seconds."""

    people: float
    wait: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a plan says. The forecast is of visits a minute, whatever was counted.

    Attributes:
        share: counted events for each visit; 1 where visits were counted.
        queues: at the middle and at the upper end of the forecast.
        chain: weights of a journey that fit, where there are any.
    """

    history: History
    growth: Growth
    share: float
    forecast: Forecast
    proposal: Proposal
    queues: tuple[Queue, Queue]
    chain: Chain | None


def plan(history: History, growth: Growth, known: Known, seed: int = 1) -> Plan:
    """The plan for the period of a history that comes again, grown.

    Raises:
        InputError: the growth is no number above 0.
    """
    if not 0 < growth.factor < math.inf or not 0 <= growth.spread < math.inf:
        raise InputError("--growth", f"{growth.factor:g} is no growth", "give 1.4 for forty per cent more")
    share = known.conversion if history.kind == "orders" else 1.0
    told = forecast(history.counts, growth, share=share, seed=seed)
    proposal = propose(history, told, known)
    middle, high = (
        queue(grown_curve(told.shape, 0, len(history.counts), peak), proposal.new_users_per_minute)
        for peak in (told.middle, told.high)
    )
    pages = _pages(history, known)[0]
    try:
        chain = solve(1.0, pages, known.conversion).chain
    except InputError:
        chain = None
    return Plan(history, growth, share, told, proposal, (middle, high), chain)


def _pages(history: History, known: Known) -> tuple[float, str]:
    if known.pages is not None:
        return known.pages, "as given"
    return (history.visits.pages, "as in the log") if history.visits else (USUAL_PAGES, "assumed")


def _visit(history: History, known: Known) -> tuple[float, str]:
    if known.visit is not None:
        return known.visit, "as given"
    return (history.visits.seconds, "as in the log") if history.visits else (USUAL_VISIT, "assumed")


def propose(history: History, told: Forecast, known: Known) -> Proposal:
    """Limits by Little's law: what enters a second, times how long it counts, is how many are inside."""
    (pages, pages_from), (visit, visit_from) = _pages(history, known), _visit(history, known)
    bearable, why = _bearable(history, known)
    if bearable is None:
        a_minute = math.ceil(told.high)
        bearable = told.high * pages / 60
        rate = (
            f"So {a_minute:,} a minute lets everybody in at the upper end of the forecast, which asks "
            f"{bearable:,.1f} pages a second of the shop."
        )
    else:
        a_minute = max(1, math.floor(60 * bearable / pages))
        rate = f"A visit opens {pages:.1f} pages ({pages_from}), so 60 * {bearable:,.1f} / {pages:.1f} = "
        rate += f"{a_minute:,} may enter in a minute."
    browsing = max(1, round(a_minute / 60 * visit))
    active = max(1, round(a_minute / 60 * (visit + known.idle)))
    ratio = told.middle / a_minute
    forms = "a queue forms" if ratio > 1 else "no queue forms, unless it comes worse"
    little = (
        f"A visit lasts {_span(visit)} ({visit_from}), so by Little's law {a_minute:,} / 60 * {visit:.0f} = "
        f"{browsing:,} really browse."
    )
    counted = (
        f"The room counts them until they have been idle for {_span(known.idle)}: {a_minute:,} / 60 * "
        f"({visit:.0f} + {known.idle:.0f}) = {active:,} count as inside. A limit of {browsing:,} would "
        "let in fewer than the shop bears."
    )
    peak = (
        f"The busiest minute to expect brings {told.middle:,.0f}, {ratio:.1f} times what may enter: {forms}."
    )
    return Proposal(active, a_minute, browsing, bearable, (why, rate, little, counted, peak))


def _bearable(history: History, known: Known) -> tuple[float | None, str]:
    """Pages a second that are safe, and the sentence that says why; None where nobody knows."""
    if known.capacity is not None:
        safe = known.capacity * known.safe
        return safe, (
            f"The shop bears {known.capacity:,.1f} pages a second (as given); {known.safe:.0%} of that, "
            f"{safe:,.1f}, is safe."
        )
    if history.visits is None:
        return None, (
            "What the shop bears is not known. Search for it with the scenario `step`, and give it as "
            "--capacity."
        )
    carried, failed = history.visits.carried, history.visits.failed
    told = f"The busiest five minutes of the log carried {carried:,.1f} pages a second, {failed:.1%} failing"
    if failed <= _HARMLESS:
        return (
            carried,
            f"{told}: at least that much is safe. What it really bears, the scenario `step` tells.",
        )
    safe = carried * (1 - failed) * known.safe
    return (
        safe,
        f"{told}: that was too much, and {known.safe:.0%} of the rest, {safe:,.1f}, is taken as safe.",
    )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"  # noqa: PLR2004 - a matter of taste


def queue(arrivals: Sequence[float], a_minute: float) -> Queue:
    """The queue of arrivals a minute of which so many enter, if everybody who waits takes the turn."""
    people = most = 0.0
    for came in arrivals:
        people = max(0.0, people + came - a_minute)
        most = max(most, people)
    return Queue(most, most / a_minute * 60)


def scenario(plan: Plan, name: str, target: str = "http://127.0.0.1:8080") -> str:
    """A scenario in TOML: the minutes about the peak, at the upper end of the forecast.

    Args:
        plan: what is to be rehearsed.
        name: of the scenario.
        target: origin of the storefront.
    """
    history, told = plan.history, plan.forecast
    peak = told.shape.mean.index(max(told.shape.mean))
    rates = [level / 60 for level in grown_curve(told.shape, peak, REHEARSED, told.high)]
    about = f"The crowd of last time at its busiest, {plan.growth.factor:g} times as big and more."
    shoppers = math.ceil(sum(rates) * 60 * 1.001) + 1
    lines = [
        f"# The {len(rates)} minutes about the peak of {history.at(peak):%Y-%m-%d %H:%M} UTC, grown to the",
        f"# upper end of the forecast: {told.high:,.0f} visits in the busiest minute. Lower it with --scale.",
        f"name = {json.dumps(name)}",
        f"about = {json.dumps(about)}",
        f"target = {json.dumps(target)}",
        "",
        "[safety]",
        f"most_shoppers = {shoppers}",
        f"at_once = {shoppers}",
        f"most_minutes = {REHEARSED + 10}",
        "",
        "[[arrivals]]",
        'curve = "step"',
        f"rates = [{', '.join(f'{rate:.6g}' for rate in rates)}]",
        'each = "60s"',
        "",
        *_people(plan),
        "[room]",
        f"total_active_users = {plan.proposal.total_active_users}",
        f"new_users_per_minute = {plan.proposal.new_users_per_minute}",
        "",
        "[[gates]]",
        'measure = "ratio"',
        'of = "errors"',
        "most = 0.01",
    ]
    return "\n".join(lines) + "\n"


def _people(plan: Plan) -> list[str]:
    lines = []
    visits = plan.history.visits
    if visits and visits.pages > 1 and visits.seconds > 0:
        # The mean of a log-normal is above its median by this factor.
        median = visits.seconds / (visits.pages - 1) / math.exp(0.8**2 / 2)
        lines += ["[shoppers]", f'think_median = "{median:.1f}s"', "think_sigma = 0.8", ""]
    if plan.chain:
        lines.append("[chain]")
        for page, weights in plan.chain.items():
            given = ", ".join(f"{name} = {weight:.6f}" for name, weight in weights.items() if weight)
            lines.append(f"{page} = {{ {given} }}")
        lines.append("")
    return lines
