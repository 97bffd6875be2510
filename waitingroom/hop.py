"""Which header lines pass this hop, as pure functions of bytes (RFC 9110, 7.6).

The lines that end here are cut out of the original head and ours are put behind it; all else stays as it
was sent.
"""

import re
from typing import Final, cast

from waitingroom.heads import Fields, Head, RequestFields, ResponseHead

_OUTBOUND_PLAIN: Final = {b"host", b"content-length", b"transfer-encoding", b"cookie", b"expect"}
_INBOUND_PLAIN: Final = {b"host", b"content-length", b"cookie", b"expect", b"forwarded"} | {
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
}
"""Notable headers that pass; every other notable one ends here."""

_KNOWN_OPTIONS: Final = {b"close", b"keep-alive", b"upgrade", b"te", b"", b"http2-settings"}
_NEVER_CUT: Final = {b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect"}
"""What a Connection header may not take away: without these the next reader would see another request."""

_NO_TRAILER = re.compile(
    rb"(?:connection|keep-alive|proxy-[^:]*|te|upgrade|host|authorization|cookie|set-cookie|content-[^:]*"
    rb"|cache-control|expect|range|trailer|transfer-encoding|forwarded|x-forwarded-[^:]*"
    rb"|(?:cf-)?waiting-room[^:]*):.*",
    re.IGNORECASE,
)

Edit = tuple[int, int, bytes]
"""Replace the bytes from here to there."""


def outbound_head(head: Head, lines: bytes = b"", strip_cookies: tuple[bytes, ...] = ()) -> bytes:
    """The head that the origin gets.

    Args:
        head: as the shopper sent it.
        lines: header lines to add, each ended by CRLF.
        strip_cookies: beginnings of names of cookies that stay here.
    """
    fields = head.fields
    if head.path is not head.target or not fields.minor:
        edits = [*_outbound_edits(fields, strip_cookies), *_readdressed(head)]
        return b"%b %b%b" % (head.method, head.path, _edited(fields.raw, edits, _outbound_end(fields, lines)))
    known = fields.outbound
    if known is None or known[0] != lines or known[1] != strip_cookies:
        edited = _edited(fields.raw, _outbound_edits(fields, strip_cookies), _outbound_end(fields, lines))
        known = fields.outbound = lines, strip_cookies, edited
    return head.start + cast("bytes", known[2])


def _outbound_edits(fields: RequestFields, strip_cookies: tuple[bytes, ...]) -> list[Edit]:
    edits: list[Edit] = []
    for name in fields.notable:
        if name not in _OUTBOUND_PLAIN and not (name == b"trailer" and fields.chunked):
            edits += fields.cuts(name)
    if fields.options:
        edits += _nominated(fields)
    if strip_cookies and b"cookie" in fields.notable:
        edits += _cookie_edits(fields, strip_cookies)
    return edits


def _outbound_end(fields: RequestFields, lines: bytes) -> bytes:
    if fields.upgrade:
        lines += b"Connection: Upgrade\r\nUpgrade: " + b", ".join(fields.get_all(b"upgrade")) + b"\r\n"
    elif b"te" in fields.notable and b"trailers" in fields.listed(b"te"):
        lines += b"Connection: TE\r\nTE: trailers\r\n"
    return lines + b"\r\n"


def inbound_head(head: ResponseHead, lines: bytes = b"", *, chunked: bool = False) -> bytes:
    """The head that the shopper gets, without Connection and the empty line, which are the client side's.

    Args:
        head: as the origin sent it.
        lines: header lines to add, each ended by CRLF.
        chunked: the body will be sent chunked.
    """
    known = head.inbound
    if known is None or known[0] is not chunked:
        end = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        known = head.inbound = chunked, _edited(head.raw, _inbound_edits(head, chunked), end)
    return cast("bytes", known[1]) + lines


def _inbound_edits(head: ResponseHead, chunked: bool) -> list[Edit]:  # noqa: FBT001 - as `inbound_head` has it
    edits: list[Edit] = []
    for name in head.notable:
        if name not in _INBOUND_PLAIN and _ends_here(name) and not (name == b"trailer" and chunked):
            edits += head.cuts(name)
    if head.options:
        edits += _nominated(head)
    if not head.minor:
        edits.append((0, 8, b"HTTP/1.1"))
    return edits


def end_to_end_trailers(trailers: bytes) -> bytes:
    """The trailer lines that may pass: none that frames, routes or authenticates (RFC 9110 section 6.5.1)."""
    if not trailers:
        return b""
    return b"".join(
        line for line in trailers.splitlines(keepends=True) if not _NO_TRAILER.fullmatch(line.rstrip(b"\r\n"))
    )


def _ends_here(name: bytes) -> bool:
    """Whether a notable header of an answer is not for the shopper; of ours only the commands are not."""
    return b"waiting-room" not in name or name.endswith(b"waiting-room-command")


def _edited(raw: bytes, edits: list[Edit], end: bytes) -> bytes:
    """The head with the edits made, and `end` instead of its empty line."""
    if not edits:
        return raw[:-2] + end
    if len(edits) == 1:
        start, stop, new = edits[0]
        return raw[:start] + new + raw[stop:-2] + end
    edits.sort()
    pieces: list[bytes] = []
    at = 0
    for start, stop, new in edits:
        # Connection may name a line twice.
        if start >= at:
            pieces += (raw[at:start], new)
            at = stop
    pieces += (raw[at:-2], end)
    return b"".join(pieces)


def _nominated(head: Fields) -> list[Edit]:
    """Take out the lines that Connection names as meant for this hop, unless they go anyway."""
    edits: list[Edit] = []
    for option in head.options:
        if option not in _KNOWN_OPTIONS and option not in _NEVER_CUT and option not in head.notable:
            edits += head.cuts(option)
    return edits


def _cookie_edits(head: RequestFields, prefixes: tuple[bytes, ...]) -> list[Edit]:
    edits = []
    for start, end, _ in head.cuts(b"cookie"):
        pairs = head.raw[start + 9 : end].split(b";")
        kept = [pair for pair in pairs if not pair.lstrip(b" \t").startswith(prefixes)]
        if len(kept) < len(pairs):
            edits.append((start, end, b"\r\nCookie:" + b";".join(kept) if kept else b""))
    return edits


def _readdressed(head: Head) -> list[Edit]:
    """As HTTP/1.1, for the host that the target names."""
    fields = head.fields
    line = b" HTTP/1.1\r\nHost: %b" % (head.host or b"localhost")
    return [(0, fields.raw.index(b"\r"), line), *fields.cuts(b"host")]
