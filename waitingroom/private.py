"""The sockets of the private listener: few connections, little patience, no error page that tells much."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from waitingroom.problems import EVERY_ANSWER, ProblemError, refusal, unreadable
from waitingroom.telemetry import Telemetry

MOST_CONNECTIONS = 128
"""More would take descriptors from shoppers."""

MOST_FROM_ONE = 64
"""Connections from one address, so that nobody can shut out the others."""

MOST_HEADERS = 64
PATIENCE = 20.0
"""Seconds for a handshake, for a head to arrive, between two requests, and for an answer to be taken."""

_log = structlog.get_logger()


@asynccontextmanager
async def open_private(
    app: web.Application,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    telemetry: Telemetry,
    *,
    patience: float = PATIENCE,
) -> AsyncIterator[tuple[str, int]]:
    """Serve the application, and say at which address.

    Raises:
        OSError: the address cannot be listened on.
    """
    async with _door(app, telemetry, patience) as door:
        handshake = patience if context else None
        server = await asyncio.get_running_loop().create_server(
            door.connection, host, port, ssl=context, ssl_handshake_timeout=handshake
        )
        try:
            yield cast("tuple[str, int]", server.sockets[0].getsockname()[:2])
        finally:
            server.close()


@asynccontextmanager
async def open_unix(app: web.Application, path: Path, telemetry: Telemetry) -> AsyncIterator[None]:
    """Serve the application on a Unix socket, which has to be in a folder that nobody else looks into."""
    async with _door(app, telemetry, PATIENCE) as door:
        server = await asyncio.get_running_loop().create_unix_server(door.connection, str(path))
        try:
            yield
        finally:
            server.close()


@asynccontextmanager
async def _door(app: web.Application, telemetry: Telemetry, patience: float) -> AsyncIterator["_Door"]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        assert runner.server is not None
        yield _Door(runner.server, telemetry, patience)
    finally:
        await runner.cleanup()


class _Door:
    """Counts who is in, and lets nobody more in than there may be."""

    def __init__(self, server: web.Server, telemetry: Telemetry, patience: float) -> None:
        self.telemetry = telemetry
        self.patience = patience
        self._server = server
        self._inside: Counter[str] = Counter()

    def connection(self) -> "_Connection":
        """The protocol of a new connection."""
        return _Connection(self, self._server)

    def enter(self, peer: str) -> bool:
        """Whether one more from this address may come in."""
        if self._inside.total() >= MOST_CONNECTIONS or self._inside[peer] >= MOST_FROM_ONE:
            self.telemetry.admin_request("turned_away")
            return False
        self._inside[peer] += 1
        return True

    def leave(self, peer: str) -> None:
        """Somebody who was let in has gone."""
        self._inside[peer] -= 1
        if not self._inside[peer]:
            del self._inside[peer]


class _Connection(RequestHandler):
    """aiohttp's, with a place at the door, and with problem documents for what never reaches a handler."""

    __slots__ = ("_door", "_peer")

    def __init__(self, door: _Door, server: web.Server) -> None:
        # One timer of aiohttp's bounds both the silence between two requests and the arrival of a head.
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=door.patience,
            lingering_time=1.0,
            max_headers=MOST_HEADERS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type] # None means none, as in AppRunner
        )
        self._door = door
        self._peer: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = str((transport.get_extra_info("peername") or ("",))[0])
        if self._door.enter(peer):
            self._peer = peer
            super().connection_made(transport)
        else:
            self.force_close()
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._peer is not None:
            self._door.leave(self._peer)
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, for as long as its reader takes it."""
        if isinstance(resp, web.HTTPException):
            resp = refusal(resp).response()
        try:
            async with asyncio.timeout(self._door.patience):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            return resp, True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - repeats what was sent, which may be a token
    ) -> web.StreamResponse:
        """What is said of a request that cannot be read, or whose handler has failed."""
        if status < 500:  # noqa: PLR2004 - where the gateway's own failures begin
            self._door.telemetry.admin_request("refused")
            problem = unreadable(status)
        else:
            problem = ProblemError(
                status, "The gateway has failed", "It is not the request's fault.", "The log says more."
            )
            if not isinstance(exc, ConnectionError):
                _log.error("private_listener_failed", exc_info=exc)
        if request.writer.output_size:
            raise ConnectionError("the answer had begun")
        response = problem.response()
        response.headers.update(EVERY_ANSWER)
        response.force_close()
        return response
