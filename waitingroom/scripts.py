"""What goes into the store's scripts and what comes out, as pure functions; and which keys there are.

A room's keys share the hash tag `{room}`, so a script stays in one slot of a cluster:

    config                 the room as JSON, with a version; the only key without a TTL
    state                  hash: the room's clock, fence, epoch, highest number issued, limiters, totals
    seen:<segment>:<slot>  bitmap by number: heard of in one 15-second period; slots form a ring
    gone:<segment>         bitmap by number: offered, inside or finished
    held:<segment>         bitmap by number: missed a turn, and has to say "I am here"
    offers                 sorted set: lane:number -> deadline
    active, trial          sorted sets: lane:number:visitor -> end of the lease (full, first)
    ended                  sorted set: leases given back -> when; passes for them are refused
    entered                sorted set: number -> when it became somebody's inside, for half a minute
    gateways               sorted set: gateway -> when it last ticked
    arrivals               hash: people who came while the store was away, counted by gateway and second
    numbered               hash: how many of these have been given numbers
    blocks                 list: which numbers those are
    answers:<gateway>      hash: the last answers to a gateway, so that a repeated call changes nothing
    audit                  stream: who changed the configuration, and why

Each change of state is one Lua script under `lua/`; `room.lua` states what they share.
"""

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from waitingroom.forecast import smooth_pace
from waitingroom.handin import HandIn, Testimony
from waitingroom.line import SEGMENT, Line
from waitingroom.room import (
    LANE,
    Answer,
    Block,
    Entry,
    Knock,
    Room,
    Snapshot,
    Totals,
    fair_share,
)

RING = 64
"""Slots of the `seen` ring; 15 seconds each cover the longest presence window."""

PARTS = {"enter": ("room", "enter"), "tick": ("room", "gather", "tick"), "configure": ("room", "configure")}
"""The files that make up each script."""


def script_source(name: str, clock: str | None = None) -> str:
    """The Lua source of one state change with what it shares; `clock` replaces the store's own clock."""
    folder = resources.files("waitingroom") / "lua"
    parts = [clock or (folder / "clock.lua").read_text()]
    parts += [(folder / f"{part}.lua").read_text() for part in PARTS[name]]
    return "\n".join(parts)


def key_of(room: str, what: str) -> str:
    """The full name of a key."""
    return f"wr:{{{room}}}:{what}"


def keys_of(room: str, gateway: str, first: int, last: int) -> list[str]:
    """The keys of a script call, in the order that `room.lua` gives them."""
    names = ["config", "state", "offers", "active", "trial", "ended", f"answers:{gateway}", "audit"]
    names += [f"scratch:bits:{gateway}", f"scratch:overlap:{gateway}"]
    names += ["gateways", "entered", "arrivals", "numbered", "blocks"]
    for segment in range(first, last + 1):
        names += [f"gone:{LANE}:{segment}", f"held:{LANE}:{segment}", f"scratch:{segment}:{gateway}"]
        names += [f"seen:{LANE}:{segment}:{slot}" for slot in range(RING)]
    return [key_of(room, name) for name in names]


def knocks_told(knocks: Sequence[Knock]) -> list[list[Any]]:
    """Everybody at the door, as `enter.lua` reads them."""
    return [[k.visitor, k.number, k.epoch, k.lane, k.join, k.wait] for k in knocks]


def answers_of(text: bytes | str) -> tuple[int, list[Answer]]:
    """The highest number issued, and the answer to each knock."""
    told = json.loads(text)
    return told["issued"], [_answer(raw, told["epoch"]) for raw in told["answers"]]


def _answer(raw: list[Any], epoch: int) -> Answer:
    entry, *rest = raw
    number, until = [*rest, 0, 0][:2]
    return Answer(Entry(entry), int(number), int(until), epoch)


def tick_told(room: Room, before: Snapshot, hand_in: HandIn, tick: int) -> tuple[dict[str, Any], list[bytes]]:
    """A tick's header and binary parts, as `tick.lua` reads them; `tick` is milliseconds."""
    parts, payload = _pack(hand_in.seen)
    header: dict[str, Any] = {
        "epoch": room.epoch,
        "version": room.version,
        "digest": before.digest,
        # Whatever ended at the very moment of the last tick may have come after it.
        "ended_since": before.clock - 3 * tick,
        "touched": list(hand_in.touched),
        "left": list(hand_in.left),
        "here": list(hand_in.here),
        "seen": parts,
        "arrivals": [[gateway, second, count] for (gateway, second), count in hand_in.arrivals.items()],
        "blocks": hand_in.blocks,
        "vouched": hand_in.vouched,
        "goodbye": hand_in.goodbye,
        "asked": hand_in.asked,
        "failed": hand_in.failed,
        "share": fair_share(before.asked + hand_in.asked, before.failed + hand_in.failed, before.share),
    }
    if hand_in.lowest is not None:
        header["lowest"] = hand_in.lowest
    if hand_in.oldest is not None:
        header["oldest"] = hand_in.oldest
    if hand_in.testimony is not None:
        header["testimony"], bits = _testimony_told(hand_in.testimony)
        payload += bits
    return header, payload


def _testimony_told(testimony: Testimony) -> tuple[dict[str, Any], list[bytes]]:
    told = {
        "leases": list(testimony.leases.items()),
        "trials": list(testimony.trials.items()),
        "ended": list(testimony.ended),
        "offers": list(testimony.offers.items()),
        "numbered": [list(row) for row in testimony.blocks],
        "entered": [{"segment": segment} for segment in testimony.entered],
        "line": [{"segment": segment} for segment in testimony.line],
        "clock": testimony.clock,
        "born": testimony.born,
    }
    return told, [*testimony.entered.values(), *testimony.line.values()]


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


_PLAIN = (
    "fence",
    "epoch",
    "issued",
    "first",
    "last",
    "inside",
    "taken",
    "offered",
    "waiting",
    "present",
    "candidates",
)


def snapshot_of(room: Room, text: bytes | str, parts: list[bytes], before: Snapshot) -> Snapshot:
    """What a tick brought home; `parts` are the waiting bits, none if they are as before."""
    told: Mapping[str, Any] = json.loads(text)
    flat = told["offers"] or []
    offers = {
        int(member.partition(":")[2]): int(deadline)
        for member, deadline in zip(flat[::2], flat[1::2], strict=True)
    }
    plain = {
        name: told[name] for name in (*_PLAIN, "asked", "failed", "share", "digest", "again") if name in told
    }
    after = Snapshot(
        clock=int(told["clock"]),
        stamp=int(told["stamp"]),
        born=int(told["born"]),
        totals=Totals(**told["totals"]),
        offers=offers,
        line=Line(told["first"], parts) if parts else before.line,
        lease_end=int(told["lease_end"]) if "lease_end" in told else None,
        spent=tuple(told["spent"] or ()),
        missed=tuple(told["missed"] or ()),
        ended=tuple(told["ended"] or ()),
        entered=tuple(int(number) for number in told["entered"] or ()),
        gateways=tuple(told["gateways"] or ()),
        blocks=tuple(tuple(Block(*row) for row in json.loads(block)) for block in told["blocks"] or ()),
        calm=int(told["calm"]),
        **plain,
    )
    return replace(after, pace=smooth_pace(room, before, after))
