"""A clock in the hands of the test, put in the place of the store's own."""

from types import TracebackType
from typing import Self

import redis

from waitingroom.store import Store

SOURCE = "local function store_time() return tonumber(redis.call('GET', 'test:clock')) end"

OPENING = 1_800_046_379_000
"""Milliseconds; numbers begin at this, and the eighth ends a bitmap segment."""


class Clock:
    """The store's time in milliseconds, which moves when told to."""

    def __init__(self, url: str, now: int = OPENING) -> None:
        self._client = redis.Redis.from_url(url)
        self._url = url
        self.now = now
        self.set(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def set(self, now: int) -> None:
        """Set the time; it may go back."""
        self.now = now
        self._client.set("test:clock", now, px=600_000)

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self.set(self.now + milliseconds)

    def store(self, gateway: str = "a", *, tick: float = 1.0) -> Store:
        """A gateway's store that runs on this clock; with time to spare on a busy machine."""
        return Store(self._url, gateway, tick=tick, timeout=5, clock=SOURCE)
