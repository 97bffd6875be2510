"""HTTP/1.1 read slowly and literally, for tests: each rule as RFC 9110 and RFC 9112 have it.

Where the gateway's own grammar is narrower (Host, targets, extensions of chunks, limits), what it refuses is
its own decision; what it accepts has to be read as it is read here.
"""

import string
from typing import NamedTuple

TCHAR = frozenset(b"!#$%&'*+-.^_`|~" + (string.digits + string.ascii_letters).encode())
HEX = frozenset(string.hexdigits.encode())
DIGITS = frozenset(string.digits.encode())
VALUE = frozenset({9, *range(32, 127), *range(128, 256)})
CRLF2 = b"\r\n\r\n"


class FaultError(Exception):
    """These bytes are not what they should be."""


class Message(NamedTuple):
    """One request or answer.

    Attributes:
        start: the parts of its first line.
        headers: names in lower case, values without blanks around them.
        body: without its framing; None as long as it is incomplete.
        trailers: as `headers`.
    """

    start: tuple[bytes, bytes, bytes]
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None
    trailers: tuple[tuple[bytes, bytes], ...] = ()

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for each, value in self.headers if each == name]


def _lines(block: bytes) -> list[bytes]:
    lines = block.split(b"\r\n")
    if any({10, 13} & set(line) for line in lines):
        raise FaultError("a bare line break")
    return lines


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Name in lower case and value of a header line. Raises FaultError."""
    name, colon, value = line.partition(b":")
    if not colon or not name or not TCHAR.issuperset(name) or not VALUE.issuperset(value):
        raise FaultError("a header line")
    return name.lower(), value.strip(b" \t")


def _version(text: bytes) -> bytes:
    if text not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise FaultError("a version")
    return text


def _framing(headers: tuple[tuple[bytes, bytes], ...], version: bytes) -> int | None:
    """Bytes of body; -1 for chunks, None without either header."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise FaultError("more than one framing")
    if codings:
        if codings[0].lower() != b"chunked" or version == b"HTTP/1.0":
            raise FaultError("a coding")
        return -1
    if lengths:
        if not lengths[0] or not DIGITS.issuperset(lengths[0]):
            raise FaultError("a length")
        return int(lengths[0])
    return None


def read_chunks(data: bytes) -> tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]] | None:
    """(body, what is behind it, trailers) of a chunked body; None as long as it is incomplete.

    Raises:
        FaultError: it is no chunked body, whatever more may come.
    """
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return None
        size, _, extension = line.partition(b";")
        if not size or not HEX.issuperset(size) or not VALUE.issuperset(extension):
            raise FaultError("the line of a chunk's size")
        length = int(size, 16)
        if length == 0:
            break
        if len(rest) < length + 2:
            return None
        if rest[length : length + 2] != b"\r\n":
            raise FaultError("the end of a chunk")
        body += rest[:length]
        data = rest[length + 2 :]
    if rest.startswith(b"\r\n"):
        return body, rest[2:], ()
    block, found, rest = rest.partition(CRLF2)
    if not found:
        return None
    trailers = tuple(read_field(line) for line in _lines(block))
    if {name for name, _ in trailers} & {b"content-length", b"transfer-encoding"}:
        raise FaultError("framing behind the body")
    return body, rest, trailers


def _with_body(
    start: tuple[bytes, bytes, bytes], headers: tuple[tuple[bytes, bytes], ...], length: int, rest: bytes
) -> tuple[Message, bytes]:
    if length < 0:
        try:
            read = read_chunks(rest)
        except FaultError:
            read = None
        if read is None:
            return Message(start, headers, None), b""
        return Message(start, headers, read[0], read[2]), read[1]
    if len(rest) < length:
        return Message(start, headers, None), b""
    return Message(start, headers, rest[:length]), rest[length:]


def read_request(data: bytes) -> tuple[Message, bytes] | None:
    """The first request in `data` and what is behind it; None as long as its head is incomplete.

    Raises:
        FaultError: there is no request.
    """
    block, found, rest = data.partition(CRLF2)
    if not found:
        return None
    first, *lines = _lines(block)
    parts = first.split(b" ")
    if len(parts) != 3:
        raise FaultError("a request line")
    method, target, version = parts
    visible = VALUE - {9, 32}
    if not method or not TCHAR.issuperset(method) or not target or not visible.issuperset(target):
        raise FaultError("a request line")
    headers = tuple(read_field(line) for line in lines)
    length = _framing(headers, _version(version))
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise FaultError("not one Host")
    return _with_body((method, target, version), headers, length or 0, rest)


def read_requests(data: bytes) -> tuple[list[Message], bool]:
    """Every request in `data` up to the first that is malformed or incomplete; whether none is malformed.

    One whose head is whole and whose body is not stands among them without a body.
    """
    found: list[Message] = []
    try:
        while (read := read_request(data)) is not None:
            message, data = read
            found.append(message)
            if message.body is None:
                break
    except FaultError:
        return found, False
    return found, True


def read_answer(data: bytes, method: bytes, *, ended: bool) -> tuple[list[Message], bytes]:
    """Interim answers and the final one in `data`, as far as they are whole, and what is behind.

    A final answer whose body is not complete has None for it. `ended`: nothing more will come.

    Raises:
        FaultError: there is no answer.
    """
    found: list[Message] = []
    while CRLF2 in data:
        block, _, data = data.partition(CRLF2)
        first, *lines = _lines(block)
        version, _, rest = first.partition(b" ")
        status, _, reason = rest.partition(b" ")
        digits = len(status) == 3 and DIGITS.issuperset(status) and status[:1] != b"0"
        if not digits or not VALUE.issuperset(reason):
            raise FaultError("a status line")
        headers = tuple(read_field(line) for line in lines)
        length = _framing(headers, _version(version))
        start = version, status, reason
        if status[:1] == b"1":
            found.append(Message(start, headers, b""))
            continue
        if method == b"HEAD" or status in (b"204", b"304"):
            length = 0
        if length is None:
            found.append(Message(start, headers, data if ended else None))
            return found, b""
        message, behind = _with_body(start, headers, length, data)
        return [*found, message], behind
    return found, data
