"""What a visitor's cookie proves, and what cookie they are given: the tokens of one gateway."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from waitingroom.answers import Visit
from waitingroom.room import Answer, Arrival
from waitingroom.telemetry import Telemetry
from waitingroom.tickets import InvalidTokenError, Keyring, Token, Use, cookie_name, cookie_names
from waitingroom.visit import cookies, set_cookie

MOST_REMEMBERED = 16_384
"""Verified tokens and renewed passes, each, that are remembered."""


class Credentials:
    """Reads and writes the cookies of a gateway's visitors.

    Args:
        keyring: signs and verifies.
        telemetry: told of cookies that prove nothing.
        wall: Unix time.
    """

    def __init__(self, keyring: Keyring, telemetry: Telemetry, wall: Callable[[], float]) -> None:
        self._keyring = keyring
        self._telemetry = telemetry
        self._wall = wall
        self._verified: dict[tuple[str, bytes], Token] = {}
        self._renewals: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        self._loop = asyncio.get_running_loop()

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """Keys for something else that is signed; none of them tells ours."""
        return self._keyring.derived(purpose)

    def rekey(self, keyring: Keyring) -> None:
        """Sign and verify with these keys from now on; what was proved by others has to be proved anew.

        What a listener remembers of heads, proofs among it, is the listener's to forget.
        """
        self._keyring = keyring
        self._verified.clear()
        self._renewals.clear()

    def recognise(self, visit: Visit) -> None:
        """Take the token from the room's cookie. One that proves nothing is none, and is counted."""
        desk = visit.desk
        known = visit.exchange.head.fields.proofs
        proofs = known[1] if known is not None and known[0] is desk else self._proofs(visit)
        for token, name in proofs:
            reason = desk.refusal(token, visit.started)
            if reason is None:
                if not desk.warm and token.use is not Use.TICKET and token.expires <= self._wall():
                    # The room's clock is not known yet: a pass that its own time has ended holds no seat.
                    token = replace(token, end=0)  # noqa: PLW2901 - the one that counts from here on
                visit.token, visit.cookie = token, name
                if token.arrival is not None or token.use is Use.GUEST:
                    self._catch_up(visit, token)
                return
            self._telemetry.ticket_rejected(reason)

    def _catch_up(self, visit: Visit, token: Token) -> None:
        """An arrival becomes its number once it has one, a guest's pass a ticket when the store is back."""
        now = token
        number = None if token.arrival is None else visit.desk.arrivals.number(token.arrival)
        if number is not None:
            now = replace(now, number=number, arrival=None)
        if token.use is Use.GUEST and not visit.desk.holds(token, visit.started):
            now = self._ticket(visit, now.visitor, now.number, now.epoch, now.arrival)
        if now is not token:
            visit.token = now
            visit.given = self._cookie(visit, now)

    def _proofs(self, visit: Visit) -> list[tuple[Token, bytes]]:
        """The tokens of ours among the cookies; remembered unless a false one has to be counted each time."""
        proofs, sound = [], True
        for name, value in cookies(visit.exchange.head, cookie_names(visit.desk.room.name)):
            try:
                token = self._verify(visit, value)
            except InvalidTokenError as error:
                self._telemetry.ticket_rejected(error.reason)
                sound = False
            else:
                proofs.append((token, name))
        if sound:
            visit.exchange.head.fields.proofs = visit.desk, proofs
        return proofs

    def _verify(self, visit: Visit, value: bytes) -> Token:
        room = visit.desk.room.name
        token = self._verified.get((room, value))
        if token is None:
            token = self._keyring.verify(value, room)
            visit.desk.vouch(token, stands=token.use is Use.PASS and token.expires > self._wall())
            if len(self._verified) >= MOST_REMEMBERED:
                self._verified.clear()
            self._verified[room, value] = token
        return token

    def admit(self, visit: Visit, visitor: str, answer: Answer) -> Token:
        """A pass up to the end of the lease that the store has acknowledged, and no further."""
        token = self._minted(visit, Use.PASS, visitor, answer.number, answer.epoch, answer.until)
        visit.token = token
        visit.given = self._cookie(visit, token)
        return token

    def ticket(self, visit: Visit, visitor: str, answer: Answer) -> bytes:
        """A ticket with the number of an answer, as the Set-Cookie line that carries it."""
        visit.token = self._ticket(visit, visitor, answer.number, answer.epoch, None)
        return self._cookie(visit, visit.token)

    def arrive(self, visit: Visit, visitor: str, arrival: Arrival) -> bytes:
        """A ticket for somebody who came while the store was away, as the Set-Cookie line that carries it."""
        visit.token = self._ticket(visit, visitor, 0, visit.desk.room.epoch, arrival)
        return self._cookie(visit, visit.token)

    def let_in(self, visit: Visit, token: Token, seconds: float) -> None:
        """A pass that counts while the store is away, for at most so long, and is a ticket afterwards."""
        end = visit.desk.clock(visit.started) + int(seconds * 1000)
        guest = self._minted(visit, Use.GUEST, token.visitor, token.number, token.epoch, end)
        visit.token = replace(guest, arrival=token.arrival)
        visit.given = self._cookie(visit, visit.token)

    def reissued(self, visit: Visit) -> bytes:
        """The same token under today's cookie name, where it came under another: no move loses a place."""
        token, room = visit.token, visit.desk.room
        if visit.given:
            return visit.given
        if token is None or visit.cookie.decode() == cookie_name(
            room.name, visit.client.scheme, room.cookie_domain
        ):
            return b""
        return self._cookie(visit, token)

    def renewal(self, visit: Visit, token: Token, end: int) -> bytes:
        """A pass up to `end`; the one that requests made at the same time were given will do as well."""
        key = (token.room, token.seat, visit.client.scheme)
        given = self._renewals.get(key)
        if given is None or visit.desk.outgrown(given[0], end):
            renewed = self._minted(visit, Use.PASS, token.visitor, token.number, token.epoch, end)
            if len(self._renewals) >= MOST_REMEMBERED:
                self._renewals.clear()
            given = self._renewals[key] = (end, self._cookie(visit, renewed))
        return given[1]

    def _ticket(self, visit: Visit, visitor: str, number: int, epoch: int, arrival: Arrival | None) -> Token:
        desk = visit.desk
        # The store's clock is Unix time, and the room's never ahead of it.
        clock = desk.clock(self._loop.time()) if desk.warm else int(self._wall() * 1000)
        end = clock + int(desk.room.hold_for * 1000)
        ticket = self._minted(visit, Use.TICKET, visitor, number, epoch, end)
        return ticket if arrival is None else replace(ticket, arrival=arrival)

    def _minted(self, visit: Visit, use: Use, visitor: str, number: int, epoch: int, end: int) -> Token:
        wall = self._wall()
        lasts = max(0.0, (end - visit.desk.clock(self._loop.time())) / 1000)
        return Token(use, visit.desk.room.name, visitor, number, epoch, end, int(wall), int(wall + lasts))

    def _cookie(self, visit: Visit, token: Token) -> bytes:
        # The cookie outlives a pass: past its end the pass still says which lease may be renewed.
        life = int(visit.desk.room.hold_for)
        return set_cookie(visit.desk.room, visit.client.scheme, self._keyring.sign(token), life)
