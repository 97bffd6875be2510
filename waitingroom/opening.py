"""Whom a gateway lets in by itself while the store is away, in a room that is set to open then.

Pure: `now` is monotonic seconds. People with a number come before people who have only arrived, and nobody
passes anybody who asks at this gateway as well.
"""

from bisect import bisect_left, insort

from waitingroom.room import Room
from waitingroom.tickets import Token

ASKED = 15.0
"""Seconds for which somebody who asked counts as present; a page asks every five."""

Rank = tuple[int, int, str, int]


def rank_of(token: Token) -> Rank:
    """Where a ticket stands: numbers first, then arrivals by second."""
    if token.arrival is None:
        return 0, token.number, "", 0
    return 1, token.arrival.second, token.arrival.gateway, token.arrival.place


class Opening:
    """One room at one gateway, during one outage."""

    def __init__(self) -> None:
        self._line: list[Rank] = []
        self._asked: dict[Rank, float] = {}
        self._called: dict[Rank, float] = {}
        self._entered: set[Rank] = set()
        self._due = 0.0
        self._looked = 0.0

    def clear(self) -> None:
        """The store is back."""
        if self._asked or self._entered:
            for gathered in (self._line, self._asked, self._called, self._entered):
                gathered.clear()

    def ask(self, room: Room, rank: Rank, now: float) -> bool:
        """Whether it is the turn of somebody who asks: the rate allows it, and nobody is before them.

        Whoever does not come when called holds nobody up after a while, and may still come.
        """
        if rank in self._entered:
            return True
        if rank not in self._asked:
            insort(self._line, rank)
        self._asked[rank] = now
        self._look(now)
        places = self._allowance(room, now)
        late = now - self._called.get(rank, now) > ASKED
        turn = places > 0 and (late or bisect_left(self._line, rank) < places)
        if turn:
            self._called.setdefault(rank, now)
        return turn

    def enter(self, room: Room, rank: Rank, now: float) -> bool:
        """The same for somebody who stands at the door: if it is their turn, it is taken, once."""
        if rank in self._entered:
            return True
        if not self.ask(room, rank, now):
            return False
        self._forget(rank)
        self._called.pop(rank, None)
        self._entered.add(rank)
        self._due = max(self._due, now) + self._interval(room)
        return True

    def _look(self, now: float) -> None:
        """Once a second: who has stopped asking, or has not come when called, stands in nobody's way."""
        if now - self._looked < 1:
            return
        self._looked = now
        for rank in [rank for rank, at in self._asked.items() if now - at > ASKED]:
            self._forget(rank)
            self._called.pop(rank, None)
        for rank in [rank for rank, at in self._called.items() if now - at > ASKED]:
            at = bisect_left(self._line, rank)
            if self._line[at : at + 1] == [rank]:
                del self._line[at]

    def _forget(self, rank: Rank) -> None:
        self._asked.pop(rank, None)
        at = bisect_left(self._line, rank)
        if self._line[at : at + 1] == [rank]:
            del self._line[at]

    def _interval(self, room: Room) -> float:
        return 60 / (room.new_users_per_minute * room.outage_share)

    def _allowance(self, room: Room, now: float) -> int:
        """GCRA with a burst of one second's worth, and at least one."""
        interval = self._interval(room)
        burst = max(1.0, 1 / interval)
        return max(0, int(burst - max(self._due - now, 0.0) / interval + 1e-6))
