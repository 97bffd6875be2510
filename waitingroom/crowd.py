"""Simulated shoppers for the demonstration. They know the shop by HTTP alone, as people's browsers do."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any

import aiohttp

_LAMPS = ("vesper", "morel", "gable", "harbour", "ember", "crescent")
_PATIENCE_FOR_A_PAGE = aiohttp.ClientTimeout(total=10)
_RUSH = 8.0  # seconds over which the first of them arrive
_FAILED = 500


class Kind(StrEnum):
    """What somebody is like."""

    BUYER = "buyer"
    BROWSER = "browser"  # looks, and leaves without a word
    ABSENT = "absent"  # closes the tab while waiting, and returns
    IMPATIENT = "impatient"  # gives up waiting
    BOT = "bot"  # keeps no cookies and asks again and again


_SHARES: Mapping[Kind, int] = {
    Kind.BUYER: 64,
    Kind.BROWSER: 22,
    Kind.ABSENT: 6,
    Kind.IMPATIENT: 4,
    Kind.BOT: 4,
}


@dataclass(slots=True)
class Tally:
    """What the crowd lived through, as its members would tell it.

    Attributes:
        waiting: how many stand in line now; `longest_line` the most there were.
        admitted: people who saw a page of the shop.
        orders: thank-you pages seen.
        failed: pages that were an error, or did not come in ten seconds.
        gave_up: people who left the line, or the shop after too many errors.
        times: seconds that each page of the shop took, failed ones too.
    """

    waiting: int = 0
    longest_line: int = 0
    admitted: int = 0
    orders: int = 0
    failed: int = 0
    gave_up: int = 0
    times: list[float] = field(default_factory=list)


class Crowd:
    """A number of people before the shop at any time: who leaves is followed by somebody new.

    Args:
        url: the shop's origin, without a path.
        room: the waiting room's name, should there be one.
        people: how many.
        chance: source of everybody's character and timing.
    """

    def __init__(self, url: str, room: str, people: int, chance: Random) -> None:
        self.tally = Tally()
        self._url = url
        self._room = room
        self._people = people
        self._chance = chance

    async def run(self) -> None:
        """Come, wait, browse, buy and leave until cancelled."""
        async with aiohttp.TCPConnector(limit=0) as connector, asyncio.TaskGroup() as tasks:
            for _ in range(self._people):
                tasks.create_task(self._one_after_another(connector))

    async def _one_after_another(self, connector: aiohttp.BaseConnector) -> None:
        await asyncio.sleep(self._chance.uniform(0, _RUSH))
        while True:
            kind = self._chance.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
            jar = aiohttp.DummyCookieJar() if kind is Kind.BOT else aiohttp.CookieJar(unsafe=True)
            async with aiohttp.ClientSession(
                self._url,
                connector=connector,
                connector_owner=False,
                cookie_jar=jar,
                timeout=_PATIENCE_FOR_A_PAGE,
                headers={"Accept": "text/html", "Accept-Language": "en"},
            ) as browser:
                await Shopper(kind, browser, self._url, self._room, self.tally, self._chance).visit()
            await asyncio.sleep(self._chance.uniform(0.5, 3))


class Shopper:
    """One person with one browser, or one bot."""

    def __init__(
        self,
        kind: Kind,
        browser: aiohttp.ClientSession,
        origin: str,
        room: str,
        tally: Tally,
        chance: Random,
    ) -> None:
        self._kind = kind
        self._origin = origin
        self._browser = browser
        self._query = {"room": room}
        self._tally = tally
        self._chance = chance
        self._closes_the_tab = kind is Kind.ABSENT
        self._patience = chance.uniform(10, 30) if kind is Kind.IMPATIENT else float("inf")

    async def visit(self) -> None:
        """Everything from the first click to the last."""
        if self._kind is Kind.BOT:
            return await self._hammer()
        if not await self._page("/"):
            self._tally.gave_up += 1
            return None
        self._tally.admitted += 1
        for lamp in self._chance.sample(_LAMPS, self._chance.randint(2, 5)):
            await self._think(1, 4)
            if not await self._page(f"/product/{lamp}"):
                self._tally.gave_up += 1
                return None
        return None if self._kind is Kind.BROWSER else await self._buy(lamp)

    async def _buy(self, lamp: str) -> None:
        steps = (("/basket", {"product": lamp}), ("/basket", None), ("/checkout", {"delivery": "parcel"}))
        for path, form in steps:
            await self._think(0.5, 2)
            if not await self._page(path, form):
                self._tally.gave_up += 1
                return

    async def _hammer(self) -> None:
        for _ in range(self._chance.randint(10, 40)):
            await self._fetch("/", None)
            await self._think(0.2, 1)

    async def _page(self, path: str, form: dict[str, str] | None = None) -> bool:
        """Get a page: stand in line where told to, try twice more where it fails; False is giving up."""
        for _ in range(3):
            status = await self._fetch(path, form)
            while status is None:
                if not await self._line():
                    return False
                status = await self._fetch(path, form)
            if status < _FAILED:
                return True
            await self._think(1, 3)
        return False

    async def _fetch(self, path: str, form: dict[str, str] | None) -> int | None:
        """HTTP status of a page of the shop, a failing one if none came; None if we are to wait in line."""
        start = time.monotonic()
        try:
            async with self._browser.request("POST" if form else "GET", path, data=form) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            status = _FAILED
        else:
            if "Waiting-Room" in response.headers or response.status == 429:  # noqa: PLR2004 - wait
                return None
            status = response.status
            self._tally.orders += response.url.path.startswith("/thanks/") and status < _FAILED
        self._tally.times.append(time.monotonic() - start)
        self._tally.failed += status >= _FAILED
        return status

    async def _line(self) -> bool:
        """Stand in line until it is our turn; False if we leave it."""
        self._tally.waiting += 1
        self._tally.longest_line = max(self._tally.longest_line, self._tally.waiting)
        try:
            return await self._wait_for_turn(time.monotonic() + self._patience)
        finally:
            self._tally.waiting -= 1

    async def _wait_for_turn(self, deadline: float) -> bool:
        poll_after = self._chance.uniform(0.5, 1.5)
        while time.monotonic() < deadline:
            if self._closes_the_tab:
                self._closes_the_tab = False
                poll_after = self._chance.uniform(15, 40)
            await asyncio.sleep(min(poll_after, max(0.0, deadline - time.monotonic())))
            status = await self._ask("/.waitingroom/status")
            if status.get("state") in ("your_turn", "inside", "ended"):
                return True
            if status.get("missed"):
                await self._ask("/.waitingroom/here")
            poll_after = float(status.get("poll_after") or 5)
        await self._leave()
        return False

    async def _ask(self, path: str) -> dict[str, Any]:
        """A JSON document of the waiting room; nothing when it cannot be had or is none."""
        try:
            async with self._browser.get(path, params=self._query, allow_redirects=False) as response:
                document = json.loads(await response.text())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    async def _leave(self) -> None:
        """Say so on leaving the line, as the page's own button does."""
        origin = {"Origin": self._origin}
        try:
            async with self._browser.post("/.waitingroom/leave", params=self._query, headers=origin):
                pass
        except (aiohttp.ClientError, TimeoutError):
            return

    async def _think(self, low: float, high: float) -> None:
        await asyncio.sleep(self._chance.uniform(low, high))
