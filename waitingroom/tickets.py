"""Tickets and passes: the signed proof of a place or a seat that a visitor carries.

Both are compact JWTs (RFC 7519), so an edge can verify a pass without calling us. `exp` is wall-clock time
for such edges; `end` is the room's own clock in milliseconds, which is what gateways judge by.

Of all JWTs only those exactly as we write them are read: HS256 (RFC 7515, 7518 §3.2) under the one header of
a known key. That leaves nothing to negotiate, and costs an eighth of what a general library does, which a
gateway with ten thousand polls a second notices. The tests hold both directions against such a library.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from waitingroom.room import LANE, Arrival

SHORTEST_KEY = 32
"""Bytes; RFC 7518 §3.2 asks for a key at least as long as the hash."""

LONGEST_TOKEN = 1024
"""Bytes. Nothing longer can be ours, so nothing longer is parsed."""


class Use(StrEnum):
    """What a token proves: a place, a seat, or that somebody was let in while nobody could count."""

    TICKET = "ticket"
    PASS = "pass"  # noqa: S105 - a kind of token, not a password
    GUEST = "guest"


class InvalidTokenError(Exception):
    """A token that proves nothing; `reason` is one word for a metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyTooShortError(ValueError):
    """A signing key of fewer than 32 bytes."""


def seat_of(lane: str, number: int, visitor: str) -> str:
    """The key of a seat: visitor and number together, so that no repeated number can share one."""
    return f"{lane}:{number}:{visitor}"


@dataclass(frozen=True, slots=True)
class Token:
    """A ticket or a pass.

    Attributes:
        end: when it ends on the room's clock, in milliseconds.
        expires: the same in Unix seconds, as well as the signing gateway could tell.
        arrival: in a ticket without a number: when its holder came, while the store was away.
        seat: the key of the seat in the store.
    """

    use: Use
    room: str
    visitor: str
    number: int
    epoch: int
    end: int
    issued: int
    expires: int
    lane: str = LANE
    arrival: Arrival | None = None
    seat: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for several times in every request of somebody inside.
        object.__setattr__(self, "seat", seat_of(self.lane, self.number, self.visitor))

    def __repr__(self) -> str:
        return f"<{self.use} {self.lane}:{self.number} of {self.room}, epoch {self.epoch}, ends {self.end}>"


class Keyring:
    """Signing keys: the first signs, all verify, so that rotating them loses nobody."""

    __slots__ = ("_by_header", "_header", "_ids", "_issuer", "_key")

    def __init__(self, keys: Mapping[str, bytes] | Sequence[bytes], issuer: str = "waitingroom") -> None:
        """Take the keys, newest first, by key id or bare (the id is then a digest of the key).

        Raises:
            KeyTooShortError: if there is no key, or one is shorter than 32 bytes.
        """
        named = keys if isinstance(keys, Mapping) else {key_id(key): key for key in keys}
        if not named:
            raise KeyTooShortError("there is no signing key; give one of at least 32 bytes")
        for name, key in named.items():
            if len(key) < SHORTEST_KEY:
                raise KeyTooShortError(
                    f"signing key {name} has {len(key)} bytes; it needs at least {SHORTEST_KEY}"
                )
        self._by_header = {_header(name): key for name, key in named.items()}
        self._ids = frozenset(named)
        self._header, self._key = next(iter(self._by_header.items()))
        self._issuer = issuer

    def sign(self, token: Token) -> str:
        """The compact form of `token`, signed with the first key."""
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": token.room,
            "sub": token.visitor,
            "iat": token.issued,
            "exp": token.expires,
            "ep": token.epoch,
            "n": [token.lane, token.number],
            "use": token.use.value,
            "end": token.end,
        }
        if token.arrival is not None:
            claims["arr"] = token.arrival
        signed = self._header + b"." + _b64(_encode(claims).encode())
        return (signed + b"." + _signature(self._key, signed)).decode()

    def verify(self, text: bytes | str, room: str) -> Token:
        """The token in `text` if one of our keys signed it for `room`.

        Whether it has ended, and whether its epoch is the room's, is for the caller to judge: both are told
        by the room, not by a clock of ours.

        Raises:
            InvalidTokenError: with a one-word reason, for anything else that `text` may hold.
        """
        if len(text) > LONGEST_TOKEN:
            raise InvalidTokenError("long")
        try:
            raw = text if isinstance(text, bytes) else text.encode("ascii")
            signed, _, signature = raw.rpartition(b".")
            header, _, payload = signed.partition(b".")
            key = self._by_header.get(header)
            if key is None:
                raise InvalidTokenError(self._estranged(header))
            if not hmac.compare_digest(signature, _signature(key, signed)):
                raise InvalidTokenError("signature")
            claims = json.loads(_unb64(payload))
            if claims["aud"] != room or claims["iss"] != self._issuer:
                raise InvalidTokenError("room")
            return _token(claims, room)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise InvalidTokenError("malformed") from None

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """Keys for another purpose, one of each of ours in the same order; none of them tells its origin."""
        return tuple(hmac.digest(key, b"for " + purpose, "sha256") for key in self._by_header.values())

    def _estranged(self, header: bytes) -> str:
        """Why a header is none of ours; ValueError or TypeError if it is no header at all."""
        told = json.loads(_unb64(header))
        if not isinstance(told, dict):
            return "malformed"
        if told.get("kid") not in self._ids:
            return "key"
        return "malformed" if told.get("alg") == "HS256" else "signature"


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _header(name: str) -> bytes:
    return _b64(_encode({"alg": "HS256", "kid": name, "typ": "JWT"}).encode())


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unb64(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"==")


def _signature(key: bytes, signed: bytes) -> bytes:
    return _b64(hmac.digest(key, signed, "sha256"))


def _token(claims: dict[str, Any], room: str) -> Token:
    lane, number = claims["n"]
    if not isinstance(claims["sub"], str):
        raise TypeError("sub")
    return Token(
        use=Use(claims["use"]),
        room=room,
        visitor=claims["sub"],
        number=int(number),
        epoch=int(claims["ep"]),
        end=int(claims["end"]),
        issued=int(claims["iat"]),
        expires=int(claims["exp"]),
        lane=str(lane),
        arrival=_arrival(claims["arr"]) if "arr" in claims else None,
    )


def _arrival(claim: Any) -> Arrival:
    gateway, second, place = claim
    return Arrival(str(gateway), int(second), int(place))


def key_id(key: bytes) -> str:
    """A short public name for a secret key."""
    return base64.urlsafe_b64encode(hashlib.sha256(b"kid" + key).digest()[:6]).decode()


@lru_cache(maxsize=1024)
def cookie_name(room: str, scheme: str, domain: str = "") -> str:
    """The name of a room's cookie; prefixes as in RFC 6265bis §4.1.3, which browsers enforce over TLS."""
    if scheme != "https":
        return f"wr-{room}"
    return f"{'__Secure-' if domain else '__Host-'}wr-{room}"


@lru_cache(maxsize=1024)
def cookie_names(room: str) -> tuple[bytes, ...]:
    """Every name under which a room's cookie may come back, strictest first."""
    return tuple(f"{prefix}wr-{room}".encode() for prefix in ("__Host-", "__Secure-", ""))
