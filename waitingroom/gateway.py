"""The public listener's mind: request to verdict to response.

Whoever is inside goes through without a call to the store; whoever waits is answered from memory. Only
joining, claiming, and a pass past its end ask the store; all who do so in one turn of the event loop share
one call.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog

from waitingroom.answers import PLAIN, Answers, Visit
from waitingroom.desk import Desk
from waitingroom.endpoints import Endpoints
from waitingroom.exchange import Exchange
from waitingroom.heads import ResponseHead
from waitingroom.pages import Form
from waitingroom.proxy import Failure, Upstream
from waitingroom.requestlog import Verdict
from waitingroom.room import Answer, Entry, Knock, Method, State, bypasses, protects, rank_rooms
from waitingroom.store import Store, StoreUnavailableError, UnknownRoomError
from waitingroom.telemetry import OriginError, Telemetry
from waitingroom.tickets import InvalidTokenError, Keyring, Token, Use, cookie_name, cookie_names
from waitingroom.visit import (
    cookies,
    host_of,
    kept_by_all,
    query_value,
    set_cookie,
    strangers,
)

_log = structlog.get_logger()

MOST_REMEMBERED = 16_384
"""Verified tokens, renewed passes and Host headers, each, whose meaning is remembered."""

COMMANDS: Final = (b"waiting-room-command", b"cf-waiting-room-command")

_FAILURES: Final[Mapping[Failure, OriginError]] = {
    Failure.CONNECT: "connect",
    Failure.CONNECT_TIMEOUT: "timeout",
    Failure.FIRST_BYTE_TIMEOUT: "timeout",
    Failure.IDLE_TIMEOUT: "timeout",
    Failure.RESET: "reset",
    Failure.MALFORMED: "protocol",
    Failure.BUSY: "connect",
}
_JOINING: Final = (Form.PAGE, Form.JSON)
"""The forms of navigations; only these may be given a place in line. All else walks in, or is refused."""


class Gateway:
    """Decides about every request that the public listener takes.

    Args:
        desks: the rooms by name.
        store: asked only by those who join or claim.
        answers: tells people who are not sent on.
        keyring: signs and verifies.
        telemetry: told what the origin does.
        upstream: gives the `Upstream` of an address.
        wall: Unix time.
        jitter: random numbers in [0, 1).
    """

    def __init__(
        self,
        desks: Mapping[str, Desk],
        store: Store,
        answers: Answers,
        keyring: Keyring,
        telemetry: Telemetry,
        *,
        upstream: Callable[[str], Upstream[Visit]],
        wall: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._desks = desks
        self._store = store
        self._answers = answers
        self._keyring = keyring
        self._telemetry = telemetry
        self._upstream = upstream
        self._wall = wall
        self._jitter = jitter
        self._verified: dict[tuple[str, bytes], Token] = {}
        self._routes: dict[bytes, list[Desk]] = {}
        self._strangers = strangers()
        self._renewals: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._endpoints = Endpoints(answers, wall, jitter)

    def handle(self, exchange: Exchange) -> None:
        """Decide about one request."""
        visit = Visit(exchange, self._loop.time())
        desk = self._desk_of(visit)
        if desk is None:
            self._answers.nowhere(visit)
            return
        visit.desk = desk
        self._recognise(visit)
        if visit.ours is not None:
            self._serve(visit, visit.ours)
        elif visit.token is not None and desk.holds(visit.token, visit.started):
            desk.touch(visit.token)
            self._forward(visit, "forwarded")
        elif self._goes_round(visit):
            self._forward(visit, "bypassed")
        else:
            self._decide(visit)

    def _serve(self, visit: Visit, ours: str) -> None:
        if ours == "decision":
            self._rule(visit)
        else:
            self._endpoints.serve(visit, ours)

    def _rule(self, visit: Visit) -> None:
        """Tell an edge that asks for each request whether it may pass; whoever may not is for us to answer.

        Never anything but 204 and 401: edges take other statuses for failures, some of which open the door.
        """
        desk, token = visit.desk, visit.token
        if token is not None and desk.holds(token, visit.started):
            desk.touch(token)
            end = desk.renewed(token)
            lines = self._reissued(visit) if end is None else self._renewal(visit, token, end)
            self._answers.respond(visit, "forwarded", 204, lines)
        elif desk.off:
            self._answers.respond(visit, "bypassed", 204, b"")
        else:
            self._answers.respond(visit, "answered", 401, b"Cache-Control: no-store\r\n")

    def _desk_of(self, visit: Visit) -> Desk | None:
        path = visit.path
        if visit.ours is not None:
            name = query_value(visit.exchange.head.target, b"room")
            if name is not None:
                return self._desks.get(name.decode("latin-1"))
            path = "/"
        for desk in self._routes.get(visit.client.host) or self._ranked(visit.client.host):
            if protects(desk.room, path):
                return desk
        return None

    def _ranked(self, authority: bytes) -> list[Desk]:
        rooms = rank_rooms((desk.room for desk in self._desks.values()), host_of(authority))
        if len(self._routes) >= MOST_REMEMBERED:
            self._routes.clear()
        self._routes[authority] = ranked = [self._desks[room.name] for room in rooms]
        return ranked

    def reroute(self) -> None:
        """Look at the rooms anew: one of them has changed."""
        self._routes.clear()

    def _goes_round(self, visit: Visit) -> bool:
        room = visit.desk.room
        # Only a path that cannot be read in two ways may go round the queue.
        if not room.bypass_paths:
            return visit.desk.off
        plain = visit.exchange.head.path.partition(b"?")[0] == visit.path.encode()
        return visit.desk.off or (plain and bypasses(room, visit.path))

    def _recognise(self, visit: Visit) -> None:
        """Take the token from the room's cookie. One that proves nothing is none, and is counted."""
        desk = visit.desk
        known = visit.exchange.head.fields.proofs
        proofs = known[1] if known is not None and known[0] is desk else self._proofs(visit)
        for token, name in proofs:
            reason = desk.refusal(token, visit.started)
            if reason is None:
                visit.token, visit.cookie = token, name
                return
            self._telemetry.ticket_rejected(reason)

    def _proofs(self, visit: Visit) -> list[tuple[Token, bytes]]:
        """The tokens of ours among the cookies; remembered unless a false one has to be counted each time."""
        room, proofs, sound = visit.desk.room.name, [], True
        for name, value in cookies(visit.exchange.head, cookie_names(room)):
            try:
                token = self._verify(room, value)
            except InvalidTokenError as error:
                self._telemetry.ticket_rejected(error.reason)
                sound = False
            else:
                proofs.append((token, name))
        if sound:
            visit.exchange.head.fields.proofs = visit.desk, proofs
        return proofs

    def _verify(self, room: str, value: bytes) -> Token:
        token = self._verified.get((room, value))
        if token is None:
            token = self._keyring.verify(value, room)
            if len(self._verified) >= MOST_REMEMBERED:
                self._verified.clear()
            self._verified[room, value] = token
        return token

    def _decide(self, visit: Visit) -> None:
        """Who has no seat that we know of walks in, claims one, or is told to wait."""
        desk, token, form, now = visit.desk, visit.token, visit.form, visit.started
        if token is None:
            if form in _JOINING or desk.open:
                self._knock(visit, Knock(next(self._strangers), wait=form in _JOINING))
            else:
                self._answers.tell(visit, desk.say(State.WAITING), form)
        elif token.use is Use.PASS:
            # The lease may well live on: other gateways, or later requests, have prolonged it.
            self._knock_again(visit, token, wait=form in _JOINING)
        elif form not in _JOINING:
            self._answers.tell(visit, desk.poll(token, now, self._jitter()), form)
        elif desk.called(token.number, now):
            self._knock_again(visit, token, join=False)
        else:
            status = desk.visit(token, now, self._jitter())
            self._answers.tell(visit, status, form, self._reissued(visit))

    def _knock_again(self, visit: Visit, token: Token, *, join: bool = True, wait: bool = True) -> None:
        self._knock(visit, Knock(token.visitor, token.number, token.epoch, token.lane, join, wait))

    def _knock(self, visit: Visit, knock: Knock) -> None:
        answered = self._store.knock(visit.desk.room.name, knock)
        answered.add_done_callback(partial(self._answered, visit, knock))

    def _answered(self, visit: Visit, knock: Knock, future: "asyncio.Future[Answer]") -> None:
        try:
            self._heed(visit, knock, future.result())
        except (StoreUnavailableError, UnknownRoomError):
            self._without_store(visit)
        except Exception:  # noqa: BLE001 - see below
            # No caller is left who could answer.
            _log.exception("knock_failed", room=visit.desk.room.name)
            visit.exchange.respond(500, PLAIN, b"500 the request could not be handled\n")

    def _heed(self, visit: Visit, knock: Knock, answer: Answer) -> None:
        desk = visit.desk
        if answer.entry in (Entry.INSIDE, Entry.TRIAL):
            self._enter(visit, knock, answer)
            return
        cookie = self._reissued(visit)
        if answer.entry is Entry.WAIT:
            if visit.token is None or visit.token.use is Use.PASS or answer.number != knock.number:
                visit.token = self._ticket(visit, knock.visitor, answer)
                cookie = self._cookie(visit, visit.token)
            told = (self._loop.time(), self._jitter())
            back = answer.number == knock.number
            status = desk.visit(visit.token, *told) if back else desk.look(answer.number, *told)
        elif answer.entry is Entry.MOMENT:
            wait = max(1.0, answer.until / 1000)
            status = desk.say(State.YOUR_TURN, poll_after=wait, until=desk.room.claim_window)
        elif answer.entry is Entry.FULL:
            refused = desk.room.queueing_method is Method.REJECT
            status = desk.say(State.FULL if refused else State.WAITING, poll_after=30.0)
        else:
            status = desk.say(State.ENDED, poll_after=60.0)
        self._answers.tell(visit, status, visit.form, cookie)

    def _enter(self, visit: Visit, knock: Knock, answer: Answer) -> None:
        """Mint a pass up to the end of the lease that the store has acknowledged, and no further."""
        visit.token = self._minted(visit, Use.PASS, knock.visitor, answer.number, answer.epoch, answer.until)
        visit.desk.enter(visit.token)
        visit.given = self._cookie(visit, visit.token)
        self._forward(visit, "claimed" if knock.number else "forwarded")

    def _without_store(self, visit: Visit) -> None:
        """Whoever was inside stays inside; everybody else is told that nothing is lost."""
        desk, token = visit.desk, visit.token
        if token is not None and token.use is Use.PASS and desk.lived(token):
            desk.touch(token)
            self._forward(visit, "forwarded")
        else:
            self._answers.tell(visit, desk.say(State.UNAVAILABLE, poll_after=5.0), visit.form)

    def _minted(self, visit: Visit, use: Use, visitor: str, number: int, epoch: int, end: int) -> Token:
        wall = self._wall()
        lasts = max(0.0, (end - visit.desk.clock(self._loop.time())) / 1000)
        return Token(use, visit.desk.room.name, visitor, number, epoch, end, int(wall), int(wall + lasts))

    def _ticket(self, visit: Visit, visitor: str, answer: Answer) -> Token:
        end = visit.desk.clock(self._loop.time()) + int(visit.desk.room.hold_for * 1000)
        return self._minted(visit, Use.TICKET, visitor, answer.number, answer.epoch, end)

    def _cookie(self, visit: Visit, token: Token) -> bytes:
        # The cookie outlives a pass: past its end the pass still says which lease may be renewed.
        life = int(visit.desk.room.hold_for)
        return set_cookie(visit.desk.room, visit.client.scheme, self._keyring.sign(token), life)

    def _reissued(self, visit: Visit) -> bytes:
        """The same token under today's cookie name, where it came under another: no move loses a place."""
        token, room = visit.token, visit.desk.room
        if token is None or visit.cookie.decode() == cookie_name(
            room.name, visit.client.scheme, room.cookie_domain
        ):
            return b""
        return self._cookie(visit, token)

    def _forward(self, visit: Visit, verdict: Verdict) -> None:
        visit.verdict = verdict
        self._upstream(visit.desk.room.upstream).forward(visit.exchange, visit)

    def answered(self, case: Visit, head: ResponseHead) -> bytes:
        """Header lines for the shopper: a new pass, or none at all once the origin has ended the seat."""
        desk, token = case.desk, case.token
        if token is None:
            return b""
        if head.said is None:
            head.said = _revokes(head), kept_by_all(head)
        revokes, shared = head.said
        if revokes and token.use is Use.PASS:
            desk.leave(token, self._loop.time())
            return set_cookie(desk.room, case.client.scheme, "", 0)
        # What a shared cache may keep must not carry somebody's pass: a first one makes the answer private,
        # a later one waits for an answer that is.
        if case.given:
            return case.given + b"Cache-Control: private\r\n" if shared else case.given
        if shared:
            return b""
        end = desk.renewed(token)
        return self._reissued(case) if end is None else self._renewal(case, token, end)

    def failed(self, case: Visit, status: int, reason: str) -> None:
        """Answer where the origin did not."""
        self._answers.failed(case, status, reason)

    def ended(
        self, case: Visit, status: int, latency: float | None, sent: int, failure: Failure | None
    ) -> None:
        """Note how a forwarded request ended."""
        room, verdict = case.desk.room.name, case.verdict
        if latency is not None:
            self._telemetry.origin(room, latency)
        kind = _FAILURES.get(failure) if failure else None
        if kind is not None:
            self._telemetry.origin_failed(room, kind)
            verdict = "error"
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._telemetry.origin_failed(room, "answer")
        self._answers.note(case, verdict, status, sent, latency)

    def _renewal(self, visit: Visit, token: Token, end: int) -> bytes:
        """A pass up to `end`; the one that requests made at the same time were given will do as well."""
        key = (token.room, token.seat, visit.client.scheme)
        given = self._renewals.get(key)
        if given is None or visit.desk.outgrown(given[0], end):
            renewed = self._minted(visit, Use.PASS, token.visitor, token.number, token.epoch, end)
            if len(self._renewals) >= MOST_REMEMBERED:
                self._renewals.clear()
            given = self._renewals[key] = (end, self._cookie(visit, renewed))
        return given[1]


def _revokes(head: ResponseHead) -> bool:
    return any(b"revoke" in head.notable.get(name, b"") for name in COMMANDS)
