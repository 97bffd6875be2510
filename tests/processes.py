"""Gateways started as anybody starts them, and a crowd of clients and a storefront that judge them.

Each request carries an id that comes back in its answer. What counts is the storefront's own log beside what
the clients have received: nothing may have been done for somebody who was not told, or told twice.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import eventually
from tests.house import KEY
from tests.wire import Storefront, Wire, storefront

PATIENCE = 20.0
"""Seconds after which a test stops waiting for a process."""


@dataclass
class Gateway:
    """`waitingroom serve` in a process of its own.

    Attributes:
        port: of the public listener.
        private: address of the private one.
    """

    process: subprocess.Popen[bytes]
    config: Path
    log: Path
    port: int
    private: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Everything that it has logged so far."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of one name."""
        return [line for line in self.lines if line["event"] == name]

    async def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the so-manieth line of that name."""
        await eventually(lambda: len(self.events(name)) >= count, PATIENCE)
        return self.events(name)[count - 1]

    def send(self, number: signal.Signals) -> None:
        """Signal the process that was started."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended, and return its exit code."""
        await eventually(lambda: self.process.poll() is not None, PATIENCE)
        return self.process.wait()

    async def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and document of a request to the private listener."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.private}{path}") as answer:
            return answer.status, await answer.json(content_type=None)

    async def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Every sample, by name without prefix and values of its labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.private}/metrics") as answer:
            text = await answer.text()
        return {
            (sample.name.removeprefix("waitingroom_"), tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metric(self, name: str, *labels: str) -> float:
        """One sample."""
        return (await self.metrics())[name, labels]

    async def until(self, name: str, *labels: str, is_: float) -> None:
        """Wait until a sample has a value."""

        async def holds() -> bool:
            return (await self.metrics()).get((name, labels)) == is_

        await eventually(holds, PATIENCE)

    def workers(self) -> dict[int, int]:
        """Process ids of the workers that serve now, by index."""
        pids = {line["worker"]: line["pid"] for line in self.lines if line["event"] in _BEGUN}
        return {index: pid for index, pid in pids.items() if alive(pid)}


_BEGUN = ("worker_ready", "worker_renewed")


def alive(pid: int) -> bool:
    """Whether there is such a process, other than its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def room(name: str = "sale", **settings: Any) -> str:
    """A room as TOML, with plenty of room in it."""
    values = {"name": name, "total_active_users": 100_000, "new_users_per_minute": 1_000_000} | settings
    return "[[rooms]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def configuration(
    folder: Path, store: str, port: int, private: int, rooms: str, server: str = "", more: str = ""
) -> str:
    """A configuration as TOML."""
    return (
        f'[server]\nlisten = "127.0.0.1:{port}"\nprivate_listen = "127.0.0.1:{private}"\n{server}\n'
        f'[store]\nurl = "{store}"\ndata = "{folder}/data"\ntick = "200ms"\ntimeout = "2s"\n'
        f'[tokens]\nkeys = ["{KEY}"]\n{more}\n{rooms}'
    )


@contextmanager
def launched(folder: Path, text: str, port: int, private: int, *words: str) -> Iterator[Gateway]:
    """Start a gateway with this configuration; it is not waited for, and ended at the end."""
    folder.mkdir(exist_ok=True)
    config, log = folder / "waitingroom.toml", folder / "log"
    config.write_text(text)
    command = [sys.executable, "-m", "waitingroom", "serve", "--config", str(config), *words]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield Gateway(process, config, log, port, f"http://127.0.0.1:{private}")
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def serving(
    folder: Path,
    store: str,
    free_port: Callable[[], int],
    *words: str,
    rooms: str,
    server: str = "",
    more: str = "",
) -> AsyncIterator[Gateway]:
    """Start a gateway, and wait until it says that it has started."""
    port, private = free_port(), free_port()
    text = configuration(folder, store, port, private, rooms, server, more)
    with launched(folder, text, port, private, *words) as gateway:
        await gateway.event("gateway_started")
        yield gateway


@dataclass
class Shop:
    """A storefront that takes its time, reads what it is sent, and writes down every request.

    Attributes:
        begun: ids of requests whose head has come.
        done: ids of requests that were answered.
        release: lets `/held` go on.
    """

    front: Storefront | None = None
    begun: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        assert self.front is not None
        return self.front.url

    async def answer(self, wire: Wire, head: bytes) -> None:
        """Serve one request."""
        name = _field(head, "x-id")
        self.begun[name] += 1
        body = await wire.exactly(int(_field(head, "content-length") or 0))
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/held"):
            await self.release.wait()
        if path.startswith(b"/slow"):
            await asyncio.sleep(random.uniform(0.02, 0.2))  # a storefront that thinks; nothing is waited for
        text = f"{name} {len(body)}".encode()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        self.done[name] += 1


@asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    """Open such a storefront."""
    opened = Shop()
    async with storefront(opened.answer) as front:
        opened.front = front
        yield opened


def _field(head: bytes, name: str) -> str:
    lower = head.lower()
    start = lower.find(f"\r\n{name}:".encode())
    return lower[start + len(name) + 3 :].partition(b"\r\n")[0].strip().decode() if start >= 0 else ""


@dataclass
class Crowd:
    """Clients that keep many requests under way, each on connections of its own, new ones now and then.

    Attributes:
        answered: ids of requests whose whole answer has come, and was theirs.
        refused: connections that could not be made.
        lost: ids of requests that were not answered, on connections on which nothing had been said before.
        crossed: ids of requests that were sent just as their connection, on which others had been answered,
            was closed by the gateway; not a byte of an answer came.
        wrong: answers other than 200, and answers to other requests.
    """

    port: int
    cookie: str = ""
    uploads: bool = True
    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _going: bool = True
    _count: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def pressing(self, clients: int) -> AsyncIterator["Crowd"]:
        """Let so many clients go on, until none can connect any more, or the end of the block."""
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            await eventually(lambda: len(self.answered) > clients, PATIENCE)
            yield self
        finally:
            self._going = False
            await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE)

    async def turned_away(self) -> None:
        """Wait until nobody can connect any more."""
        await eventually(lambda: all(task.done() for task in self._tasks), PATIENCE)

    async def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        before = len(self.answered)
        await eventually(lambda: len(self.answered) >= before + count, PATIENCE)

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        while self._going:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                self.refused += 1
                return
            wire = Wire(reader, writer)
            left = requests = chance.choice([1, 1, 3, 50])
            try:
                while left and self._going:
                    keep = await self._request(wire, chance, fresh=left == requests)
                    left = left - 1 if keep else 0
            finally:
                wire.reset()

    async def _request(self, wire: Wire, chance: random.Random, *, fresh: bool) -> bool:
        """Whether the connection can be used for another."""
        self._count += 1
        name = f"r{self._count}"
        size = chance.choice([0, 0, 0, 200_000]) if self.uploads else 0
        try:
            await self._send(wire, name, size, chance)
            answer, body = await wire.answer()
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
            (self.lost if fresh or begun else self.crossed).append(name)
            return False
        if (answer.status, body) == (200, f"{name} {size}".encode()):
            self.answered[name] += 1
        else:
            self.wrong.append(f"{name}: {answer.status} {body[:80]!r}")
        return answer.keep_alive

    async def _send(self, wire: Wire, name: str, size: int, chance: random.Random) -> None:
        method, path = ("POST", "/upload") if size else ("GET", chance.choice(["/", "/slow"]))
        lines = [f"{method} {path} HTTP/1.1", "Host: shop.example", f"X-Id: {name}", "Accept: text/html"]
        lines += [f"Cookie: {self.cookie}"] if self.cookie else []
        lines += [f"Content-Length: {size}"] if size else []
        await wire.send("\r\n".join([*lines, "", ""]).encode())
        while size:
            if wire.writer.is_closing():
                raise ConnectionResetError
            piece = min(size, 20_000)
            await wire.send(b"x" * piece)
            await asyncio.sleep(
                chance.uniform(0, 0.01)
            )  # a client that takes its time; nothing is waited for
            size -= piece


async def admitted(port: int) -> str:
    """The cookie of somebody who has walked in and come back."""
    cookie = ""
    for _ in range(2):
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            headers = {"Accept": "text/html", "Host": "shop.example", "X-Id": "first"}
            headers |= {"Cookie": cookie} if cookie else {}
            async with session.get(f"http://127.0.0.1:{port}/", headers=headers) as answer:
                assert answer.status == 200
                given = answer.headers.get("Set-Cookie", "").partition(";")[0]
                cookie = given or cookie
    return cookie


def judge(crowd: Crowd, shop: Shop) -> None:
    """Nobody's request was lost, or done without their being told, or done twice."""
    assert crowd.wrong == []
    assert crowd.lost == []
    served = {name: times for name, times in shop.begun.items() if name.startswith("r")}
    assert set(served) - set(crowd.answered) == set()
    assert {name for name, times in served.items() if times != 1} == set()
    assert set(crowd.crossed) & set(served) == set()


def descendants(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def resume(pid: int) -> None:
    """Let a stopped process go on, if it is still there."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return
