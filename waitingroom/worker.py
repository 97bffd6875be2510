"""One worker of a gateway: a process of its own on a socket that its supervisor holds.

    python -m waitingroom.worker INDEX CHANNEL SOCKET[,SOCKET...] PRIVATE

CHANNEL and SOCKET are inherited descriptors, PRIVATE is where to put the Unix socket of the private listener.
Over the channel comes a line of JSON for each thing to do, and goes one for each that is to be known; its end
is the end of the supervisor, and the worker's.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop

from waitingroom.config import ConfigError
from waitingroom.logs import AS_JSON, adjust_logging, configure_logging
from waitingroom.orders import LONGEST, Orders
from waitingroom.process import collect_less
from waitingroom.requestlog import RequestLog
from waitingroom.server import Server
from waitingroom.signals import whenever

OK, FAILED, MISUSE = 0, 1, 2

WORD = 0.5
"""Seconds in which the supervisor says how to stop, if it is about to stop itself."""

_log = structlog.get_logger()


class Worker:
    """A server, and what its supervisor wants of it.

    Args:
        server: not yet started.
        orders: that it was made by.
        log: of its requests.
        reader: of the channel.
        writer: of the channel.
    """

    def __init__(
        self,
        server: Server,
        orders: Orders,
        log: RequestLog,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server = server
        self._orders = orders
        self._ordered = asyncio.Event()
        self._turn = 0
        self._log = log
        self._reader = reader
        self._writer = writer
        self._supervisor = os.getppid()
        self._stopping = asyncio.Event()
        self._signalled = False
        self._alone = False

    async def serve(self) -> None:
        """Serve until told to stop, then finish what is under way.

        Raises:
            ConfigError: as `Server.start`.
        """
        work = asyncio.current_task()
        assert work is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, work)
        heeding = asyncio.create_task(self._heed(work))
        await self._server.start()
        collect_less()
        self._tell()
        self._say("ready")
        reloading = asyncio.create_task(whenever(self._ordered, self._reload))
        await self._stopping.wait()
        reloading.cancel()
        await asyncio.wait([reloading])
        await self._server.stop(alone=self._alone)
        heeding.cancel()
        await asyncio.wait([heeding])
        self._turn += 1
        self._tell()

    def _on_signal(self, work: "asyncio.Task[None]") -> None:
        if self._signalled:
            work.cancel()
        self._signalled = True
        if os.getppid() != self._supervisor:
            self._stop(alone=True)
        else:
            # Whoever signals us may signal all of us at once: the supervisor then has a word to say.
            asyncio.get_running_loop().call_later(WORD, partial(self._stop, alone=False))

    def _stop(self, *, alone: bool) -> None:
        if not self._stopping.is_set():
            self._alone = alone
            self._stopping.set()

    async def _heed(self, work: "asyncio.Task[None]") -> None:
        """Do what is asked for over the channel."""
        while line := await self._reader.readline():
            told = json.loads(line)
            if told["do"] == "tell":
                self._turn = told["turn"]
                self._tell()
            elif told["do"] == "stop":
                self._stop(alone=told["alone"])
            elif told["do"] == "hurry":
                work.cancel()
            else:
                self._orders = Orders(**told["orders"])
                self._ordered.set()
        self._stop(alone=True)

    async def _reload(self) -> None:
        done = False
        try:
            settings = self._orders.settings()
            await self._server.reload(settings)
            adjust_logging(self._log, settings.log.level, settings.log.poll_sample)
            done = True
        except ConfigError as error:
            self._server.refuse(error)
        finally:
            self._say("reloaded", done=done)

    def _tell(self) -> None:
        self._say("figures", figures=self._server.figures(), turn=self._turn)

    def _say(self, word: str, **more: Any) -> None:
        say(self._writer, word, **more)


def say(writer: asyncio.StreamWriter, word: str, **more: Any) -> None:
    """Let the supervisor know."""
    writer.write(json.dumps({"say": word, **more}).encode() + b"\n")


async def main(index: int, channel: int, sockets: list[int], private: Path) -> int:
    """Serve as the supervisor orders over the channel; return the exit code."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=channel), limit=LONGEST)
    orders = Orders(**json.loads(await reader.readline())["orders"])
    lines = None
    try:
        settings = orders.settings()
        lines, log = configure_logging(
            sys.stdout,
            as_json=AS_JSON[settings.log.format] if orders.as_json is None else orders.as_json,
            level=settings.log.level,
            poll_sample=settings.log.poll_sample,
            visitor_key=bytes.fromhex(orders.visitor_key),
            shared=True,
        )
        structlog.contextvars.bind_contextvars(worker=index)
        listening = [socket.socket(fileno=number) for number in sockets]
        server = Server(settings, log, sockets=listening, private=private)
        await Worker(server, orders, log, reader, writer).serve()
    except ConfigError as error:
        say(writer, "failed", where=error.where, what=error.what, remedy=error.remedy)
        return MISUSE
    except asyncio.CancelledError:
        return FAILED
    except Exception:  # noqa: BLE001 - the last that can say what has ended this process
        _log.exception("worker_failed")
        return FAILED
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        if lines is not None:
            lines.close()
    return OK


if __name__ == "__main__":
    _index, _channel, _sockets, _private = sys.argv[1:]
    sys.exit(uvloop.run(main(int(_index), int(_channel), [*map(int, _sockets.split(","))], Path(_private))))
