"""HTTP/1.1 message heads and body framing as pure functions of bytes (RFC 9110, RFC 9112).

A head stays the bytes that arrived. One strict grammar accepts or refuses it as a whole, so that no two
readers of an accepted head can disagree on where a message ends; values are cut out where they are asked for.
Chunked bodies are decoded by llhttp with no leniency switched on. Nothing here knows a socket.
"""

import re
from functools import lru_cache
from typing import Final

import httptools

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELDS = rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n" + _FIELDS)
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


class _Fields:
    """The header lines of a message, looked up in the bytes. Names are asked for in lower case.

    Attributes:
        raw: the whole head, blank line included.
        lower: the same in lower case, for finding things.
        notable: the headers that framing or a proxy has to look at: lower-case name to lower-case value.
        options: lower-case members of Connection.
    """

    __slots__ = ("lower", "notable", "options", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.lower = raw.lower()
        found: list[tuple[bytes, bytes]] = _NOTABLE.findall(self.lower)
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
        start = self.lower.find(b"\r\n" + name + b":")
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
        lower = self.lower
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

    def _framing(self, minor: int) -> tuple[int | None, bool]:
        """Content-Length and whether the body is chunked; ValueError unless there is one reading only."""
        notable = self.notable
        coding = notable.get(b"transfer-encoding")
        length = notable.get(b"content-length")
        # Only spaces are taken off, so that framing never depends on how a reader treats a tab.
        if coding is not None:
            if length is not None or minor == 0:
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


class Head(_Fields):
    """The head of a request.

    Attributes:
        method, target: as sent.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        host: authority the request is for in lower case (of the target, if that is absolute); b"" if HTTP/1.0
            sent none.
        path: the target in origin form.
        length, chunked: framing of the body; (None, False) is no body.
        upgrade: a tunnel is asked for, and may be.
        expects_continue: the client waits for an interim answer before it sends the body.
        keep_alive: the client will send further requests on this connection.
    """

    __slots__ = (
        "chunked",
        "expects_continue",
        "host",
        "keep_alive",
        "length",
        "method",
        "minor",
        "path",
        "target",
        "upgrade",
    )

    def __init__(self, raw: bytes, method: bytes, target: bytes, minor: int) -> None:
        _Fields.__init__(self, raw)  # half the time of super(), on the hottest path
        self.method = method
        self.target = self.path = target
        self.minor = minor
        notable = self.notable
        if method == b"CONNECT":
            raise BadRequestError(405, "CONNECT is not served here")
        try:
            self.length, self.chunked = self._framing(minor)
        except ValueError as error:
            raise BadRequestError(400, str(error)) from None
        self.host = self._authority()
        options = self.options
        self.keep_alive = minor == 1 or options is _KEEP_ALIVE
        self.upgrade = self.expects_continue = False
        if options and options is not _KEEP_ALIVE:
            self.keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
            self.upgrade = b"upgrade" in options and self._may_upgrade()
        if minor == 1 and b"expect" in notable and self.has_body:
            self.expects_continue = self.listed(b"expect") == [b"100-continue"]

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.chunked or bool(self.length)

    def _authority(self) -> bytes:
        host = self.notable.get(b"host")
        if host is None:
            if self.minor == 1:
                raise BadRequestError(400, "Host is required")
            host = b""
        else:
            host = host.strip(b" \t")
            if not is_host(host):
                raise BadRequestError(400, "malformed Host")
        if self.target[:1] == b"/" or (self.target == b"*" and self.method == b"OPTIONS"):
            return host
        match = _ABSOLUTE.fullmatch(self.target)
        if match is None or not is_host(match[1]):
            raise BadRequestError(400, "malformed request target")
        rest = match[2] or b"/"
        self.path = rest if rest[:1] == b"/" else b"/" + rest
        return match[1].lower()

    def _may_upgrade(self) -> bool:
        # A tunnel to h2c would carry further requests past every check made here.
        protocols = self.listed(b"upgrade")
        return self.minor == 1 and not self.has_body and bool(protocols) and b"h2c" not in protocols


class ResponseHead(_Fields):
    """The head of an answer of the origin.

    Attributes:
        status, reason, minor: of the status line.
        length: bytes of body; 0 where there is none by rule (HEAD, 1xx, 204, 304).
        chunked: the body is chunked. With `length` None and not chunked it lasts until the connection closes.
        keep_alive: the connection may serve another request afterwards.
    """

    __slots__ = ("chunked", "keep_alive", "length", "minor", "reason", "status")

    def __init__(self, raw: bytes, minor: int, status: int, reason: bytes, *, bodyless: bool) -> None:
        _Fields.__init__(self, raw)
        self.minor = minor
        self.status = status
        self.reason = reason
        try:
            self.length, self.chunked = self._framing(minor)
        except ValueError as error:
            raise BadResponseError(str(error)) from None
        if bodyless or status < 200 or status in {204, 304}:  # noqa: PLR2004 - statuses without a body
            self.length, self.chunked = 0, False
        options = self.options
        framed = self.chunked or self.length is not None
        self.keep_alive = framed and (
            options is _KEEP_ALIVE or (b"close" not in options and (minor == 1 or b"keep-alive" in options))
        )


def parse_head(raw: bytes, most_fields: int = 100) -> Head:
    """The request head that `raw`, up to and including its blank line, is.

    Raises:
        BadRequestError: 400 malformed or ambiguous, 405 CONNECT, 431 more than `most_fields` header lines.
    """
    match = _REQUEST.fullmatch(raw)
    if match is None:
        raise BadRequestError(400, "malformed request head")
    if raw.count(b"\r\n") > most_fields + 2:
        raise BadRequestError(431, "too many header lines")
    method, target, minor = match.groups()
    return Head(raw, method, target, 1 if minor == b"1" else 0)


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


def parse_response(raw: bytes, method: bytes) -> ResponseHead:
    """The answer head that `raw`, up to and including its blank line, is; `method` is that of the request.

    Raises:
        BadResponseError: malformed, or its body could be read in two ways.
    """
    match = _RESPONSE.fullmatch(raw)
    if match is None:
        raise BadResponseError("malformed answer head")
    minor, status, reason = match.groups(b"")
    return ResponseHead(raw, int(minor), int(status), reason, bodyless=method == b"HEAD")


class Counted:
    """A body of known length."""

    __slots__ = ("done", "left")
    trailers: Final = b""

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what arrived; gives (body, what lies behind the end of the body)."""
        if len(data) < self.left:
            self.left -= len(data)
            return data, b""
        end, self.left, self.done = self.left, 0, True
        return (data, b"") if end == len(data) else (data[:end], data[end:])


class Endless:
    """A body that lasts until the connection closes."""

    __slots__ = ()
    trailers: Final = b""
    done: Final = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Everything that arrives is body."""
        return data, b""


class Chunked:
    """A chunked body. Extensions are read past and dropped, trailer lines are kept.

    Raises httptools.HttpParserError from `feed` for anything not exactly in the grammar.
    """

    __slots__ = ("_idle", "_parser", "_pieces", "_tail", "done", "trailers")
    _START = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    _MOST_OVERHEAD = 64 * 1024
    """Bytes of extensions or trailers in a row without any body, so that neither goes on for ever."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._tail = b""
        self._idle = 0
        self.done = False
        self.trailers = b""
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(self._START)
        self.trailers = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp: a header of the made-up head, later a trailer line."""
        self.trailers += name + b": " + value + b"\r\n"

    def on_body(self, data: bytes) -> None:
        """Called by llhttp."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Called by llhttp."""
        self.done = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what arrived; gives (body, what lies behind the end of the body).

        llhttp does not say where a message ended, but every chunked body ends with an empty line: it is fed
        up to one empty line after the other until it is content.
        """
        window = self._tail + data
        offset = len(self._tail)
        fed = 0
        while not self.done and fed < len(data):
            mark = window.find(CRLF2, max(0, fed + offset - 3))
            end = len(data) if mark < 0 else mark + 4 - offset
            self._parser.feed_data(data[fed:end])
            fed = end
        self._tail = window[-3:]
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._idle = 0 if body else self._idle + len(data)
        if self._idle > self._MOST_OVERHEAD:
            raise httptools.HttpParserError("too much chunk overhead")
        return body, data[fed:]


Body = Counted | Endless | Chunked
