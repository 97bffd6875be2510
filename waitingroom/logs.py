"""How the log gets out.

Two things are promised here: no secret is ever written, whatever somebody logs, and a reader of the log
who stalls cannot stall the shop.
"""

import atexit
import logging
import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

from waitingroom.requestlog import WITHHELD, RequestLog, withhold

GATHER_S = 0.05
"""Lines are gathered this long before they are written, so that a busy gateway writes few large pieces."""

BACKLOG_LINES = 20_000
"""Most lines kept for a reader who has stalled; further ones are dropped and counted."""

PIECE_LINES = 512

_ESCAPED = "backslashreplace"

AS_JSON = {"json": True, "console": False, "auto": None}
"""What `[log] format` says of `as_json`."""

LEVELS = ("debug", "info", "warning", "error")

_SECRET_KEY = re.compile(r"cookie|token|secret|password|authorization|signing_key", re.IGNORECASE)


def _withhold_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: WITHHELD if _SECRET_KEY.search(key) else value for key, value in event.items()}


class LogWriter:
    """Writes lines to a stream from a thread of its own, in the order in which they came.

    Args:
        stream: with a file descriptor.
        shared: other processes write to it as well, so that lines must not be torn apart.

    Attributes:
        dropped: lines lost because the reader did not keep up.
    """

    def __init__(self, stream: TextIO, *, shared: bool = False) -> None:
        self.dropped = 0
        self._shared = shared
        self._descriptor = stream.fileno()
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, line: str) -> None:
        """Have a line, with its newline, written soon; never blocks."""
        if len(self._lines) >= BACKLOG_LINES:
            self.dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what is left, for at most a second."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=1.0)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_S)
            # Cleared before draining: a line that comes now is either drained or wakes the next round.
            self._wake.clear()
            # Only what is there now: to go on while lines come would be to write each by itself.
            for left in range(len(self._lines), 0, -PIECE_LINES):
                self._put([self._lines.popleft() for _ in range(min(left, PIECE_LINES))])

    def _put(self, lines: list[str]) -> None:
        try:
            for piece in _untorn(lines) if self._shared else ("".join(lines).encode(errors=_ESCAPED),):
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except OSError:  # the reader is gone; the shop is not
            self.dropped += len(lines)


def _untorn(lines: list[str]) -> Iterator[bytes]:
    """The lines in pieces that a pipe takes whole, whoever else writes to it; long ones by themselves."""
    gathered: list[bytes] = []
    size = 0
    for line in lines:
        encoded = line.encode(errors=_ESCAPED)
        if gathered and size + len(encoded) > select.PIPE_BUF:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(encoded)
        size += len(encoded)
    yield b"".join(gathered)


class _Outlet(logging.Handler):
    """Where structlog and the standard library's loggers both end."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self.msg(self.format(record))

    def msg(self, line: str) -> None:
        self._writer.write(withhold(line) + "\n")

    debug = info = warning = error = critical = exception = msg


def configure_logging(
    stream: TextIO | None = None,
    *,
    as_json: bool | None = None,
    level: str = "info",
    poll_sample: int = 100,
    visitor_key: bytes | None = None,
    shared: bool = False,
) -> tuple[LogWriter, RequestLog]:
    """Direct structlog, the standard library's logging and the request log to one stream.

    Args:
        stream: with a file descriptor; standard error by default.
        as_json: one JSON object a line; None: unless the stream is a terminal.
        level: least level that is written, one of `LEVELS`; requests are written at `info`.
        poll_sample: see `RequestLog`.
        visitor_key: see `RequestLog`.
        shared: see `LogWriter`.

    Returns:
        The writer, to be closed last, and the request log, silent where the level leaves requests out.
    """
    stream = stream or sys.stderr
    console = stream.isatty() if as_json is None else not as_json
    writer = LogWriter(stream, shared=shared)
    outlet = _Outlet(writer)
    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _withhold_values,
    ]
    renderer: Processor
    if console:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    else:
        steps.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(separators=(",", ":"))
    structlog.configure(
        processors=[*steps, renderer],
        logger_factory=lambda *_: outlet,
        cache_logger_on_first_use=False,
    )
    outlet.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=steps))
    logging.basicConfig(handlers=[outlet], force=True)
    log = RequestLog(writer, console=console, poll_sample=poll_sample, visitor_key=visitor_key)
    adjust_logging(log, level, poll_sample)
    return writer, log


def adjust_logging(log: RequestLog, level: str, poll_sample: int) -> None:
    """Write from another level on, and other polls; for the arguments see `configure_logging`."""
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(least))
    logging.getLogger().setLevel(max(least, logging.WARNING))
    log.silent = least > logging.INFO
    log.poll_sample = poll_sample
