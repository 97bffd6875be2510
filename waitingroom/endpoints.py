"""What lives under our own paths, and is answered from memory."""

from collections.abc import Callable, Mapping

from waitingroom.answers import PLAIN, Answers, Visit
from waitingroom.pages import Form
from waitingroom.room import State
from waitingroom.tickets import Use
from waitingroom.visit import query_value, return_path, same_origin, set_cookie


class Endpoints:
    """Answers requests for our own paths.

    Args:
        answers: says it.
        wall: Unix time.
        jitter: random numbers in [0, 1).
        join: answers a newcomer who has met a challenge.
    """

    def __init__(
        self,
        answers: Answers,
        wall: Callable[[], float],
        jitter: Callable[[], float],
        join: Callable[[Visit], None],
    ) -> None:
        self._answers = answers
        self._wall = wall
        self._jitter = jitter
        self._own: Mapping[str, Callable[[Visit], None]] = {
            "status": self._status,
            "here": self._here,
            "leave": self._leave,
            "join": join,
            "front.json": self._front,
        }

    def serve(self, visit: Visit, ours: str) -> None:
        """Answer a request for this path of ours."""
        self._own.get(ours, self._unknown)(visit)

    def _status(self, visit: Visit) -> None:
        """The status document. Asking never joins, and never claims."""
        desk, token = visit.desk, visit.token
        if desk.off or (token is not None and token.use is not Use.TICKET):
            status = desk.say(State.INSIDE)
        elif token is None:
            status = desk.say(State.ENDED, poll_after=60.0)
        else:
            status = desk.poll(token, visit.started, self._jitter(), _shown(visit))
        self._answers.document(visit, "status_poll", status, visit.given)

    def _here(self, visit: Visit) -> None:
        """Somebody says "I am here", or starts anew after their number was spent."""
        desk, token, head = visit.desk, visit.token, visit.exchange.head
        back = return_path(head, visit.client.host, desk.room.path)
        lines = b"Location: %b\r\nCache-Control: no-store\r\n" % back
        # A link on somebody else's page must not cost a place.
        anew = query_value(head.target, b"anew") and same_origin(head, visit.client.host)
        if token is None or anew:
            lines += set_cookie(desk.room, visit.client.scheme, "", 0)
        elif token.use is Use.TICKET and token.number:
            desk.visit(token, visit.started, 0.0)
        self._answers.respond(visit, "answered", 303, lines)

    def _leave(self, visit: Visit) -> None:
        """Somebody gives up their place or seat."""
        head = visit.exchange.head
        if head.method != b"POST":
            self._answers.respond(visit, "refused", 405, PLAIN + b"Allow: POST\r\n", b"Leaving is a POST.\n")
            return
        if not same_origin(head, visit.client.host):
            self._answers.respond(visit, "refused", 403, PLAIN, b"This must come from a page of this site.\n")
            return
        if visit.token is not None and visit.token.number:
            visit.desk.leave(visit.token, visit.started)
        status = visit.desk.say(State.ENDED, poll_after=60.0)
        cookie = set_cookie(visit.desk.room, visit.client.scheme, "", 0)
        if visit.form is Form.FORM:
            self._answers.tell(visit, status, Form.PAGE, cookie)
        else:
            self._answers.document(visit, "answered", status, cookie)

    def _front(self, visit: Visit) -> None:
        """What is the same for everybody, so that a cache in front may answer it."""
        desk = visit.desk
        seen = desk.snapshot
        front = seen.line.front
        body = b'{"room":"%b","front":%d,"issued":%d,"waiting":%d,"paused":%b,"updated":%d}' % (
            desk.room.name.encode(),
            seen.issued + 1 if front is None else front,
            seen.issued,
            seen.waiting,
            b"true" if desk.room.paused else b"false",
            int(self._wall()),
        )
        lines = b"Content-Type: application/json\r\nCache-Control: public, max-age=2\r\n"
        self._answers.respond(visit, "answered", 200, lines, body)

    def _unknown(self, visit: Visit) -> None:
        self._answers.respond(visit, "refused", 404, PLAIN, b"There is nothing here.\n")


def _shown(visit: Visit) -> int | None:
    shown = query_value(visit.exchange.head.target, b"shown") or b""
    return int(shown[:9]) if shown.isdigit() else None
