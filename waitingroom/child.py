"""One worker as its supervisor sees it: a process, a channel, what it tells, and when it is replaced."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import aiohttp

from waitingroom.config import ConfigError
from waitingroom.embedded import tied_to
from waitingroom.figures import Figures
from waitingroom.metrics import Restart
from waitingroom.orders import LONGEST, Orders
from waitingroom.private import MOST_FROM_ONE

CHECK = 1.0
"""Seconds between two looks at a worker, and in which it answers."""

SILENCE = 10.0
"""Seconds of silence after which a worker hangs."""

FIRST_WORD = 60.0
"""The same until it has said anything at all: many that start on few cores take their time."""

RELOADING = 60.0
"""Seconds in which a worker takes over other orders, or has failed to."""

SERVED = 10.0
"""Seconds after which a worker has served for long enough not to have died of its start."""

LOOP = 5
LOOP_SPAN = 60.0
"""So many deaths of such workers at one socket within so many seconds are a loop."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker: when, in monotonic seconds, and for how many it had served."""

    at: float
    served: float


def pause_after(deaths: Sequence[Death]) -> float:
    """Seconds until a worker is replaced: at once the first time, longer each time that it did not help."""
    failed = sum(1 for _ in takewhile(lambda death: death.served < SERVED, reversed(deaths)))
    if is_looping(deaths):
        return LONGEST_PAUSE
    return min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** (failed - 2)) if failed > 1 else 0.0


def is_looping(deaths: Sequence[Death], served: float = 0.0) -> bool:
    """Whether workers die again and again; not any more once one has `served` for long enough."""
    last = deaths[-LOOP:]
    short = len(last) == LOOP and all(death.served < SERVED for death in last)
    return short and last[-1].at - last[0].at <= LOOP_SPAN and served < SERVED


class Child:
    """One worker process.

    Attributes:
        index: of its socket.
        session: speaks to its private listener.
        ready_at: when it began to serve, in monotonic seconds; None before.
        ended_at: when it ended; None before.
        leaving: it has been told to stop.
        heard_at: when it has told its figures last.
        failure: why it could not start, if it has said so.
        hung: it was silent for too long, and has been killed.
    """

    def __init__(
        self,
        index: int,
        process: Process,
        private: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.index = index
        self.session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(private), limit=MOST_FROM_ONE // 2), auto_decompress=False
        )
        self.ready_at: float | None = None
        self.ended_at: float | None = None
        self.leaving = self.hung = False
        self.heard_at = 0.0
        self.failure: ConfigError | None = None
        self._process = process
        self._reader = reader
        self._writer = writer
        self._news = asyncio.Condition()
        self._asked = self._told = 0
        self._document: dict[str, Any] | None = None
        self._reloads: asyncio.Queue[bool] = asyncio.Queue()

    @classmethod
    async def spawn(
        cls, index: int, sockets: Sequence[socket.socket], private: Path, orders: Orders
    ) -> "Child":
        """Start a worker on these sockets, with its private listener at `private`.

        Raises:
            OSError: the system starts no more processes.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [sock.fileno() for sock in sockets]
            words = [str(index), str(theirs.fileno()), ",".join(map(str, numbers)), str(private)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "waitingroom.worker", *words),
                stdin=DEVNULL,
                env=os.environ | {"PYTHONPATH": _import_path()},
                pass_fds=(theirs.fileno(), *numbers),
                start_new_session=True,  # Ctrl-C is for the supervisor, which tells its workers
                preexec_fn=tied_to(os.getpid()),
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        child = cls(index, process, private, reader, writer)
        child._tell("start", orders=asdict(orders))
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.ready_at is not None and self.ended_at is None

    @property
    def served(self) -> float:
        """Seconds for which it has served."""
        end = time.monotonic() if self.ended_at is None else self.ended_at
        return 0.0 if self.ready_at is None else end - self.ready_at

    @property
    def figures(self) -> Figures | None:
        """What it has told last of what it has counted."""
        return Figures.parse(self._document) if self._document else None

    @property
    def code(self) -> int:
        """The exit code, or the negative number of the signal that has ended it."""
        return self._process.returncode or 0

    @property
    def reason(self) -> Restart:
        """Why it has to be replaced."""
        if self.hung:
            return "hang"
        return "exit" if self.code == 0 else "crash"

    async def attend(self) -> None:
        """Listen to it, and look after it, until it has ended."""
        looking = asyncio.create_task(self._look_after())
        try:
            await self._listen()
            await self._process.wait()
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            self.ended_at = time.monotonic()
            self._writer.close()
            await self.session.close()
            await self._announce()

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                told = json.loads(line)
                if told["say"] == "ready":
                    self.ready_at = time.monotonic()
                    await self._announce()
                elif told["say"] == "reloaded":
                    self._reloads.put_nowait(told["done"])
                elif told["say"] == "figures":
                    self._document, self.heard_at = told["figures"], time.monotonic()
                    self._told = told["turn"]
                    await self._announce()
                elif told["say"] == "failed":
                    self.failure = ConfigError(told["where"], told["what"], told["remedy"])

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def settled(self) -> bool:
        """Wait until it serves, or has ended; return whether it serves."""
        async with self._news:
            await self._news.wait_for(lambda: self.ready_at is not None or self.ended_at is not None)
        return self.ready

    async def ended(self) -> None:
        """Wait until it has ended."""
        async with self._news:
            await self._news.wait_for(lambda: self.ended_at is not None)

    async def _look_after(self) -> None:
        """Kill it when it has been silent for too long, in our own time: we may have been stopped, too."""
        silent_since: float | None = None
        while True:
            await asyncio.sleep(CHECK)
            now = time.monotonic()
            if await self.ask():
                silent_since = None
            elif silent_since is None:
                silent_since = now
            elif time.monotonic() - silent_since > (SILENCE if self._document else FIRST_WORD):
                self.hung = True
                self.kill()
                return

    async def ask(self) -> bool:
        """Have it tell its figures anew; whether it did in time."""
        self._asked += 1
        turn = self._asked
        self._tell("tell", turn=turn)
        try:
            async with asyncio.timeout(CHECK), self._news:
                await self._news.wait_for(lambda: self._told >= turn or self.ended_at is not None)
        except TimeoutError:
            return False
        return True

    async def reload(self, orders: Orders) -> bool:
        """Have it take over other orders; whether it did, or is about to end anyway."""
        while not self._reloads.empty():
            self._reloads.get_nowait()  # the answer to one that took too long
        self._tell("reload", orders=asdict(orders))
        taking = asyncio.create_task(self._reloads.get())
        ending = asyncio.create_task(self.ended())
        done, left = await asyncio.wait(
            [taking, ending], timeout=RELOADING, return_when=asyncio.FIRST_COMPLETED
        )
        for task in left:
            task.cancel()
        return ending in done or (taking in done and taking.result())

    def leave(self, *, alone: bool) -> None:
        """Have it finish what is under way, and end; `alone`: its sockets are held by nobody else."""
        self.leaving = True
        self._tell("stop", alone=alone)

    def hurry(self) -> None:
        """Have it end without finishing."""
        self._tell("hurry")

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _tell(self, what: str, **more: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"do": what, **more}).encode() + b"\n")


def _import_path() -> str:
    """Where the worker finds this very package, whatever folder it is started in."""
    here = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
