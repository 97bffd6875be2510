"""The crowd of a soak: shoppers over real sockets who know of the gateways what docs/protocol.md says.

Whoever finds a connection broken turns to the other gateway, as a load balancer would have them do.
"""

import asyncio
import base64
import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any

import aiohttp

from benchmarks.judges import LEAVING, Place

HOST = "shop.test"
ROOM = "sale"

PATIENCE = 10.0
"""Seconds that somebody waits for an answer."""

SILENCE = 60.0
"""Seconds of silence after which somebody who waits was away."""

FIRST_POLL = 10.0
"""Seconds in which whoever was given a number has asked for the first time, unless they were away."""

MISTAKES = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nHost: shop.test\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop.test\r\n folded: line\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not for this port\r\n\r\n",
)
"""What is no request, and must be answered with a status of 400 to 499, or not at all."""


class Habit(StrEnum):
    """What somebody is like."""

    BUYER = "buyer"
    UPLOADER = "uploader"  # sends a photograph
    WATCHER = "watcher"  # follows a WebSocket for a while
    IDLER = "idler"  # closes the shop's page without a word
    LATECOMER = "latecomer"  # lets the seat end by idling, and returns
    SLEEPER = "sleeper"  # looks away while waiting, maybe for longer than a seat is held
    FORGETFUL = "forgetful"  # loses the cookie, sooner or later
    IMPATIENT = "impatient"  # leaves the line soon, and says so
    VANISHER = "vanisher"  # leaves it without a word
    COOKIELESS = "cookieless"  # never keeps a cookie
    CONFUSED = "confused"  # sends what is no request


_SHARES: Mapping[Habit, int] = {
    Habit.BUYER: 56,
    Habit.UPLOADER: 6,
    Habit.WATCHER: 6,
    Habit.IDLER: 8,
    Habit.LATECOMER: 5,
    Habit.SLEEPER: 2,
    Habit.FORGETFUL: 2,
    Habit.IMPATIENT: 10,
    Habit.VANISHER: 1,
    Habit.COOKIELESS: 2,
    Habit.CONFUSED: 2,
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that should not have been: `kind` is its heading in the verdict, `said` the details."""

    at: float
    kind: str
    who: str
    gateway: int
    said: str


@dataclass(slots=True)
class Notes:
    """What the crowd lived through, as its members would tell it.

    Attributes:
        counts: how often what happened.
        places: every number that somebody held.
        holders: number and visitor id of every token.
        left: when somebody said that they leave.
    """

    counts: Counter[str] = field(default_factory=Counter)
    places: list[Place] = field(default_factory=list)
    holders: set[tuple[int, str]] = field(default_factory=set)
    left: dict[str, float] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        state: what the visitor is told, "" where nothing is said of waiting.
        cookie: value of the room's cookie; "" takes it back, None leaves it.
        shop: whether the storefront itself answered.
    """

    status: int
    state: str
    cookie: str | None
    shop: bool
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The status document that this is, nothing where it is none."""
        with suppress(ValueError):
            found = json.loads(self.body)
            return found if isinstance(found, dict) else {}
        return {}


class Dialler:
    """Keep-alive connections to one gateway, as many as are in use at one time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> Reply:
        """Send one request and read its answer.

        Raises:
            OSError, asyncio.IncompleteReadError: the gateway is not there, or went away.
            TimeoutError: it did not answer.
        """
        async with asyncio.timeout(PATIENCE):
            reader, writer = await self._connection()
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = _line(head, "content-length")
                body = await reader.readexactly(int(length)) if length else b""
            except BaseException:
                writer.transport.abort()
                raise
        if _line(head, "connection") == "close":
            writer.transport.abort()
        else:
            self._free.append((reader, writer))
        return _reply(head, body)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection("127.0.0.1", self.port)

    def close(self) -> None:
        """Hang up."""
        while self._free:
            self._free.pop()[1].transport.abort()


def _line(head: str, name: str) -> str:
    start = head.lower().find(f"\r\n{name}:")
    return head[start + len(name) + 3 :].partition("\r\n")[0].strip() if start >= 0 else ""


def _reply(head: str, body: bytes) -> Reply:
    name, equals, value = _line(head, "set-cookie").partition(";")[0].partition("=")
    cookie = value if equals and name.endswith(f"wr-{ROOM}") else None
    shop = bool(_line(head, "x-shop"))
    return Reply(int(head[9:12]), _line(head, "waiting-room"), cookie, shop, body)


def holder(cookie: str) -> tuple[int, str, str]:
    """Number, visitor and use that a token says it has; nobody need verify it to read it. 0 is none yet."""
    claims = cookie.split(".")[1:2]
    if not claims:
        return 0, "", ""
    told = json.loads(base64.urlsafe_b64decode(f"{claims[0]}=="))
    number = told["n"][-1]
    return number if isinstance(number, int) else 0, told["sub"], told["use"]


def request_of(
    method: str, target: str, accept: str, who: str, cookie: str, body: bytes | None = None
) -> bytes:
    """A request as everybody's browser here sends it."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", f"Accept: {accept}", f"X-Visitor: {who}"]
    lines += [f"Cookie: theme=dark; wr-{ROOM}={cookie}"] if cookie else []
    lines += [f"Content-Length: {len(body)}", f"Origin: http://{HOST}"] if body is not None else []
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Crowd:
    """People who come at a steady pace, whatever becomes of those before them.

    Args:
        ports: of the gateways.
        session: seconds after which an idle seat ends.
        chance: source of everybody's character and timing.
    """

    def __init__(self, ports: list[int], session: float, chance: Random) -> None:
        self.notes = Notes()
        self.diallers = [Dialler(port) for port in ports]
        self.session = session
        self.chance = chance
        self.browser: aiohttp.ClientSession

    async def arrive(self, a_second: float) -> None:
        """Let people come until cancelled; whoever is there then goes at once."""
        due = time.monotonic()
        names = iter(range(1, 1 << 62))
        try:
            async with aiohttp.ClientSession() as self.browser, asyncio.TaskGroup() as tasks:
                while True:
                    habit = self.chance.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
                    gateway = self.chance.randrange(len(self.diallers))
                    tasks.create_task(Shopper(f"v{next(names)}", habit, gateway, self).visit())
                    due += self.chance.expovariate(a_second)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            for dialler in self.diallers:
                dialler.close()


class Shopper:
    """One person with one browser."""

    def __init__(self, name: str, habit: Habit, gateway: int, crowd: Crowd) -> None:
        self._name = name
        self._lives = 0
        self._habit = habit
        self._gateway = gateway
        self._crowd = crowd
        self._notes = crowd.notes
        self._chance = crowd.chance
        self._app = crowd.chance.random() < 0.3
        self._cookie = ""
        self._place: Place | None = None
        self._heard = 0.0
        self._served = 0.0
        self._past: deque[str] = deque(maxlen=8)

    async def visit(self) -> None:
        """Everything from the first click to the last."""
        self._notes.counts["arrived"] += 1
        if self._habit is Habit.CONFUSED:
            await self._blunder()
        elif self._habit is Habit.COOKIELESS:
            for _ in range(self._chance.randint(1, 4)):
                await self._ask("GET", "/")
                self._forget()
                await self._think(0.3, 2)
        elif await self._enter():
            await self._shop()

    def _forget(self) -> None:
        """Become somebody new to everybody else."""
        self._cookie, self._place, self._lives = "", None, self._lives + 1

    async def _enter(self) -> bool:
        """Come to the door, and wait where told to; False for whoever gave up."""
        patience = (
            self._chance.uniform(5, 30) if self._habit is Habit.IMPATIENT else self._chance.uniform(40, 150)
        )
        leave_at = time.monotonic() + patience
        sleeps = self._habit is Habit.SLEEPER
        reply = await self._open("/")
        while not reply.shop:
            if reply.state == "ended":
                reply = await self._doubt()
                if reply.state == "ended":
                    self._lost("told that the place has ended")
                    return False
                continue
            pause = float(reply.document.get("poll_after") or 2.0)
            if sleeps and self._chance.random() < 0.3:
                pause, sleeps = self._chance.uniform(20, 130), False
                leave_at += pause
            elif time.monotonic() + pause > leave_at:
                return await self._give_up()
            elif self._habit is Habit.FORGETFUL and self._chance.random() < 0.1:
                self._forget()
                self._habit = Habit.BUYER
            await asyncio.sleep(pause)
            reply = await self._wait()
        self._notes.counts["entered"] += 1
        return True

    async def _come_again(self) -> None:
        self._habit = Habit.BUYER
        if await self._enter():
            await self._shop()

    async def _wait(self) -> Reply:
        """Ask how it stands, and do what the answer asks for."""
        if not self._cookie:
            return await self._open("/")
        reply = await self._ask("GET", f"/.waitingroom/status?room={ROOM}", "application/json")
        self._notes.counts["polls"] += 1
        if reply.document.get("missed"):
            self._notes.counts["turns missed"] += 1
            await self._ask("GET", f"/.waitingroom/here?room={ROOM}")
        return await self._open("/") if reply.state in {"your_turn", "inside"} else reply

    async def _doubt(self) -> Reply:
        """Not believe that the place has ended: open the page once more, which asks the store itself."""
        reply = await self._open("/")
        self._notes.counts["told ended, and let in"] += reply.shop
        return reply

    async def _open(self, path: str) -> Reply:
        """Open a page at the door: as an app does, or as a browser."""
        reply = await self._ask("GET", path, "application/json" if self._app else "text/html")
        if reply.status >= 500:
            self._fail("failed", f"{path} was answered {reply.status}")
            await self._think(0.5, 1.5)
        return reply

    async def _give_up(self) -> bool:
        self._notes.counts["gave up"] += 1
        if self._habit is not Habit.VANISHER:
            await self._leave()
        return False

    async def _leave(self) -> None:
        """Say so on leaving, as the page's own button does."""
        self._notes.left[self._who] = time.monotonic()
        reply = await self._ask("POST", f"/.waitingroom/leave?room={ROOM}", "*/*", b"")
        if reply.document.get("state") != "ended":
            self._fail("failed", f"leaving was answered {reply.status}")

    async def _shop(self) -> None:
        """Look at some pages, and go as everybody does in their own way."""
        for _ in range(self._chance.randint(1, 5)):
            await self._think(0.5, 2.5)
            if self._habit is Habit.FORGETFUL:
                self._forget()
                await self._come_again()
                return
            if not await self._page(self._chance.choice(("/", "/lamps", "/lamps/vesper", "/basket", "/big"))):
                return
        if self._habit is Habit.UPLOADER:
            await self._upload()
        elif self._habit is Habit.WATCHER:
            await self._watch()
        elif self._habit is Habit.IDLER:
            return
        elif self._habit is Habit.LATECOMER:
            await self._think(self._crowd.session, self._crowd.session + 25)
            self._place = None
            await self._come_again()
            return
        await (self._page(LEAVING) if self._chance.random() < 0.6 else self._leave())

    async def _page(self, path: str, body: bytes | None = None) -> bool:
        """Get a page of the shop, asking again where it fails; False for whoever was put out."""
        for _ in range(20):
            reply = await self._ask("GET" if body is None else "POST", path, body=body)
            if reply.shop and reply.status == 200:
                self._notes.counts["pages"] += 1
                return True
            if reply.state:
                idle = time.monotonic() - self._served
                self._fail("put out", f"{path} was answered {reply.state} {idle:.1f} s after the page before")
                return False
            self._fail("failed", f"{path} was answered {reply.status}")
            await self._think(0.5, 1.5)
        return False

    async def _upload(self) -> None:
        size = self._chance.randint(20_000, 400_000)
        if await self._page("/upload", b"x" * size):
            self._notes.counts["uploads"] += 1

    async def _watch(self) -> None:
        """Follow a WebSocket for some seconds, and see that every word comes back."""
        url = f"ws://127.0.0.1:{self._crowd.diallers[self._gateway].port}/live"
        headers = {"Host": HOST, "X-Visitor": self._who, "Cookie": f"wr-{ROOM}={self._cookie}"}
        try:
            async with self._crowd.browser.ws_connect(url, headers=headers) as socket:
                for turn in range(self._chance.randint(1, 5)):
                    await socket.send_str(f"hello {turn}")
                    if await socket.receive_str(timeout=PATIENCE) != f"hello {turn}":
                        self._fail("failed", "a WebSocket said something else")
                    await self._think(0.2, 2)
            self._notes.counts["tunnels"] += 1
        except (aiohttp.ClientError, OSError, TypeError, TimeoutError) as error:
            self._fail("broken", f"a WebSocket: {error!r}")

    async def _blunder(self) -> None:
        """Say what is no request; any refusal will do, and so will a closed connection."""
        mistake = self._chance.choice(MISTAKES)
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._crowd.diallers[self._gateway].port
            )
            try:
                writer.write(mistake)
                said = await asyncio.wait_for(reader.read(65536), PATIENCE)
                if said and not said.startswith(b"HTTP/1.1 4"):
                    self._fail("malformed", f"{mistake[:40]!r} was answered {said[:40]!r}")
            except TimeoutError:
                self._fail("malformed", f"{mistake[:40]!r} was not answered")
            finally:
                writer.transport.abort()
        self._notes.counts["malformed"] += 1

    async def _ask(
        self, method: str, target: str, accept: str = "text/html", body: bytes | None = None
    ) -> Reply:
        """One request, at whichever gateway answers it."""
        request = request_of(method, target, accept, self._who, self._cookie, body)
        for turn in range(8):
            try:
                reply = await self._crowd.diallers[self._gateway].ask(request)
            except (OSError, asyncio.IncompleteReadError) as error:
                late = isinstance(error, TimeoutError)
                self._fail("unanswered" if late else "broken", f"{method} {target}: {error!r}")
                self._gateway = (self._gateway + 1) % len(self._crowd.diallers)
                await asyncio.sleep(0.05 * turn)
            else:
                self._note(reply)
                number = self._place.number if self._place else 0
                answer = f"{reply.status} {reply.state or ('shop' if reply.shop else '')}".strip()
                self._past.append(f"{time.monotonic():.1f} {method} {target} as {number}: {answer}")
                return reply
        self._fail("failed", f"{method} {target} reached no gateway")
        return Reply(0, "", None, shop=False, body=b"")

    @property
    def _who(self) -> str:
        return f"{self._name}.{self._lives}"

    def _note(self, reply: Reply) -> None:
        """Take over the cookie, and write down what was told of the place."""
        now = time.monotonic()
        if reply.shop:
            self._served = now
        if reply.cookie is not None:
            self._cookie = reply.cookie
            self._hold(*holder(reply.cookie))
        place = self._place
        if place is None:
            return
        # Whoever has a number and never asked is not there for the store, and may be passed over sooner.
        if now - self._heard > (SILENCE if place.heard <= now else FIRST_POLL):
            place.absent = True
        self._heard = now
        told = reply.document if reply.state else {}
        place.absent |= bool(told.get("missed"))
        if reply.shop or reply.state == "your_turn":
            place.called = min(place.called, now)
        elif reply.state == "waiting":
            place.waited = now
            if told and "cfWaitingRoom" not in told:  # a poll: who was given a number is not there before
                place.heard = min(place.heard, now)

    def _hold(self, number: int, visitor: str, use: str) -> None:
        """A token with a number: its own for good, as long as its holder waits."""
        if not number:
            return
        self._notes.holders.add((number, visitor))
        if self._place is not None and self._place.number == number:
            return
        if self._place is not None and self._place.called == float("inf"):
            self._lost(f"number {self._place.number} became {number} ({use})")
        self._heard = time.monotonic()
        self._place = Place(number, gateway=self._gateway)
        self._notes.places.append(self._place)

    def _lost(self, said: str) -> None:
        self._fail("lost", f"{said}; before: {'; '.join(self._past)}")

    def _fail(self, kind: str, said: str) -> None:
        self._notes.troubles.append(Trouble(time.monotonic(), kind, self._who, self._gateway, said))

    async def _think(self, low: float, high: float) -> None:
        await asyncio.sleep(self._chance.uniform(low, high))
