"""What is fuzzed: each target makes the arguments of one property of bytes, and has some to start with."""

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from tests import properties
from tests.requests import MALFORMED, WELL_FORMED
from tests.test_fuzz import ANSWERS, CHUNKS, FRAGMENTS
from waitingroom.room import State, Status

_CUTS = (1, 2, 3, 5, 17, 64)
_METHODS = (b"GET", b"HEAD", b"POST")
_LONGEST = 2000
_MOST_SECONDS = 1e9
_NUMBERS = struct.Struct("<BBIffffB")


class Target(NamedTuple):
    """One property: what to call with bytes, the first of them, and words that are worth putting in."""

    check: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]


def _requests(data: bytes) -> None:
    properties.check_requests(data[1:], _CUTS[data[0] % len(_CUTS)])


def _answers(data: bytes) -> None:
    method, cut = divmod(data[0], len(_CUTS))
    properties.check_answers(_METHODS[method % len(_METHODS)], data[1:], _CUTS[cut])


def _chunks(data: bytes) -> None:
    properties.check_chunks(data[1:], _CUTS[data[0] % len(_CUTS)])


def _configuration(data: bytes) -> None:
    properties.check_configuration(data.decode("utf-8", "replace"))


def _status(data: bytes) -> None:
    numbers = _NUMBERS.unpack_from(data.ljust(_NUMBERS.size, b"\0"))
    which, state, position, *seconds, missed = numbers
    low, high, poll_after, updated = (
        abs(value) if math.isfinite(value) and abs(value) < _MOST_SECONDS else 0.0 for value in seconds
    )
    properties.check_status(
        Status(
            "sale",
            list(State)[state % len(State)],
            position=position or None,
            low=low if which & 1 else None,
            high=high if which & 2 else None,
            poll_after=poll_after,
            message=data[_NUMBERS.size :].decode("utf-8", "replace"),
            updated=updated,
            until=low if which & 4 else None,
            missed=bool(missed & 1),
        )
    )


_CONFIGURATION = b"""
[server]
listen = "127.0.0.1:8000"
trusted_proxies = ["10.0.0.0/8"]
head_timeout = "1h30m"
[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:9000"
hosts = ["shop.example"]
accent_color = "#0b57d0"
bypass_paths = ["/pay"]
"""
_REFERERS = [
    b"http://shop.example/goods?a=1",
    b"http://shop.example//evil.example",
    b"//shop.example/\\evil.example",
]
_PATHS = [b"a/../b;c=d//.", b"%2e%2e/x?room=sale&room=b+c", b".waitingroom/status?room=%73"]
_FORWARDED = [b'for="[2001:db8::1]:4711";proto=https;host=www.example', b"1.1.1.1, 10.0.0.1:80", b"fe80::1%a"]

_ALL = [case.raw for case in [*WELL_FORMED.values(), *MALFORMED.values()] if len(case.raw) < _LONGEST]

TARGETS = {
    "requests": Target(_requests, [b"\0" + raw for raw in _ALL], FRAGMENTS),
    "answers": Target(_answers, [b"\0" + raw for raw in ANSWERS], FRAGMENTS),
    "chunks": Target(_chunks, [b"\0" + raw for raw in CHUNKS], FRAGMENTS),
    "tokens": Target(
        properties.check_token, [properties.GENUINE, b'{"aud":"sale","n":["a",1]}'], [b'"aud":', b"."]
    ),
    "cookies": Target(
        properties.check_cookies,
        [b"a=b; wr-sale=t", b'__Host-wr-sale="u";'],
        [b"wr-sale=", b"__Secure-", b";"],
    ),
    "forwarded": Target(
        properties.check_forwarded, _FORWARDED, [b"for=", b"host=", b"proto=", b'"', b"https"]
    ),
    "configuration": Target(
        _configuration, [_CONFIGURATION], [b"[[rooms]]", b"[server]", b'"', b"'''", b"1h", b"{"]
    ),
    "status": Target(_status, [bytes(40) + b'"\\\n', b"\xff" * 30], [b'"', b"\\", b"\xe2\x80\xa8"]),
    "return": Target(
        properties.check_return, _REFERERS, [b"//", b"\\", b"%2f", b"@", b"shop.example", b"http:"]
    ),
    "paths": Target(properties.check_path, _PATHS, [b"..", b"%2e", b"%2f", b"//", b"\\", b";", b"?room="]),
}
