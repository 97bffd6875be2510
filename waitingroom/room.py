"""Nouns and decisions of the waiting room, without clock, randomness or I/O.

A *room* protects part of a site. A visitor who cannot enter at once waits with a number; everything
that has to be decided about rooms and numbers (which room, where in the line, how long, when to ask
again) is a function here whose arguments are all it depends on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any

LANE = "main"
"""The one lane of a room for now; keys, types and scripts already speak of several."""

SEGMENT = 1 << 20
"""Ticket numbers in one bitmap segment."""
BLOCK = 4096
"""Numbers in a block of a line, whose people are counted once a snapshot."""

SOONEST, LATEST = 2.0, 60.0
"""Bounds of `poll_after` in seconds; a hidden tab gets about one timer a minute."""


class Method(StrEnum):
    """What a room does with visitors for whom there is no seat."""

    FIFO = "fifo"
    REJECT = "reject"
    PASSTHROUGH = "passthrough"


class State(StrEnum):
    """What a visitor is told about their own place."""

    WAITING = "waiting"
    YOUR_TURN = "your_turn"
    INSIDE = "inside"
    PAUSED = "paused"
    PREQUEUE = "prequeue"
    FULL = "full"
    ENDED = "ended"
    UNAVAILABLE = "unavailable"


def setting(default: Any, doc: str, **rules: Any) -> Any:
    """A configurable field: its default, what it means to an operator, and its bounds.

    `rules` are `ge`, `gt`, `le`, `pattern`, `max_length`, `choices`, `duration=True` (seconds, written "5m")
    and `secret=True`, which keeps the value out of errors and of every repr.
    """
    return field(default=default, repr=not rules.get("secret"), metadata={"doc": doc, **rules})


@dataclass(frozen=True, slots=True)
class Room:
    """A protected part of a site with its limits. Durations are seconds."""

    name: str = setting(
        "",
        "Name of the room in URLs, cookies, metrics and the store.",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
    )
    hosts: tuple[str, ...] = setting((), "Hosts that the room protects; none means every host.")
    path: str = setting(
        "/", "Path prefix that the room protects; the most specific room wins.", pattern=r"^/[^?#\s]*$"
    )
    upstream: str = setting("", "Storefront behind the room, such as http://127.0.0.1:8000.")
    total_active_users: int = setting(500, "Most shoppers inside at one time.", ge=1, le=10_000_000)
    new_users_per_minute: int = setting(600, "Most shoppers who may enter in a minute.", ge=1, le=10_000_000)
    session_duration: float = setting(
        300.0, "A seat ends after this long without a request.", duration=True, ge=10, le=604800
    )
    disable_session_renewal: bool = setting(
        False, "End a seat this long after entering, however busy its shopper is."
    )
    presence_window: float = setting(
        180.0, "A waiting visitor not heard of for this long is not counted.", duration=True, ge=180, le=900
    )
    claim_window: float = setting(
        120.0, "How long a seat is held for somebody whose turn it is.", duration=True, ge=90, le=3600
    )
    hold_for: float = setting(
        86400.0, "How long a place is kept for somebody who went away.", duration=True, ge=600, le=604800
    )
    queueing_method: Method = setting(
        Method.FIFO,
        "fifo: first come, first served; reject: refuse when full; passthrough: everybody enters.",
    )
    queueing_status_code: int = setting(200, "HTTP status of the waiting page.", choices=(200, 202, 429, 503))
    queue_all: bool = setting(False, "Let nobody new enter; everybody queues.")
    suspended: bool = setting(False, "Switch the room off: everybody enters, nobody is counted.")
    paused: bool = setting(False, "Stop calling people; the page says that the queue is paused.")
    bypass_paths: tuple[str, ...] = setting((), "Path prefixes that never wait: payment returns, webhooks.")
    cookie_domain: str = setting("", "Domain of the cookie, for a room over several hosts.")
    cookie_samesite: str = setting(
        "lax", "SameSite attribute of the cookie; none needs TLS.", choices=("lax", "none", "strict")
    )
    message: str = setting("", "A sentence of the shop's own on the waiting page.", max_length=500)
    shop_name: str = setting("", "Name of the shop on the waiting page; empty: the host.", max_length=80)
    shop_logo: str = setting(
        "", "File with the shop's logo (SVG, PNG or WebP, at most 6 kB), put into the page."
    )
    accent_color: str = setting(
        "#0b57d0", "Colour of buttons and progress on the waiting page.", pattern=r"^#[0-9a-fA-F]{6}$"
    )
    epoch: int = setting(
        1, "Generation of the room; raising it voids every ticket and pass.", ge=1, le=1_000_000_000
    )
    version: int = 0


@dataclass(slots=True)
class Status:
    """What one visitor is told: the status document, whatever form it is sent in. Made for one answer.

    Attributes:
        position: place in line, 1 is next; None where there is no place to speak of.
        low: shortest honest estimate of the wait in seconds, None if unknown; `high` the longest.
        poll_after: seconds until asking again is of use.
        updated: Unix time of the answer, set by whoever sends it.
        until: seconds left to take up the seat, in state `your_turn`.
        missed: whether an earlier turn was missed, so that the visitor has to say "I am here".
    """

    room: str
    state: State
    position: int | None = None
    low: float | None = None
    high: float | None = None
    poll_after: float = 10.0
    message: str = ""
    updated: float = 0.0
    until: float | None = None
    missed: bool = False

    @property
    def ahead(self) -> int | None:
        """How many people are in front."""
        return None if self.position is None else self.position - 1


class Entry(StrEnum):
    """What the store answers somebody at the door."""

    INSIDE = "inside"
    TRIAL = "trial"
    WAIT = "wait"
    MOMENT = "moment"
    ENDED = "ended"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Knock:
    """Somebody at the door: a newcomer (number 0), or the holder of a number.

    Attributes:
        join: whether a new number may be given.
        wait: whether that number may be one to wait with; only navigations wait.
    """

    visitor: str
    number: int = 0
    epoch: int = 0
    lane: str = LANE
    join: bool = True
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """The store's answer to a `Knock`.

    Attributes:
        until: for `inside` and `trial` the end of the pass on the room's clock in milliseconds; for
            `moment` how many milliseconds to wait before asking again.
        epoch: the epoch that the answer was given in; a token minted from it carries this one.
    """

    entry: Entry
    number: int = 0
    until: int = 0
    epoch: int = 1


class Line:
    """The waiting bits of a room: who waits, by number, and how many people are in front of whom."""

    __slots__ = ("_first", "_prefix", "_segments", "waiting")

    def __init__(self, first: int = 0, segments: Sequence[bytes] = ()) -> None:
        """Take over bitmaps of consecutive segments, `first` being the number of the lowest."""
        self._first = first
        self._segments = tuple(segments)
        self._prefix: list[list[int]] = []
        before = 0
        for bits in self._segments:
            blocks = (bits[at : at + BLOCK // 8] for at in range(0, len(bits), BLOCK // 8))
            counts = (int.from_bytes(block).bit_count() for block in blocks)
            self._prefix.append(list(accumulate(counts, initial=before)))
            before = self._prefix[-1][-1]
        self.waiting = before

    def ahead(self, number: int) -> int:
        """How many people wait with a number lower than `number`: exact, in constant time."""
        segment, offset = divmod(number, SEGMENT)
        index = segment - self._first
        if index < 0:
            return 0
        if index >= len(self._segments):
            return self.waiting
        bits, prefix = self._segments[index], self._prefix[index]
        block = offset // BLOCK
        if block >= len(prefix) - 1:
            return prefix[-1]
        part = bits[block * BLOCK // 8 : offset // 8 + 1]
        spare = 8 * len(part) - offset % BLOCK
        return prefix[block] + (int.from_bytes(part) >> max(0, spare)).bit_count()

    def __contains__(self, number: int) -> bool:
        segment, offset = divmod(number, SEGMENT)
        index = segment - self._first
        if not 0 <= index < len(self._segments):
            return False
        bits = self._segments[index]
        return offset // 8 < len(bits) and bool(bits[offset // 8] & 128 >> offset % 8)

    @property
    def front(self) -> int | None:
        """The lowest waiting number, None if nobody waits."""
        return next(iter(self.numbers()), None)

    def numbers(self) -> Iterator[int]:
        """Every waiting number, lowest first."""
        for index, bits in enumerate(self._segments):
            base = (self._first + index) * SEGMENT
            prefix = self._prefix[index]
            for block in (at for at in range(len(prefix) - 1) if prefix[at] < prefix[at + 1]):
                for at in range(block * BLOCK // 8, min(len(bits), (block + 1) * BLOCK // 8)):
                    byte = bits[at]
                    yield from (base + at * 8 + bit for bit in range(8) if byte and byte & 128 >> bit)


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened in a room since its state began, in people."""

    joined: int = 0
    offered: int = 0
    admitted: int = 0
    lapsed: int = 0
    left: int = 0
    expired: int = 0
    vanished: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A room as the last tick found it.

    Attributes:
        clock: the room's clock in milliseconds.
        inside: seats taken, trial seats among them; `offered` seats are held besides.
        waiting: people heard of within the presence window; `present`: within the last 75 seconds.
        offers: offered number to its deadline on the room's clock.
        spent, missed: numbers among those handed in that are gone, and that missed their turn.
        ended: seats given back lately, for which no pass counts.
        lease_end: end of every lease touched in this tick; None where requests do not prolong a lease.
        again: milliseconds until the limiter would let more people in; None if that is not why they wait.
        calm: milliseconds for which nobody is called after a pause of the store.
        pace: offers a second, smoothed over about a minute; None before the first tick.
    """

    clock: int = 0
    epoch: int = 0
    issued: int = 0
    first: int = 0
    last: int = 0
    inside: int = 0
    offered: int = 0
    waiting: int = 0
    present: int = 0
    candidates: int = 0
    totals: Totals = field(default_factory=Totals)
    offers: Mapping[int, int] = field(default_factory=dict)
    line: Line = field(default_factory=Line)
    digest: str = ""
    lease_end: int | None = None
    spent: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()
    ended: tuple[str, ...] = ()
    again: float | None = None
    calm: int = 0
    pace: float | None = None

    def __repr__(self) -> str:
        return (
            f"<{self.inside} inside, {self.offered} offered, {self.waiting} waiting, {self.present} present, "
            f"issued {self.issued}, epoch {self.epoch}>"
        )


def rank_rooms(rooms: Iterable[Room], host: str) -> list[Room]:
    """The rooms that protect anything on `host`, the longest path first, a named host before any host."""
    found = [room for room in rooms if not room.hosts or host in room.hosts]
    return sorted(found, key=lambda room: (len(room.path), bool(room.hosts)), reverse=True)


def protects(room: Room, path: str) -> bool:
    """Whether `path` lies under the room's."""
    prefix = room.path
    return (
        prefix == "/"
        or path.startswith(prefix if prefix[-1] == "/" else prefix + "/")
        or path == prefix.rstrip("/")
    )


def bypasses(room: Room, path: str) -> bool:
    """Whether `path` is one that never waits, such as a payment's return."""
    return any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in room.bypass_paths)


def smooth_pace(room: Room, before: Snapshot, after: Snapshot, span: float = 60.0) -> float:
    """Offers a second, as an exponential average over about `span` seconds of the room's clock.

    It begins with what Little's law says of a full room whose seats turn over once a session, and time in
    which nobody waited leaves it alone: that says nothing about how fast people are called.
    """
    slowest = min(room.new_users_per_minute / 60, room.total_active_users / room.session_duration)
    known = slowest if before.pace is None else before.pace
    seconds = (after.clock - before.clock) / 1000
    if (
        not before.clock
        or seconds <= 0
        or before.epoch != after.epoch
        or not (before.waiting or after.waiting)
    ):
        return known
    seen = (after.totals.offered - before.totals.offered) / seconds
    return known + min(1.0, seconds / span) * (seen - known)


def estimate_wait(room: Room, pace: float | None, ahead: int) -> tuple[float, float] | None:
    """Shortest and longest honest wait in seconds for somebody with `ahead` people in front, None if unknown.

    Nobody can be called faster than the room's rate; the pace of the last minute says how fast they are. The
    range is wide on purpose: what it covers is measured.
    """
    if room.paused or room.queue_all or pace is None or pace <= 0:
        return None
    fastest = (ahead + 1) * 60 / room.new_users_per_minute
    usual = (ahead + 1) / pace
    return max(fastest, 0.6 * usual), max(fastest, 1.6 * usual) + SOONEST


def poll_after(low: float | None, ahead: int, jitter: float) -> float:
    """Seconds until asking again is of use: seldom far back, often near the front.

    Whoever is near the front asks often, however slowly people are called: a seat that comes free is theirs.

    Args:
        low: shortest expected wait in seconds, None if unknown.
        ahead: people in front.
        jitter: a random number in [0, 1), so that visitors do not ask in step.
    """
    near = SOONEST + ahead / 5
    seldom = near if low is None else min(near, low / 5)
    return max(SOONEST, min(LATEST, seldom) * (1 - 0.25 * jitter))


def shown_position(true: int, shown: int | None) -> int:
    """The position that a page shows: never more than it has shown before."""
    return true if shown is None or shown < 1 else min(true, shown)


def seen_number(
    snapshot: Snapshot, number: int, jitter: float, room: Room, shown: int | None = None, unheard: int = 0
) -> Status:
    """What the holder of a waiting `number` is told; the line does not show `unheard` more in front."""
    deadline = snapshot.offers.get(number)
    if deadline is not None:
        left = max(0.0, (deadline - snapshot.clock) / 1000)
        return Status(room.name, State.YOUR_TURN, poll_after=SOONEST, until=left, message=room.message)
    ahead = snapshot.line.ahead(number) + unheard
    wait = estimate_wait(room, snapshot.pace, ahead)
    low, high = wait or (None, None)
    return Status(
        room.name,
        State.PAUSED if room.paused else State.WAITING,
        position=shown_position(ahead + 1, shown),
        low=low,
        high=high,
        poll_after=poll_after(low, ahead, jitter),
        message=room.message,
    )
