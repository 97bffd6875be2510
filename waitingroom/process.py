"""A gateway as a process: its signals, its log, its share of the system's resources."""

import asyncio
import gc
from typing import TextIO

import structlog

from waitingroom.config import ConfigError, Settings
from waitingroom.logs import AS_JSON, adjust_logging, configure_logging
from waitingroom.orders import Source, waiting_for_restart
from waitingroom.requestlog import RequestLog
from waitingroom.server import Server
from waitingroom.signals import allow_files, until_signalled, whenever

COLLECT_AFTER = 50_000
"""Objects made and not yet freed, after which unreachable ones are looked for."""

_log = structlog.get_logger()


def collect_less() -> None:
    """Look for garbage less often, once everything that stays has been made.

    What a request leaves behind is small: looking through both as often as Python does by default would be a
    tenth of the work.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


async def run(source: Source, output: TextIO, *, as_json: bool | None) -> bool:
    """Serve until SIGTERM or SIGINT, then finish what is under way; a further signal ends that, too.

    SIGHUP has the configuration read anew.

    Args:
        source: of the configuration.
        output: where the log goes.
        as_json: the form of the log; None: as the settings say.

    Returns:
        Whether it had to be forced.

    Raises:
        ConfigError: the configuration cannot stand, or something that it names cannot be used.
        EmbeddedError: the embedded store does not start.
    """
    settings = source.read()
    allow_files()
    writer, log = configure_logging(
        output,
        as_json=AS_JSON[settings.log.format] if as_json is None else as_json,
        level=settings.log.level,
        poll_sample=settings.log.poll_sample,
    )
    server = Server(settings, log)

    async def serve(stopping: asyncio.Event, hung_up: asyncio.Event) -> None:
        await server.start()
        collect_less()
        reloads = asyncio.create_task(whenever(hung_up, lambda: _reload(source, settings, server, log)))
        await stopping.wait()
        reloads.cancel()
        await asyncio.wait([reloads])
        await server.stop()

    try:
        return await until_signalled(serve, lambda: _log.warning("restart_refused", reason=_ALONE))
    finally:
        writer.close()


_ALONE = "there is one process only; with --workers they are restarted one after another"


async def _reload(source: Source, started: Settings, server: Server, log: RequestLog) -> None:
    try:
        settings = source.read()
        await server.reload(settings)
    except ConfigError as error:
        server.refuse(error)
        return
    adjust_logging(log, settings.log.level, settings.log.poll_sample)
    if waiting := waiting_for_restart(started, settings):
        _log.warning("restart_needed", settings=waiting)
