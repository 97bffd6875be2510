"""What a request says about its visitor, and what its answer says back, as pure functions of bytes."""

import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from waitingroom.heads import Head, ResponseHead
from waitingroom.room import Room
from waitingroom.tickets import cookie_name

OURS = "/.waitingroom/"

STRIPPED = (b"wr-", b"__Host-wr-", b"__Secure-wr-")
"""Beginnings of the names of cookies that are ours and none of the origin's business."""

PROOF = ".proof"
"""Kind of the cookie with what shows a browser; no room has a dot in its name."""

_LONGEST_KEPT = 256
"""Bytes of a target that is worth remembering."""

_PORTS = {b"http": b":80", b"https": b":443"}

_TWO_READINGS = re.compile(rb"[%\\;]|//|/\.")

_KEPT_BY_ALL = re.compile(rb"(?:^|[ ,])(?:public|s-maxage=|max-age=0*[1-9])")


def strangers() -> Iterator[str]:
    """Random ids of 128 bits for visitors, without end; the system is asked for many at a time."""
    while True:
        pool = secrets.token_bytes(16 * 256)
        for at in range(0, len(pool), 16):
            yield urlsafe_b64encode(pool[at : at + 16]).rstrip(b"=").decode()


def plain_path(target: bytes) -> str:
    """The path of a target as an origin may read it: decoded, without dot segments or doubled slashes.

    Only for deciding which room protects it; what is forwarded stays as it was sent.
    """
    path = target.partition(b"?")[0].partition(b"#")[0]
    if _TWO_READINGS.search(path) is None:
        return path.decode("utf-8", "replace")
    kept: list[bytes] = []
    for segment in unquote_to_bytes(path).replace(b"\\", b"/").split(b"/"):
        # Some origins take what follows a semicolon for parameters, even in "..;".
        part = segment.partition(b";")[0]
        if part == b"..":
            del kept[-1:]
        elif part not in (b"", b"."):
            kept.append(part)
    return "/" + b"/".join(kept).decode("utf-8", "replace")


def asked_for(target: bytes) -> tuple[str, str | None]:
    """The plain path of a target, and what of it lies under our own paths, None if nothing does."""
    return _asked_for(target) if len(target) <= _LONGEST_KEPT else _asked_for.__wrapped__(target)


@lru_cache(maxsize=4096)
def _asked_for(target: bytes) -> tuple[str, str | None]:
    path = plain_path(target)
    return path, path[len(OURS) :] if f"{path}/".startswith(OURS) else None


def query_value(target: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter, percent-decoded; None without one."""
    for pair in target.partition(b"?")[2].split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name:
            written = b"%" in value or b"+" in value
            return unquote_to_bytes(value.replace(b"+", b" ")) if written else value
    return None


def host_of(authority: bytes) -> str:
    """The bare lower-case host of a Host header."""
    host, colon, port = authority.rpartition(b":")
    bare = host if colon and port.isdigit() else authority
    return bare.decode("latin-1").lower().removesuffix(".")


def cookies(head: Head, names: tuple[bytes, ...]) -> list[tuple[bytes, bytes]]:
    """Every cookie with one of `names`, as (name, value), in the order of `names`."""
    if b"cookie" not in head.fields.notable:
        return []
    found = []
    for line in head.fields.get_all(b"cookie"):
        for pair in line.split(b";"):
            name, equals, value = pair.strip(b" \t").partition(b"=")
            if equals and name in names:
                found.append((name, value.strip(b'"')))
    return found if len(found) < 2 else sorted(found, key=lambda pair: names.index(pair[0]))  # noqa: PLR2004 - nothing to sort


def set_cookie(room: Room, scheme: str, value: str, life: int, kind: str = "") -> bytes:
    """A Set-Cookie line for a ticket or pass, or for another `kind` of cookie of a room.

    `life` is in seconds, 0 takes the cookie back.
    """
    name = cookie_name(room.name + kind, scheme, room.cookie_domain)
    same_site = "lax" if room.cookie_samesite == "none" and scheme != "https" else room.cookie_samesite
    parts = [f"{name}={value}", "Path=/", f"Max-Age={life}", "HttpOnly", f"SameSite={same_site.capitalize()}"]
    if scheme == "https":
        parts.append("Secure")
    if room.cookie_domain:
        parts.append(f"Domain={room.cookie_domain}")
    return f"Set-Cookie: {'; '.join(parts)}\r\n".encode("latin-1")


def same_origin(head: Head, authority: bytes) -> bool:
    """Whether a state-changing request comes from a page of the same site, or from no page at all.

    Browsers send Origin with every POST; a client that sends none has no visitor to be tricked.
    """
    origin = head.get(b"origin")
    if origin is None:
        return head.get(b"sec-fetch-site") in (None, b"same-origin", b"none")
    scheme, _, theirs = origin.lower().partition(b"://")
    # A proxy may have written out the port that a browser leaves away.
    return theirs in (authority.lower(), authority.lower().removesuffix(_PORTS.get(scheme, b":")))


def kept_by_all(head: ResponseHead) -> bool:
    """Whether a cache that serves everybody may keep this answer (RFC 9111 section 3), cookies and all."""
    control = b",".join(head.get_all(b"cache-control")).lower()
    kept = _KEPT_BY_ALL.search(control) is not None
    return kept and b"private" not in control and b"no-store" not in control


def return_path(head: Head, authority: bytes, default: str) -> bytes:
    """Where a visitor came from on this very host, as a path; never another site.

    A path that begins with two slashes, or a backslash, is another site to a browser.
    """
    referer = head.get(b"referer") or b""
    _, _, rest = referer.partition(b"://")
    host, slash, path = rest.partition(b"/")
    target = b"/" + path
    safe = all(33 <= byte < 127 for byte in target) and b"\\" not in target  # noqa: PLR2004 - visible ASCII
    if (
        not slash
        or host.lower() != authority.lower()
        or not safe
        or target.startswith((b"//", OURS.encode()))
    ):
        return b"/" + quote(default.lstrip("/\\"), safe="/%:@!$&'()*+,;=~").encode()
    return target
