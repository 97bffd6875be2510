"""What a gateway hands in at a tick, and what it vouches for when the store may have forgotten it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from waitingroom.line import SEGMENT
from waitingroom.room import Block

MOST_VOUCHED = 20_000
"""Seats that one tick vouches for, so that none holds the store up."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """What a gateway knows of a room that the store may not.

    Attributes:
        leases: seats to the ends of their leases; `trials` those whose cookie has not come back.
        ended: seats that were given back.
        offers: numbers that are called, to their deadlines.
        blocks: numbers given to arrivals.
        entered: bits of numbers that have been inside, by segment.
        line: bits of those who waited, by segment, if the store may not have them any more.
        clock, born: the room's clock and the state's beginning, as this gateway knew them before.
    """

    leases: dict[str, int] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    ended: tuple[str, ...] = ()
    offers: dict[int, int] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    entered: dict[int, bytes] = field(default_factory=dict)
    line: dict[int, bytes] = field(default_factory=dict)
    clock: int = 0
    born: int = 0

    def parts(self) -> Iterator["Testimony"]:
        """The same in pieces of at most `MOST_VOUCHED` leases; all else goes with the first."""
        leases = iter(self.leases.items())
        yield replace(self, leases=dict(islice(leases, MOST_VOUCHED)))
        while part := dict(islice(leases, MOST_VOUCHED)):
            yield Testimony(leases=part, clock=self.clock, born=self.born)


@dataclass(slots=True)
class HandIn:
    """What a gateway hands in at a tick: everything since the one before.

    Attributes:
        seen: numbers that polled; `here` those that said so themselves; `touched` and `left` are seats, the
            touched ones in the order in which they first were (the values say nothing).
        answers: whether the storefront failed the last request of a seat, so that each has one voice.
        arrivals: people without a number by gateway and second; `blocks` how many blocks are known.
        highest: the highest number in a verified token; `oldest` the lowest in a ticket, `lowest` in a
            pass that still stands.
        testimony: what the store may not know; `vouched` the fence for which this gateway has said all of it.
        goodbye: whether this gateway stops.
    """

    seen: set[int] = field(default_factory=set)
    here: set[int] = field(default_factory=set)
    touched: dict[str, None] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    answers: dict[str, bool] = field(default_factory=dict)
    arrivals: dict[tuple[str, int], int] = field(default_factory=dict)
    blocks: int = 0
    highest: int = 0
    lowest: int | None = None
    oldest: int | None = None
    testimony: Testimony | None = None
    vouched: int = 0
    goodbye: bool = False

    @property
    def asked(self) -> int:
        """How many seats the storefront answered, or should have."""
        return len(self.answers)

    @property
    def failed(self) -> int:
        """How many of these it failed."""
        return sum(self.answers.values())

    def merge(self, other: "HandIn") -> None:
        """Take back what an unanswered tick had carried."""
        self.seen |= other.seen
        self.here |= other.here
        self.touched = other.touched | self.touched
        self.left |= other.left
        self.answers = other.answers | self.answers


class Witness:
    """Which numbers have been inside, as far as a gateway was told, and for which fence it has testified.

    Attributes:
        vouched: the fence for which everything was said.
    """

    def __init__(self) -> None:
        self.vouched = 0
        self._entered: dict[int, bytearray] = {}
        self._parts: Iterator[Testimony] | None = None

    def note(self, entered: Iterable[int]) -> None:
        """Numbers that have become somebody's inside."""
        for number in entered:
            segment, offset = divmod(number, SEGMENT)
            bits = self._entered.setdefault(segment, bytearray())
            if len(bits) <= offset // 8:
                bits.extend(bytes(offset // 8 + 1 - len(bits)))
            bits[offset // 8] |= 128 >> offset % 8

    def forget(self, before: int) -> None:
        """Segments lower than `before` have ended."""
        for segment in [segment for segment in self._entered if segment < before]:
            del self._entered[segment]

    def clear(self) -> None:
        """A new epoch voids what was known."""
        self._entered.clear()
        self._parts = None

    def again(self) -> None:
        """What was said last may not have been heard: say everything anew."""
        self._parts = None

    def next_part(self, testimony: Testimony) -> tuple[Testimony | None, bool]:
        """The next piece of `testimony` to say, None if all is said, and whether it is the last."""
        if self._parts is None:
            entered = {segment: bytes(bits) for segment, bits in self._entered.items()}
            self._parts = replace(testimony, entered=entered).parts()
        part = next(self._parts, None)
        return part, part is None or len(part.leases) < MOST_VOUCHED
