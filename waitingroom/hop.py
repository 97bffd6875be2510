"""Which header lines pass this hop, as pure functions of bytes (RFC 9110, 7.6).

The lines that end here are cut out of the original head and ours are put behind it; all else stays as it
was sent.
"""

import re
from typing import Final

from waitingroom.heads import Head, ResponseHead

_HOP = rb"connection|keep-alive|proxy-[^:]*|te|upgrade|http2-settings"
_CUT_OUTBOUND = re.compile(
    rb"\r\n(?:" + _HOP + rb"|forwarded|x-forwarded-(?:for|proto|host)|(?:cf-)?waiting-room[^:]*):[^\r]*",
    re.IGNORECASE,
)
_CUT_INBOUND = re.compile(
    rb"\r\n(?:" + _HOP + rb"|transfer-encoding|(?:cf-)?waiting-room-command):[^\r]*", re.IGNORECASE
)
_CUT_TRAILER = re.compile(rb"\r\ntrailer:[^\r]*", re.IGNORECASE)
_CUT_HOST = re.compile(rb"\r\nhost:[^\r]*", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\ncookie:([^\r]*)", re.IGNORECASE)
_NO_TRAILER = re.compile(
    rb"(?:"
    + _HOP
    + rb"|host|authorization|cookie|set-cookie|content-[^:]*|cache-control|expect|range|trailer"
    rb"|transfer-encoding|forwarded|x-forwarded-[^:]*|(?:cf-)?waiting-room[^:]*):.*",
    re.IGNORECASE,
)
_KNOWN_OPTIONS: Final = {b"close", b"keep-alive", b"upgrade", b"te", b"", b"http2-settings"}
_NEVER_CUT: Final = {b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect"}
"""What a Connection header may not take away: without these the next reader would see another request."""

_PLAIN: Final = {b"host", b"content-length", b"transfer-encoding", b"cookie", b"expect"}
"""Notable headers that pass as they are; a head with no others needs no cutting."""


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
    raw = head.raw
    if not _PLAIN.issuperset(head.notable):
        raw = _CUT_OUTBOUND.sub(b"", raw)
        if not head.chunked:
            raw = _CUT_TRAILER.sub(b"", raw)
        raw = _cut_named(raw, head.listed(b"connection"))
        if head.upgrade:
            lines += b"Connection: Upgrade\r\nUpgrade: " + b", ".join(head.get_all(b"upgrade")) + b"\r\n"
        elif b"trailers" in head.listed(b"te"):
            lines += b"Connection: TE\r\nTE: trailers\r\n"
    for prefix in strip_cookies:
        if prefix in raw:
            raw = _COOKIE.sub(lambda match: _keep_cookies(match, strip_cookies), raw)
            break
    if head.path is not head.target or not head.minor or host is not None:
        raw = _readdress(raw, head, host)
    return raw[:-2] + lines + b"\r\n"


def inbound_head(head: ResponseHead, lines: bytes = b"", *, chunked: bool = False) -> bytes:
    """The head that the shopper gets, without Connection and the empty line, which are the client side's.

    Args:
        head: as the origin sent it.
        lines: header lines to add, each ended by CRLF.
        chunked: the body will be sent chunked.
    """
    raw = head.raw
    if head.notable:
        raw = _CUT_INBOUND.sub(b"", raw)
        if not chunked:
            raw = _CUT_TRAILER.sub(b"", raw)
        raw = _cut_named(raw, head.listed(b"connection"))
    if chunked:
        lines += b"Transfer-Encoding: chunked\r\n"
    return (raw[:-2] if head.minor else b"HTTP/1.1" + raw[8:-2]) + lines


def end_to_end_trailers(trailers: bytes) -> bytes:
    """The trailer lines that may pass: none that frames, routes or authenticates (RFC 9110 §6.5.1)."""
    if not trailers:
        return b""
    return b"".join(
        line for line in trailers.splitlines(keepends=True) if not _NO_TRAILER.fullmatch(line.rstrip(b"\r\n"))
    )


def _cut_named(raw: bytes, options: list[bytes]) -> bytes:
    """Without the lines that the Connection header names as meant for this hop."""
    named = [option for option in options if option not in _KNOWN_OPTIONS and option not in _NEVER_CUT]
    if not named:
        return raw
    first, *lines = raw[:-4].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() not in named]
    return b"\r\n".join([first, *kept, b"", b""])


def _keep_cookies(match: re.Match[bytes], prefixes: tuple[bytes, ...]) -> bytes:
    pairs = [pair.strip(b" \t") for pair in match[1].split(b";")]
    kept = [pair for pair in pairs if not pair.startswith(prefixes)]
    if len(kept) == len(pairs):
        return match[0]
    return b"\r\nCookie: " + b"; ".join(kept) if kept else b""


def _readdress(raw: bytes, head: Head, host: bytes | None) -> bytes:
    """With the target in origin form, as HTTP/1.1, and the Host that the origin shall see."""
    raw = _CUT_HOST.sub(b"", raw)
    rest = raw[raw.index(b"\r\n") :]
    return b"%b %b HTTP/1.1\r\nHost: %b%b" % (head.method, head.path, host or head.host or b"localhost", rest)
