"""The only place that builds objects and owns their lifetimes: one gateway, from settings to shutdown."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import structlog

from waitingroom.access import Access, Token, check_exposure, parse_tokens
from waitingroom.admin import application
from waitingroom.answers import Answers, Visit
from waitingroom.config import ConfigError, Settings, differences
from waitingroom.credentials import Credentials
from waitingroom.desk import Desk
from waitingroom.embedded import EmbeddedValkey
from waitingroom.gateway import Gateway
from waitingroom.http1 import Limits, Listener
from waitingroom.pages import Pages
from waitingroom.private import open_private
from waitingroom.proxy import OriginLimits, Upstream
from waitingroom.requestlog import RequestLog
from waitingroom.room import Room
from waitingroom.store import Store, StoreUnavailableError
from waitingroom.telemetry import LoopLag, Telemetry
from waitingroom.ticker import Ticker
from waitingroom.tickets import Keyring, KeyTooShortError
from waitingroom.visit import STRIPPED

DRAIN = 10.0
"""Seconds that requests under way are given when the gateway stops."""

_ELSEWHERE = "End what uses the address, or choose another one of this machine."

Address = tuple[str, int]

_log = structlog.get_logger()


class Server:
    """One gateway.

    Args:
        settings: everything that can be set.
        log: where requests are written; none: they are only counted.
        clock: see `Store`.

    Attributes:
        public_address, private_address: where the two listeners are, once started.
        store_url: where the queue is kept.
        access: who may do what on the private listener, once started.
    """

    def __init__(
        self, settings: Settings, log: RequestLog | None = None, *, clock: str | None = None
    ) -> None:
        self.settings = settings
        self.public_address: Address = ("", 0)
        self.private_address: Address = ("", 0)
        self.store_url = settings.store.url
        self.access: Access
        self._log = log
        self._clock = clock
        self._data = Path(settings.store.data)
        self._upstreams: dict[str, Upstream[Visit]] = {}
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Bring everything up, in order; what had come up is taken down again if something fails.

        Raises:
            ConfigError: a key, a certificate, a logo or an address cannot be used.
            EmbeddedError: the embedded store does not start.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """Stop accepting, finish what is under way, hand in what is known, and go."""
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        check_exposure(settings)
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(
                "[store] data", str(self._data), error, "Name a folder that can be made."
            ) from None
        keyring = _keyring(settings, self._data)
        self.access = Access.of(settings, admin_tokens(settings, self._data))
        self._telemetry = Telemetry([room.name for room in settings.rooms], self._log)
        self._store = await self._open_store()
        self._pages = Pages(())
        for room in settings.rooms:
            try:
                self._pages.update(room)
            except ValueError as error:
                remedy = "Change the setting, or leave it out."
                raise ConfigError(f"room {room.name}", f"{error}.", remedy) from None
        self._desks = {room.name: Desk(await self._seeded(room)) for room in settings.rooms}
        self._gateway = Gateway(
            self._desks,
            self._store,
            Answers(self._pages, self._telemetry, time.time),
            Credentials(keyring, self._telemetry, time.time),
            self._telemetry,
            upstream=self._upstream,
            wall=time.time,
            jitter=random.random,
        )
        for desk in self._desks.values():
            self._changed(desk.room)
        await self._start_ticking()
        await self._listen()
        await self._listen_privately()
        lag = LoopLag(asyncio.get_running_loop(), self._telemetry.loop_lag)
        self._stack.callback(lag.stop)
        _log.info("gateway_started", public=_shown(self.public_address), private=_shown(self.private_address))

    def _changed(self, room: Room) -> None:
        """Route to a changed room and show it, but for what only other machines have, such as a logo."""
        try:
            self._pages.update(room)
        except ValueError as error:
            _log.error("look_unusable", room=room.name, error=str(error))
            plain = Room()
            self._desks[room.name].room = replace(
                room, shop_logo=plain.shop_logo, accent_color=plain.accent_color
            )
        self._gateway.reroute()

    async def _open_store(self) -> Store:
        settings = self.settings.store
        if settings.url == "embedded":
            embedded = EmbeddedValkey(self._data)
            self.store_url = await embedded.start()
            self._stack.push_async_callback(embedded.stop)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        store = Store(
            self.store_url,
            name,
            tick=settings.tick,
            timeout=settings.timeout,
            clock=self._clock,
            observer=self._telemetry.store_call,
        )
        self._stack.push_async_callback(store.close)
        return store

    async def _seeded(self, room: Room) -> Room:
        """The room as the store has it; as the file has it where the store does not answer yet."""
        try:
            stored = await self._store.seed(room)
        except StoreUnavailableError as error:
            _log.warning("store_unavailable", room=room.name, error=str(error))
            return room
        apart = differences(room, stored)
        self._telemetry.differences(room.name, len(apart))
        if apart:
            _log.warning("room_differs_from_file", room=room.name, settings=sorted(apart), used="the store's")
        return stored

    async def _start_ticking(self) -> None:
        self._ticker = Ticker(
            self._desks, self._store, self._telemetry, self._changed, self.settings.store.tick
        )
        for desk in self._desks.values():
            await self._ticker.attempt(desk)
        self._ticking = asyncio.create_task(self._ticker.run())

        async def end() -> None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
            for desk in self._desks.values():
                await self._ticker.attempt(desk, goodbye=True)

        self._stack.push_async_callback(end)

    async def _listen(self) -> None:
        settings = self.settings.server
        self._stack.push_async_callback(self._close_upstreams)
        limits = Limits(
            head_bytes=settings.max_head_bytes,
            head_fields=settings.max_headers,
            head_timeout=settings.head_timeout,
            keepalive_timeout=settings.keepalive_timeout,
            body_idle_timeout=settings.body_timeout,
            body_rate=settings.min_body_rate,
            connections=settings.max_connections,
        )
        listener = self._listener = Listener(self._gateway, limits, self.settings.trusted)
        self._telemetry.refusals(listener.refusals)
        self._telemetry.connections("shopper", lambda: listener.connections)
        self._telemetry.connections("origin", lambda: sum(up.pool.size for up in self._upstreams.values()))
        host, port = parse_address(settings.listen)
        loop = asyncio.get_running_loop()
        try:
            tls = _tls(settings.tls_certificate, settings.tls_key, "[server] tls_certificate")
            patience = settings.head_timeout if tls else None
            server = await loop.create_server(
                listener, host, port, ssl=tls, ssl_handshake_timeout=patience, backlog=4096
            )
        except OSError as error:
            raise _unusable("[server] listen", settings.listen, error, _ELSEWHERE) from None
        self.public_address = server.sockets[0].getsockname()[:2]

        async def drain() -> None:
            server.close()
            await listener.drain(DRAIN)

        self._stack.push_async_callback(drain)

    def _upstream(self, url: str) -> Upstream[Visit]:
        upstream = self._upstreams.get(url)
        if upstream is None:
            settings = self.settings.server
            limits = OriginLimits(
                connections=settings.upstream_connections,
                connect_timeout=settings.connect_timeout,
                first_byte_timeout=settings.first_byte_timeout,
                idle_timeout=settings.body_timeout,
            )
            upstream = self._upstreams[url] = Upstream(
                url, self._gateway, limits=limits, strip_cookies=STRIPPED
            )
        return upstream

    async def _close_upstreams(self) -> None:
        for upstream in self._upstreams.values():
            await upstream.close()

    async def _listen_privately(self) -> None:
        settings = self.settings.server
        host, port = parse_address(settings.private_listen)
        where = "[server] private_tls_certificate"
        context = _tls(settings.private_tls_certificate, settings.private_tls_key, where)
        app = application(self._desks, self._store, self._telemetry, self.access)
        try:
            self.private_address = await self._stack.enter_async_context(
                open_private(app, host, port, context, self._telemetry)
            )
        except OSError as error:
            where = "[server] private_listen"
            raise _unusable(where, settings.private_listen, error, _ELSEWHERE) from None


def parse_address(text: str) -> Address:
    """Host and port of "127.0.0.1:8080" or "[::1]:8080"."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _unusable(where: str, what: str, error: OSError, remedy: str) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(where, f"{what} cannot be used: {reason}.", remedy)


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(certificate: str, key: str, where: str) -> ssl.SSLContext | None:
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        remedy = "Both must be readable PEM files, and belong together."
        raise _unusable(where, f"{certificate} with {key}", error, remedy) from None
    return context


def _keyring(settings: Settings, data: Path) -> Keyring:
    """The signing keys; only beside the embedded store is one made where none is given."""
    keys = [key.encode() for key in settings.tokens.keys]
    if settings.tokens.keys_file:
        lines = _secret(settings.tokens.keys_file, "[tokens] keys_file").splitlines()
        keys += [line.strip().encode() for line in lines]
    if not keys and settings.store.url == "embedded":
        keys = [_made(data / "signing.key").encode()]
    try:
        return Keyring([key for key in keys if key])
    except KeyTooShortError as error:
        remedy = "Make one with: openssl rand -base64 32"
        raise ConfigError("[tokens] keys", f"{error}.", remedy) from None


def admin_tokens(settings: Settings, data: Path) -> tuple[Token, ...]:
    """The tokens of the admin API; where none is given, one is made in the data folder.

    Raises:
        ConfigError: naming file, line and remedy.
    """
    admin = settings.admin
    plain, listed = admin.token or None, ""
    if admin.token_file:
        plain = _secret(admin.token_file, "[admin] token_file").strip()
    elif not plain and not admin.tokens_file:
        plain = _made(data / "admin.token")
    if admin.tokens_file:
        listed = _secret(admin.tokens_file, "[admin] tokens_file")
    return parse_tokens(listed, admin.tokens_file, plain)


def _secret(path: str, where: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise _unusable(where, path, error, "Name a file that the gateway may read.") from None
    except UnicodeDecodeError:
        raise ConfigError(where, f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None


def _made(path: Path) -> str:
    """A secret kept in a file that only we may read, made when there is none."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()
