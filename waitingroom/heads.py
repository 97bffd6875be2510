"""HTTP/1.1 message heads as pure functions of bytes (RFC 9110, RFC 9112).

A head stays the bytes that arrived. One strict grammar accepts or refuses it as a whole, so that no two
readers of an accepted head can disagree on where a message ends; values are cut out where they are asked for.
A browser sends much the same lines with each request: a `Memory` keeps what was read, so that lines which
come again are recognised by their bytes and not read again. Nothing here knows a socket.
"""

import re
from collections import deque
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINES = rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
_START = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+)")
_REST = re.compile(rb" HTTP/1\.([01])\r\n" + _LINES)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n" + _LINES)
_REQUEST_LINE = re.compile(_TOKEN + rb" [!-~\x80-\xff]+ HTTP/1\.[01]")
_NOTABLE = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|connection|upgrade|expect|cookie|te|trailer|keep-alive"
    rb"|proxy-[^:]*|http2-settings|forwarded|x-forwarded-(?:for|host|proto)|(?:cf-)?waiting-room[^:]*):([^\r]*)"
)
_NO_OPTIONS: Final[list[bytes]] = []
_KEEP_ALIVE: Final = [b"keep-alive"]
_SINGLE: Final = {b"host", b"content-length", b"transfer-encoding"}
_MOST_DIGITS: Final = 18
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([/?].*)?", re.IGNORECASE | re.DOTALL)

CRLF2: Final = b"\r\n\r\n"

LONGEST_KEPT = 4096
"""Bytes of lines that are worth remembering; longer ones hardly come again."""

DERIVED = 1024
"""Bytes that what was read of a few lines takes, whatever their length."""

MOST_KEPT = 32 * 1024 * 1024
"""Bytes of remembered lines and of what was read of them: those of some twenty thousand browsers."""

MOST_MET = 65_536
"""Lines that were met once, as numbers."""


class BadRequestError(Exception):
    """A request that is refused before anybody acts on it.

    Attributes:
        status: HTTP status of the refusal; the connection closes after it.
        reason: what was wrong, fit to be shown to the sender.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class BadResponseError(Exception):
    """An answer of the origin that cannot be passed on safely."""


class Fields:
    """The header lines of a message, looked up in the bytes. Names are asked for in lower case.

    Attributes:
        raw: the lines with what stands before the first on its line, blank line included.
        notable: the headers that framing or a proxy has to look at: lower-case name to lower-case value.
        options: lower-case members of Connection.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
    """

    __slots__ = ("minor", "notable", "options", "raw")

    def __init__(self, raw: bytes, minor: int) -> None:
        self.raw = raw
        self.minor = minor
        found: list[tuple[bytes, bytes]] = _NOTABLE.findall(raw.lower())
        self.notable = notable = dict(found)
        if len(found) != len(notable):
            self.notable = notable = _merged(found)
        connection = notable.get(b"connection")
        if connection is None or connection == b" keep-alive":
            self.options = _NO_OPTIONS if connection is None else _KEEP_ALIVE
        else:
            self.options = self.listed(b"connection")

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header, without surrounding blanks, or None."""
        start = self.raw.lower().find(b"\r\n" + name + b":")
        if start < 0:
            return None
        start += len(name) + 3
        return self.raw[start : self.raw.index(b"\r", start)].strip(b" \t")

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order, never folded together."""
        return [self.raw[start + len(name) + 3 : end].strip(b" \t") for start, end, _ in self.cuts(name)]

    def cuts(self, name: bytes) -> list[tuple[int, int, bytes]]:
        """Where the lines of a header stand in `raw`, each with the line break before it, as edits."""
        mark = b"\r\n" + name + b":"
        lower = self.raw.lower()
        found = []
        start = lower.find(mark)
        while start >= 0:
            end = lower.index(b"\r", start + 2)
            found.append((start, end, b""))
            start = lower.find(mark, end)
        return found

    def listed(self, name: bytes) -> list[bytes]:
        """The lower-case members of a notable, comma-separated header, over all its lines."""
        value = self.notable.get(name)
        if value is None:
            return []
        return [item.strip(b" \t") for item in value.split(b",")]

    def _framing(self) -> tuple[int | None, bool]:
        """Content-Length and whether the body is chunked; ValueError unless there is one reading only."""
        notable = self.notable
        coding = notable.get(b"transfer-encoding")
        length = notable.get(b"content-length")
        # Only spaces are taken off, so that framing never depends on how a reader treats a tab.
        if coding is not None:
            if length is not None or self.minor == 0:
                raise ValueError("ambiguous body framing")
            if coding.strip(b" ") != b"chunked":
                raise ValueError("Transfer-Encoding is not chunked")
            return None, True
        if length is None:
            return None, False
        length = length.strip(b" ")
        if not length.isdigit() or len(length) > _MOST_DIGITS:
            raise ValueError("malformed Content-Length")
        return int(length), False


def _merged(found: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """One value a name; a second one of those that may not be repeated makes it malformed."""
    merged: dict[bytes, bytes] = {}
    for name, value in found:
        if name in merged:
            value = b"\0" if name in _SINGLE else merged[name] + b"," + value  # noqa: PLW2901 - the joined value
        merged[name] = value
    return merged


@lru_cache(maxsize=1024)
def is_host(host: bytes) -> bool:
    """Whether this is a host with or without a port, and nothing else."""
    return _HOST.fullmatch(host) is not None


class RequestFields(Fields):
    """The header lines of a request: all of its head but method and target.

    Attributes:
        host: authority in lower case; b"" if HTTP/1.0 sent none.
        length, chunked: framing of the body; (None, False) is no body.
        has_body: whether bytes of a body follow the head.
        upgrade: a tunnel is asked for, and may be.
        expects_continue: the client waits for an interim answer before it sends the body.
        keep_alive: the client will send further requests on this connection.
        client, proofs, outbound: what others have worked out from these lines (`http1`, `gateway` and `hop`),
            with what else it depends on, for the next time; None until then.

    Raises:
        BadRequestError: 400 malformed or ambiguous.
    """

    __slots__ = (
        "chunked",
        "client",
        "expects_continue",
        "has_body",
        "host",
        "keep_alive",
        "length",
        "outbound",
        "proofs",
        "upgrade",
    )

    def __init__(self, raw: bytes, minor: int) -> None:
        super().__init__(raw, minor)
        self.client: Any = None
        self.proofs: Any = None
        self.outbound: Any = None
        try:
            self.length, self.chunked = self._framing()
        except ValueError as error:
            raise BadRequestError(400, str(error)) from None
        self.has_body = self.chunked or bool(self.length)
        self.host = self._authority()
        options = self.options
        self.keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
        self.upgrade = b"upgrade" in options and self._may_upgrade()
        self.expects_continue = minor == 1 and self.has_body and self.listed(b"expect") == [b"100-continue"]

    def _authority(self) -> bytes:
        host = self.notable.get(b"host")
        if host is None:
            if self.minor == 1:
                raise BadRequestError(400, "Host is required")
            return b""
        host = host.strip(b" \t")
        if not is_host(host):
            raise BadRequestError(400, "malformed Host")
        return host

    def _may_upgrade(self) -> bool:
        # A tunnel to h2c would carry further requests past every check made here.
        protocols = self.listed(b"upgrade")
        return self.minor == 1 and not self.has_body and bool(protocols) and b"h2c" not in protocols


class Head:
    """The head of a request.

    Attributes:
        start: method and target as they were sent, with the space between.
        method, target: as sent.
        fields: the rest.
        host: authority the request is for in lower case: of the target, if that is absolute, else of Host.
        path: the target in origin form.

    Raises:
        BadRequestError: 400 malformed target, 405 CONNECT.
    """

    __slots__ = ("fields", "host", "method", "path", "start", "target")

    def __init__(self, start: bytes, method: bytes, target: bytes, fields: RequestFields) -> None:
        self.start = start
        self.method = method
        self.target = self.path = target
        self.fields = fields
        self.host = fields.host
        if target[:1] != b"/":
            self._readdress()
        if method == b"CONNECT":
            raise BadRequestError(405, "CONNECT is not served here")

    def _readdress(self) -> None:
        if self.method == b"CONNECT" or (self.target == b"*" and self.method == b"OPTIONS"):
            return
        match = _ABSOLUTE.fullmatch(self.target)
        if match is None or not is_host(match[1]):
            raise BadRequestError(400, "malformed request target")
        rest = match[2] or b"/"
        self.path = rest if rest[:1] == b"/" else b"/" + rest
        self.host = match[1].lower()

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header, without surrounding blanks, or None."""
        return self.fields.get(name)


class ResponseHead(Fields):
    """The head of an answer of the origin; `raw` is all of it.

    Attributes:
        status, reason: of the status line.
        length: bytes of body; 0 where there is none by rule (HEAD, 1xx, 204, 304).
        chunked: the body is chunked. With `length` None and not chunked it lasts until the connection closes.
        keep_alive: the connection may serve another request afterwards.
        inbound, said: what others have worked out from it (`hop` and `gateway`) for the next time; None until
            then.

    Raises:
        BadResponseError: its body could be read in two ways.
    """

    __slots__ = ("chunked", "inbound", "keep_alive", "length", "reason", "said", "status")

    def __init__(self, raw: bytes, minor: int, status: int, reason: bytes, *, bodyless: bool) -> None:
        super().__init__(raw, minor)
        self.inbound: Any = None
        self.said: Any = None
        self.status = status
        self.reason = reason
        try:
            self.length, self.chunked = self._framing()
        except ValueError as error:
            raise BadResponseError(str(error)) from None
        if bodyless or status < 200 or status in {204, 304}:  # noqa: PLR2004 - statuses without a body
            self.length, self.chunked = 0, False
        options = self.options
        framed = self.chunked or self.length is not None
        self.keep_alive = framed and b"close" not in options and (minor == 1 or b"keep-alive" in options)


Lines = TypeVar("Lines", bound=Fields)


class Memory(Generic[Lines]):
    """Lines that have come more than once, by their bytes; the oldest are forgotten first."""

    __slots__ = ("_held", "_met", "_order", "_size")

    def __init__(self) -> None:
        self._held: dict[bytes, Lines] = {}
        self._met: set[int] = set()
        self._order: deque[bytes] = deque()
        self._size = 0

    def get(self, raw: bytes) -> Lines | None:
        """What these bytes were read as, if that is known."""
        return self._held.get(raw)

    def keep(self, fields: Lines) -> None:
        """Remember lines that were not known, if they have been met before."""
        raw = fields.raw
        met = hash(raw)
        if met not in self._met:
            # Much never comes again: of that, a number is kept.
            if len(self._met) >= MOST_MET:
                self._met.clear()
            self._met.add(met)
            return
        if len(raw) > LONGEST_KEPT:
            return
        self._met.discard(met)
        self._held[raw] = fields
        self._order.append(raw)
        self._size += len(raw) + DERIVED
        while self._size > MOST_KEPT:
            oldest = self._order.popleft()
            self._size -= len(oldest) + DERIVED
            del self._held[oldest]


def parse_head(raw: bytes, most_fields: int = 100, memory: Memory[RequestFields] | None = None) -> Head:
    """The request head that `raw`, up to and including its blank line, is.

    `memory` holds only what was read with the same `most_fields`.

    Raises:
        BadRequestError: 400 malformed or ambiguous, 405 CONNECT, 431 more than `most_fields` header lines.
    """
    end = raw.find(b" HTTP/1.")
    match = _START.fullmatch(raw, 0, end)
    if match is None:
        raise BadRequestError(400, "malformed request head")
    rest = raw[end:]
    fields = None if memory is None else memory.get(rest)
    if fields is None:
        fields = _parse_fields(rest, most_fields)
        if memory is not None:
            memory.keep(fields)
    method, target = match.groups()
    return Head(match[0], method, target, fields)


def _parse_fields(rest: bytes, most_fields: int) -> RequestFields:
    match = _REST.fullmatch(rest)
    if match is None:
        raise BadRequestError(400, "malformed request head")
    if rest.count(b"\r\n") > most_fields + 2:
        raise BadRequestError(431, "too many header lines")
    return RequestFields(rest, 1 if match[1] == b"1" else 0)


def check_partial(data: bytes) -> None:
    """Refuse the beginning of a head of which nothing good can come.

    Raises:
        BadRequestError: 400; so that HTTP/0.9 or bare line feeds need no time-out to be found out.
    """
    if data.count(b"\n") != data.count(b"\r\n"):
        raise BadRequestError(400, "bare line feed")
    line, found, _ = data.partition(b"\r\n")
    if found and _REQUEST_LINE.fullmatch(line) is None:
        raise BadRequestError(400, "malformed request line")


def parse_response(raw: bytes, method: bytes, memory: Memory[ResponseHead] | None = None) -> ResponseHead:
    """The answer head that `raw`, up to and including its blank line, is; `method` is that of the request.

    Raises:
        BadResponseError: malformed, or its body could be read in two ways.
    """
    bodyless = method == b"HEAD"
    if memory is not None and not bodyless:
        known = memory.get(raw)
        if known is not None:
            return known
    match = _RESPONSE.fullmatch(raw)
    if match is None:
        raise BadResponseError("malformed answer head")
    minor, status, reason = match.groups(b"")
    head = ResponseHead(raw, int(minor), int(status), reason, bodyless=bodyless)
    if memory is not None and not bodyless:
        memory.keep(head)
    return head
