"""The tick: each room's regular exchange with the store. It never dies.

Any gateway's tick admits, so there is no leader; a gateway that stops ticking takes nothing with it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from waitingroom.desk import Desk
from waitingroom.room import Room
from waitingroom.store import ConflictError, Store, StoreUnavailableError, UnknownRoomError
from waitingroom.telemetry import Telemetry

SHORTEST = 0.2
"""Seconds; a tick that the limiter asks for early still leaves the store this long."""

LONGEST = 2.0
"""Seconds; however often ticks have failed, the next one comes after at most this long."""

_log = structlog.get_logger()


class Ticker:
    """Ticks for every room, each on its own so that none holds up another.

    Args:
        desks: the rooms of this gateway.
        store: the state that they share with other gateways.
        telemetry: told of every tick.
        on_change: called with a room whose configuration has changed.
        interval: seconds between two ticks.
        jitter: random numbers in [0, 1), so that gateways do not come back in step.
    """

    def __init__(
        self,
        desks: Mapping[str, Desk],
        store: Store,
        telemetry: Telemetry,
        on_change: Callable[[Room], None],
        interval: float = 1.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._desks = desks
        self._store = store
        self._telemetry = telemetry
        self._on_change = on_change
        self._interval = interval
        self._jitter = jitter
        self._failures: Counter[str] = Counter()
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Tick until cancelled."""
        async with self._group:
            for desk in self._desks.values():
                self.begin(desk)

    def begin(self, desk: Desk) -> None:
        """Tick for a room that has come while others tick already."""
        name = desk.room.name
        self._tasks[name] = self._group.create_task(self._run(desk), name=f"tick {name}")

    async def end(self, desk: Desk) -> None:
        """Tick no more for a room that goes, and hand in what it had gathered."""
        task = self._tasks.pop(desk.room.name)
        task.cancel()
        await asyncio.wait([task])
        await self.attempt(desk, goodbye=True)
        self._failures.pop(desk.room.name, None)

    async def _run(self, desk: Desk) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        while True:
            started = loop.time()
            await self.attempt(desk)
            # The client's wait_for may swallow a cancellation in Python 3.11; asking for it misses none.
            if task.cancelling():
                return
            spent = loop.time() - started
            await asyncio.sleep(max(SHORTEST, self._pause(desk) - spent))

    async def attempt(self, desk: Desk, *, goodbye: bool = False) -> None:
        """Exchange once, whatever comes of it: a failure is counted and logged, and the next may mend it."""
        name = desk.room.name
        try:
            try:
                await self.tick(desk, goodbye=goodbye)
            except UnknownRoomError:
                await self._store.seed(desk.room)
                _log.warning("room_seeded", room=name, reason="the store did not know it")
                await self.tick(desk, goodbye=goodbye)
        except StoreUnavailableError as error:
            self._failed(name)
            # While it lasts it is said ever more seldom.
            if self._failures[name].bit_count() == 1:
                _log.warning("store_unavailable", room=name, error=str(error), failures=self._failures[name])
        except Exception:  # noqa: BLE001 - see below
            # Whatever it is, the room must tick on: who waits cannot repair us.
            self._failed(name)
            _log.exception("tick_failed", room=name)
        else:
            failures = self._failures.pop(name, 0)
            if failures:
                _log.info("store_answers_again", room=name, failures=failures)
        self._telemetry.arrivals(name, desk.arrivals.waiting)

    def _failed(self, room: str) -> None:
        self._failures[room] += 1
        self._telemetry.tick_failed(room)

    def _pause(self, desk: Desk) -> float:
        """Seconds between the beginnings of two ticks."""
        failures = self._failures[desk.room.name]
        if failures:
            longest = min(LONGEST, self._interval * 2.0 ** min(failures - 1, 8))
            return longest * (0.75 + 0.25 * self._jitter())
        if not desk.settled:
            return SHORTEST
        again = desk.snapshot.again
        return self._interval if again is None else min(self._interval, again / 1000)

    async def tick(self, desk: Desk, *, goodbye: bool = False) -> None:
        """Exchange once. What an unanswered exchange had carried is handed in again with the next.

        With `goodbye` the store need not wait for this gateway any more.
        """
        carried = desk.take(goodbye=goodbye)
        sent = asyncio.get_running_loop().time()
        try:
            room, snapshot = await self._store.tick(desk.room, desk.snapshot, carried)
        except BaseException:
            desk.take_back(carried)
            raise
        epoch = max(desk.epoch_seen, desk.room.epoch)
        if room.epoch < epoch:
            # What the store has told is of an epoch that is over, and what was handed in it has not heeded.
            desk.take_back(carried)
            await self._restore_epoch(room, epoch)
            return
        changed = room.version != desk.room.version
        desk.absorb(room, snapshot, carried, sent)
        self._telemetry.tick(room.name, asyncio.get_running_loop().time() - sent)
        self._telemetry.snapshot(room, snapshot)
        if changed:
            _log.info("room_changed", room=room.name, version=room.version, epoch=room.epoch)
            self._on_change(room)

    async def _restore_epoch(self, room: Room, epoch: int) -> None:
        """Raise a room to the epoch that a token or an earlier answer proves: the store has lost it."""
        _log.warning("epoch_restored", room=room.name, epoch=epoch, store=room.epoch)
        reason = "a verified token proves this epoch, which the store had lost"
        # Whoever was faster has raised it as well, or the next tick will.
        with suppress(ConflictError):
            await self._store.change(replace(room, epoch=epoch), room, "waitingroom", reason)
