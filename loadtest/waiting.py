"""The waiting room as people meet it: they are told to wait, ask when to ask again, and go in when called.

It follows the project's protocol as the waiting page in a browser does, and the habits of those who do not.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from loadtest.browser import Reply, Unanswered

if TYPE_CHECKING:
    from loadtest.shopper import Shopper

_OURS = "/.waitingroom"
_ASKS = "Accept: application/json\r\nSec-Fetch-Site: same-origin\r\n"
_ROOM = re.compile(r'data-room="([^"]+)"')
_PLACE = re.compile(r'id="place" data-n="(\d+)"')
_CALLED = ("your_turn", "inside")
_REACTION = 3.0  # seconds for which the page says that it is your turn, before it goes in
_HIDDEN_SPARE = 20.0  # seconds before the end of a turn at which a hidden page goes in
_THROTTLED_AFTER, _THROTTLED = 300.0, 60.0  # seconds after which browsers wake a hidden page once a minute
_LONGEST_PAUSE = 60.0
_TELL = 0.5  # share of those who give up that say so; the others close the tab
_TABS = 0.2  # chance, at each asking, that somebody who likes tabs opens another


class Gone(Exception):  # noqa: N818 - it says what happened
    """A shopper has left; `outcome` says why, as in `results.OUTCOMES`."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Line:
    """One shopper's time in line.

    Attributes:
        joined: when they were first told to wait, in seconds since the run began.
        positions: shown to them, one for each change.
        told: the wait they were told first, in seconds.
        missed: whether they were told that they missed their turn.
        still: when they last asked and were told to wait on.
    """

    def __init__(self, person: "Shopper") -> None:
        self.joined: float | None = None
        self.positions: list[int] = []
        self.told: tuple[float, float] | None = None
        self.missed = False
        self.still: float | None = None
        self._person = person
        self._room = person.scenario.room.name
        self._tries = 0
        self._name, self._path = "home", "/"
        self._absent = person.habit in ("sleeper", "returner", "forgetful")
        self._end = 0.0

    def wait(self, name: str, path: str, reply: Reply) -> Reply | None:
        """Wait from the first page that says so until the shop answers `path`.

        Args:
            name: under which the shop's page is measured.
            path: of that page.
            reply: the waiting page.

        Returns:
            The shop's answer; None if it did not come.

        Raises:
            Gone: they gave up, or there is no way in.
        """
        person, people = self._person, self._person.scenario.shoppers
        self.joined = self.joined if self.joined is not None else person.now()
        self._end = person.now() + person.chance.weibullvariate(people.patience_scale, people.patience_shape)
        self._name, self._path, self._tries = name, path, 0
        person.record.waiting += 1
        try:
            while reply.room:
                answered = self._stay(reply)
                if answered is None:
                    return None
                reply = answered
        finally:
            person.record.waiting -= 1
        return reply

    def _stay(self, reply: Reply) -> Reply | None:
        """Do what this page asks for, and go to the protected page again."""
        state = reply.room
        if state in ("challenge", "full"):
            self._pass(_seconds(reply.headers.get("retry-after"), 10.0))
        elif state == "ended":
            return self._ended()
        elif self._person.habit == "f5":
            self._read(reply)
            self._pass(self._person.chance.uniform(1, 4))
        else:
            self._room = self._room or _found(_ROOM, reply) or ""
            self._queue()
        return self._navigate()

    def _queue(self) -> None:
        """Ask how it stands until it is time to navigate."""
        person, failed, began = self._person, 0, self._person.now()
        while True:
            self._wander()
            asked = person.now()
            document = self._ask()
            state = str(document.get("state", ""))
            if not state:
                failed += 1
                self._pass(min(_LONGEST_PAUSE, 2.0**failed))
                continue
            failed = 0
            self._note(document)
            if state in _CALLED:
                self._pass(
                    max(self._reaction(document), self._tries and min(_LONGEST_PAUSE, 2.0**self._tries))
                )
                self._tries += 1
                return
            self._tries = 0
            if state in ("full", "ended", "challenge"):
                return
            self.still = asked
            if document.get("missed"):
                self.missed = True
                self._pass(person.chance.uniform(1, 5))
                self._say_here()
                continue
            pause = _seconds(document.get("poll_after"), 5.0) * person.chance.uniform(1.0, 1.1)
            if person.habit == "hidden" and person.now() - began > _THROTTLED_AFTER:
                pause = max(pause, _THROTTLED)
            self._pass(person.chance.uniform(0.2, 1.0) if person.habit == "retry" else pause)

    def _reaction(self, document: dict[str, Any]) -> float:
        """Seconds until the page goes in by itself, as its script decides."""
        if self._person.habit == "retry":
            return 0.0
        held = _seconds(document.get("until"), 0.0)
        return max(_REACTION, held - _HIDDEN_SPARE) if self._person.habit == "hidden" else _REACTION

    def _wander(self) -> None:
        """What habits do beside waiting, once each: be away, come back, lose the cookies, open a tab."""
        person, away = self._person, self._person.scenario.shoppers.away
        if person.habit == "tabs" and person.chance.random() < _TABS:
            self._navigate()
        if not self._absent or not self.positions:
            return
        self._absent = False
        if person.habit in ("returner", "forgetful"):
            person.browser.close()
        if person.habit == "forgetful":
            person.browser.jar.clear()
            self.positions.clear()
            self.told, self.joined = None, person.now()
        else:
            self._pass(away * person.chance.lognormvariate(0, 0.5))
        if person.habit != "sleeper":
            self._navigate()

    def _ask(self) -> dict[str, Any]:
        """The status document; nothing where none came."""
        shown = f"&shown={self.positions[-1]}" if self.positions else ""
        reply = self._own("status", "GET", f"{_OURS}/status?room={self._room}{shown}")
        try:
            document = json.loads(reply.text) if reply else {}
        except ValueError:
            document = {}
        return document if isinstance(document, dict) else {}

    def _say_here(self) -> None:
        self._own("here", "GET", f"{_OURS}/here?room={self._room}")

    def _leave(self) -> None:
        if self._person.chance.random() < _TELL and self._room:
            self._own("leave", "POST", f"{_OURS}/leave?room={self._room}")

    def _own(self, name: str, method: str, path: str) -> Reply | None:
        """Ask for something of the room's own."""
        person, begun = self._person, self._person.now()
        try:
            reply = person.browser.ask(method, path, _ASKS, {} if method == "POST" else None)
        except Unanswered as silence:
            person.record.room(name, person.now() - begun, silence.kind)
            return None
        wrong = f"status {reply.status}" if reply.status >= 400 else ""  # noqa: PLR2004 - HTTP's errors
        person.record.room(name, person.now() - begun, wrong)
        return None if wrong else reply

    def _navigate(self) -> Reply | None:
        """Go to the protected page, which joins, keeps the place, or claims the seat."""
        return self._person.fetch(self._name, self._path)

    def _ended(self) -> Reply | None:
        """The room is over, or only the place in it: looking again, and then starting anew, tells which."""
        away = self._person.habit in ("sleeper", "returner")
        self._pass(self._person.chance.uniform(1, 3))
        reply = self._navigate()
        if reply is None or reply.room != "ended":
            return reply
        self._own("here", "GET", f"{_OURS}/here?room={self._room}&anew=1")
        reply = self._navigate()
        if reply is None or reply.room == "ended" or not self.positions:
            raise Gone("refused")
        raise Gone("gave_up" if away else "lost")

    def _note(self, document: dict[str, Any]) -> None:
        position, wait = document.get("position"), document.get("wait")
        if isinstance(position, int) and (not self.positions or self.positions[-1] != position):
            self.positions.append(position)
        if self.told is None and isinstance(wait, dict):
            self.told = (_seconds(wait.get("low"), 0.0), _seconds(wait.get("high"), 0.0))

    def _read(self, reply: Reply) -> None:
        """What a page itself says of the place, for those who reload it before it can ask."""
        if place := _found(_PLACE, reply):
            self._note({"position": int(place) or None})

    def _pass(self, seconds: float) -> None:
        """Let time pass, but no more than there is patience for.

        Raises:
            Gone: patience is at its end.
        """
        left = self._end - self._person.now()
        self._person.rest(max(0.0, min(seconds, left)))
        if seconds >= left:
            self._leave()
            raise Gone("gave_up")


def _found(pattern: re.Pattern[str], reply: Reply) -> str | None:
    match = pattern.search(reply.text)
    return match[1] if match else None


def _seconds(value: object, default: float) -> float:
    """A number of seconds as a document or header has it."""
    try:
        return max(0.0, float(str(value)))
    except ValueError:
        return default
