"""Newcomers: who may join at once, and who has to show a browser before.

Nothing is stored about anybody who is challenged, and the store is not asked. What a gateway remembers for it
is bounded, and its own: another gateway starts counting anew.
"""

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil

import structlog

from waitingroom.answers import PLAIN, Answers, Visit
from waitingroom.challenge import (
    NONCE,
    Challenge,
    Meter,
    Seal,
    Spent,
    Watch,
    difficulty,
    prefix_of,
)
from waitingroom.desk import Desk
from waitingroom.metrics import ChallengeOutcome
from waitingroom.pages import Form
from waitingroom.room import Snapshot, State
from waitingroom.telemetry import Telemetry
from waitingroom.tickets import Token, Use, cookie_names
from waitingroom.visit import PROOF, cookies, query_value, return_path, set_cookie

_DAY = 86_400_000

_log = structlog.get_logger()


class Newcomers:
    """Lets newcomers of this gateway join, or challenges them.

    Args:
        desks: the rooms by name.
        answers: sets the challenges.
        telemetry: counts them.
        keys: sign them; the first signs, all verify.
    """

    def __init__(
        self, desks: Mapping[str, Desk], answers: Answers, telemetry: Telemetry, keys: Sequence[bytes]
    ) -> None:
        self._desks = desks
        self._answers = answers
        self._telemetry = telemetry
        self._seal = Seal(keys)
        self._joins, self._waits = Meter(), Meter()
        self._spent, self._exchanged = Spent(), Spent()
        self._watches: defaultdict[str, Watch] = defaultdict(Watch)
        self._observed: dict[str, Snapshot] = {}
        telemetry.challenging(self.everybody)

    def rekey(self, keys: Sequence[bytes]) -> None:
        """Sign challenges with these keys from now on; those that were set stand with their key."""
        self._seal = Seal(keys)

    def everybody(self, room: str) -> bool:
        """Whether everybody new to a room is challenged, as of its last snapshot."""
        desk = self._desks.get(room)
        if desk is None or desk.room.challenge != "auto":
            return desk is not None and desk.room.challenge == "on"
        return self._watches[room].everybody(desk.snapshot.clock)

    def stop(self, visit: Visit) -> bool:
        """Whether a newcomer may not join yet; they have been answered then."""
        desk, now = visit.desk, visit.started
        room, prefix = desk.room, prefix_of(visit.client.address)
        if room.challenge == "off":
            return False
        self._observe(desk)
        key, everybody = (room.name, prefix), self.everybody(room.name)
        pressure = self._joins.pressure(key, now) if prefix else 0.0
        if pressure <= 1 and not everybody:
            if prefix:
                self._joins.add(key, now)
            return False
        if visit.form not in (Form.PAGE, Form.JSON):
            self._answers.tell(visit, desk.say(State.WAITING), visit.form)
            return True
        carried = self._carried(visit, prefix)
        if carried is None:
            if prefix:
                self._joins.add(key, now)
            carried = self._issue(visit, prefix, pressure)
        elif self._redeem(visit, carried, key):
            return False
        self._set(visit, carried)
        return True

    def _observe(self, desk: Desk) -> None:
        name, seen = desk.room.name, desk.snapshot
        if self._observed.get(name) is not seen:
            self._observed[name] = seen
            before = self.everybody(name)
            reason = self._watches[name].observe(desk.room, seen)
            if reason and not before:
                _log.warning("everybody_new_is_challenged", room=name, reason=reason)

    def _issue(self, visit: Visit, prefix: str, pressure: float) -> Challenge:
        desk, room = visit.desk, visit.desk.room
        bits, clock = difficulty(room.challenge_difficulty, pressure), desk.clock(visit.started)
        if pressure <= 1:
            self._watches[room.name].issued(clock)
        self._count(visit, "issued")
        return self._seal.challenge(room.name, prefix, bits, clock, secrets.token_bytes(NONCE))

    def _carried(self, visit: Visit, prefix: str) -> Challenge | None:
        """The challenge that a newcomer has been set and not yet used."""
        room, clock = visit.desk.room.name, visit.desk.clock(visit.started)
        for _, value in cookies(visit.exchange.head, cookie_names(room + PROOF)):
            challenge = self._seal.read(value, room, prefix, clock)
            if challenge is not None and challenge.nonce not in self._spent:
                return challenge
        return None

    def _redeem(self, visit: Visit, challenge: Challenge, key: tuple[str, str]) -> bool:
        """Whether a challenge is met, by work or by patience; it is good for one join."""
        clock, now = visit.desk.clock(visit.started), visit.started
        outcome: ChallengeOutcome = "solved" if challenge.solved else "waited"
        if outcome == "waited":
            # Scripts can wait as well as people do: a network gets no more numbers by it than it has free.
            if challenge.left(clock) > 0 or self._waits.pressure(key, now) > 1:
                return False
            self._waits.add(key, now)
        self._spent.add(challenge.nonce, challenge.end, clock)
        self._watches[visit.desk.room.name].met(clock)
        self._count(visit, outcome)
        return True

    def _set(self, visit: Visit, challenge: Challenge) -> None:
        """Answer with a challenge. Its cookie lets a reload go on with it, and an app join by waiting."""
        clock = visit.desk.clock(visit.started)
        left = ceil(challenge.left(clock)) or challenge.delay
        self._answers.challenge(visit, challenge, left, self._cookie(visit, challenge.text, challenge, clock))

    def join(self, visit: Visit) -> None:
        """Somebody has met a challenge: back to where they came from, where it lets them join.

        What proves nothing leads back there too, where a new challenge awaits them.
        """
        head, desk = visit.exchange.head, visit.desk
        if head.method != b"POST":
            self._answers.respond(visit, "refused", 405, PLAIN + b"Allow: POST\r\n", b"Joining is a POST.\n")
            return
        lines = b"Location: %b\r\n" % return_path(head, visit.client.host, desk.room.path)
        lines += b"Cache-Control: no-store\r\n"
        clock = desk.clock(visit.started)
        value = query_value(head.target, b"proof") or b""
        challenge = self._seal.read(value, desk.room.name, prefix_of(visit.client.address), clock)
        if challenge is None or challenge.nonce in self._spent or (challenge.answer and not challenge.solved):
            self._count(visit, "refused")
        else:
            lines += self._cookie(visit, challenge.carried, challenge, clock)
        self._answers.respond(visit, "answered", 303, lines)

    def exchange(self, token: Token, clock: int) -> None:
        """Note that a pass whose seat has ended was good for another number."""
        self._exchanged.add(_name(token), clock + _DAY, clock)

    def exchanged(self, token: Token) -> bool:
        """Whether that is so: else one old pass would be good for any number of them."""
        return token.use is Use.PASS and _name(token) in self._exchanged

    def _cookie(self, visit: Visit, value: str, challenge: Challenge, clock: int) -> bytes:
        life = ceil((challenge.end - clock) / 1000)
        return set_cookie(visit.desk.room, visit.client.scheme, value, life, PROOF)

    def _count(self, visit: Visit, outcome: ChallengeOutcome) -> None:
        self._telemetry.challenge(visit.desk.room.name, outcome)


def _name(token: Token) -> bytes:
    return f"{token.room}:{token.seat}".encode()
