"""A process and the system: its files, and what it does when it is signalled."""

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

_log = structlog.get_logger()


def allow_files() -> None:
    """Raise the limit of open files to what this user may have; connections need them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def until_signalled(
    serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]], on_renew: Callable[[], None]
) -> bool:
    """Let `serve` run until it ends, and tell it of signals.

    Args:
        serve: given an event that SIGTERM and SIGINT set, and one that SIGHUP sets; cancelled by a second
            SIGTERM or SIGINT.
        on_renew: called for SIGUSR2.

    Returns:
        Whether it had to be cancelled.
    """
    stopping, hung_up = asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(serve(stopping, hung_up))
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            work.cancel()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    loop.add_signal_handler(signal.SIGUSR2, on_renew)
    try:
        await work
    except asyncio.CancelledError:
        return True
    else:
        return False


async def whenever(asked: asyncio.Event, act: Callable[[], Awaitable[None]]) -> None:
    """Act each time that it was asked for, one after another; what fails is logged, and the next may do."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            await act()
        except Exception:  # noqa: BLE001 - the gateway must go on, whatever it is
            _log.exception("reload_failed")
