"""How a visitor is told: one request on its way, and the forms in which the gateway itself answers it."""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from waitingroom.challenge import PARTS, Challenge
from waitingroom.documents import challenge_json, cloudflare_json, problem_json, status_json
from waitingroom.exchange import Exchange
from waitingroom.metrics import NO_ROOM
from waitingroom.pages import Form, Page, Pages, Trouble, negotiate
from waitingroom.requestlog import Served, Verdict
from waitingroom.room import Room, State, Status
from waitingroom.telemetry import Telemetry
from waitingroom.visit import OURS, asked_for, host_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from waitingroom.desk import Desk
    from waitingroom.forwarded import Client
    from waitingroom.tickets import Token

PLAIN: Final = b"Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"
_JSON: Final = b"Cache-Control: no-store\r\nX-Robots-Tag: noindex\r\nX-Content-Type-Options: nosniff\r\n"
_TROUBLES: Final = {502: Trouble.ORIGIN_DOWN, 503: Trouble.BUSY, 504: Trouble.ORIGIN_SLOW}


class Visit:
    """One request on its way through the gateway.

    Attributes:
        started: when it came, on the event loop's clock.
        path: the path as an origin may read it.
        ours: what is asked for under our own paths, None if the storefront is.
        desk: the room that it is for, None if no room protects it.
        token: what its cookie proves, as far as it is believed; `cookie` is the name that it came under.
        verdict: what becomes of it, once it is sent on.
        given: a Set-Cookie line that its answer has to carry, whoever answers.
    """

    __slots__ = (
        "_form",
        "client",
        "cookie",
        "desk",
        "exchange",
        "given",
        "ours",
        "path",
        "started",
        "token",
        "verdict",
    )

    def __init__(self, exchange: Exchange, started: float) -> None:
        self.exchange = exchange
        self.client: Client = exchange.client
        self.started = started
        self.path, self.ours = asked_for(exchange.head.path)
        self.desk: Desk
        self.token: Token | None = None
        self.verdict: Verdict
        self._form: Form | None = None
        self.cookie = self.given = b""

    @property
    def form(self) -> Form:
        """The form in which the visitor can be told something."""
        if self._form is None:
            head = self.exchange.head
            self._form = negotiate(
                head.method,
                head.get(b"accept") or b"",
                dest=head.get(b"sec-fetch-dest") or b"",
                mode=head.get(b"sec-fetch-mode") or b"",
                purpose=head.get(b"sec-purpose") or b"",
            )
        return self._form

    @property
    def target(self) -> str:
        """Path and query, as they were asked for."""
        return self.exchange.head.path.decode("latin-1")


class Answers:
    """Says things to visitors, and notes every request that has been answered; `wall` is Unix time."""

    def __init__(self, pages: Pages, telemetry: Telemetry, wall: Callable[[], float]) -> None:
        self._pages = pages
        self._telemetry = telemetry
        self._wall = wall
        self._loop = asyncio.get_running_loop()

    def tell(self, visit: Visit, status: Status, form: Form, cookie: bytes = b"") -> None:
        """Tell a visitor that they have to wait, and where they stand, in the form that they can read."""
        room = visit.desk.room
        status.updated = self._wall()
        if form is Form.PAGE:
            page = self._pages.render(
                room,
                status,
                host=host_of(visit.client.host),
                languages=visit.exchange.head.get(b"accept-language") or b"",
                accepts_gzip=_accepts_gzip(visit),
                again=f"{OURS}here?room={room.name}&anew=1",
                target=visit.target,
            )
            self.respond(visit, "waiting_page", room.queueing_status_code, _lines(page, cookie), page.body)
        elif form is Form.JSON:
            lines = _told(status, b"application/json") + cookie
            self.respond(
                visit, "waiting_page", room.queueing_status_code, lines, cloudflare_json(room, status)
            )
        elif form is Form.FORM:
            page = self._trouble(visit, Trouble.NOT_SENT, room)
            self.respond(visit, "refused", 429, _lines(page, cookie), page.body)
        else:
            lines = _told(status, b"application/problem+json") + cookie
            self.respond(visit, "refused", 429, lines, problem_json(status))

    def challenge(self, visit: Visit, challenge: Challenge, left: int, cookie: bytes) -> None:
        """Set a newcomer a challenge that patience meets in `left` seconds, as a page or in JSON."""
        room, head = visit.desk.room, visit.exchange.head
        if visit.form is Form.PAGE:
            page = self._pages.render_challenge(
                room,
                challenge,
                left,
                host=host_of(visit.client.host),
                languages=head.get(b"accept-language") or b"",
                accepts_gzip=_accepts_gzip(visit),
                target=visit.target,
            )
            self.respond(visit, "challenged", room.queueing_status_code, _lines(page, cookie), page.body)
            return
        status = visit.desk.say(State.WAITING, poll_after=left)
        status.updated = self._wall()
        told = {
            "proof": challenge.text,
            "parts": PARTS,
            "bits": challenge.part_bits,
            "delay": left,
            "submit": f"{OURS}join?room={room.name}&proof=",
        }
        lines = b"%bContent-Type: application/json\r\nWaiting-Room: challenge\r\nRetry-After: %d\r\n%b"
        body = challenge_json(cloudflare_json(room, status), told)
        self.respond(visit, "challenged", 429, lines % (_JSON, left, cookie), body)

    def document(self, visit: Visit, verdict: Verdict, status: Status, cookie: bytes = b"") -> None:
        """Answer with the bare status document."""
        status.updated = self._wall()
        self.respond(visit, verdict, 200, _told(status, b"application/json") + cookie, status_json(status))

    def failed(self, visit: Visit, status: int, reason: str) -> None:
        """Answer where the origin did not: 502, 503 or 504, as a page that tries again by itself.

        The request is noted when its forwarding ends.
        """
        if visit.form not in (Form.PAGE, Form.FORM):
            lines = PLAIN + b"Retry-After: 5\r\n" + visit.given
            visit.exchange.respond(status, lines, f"{status} {reason}\n".encode())
            return
        page = self._trouble(visit, _TROUBLES.get(status, Trouble.ORIGIN_DOWN), visit.desk.room)
        visit.exchange.respond(status, _lines(page, visit.given), page.body)

    def _trouble(self, visit: Visit, trouble: Trouble, room: Room) -> Page:
        head = visit.exchange.head
        return self._pages.render_error(
            room,
            trouble,
            host=host_of(visit.client.host),
            languages=head.get(b"accept-language") or b"",
            accepts_gzip=_accepts_gzip(visit),
            # Only what may be asked for twice is asked for again.
            retry_after=5 if head.method == b"GET" else None,
            target=visit.target,
        )

    def nowhere(self, visit: Visit) -> None:
        """Answer a request that no room is for."""
        visit.exchange.respond(404, PLAIN, b"No room of this gateway protects this host and path.\n")
        self._telemetry.request(self._served(visit, NO_ROOM, "refused", 404, 0, None))

    def respond(self, visit: Visit, verdict: Verdict, code: int, lines: bytes, body: bytes = b"") -> None:
        """Answer with these header lines and this body."""
        visit.exchange.respond(code, lines, body)
        self.note(visit, verdict, code, len(body), None)

    def note(self, visit: Visit, verdict: Verdict, code: int, sent: int, latency: float | None) -> None:
        """Count and log a request that has been answered."""
        self._telemetry.request(self._served(visit, visit.desk.room.name, verdict, code, sent, latency))

    def _served(
        self, visit: Visit, room: str, verdict: Verdict, code: int, sent: int, latency: float | None
    ) -> Served:
        head = visit.exchange.head
        visitor = None if visit.token is None else visit.token.visitor
        seconds = self._loop.time() - visit.started
        return Served(room, verdict, head.method, head.target, code, seconds, sent, latency, visitor)


def _accepts_gzip(visit: Visit) -> bool:
    return b"gzip" in (visit.exchange.head.get(b"accept-encoding") or b"")


def _told(status: Status, kind: bytes) -> bytes:
    return _told_lines(status.state, kind, max(1, round(status.poll_after)))


@lru_cache(maxsize=1024)
def _told_lines(state: State, kind: bytes, seconds: int) -> bytes:
    lines = b"%bContent-Type: %b\r\nWaiting-Room: %b\r\nRetry-After: %d\r\n"
    return lines % (_JSON, kind, state.value.encode(), seconds)


def _lines(page: Page, *more: bytes) -> bytes:
    pairs: Iterable[bytes] = (b"%b: %b\r\n" % pair for pair in page.headers)
    return b"".join((*pairs, *more))
