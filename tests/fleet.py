"""Two gateway processes on one store, a storefront that keeps its own log, and visitors who queue.

python -m tests.fleet gateway FILE        serve what FILE configures until SIGTERM
python -m tests.fleet storefront PORT LOG answer every request, and write each into LOG
"""

import asyncio
import base64
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.conftest import eventually
from waitingroom.config import load
from waitingroom.handin import HandIn
from waitingroom.room import Room, Snapshot
from waitingroom.server import Server
from waitingroom.store import Store

NOTICE = 0.15
"""Seconds between two polls of somebody whose turn is near: sooner than they are told to."""

STAY = 0.3
"""Seconds between the two pages that a visitor looks at."""

MOST_CONNECTIONS = 100
"""Connections to one gateway, shared by its visitors."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that reached the storefront; `at` is seconds on the machine's monotonic clock."""

    at: float
    visitor: str
    path: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A gateway's answer.

    Attributes:
        state: what the visitor is told, "" if the storefront answered.
        cookie: `name=value` if one was set.
    """

    status: int
    state: str
    cookie: str
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The status document that this is."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Dialler:
    """Keep-alive connections to one port of this machine, at most `MOST_CONNECTIONS` at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, method: str, target: str, *lines: str) -> Reply:
        """Send one request and read its answer.

        Raises:
            OSError, asyncio.IncompleteReadError: the gateway is not there, or went away.
        """
        async with self._slots:
            pair = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = pair
            try:
                writer.write("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                body = await reader.readexactly(int(_value(head, "content-length")))
            except BaseException:
                writer.transport.abort()
                raise
            self._free.append(pair)
        cookie = _value(head, "set-cookie").partition(";")[0]
        return Reply(int(head[9:12]), _value(head, "waiting-room"), cookie, body)

    def close(self) -> None:
        """Hang up."""
        for _, writer in self._free:
            writer.transport.abort()


def _value(head: str, name: str) -> str:
    start = head.lower().find(f"\r\n{name}:")
    return head[start + len(name) + 3 :].partition("\r\n")[0].strip() if start >= 0 else ""


@dataclass
class Visitor:
    """Somebody with a browser, who turns to the other gateway when theirs is gone.

    Attributes:
        gateway: index of the gateway that they were sent to.
        number: of the last ticket or pass that they were given, 0 before.
        reply: the last answer to a navigation or poll.
        statuses: every status that they met.
    """

    name: str
    fleet: "Fleet"
    gateway: int
    cookie: str = ""
    number: int = 0
    reply: Reply = field(default_factory=lambda: Reply(0, "", "", b""))
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def inside(self) -> bool:
        """Whether the last navigation reached the storefront."""
        return self.reply.status == 200 and not self.reply.state

    async def visit(self, path: str = "/sale", accept: str = "text/html") -> Reply:
        """Navigate."""
        return await self._ask("GET", path, accept)

    async def poll(self) -> dict[str, Any]:
        """Ask for the status document."""
        return (await self._ask("GET", "/.waitingroom/status?room=sale")).document

    async def leave(self) -> None:
        """Give up the place or the seat."""
        await self._ask("POST", "/.waitingroom/leave?room=sale")

    async def _ask(self, method: str, target: str, accept: str = "*/*") -> Reply:
        lines = ["Host: shop.test", f"X-Visitor: {self.name}", f"Accept: {accept}"]
        lines += [f"Cookie: theme=dark; {self.cookie}"] if self.cookie else []
        for _ in self.fleet.diallers:
            try:
                self.reply = await self.fleet.diallers[self.gateway].ask(method, target, *lines)
                break
            except (OSError, asyncio.IncompleteReadError):
                self.gateway = (self.gateway + 1) % len(self.fleet.diallers)
        self.statuses[self.reply.status] += 1
        self.cookie = self.reply.cookie or self.cookie
        self.number = _number(self.cookie) or self.number
        return self.reply

    async def enter(self) -> None:
        """Arrive, or go on waiting, until the storefront answers."""
        await self.visit()
        while not self.inside:
            document = await self.poll()
            if document["state"] == "your_turn":
                await self.visit()
                if self.inside:
                    return
            # The pace of a visitor is part of what is tested; nothing is waited for here.
            await asyncio.sleep(max(NOTICE, min(document["poll_after"], (document["ahead"] or 0) / 400)))

    async def shop(self) -> None:
        """Enter, look at one more page, and leave: every other visitor is sent out by the storefront."""
        await self.enter()
        await asyncio.sleep(STAY)
        if self.number % 2:
            await self.visit("/bye")
        else:
            await self.visit("/more")
            await self.leave()


def _number(cookie: str) -> int:
    """The number that a token says it has; nobody need verify it to read it."""
    claims = cookie.partition("=")[2].split(".")[1:2]
    return int(json.loads(base64.urlsafe_b64decode(f"{claims[0]}=="))["n"][1]) if claims else 0


@dataclass
class Fleet:
    """Gateways, their store and their storefront, as processes of their own.

    Attributes:
        tick: seconds between two ticks of a gateway.
    """

    folder: Path
    store_url: str
    room: Room
    tick: float
    configs: list[Path] = field(default_factory=list)
    diallers: list[Dialler] = field(default_factory=list)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def visitors(self, count: int, name: str = "v") -> list[Visitor]:
        """So many visitors, dealt out to the gateways in turn."""
        return [
            Visitor(f"{name}{index}", self, index % len(self.diallers), statuses=Counter())
            for index in range(count)
        ]

    def log(self) -> list[Seen]:
        """Every request that has reached the storefront, in order."""
        lines = [line.split(" ") for line in (self.folder / "log").read_text().splitlines()]
        return [Seen(float(at), visitor, path) for at, visitor, path in lines]

    async def snapshot(self) -> Snapshot:
        """The room as the store has it now."""
        store = Store(self.store_url, "test", tick=self.tick, timeout=5)
        try:
            _, found = await store.tick(self.room, Snapshot(), HandIn())
        finally:
            await store.close()
        return found

    async def start(self, index: int) -> None:
        """Start a gateway, and wait until it takes connections."""
        self.processes[index] = launch(self.folder, "gateway", str(self.configs[index]))
        await listening(self.diallers[index].port)

    async def end(self, index: int, how: signal.Signals) -> None:
        """End a gateway with a signal, and wait until it has gone."""
        process = self.processes[index]
        process.send_signal(how)
        await eventually(lambda: process.poll() is not None, 15)


async def listening(port: int) -> None:
    """Wait until somebody listens on a port of this machine."""

    async def holds() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.transport.abort()
        return True

    await eventually(holds, 20)


@asynccontextmanager
async def running(
    folder: Path,
    store_url: str,
    port: Callable[[], int],
    tick: float = 0.25,
    *,
    timeout: float = 2.0,  # noqa: ASYNC109 - the store's
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """A storefront and two gateways with one room, `sale`, that has these settings."""
    shop = port()
    room = Room(name="sale", upstream=f"http://127.0.0.1:{shop}", **settings)
    fleet = Fleet(folder, store_url, room, tick)
    (folder / "keys").write_text("k" * 40)
    table = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    for index in range(2):
        fleet.diallers.append(Dialler(port()))
        fleet.configs.append(folder / f"gateway{index}.toml")
        fleet.configs[index].write_text(
            f'[server]\nlisten = "127.0.0.1:{fleet.diallers[index].port}"\n'
            f'private_listen = "127.0.0.1:{port()}"\n'
            f'[store]\nurl = "{store_url}"\ndata = "{folder}/{index}"\ntick = {tick}\ntimeout = {timeout}\n'
            f'[tokens]\nkeys_file = "{folder}/keys"\n'
            f'[[rooms]]\nname = "sale"\nupstream = "{room.upstream}"\n{table}'
        )
    storefront = launch(folder, "storefront", str(shop), str(folder / "log"))
    try:
        await asyncio.gather(listening(shop), fleet.start(0), fleet.start(1))
        yield fleet
    finally:
        for dialler in fleet.diallers:
            dialler.close()
        processes = [storefront, *fleet.processes.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(15)


def launch(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start this module as a process of its own, whose output goes to a file in `folder`."""
    with (folder / f"{arguments[0]}.out").open("ab") as output:
        command = [sys.executable, "-m", "tests.fleet", *arguments]
        return subprocess.Popen(command, stdout=output, stderr=output)


class _Storefront(asyncio.Protocol):
    """Answers every request, and writes down when it came, whose it was and what was asked for."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._buffer = (self._buffer + data).split(b"\r\n\r\n")
        for head in heads:
            text = head.decode("latin-1")
            path = text.split(" ")[1]
            self._log(f"{time.monotonic():.6f} {_value(text, 'x-visitor') or '-'} {path}\n")
            revoke = "Waiting-Room-Command: revoke\r\n" if path == "/bye" else ""
            self._transport.write(f"HTTP/1.1 200 OK\r\n{revoke}Content-Length: 4\r\n\r\nshop".encode())


async def _storefront(port: int, log: Path) -> None:
    with log.open("a", buffering=1) as file:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Storefront(file.write), "127.0.0.1", port
        )
        await server.serve_forever()


async def _gateway(config: Path) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = Server(load(config, {}))
    await server.start()
    await stopped.wait()
    await server.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(
            _gateway(Path(sys.argv[2]))
            if sys.argv[1] == "gateway"
            else _storefront(int(sys.argv[2]), Path(sys.argv[3]))
        )
