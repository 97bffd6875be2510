"""The one table of metrics: what each says, and how those of several workers become one."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from waitingroom.requestlog import Verdict

PREFIX = "waitingroom_"

NO_ROOM = "-"
"""Value of the label `room` for what concerns no room, such as a request that cannot be parsed."""

OriginError = Literal["connect", "timeout", "reset", "protocol", "answer"]
"""Why the origin failed a request; `answer` is a 5xx of its own."""

AdminOutcome = Literal["ok", "unauthenticated", "forbidden", "limited", "refused", "failed", "turned_away"]
"""What became of a request to the private listener; monitoring/METRICS.md says what each means."""

ChallengeOutcome = Literal["issued", "solved", "waited", "refused"]
"""What came of a challenge: set, met by work or by patience, or answered with what proves nothing."""

Restart = Literal["crash", "hang", "exit", "asked"]
"""Why a worker was replaced; monitoring/METRICS.md says what each means."""

Reload = Literal["done", "refused"]
"""What became of a configuration that was read anew."""

Combine = Literal["sum", "store", "worst", "age", "own"]
"""How a metric of several workers becomes one of their gateway.

`sum`: each counts for itself, and what they have counted is added up. `store`: all tell what the store has
told them; whoever has heard of it last is believed. `worst`: the largest. `age`: the largest, and it grows
while its worker is silent. `own`: what the supervisor says of itself.
"""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
ORIGIN_ERRORS: tuple[OriginError, ...] = get_args(OriginError)
ADMIN_OUTCOMES: tuple[AdminOutcome, ...] = get_args(AdminOutcome)
CHALLENGE_OUTCOMES: tuple[ChallengeOutcome, ...] = get_args(ChallengeOutcome)
RESTARTS: tuple[Restart, ...] = get_args(Restart)
RELOADS: tuple[Reload, ...] = get_args(Reload)

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STORE_LATENCIES = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: name without prefix, kind, what it says, labels, (histograms) edges, and how to combine."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    combine: Combine = "sum"


ROOM = ("room",)

_told = partial(Row, labels=ROOM, combine="store")

METRICS: tuple[Row, ...] = (
    Row(
        "build_info",
        "gauge",
        "Always 1; the labels say what is running.",
        ("version", "python"),
        combine="worst",
    ),
    _told("shoppers_inside", "gauge", "Shoppers who hold a seat."),
    _told("offers_open", "gauge", "Seats held for visitors whose turn it is."),
    _told("visitors_waiting", "gauge", "Visitors with a place, seen within the presence window."),
    _told("visitors_present", "gauge", "Waiting visitors heard of in the last 75 seconds."),
    _told("candidates", "gauge", "Present visitors who could be called now, and for whom there was no seat."),
    _told("limit_shoppers_inside", "gauge", "total_active_users as the store has it."),
    _told("limit_new_users_per_minute", "gauge", "new_users_per_minute as the store has it."),
    _told("joined_total", "counter", "Numbers issued."),
    _told("offered_total", "counter", "Seats offered to visitors whose turn had come."),
    _told("admitted_total", "counter", "Visitors who took a seat, walk-ins included."),
    _told("lapsed_total", "counter", "Offers that nobody took up in time."),
    _told("left_total", "counter", "Seats given back by their shopper or by the origin."),
    _told("expired_total", "counter", "Seats that ended by idling."),
    _told("vanished_total", "counter", "First short seats whose cookie never came back."),
    _told("abandoned_total", "counter", "Places given up before their turn."),
    Row(
        "stalled",
        "gauge",
        "1 while people wait and nothing moves: nobody is called to free seats, or the store is away.",
        ROOM,
        combine="worst",
    ),
    Row(
        "arrivals_open",
        "gauge",
        "People who came while the store was away and have no number yet, as this gateway knows.",
        ROOM,
        combine="worst",
    ),
    _told(
        "admission_share",
        "gauge",
        "Part of the rate at which people are let in; below 1 while the storefront is in trouble.",
    ),
    _told("gateways", "gauge", "Gateways that tick, as the store has it."),
    _told("room_version", "gauge", "Version of the room's configuration in force on this gateway."),
    Row(
        "room_differences",
        "gauge",
        "Settings whose value in the store differs from the file's.",
        ROOM,
        combine="worst",
    ),
    Row(
        "tick_age_seconds",
        "gauge",
        "Time since the last successful exchange with the store.",
        ROOM,
        combine="age",
    ),
    Row("tick_duration_seconds", "histogram", "How long successful ticks took.", ROOM, STORE_LATENCIES),
    Row("tick_failures_total", "counter", "Ticks that did not reach the store.", ROOM),
    Row("requests_total", "counter", "Requests answered, by what became of them.", ("room", "verdict")),
    Row("sent_bytes_total", "counter", "Bytes of response bodies sent to shoppers.", ROOM),
    Row(
        "origin_latency_seconds",
        "histogram",
        "From a forwarded request to the origin's first byte.",
        ROOM,
        LATENCIES,
    ),
    Row("origin_errors_total", "counter", "Forwarded requests that the origin failed.", ("room", "kind")),
    Row("challenges_total", "counter", "Newcomers challenged, by what came of it.", ("room", "outcome")),
    Row("challenging", "gauge", "1 while everybody new is challenged.", ROOM, combine="worst"),
    Row("tickets_rejected_total", "counter", "Cookies of ours that proved nothing.", ("reason",)),
    Row("connections_open", "gauge", "Open connections, towards shoppers and towards the origin.", ("side",)),
    Row("store_calls_total", "counter", "Calls to the store.", ("call", "outcome")),
    Row("store_call_seconds", "histogram", "How long calls to the store took.", ("call",), STORE_LATENCIES),
    Row("event_loop_lag_seconds", "histogram", "How late the event loop ran a timer.", (), LATENCIES),
    Row("log_lines_dropped_total", "counter", "Log lines lost because nobody read them."),
    Row(
        "admin_requests_total",
        "counter",
        "Requests for the admin API, and refused ones for the rest of the private listener.",
        ("outcome",),
        combine="own",
    ),
    Row(
        "config_reloads_total",
        "counter",
        "Configurations read anew, by outcome.",
        ("outcome",),
        combine="own",
    ),
    Row("config_reload_refused", "gauge", "1 while the configuration read last was refused.", combine="own"),
    Row("workers_running", "gauge", "Workers that are ready to serve.", combine="own"),
    Row(
        "worker_restarts_total", "counter", "Workers that were replaced, by why.", ("reason",), combine="own"
    ),
    Row(
        "workers_crash_looping",
        "gauge",
        "1 while a worker dies again and again before it has served for long.",
        combine="own",
    ),
)

OF_THE_FIRST = ("process_start_time_seconds",)
"""What the client library says of a process that is not added up, but taken from the supervisor."""


class Distribution:
    """Observations counted by bucket."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; an edge belongs to the bucket that it closes."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add what somebody else has observed, with the same edges."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, counts, strict=True)]
        self.total += total


def families(
    numbers: Mapping[str, Mapping[tuple[str, ...], float]],
    distributions: Mapping[str, Mapping[tuple[str, ...], Distribution]],
) -> Iterator[Metric]:
    """Every row of the table with these samples, by name and labels."""
    for row in METRICS:
        if row.kind == "histogram":
            yield _histogram(row, distributions[row.name])
        else:
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(PREFIX + row.name, row.doc, labels=row.labels)
            for labels, value in numbers[row.name].items():
                metric.add_metric(labels, value)
            yield metric


def forget(
    numbers: Mapping[str, dict[tuple[str, ...], float]],
    distributions: Mapping[str, dict[tuple[str, ...], Distribution]],
    gone: Callable[[str], bool],
) -> None:
    """Leave out every sample that is about a room of which `gone` says so."""
    for row in METRICS:
        if ROOM[0] in row.labels:
            at = row.labels.index(ROOM[0])
            series: dict[tuple[str, ...], Any] = (
                distributions[row.name] if row.kind == "histogram" else numbers[row.name]
            )
            for labels in [labels for labels in series if gone(labels[at])]:
                del series[labels]


def _histogram(row: Row, series: Mapping[tuple[str, ...], Distribution]) -> Metric:
    metric = HistogramMetricFamily(PREFIX + row.name, row.doc, labels=row.labels)
    names = [*map(floatToGoString, row.buckets), "+Inf"]
    for labels, observed in series.items():
        metric.add_metric(labels, list(zip(names, accumulate(observed.counts), strict=True)), observed.total)
    return metric
