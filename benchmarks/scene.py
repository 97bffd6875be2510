"""What a soak runs on: a store, a storefront and two gateways as processes, and what befalls them.

The gateways reach store and storefront through relays that can be told to misbehave.

    python -m benchmarks.scene PORT LOG     the storefront: answers everybody, and keeps its own log
"""

import asyncio
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import redis.asyncio as redis
from aiohttp import web

from benchmarks.judges import LEAVING, Period, Point
from benchmarks.rig import cpu_seconds, free_ports, listens, resident
from benchmarks.stands import KEY
from waitingroom import embedded
from waitingroom.faults import Proxy, freeze, kill, relay, thaw
from waitingroom.toxics import Latency

GATEWAYS = 2
KILLED = 1
"""The gateway that is killed now and then; the other one lives from beginning to end."""

SESSION = 20.0
CLAIM_WINDOW = 90.0

_CONFIG = """
[server]
listen = "127.0.0.1:{public}"
private_listen = "127.0.0.1:{private}"
[store]
url = "{store}"
data = "{data}"
[tokens]
keys = ["{key}"]
[log]
format = "json"
[[rooms]]
name = "sale"
upstream = "{shop}"
total_active_users = {seats}
new_users_per_minute = {rate}
session_duration = "{session}s"
claim_window = "{claim}s"
"""

_ROOT = Path(__file__).parents[1]
_PAGE = b"<!doctype html><title>Shop</title>" + b"<p>A lamp, and a word about it.</p>\n" * 200


@dataclass
class Life:
    """A process from its start to its end; whoever is started again begins another.

    Attributes:
        memory: seconds and bytes; `descriptors` how many are open, at each of the same moments.
        metrics: what it told of itself last.
        cpu: seconds of CPU time.
    """

    pid: int
    began: float
    memory: list[Point] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0

    def sample(self) -> None:
        """Look at the process; one that has just ended is left as it was last."""
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))  # noqa: PTH208 - a Path for each is not needed
            if size := resident(self.pid):  # one that has ended, and was not asked how, has none
                self.memory.append((time.monotonic(), float(size)))
            self.cpu = cpu_seconds(self.pid)


class Part:
    """One process of the scene, which can be ended and started again.

    Args:
        ready: whether it serves by now.

    Attributes:
        reading: cleared while nobody reads its log.
        complaints: lines of its log that an operator would have to look at.
        lines: of its log that were read.
        expected: whether it is about to be ended on purpose.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        ready: Callable[[], Awaitable[bool]],
        path: str = "",
    ) -> None:
        self.name = name
        self.lives: list[Life] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.complaints: list[str] = []
        self.lines = 0
        self.expected = False
        self.ended_alone = 0
        self.said = folder / f"{name}.said"
        self._command = command
        self._folder = folder
        self._ready = ready
        self._environment = os.environ | ({"PYTHONPATH": path} if path else {})
        self._tasks: set[asyncio.Task[None]] = set()
        self._process: asyncio.subprocess.Process

    @property
    def life(self) -> Life:
        """The present one, or the last."""
        return self.lives[-1]

    async def start(self) -> None:
        """Start it, and wait until it serves.

        Raises:
            RuntimeError: it does not, with the end of what it said.
        """
        with self.said.open("ab") as said:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
            )
        self.expected = False
        self.lives.append(Life(self._process.pid, time.monotonic()))
        for work in (self._read(self._process), self._watch(self._process)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        deadline = time.monotonic() + 30
        while not await self._ready():
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.said.read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    async def end(self, how: Callable[[int], None]) -> int:
        """End it; how it says it ended."""
        self.expected = True
        with suppress(ProcessLookupError):
            how(self._process.pid)
        return await self._process.wait()

    async def stop(self) -> None:
        """End it however it stands."""
        self.reading.set()
        if self.lives and self._process.returncode is None:
            with suppress(ProcessLookupError):
                thaw(self._process.pid)
            try:
                await asyncio.wait_for(self.end(lambda pid: os.kill(pid, 15)), 15)
            except TimeoutError:
                await self.end(kill)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.lines += 1
            if b'"level":"error"' in line or b'"level":"critical"' in line:
                self.complaints.append(line.decode(errors="replace").strip())
            if not self.reading.is_set():
                await self.reading.wait()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self.ended_alone += not self.expected


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is to befall the scene, `at` seconds after its beginning and for so many seconds."""

    at: float
    name: str
    seconds: float


DURATIONS = {
    "gateway killed": 1.0,
    "store killed": 2.0,
    "store frozen": 2.0,
    "origin refusing": 3.0,
    "store slow": 5.0,
    "origin slow": 5.0,
    "log stalled": 8.0,
}
KILLS = ("gateway killed", "store killed")


def schedule(seconds: float) -> list[Fault]:
    """What befalls a scene of this length, one after the other.

    Whoever is killed begins with a small memory again, so that this happens in the first third only, and
    memory is judged in the second half.
    """
    found: list[Fault] = []
    names, turn = [*DURATIONS], 0
    pause = 12.0 if seconds < 600 else 18.0
    at = pause
    while at + 10 < seconds:
        name = names[turn % len(names)]
        turn += 1
        if name not in KILLS or at < 0.3 * seconds:
            found.append(Fault(at, name, DURATIONS[name]))
            at += pause
    return found


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault as it was, in monotonic seconds."""

    name: str
    began: float
    ended: float


class Scene:
    """Everything that runs, but for the crowd.

    Attributes:
        seats, rate: the room's limits, `rate` in people a minute.
        happened: the faults so far.
        now: the fault that is under way, "" without one.
    """

    def __init__(self, folder: Path, seats: int, rate: int, compiled: Path | None) -> None:
        self.folder = folder
        self.seats = seats
        self.rate = rate
        self.happened: list[Happened] = []
        self.now = ""
        self.log = folder / "shop.log"
        ports = free_ports(1 + 2 * GATEWAYS)
        self._shop_port = ports[0]
        self.public, self.private = ports[1 : 1 + GATEWAYS], ports[1 + GATEWAYS :]
        self._compiled = compiled
        self._address = folder / "store.sock"
        self.store_way: Proxy
        self.shop_way: Proxy
        self.store = Part("store", self._valkey(), folder, self._pings)
        python = [sys.executable, "-m"]
        shop = [*python, "benchmarks.scene", str(self._shop_port), str(self.log)]
        self.shop = Part("shop", shop, folder, self._answers(self._shop_port), str(_ROOT))
        serve = [*python, "waitingroom", "serve", "--config"]
        self.gateways = [
            Part(
                f"gateway {index}",
                [*serve, str(folder / f"{index}.toml")],
                folder,
                self._answers(port),
                str(compiled or _ROOT),
            )
            for index, port in enumerate(self.public)
        ]

    @property
    def parts(self) -> list[Part]:
        """Every process."""
        return [self.store, self.shop, *self.gateways]

    def _valkey(self) -> list[str]:
        options = ["--port", "0", "--unixsocket", str(self._address), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "everysec", "--logfile", "store.log"]
        return [str(embedded.binary()), *options]

    async def _pings(self) -> bool:
        async with redis.Redis.from_url(f"unix://{self._address}") as client:
            try:
                return bool(await client.ping())
            except (redis.ConnectionError, redis.ResponseError):
                return False

    @staticmethod
    def _answers(port: int) -> Callable[[], Awaitable[bool]]:
        async def holds() -> bool:
            return listens(port)

        return holds

    async def open(self, stack: AsyncExitStack) -> None:
        """Start everything; `stack` ends it."""
        for part in self.parts:
            stack.push_async_callback(part.stop)
        self.store_way = await stack.enter_async_context(
            relay(f"unix://{self._address}", path=self.folder / "relay.sock")
        )
        self.shop_way = await stack.enter_async_context(relay(f"http://127.0.0.1:{self._shop_port}"))
        for index in range(GATEWAYS):
            text = _CONFIG.format(
                public=self.public[index],
                private=self.private[index],
                store=self.store_way.url,
                data=self.folder / f"gateway{index}",
                key=KEY,
                shop=self.shop_way.url,
                seats=self.seats,
                rate=self.rate,
                session=SESSION,
                claim=CLAIM_WINDOW,
            )
            (self.folder / f"{index}.toml").write_text(text)
        for part in self.parts:
            await part.start()

    async def befall(self, fault: Fault) -> None:
        """Let a fault happen, and pass."""
        self.now, began = fault.name, time.monotonic()
        match fault.name:
            case "gateway killed":
                await self._killed(self.gateways[KILLED], fault.seconds)
            case "store killed":
                await self._killed(self.store, fault.seconds)
            case "store frozen":
                freeze(self.store.life.pid)
                await asyncio.sleep(fault.seconds)
                thaw(self.store.life.pid)
            case "store slow":
                await self._slow(self.store_way, Latency(120, 60), fault.seconds)
            case "origin slow":
                await self._slow(self.shop_way, Latency(1500, 500), fault.seconds)
            case "origin refusing":
                await self.shop_way.down()
                await asyncio.sleep(fault.seconds)
                await self.shop_way.up()
            case "log stalled":
                self.gateways[0].reading.clear()
                await asyncio.sleep(fault.seconds)
                self.gateways[0].reading.set()
        self.happened.append(Happened(fault.name, began, time.monotonic()))
        self.now = ""

    async def _killed(self, part: Part, seconds: float) -> None:
        await part.end(kill)
        await asyncio.sleep(seconds)
        await part.start()

    async def _slow(self, way: Proxy, toxic: Latency, seconds: float) -> None:
        way.add(toxic)
        await asyncio.sleep(seconds)
        way.remove(toxic)

    def periods(self, *names: str, after: float = 0.0) -> list[Period]:
        """When these faults were in force, and so many seconds beyond."""
        return [(one.began - 0.5, one.ended + after) for one in self.happened if one.name in names]

    async def sample(self) -> None:
        """Look at every process each second, and ask the gateways every fifth, until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as client:
            turn, due = 0, time.monotonic()
            while True:
                for part in self.parts:
                    part.life.sample()
                if turn % 5 == 0:
                    await self.ask(client)
                turn, due = turn + 1, due + 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def ask(self, client: aiohttp.ClientSession) -> None:
        """Take over what the gateways tell of themselves; who is away is asked the next time."""
        for gateway, port in zip(self.gateways, self.private, strict=True):
            life = gateway.life
            with suppress(aiohttp.ClientError, TimeoutError):
                async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
                    life.metrics = read_metrics(await answer.text())


def read_metrics(text: str) -> dict[str, float]:
    """The samples of a Prometheus exposition, by name and labels as they are written."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            found[name] = float(value)
    return found


def lag(metrics: dict[str, float]) -> dict[float, float]:
    """The cumulative buckets of how late the event loop was, by their edge in seconds."""
    pattern = re.compile(r'waitingroom_event_loop_lag_seconds_bucket\{le="(.+)"\}')
    found = ((pattern.fullmatch(name), value) for name, value in metrics.items())
    return {math.inf if one[1] == "+Inf" else float(one[1]): value for one, value in found if one}


@asynccontextmanager
async def running(folder: Path, seats: int, rate: int, compiled: Path | None) -> AsyncIterator[Scene]:
    """A scene that runs until the end of the block."""
    async with AsyncExitStack() as stack:
        scene = Scene(folder, seats, rate, compiled)
        await scene.open(stack)
        yield scene


def _storefront(log: Callable[[str], object]) -> web.Application:
    """A shop that serves everybody, and writes down when somebody came, who it was and what they wanted."""

    @web.middleware
    async def front(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        log(f"{time.monotonic():.6f} {request.headers.get('X-Visitor', '-')} {request.path}\n")
        return await handler(request)

    async def page(request: web.Request) -> web.Response:
        headers = {"X-Shop": "open"}
        if request.path == LEAVING:
            headers["Waiting-Room-Command"] = "revoke"
        body = _PAGE * 30 if request.path == "/big" else _PAGE
        return web.Response(body=body, content_type="text/html", headers=headers)

    async def upload(request: web.Request) -> web.Response:
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        return web.json_response({"size": size}, headers={"X-Shop": "open"})

    async def live(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(str(message.data))
        return socket

    app = web.Application(middlewares=[front])
    app.add_routes([web.post("/upload", upload), web.get("/live", live), web.get("/{path:.*}", page)])
    return app


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a", buffering=1) as file:
        web.run_app(
            _storefront(file.write), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None
        )
