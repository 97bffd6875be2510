"""A gateway as a process: its signals, its log, its share of the system's resources."""

import asyncio
import gc
import resource
import signal
from contextlib import suppress
from typing import TextIO

from waitingroom.config import Settings
from waitingroom.logs import configure_logging
from waitingroom.server import Server

COLLECT_AFTER = 50_000
"""Objects made and not yet freed, after which unreachable ones are looked for."""


def allow_files() -> None:
    """Raise the limit of open files to what this user may have; connections need them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def run(settings: Settings, output: TextIO, *, as_json: bool | None) -> bool:
    """Serve until SIGTERM or SIGINT, then finish what is under way; a further signal ends that, too.

    Args:
        settings: of the gateway.
        output: where the log goes.
        as_json: the form of the log; None: as the settings say.

    Returns:
        Whether it had to be forced.

    Raises:
        ConfigError: as `Server.start`.
        EmbeddedError: as `Server.start`.
    """
    form = {"json": True, "console": False, "auto": None}[settings.log.format]
    writer, log = configure_logging(
        output,
        as_json=form if as_json is None else as_json,
        level=settings.log.level,
        poll_sample=settings.log.poll_sample,
    )
    stopping = asyncio.Event()
    work = asyncio.create_task(_work(Server(settings, log), stopping))
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            work.cancel()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await work
    except asyncio.CancelledError:
        return True
    else:
        return False
    finally:
        writer.close()


async def _work(server: Server, stopping: asyncio.Event) -> None:
    await server.start()
    # What is there now stays, and what a request leaves behind is small: looking through both as often as
    # Python does by default would be a tenth of the work.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    await stopping.wait()
    await server.stop()
