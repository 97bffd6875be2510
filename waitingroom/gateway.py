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
from waitingroom.credentials import Credentials
from waitingroom.desk import Desk
from waitingroom.endpoints import Endpoints
from waitingroom.exchange import Exchange
from waitingroom.heads import ResponseHead
from waitingroom.metrics import OriginError
from waitingroom.newcomers import Newcomers
from waitingroom.pages import Form
from waitingroom.proxy import Failure, Upstream
from waitingroom.requestlog import Verdict
from waitingroom.room import Answer, Entry, Knock, Method, State, bypasses, protects, rank_rooms
from waitingroom.store import Store, StoreUnavailableError, UnknownRoomError
from waitingroom.telemetry import Telemetry
from waitingroom.tickets import Keyring, Token, Use
from waitingroom.visit import (
    host_of,
    kept_by_all,
    query_value,
    set_cookie,
    strangers,
)

_log = structlog.get_logger()

MOST_REMEMBERED = 16_384
"""Host headers whose meaning is remembered."""

CHALLENGE: Final = b"challenge"
"""What the keys are for that newcomers' challenges are signed with."""

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
        credentials: what cookies prove, and new ones.
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
        credentials: Credentials,
        telemetry: Telemetry,
        *,
        upstream: Callable[[str], Upstream[Visit]],
        wall: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._desks = desks
        self._store = store
        self._answers = answers
        self._credentials = credentials
        self._telemetry = telemetry
        self._upstream = upstream
        self._wall = wall
        self._jitter = jitter
        self._routes: dict[bytes, list[Desk]] = {}
        self._strangers = strangers()
        self._name = next(self._strangers)
        self._loop = asyncio.get_running_loop()
        self._newcomers = Newcomers(desks, answers, telemetry, credentials.derived(CHALLENGE))
        self._endpoints = Endpoints(answers, wall, jitter, self._newcomers.join)

    def handle(self, exchange: Exchange) -> None:
        """Decide about one request."""
        visit = Visit(exchange, self._loop.time())
        desk = self._desk_of(visit)
        if desk is None:
            self._answers.nowhere(visit)
            return
        visit.desk = desk
        self._credentials.recognise(visit)
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
            lines = (
                self._credentials.reissued(visit)
                if end is None
                else self._credentials.renewal(visit, token, end)
            )
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

    def rekey(self, keyring: Keyring) -> None:
        """Sign and verify with these keys from now on."""
        self._credentials.rekey(keyring)
        self._newcomers.rekey(self._credentials.derived(CHALLENGE))

    def _goes_round(self, visit: Visit) -> bool:
        room = visit.desk.room
        # Only a path that cannot be read in two ways may go round the queue.
        if not room.bypass_paths:
            return visit.desk.off
        plain = visit.exchange.head.path.partition(b"?")[0] == visit.path.encode()
        return visit.desk.off or (plain and bypasses(room, visit.path))

    def _decide(self, visit: Visit) -> None:
        """Who has no seat that we know of walks in, claims one, or is told to wait."""
        desk, token, form, now = visit.desk, visit.token, visit.form, visit.started
        if token is not None and self._newcomers.exchanged(token):
            token = visit.token = None
        if token is None:
            if form not in _JOINING and not desk.open:
                self._answers.tell(visit, desk.say(State.WAITING), form)
            elif self._newcomers.stop(visit):
                pass
            elif form in _JOINING and desk.arrivals.open:
                self._arrive(visit)
            else:
                self._knock(visit, Knock(next(self._strangers), wait=form in _JOINING))
        elif token.use is Use.PASS:
            # The lease may well live on: other gateways, or later requests, have prolonged it.
            self._knock_again(visit, token, wait=form in _JOINING)
        elif form not in _JOINING:
            self._answers.tell(visit, desk.poll(token, now, self._jitter()), form)
        elif self._opened(visit):
            pass
        elif token.arrival is None and desk.called(token.number, now):
            self._knock_again(visit, token, join=False)
        else:
            status = desk.visit(token, now, self._jitter())
            self._answers.tell(visit, status, form, self._credentials.reissued(visit))

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
        if visit.token is not None and answer.number not in (0, knock.number):
            self._newcomers.exchange(visit.token, desk.clock(visit.started))
        if answer.entry in (Entry.INSIDE, Entry.TRIAL):
            self._enter(visit, knock, answer)
            return
        if answer.entry is Entry.LATER:
            self._without_store(visit)
            return
        cookie = self._credentials.reissued(visit)
        if answer.entry is Entry.WAIT:
            if visit.token is None or visit.token.use is Use.PASS or answer.number != knock.number:
                cookie = self._credentials.ticket(visit, knock.visitor, answer)
            assert visit.token is not None
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
        token = self._credentials.admit(visit, knock.visitor, answer)
        visit.desk.enter(token, trial=answer.entry is Entry.TRIAL)
        self._forward(visit, "claimed" if knock.number else "forwarded")

    def _without_store(self, visit: Visit) -> None:
        """Whoever was inside stays inside, places are kept, and of newcomers is noted when they came."""
        desk, token = visit.desk, visit.token
        if token is not None and token.use is Use.PASS and desk.lived(token):
            desk.touch(token)
            self._forward(visit, "forwarded")
        elif token is not None and token.use is Use.TICKET and token.arrival is None:
            status = desk.visit(token, self._loop.time(), self._jitter())
            self._answers.tell(visit, status, visit.form, self._credentials.reissued(visit))
        elif token is None and visit.form in _JOINING and desk.room.queueing_method is Method.FIFO:
            self._arrive(visit)
        else:
            self._answers.tell(visit, desk.say(State.UNAVAILABLE, poll_after=5.0), visit.form)

    def _arrive(self, visit: Visit) -> None:
        """A ticket that says when its holder came: they are numbered in that order when the store is back."""
        desk, now = visit.desk, self._loop.time()
        arrival = desk.arrive(self._name, now, self._wall())
        cookie = self._credentials.arrive(visit, next(self._strangers), arrival)
        if not self._opened(visit):
            self._answers.tell(visit, desk.await_number(now), visit.form, cookie)

    def _opened(self, visit: Visit) -> bool:
        """Let somebody with a ticket in if it is their turn in a room that opens while the store is away."""
        desk, token = visit.desk, visit.token
        if token is None or not desk.lets_in(token, visit.started):
            return False
        self._credentials.let_in(visit, token, desk.room.outage_limit)
        self._forward(visit, "forwarded")
        return True

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
        return (
            self._credentials.reissued(case) if end is None else self._credentials.renewal(case, token, end)
        )

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
        bad = kind is not None or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        late = latency is not None and latency > case.desk.room.slow_after
        if case.token is not None and case.token.use is Use.PASS:
            case.desk.weigh(case.token, failed=bad or late)
        if kind is not None:
            self._telemetry.origin_failed(room, kind)
            verdict = "error"
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._telemetry.origin_failed(room, "answer")
        self._answers.note(case, verdict, status, sent, latency)


def _revokes(head: ResponseHead) -> bool:
    return any(b"revoke" in head.notable.get(name, b"") for name in COMMANDS)
