"""Every call of the store; `servers` and `survey` also know redis-py. `scripts` says which keys there are.

Calls that a shopper waits for have `timeout` seconds and are never repeated; a store that has failed one is
not asked again until a tick has found it well. All others have `PATIENCE`.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha1
from typing import Any, TypeVar, cast

from redis.exceptions import NoScriptError

from waitingroom.config import dump_room, load_room
from waitingroom.handin import HandIn
from waitingroom.room import Answer, Knock, Room, Snapshot
from waitingroom.scripts import (
    PARTS,
    answers_of,
    key_of,
    keys_of,
    knocks_told,
    script_source,
    snapshot_of,
    tick_told,
)
from waitingroom.servers import ERRORS, connect

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds that each command may take for which no shopper waits."""

MOST_KNOCKS = 2000
"""Visitors in one call of `enter`; what is over waits for the next."""

Observer = Callable[[str, float, str], None]
"""Told the name, the seconds and the outcome (ok or error) of every call."""


class StoreUnavailableError(Exception):
    """The store did not answer, or not in time."""


class UnknownRoomError(Exception):
    """The store has no configuration of this room."""


class ConflictError(Exception):
    """Somebody else changed the room first; `current` is what it is now."""

    def __init__(self, current: Room) -> None:
        super().__init__(f"room {current.name} is at version {current.version}")
        self.current = current


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the audit stream; `by` is the name of the token, empty in entries of old."""

    room: str
    version: int
    author: str
    reason: str
    changed: Mapping[str, Any]
    at: float
    by: str = ""


class Store:
    """The state of all rooms, shared by all gateways. Every call is one script, and safe to repeat.

    Args:
        url: as [store] url has it, but for "embedded".
        gateway: a name that no other gateway has at the same time.
        tick: seconds between two ticks of one gateway; the burst of the limiter.
        timeout: seconds after which a call has failed that a shopper waits for.
        clock: Lua source to put in place of the store's clock, for tests.
    """

    def __init__(
        self,
        url: str,
        gateway: str,
        *,
        tick: float = 1.0,
        timeout: float = 0.3,
        clock: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._timeout = timeout
        self._patience = max(PATIENCE, timeout)
        self._client = connect(url, timeout=self._patience, connections=64)
        self._gateway = gateway
        self._tick = round(tick * 1000)
        sources = {name: script_source(name, clock) for name in PARTS}
        self._scripts = {
            name: (sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
            for name, text in sources.items()
        }
        self._observe = observer or (lambda _call, _seconds, _outcome: None)
        self._sequence = time.time_ns() // 1_000_000
        self._segments: dict[str, tuple[int, int]] = {}
        self._doors: dict[str, _Door] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._failing: set[str] = set()

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def ping(self) -> float:
        """Seconds that the store takes to answer.

        Raises:
            StoreUnavailableError: if it does not.
        """
        started = time.perf_counter()
        await self._guard("ping", self._client.ping())
        return time.perf_counter() - started

    async def info(self) -> dict[str, Any]:
        """What the server tells of itself (`INFO`)."""
        return cast("dict[str, Any]", await self._guard("info", self._client.info()))

    async def seed(self, room: Room) -> Room:
        """Create `room` if the store does not know it, and return it as the store has it."""
        text = dump_room(replace(room, version=1))
        header = {"version": 0, "config": text, "seed": True, "known": self._known.get(room.name, {})}
        reply = await self._run("configure", room.name, header)
        return load_room(reply[1])

    async def load(self, name: str) -> Room:
        """The room as the store has it.

        Raises:
            UnknownRoomError: if the store does not have it.
            StoreUnavailableError: if the store does not answer.
        """
        text = await self._guard("load", self._client.get(key_of(name, "config")))
        if text is None:
            raise UnknownRoomError(name)
        return load_room(text)

    async def change(self, room: Room, before: Room, author: str, reason: str, by: str = "") -> Room:
        """Put `room` in the place of `before`, if nobody was faster, and write down who did and why.

        Raises:
            ConflictError: if the stored version is no longer that of `before`.
            UnknownRoomError: if the store does not have the room.
            StoreUnavailableError: if the store does not answer.
        """
        new = replace(room, version=before.version + 1)
        old = asdict(before)
        changed = {
            name: value for name, value in asdict(new).items() if value != old[name] and name != "version"
        }
        who = {"author": author, "by": by, "reason": reason}
        entry = {"version": new.version, **who, "changed": changed, "at": time.time()}
        header = {"version": before.version, "config": dump_room(new), "entry": json.dumps(entry)}
        reply = await self._run("configure", room.name, header)
        if reply[0] == b"conflict":
            raise ConflictError(load_room(reply[1]))
        return load_room(reply[1])

    async def audit(self, name: str, most: int = 100) -> list[Change]:
        """The last changes of a room, newest first; what newer gateways add to an entry is passed over."""
        entries = await self._guard("audit", self._client.xrevrange(key_of(name, "audit"), count=most))
        found = cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
        known = {item.name for item in fields(Change)}
        told = (json.loads(entry[b"entry"]) for _, entry in found)
        return [Change(room=name, **{key: was[key] for key in was if key in known}) for was in told]

    def knock(self, room: str, knock: Knock) -> "asyncio.Future[Answer]":
        """Let somebody knock. All who do in the same turn of the event loop share one call.

        The future raises `StoreUnavailableError` if the store does not answer within `timeout`, at once if it
        is known not to, and `UnknownRoomError` if it does not have the room.
        """
        if room in self._failing:
            refused: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            refused.set_exception(StoreUnavailableError(f"room {room}: the store failed the last call"))
            return refused
        door = self._doors.get(room)
        if door is None:
            door = self._doors[room] = _Door(room, self, self._timeout)
        return door.knock(knock)

    async def enter(
        self, room: str, knocks: Sequence[Knock], sequence: int | None = None, within: float | None = None
    ) -> list[Answer]:
        """One call of the door for all of `knocks`; repeating a `sequence` repeats its answers.

        Args:
            room: where they knock.
            knocks: who does.
            sequence: a number of this call, new unless it is repeated.
            within: seconds for it, else the store's time-out.

        Raises:
            StoreUnavailableError: if the store does not answer; until a tick succeeds nobody else asks it.
            UnknownRoomError: if the store does not have the room.
        """
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        known = self._vouched(room, max((knock.number for knock in knocks), default=0))
        header = {"sequence": sequence, "known": known, "knocks": knocks_told(knocks)}
        try:
            reply = await self._run("enter", room, header, within=within or self._timeout)
        except StoreUnavailableError:
            self._failing.add(room)
            raise
        issued, answers = answers_of(reply[1])
        self._learn(room, issued=issued)
        return answers

    async def tick(self, room: Room, before: Snapshot, hand_in: HandIn) -> tuple[Room, Snapshot]:
        """Hand in, admit, take home: the room as configured now, and the new snapshot.

        Raises:
            StoreUnavailableError: if the store does not answer; nothing handed in is known to have arrived.
            UnknownRoomError: if the store does not have the room (any more).
        """
        name = room.name
        header, payload = tick_told(room, before, hand_in, self._tick)
        header["known"] = self._vouched(name, max(hand_in.highest, max(hand_in.seen, default=0)))
        started = time.perf_counter()
        try:
            reply = await self._run("tick", name, header, payload)
        except StoreUnavailableError:
            self._failing.add(name)
            raise
        seconds = time.perf_counter() - started
        now = load_room(reply[2]) if reply[2] else room
        after = snapshot_of(now, reply[1], reply[3], before)
        self._learn(
            name,
            issued=after.issued,
            inside=after.taken,
            clock=after.clock,
            born=after.born,
            fence=after.fence,
            first=after.first,
            gateways=after.gateways,
        )
        # A store that answers, but too slowly for somebody who waits for it, is for ticks alone.
        if seconds > self._timeout:
            self._failing.add(name)
        else:
            self._failing.discard(name)
        return now, after

    def _vouched(self, room: str, number: int) -> dict[str, Any]:
        """What this gateway knows of the room; a number in a verified token has been issued."""
        known = self._known.get(room, {})
        return known if number <= known.get("issued", 0) else known | {"issued": number}

    def _learn(self, room: str, *, issued: int, **told: Any) -> None:
        """Keep what vouches for the room if the store loses it; answers may arrive out of order."""
        known = self._known.setdefault(room, {})
        known |= told | {"issued": max(issued, known.get("issued", 0))}

    async def _run(
        self,
        script: str,
        room: str,
        header: dict[str, Any],
        payload: Iterable[bytes] = (),
        within: float | None = None,
    ) -> list[Any]:
        """Run a script with the keys of the live segments; the store says so if these are others."""
        header |= {"tick": self._tick, "gateway": self._gateway}
        limit = None if within is None else asyncio.get_running_loop().time() + within
        for _ in range(3):
            first, last = self._segments.get(room, (0, 0))
            text = json.dumps(header | {"first": first, "last": last})
            keys = keys_of(room, self._gateway, first, last)
            reply = await self._guard(script, self._evaluate(script, keys, [text, *payload]), limit)
            if reply[0] == b"missing":
                raise UnknownRoomError(room)
            if reply[0] == b"outdated":
                await self._client.forsake()
                raise StoreUnavailableError(
                    f"room {room}: this server has an old state, another took its place"
                )
            if reply[0] != b"segments":
                return reply
            self._segments[room] = (int(reply[1]), int(reply[2]))
        raise StoreUnavailableError(f"room {room} moves on faster than it can be followed")

    async def _evaluate(self, script: str, keys: list[str], args: list[Any]) -> list[Any]:
        sha, text = self._scripts[script]
        try:
            return cast("list[Any]", await self._client.evalsha(sha, len(keys), *keys, *args))
        except NoScriptError:
            return cast("list[Any]", await self._client.eval(text, len(keys), *keys, *args))

    async def _guard(self, call: str, awaitable: Awaitable[T], limit: float | None = None) -> T:
        """The answer to a call, by `limit` on the event loop's clock; each command has a limit of its own."""
        started = time.perf_counter()
        outcome = "error"
        try:
            async with asyncio.timeout_at(limit):
                result = await awaitable
            outcome = "ok"
        except ERRORS as error:
            raise StoreUnavailableError(f"{call}: {str(error) or type(error).__name__}") from error
        finally:
            self._observe(call, time.perf_counter() - started, outcome)
        return result


class _Door:
    """Gathers those who knock in one turn of the event loop into one call, and answers within `patience`."""

    def __init__(self, room: str, store: Store, patience: float) -> None:
        self._room = room
        self._store = store
        self._patience = patience
        self._waiting: list[tuple[float, Knock, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def knock(self, knock: Knock) -> "asyncio.Future[Answer]":
        future = self._loop.create_future()
        self._waiting.append((self._loop.time(), knock, future))
        if self._task is None:
            self._task = asyncio.create_task(self._open())
        return future

    async def _open(self) -> None:
        # The task starts after everything else of this turn, so that all who knocked in it are there. Whoever
        # knocks while a call is under way shares the next one; if that call fails, they need not try.
        try:
            while self._waiting:
                now, self._waiting = self._waiting[:MOST_KNOCKS], self._waiting[MOST_KNOCKS:]
                failure = await self._call(now)
                if isinstance(failure, StoreUnavailableError):
                    now, self._waiting = self._waiting, []
                    _refuse(now, failure)
        finally:
            self._task = None

    async def _call(self, now: "list[tuple[float, Knock, asyncio.Future[Answer]]]") -> Exception | None:
        left = now[0][0] + self._patience - self._loop.time()
        try:
            knocks = [knock for _, knock, _ in now]
            answers = await self._store.enter(self._room, knocks, within=max(left, 0.001))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for an answer must hear of it
            _refuse(now, error)
            return error
        for (_, _, future), answer in zip(now, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        return None


def _refuse(waiting: "list[tuple[float, Knock, asyncio.Future[Answer]]]", error: Exception) -> None:
    for _, _, future in waiting:
        if not future.done():
            future.set_exception(error)
