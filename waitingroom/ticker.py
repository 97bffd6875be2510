"""The tick: each room's regular exchange with the store. It never dies.

Any gateway's tick admits, so there is no leader; a gateway that stops ticking takes nothing with it.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from waitingroom.desk import Desk
from waitingroom.room import Room
from waitingroom.store import Store, StoreUnavailableError, UnknownRoomError
from waitingroom.telemetry import Telemetry

SHORTEST = 0.2
"""Seconds; a tick that the limiter asks for early still leaves the store this long."""

_log = structlog.get_logger()


class Ticker:
    """Ticks for every room, each on its own so that none holds up another.

    Args:
        desks: the rooms of this gateway.
        store: the state that they share with other gateways.
        telemetry: told of every tick.
        on_change: called with a room whose configuration has changed.
        interval: seconds between two ticks.
    """

    def __init__(
        self,
        desks: Mapping[str, Desk],
        store: Store,
        telemetry: Telemetry,
        on_change: Callable[[Room], None],
        interval: float = 1.0,
    ) -> None:
        self._desks = desks
        self._store = store
        self._telemetry = telemetry
        self._on_change = on_change
        self._interval = interval

    async def run(self) -> None:
        """Tick until cancelled."""
        async with asyncio.TaskGroup() as group:
            for desk in self._desks.values():
                group.create_task(self._run(desk), name=f"tick {desk.room.name}")

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

    async def attempt(self, desk: Desk) -> None:
        """Exchange once, whatever comes of it: a failure is counted and logged, and the next may mend it."""
        name = desk.room.name
        try:
            try:
                await self.tick(desk)
            except UnknownRoomError:
                await self._store.seed(desk.room)
                _log.warning("room_seeded", room=name, reason="the store did not know it")
        except StoreUnavailableError as error:
            self._telemetry.tick_failed(name)
            _log.warning("store_unavailable", room=name, error=str(error))
        except Exception:  # noqa: BLE001 - see below
            # Whatever it is, the room must tick on: who waits cannot repair us.
            self._telemetry.tick_failed(name)
            _log.exception("tick_failed", room=name)

    def _pause(self, desk: Desk) -> float:
        again = desk.snapshot.again
        return self._interval if again is None else min(self._interval, again / 1000)

    async def tick(self, desk: Desk) -> None:
        """Exchange once. What an unanswered exchange had carried is handed in again with the next."""
        carried = desk.take()
        sent = asyncio.get_running_loop().time()
        try:
            room, snapshot = await self._store.tick(desk.room, desk.snapshot, carried)
        except BaseException:
            desk.hand_in.merge(carried)
            raise
        changed = room.version != desk.room.version
        desk.absorb(room, snapshot, carried, sent)
        self._telemetry.tick(room.name, asyncio.get_running_loop().time() - sent)
        self._telemetry.snapshot(room, snapshot)
        if changed:
            _log.info("room_changed", room=room.name, version=room.version, epoch=room.epoch)
            self._on_change(room)
