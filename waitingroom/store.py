"""Every key and every call of the store; redis-py is known nowhere else.

A room's keys share the hash tag `{room}`, so a script stays in one slot of a cluster:

    config                 the room as JSON, with a version; the only key without a TTL
    state                  hash: the room's clock, epoch, highest number issued, limiters, totals
    seen:<segment>:<slot>  bitmap by number: heard of in one 15-second period; slots form a ring
    gone:<segment>         bitmap by number: offered, inside or finished
    held:<segment>         bitmap by number: missed a turn, and has to say "I am here"
    offers                 sorted set: lane:number -> deadline
    active, trial          sorted sets: lane:number:visitor -> end of the lease (full, first)
    ended                  sorted set: leases given back -> when; passes for them are refused
    answers:<gateway>      hash: the last answers to a gateway, so that a repeated call changes nothing
    audit                  stream: who changed the configuration, and why

Each change of state is one Lua script under `lua/`; `room.lua` states what they share.
"""

import asyncio
import json
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha1
from importlib import resources
from typing import Any, TypeVar, cast

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from waitingroom.config import dump_room, load_room
from waitingroom.desk import HandIn
from waitingroom.room import LANE, SEGMENT, Answer, Entry, Knock, Line, Room, Snapshot, Totals, smooth_pace

T = TypeVar("T")
RING = 64
"""Slots of the `seen` ring; 15 seconds each cover the longest presence window."""

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
    """One entry of the audit stream."""

    room: str
    version: int
    author: str
    reason: str
    changed: Mapping[str, Any]
    at: float


def script_source(name: str, clock: str | None = None) -> str:
    """The Lua source of one state change with what it shares; `clock` replaces the store's own clock."""
    folder = resources.files("waitingroom") / "lua"
    parts = [clock or (folder / "clock.lua").read_text()]
    parts += [(folder / f"{part}.lua").read_text() for part in ("room", name)]
    return "\n".join(parts)


class Store:
    """The state of all rooms, shared by all gateways. Every call is one script, and safe to repeat.

    Args:
        url: as redis-py takes it: redis://, rediss:// or unix://.
        gateway: a name that no other gateway has at the same time.
        tick: seconds between two ticks of one gateway; the burst of the limiter.
        timeout: seconds after which a call has failed.
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
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            max_connections=64,
        )
        self._gateway = gateway
        self._tick = round(tick * 1000)
        sources = {name: script_source(name, clock) for name in ("enter", "tick", "configure")}
        self._scripts = {
            name: (sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
            for name, text in sources.items()
        }
        self._observe = observer or (lambda _call, _seconds, _outcome: None)
        self._sequence = time.time_ns() // 1_000_000
        self._segments: dict[str, tuple[int, int]] = {}
        self._doors: dict[str, _Door] = {}
        self._known: dict[str, dict[str, int]] = {}

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
        reply = await self._run("configure", room.name, {"version": 0, "config": text, "seed": True})
        return load_room(reply[1])

    async def load(self, name: str) -> Room:
        """The room as the store has it.

        Raises:
            UnknownRoomError: if the store does not have it.
            StoreUnavailableError: if the store does not answer.
        """
        text = await self._guard("load", self._client.get(_key(name, "config")))
        if text is None:
            raise UnknownRoomError(name)
        return load_room(text)

    async def change(self, room: Room, before: Room, author: str, reason: str) -> Room:
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
        entry = {
            "version": new.version,
            "author": author,
            "reason": reason,
            "changed": changed,
            "at": time.time(),
        }
        header = {"version": before.version, "config": dump_room(new), "entry": json.dumps(entry)}
        reply = await self._run("configure", room.name, header)
        if reply[0] == b"conflict":
            raise ConflictError(load_room(reply[1]))
        return load_room(reply[1])

    async def audit(self, name: str, most: int = 100) -> list[Change]:
        """The last changes of a room, newest first."""
        entries = await self._guard("audit", self._client.xrevrange(_key(name, "audit"), count=most))
        found = cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
        return [Change(room=name, **json.loads(fields[b"entry"])) for _, fields in found]

    def knock(self, room: str, knock: Knock) -> "asyncio.Future[Answer]":
        """Let somebody knock. All who do in the same turn of the event loop share one call.

        The future raises `StoreUnavailableError` if the store does not answer, and `UnknownRoomError` if it
        does not have the room.
        """
        door = self._doors.get(room)
        if door is None:
            door = self._doors[room] = _Door(room, self)
        return door.knock(knock)

    async def enter(self, room: str, knocks: Sequence[Knock], sequence: int | None = None) -> list[Answer]:
        """One call of the door for all of `knocks`; repeating a `sequence` repeats its answers.

        Raises:
            StoreUnavailableError: if the store does not answer.
            UnknownRoomError: if the store does not have the room.
        """
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        known = self._known.get(room, {})
        told = [[k.visitor, k.number, k.epoch, k.lane, k.join, k.wait] for k in knocks]
        header = {"sequence": sequence, "known": known, "knocks": told}
        reply = await self._run("enter", room, header)
        answer = json.loads(reply[1])
        self._learn(room, issued=answer["issued"])
        return [_answer(raw, answer["epoch"]) for raw in answer["answers"]]

    async def tick(self, room: Room, before: Snapshot, hand_in: HandIn) -> tuple[Room, Snapshot]:
        """Hand in, admit, take home: the room as configured now, and the new snapshot.

        Raises:
            StoreUnavailableError: if the store does not answer; nothing handed in is known to have arrived.
            UnknownRoomError: if the store does not have the room (any more).
        """
        parts, payload = _pack(hand_in.seen)
        header = {
            "epoch": room.epoch,
            "version": room.version,
            "known": self._known.get(room.name, {}),
            "digest": before.digest,
            # Whatever ended at the very moment of the last tick may have come after it.
            "ended_since": before.clock - 3 * self._tick,
            "touched": list(hand_in.touched),
            "left": list(hand_in.left),
            "here": list(hand_in.here),
            "seen": parts,
        }
        reply = await self._run("tick", room.name, header, payload)
        now = load_room(reply[2]) if reply[2] else room
        after = _snapshot(now, json.loads(reply[1]), reply[3], before)
        self._learn(room.name, issued=after.issued, inside=after.inside, clock=after.clock)
        return now, after

    def _learn(self, room: str, *, issued: int, **told: int) -> None:
        """Keep what vouches for the room if the store loses it; answers may arrive out of order."""
        known = self._known.setdefault(room, {})
        known |= told | {"issued": max(issued, known.get("issued", 0))}

    async def _run(
        self, script: str, room: str, header: dict[str, Any], payload: Iterable[bytes] = ()
    ) -> list[Any]:
        """Run a script with the keys of the live segments; the store says so if these are others."""
        header |= {"tick": self._tick}
        for _ in range(3):
            first, last = self._segments.get(room, (0, 0))
            text = json.dumps(header | {"first": first, "last": last})
            keys = _keys(room, self._gateway, first, last)
            reply = await self._guard(script, self._evaluate(script, keys, [text, *payload]))
            if reply[0] == b"missing":
                raise UnknownRoomError(room)
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

    async def _guard(self, call: str, awaitable: Awaitable[T]) -> T:
        started = time.perf_counter()
        outcome = "error"
        try:
            result = await awaitable
            outcome = "ok"
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailableError(f"{call}: {error or type(error).__name__}") from error
        finally:
            self._observe(call, time.perf_counter() - started, outcome)
        return result


class _Door:
    """Gathers those who knock in one turn of the event loop into one call."""

    def __init__(self, room: str, store: Store) -> None:
        self._room = room
        self._store = store
        self._waiting: list[tuple[Knock, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    def knock(self, knock: Knock) -> "asyncio.Future[Answer]":
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((knock, future))
        if self._task is None:
            self._task = asyncio.create_task(self._open())
        return future

    async def _open(self) -> None:
        # The task starts after everything else of this turn, so that all who knocked in it are there. Whoever
        # knocks while a call is under way shares the next one.
        try:
            while self._waiting:
                now, self._waiting = self._waiting[:MOST_KNOCKS], self._waiting[MOST_KNOCKS:]
                await self._call(now)
        finally:
            self._task = None

    async def _call(self, now: "list[tuple[Knock, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._store.enter(self._room, [knock for knock, _ in now])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for an answer must hear of it
            for _, future in now:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(now, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _key(room: str, what: str) -> str:
    return f"wr:{{{room}}}:{what}"


def _keys(room: str, gateway: str, first: int, last: int) -> list[str]:
    """The keys of a script call, in the order that `room.lua` gives them."""
    names = ["config", "state", "offers", "active", "trial", "ended", f"answers:{gateway}", "audit"]
    names += [f"scratch:bits:{gateway}", f"scratch:overlap:{gateway}"]
    for segment in range(first, last + 1):
        names += [f"gone:{LANE}:{segment}", f"held:{LANE}:{segment}", f"scratch:{segment}:{gateway}"]
        names += [f"seen:{LANE}:{segment}:{slot}" for slot in range(RING)]
    return [_key(room, name) for name in names]


def _pack(seen: Iterable[int]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Numbers as little-endian 32-bit offsets, one binary part a segment."""
    by_segment: dict[int, array[int]] = {}
    for number in seen:
        by_segment.setdefault(number // SEGMENT, array("I")).append(number % SEGMENT)
    if sys.byteorder == "big":
        for offsets in by_segment.values():
            offsets.byteswap()
    parts = [{"segment": segment, "lane": LANE} for segment in by_segment]
    return parts, [offsets.tobytes() for offsets in by_segment.values()]


def _answer(raw: list[Any], epoch: int) -> Answer:
    entry, *rest = raw
    number, until = [*rest, 0, 0][:2]
    return Answer(Entry(entry), int(number), int(until), epoch)


def _snapshot(room: Room, told: dict[str, Any], parts: list[bytes], before: Snapshot) -> Snapshot:
    flat = told["offers"] or []
    offers = {
        int(member.partition(":")[2]): int(deadline)
        for member, deadline in zip(flat[::2], flat[1::2], strict=True)
    }
    plain = {
        name: told[name]
        for name in (
            "epoch",
            "issued",
            "first",
            "last",
            "inside",
            "offered",
            "waiting",
            "present",
            "candidates",
            "digest",
            "again",
        )
        if name in told
    }
    after = Snapshot(
        clock=int(told["clock"]),
        totals=Totals(**told["totals"]),
        offers=offers,
        line=Line(told["first"], parts) if parts else before.line,
        lease_end=int(told["lease_end"]) if "lease_end" in told else None,
        spent=tuple(told["spent"] or ()),
        missed=tuple(told["missed"] or ()),
        ended=tuple(told["ended"] or ()),
        calm=int(told["calm"]),
        **plain,
    )
    return replace(after, pace=smooth_pace(room, before, after))
