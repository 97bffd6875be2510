"""Who has to show a browser before joining, and the work that shows it. No clock, randomness or I/O here.

A challenge is signed and kept by nobody: it says when it was set and how much work it asks for, and holds for
one room and one network. It is met by work (counters whose hashes begin with zeros) or by patience. Times are
milliseconds on the room's clock, which all gateways share; only a `Meter` runs on seconds of its gateway.
"""

import hmac
import math
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Final

from waitingroom.room import Room, Snapshot

PARTS: Final = 16
"""Small pieces of work in a challenge: their sum varies little, and each shows as progress."""

HARDEST: Final = 18
"""Bits that a challenge reaches by itself; only an operator asks for more."""

LIFE: Final = 180_000
"""Milliseconds for which a challenge can be met."""

NONCE: Final = 12
"""Bytes that make a challenge the only one of its kind."""

BURST: Final = 120
"""Joins at once that a network has free, at each gateway and in each room; one more comes back a second."""

MOST_KEPT: Final = 65_536
"""Networks, or challenges met, that a gateway remembers of each kind; the oldest go first."""

_EARLY: Final = 30_000  # gateways that cannot reach the store count on by themselves, apart from one another
_LONGEST: Final = 512
_PAYLOAD: Final = struct.Struct(f">QB{NONCE}s")
_WORK: Final = struct.Struct(">II")
_MOST_BURSTS: Final = 5


@lru_cache(maxsize=16_384)
def prefix_of(address: str) -> str:
    """The network that joins are counted by: /24 of IPv4, /56 of IPv6; "" where nothing can be counted.

    Whatever comes from this machine itself comes through a proxy that is not in `trusted_proxies`, behind
    which everybody looks the same.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_loopback:
        return ""
    packed = parsed.packed
    return packed[: 3 if len(packed) == 4 else 7].hex()  # noqa: PLR2004 - bytes of an IPv4 address


def difficulty(usual: int, pressure: float) -> int:
    """Bits for a newcomer of a network whose joins are `pressure` times what it has free.

    One more than usual from twice, two from four times; by itself never so many that an old phone is kept for
    much longer than four seconds.
    """
    extra = (pressure >= 2) + (pressure >= 4)  # noqa: PLR2004 - see above
    return max(usual, min(usual + extra, HARDEST))


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a newcomer was set, and what came back with it.

    Attributes:
        text: payload and signature, as they are sent and come back.
        seed: the signature's bytes, with which every hash begins.
        bits: hashes to try, as a power of two.
        since: when it was set.
        nonce: which one it is.
        answer: the counters that came back, empty as long as none have.
    """

    text: str
    seed: bytes
    bits: int
    since: int
    nonce: bytes
    answer: str = ""

    @property
    def part_bits(self) -> int:
        """Zero bits with which the hash of each part begins."""
        return self.bits - PARTS.bit_length() + 1

    @property
    def delay(self) -> int:
        """Seconds after which patience counts as much as work: 10, and 5 more for each bit above 16."""
        return 10 + 5 * max(0, self.bits - 16)

    def left(self, clock: int) -> float:
        """Seconds until patience is enough."""
        return max(0.0, self.delay - (clock - self.since) / 1000)

    @property
    def end(self) -> int:
        """When it can no longer be met."""
        return self.since + LIFE

    @property
    def carried(self) -> str:
        """The text with its answer, as a cookie carries it."""
        return f"{self.text}.{self.answer}" if self.answer else self.text

    @property
    def solved(self) -> bool:
        """Whether the answer is right; a wrong one is found out by its first wrong counter."""
        counters = self.answer.split("-")
        return len(counters) == PARTS and all(
            self._holds(part, counter) for part, counter in enumerate(counters)
        )

    def _holds(self, part: int, counter: str) -> bool:
        if not (counter.isdigit() and len(counter) <= 10 and int(counter) < 1 << 32):  # noqa: PLR2004 - digits of 2**32
            return False
        digest = sha256(self.seed + _WORK.pack(part, int(counter))).digest()
        return int.from_bytes(digest[:4]) >> 32 - self.part_bits == 0


class Seal:
    """Sets challenges and knows them again; the first key signs, all verify."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def challenge(self, room: str, prefix: str, bits: int, clock: int, nonce: bytes) -> Challenge:
        """A new challenge for a newcomer of a network to a room."""
        payload = urlsafe_b64encode(_PAYLOAD.pack(clock, bits, nonce))
        seed = _signature(self._keys[0], room, prefix, payload)
        text = (payload + b"." + urlsafe_b64encode(seed).rstrip(b"=")).decode()
        return Challenge(text, seed, bits, clock, nonce)

    def read(self, carried: bytes, room: str, prefix: str, clock: int) -> Challenge | None:
        """The challenge that somebody brings back; whether its answer is right is not yet said.

        None unless we set it, for this room and this network, and it has not ended.
        """
        payload, _, rest = carried.partition(b".")
        signature, _, answer = rest.partition(b".")
        if len(carried) > _LONGEST or not payload:
            return None
        for key in self._keys:
            seed = _signature(key, room, prefix, payload)
            if hmac.compare_digest(signature, urlsafe_b64encode(seed).rstrip(b"=")):
                since, bits, nonce = _PAYLOAD.unpack(urlsafe_b64decode(payload))
                text = (payload + b"." + signature).decode()
                challenge = Challenge(text, seed, bits, since, nonce, answer.decode("ascii", "replace"))
                return challenge if since - _EARLY <= clock < challenge.end else None
        return None


def _signature(key: bytes, room: str, prefix: str, payload: bytes) -> bytes:
    return hmac.digest(key, b"\0".join((room.encode(), prefix.encode(), payload)), "sha256")


class Meter:
    """Counts by key that run off again at one a second (GCRA), in bounded memory."""

    __slots__ = ("_full",)

    def __init__(self) -> None:
        self._full: OrderedDict[tuple[str, str], float] = OrderedDict()

    def pressure(self, key: tuple[str, str], now: float) -> float:
        """How much of `BURST` has been counted and not yet run off; above 1 there is nothing free."""
        return max(0.0, self._full.get(key, now) - now + 1) / BURST

    def add(self, key: tuple[str, str], now: float) -> None:
        """Count one; what is far over the limit is not counted further, so that it ends some time."""
        self._full[key] = min(max(self._full.get(key, now), now) + 1, now + _MOST_BURSTS * BURST)
        self._full.move_to_end(key)
        if len(self._full) > MOST_KEPT:
            self._full.popitem(last=False)


class Spent:
    """What has been good once, until it would end anyway, in bounded memory."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, what: bytes) -> bool:
        return what in self._ends

    def add(self, what: bytes, end: int, clock: int) -> None:
        """Remember it up to `end`."""
        self._ends[what] = end
        while self._ends and (len(self._ends) > MOST_KEPT or next(iter(self._ends.values())) <= clock):
            self._ends.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A room at one tick; `seated` are those who took a seat and did not vanish from it."""

    clock: int
    issued: int
    joined: int
    seated: int
    abandoned: int


class _Fading:
    """A count of about the last minute."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count, self._at = 0.0, 0

    def read(self, clock: int) -> float:
        return self._count * math.exp(-max(0, clock - self._at) / 60_000)

    def add(self, clock: int) -> None:
        self._count, self._at = self.read(clock) + 1, clock


class Watch:
    """Whether so many of a room's joins are nobody's that everybody new is challenged.

    It is a flood when half of a minute's numbers, and at least `LOST`, belong to nobody who was heard of
    again; or when joins come ten times as fast as in the busiest minute that is remembered, twenty times as
    fast as the room lets people in, and faster than `SURGE`. Challenges that nobody meets prolong it; else it
    is over after `HOLD`.
    """

    LOST: Final = 500
    """People; more than a single network has free in a minute."""

    HOLD: Final = 120_000
    """Milliseconds for which everybody new is challenged after the last sign of a flood."""

    SURGE: Final = 200.0
    """Joins a second that are never a flood by their number alone."""

    SETTLED: Final = 75_000
    """Milliseconds after which whoever joined has been heard of: apps may ask first after a minute."""

    WINDOW: Final = 60_000
    GAP: Final = 30_000
    _MEMORY: Final = 6 * 3_600_000  # the busiest minute counts half after this

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._pace = self._busiest = 0.0
        self._until = 0
        self._set, self._met = _Fading(), _Fading()

    def everybody(self, clock: int) -> bool:
        """Whether everybody new is challenged."""
        return clock < self._until

    def issued(self, clock: int) -> None:
        """A challenge was set that its own network gave no reason for."""
        self._set.add(clock)
        issued, met = self._set.read(clock), self._met.read(clock)
        if self.everybody(clock) and issued - met >= self.LOST and met < issued / 2:
            self._until = clock + self.HOLD

    def met(self, clock: int) -> None:
        """A challenge was met."""
        self._met.add(clock)

    def observe(self, room: Room, seen: Snapshot) -> str:
        """Take a snapshot in, at most one a second; returns why it shows a flood, "" if it does not."""
        totals = seen.totals
        now = _Sample(
            seen.clock, seen.issued, totals.joined, totals.admitted - totals.vanished, totals.abandoned
        )
        if self._samples:
            last = self._samples[-1]
            if 0 <= now.clock - last.clock < 1000:  # noqa: PLR2004 - a second
                return ""
            # Numbers that nobody joined with were left out: the store began anew, or another epoch did.
            skipped = now.issued - last.issued != now.joined - last.joined
            if skipped or not 0 < now.clock - last.clock < self.GAP:
                self._samples.clear()
        reason = self._surge(room, now) or self._lost(seen, now) if self._samples else ""
        if reason:
            self._until = now.clock + self.HOLD
        self._samples.append(now)
        while self._samples[0].clock < now.clock - self.WINDOW - self.SETTLED:
            self._samples.popleft()
        return reason

    def _surge(self, room: Room, now: _Sample) -> str:
        """Joins a second of the last three, against the busiest minute and what the room lets in."""
        last = self._samples[-1]
        seconds = (now.clock - last.clock) / 1000
        limit = max(self.SURGE, 10 * self._busiest, 20 * room.new_users_per_minute / 60)
        self._pace += min(1.0, seconds / 60) * ((now.joined - last.joined) / seconds - self._pace)
        self._busiest = max(self._pace, self._busiest * 0.5 ** (seconds * 1000 / self._MEMORY))
        early = next((one for one in reversed(self._samples) if one.clock <= now.clock - 3000), None)
        if early is None:
            return ""
        return "surge" if (now.joined - early.joined) * 1000 / (now.clock - early.clock) > limit else ""

    def _lost(self, seen: Snapshot, now: _Sample) -> str:
        """Numbers of a minute whose holders neither wait, nor left, nor could have taken a seat since."""
        first = self._samples[0]
        last = next((one for one in reversed(self._samples) if one.clock <= now.clock - self.SETTLED), first)
        joined = last.joined - first.joined
        here = seen.line.ahead(last.issued + 1) - seen.line.ahead(first.issued + 1)
        entered = max(0, now.seated - first.seated) + seen.offered
        lost = joined - here - entered - (now.abandoned - first.abandoned)
        return "lost" if lost >= max(self.LOST, joined / 2) else ""
