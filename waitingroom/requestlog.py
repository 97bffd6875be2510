"""The canonical line of a request.

It goes around structlog's chain of processors, because it is written tens of thousands of times a second, and
never has a secret in it.
"""

import json
import re
import secrets
import time
from functools import lru_cache
from hashlib import blake2s
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal, Protocol

import structlog

LONGEST_PATH = 512

MOST_HASHES = 65_536
"""Visitors whose hash is remembered."""

Verdict = Literal[
    "forwarded",
    "claimed",
    "bypassed",
    "waiting_page",
    "challenged",
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
WITHHELD = "[withheld]"


def withhold(text: str) -> str:
    """The text without anything that looks like a credential."""
    return _SECRETS.sub(lambda found: "".join(filter(None, found.groups())) + WITHHELD, text)


class Writer(Protocol):
    """Where lines go."""

    dropped: int

    def write(self, line: str) -> None:
        """Have a line, with its newline, written soon; never blocks."""


class Served:
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

    __slots__ = (
        "method",
        "origin_seconds",
        "room",
        "seconds",
        "sent",
        "status",
        "target",
        "verdict",
        "visitor",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - a record; once a request, so that it must cost no more than it has to
        self,
        room: str,
        verdict: Verdict,
        method: bytes,
        target: bytes,
        status: int,
        seconds: float,
        sent: int = 0,
        origin_seconds: float | None = None,
        visitor: str | None = None,
    ) -> None:
        self.room = room
        self.verdict = verdict
        self.method = method
        self.target = target
        self.status = status
        self.seconds = seconds
        self.sent = sent
        self.origin_seconds = origin_seconds
        self.visitor = visitor


class RequestLog:
    """The canonical line of each request, one in `poll_sample` for polls.

    Args:
        writer: where the lines go.
        console: for people at a terminal instead of JSON.
        poll_sample: of so many status polls one is logged, with this `weight`.
        visitor_key: keys the hash of visitor ids; gateways that share it give a visitor the same hash.

    Attributes:
        silent: nothing is written.
        poll_sample: may be changed.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        console: bool = False,
        poll_sample: int = 100,
        visitor_key: bytes | None = None,
    ) -> None:
        self._writer = writer
        self._console = console
        self.poll_sample = poll_sample
        self.silent = False
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
        if self.silent:
            return
        weight = 1
        if served.verdict == "status_poll":
            self._polls += 1
            weight = self.poll_sample
            if self._polls % weight:
                return
        line = self._line(served, weight)
        if self._console:
            fields = json.loads(line)
            getattr(structlog.get_logger(), fields.pop("level"))(fields.pop("event"), **fields)
        else:
            self._writer.write(line)

    def _line(self, served: Served, weight: int) -> str:
        target, status = served.target, served.status
        visitor, origin_seconds = served.visitor, served.origin_seconds
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        level = "info" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "warning"
        path = quoted_path(target) if len(target) <= LONGEST_PATH else quoted_path.__wrapped__(target)
        origin = "" if origin_seconds is None else f',"origin_ms":{origin_seconds * 1000:.1f}'
        who = "" if visitor is None else f',"visitor":"{self._hashes.get(visitor) or self._hash(visitor)}"'
        many = "" if weight == 1 else f',"weight":{weight}'
        return (
            f'{{"timestamp":"{self._stamp}.{int((now - second) * 1000):03d}Z","level":"{level}",'
            f'"event":"request","room":"{served.room}","verdict":"{served.verdict}",'
            f'"method":{quoted_method(served.method)},"path":{path},"status":{status},'
            f'"duration_ms":{served.seconds * 1000:.1f},"bytes":{served.sent}'
            f"{origin}{who}{many}}}\n"
        )

    def _hash(self, visitor: str) -> str:
        if len(self._hashes) >= MOST_HASHES:
            self._hashes.clear()
        hashed = blake2s(visitor.encode(), key=self._visitor_key, digest_size=6).hexdigest()
        self._hashes[visitor] = hashed
        return hashed


@lru_cache(maxsize=64)
def quoted_method(method: bytes) -> str:
    """The method as a JSON string."""
    return quoted(method.decode("latin-1"))


@lru_cache(maxsize=4096)
def quoted_path(target: bytes) -> str:
    """What `path_of` shows, as a JSON string."""
    return quoted(path_of(target))


def path_of(target: bytes) -> str:
    """The path of a request target, cut to a bounded length; query, user and password never show."""
    if not target.startswith(b"/"):
        return "-"
    path = target.partition(b"?")[0][:LONGEST_PATH].decode("latin-1")
    return withhold(path) if "eyJ" in path else path
