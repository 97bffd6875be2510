"""What goes into the log, and how it gets out.

Two things are promised here: no secret is ever written, whatever somebody logs, and a reader of the log
who stalls cannot stall the shop. A request has one canonical line, which goes around structlog's chain of
processors, because it is written tens of thousands of times a second.
"""

import atexit
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import deque
from hashlib import blake2s
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal, NamedTuple, TextIO

import structlog
from structlog.typing import EventDict, Processor

GATHER_S = 0.05
"""Lines are gathered this long before they are written, so that a busy gateway writes few large pieces."""

BACKLOG_LINES = 20_000
"""Most lines kept for a reader who has stalled; further ones are dropped and counted."""

PIECE_LINES = 512

LONGEST_PATH = 512

MOST_HASHES = 65_536
"""Visitors whose hash is remembered."""

LEVELS = ("debug", "info", "warning", "error")

Verdict = Literal[
    "forwarded",
    "claimed",
    "bypassed",
    "waiting_page",
    "refused",
    "status_poll",
    "answered",
    "malformed",
    "turned_away",
    "error",
]
"""What became of a request; monitoring/METRICS.md says what each means."""

_SECRETS = re.compile(
    r"eyJ[\w-]+\.[\w-]+\.[\w-]*"  # a signed token
    r"|(?P<url>://)[^/@\s\"]+(?=@)"  # user and password in a URL
    r"|(?P<header>(?i:cookie|authorization)['\"]?\s*[:=]\s*b?['\"]?)[^'\"\r\n]+"  # a header as printed
    r"|(?P<scheme>\b(?i:bearer|basic) )[\w.~+/=-]+"
)
_SECRET_KEY = re.compile(r"cookie|token|secret|password|authorization|signing_key", re.IGNORECASE)
_WITHHELD = "[withheld]"


def withhold(text: str) -> str:
    """The text without anything that looks like a credential."""
    return _SECRETS.sub(lambda found: "".join(filter(None, found.groups())) + _WITHHELD, text)


def _withhold_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: _WITHHELD if _SECRET_KEY.search(key) else value for key, value in event.items()}


class LogWriter:
    """Writes lines to a stream from a thread of its own, in the order in which they came.

    Attributes:
        dropped: lines lost because the reader did not keep up.
    """

    def __init__(self, stream: TextIO) -> None:
        self.dropped = 0
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
        left = memoryview("".join(lines).encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:  # the reader is gone; the shop is not
            self.dropped += len(lines)


class Served(NamedTuple):
    """A request that has been answered.

    Attributes:
        room: its room, or `telemetry.NO_ROOM`.
        verdict: what became of it.
        method: as on the request line.
        target: as on the request line; the query is left out of the log.
        status: of the response.
        seconds: from the first byte of the request to the last byte of the response.
        sent: bytes of the response body.
        origin_seconds: time to the origin's first byte, None where the origin was not asked.
        visitor: the visitor's id if known, of which the log gets a keyed hash.
    """

    room: str
    verdict: Verdict
    method: bytes
    target: bytes
    status: int
    seconds: float
    sent: int = 0
    origin_seconds: float | None = None
    visitor: str | None = None


class RequestLog:
    """The canonical line of each request, one in `poll_sample` for polls.

    Args:
        writer: where the lines go.
        console: for people at a terminal instead of JSON.
        poll_sample: of so many status polls one is logged, with this `weight`.
        visitor_key: keys the hash of visitor ids; gateways that share it give a visitor the same hash.
    """

    def __init__(
        self,
        writer: LogWriter,
        *,
        console: bool = False,
        poll_sample: int = 100,
        visitor_key: bytes | None = None,
    ) -> None:
        self._writer = writer
        self._console = console
        self._poll_sample = poll_sample
        self._polls = 0
        self._visitor_key = visitor_key or secrets.token_bytes(32)
        self._hashes: dict[str, str] = {}
        self._second = 0
        self._stamp = ""

    @property
    def dropped(self) -> int:
        """Lines lost because the reader did not keep up."""
        return self._writer.dropped

    def request(self, served: Served) -> None:
        """Write the line of one request."""
        weight = 1
        if served.verdict == "status_poll":
            self._polls += 1
            weight = self._poll_sample
            if self._polls % weight:
                return
        line = self._line(served, weight)
        if self._console:
            fields = json.loads(line)
            getattr(structlog.get_logger(), fields.pop("level"))(fields.pop("event"), **fields)
        else:
            self._writer.write(line + "\n")

    def _line(self, served: Served, weight: int) -> str:
        room, verdict, method, target, status, seconds, sent, origin_seconds, visitor = served
        level = "info" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "warning"
        line = (
            f'{{"timestamp":"{self._timestamp(time.time())}","level":"{level}","event":"request","room":"{room}",'
            f'"verdict":"{verdict}","method":{quoted(method.decode("latin-1"))},"path":{quoted(path_of(target))},'
            f'"status":{status},"duration_ms":{seconds * 1000:.1f},"bytes":{sent}'
        )
        if origin_seconds is not None:
            line += f',"origin_ms":{origin_seconds * 1000:.1f}'
        if visitor is not None:
            line += f',"visitor":"{self._hashes.get(visitor) or self._hash(visitor)}"'
        if weight > 1:
            line += f',"weight":{weight}'
        return line + "}"

    def _hash(self, visitor: str) -> str:
        if len(self._hashes) >= MOST_HASHES:
            self._hashes.clear()
        hashed = blake2s(visitor.encode(), key=self._visitor_key, digest_size=6).hexdigest()
        self._hashes[visitor] = hashed
        return hashed

    def _timestamp(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"


def path_of(target: bytes) -> str:
    """The path of a request target, cut to a bounded length; query, user and password never show."""
    if not target.startswith(b"/"):
        return "-"
    path = target.partition(b"?")[0][:LONGEST_PATH].decode("latin-1")
    return withhold(path) if "eyJ" in path else path


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
) -> tuple[LogWriter, RequestLog | None]:
    """Direct structlog, the standard library's logging and the request log to one stream.

    Args:
        stream: with a file descriptor; standard error by default.
        as_json: one JSON object a line; None: unless the stream is a terminal.
        level: least level that is written, one of `LEVELS`; requests are written at `info`.
        poll_sample: see `RequestLog`.
        visitor_key: see `RequestLog`.

    Returns:
        The writer, to be closed last, and the request log, None where the level leaves requests out.
    """
    stream = stream or sys.stderr
    console = stream.isatty() if as_json is None else not as_json
    least = logging.getLevelNamesMapping()[level.upper()]
    writer = LogWriter(stream)
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
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: outlet,
        cache_logger_on_first_use=False,
    )
    outlet.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=steps))
    logging.basicConfig(handlers=[outlet], level=max(least, logging.WARNING), force=True)
    log = RequestLog(writer, console=console, poll_sample=poll_sample, visitor_key=visitor_key)
    return writer, log if least <= logging.INFO else None
