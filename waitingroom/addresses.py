"""Addresses as a configuration writes them: where a listener listens, and where an origin is."""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

# uvloop takes a port beyond the last one for one of the others.
_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"

LISTEN = rf"^\S+:{_PORT}$"
"""Pattern of an address to listen on."""

_ORIGIN = re.compile(rf"https?://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:{_PORT})?|unix:(//)?/[^\s/]\S*")


class Origin(NamedTuple):
    """Where an origin is: a path of a Unix socket, or else host and port, with TLS or without."""

    unix: str
    host: str
    port: int
    tls: bool


def parse_origin(url: str) -> Origin:
    """The origin at an http, https or unix address.

    Raises:
        ValueError: it is not the address of an origin.
    """
    wrong = ValueError(f"not the address of an origin: {url!r}")
    if _ORIGIN.fullmatch(url) is None:
        raise wrong
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    tls = parts.scheme == "https"
    unix = parts.path if parts.scheme == "unix" else ""
    return Origin(unix, host, port or (443 if tls else 80), tls)


def is_origin(url: str) -> bool:
    """Whether this is the address of an origin."""
    try:
        parse_origin(url)
    except ValueError:
        return False
    return True
