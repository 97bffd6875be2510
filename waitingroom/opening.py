"""Whom a gateway lets in by itself while the store is away, in a room that is set to open then.

Pure: `now` is monotonic seconds. People with a number come before people who have only arrived, and nobody
passes anybody who asks at this gateway as well.
"""

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
        self._asked: dict[Rank, float] = {}
        self._due = 0.0

    def clear(self) -> None:
        """The store is back."""
        if self._asked:
            self._asked.clear()

    def ask(self, room: Room, rank: Rank, now: float) -> bool:
        """Whether it is the turn of somebody who asks: the rate allows it, and nobody is before them."""
        self._asked[rank] = now
        places = self._allowance(room, now)
        if not places:
            return False
        for absent in [rank for rank, at in self._asked.items() if now - at > ASKED]:
            del self._asked[absent]
        return sum(1 for other in self._asked if other < rank) < places

    def enter(self, room: Room, rank: Rank, now: float) -> bool:
        """The same for somebody who stands at the door: if it is their turn, it is taken."""
        if not self.ask(room, rank, now):
            return False
        del self._asked[rank]
        self._due = max(self._due, now) + self._interval(room)
        return True

    def _interval(self, room: Room) -> float:
        return 60 / (room.new_users_per_minute * room.outage_share)

    def _allowance(self, room: Room, now: float) -> int:
        """GCRA with a burst of one second's worth, and at least one."""
        interval = self._interval(room)
        burst = max(1.0, 1 / interval)
        return max(0, int(burst - max(self._due - now, 0.0) / interval + 1e-6))
