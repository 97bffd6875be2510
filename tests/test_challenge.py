"""Who is challenged, what a challenge asks for, and what proves nothing."""

import hashlib
from base64 import urlsafe_b64decode
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitingroom.challenge import (
    BURST,
    HARDEST,
    LIFE,
    MOST_KEPT,
    PARTS,
    Challenge,
    Meter,
    Seal,
    Spent,
    Watch,
    difficulty,
    prefix_of,
)
from waitingroom.line import SEGMENT, Line
from waitingroom.room import Room, Snapshot, Totals

KEY, OLD = b"k" * 32, b"o" * 32
SEAL = Seal([KEY])
NOW = 1_800_000_000_000
NONCE = b"n" * 12
ROOM = Room(name="sale", new_users_per_minute=600)
CHALLENGE = SEAL.challenge("sale", "c00002", 8, NOW, NONCE)

names = st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True)
prefixes = st.from_regex(r"([0-9a-f]{6}){0,1}|[0-9a-f]{14}", fullmatch=True)


def solve(proof: str, bits: int) -> str:
    """Do the work as docs/protocol.md words it: the proof with its counters."""
    seed = urlsafe_b64decode(proof.partition(".")[2] + "=")
    counters = []
    for part in range(PARTS):
        counter = 0
        while True:
            block = seed + part.to_bytes(4, "big") + counter.to_bytes(4, "big")
            if int.from_bytes(hashlib.sha256(block).digest()) >> 256 - bits == 0:
                break
            counter += 1
        counters.append(str(counter))
    return f"{proof}.{'-'.join(counters)}"


def read(carried: str | bytes, room: str = "sale", prefix: str = "c00002", at: int = NOW) -> Challenge | None:
    """What `SEAL` makes of something that came back."""
    return SEAL.read(carried if isinstance(carried, bytes) else carried.encode(), room, prefix, at)


def read_well(carried: str) -> Challenge:
    """The same where it must be known again."""
    challenge = read(carried)
    assert challenge is not None
    return challenge


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("::ffff:192.0.2.1", "192.0.2.9", True),
        ("2001:db8:1:200::1", "2001:db8:1:2ff:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:302::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("10.0.0.1", "10.0.0.2", True),
    ],
)
def test_neighbours_share_a_prefix(one: str, other: str, *, same: bool) -> None:
    """Joins are counted by /24 and by /56, however an address is written."""
    assert (prefix_of(one) == prefix_of(other)) is same
    assert prefix_of(one)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "unknown", "é", "1.2"]
)
def test_this_machine_is_no_network(address: str) -> None:
    """Behind a proxy of this machine that nobody named, everybody looks alike: nothing can be counted."""
    assert prefix_of(address) == ""


@given(st.text(max_size=60))
def test_any_text_has_a_prefix(text: str) -> None:
    """No address that a proxy might write is an error."""
    assert len(prefix_of(text)) in (0, 6, 14)


@given(names, prefixes, st.integers(8, 10), st.integers(0, 2**62), st.binary(min_size=12, max_size=12))
def test_work_as_documented_solves(room: str, prefix: str, bits: int, now: int, nonce: bytes) -> None:
    """Whatever is challenged, the work that the protocol describes meets it, and it is known again."""
    seal = Seal([KEY])
    challenge = seal.challenge(room, prefix, bits, now, nonce)
    carried = solve(challenge.text, challenge.part_bits)
    known = seal.read(carried.encode(), room, prefix, now + 1)
    assert known is not None
    assert (known.bits, known.since, known.nonce, known.carried) == (bits, now, nonce, carried)
    assert known.solved
    assert not challenge.solved


@pytest.mark.parametrize("bits", [8, 12, 16, 20])
def test_difficulty_is_the_work_of_all_parts(bits: int) -> None:
    """The parts together take as many hashes as the difficulty says, on average."""
    assert PARTS * 2 ** replace(CHALLENGE, bits=bits).part_bits == 2**bits


@given(st.binary(max_size=700))
def test_nothing_that_is_sent_is_an_error(data: bytes) -> None:
    """Bytes of any kind and length are no challenge of ours, and raise nothing."""
    assert read(data) is None
    assert read(CHALLENGE.text.encode() + data) is None or data[:1] == b"." or data == b""


@given(st.integers(0, len(CHALLENGE.text) - 1), st.characters(codec="latin-1"))
def test_an_altered_challenge_is_none(at: int, character: str) -> None:
    """One other character anywhere, and the signature says so."""
    altered = CHALLENGE.text[:at] + character + CHALLENGE.text[at + 1 :]
    assert altered == CHALLENGE.text or read(altered.encode("latin-1")) is None


@given(st.binary(max_size=300))
def test_an_answer_of_any_bytes_is_only_wrong(answer: bytes) -> None:
    """A genuine challenge with a nonsensical answer is one without an answer, and raises nothing."""
    challenge = read(CHALLENGE.text.encode() + b"." + answer)
    assert challenge is not None
    assert not challenge.solved


def test_wrong_answers_are_wrong() -> None:
    """Too few counters, too many, another one, one beyond 32 bits, and other spellings do not solve."""
    carried = solve(CHALLENGE.text, CHALLENGE.part_bits)
    counters = carried.rpartition(".")[2].split("-")
    easy = solve(CHALLENGE.text, 1).rpartition(".")[2].split("-")
    wrong = [
        counters[:-1],
        [*counters, "0"],
        [*counters[:-1], str(2**32 + int(counters[-1]))],
        [*counters[:-1], f"+{counters[-1]}"],
        [*counters[:-1], f"{counters[-1]}.0"],
        [*counters[:-1], ""],
        counters[1:] + counters[:1],
        easy,
    ]
    for answer in wrong:
        assert not read_well(f"{CHALLENGE.text}.{'-'.join(answer)}").solved, answer
    assert read_well(carried).solved


def test_a_challenge_holds_for_its_room_and_network_alone() -> None:
    """Solved elsewhere, it is none: rooms and networks cannot lend one another theirs."""
    carried = solve(CHALLENGE.text, CHALLENGE.part_bits)
    assert read(carried) is not None
    assert read(carried, room="other") is None
    assert read(carried, prefix="c00003") is None
    assert read(carried, prefix="") is None
    assert Seal([OLD]).read(carried.encode(), "sale", "c00002", NOW) is None


def test_room_and_network_cannot_be_shifted() -> None:
    """A name that ends as a network begins is not mistaken for the other way to cut the two."""
    text = SEAL.challenge("salec0", "0002", 8, NOW, NONCE).text
    assert read(text) is None


def test_a_challenge_ends() -> None:
    """It can be met until its end, and not before it was set, but for gateways that are a little apart."""
    for at, known in ((-30_001, False), (-30_000, True), (0, True), (LIFE - 1, True), (LIFE, False)):
        assert (read(CHALLENGE.text, at=NOW + at) is not None) is known


def test_rotating_keys_loses_no_challenge() -> None:
    """What the old key has signed is known as long as that key is, and the new one signs."""
    old, both, new = Seal([OLD]), Seal([KEY, OLD]), Seal([KEY])
    before = old.challenge("sale", "", 8, NOW, NONCE).text.encode()
    after = both.challenge("sale", "", 8, NOW, NONCE).text.encode()
    assert both.read(before, "sale", "", NOW) is not None
    assert new.read(after, "sale", "", NOW) is not None
    assert old.read(after, "sale", "", NOW) is None


def test_patience_is_asked_for_by_difficulty() -> None:
    """Ten seconds at the usual difficulty and below, thirty at the hardest that can be set."""
    for bits, seconds in ((8, 10), (16, 10), (17, 15), (18, 20), (20, 30)):
        challenge = replace(CHALLENGE, bits=bits)
        assert challenge.left(NOW) == challenge.delay == seconds
        assert challenge.left(NOW + seconds * 1000 - 1) > 0
        assert challenge.left(NOW + seconds * 1000) == 0
        assert challenge.left(NOW - 5000) > seconds


@given(st.integers(8, 20), st.floats(0, 100), st.floats(0, 100))
def test_difficulty_grows_with_pressure_and_is_bounded(usual: int, one: float, other: float) -> None:
    """More pressure never asks for less, and by itself for at most four times the usual, nor beyond 18."""
    low, high = sorted((one, other))
    assert usual <= difficulty(usual, low) <= difficulty(usual, high) <= max(usual, min(usual + 2, HARDEST))
    assert difficulty(usual, 0) == usual


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=400))
def test_a_network_gets_what_it_has_free_and_no_more(steps: list[tuple[float, str]]) -> None:
    """In no span of time more than the burst and one a second; another network's joins do not count."""
    meter, now, granted = Meter(), 0.0, Counter[str]()
    for pause, name in steps:
        now += pause
        if meter.pressure(("sale", name), now) <= 1:
            granted[name] += 1
            meter.add(("sale", name), now)
    for name, count in granted.items():
        asked = sum(step[1] == name for step in steps)
        assert min(asked, BURST) <= count <= BURST + now


def test_a_flood_is_forgotten_in_time() -> None:
    """However long it lasted, its network is free again ten minutes after, and its pressure is bounded."""
    meter, key = Meter(), ("sale", "c00002")
    for _ in range(100_000):
        meter.add(key, 50.0)
    assert 4 < meter.pressure(key, 50) <= 5.01
    assert meter.pressure(key, 650) < 1


def test_what_is_remembered_is_bounded() -> None:
    """Networks and spent challenges beyond the bound push the oldest out, never the one that is busiest."""
    meter, spent, busy = Meter(), Spent(), ("sale", "busy")
    for index in range(2 * MOST_KEPT):
        meter.add(("sale", str(index)), 1.0)
        spent.add(index.to_bytes(4, "big"), NOW + LIFE, NOW)
        if index % 100 == 0:
            meter.add(busy, 1.0)
    assert len(meter._full) == len(spent._ends) == MOST_KEPT
    assert meter.pressure(busy, 1.0) > 1
    assert (2 * MOST_KEPT - 1).to_bytes(4, "big") in spent
    assert bytes(4) not in spent


def test_spent_challenges_are_remembered_until_they_end() -> None:
    """As long as one could be met again, it is known; not much longer."""
    spent = Spent()
    spent.add(b"one", NOW + LIFE, NOW)
    spent.add(b"two", NOW + 2 * LIFE, NOW + LIFE - 1)
    assert b"one" in spent
    spent.add(b"three", NOW + 3 * LIFE, NOW + LIFE)
    assert b"one" not in spent
    assert b"two" in spent


class Days:
    """A room whose people come and go as a test says; a tick a second."""

    def __init__(self, room: Room = ROOM) -> None:
        self.room = room
        self.watch = Watch()
        self.first = self.issued = 1_716_613 * SEGMENT + 9
        self.here: list[int] = []
        self.seen = Snapshot(clock=NOW, issued=self.issued)
        self.watch.observe(room, self.seen)

    def second(self, polling: int = 0, silent: int = 0, walking: int = 0, vanishing: int = 0) -> str:
        """So many join and poll, never come back, walk in and stay, or walk in and vanish."""
        self.here += range(self.issued + 1, self.issued + 1 + polling)
        joined = polling + silent + walking
        self.issued += joined
        before = self.seen.totals
        totals = Totals(
            joined=before.joined + joined,
            admitted=before.admitted + walking,
            vanished=before.vanished + vanishing,
        )
        bits = bytearray(SEGMENT // 8)
        for number in self.here:
            bits[number % SEGMENT // 8] |= 128 >> number % 8
        clock = self.seen.clock + 1000
        line = Line(self.first // SEGMENT, [bytes(bits)])
        self.seen = Snapshot(clock=clock, issued=self.issued, totals=totals, line=line)
        return self.watch.observe(self.room, self.seen)

    def run(self, seconds: int, **joins: int) -> set[str]:
        """Every reason for an alarm in so many seconds."""
        return {self.second(**joins) for _ in range(seconds)} - {""}

    @property
    def everybody(self) -> bool:
        return self.watch.everybody(self.seen.clock)


def test_numbers_that_nobody_holds_raise_the_alarm() -> None:
    """Joins that never come back, from wherever, have everybody challenged within two and a half minutes."""
    days = Days()
    assert days.run(150, polling=5, silent=12) == {"lost"}
    assert days.everybody


@pytest.mark.parametrize(
    "joins",
    [
        {"polling": 100},
        {"polling": 20, "silent": 15},
        {"walking": 60, "vanishing": 20},
        {"silent": 7},
    ],
    ids=["a long line", "some turn away", "walking in", "health checks"],
)
def test_people_raise_no_alarm(joins: dict[str, int]) -> None:
    """Neither many who wait or walk in, nor the few who turn away at once, nor a few checks a second."""
    days = Days()
    assert days.run(300, **joins) == set()
    assert not days.everybody


def test_seats_that_vanish_raise_the_alarm() -> None:
    """Scripts that walk in and never show the cookie are as good as never there."""
    days = Days()
    assert days.run(150, walking=15, vanishing=13) == {"lost"}


def test_far_more_than_ever_raises_the_alarm() -> None:
    """Ten times the busiest minute, and far above what the room lets in: at once, however well they poll."""
    days = Days()
    assert days.run(200, walking=10) == set()
    assert days.run(5, walking=1500) == {"surge"}


@pytest.mark.parametrize(("rate", "joins"), [(600, 150), (6000, 1500)])
def test_a_sale_that_opens_raises_no_alarm(rate: int, joins: int) -> None:
    """A rush of what the room takes in twenty seconds, each second, is a sale."""
    days = Days(replace(ROOM, new_users_per_minute=rate))
    assert days.run(20, walking=joins) == set()


def test_a_store_that_began_anew_raises_no_alarm() -> None:
    """Totals that start at nothing say nothing of those who joined before, nor does a long pause."""
    days = Days()
    days.run(140, polling=10, walking=40)
    days.issued += 10_000
    days.here.clear()
    days.seen = replace(days.seen, totals=Totals())
    assert days.run(140, polling=10) == set()
    days.seen = replace(days.seen, clock=days.seen.clock + 3_600_000)
    days.here.clear()
    assert days.run(140, polling=10) == set()


def test_the_alarm_ends_by_itself() -> None:
    """Two minutes after the last sign of a flood, newcomers join as before."""
    days = Days()
    days.run(150, silent=12)
    days.run(150, polling=5)
    assert days.everybody
    days.run(121, polling=5)
    assert not days.everybody


@pytest.mark.parametrize(("met", "lasts"), [(0, True), (20, True), (90, False)])
def test_unmet_challenges_prolong_the_alarm(met: int, *, lasts: bool) -> None:
    """As long as most challenges go unmet it lasts; people who meet theirs do not prolong it."""
    days = Days()
    days.run(150, silent=12)
    for _ in range(400):
        days.second()
        for index in range(20):
            days.watch.issued(days.seen.clock)
            if index * 5 < met:
                days.watch.met(days.seen.clock)
    assert days.everybody is lasts


def test_unmet_challenges_alone_raise_no_alarm() -> None:
    """One network's storm, which is challenged by itself, does not have everybody else challenged."""
    days = Days()
    for _ in range(10_000):
        days.watch.issued(days.seen.clock)
    assert not days.everybody
