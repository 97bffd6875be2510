"""One person who shops: a browser, a temper, a habit, and what they lived through."""

import math
import time
from collections.abc import Callable, Mapping
from random import Random

from loadtest.browser import Browser, Reply, Site, Unanswered
from loadtest.record import Record
from loadtest.results import Story
from loadtest.scenario import Scenario
from loadtest.waiting import Gone, Line

_TRIES = 3  # people reload a page that failed twice, and then leave
_TOO_MANY, _FAILED = 429, 500
_CALM = 3.0  # deviations of the logarithm beyond which nobody thinks
_RELOAD = 2.0  # seconds until somebody reloads a page that failed

Journey = Callable[["Shopper"], str]


class Shopper:
    """Somebody who comes at a moment, and does what a journey says.

    Attributes:
        chance: source of everything that they decide.
        browser: theirs; its jar is nobody else's.
        line: their time in the waiting room.
        habit: how they behave in it.
    """

    def __init__(
        self, index: int, due: float, scenario: Scenario, site: Site, record: Record, zero: float
    ) -> None:
        self.scenario = scenario
        self.record = record
        self.chance = Random(scenario.seed * 2_147_483_647 + index)
        people = scenario.shoppers
        self.habit = self.pick(people.habits)
        self.browser = Browser(
            site, self.pick(people.languages), self.pick(people.devices), people.page_patience
        )
        self.line = Line(self)
        self.entered: float | None = None
        self._index, self._due, self._zero = index, due, zero
        self._meant = due
        self._pages = 0
        self._inside = False
        self._back = ("home", "/")

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._zero

    def live(self, journey: Journey) -> None:
        """Come, do what the journey says, leave; what became of it is on record, whatever happens."""
        began = self.now()
        self.record.began(self._due, began)
        self.record.present += 1
        outcome = "unfinished"
        try:
            outcome = self._hammer() if self.habit == "bot" else journey(self)
        except Gone as gone:
            outcome = gone.outcome
        finally:
            self.record.present -= 1
            self._be_inside(inside=False)
            self.browser.close()
            self.record.stories.append(self._story(began, outcome))

    def think(self, factor: float = 1.0) -> None:
        """Look at a page for a while: log-normal, as the scenario says, `factor` times as long."""
        people = self.scenario.shoppers
        bound = _CALM * people.think_sigma
        deviation = max(-bound, min(bound, self.chance.gauss(0, people.think_sigma)))
        self.rest(factor * people.think_median * math.exp(deviation))

    def rest(self, seconds: float) -> None:
        """Do nothing for so long; what comes next is meant to start then."""
        self._meant = self.now() + seconds
        time.sleep(seconds)

    def pick(self, weights: Mapping[str, float]) -> str:
        """One of several names, by their weights."""
        return self.chance.choices(tuple(weights), tuple(weights.values()))[0]

    def page(self, name: str, path: str, form: dict[str, str] | None = None) -> Reply:
        """See a page of the shop, after waiting in line where that is asked for.

        Args:
            name: under which it is measured.
            path: where it is.
            form: fields to send.

        Raises:
            Gone: they gave up, were refused, or the page failed again and again.
        """
        self._pages += 1
        if self._pages > self.scenario.shoppers.pages_most:
            raise Gone("left")
        for attempt in range(_TRIES):
            reply = self.fetch(name, path, form)
            # What a form got that came too early is a page that says so; going back leads to the line.
            if reply is not None and reply.status == _TOO_MANY and form is not None:
                reply = self.fetch(*self._back)
                if reply is not None and not reply.room:
                    reply = self.fetch(name, path, form)
            if reply is not None and reply.room:
                self._be_inside(inside=False)
                reply = self.line.wait(*((name, path) if form is None else self._back), reply)
                if form is not None:
                    reply = self.fetch(name, path, form)
            if reply is not None and not reply.room and reply.status < _FAILED:
                self._be_inside(inside=True)
                self._back = (name, path) if form is None else self._back
                return reply
            if attempt < _TRIES - 1:
                self.rest(self.chance.uniform(0.5, 1.5) * _RELOAD)
        raise Gone("failed")

    def fetch(self, name: str, path: str, form: dict[str, str] | None = None) -> Reply | None:
        """Ask once and put it on record; None where no answer came."""
        begun, meant = self.now(), self._meant
        try:
            reply = self.browser.navigate(path, form)
        except Unanswered as silence:
            self.record.page(name, begun, meant, self.now(), silence.kind)
            return None
        finally:
            self._meant = self.now()
        now = self.now()
        if reply.room:
            self.record.room("page", now - begun)
        else:
            wrong = f"status {reply.status}" if reply.status >= 400 else ""  # noqa: PLR2004 - HTTP's errors
            self.record.page(name, begun, meant, now, wrong)
        return reply

    def _hammer(self) -> str:
        """What a script does: no cookies, no patience, one page again and again."""
        for _ in range(self.chance.randint(10, self.scenario.shoppers.pages_most)):
            self.browser.jar.clear()
            self.fetch("home", "/")
            self.rest(self.chance.uniform(0.1, 0.5))
        return "left"

    def _be_inside(self, *, inside: bool) -> None:
        self.record.inside += inside - self._inside
        self._inside = inside
        if inside and self.entered is None:
            self.entered = self.now()
            self.record.admitted(self.entered)

    def _story(self, began: float, outcome: str) -> Story:
        line = self.line
        return Story(
            index=self._index,
            due=self._due,
            began=began,
            joined=line.joined,
            number=line.positions[0] if line.positions else None,
            entered=self.entered,
            ended=self.now(),
            outcome=outcome,
            positions=tuple(line.positions),
            told=line.told,
            habit=self.habit,
            missed=line.missed,
            still=line.still,
        )
