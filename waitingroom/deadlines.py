"""Many deadlines on one timer, for connections by the thousand."""

import asyncio
from typing import Protocol


class Timed(Protocol):
    """Something with a deadline on the event loop's clock; `math.inf` is none."""

    deadline: float

    def expired(self) -> None:
        """The deadline has passed; called once a look until it is moved or the member leaves."""


class Sweep:
    """One timer for many deadlines: a look at every member each `interval` seconds, while there are any."""

    def __init__(self, interval: float) -> None:
        self.members: set[Timed] = set()
        self.interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def add(self, member: Timed) -> None:
        """Watch a member until it is discarded."""
        self.members.add(member)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._look)

    def discard(self, member: Timed) -> None:
        """Stop watching a member."""
        self.members.discard(member)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for member in [member for member in self.members if member.deadline <= now]:
            member.expired()
        self._timer = loop.call_later(self.interval, self._look) if self.members else None
