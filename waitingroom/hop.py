"""Which header lines pass this hop, as pure functions of bytes (RFC 9110, 7.6).

The lines that end here are cut out of the original head and ours are put behind it; all else stays as it
was sent.
"""

import re
from typing import Final

from waitingroom.heads import Head, ResponseHead

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


def outbound_head(
    head: Head, lines: bytes = b"", *, strip_cookies: tuple[bytes, ...] = (), host: bytes | None = None
) -> bytes:
    """The head that the origin gets.

    Args:
        head: as the shopper sent it.
        lines: header lines to add, each ended by CRLF.
        strip_cookies: beginnings of names of cookies that stay here.
        host: replaces Host; None keeps the shopper's.
    """
    edits: list[Edit] = []
    for name in head.notable:
        if name not in _OUTBOUND_PLAIN and not (name == b"trailer" and head.chunked):
            edits += head.cuts(name)
    if head.options:
        edits += _nominated(head)
        if head.upgrade:
            lines += b"Connection: Upgrade\r\nUpgrade: " + b", ".join(head.get_all(b"upgrade")) + b"\r\n"
    if b"te" in head.notable and not head.upgrade and b"trailers" in head.listed(b"te"):
        lines += b"Connection: TE\r\nTE: trailers\r\n"
    if strip_cookies and b"cookie" in head.notable:
        edits += _cookie_edits(head, strip_cookies)
    if head.path is not head.target or not head.minor or host is not None:
        edits += _readdressed(head, host)
    return _edited(head.raw, edits, lines + b"\r\n")


def inbound_head(head: ResponseHead, lines: bytes = b"", *, chunked: bool = False) -> bytes:
    """The head that the shopper gets, without Connection and the empty line, which are the client side's.

    Args:
        head: as the origin sent it.
        lines: header lines to add, each ended by CRLF.
        chunked: the body will be sent chunked.
    """
    edits: list[Edit] = []
    for name in head.notable:
        if name not in _INBOUND_PLAIN and _ends_here(name) and not (name == b"trailer" and chunked):
            edits += head.cuts(name)
    if head.options:
        edits += _nominated(head)
    if not head.minor:
        edits.append((0, 8, b"HTTP/1.1"))
    if chunked:
        lines += b"Transfer-Encoding: chunked\r\n"
    return _edited(head.raw, edits, lines)


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
        pieces += (raw[at:start], new)
        at = stop
    pieces += (raw[at:-2], end)
    return b"".join(pieces)


def _nominated(head: Head | ResponseHead) -> list[Edit]:
    """Take out the lines that Connection names as meant for this hop, unless they go anyway."""
    edits: list[Edit] = []
    for option in head.options:
        if option not in _KNOWN_OPTIONS and option not in _NEVER_CUT and option not in head.notable:
            edits += head.cuts(option)
    return edits


def _cookie_edits(head: Head, prefixes: tuple[bytes, ...]) -> list[Edit]:
    edits = []
    for start, end, _ in head.cuts(b"cookie"):
        pairs = head.raw[start + 9 : end].split(b";")
        kept = [pair for pair in pairs if not pair.lstrip(b" \t").startswith(prefixes)]
        if len(kept) < len(pairs):
            edits.append((start, end, b"\r\nCookie:" + b";".join(kept) if kept else b""))
    return edits


def _readdressed(head: Head, host: bytes | None) -> list[Edit]:
    """The target in origin form, as HTTP/1.1, and the Host that the origin shall see."""
    line = b"%b %b HTTP/1.1\r\nHost: %b" % (head.method, head.path, host or head.host or b"localhost")
    return [(0, head.raw.index(b"\r"), line), *head.cuts(b"host")]
