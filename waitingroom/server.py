"""The only place that builds objects and owns their lifetimes: one gateway, from settings to shutdown."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from waitingroom.access import Access
from waitingroom.admin import application
from waitingroom.answers import Answers, Visit
from waitingroom.config import ConfigError, Settings, differences
from waitingroom.config import Server as ServerSettings
from waitingroom.credentials import Credentials
from waitingroom.desk import Desk
from waitingroom.embedded import EmbeddedValkey
from waitingroom.gateway import Gateway
from waitingroom.http1 import Limits, Listener
from waitingroom.keys import Certificate, Keys, reread, unusable
from waitingroom.pages import Pages
from waitingroom.private import open_private, open_unix
from waitingroom.proxy import OriginLimits, Upstream
from waitingroom.requestlog import RequestLog
from waitingroom.room import Room
from waitingroom.sockets import Address, Doors, bind, parse_address, shown
from waitingroom.store import Store, StoreUnavailableError
from waitingroom.telemetry import LoopLag, Telemetry
from waitingroom.ticker import Ticker
from waitingroom.visit import STRIPPED

_ELSEWHERE = "End what uses the address, or choose another one of this machine."

_log = structlog.get_logger()


class Server:
    """One gateway.

    Args:
        settings: everything that can be set.
        log: where requests are written; none: they are only counted.
        clock: see `Store`.
        sockets: bound to the public address by whoever started us; none: the settings say what to bind.
        private: Unix socket on which to serve the private listener, in place of an address.

    Attributes:
        settings: those in force.
        public_address, private_address: where the two listeners are, once started.
        store_url: where the queue is kept.
        access: who may do what on the private listener, once started.
    """

    def __init__(
        self,
        settings: Settings,
        log: RequestLog | None = None,
        *,
        clock: str | None = None,
        sockets: Sequence[socket.socket] = (),
        private: Path | None = None,
    ) -> None:
        self.settings = settings
        self.public_address: Address = ("", 0)
        self.private_address: Address = ("", 0)
        self.store_url = settings.store.url
        self.access: Access
        self._telemetry = Telemetry([room.name for room in settings.rooms], log)
        self._clock = clock
        self._sockets = sockets
        self._private = private
        self._draining = False
        self._alone = True
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

    async def stop(self, *, alone: bool = True) -> None:
        """Stop accepting, finish what is under way, hand in what is known, and go.

        Args:
            alone: nobody else has our public sockets: whoever waits there is served here, too, and nobody is
                kept waiting for. Else somebody takes over, and connections have time to move.
        """
        self._draining, self._alone = True, alone
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        # What is pushed first is undone last: probes and metrics answer until the end.
        self._answering = await self._stack.enter_async_context(contextlib.AsyncExitStack())
        keys = Keys.read(settings)
        self._tls, self._private_tls = Certificate(keys.tls), Certificate(keys.private_tls)
        self.access = Access.of(settings, keys.tokens)
        self._store = await self._open_store()
        self._pages = Pages(())
        self._show(settings.rooms)
        self._desks = {room.name: Desk(await self._seeded(room)) for room in settings.rooms}
        self._gateway = Gateway(
            self._desks,
            self._store,
            Answers(self._pages, self._telemetry, time.time),
            Credentials(keys.keyring, self._telemetry, time.time),
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
        if self._private is None:
            public, private = shown(self.public_address), shown(self.private_address)
            _log.info("gateway_started", public=public, private=private)

    def _show(self, rooms: Iterable[Room]) -> None:
        """Take over the looks of rooms from the file; ConfigError if one cannot be shown."""
        for room in rooms:
            try:
                self._pages.update(room)
            except ValueError as error:
                remedy = "Change the setting, or leave it out."
                raise ConfigError(f"room {room.name}", f"{error}.", remedy) from None

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
            embedded = EmbeddedValkey(Path(settings.data))
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
        listener = self._listener = Listener(self._gateway, _limits(settings), self.settings.trusted)
        self._telemetry.refusals(listener.refusals)
        self._telemetry.connections("shopper", lambda: listener.connections)
        self._telemetry.connections("origin", lambda: sum(up.pool.size for up in self._upstreams.values()))
        try:
            sockets = self._sockets or bind(settings.listen)
            self._doors = Doors(sockets, listener, self._tls.context, settings.head_timeout)
            self._stack.push_async_callback(self._drain)
            await self._doors.open()
        except OSError as error:
            raise unusable("[server] listen", settings.listen, error, _ELSEWHERE) from None
        self.public_address = self._doors.address

    async def _drain(self) -> None:
        _log.info("draining", connections=self._listener.connections)
        premises = self._listener.premises
        premises.draining = True
        await self._doors.close(alone=self._alone)
        try:
            await premises.drain(self.settings.server.drain_timeout, gently=not self._alone)
        finally:
            await self._doors.abandon()

    def _upstream(self, url: str) -> Upstream[Visit]:
        upstream = self._upstreams.get(url)
        if upstream is None:
            limits = _origin_limits(self.settings.server)
            upstream = Upstream(url, self._gateway, limits=limits, strip_cookies=STRIPPED)
            self._upstreams[url] = upstream
        return upstream

    async def _close_upstreams(self) -> None:
        for upstream in self._upstreams.values():
            await upstream.close()

    async def _listen_privately(self) -> None:
        app = application(
            self._desks, self._store, self._telemetry, self.access, draining=lambda: self._draining
        )
        if self._private is not None:
            await self._answering.enter_async_context(open_unix(app, self._private, self._telemetry))
            return
        listen = self.settings.server.private_listen
        host, port = parse_address(listen)
        context = self._private_tls.context
        try:
            self.private_address = await self._answering.enter_async_context(
                open_private(app, host, port, context, self._telemetry)
            )
        except OSError as error:
            raise unusable("[server] private_listen", listen, error, _ELSEWHERE) from None

    def figures(self) -> dict[str, Any]:
        """What has been counted, as plain values, for whoever adds it to what others have."""
        return self._telemetry.export()

    async def reload(self, settings: Settings) -> None:
        """Take over all that a running gateway can.

        Raises:
            ConfigError: something that the settings name cannot be used; nothing has changed then.
        """
        settings, keys = reread(self.settings, settings)
        self._show(room for room in settings.rooms if room.name not in self._desks)
        self.settings = settings
        self.access.adapt(settings, keys.tokens)
        self._tls.replace(keys.tls)
        self._private_tls.replace(keys.private_tls)
        self._gateway.rekey(keys.keyring)
        self._listener.premises.adapt(_limits(settings.server), settings.trusted)
        for upstream in self._upstreams.values():
            upstream.adapt(_origin_limits(settings.server))
        for room in settings.rooms:
            await self._welcome(room)
        for name in self._desks.keys() - {room.name for room in settings.rooms}:
            await self._dismiss(name)
        self._telemetry.reloaded("done")
        _log.info("config_reloaded", rooms=list(self._desks))

    def refuse(self, error: ConfigError) -> None:
        """Say that the configuration was read anew, and that the one before stays in force."""
        self._telemetry.reloaded("refused")
        _log.error("config_refused", where=error.where, what=error.what, remedy=error.remedy)

    async def _welcome(self, room: Room) -> None:
        """Serve a room of the file: begin with one that is new, compare one that is not with the store's."""
        desk = self._desks.get(room.name)
        if desk is not None:
            await self._seeded(room)
            self._changed(desk.room)
            return
        self._telemetry.add(room.name)
        desk = Desk(await self._seeded(room))
        await self._ticker.attempt(desk)
        self._desks[room.name] = desk
        self._changed(desk.room)
        self._ticker.begin(desk)

    async def _dismiss(self, name: str) -> None:
        """Serve a room no more that is not in the file any more."""
        desk = self._desks.pop(name)
        self._gateway.reroute()
        await self._ticker.end(desk)
        self._telemetry.forget(name)


def _limits(settings: ServerSettings) -> Limits:
    return Limits(
        head_bytes=settings.max_head_bytes,
        head_fields=settings.max_headers,
        head_timeout=settings.head_timeout,
        keepalive_timeout=settings.keepalive_timeout,
        body_idle_timeout=settings.body_timeout,
        body_rate=settings.min_body_rate,
        connections=settings.max_connections,
    )


def _origin_limits(settings: ServerSettings) -> OriginLimits:
    return OriginLimits(
        connections=settings.upstream_connections,
        connect_timeout=settings.connect_timeout,
        first_byte_timeout=settings.first_byte_timeout,
        idle_timeout=settings.body_timeout,
    )
