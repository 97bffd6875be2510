"""Visits and pages a minute from an access log of any size: combined, HAProxy's, or JSON lines."""

import hashlib
import json
import re
import secrets
from calendar import month_abbr
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from functools import lru_cache, partial
from pathlib import Path

from loadtest.history import MINUTE, History, Minutes, Visits, history
from loadtest.inputs import BadLines, InputError, has_zone, lines, unix_time

GAP = 30 * MINUTE
"""Seconds of silence after which the same person begins another visit, as web analytics count."""

ROLES: Mapping[str, tuple[str, ...]] = {
    "time": (
        "time", "timestamp", "@timestamp", "ts", "time_iso8601", "time_local", "msec", "StartUTC", "date",
        "datetime", "accept_date",
    ),
    "address": (
        "remote_addr", "client_ip", "clientip", "remote_ip", "ip", "ClientHost", "remote_host", "host_addr",
        "address", "client", "request.remote_ip", "source.ip",
    ),
    "agent": (
        "http_user_agent", "user_agent", "agent", "useragent", "request_User-Agent",
        "request.headers.User-Agent", "user_agent.original",
    ),
    "request": ("request", "request_line", "http_request"),
    "method": ("request_method", "method", "RequestMethod", "request.method", "http_method"),
    "path": ("request_uri", "uri", "path", "url", "RequestPath", "request.uri", "http_path"),
    "status": ("status", "status_code", "DownstreamStatus", "response", "code"),
    "cookie": ("http_cookie", "cookie", "cookies", "request.headers.Cookie"),
}  # fmt: skip
"""Names that the fields of JSON lines go by at nginx, Apache, HAProxy, Caddy, Traefik and in the ECS."""

EXPECTED = (
    "combined lines (nginx, Apache), HAProxy's HTTP log, or JSON lines with a time, a path and an address; "
    "other field names are given by --field time=NAME"
)
MOST_OPEN = 500_000
"""Visits under way that are remembered; beyond, the longest silent ones are ended early."""

_COMBINED = re.compile(
    r'(\S+) \S+ [^\[]*\[([^\]]{1,40})\] "([^"\\]*(?:\\.[^"\\]*)*)" (\d{3}) \S+'
    r'(?: "[^"\\]*(?:\\.[^"\\]*)*" "([^"\\]*(?:\\.[^"\\]*)*)")?(.*)'
)
_HAPROXY = re.compile(
    r'(?:^| )([^\s\[\]]{1,64}):\d{1,5} \[([^\]]{1,40})\] \S+ \S+ \S+ (\d{3}) [^"]*"([^"\\]*(?:\\.[^"\\]*)*)"'
)
_CLF_TIME = re.compile(r"(\d{2})/(\w{3})/(\d{4}):(\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?: ([+-])(\d{2})(\d{2}))?")
_MONTHS = {name: at for at, name in enumerate(month_abbr) if name}
_FILE = re.compile(
    r"\.(?:css|m?js|map|png|jpe?g|gif|svg|webp|avif|ico|woff2?|ttf|eot|mp4|webm|pdf|txt|xml)$", re.IGNORECASE
)
_ROBOT = re.compile(
    r"bot\b|crawl|spider|slurp|curl/|wget/|python|monitor|uptime|http-?client|headless", re.IGNORECASE
)
_PAGES = frozenset({"GET", "POST"})


@dataclass(frozen=True, slots=True)
class Hit:
    """One request of the log. `at` is in Unix seconds; who it was is kept only until it is hashed."""

    at: float
    who: str
    agent: str
    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How a log is to be read.

    Attributes:
        fields: names of JSON fields by role, where they are not among `ROLES`.
        cookie: name of the cookie that tells people apart; without one it is address and browser.
        zone: where times without a zone are from.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    cookie: str | None = None
    zone: tzinfo = UTC


def read_access_log(
    paths: Sequence[Path],
    reading: Reading = Reading(),
    read: Callable[[int], None] = lambda _: None,
) -> History:
    """Visits a minute, and what visits are like, from access logs in the order in which they were written.

    A page is a GET or POST that is no file and was not answered by 4xx; robots that say so are left out.
    Nothing personal is kept beyond a hash with a key that is thrown away.

    Args:
        paths: plain or gzipped files.
        reading: how to read them.
        read: told how many bytes have been read so far, of all files together.

    Raises:
        InputError: a file cannot be read, or nothing in it is usable.
    """
    where = ", ".join(map(str, paths))
    unknown = sorted(set(reading.fields) - set(ROLES))
    if unknown:
        raise InputError(f"--field {unknown[0]}", "no such role", f"there are {', '.join(ROLES)}")
    parser, crowd, bad, before = _Parser(reading), Crowd(), BadLines(), 0
    for path in paths:
        for number, line in lines(path, partial(_onward, read, before)):
            hit = "a line too long" if line is None else parser.hit(line)
            why = hit if isinstance(hit, str) else crowd.see(hit)
            if why:
                bad = bad.and_one(number, why)
        before += path.stat().st_size
    crowd.end()
    told = f"the cookie {reading.cookie!r}" if reading.cookie else "address and browser"
    notes = [
        f"Visits are told apart by {told}, and end after {GAP // MINUTE} minutes of silence.",
        *([f"{crowd.robots:,} requests of robots were left out."] if crowd.robots else []),
        *([f"{parser.naive:,} times without a zone were taken as {reading.zone}."] if parser.naive else []),
        *([f"{crowd.cut:,} visits were ended early for want of memory."] if crowd.cut else []),
    ]
    return replace(history("visits", crowd.begun, bad, notes, where, EXPECTED), visits=crowd.visits())


def _onward(read: Callable[[int], None], before: int, count: int) -> None:
    read(before + count)


class Crowd:
    """Visits under way, in bounded memory; people are known by hashes under a key of this object alone."""

    def __init__(self) -> None:
        self.begun, self.robots, self.cut = Minutes(), 0, 0
        self._key = secrets.token_bytes(16)
        self._open: OrderedDict[int, tuple[float, float, int]] = OrderedDict()
        self._ended, self._pages_seen, self._seconds = 0, 0, 0.0
        self._pages, self._failed = Minutes(), Counter[int]()

    def see(self, hit: Hit) -> str:
        """Count a request; returns why it cannot be, or nothing."""
        if _is_robot(hit.agent):
            self.robots += 1
            return ""
        if hit.method not in _PAGES or _FILE.search(hit.path.partition("?")[0]):
            return ""
        minute = int(hit.at // MINUTE)
        if not self._pages.add(minute):
            return "a stray time"
        if hit.status >= 500:  # noqa: PLR2004 - the class of answers that HTTP calls server errors
            self._failed[minute] += 1
        elif hit.status >= 400:  # noqa: PLR2004 - the class of answers that HTTP calls client errors
            return ""
        name = hashlib.blake2b(
            f"{hit.who}\n{hit.agent}".encode("utf-8", "replace"), key=self._key, digest_size=8
        )
        self._visit(int.from_bytes(name.digest(), "big"), hit.at, minute)
        return ""

    def _visit(self, person: int, at: float, minute: int) -> None:
        began, last, pages = self._open.pop(person, (at, at, 0))
        if at - last > GAP:
            self._close((began, last, pages))
            began, last, pages = at, at, 0
        if not pages:
            self.begun.add(minute)
        self._open[person] = (began, max(last, at), pages + 1)
        oldest = next(iter(self._open))
        if at - self._open[oldest][1] > GAP or len(self._open) > MOST_OPEN:
            self.cut += at - self._open[oldest][1] <= GAP
            self._close(self._open.pop(oldest))

    def _close(self, visit: tuple[float, float, int]) -> None:
        self._ended += 1
        self._seconds += visit[1] - visit[0]
        self._pages_seen += visit[2]

    def end(self) -> None:
        """End all visits, because the log has ended."""
        while self._open:
            self._close(self._open.popitem()[1])

    def visits(self) -> Visits:
        """What visits were like.

        Raises:
            ValueError: there were none.
        """
        first, counts, _ = self._pages.series()
        width = min(5, len(counts))
        sums = [sum(counts[at : at + width]) for at in range(len(counts) - width + 1)]
        best = sums.index(max(sums))
        failed = sum(self._failed[first + best + minute] for minute in range(width))
        return Visits(
            self._ended,
            self._pages_seen / self._ended,
            self._seconds / self._ended,
            sums[best] / (width * MINUTE),
            failed / sums[best],
        )


@lru_cache(maxsize=4096)
def _is_robot(agent: str) -> bool:
    return bool(_ROBOT.search(agent))


class _Parser:
    """Lines to requests; remembers the last time text, because a busy second has many lines."""

    def __init__(self, reading: Reading) -> None:
        self._reading, self.naive = reading, 0
        self._clock: tuple[str, float | None] = ("", None)
        self._names = {
            role: ((reading.fields[role],) if role in reading.fields else names)
            for role, names in ROLES.items()
        }

    def hit(self, line: str) -> Hit | str:
        """The request of a line, or what is wrong with it."""
        if line.startswith("{"):
            return self._from_json(line)
        if match := _COMBINED.match(line):
            who, when, request, status, agent, extra = match.groups()
        elif match := _HAPROXY.search(line):
            who, when, status, request = match.groups()
            agent = extra = ""
        else:
            return "no known format" if line.strip() else "an empty line"
        method, _, rest = request.partition(" ")
        return self._hit(
            when,
            self._cookie(extra) or who,
            agent or "",
            method,
            rest.rpartition(" HTTP/")[0] or rest,
            status,
        )

    def _from_json(self, line: str) -> Hit | str:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return "broken JSON"
        found = {role: self._field(document, role) for role in ROLES}
        method, path = found["method"], found["path"]
        if not path and found["request"]:
            method, _, rest = found["request"].partition(" ")
            path = rest.rpartition(" HTTP/")[0] or rest
        cookie = self._cookie(found["cookie"]) if self._reading.cookie else ""
        if not path:
            return "no path"
        return self._hit(
            found["time"],
            cookie or found["address"],
            found["agent"],
            method or "GET",
            path,
            found["status"] or "200",
        )

    def _field(self, document: dict[str, object], role: str) -> str:
        """The first field that goes by a name of the role, as text; a dot in a name leads into an object."""
        for name in self._names[role]:
            value: object = document.get(name)
            if value is None and "." in name:
                value = document
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        return ""

    def _cookie(self, text: str) -> str:
        name = self._reading.cookie
        if not name or not text:
            return ""
        for part in re.split(r'[;"\s]+', text):
            key, equals, value = part.partition("=")
            if equals and key == name:
                return value
        return ""

    def _hit(self, when: str, who: str, agent: str, method: str, path: str, status: str) -> Hit | str:
        at = self._time(when)
        if at is None:
            return "no usable time"
        if not who:
            return "no address or cookie"
        code = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 0  # noqa: PLR2004 - three digits, as HTTP has it
        if not code:
            return "no status"
        return Hit(at, who, agent, method, path, code)

    def _time(self, text: str) -> float | None:
        if text != self._clock[0]:
            self._clock = (text, _moment(text, self._reading.zone))
        seconds = self._clock[1]
        if seconds is not None and not _zoned(text):
            self.naive += 1
        return seconds


def _zoned(text: str) -> bool:
    return " " in text if "/" in text[:4] else has_zone(text)


def _moment(text: str, zone: tzinfo) -> float | None:
    match = _CLF_TIME.fullmatch(text)
    if not match:
        return unix_time(text, zone)
    day, month, year, hour, minute, second, sign, hours, minutes = match.groups()
    if month not in _MONTHS:
        return None
    offset = f"{sign}{hours}:{minutes}" if sign else ""
    return unix_time(f"{year}-{_MONTHS[month]:02}-{day}T{hour}:{minute}:{second}{offset}", zone)
