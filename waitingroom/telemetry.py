"""What the gateway counts and measures for the people who run it.

`metrics.METRICS` is the one table of all metrics; everything exported is built from it. Counts are plain
numbers in dictionaries, because a request on the hot path can afford a tenth of a microsecond and not a lock:
whoever counts, and whoever renders, does so on the thread of the event loop.
"""

import asyncio
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from waitingroom import __version__
from waitingroom.metrics import (
    ADMIN_OUTCOMES,
    CHALLENGE_OUTCOMES,
    METRICS,
    NO_ROOM,
    ORIGIN_ERRORS,
    RELOADS,
    RESTARTS,
    VERDICTS,
    AdminOutcome,
    ChallengeOutcome,
    Distribution,
    OriginError,
    Reload,
    Restart,
    families,
    forget,
)
from waitingroom.requestlog import RequestLog, Served
from waitingroom.room import Room, Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

STALL_AFTER_S = 30.0
"""Shortest time without movement that counts as a stall; an alert has as long again to fire."""

LAG_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Movement:
    """When somebody was last called in a room, or nobody had to be; `patience` is how long that may last."""

    called: int
    at: float
    patience: float


class Telemetry:
    """The metrics of one gateway, and its request log; a `Collector` by what it does, so that it compiles.

    Args:
        rooms: names of the rooms; their series exist from the start, so that a first event is an increase.
        log: where requests are written; none: they are only counted.
        clock: monotonic seconds.
    """

    def __init__(
        self, rooms: Iterable[str], log: RequestLog | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._clock = clock
        self._numbers: dict[str, defaultdict[tuple[str, ...], float]] = {
            row.name: defaultdict(float) for row in METRICS if row.kind != "histogram"
        }
        self._distributions: dict[str, defaultdict[tuple[str, ...], Distribution]] = {
            row.name: defaultdict(partial(Distribution, row.buckets))
            for row in METRICS
            if row.kind == "histogram"
        }
        self._requests = self._numbers["requests_total"]
        self._sent = self._numbers["sent_bytes_total"]
        self._latency = self._distributions["origin_latency_seconds"]
        self._ticked: dict[str, float] = {}
        self._movement: dict[str, Movement] = {}
        self._numbers["build_info"][__version__, platform.python_version()] = 1
        self._lag = self._distributions["event_loop_lag_seconds"][()]
        self._connections: dict[str, Callable[[], int]] = {}
        self._refusals: Mapping[int, int] | None = None
        self._challenging: Callable[[str], bool] = lambda _room: False
        for room in (NO_ROOM, *rooms):
            self.add(room)
        self._numbers["workers_running"][()] = 1
        for single in ("config_reload_refused", "workers_crash_looping"):
            self._numbers[single][()] = 0
        for outcome in ADMIN_OUTCOMES:
            self._numbers["admin_requests_total"][outcome,] = 0
        for result in RELOADS:
            self._numbers["config_reloads_total"][result,] = 0
        for reason in RESTARTS:
            self._numbers["worker_restarts_total"][reason,] = 0
        self.registry = CollectorRegistry()
        self.registry.register(cast("Collector", self))
        self._process = ProcessCollector(registry=self.registry)

    def add(self, room: str) -> None:
        """Have the series of a room from here on, so that a first event is an increase."""
        for verdict in VERDICTS:
            self._requests[room, verdict] = 0
        if room == NO_ROOM:
            return
        for kind in ORIGIN_ERRORS:
            self._numbers["origin_errors_total"][room, kind] = 0
        for outcome in CHALLENGE_OUTCOMES:
            self._numbers["challenges_total"][room, outcome] = 0
        for name in ("tick_failures_total", "sent_bytes_total", "room_differences"):
            self._numbers[name][room,] = 0
        self._ticked[room] = self._clock()

    def forget(self, room: str) -> None:
        """Say no more of a room that is not served any more."""
        self._ticked.pop(room, None)
        self._movement.pop(room, None)
        forget(self._numbers, self._distributions, lambda name: name == room)

    def request(self, served: Served) -> None:
        """Count a request that has been answered, and log it."""
        self._requests[served.room, served.verdict] += 1
        if served.sent:
            self._sent[served.room,] += served.sent
        if self._log is not None:
            self._log.request(served)

    def origin(self, room: str, seconds: float) -> None:
        """Note how long the origin took to its first byte."""
        self._latency[room,].observe(seconds)

    def origin_failed(self, room: str, kind: OriginError) -> None:
        """Count a forwarded request that the origin failed."""
        self._numbers["origin_errors_total"][room, kind] += 1

    def ticket_rejected(self, reason: str) -> None:
        """Count a cookie of ours that proved nothing; `reason` is one of a few fixed words."""
        self._numbers["tickets_rejected_total"][reason,] += 1

    def challenge(self, room: str, outcome: ChallengeOutcome) -> None:
        """Count a challenge, or what came of one."""
        self._numbers["challenges_total"][room, outcome] += 1

    def challenging(self, everybody: Callable[[str], bool]) -> None:
        """Have it asked, whenever the metrics are read, whether everybody new is challenged in a room."""
        self._challenging = everybody

    def connections(self, side: Literal["shopper", "origin"], count: Callable[[], int]) -> None:
        """Have the open connections of one side counted whenever the metrics are read."""
        self._connections[side] = count

    def refusals(self, counts: Mapping[int, int]) -> None:
        """Have what the listener refused by itself, by status, counted whenever the metrics are read."""
        self._refusals = counts

    def store_call(self, call: str, seconds: float, outcome: str = "ok") -> None:
        """Note a call to the store by its script's or command's name; `outcome` is ok, timeout or error."""
        self._numbers["store_calls_total"][call, outcome] += 1
        self._distributions["store_call_seconds"][call,].observe(seconds)

    def tick(self, room: str, seconds: float) -> None:
        """Note a successful exchange with the store."""
        self._ticked[room] = self._clock()
        self._distributions["tick_duration_seconds"][room,].observe(seconds)

    def tick_failed(self, room: str) -> None:
        """Count a tick that did not reach the store."""
        self._numbers["tick_failures_total"][room,] += 1

    def arrivals(self, room: str, count: int) -> None:
        """Say how many people have come who could not be given a number yet."""
        self._numbers["arrivals_open"][room,] = count

    def admin_request(self, outcome: AdminOutcome) -> None:
        """Count a request to the private listener."""
        self._numbers["admin_requests_total"][outcome,] += 1

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop ran a timer."""
        self._lag.observe(seconds)

    def differences(self, room: str, count: int) -> None:
        """Say how many settings of a room differ between the file and the store."""
        self._numbers["room_differences"][room,] = count

    def reloaded(self, outcome: Reload) -> None:
        """Note what became of a configuration that was read anew."""
        self._numbers["config_reloads_total"][outcome,] += 1
        self._numbers["config_reload_refused"][()] = float(outcome == "refused")

    def workers(self, ready: int, *, looping: bool) -> None:
        """Say how the workers are."""
        self._numbers["workers_running"][()] = ready
        self._numbers["workers_crash_looping"][()] = float(looping)

    def replaced(self, reason: Restart) -> None:
        """Count a worker that was replaced."""
        self._numbers["worker_restarts_total"][reason,] += 1

    def snapshot(self, room: Room, seen: Snapshot) -> None:
        """Take over what a tick brought home; the totals are the store's and the same on every gateway."""
        values: dict[str, float] = {
            "shoppers_inside": seen.inside,
            "offers_open": seen.offered,
            "visitors_waiting": seen.waiting,
            "visitors_present": seen.present,
            "candidates": seen.candidates,
            "limit_shoppers_inside": room.total_active_users,
            "limit_new_users_per_minute": room.new_users_per_minute,
            "room_version": room.version,
            "admission_share": seen.share,
            "gateways": len(seen.gateways),
        }
        values |= {f"{name}_total": count for name, count in asdict(seen.totals).items()}
        for name, value in values.items():
            self._numbers[name][room.name,] = value
        called = seen.totals.offered + seen.totals.admitted
        last = self._movement.get(room.name)
        if last is None or last.called != called or not awaits_movement(room, seen):
            self._movement[room.name] = Movement(called, self._clock(), stall_after(room))

    def tick_age(self, room: str) -> float:
        """Seconds since the last successful exchange with the store."""
        return max(0.0, self._clock() - self._ticked[room])

    def stalled(self, room: str) -> bool:
        """Whether people wait and nothing moves: nobody was called for too long, or the store is away."""
        last = self._movement.get(room)
        if last is not None and self.tick_age(room) <= last.patience:
            return self._clock() - last.at > last.patience
        waiting = self._numbers["visitors_waiting"][room,] + self._numbers["arrivals_open"][room,]
        return waiting > 0 and self.tick_age(room) > STALL_AFTER_S

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that the `Accept` header asks for, with their `Content-Type`."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def export(self) -> dict[str, Any]:
        """All of it as plain values that fit into JSON; `figures` reads them."""
        self._refresh()
        return {
            "numbers": {name: [*series.items()] for name, series in self._numbers.items()},
            "distributions": {
                name: [(labels, observed.counts, observed.total) for labels, observed in series.items()]
                for name, series in self._distributions.items()
            },
            "process": {
                sample.name: sample.value for family in self._process.collect() for sample in family.samples
            },
        }

    def collect(self) -> "Iterator[Metric]":
        """Every row of the table with its samples, for the registry."""
        self._refresh()
        return families(self._numbers, self._distributions)

    def _refresh(self) -> None:
        """Bring up to date what is looked up when it is asked for."""
        for room in self._ticked:
            self._numbers["tick_age_seconds"][room,] = self.tick_age(room)
            self._numbers["challenging"][room,] = float(self._challenging(room))
        for room in self._movement:
            self._numbers["stalled"][room,] = float(self.stalled(room))
        for side, count in self._connections.items():
            self._numbers["connections_open"][side,] = count()
        if self._refusals is not None:
            by_client = [status for status in self._refusals if status < HTTPStatus.INTERNAL_SERVER_ERROR]
            self._requests[NO_ROOM, "malformed"] = sum(self._refusals[status] for status in by_client)
            self._requests[NO_ROOM, "turned_away"] = self._refusals.get(HTTPStatus.SERVICE_UNAVAILABLE, 0)
        if self._log is not None:
            self._numbers["log_lines_dropped_total"][()] = self._log.dropped


def awaits_movement(room: Room, seen: Snapshot) -> bool:
    """Whether somebody ought to be called: people are present, seats are free, and nobody has said stop."""
    held_back = room.paused or room.queue_all or room.suspended
    return not held_back and seen.candidates > 0 and seen.inside + seen.offered < room.total_active_users


def stall_after(room: Room) -> float:
    """Seconds without movement that are a fault: longer than two turns at the room's pace."""
    return max(STALL_AFTER_S, 2 * 60 / room.new_users_per_minute)


class LoopLag:
    """Samples how late the event loop runs its timers, four times a second, from construction to `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observe: Callable[[float], None]) -> None:
        self._loop = loop
        self._observe = observe
        self._arm()

    def _arm(self) -> None:
        self._due = self._loop.time() + LAG_INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._sample)

    def _sample(self) -> None:
        self._observe(max(0.0, self._loop.time() - self._due))
        self._arm()

    def stop(self) -> None:
        """End the sampling."""
        self._timer.cancel()
