"""Judges a configuration and its surroundings before the day: what is, why it matters, how to mend it.

Plain functions of what was found; `inspection` finds it out.
"""

import resource
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from waitingroom.access import check_exposure, is_loopback
from waitingroom.config import ConfigError, Settings
from waitingroom.durations import format_duration
from waitingroom.room import Room
from waitingroom.tickets import SHORTEST_KEY

SPARE_FILES = 256
"""Descriptors for the store, the log, the private listener and the like."""

BACKLOG = 4096
"""Connections that the gateway asks the system to hold until it accepts them."""

OLDEST_STORE = (6, 2)
MOST_COOKIES = 8
EXPIRES_SOON = 30 * 86400.0
LONG_FILLING = 60.0


class Level(StrEnum):
    """How much a finding matters; a warning or an error is a reason not to open."""

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is, why it matters on the day, and how to mend it."""

    level: Level
    subject: str
    what: str
    why: str = ""
    mend: str = ""

    def document(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


Findings = Iterator[Finding]


def judge_rooms(settings: Settings) -> Findings:
    """Whether the rooms make sense, each by itself and all together."""
    if not settings.rooms:
        why = "A gateway without a room has nothing to protect and answers every request with an error."
        yield Finding(
            Level.ERROR, "rooms", "there is no room", why, "Add [[rooms]] with a name and an upstream."
        )
    for room in settings.rooms:
        yield from _judge_limits(room)
        yield from _judge_cookies(room, settings)
    places = Counter((host, room.path) for room in settings.rooms for host in room.hosts or ("every host",))
    for (host, path), count in places.items():
        if count > 1:
            why = "Only one of them is ever chosen; the limits of the others protect nothing."
            mend = "Give each room a host or a path of its own."
            yield Finding(Level.ERROR, "rooms", f"{count} rooms protect {path} on {host}", why, mend)
    for host, count in Counter(host for host, _ in places).items():
        if count > MOST_COOKIES:
            why = "Each room has a cookie, and storefronts refuse requests whose headers grow too long."
            what = f"{count} rooms on {host} are more than {MOST_COOKIES}"
            yield Finding(Level.WARNING, "rooms", what, why, "Let related paths share a room.")


def _judge_limits(room: Room) -> Findings:
    """Little's law: people inside are people entering in a minute times minutes that each stays."""
    subject, stay = f"room {room.name}", room.session_duration / 60
    sustained = room.total_active_users / stay
    filling = room.total_active_users / room.new_users_per_minute
    why = "The people inside are the people entering in a minute times the minutes that they stay."
    if sustained < room.new_users_per_minute:
        what = (
            f"{room.total_active_users} seats, each kept {format_duration(room.session_duration)} after the "
            f"last request, let about {sustained:.0f} people a minute in, not {room.new_users_per_minute}"
        )
        mend = "Raise total_active_users, shorten session_duration, or promise people the longer wait."
        yield Finding(Level.NOTICE, subject, what, why, mend)
    elif filling > LONG_FILLING:
        what = f"filling {room.total_active_users} seats takes {filling:.0f} minutes"
        mend = "Raise new_users_per_minute, or expect the shop to be busy only later."
        yield Finding(Level.NOTICE, subject, what, why, mend)
    else:
        yield Finding(
            Level.OK, subject, f"its limits fit: up to {sustained:.0f} people a minute can be sustained"
        )


def _judge_cookies(room: Room, settings: Settings) -> Findings:
    subject = f"room {room.name}"
    if room.cookie_samesite == "none" and not (settings.server.tls_certificate or settings.trusted):
        why = "Browsers drop a SameSite=None cookie without TLS, and with it everybody's place."
        mend = "Serve TLS here, or name the proxy that does in [server] trusted_proxies."
        yield Finding(Level.ERROR, subject, "cookie_samesite is none without TLS", why, mend)
    domain = room.cookie_domain.lstrip(".")
    outside = [host for host in room.hosts if domain and host != domain and not host.endswith(f".{domain}")]
    if outside:
        why = "Browsers refuse the cookie there: visitors would join anew with every page."
        what = f"cookie_domain {domain} does not cover {', '.join(outside)}"
        yield Finding(
            Level.ERROR, subject, what, why, "Choose a domain that all hosts of the room are under."
        )


def judge_listeners(settings: Settings) -> Findings:
    """Who can reach what."""
    yield _judge_private(settings)
    server = settings.server
    if is_loopback(server.listen):
        what = f"{server.listen} is reached from this machine only"
        why, mend = (
            "Shoppers need a proxy on this machine to come in.",
            "Otherwise listen on 0.0.0.0 or [::].",
        )
        yield Finding(Level.NOTICE, "listener", what, why, mend)
    elif not server.trusted_proxies:
        why = "Behind a load balancer every visitor would carry its address, and TLS would not be recognised."
        mend = "Name its networks in [server] trusted_proxies; leave it empty if shoppers connect directly."
        yield Finding(Level.NOTICE, "listener", "no proxy is trusted for forwarded headers", why, mend)
    if any(network.prefixlen == 0 for network in settings.trusted):
        why = "Anybody could write any address into the headers, and be somebody else in the log."
        mend = "Name only the networks of your own proxies."
        yield Finding(Level.WARNING, "listener", "trusted_proxies trusts the whole world", why, mend)


def _judge_private(settings: Settings) -> Finding:
    subject, listen = "private listener", settings.server.private_listen
    try:
        check_exposure(settings)
    except ConfigError as error:
        why = "Tokens would travel in clear text, and whoever has one can stop the sale: it refuses to start."
        return Finding(Level.ERROR, subject, error.what.rstrip("."), why, error.remedy)
    if is_loopback(listen):
        return Finding(Level.OK, subject, f"{listen} is reached from this machine only")
    if not settings.server.private_tls_certificate:
        why = "Whoever can listen in on the way has the tokens, and can stop the sale."
        mend = "See that something else encrypts, or give private_tls_certificate and private_tls_key."
        return Finding(
            Level.NOTICE, subject, f"{listen} is reached from other machines without TLS", why, mend
        )
    if settings.admin.open_console:
        why = "Whoever reaches it can watch the sale; changing anything still needs a token."
        mend = (
            "Leave [admin] open_console out, or let a firewall admit Prometheus and the people on call only."
        )
        return Finding(Level.NOTICE, subject, f"console and metrics at {listen} need no token", why, mend)
    return Finding(Level.OK, subject, f"{listen} is reached by TLS, and with a token only")


def judge_secrets(settings: Settings) -> Findings:
    """Whether keys and tokens are there, and long enough."""
    tokens, admin = settings.tokens, settings.admin
    given = bool(tokens.keys or tokens.keys_file)
    if not given and settings.store.url != "embedded":
        why = "Gateways that share a store must share the key, or each throws out the visitors of the others."
        mend = "Make one with 'waitingroom key new', and give all of them the file in [tokens] keys_file."
        yield Finding(Level.ERROR, "signing key", "none is given, and the store is shared", why, mend)
    elif any(len(key.encode()) < SHORTEST_KEY for key in tokens.keys):
        why = "A key that can be guessed lets anybody write a pass."
        mend = "Make one with 'waitingroom key new'."
        yield Finding(Level.ERROR, "signing key", f"one has fewer than {SHORTEST_KEY} bytes", why, mend)
    else:
        yield Finding(
            Level.OK, "signing key", "given" if given else "made at the first start, kept in the data folder"
        )
    made = not (admin.token or admin.token_file or admin.tokens_file)
    yield Finding(Level.OK, "admin token", "made at the first start" if made else "given")


def judge_machine(settings: Settings, files: int, somaxconn: int | None) -> Findings:
    """Whether the system lets the gateway have what its limits promise."""
    server = settings.server
    needed = server.max_connections + len(settings.rooms) * server.upstream_connections + SPARE_FILES
    if files in (resource.RLIM_INFINITY, -1) or files >= needed:
        yield Finding(Level.OK, "open files", f"{needed} are needed at most, and allowed")
    else:
        why = "At the peak, new shoppers would find the connection refused."
        mend = (
            f"Set LimitNOFILE={needed} (systemd) or 'ulimit -Hn {needed}', or lower [server] max_connections."
        )
        yield Finding(Level.WARNING, "open files", f"{files} are allowed, {needed} may be needed", why, mend)
    if somaxconn is not None and somaxconn < BACKLOG:
        why = (
            "When the sale opens, connections beyond that are dropped, and browsers try again seconds later."
        )
        mend = f"sysctl -w net.core.somaxconn={BACKLOG}"
        yield Finding(Level.WARNING, "backlog", f"net.core.somaxconn is {somaxconn}", why, mend)
    if find_spec("uvloop") is None:
        why = "Without it a gateway carries less than was measured for it."
        yield Finding(Level.WARNING, "event loop", "uvloop is not installed", why, "pip install uvloop")
    else:
        yield Finding(Level.OK, "event loop", "uvloop is installed")


def judge_store(
    info: dict[str, Any], latency: float, offset: float | None, timeout: float, *, shared: bool
) -> Findings:
    """What a store tells of itself; `latency`, `offset` and `timeout` are seconds."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info.get("redis_version", "0")))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_STORE:
        why, mend = "Its scripts lack commands that the queue needs.", "Use Valkey, or Redis 6.2 or newer."
        yield Finding(Level.ERROR, "store", f"{name} {version} is too old", why, mend)
    else:
        yield Finding(Level.OK, "store", f"{name} {version} answers in {latency * 1000:.1f} ms")
    if latency > timeout / 3:
        why = "A tick makes a few round trips; under load it would run into the time-out."
        mend = "Put the store into the same data centre, or raise [store] timeout."
        what = f"a round trip takes {latency * 1000:.0f} ms of the {timeout * 1000:.0f} ms allowed"
        yield Finding(Level.WARNING, "store latency", what, why, mend)
    if info.get("role", "master") != "master":
        yield Finding(
            Level.ERROR, "store role", "it is a replica", "It takes no writes.", "Give the primary's URL."
        )
    yield from judge_keeping(info, "store")
    if shared and not info.get("connected_slaves", 0):
        why = "While the only server is away, nobody new is let in."
        mend = "Add a replica and a fail-over if the sale must not wait for a restart."
        yield Finding(Level.NOTICE, "store availability", "it has no replica", why, mend)
    if offset is not None and abs(offset) > 1:
        why = "Times in logs and audit would not fit together; passes may seem to end early."
        mend = "Let both machines keep time with NTP."
        yield Finding(Level.WARNING, "clock", f"the store's is {offset:+.1f} s from ours", why, mend)


def judge_keeping(info: Mapping[str, Any], subject: str) -> Findings:
    """Whether a server keeps what it was told, when memory is short and after a crash."""
    if info.get("maxmemory", 0) and info.get("maxmemory_policy", "noeviction") != "noeviction":
        why = "When memory is short it would drop keys: places in the queue, or the count of those inside."
        mend = "CONFIG SET maxmemory-policy noeviction"
        what = f"maxmemory-policy is {info['maxmemory_policy']}"
        yield Finding(Level.ERROR, f"{subject} memory", what, why, mend)
    if not info.get("aof_enabled"):
        why = "After a crash the queue is rebuilt from the tickets; meanwhile nobody is called."
        yield Finding(Level.WARNING, f"{subject} durability", "AOF is off", why, "CONFIG SET appendonly yes")


def judge_certificate(expires: float, now: float, subject: str = "certificate") -> Finding:
    """Whether a certificate lasts; Unix times."""
    day = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d")
    why, mend = "Clients then refuse to connect at all.", "Renew it, then send the gateways SIGHUP."
    if expires <= now:
        return Finding(Level.ERROR, subject, f"it ended on {day}", why, mend)
    if expires - now < EXPIRES_SOON:
        return Finding(Level.WARNING, subject, f"it ends on {day}", why, mend)
    return Finding(Level.OK, subject, f"valid until {day}")


def certificate_end(pem: str) -> float:
    """Unix time at which the first certificate of a chain ends.

    Walks the DER of RFC 5280 §4.1 to `validity`: the standard library decodes only peers that it has
    verified.

    Raises:
        ValueError: it is no certificate.
    """
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") : pem.index("-----END CERT") + 25])

    def element(at: int) -> tuple[int, int, int]:
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start])
        return der[at], start, start + length

    try:
        at = element(element(0)[1])[1]
        at = element(at)[2] if der[at] == 0xA0 else at  # noqa: PLR2004 - the tag of an explicit version
        for _ in ("serial", "signature", "issuer"):
            at = element(at)[2]
        tag, start, end = element(element(element(at)[1])[2])
    except IndexError:
        raise ValueError("it is cut short") from None
    century = "" if tag == 0x18 else "20"  # noqa: PLR2004 - the tag of a time with four digits of year
    return datetime.strptime(f"{century}{der[start:end].decode()}+0000", "%Y%m%d%H%M%SZ%z").timestamp()
