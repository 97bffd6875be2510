"""Nouns and decisions of the waiting room, without clock, randomness or I/O.

A *room* protects part of a site. A visitor who cannot enter at once waits with a number; everything
that has to be decided about rooms and numbers (which room, where in the line, how long, when to ask
again) is a function here whose arguments are all it depends on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from waitingroom.line import Line

LANE = "main"
"""The one lane of a room for now; keys, types and scripts already speak of several."""


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
    on_store_outage: str = setting(
        "hold",
        "While the store is away: hold lets nobody new in, open lets a part of the rate in, uncounted.",
        choices=("hold", "open"),
    )
    outage_share: float = setting(
        0.25, "With open: share of new_users_per_minute that each gateway lets in.", gt=0, le=1
    )
    outage_limit: float = setting(
        300.0,
        "With open: how long an outage may last until nobody new is let in.",
        duration=True,
        ge=10,
        le=3600,
    )
    slow_after: float = setting(
        5.0,
        "An answer of the storefront that takes longer counts as failed: while many fail, fewer are let in.",
        duration=True,
        ge=0.1,
    )
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
    challenge: str = setting(
        "auto",
        "Who has to show a browser before joining. off: nobody; auto: who comes in a flood; on: everybody.",
        choices=("off", "auto", "on"),
    )
    challenge_difficulty: int = setting(
        16, "Hashes that a browser tries to show it, as a power of two.", ge=8, le=20
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
        slowed: whether fewer people than usual go in, because the storefront is in trouble.
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
    slowed: bool = False

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
    LATER = "later"


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


class Arrival(NamedTuple):
    """When somebody came while the store was away: the gateway, the second, and how many were before."""

    gateway: str
    second: int
    place: int


class Block(NamedTuple):
    """Numbers given to arrivals of a second at a gateway: from place `first` on, `size` from `number` on."""

    gateway: str
    second: int
    first: int
    size: int
    number: int


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
        clock: the room's clock in milliseconds; `stamp` is the store's, in Unix time.
        born: when this state of the room began, on the store's clock; another one is another incarnation.
        fence: raised whenever gateways had to say what they know; it never goes back.
        inside: seats taken, trial seats among them; `offered` seats are held besides.
        taken: the same with the seats that a lost state may have had.
        waiting: people heard of within the presence window; `present`: within the last 75 seconds.
        offers: offered number to its deadline on the room's clock.
        spent, missed: numbers among those handed in that are gone, and that missed their turn.
        ended: seats given back lately, for which no pass counts.
        entered: numbers that lately became somebody's inside.
        gateways: names of those that tick.
        blocks: numbers given to arrivals, as far as they were not known.
        lease_end: end of every lease touched in this tick; None where requests do not prolong a lease.
        again: milliseconds until the limiter would let more people in; None if that is not why they wait.
        calm: milliseconds for which nobody is called after a pause of the store.
        asked, failed: requests to the storefront in the last seconds, fading, and how many of them it failed.
        share: the part of the rate at which people are let in, on account of that.
        pace: offers a second, smoothed over about a minute; None before the first tick.
    """

    clock: int = 0
    stamp: int = 0
    born: int = 0
    fence: int = 0
    epoch: int = 0
    issued: int = 0
    first: int = 0
    last: int = 0
    inside: int = 0
    taken: int = 0
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
    entered: tuple[int, ...] = ()
    gateways: tuple[str, ...] = ()
    blocks: tuple[tuple[Block, ...], ...] = ()
    again: float | None = None
    calm: int = 0
    asked: float = 0.0
    failed: float = 0.0
    share: float = 1.0
    pace: float | None = None

    def __repr__(self) -> str:
        return (
            f"<{self.inside} inside, {self.offered} offered, {self.waiting} waiting, {self.present} present, "
            f"issued {self.issued}, epoch {self.epoch}>"
        )


TOO_FEW = 5.0
"""Requests that say too little about the storefront to stop everybody, or to let everybody in again."""

TRICKLE = 0.05
"""The share with which a storefront is tried that was in trouble, or may be."""


def fair_share(asked: float, failed: float, before: float = 1.0) -> float:
    """The part of the rate that a storefront can be asked to bear, from 0 to 1.

    All while at most one answer in twenty is bad, nobody from one in two. One that was in trouble and has not
    been asked since is tried with a trickle until it proves itself.

    Args:
        asked: requests in the last seconds, fading.
        failed: those that were not answered, or with an error of the server, or too late.
        before: the share until now.
    """
    bad = failed / asked if asked >= 1 else 0.0
    if asked >= 1 and bad <= TRICKLE:
        return 1.0
    if asked < TOO_FEW:
        return TRICKLE if bad > 0 or before < 1 else 1.0
    return max(0.0, (0.5 - bad) / 0.45)


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
