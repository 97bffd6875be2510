"""Who may do what on the private listener, and how often: roles, the file of tokens, limits.

Decisions only: whoever asks brings the text of the file and the time along.
"""

import difflib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address

from waitingroom.config import INTERNAL, ConfigError, Settings
from waitingroom.room import Room

SHORTEST_TOKEN = 16
MOST_ACCOUNTS = 4096
STRANGERS = ""
"""The account that everybody shares who comes when there are `MOST_ACCOUNTS` already."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_MAKE = "'waitingroom key token --name anna --role operator' makes a line."


class Role(StrEnum):
    """What the holder of a token may do; each may also do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: "Role") -> bool:
        """Whether this role may do what `needed` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)


OPERATOR_SETTINGS = frozenset(
    {"total_active_users", "new_users_per_minute", "paused", "queue_all", "message"}
)
"""What an operator may set: nothing that ends a seat or a place, or changes where a request goes."""

_SETTINGS = frozenset(item.name for item in fields(Room)) - INTERNAL


def role_for(settings: Iterable[str]) -> Role:
    """The least role that may change these settings; what is no setting is for others to refuse."""
    return Role.ADMIN if _SETTINGS.intersection(settings) - OPERATOR_SETTINGS else Role.OPERATOR


@dataclass(frozen=True, slots=True)
class Token:
    """Somebody who may come in; of the token itself only the digest is kept."""

    name: str
    role: Role
    digest: bytes = field(repr=False)


def digest(secret: str) -> bytes:
    """SHA-256 of a token; nothing slower is needed for 256 random bits."""
    return sha256(secret.encode(errors="surrogateescape")).digest()


def token_line(name: str, role: Role, secret: str) -> str:
    """The line of the tokens file for a token.

    Raises:
        ConfigError: the name cannot stand in the file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("--name", "cannot be used.", _naming())
    return f"{name} {role} sha256:{digest(secret).hex()}"


def parse_tokens(text: str, file: str, plain: str | None = None) -> tuple[Token, ...]:
    """The tokens of a file, after the one of `[admin] token`, if there is any.

    Errors repeat nothing that stands in the file: it may be a token that got there by mistake.

    Raises:
        ConfigError: naming file, line and remedy.
    """
    found: list[Token] = []
    places: dict[str | bytes, str] = {}
    if plain is not None:
        if len(plain) < SHORTEST_TOKEN:
            remedy = "Make one with 'waitingroom key new', or delete admin.token to have it made anew."
            raise ConfigError("[admin] token", f"has fewer than {SHORTEST_TOKEN} characters.", remedy)
        found.append(Token("admin", Role.ADMIN, digest(plain)))
        places = {"admin": "[admin] token", found[0].digest: "[admin] token"}
    number = 0
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        words = line.partition("#")[0].split()
        if words:
            where = f"{file} line {number}"
            token = _token(words, where)
            for what, value in (("name", token.name), ("token", token.digest)):
                if value in places:
                    raise ConfigError(where, f"repeats the {what} of {places[value]}.", "Leave one of them.")
                places[value] = f"line {number}"
            found.append(token)
    if not found:
        raise ConfigError(f"{file} line {number}", "is the last, and there is no token.", _MAKE)
    return tuple(found)


def _token(words: Sequence[str], where: str) -> Token:
    try:
        name, role, hashed = words
    except ValueError:
        raise ConfigError(where, "is not a name, a role and a digest.", _MAKE) from None
    if not _NAME.fullmatch(name):
        raise ConfigError(where, "has a name that cannot be used.", _naming())
    if role not in list(Role):
        near = difflib.get_close_matches(role, list(Role), n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"Roles are {', '.join(Role)}."
        raise ConfigError(where, "has a role that there is not.", remedy)
    matched = _DIGEST.fullmatch(hashed)
    if matched is None or bytes.fromhex(matched[1]) == digest(""):
        raise ConfigError(where, "has no digest of a token: sha256: and 64 hexadecimal digits.", _MAKE)
    return Token(name, Role(role), bytes.fromhex(matched[1]))


def _naming() -> str:
    return "A name has at most 64 letters, digits, dots, dashes, underscores and @, no space."


def bearer(lines: Sequence[str]) -> str:
    """The token of the one `Authorization` line that there may be; empty where there is none."""
    if len(lines) != 1:
        return ""
    scheme, _, secret = lines[0].partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True, slots=True)
class Limit:
    """So many a minute, at most `burst` of them at once (a GCRA)."""

    per_minute: int
    burst: int

    def take(self, due: float, now: float) -> tuple[float, float]:
        """One more at `now`, in seconds, from an account that was level at `due`.

        Returns:
            When the account is level, and how many seconds to wait: none if this one was granted.
        """
        interval = 60 / self.per_minute
        level = max(due, now)
        wait = level - now - (self.burst - 1) * interval
        return (due, wait) if wait > 0 else (level + interval, 0.0)


FAILURES = Limit(per_minute=10, burst=10)
"""Attempts without a token that counts, from one address."""

CHANGES = Limit(per_minute=60, burst=60)
"""Changes with one token."""


class Meter:
    """Accounts of one limit, in bounded memory."""

    def __init__(self, limit: Limit, most: int = MOST_ACCOUNTS) -> None:
        self._limit = limit
        self._most = most
        self._due: dict[str, float] = {}
        self._swept = float("-inf")

    def __len__(self) -> int:
        return len(self._due)

    def take(self, key: str, now: float) -> float:
        """Seconds to wait, none if this one is granted; `now` is monotonic."""
        if key not in self._due and len(self._due) >= self._most:
            self._sweep(now)
            if len(self._due) >= self._most:
                key = STRANGERS
        self._due[key], wait = self._limit.take(self._due.get(key, now), now)
        return wait

    def _sweep(self, now: float) -> None:
        """Forget accounts that are level, at most once a second: it looks at all of them."""
        if now >= self._swept + 1:
            self._swept = now
            self._due = {key: due for key, due in self._due.items() if due > now}


class Access:
    """Who may come in to one private listener.

    Args:
        tokens: see below.
        open_console: whether console and metrics may be read without a token.
        hosts: names under which they may be, besides `localhost`.

    Attributes:
        tokens: those that count; may be replaced at any time.
    """

    def __init__(self, tokens: Sequence[Token], *, open_console: bool, hosts: Iterable[str] = ()) -> None:
        self.tokens = tokens
        self.open_console = open_console
        self._hosts = _named(hosts)
        self._failures = Meter(FAILURES)
        self._changes = Meter(CHANGES)

    @classmethod
    def of(cls, settings: Settings, tokens: Sequence[Token]) -> "Access":
        """As the settings say: on loopback the console needs no token."""
        access = cls(tokens, open_console=False)
        access.adapt(settings, tokens)
        return access

    def adapt(self, settings: Settings, tokens: Sequence[Token]) -> None:
        """Let in whom other settings say, from now on; what was tried and changed so far still counts."""
        listen = settings.server.private_listen
        self.tokens = tokens
        self.open_console = is_loopback(listen) or settings.admin.open_console
        self._hosts = _named([*settings.admin.hosts, _host(listen)])

    def holder(self, secret: str) -> Token | None:
        """Whose token this is. Every digest is compared, so that the time tells nothing."""
        given, found = digest(secret), None
        for token in self.tokens:
            if hmac.compare_digest(given, token.digest):
                found = token
        return found if secret else None

    def is_named(self, lines: Sequence[str]) -> bool:
        """Whether a `Host` header is one that no stranger's DNS can point here: an address, or a known name.

        A page elsewhere whose own name is made to resolve to this machine could read what needs no token.
        """
        if len(lines) != 1:
            return False
        host = _host(lines[0] if re.search(r":\d*$", lines[0]) else f"{lines[0]}:").lower().rstrip(".")
        return host in self._hosts or _address(host) is not None

    def failed(self, peer: str, now: float) -> float:
        """Note a failed attempt; seconds that its address has to wait, none if it is within the limit."""
        return self._failures.take(_origin(peer), now)

    def change(self, token: Token, now: float) -> float:
        """Note a change; seconds that its token has to wait, none if it is granted."""
        return self._changes.take(token.name, now)


def check_exposure(settings: Settings) -> None:
    """See that tokens do not travel in clear text, unless somebody has said that they may.

    Raises:
        ConfigError: the private listener can be reached from elsewhere, and has neither.
    """
    server = settings.server
    safe = is_loopback(server.private_listen) or server.private_tls_certificate
    if not safe and not settings.admin.allow_plaintext:
        what = f"{server.private_listen} can be reached from other machines, and has no TLS."
        remedy = (
            "Listen on 127.0.0.1, give private_tls_certificate and private_tls_key, or, where something else "
            "encrypts, say allow_plaintext = true in [admin]."
        )
        raise ConfigError("[server] private_listen", what, remedy)


def is_loopback(listen: str) -> bool:
    """Whether a listener at "127.0.0.1:9090" is reached from its own machine only."""
    host = _host(listen)
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _named(hosts: Iterable[str]) -> frozenset[str]:
    return frozenset(host.lower() for host in hosts) | {"localhost"}


def _host(listen: str) -> str:
    return listen.rpartition(":")[0].strip("[]")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _origin(peer: str) -> str:
    """What failures are counted by: of IPv6 the first half, because the second is anybody's to choose."""
    address = _address(peer)
    if isinstance(address, IPv6Address) and not address.ipv4_mapped:
        return f"{int(address) >> 64:x}::/64"
    return peer
