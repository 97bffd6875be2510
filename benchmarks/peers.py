"""What most people would write: a proxy, a poll and a decision with aiohttp, one process each.

    python -m benchmarks.peers proxy|poll|decision PORT [ORIGIN]

Poll and decision verify the token, as ours do, but remember nothing, count nobody and write no log.
"""

import sys
import time

import uvloop
from aiohttp import ClientSession, TCPConnector, web

from benchmarks.stands import KEY
from waitingroom.line import Line
from waitingroom.tickets import InvalidTokenError, Keyring, Use

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}


def _proxy(origin: str) -> web.Application:
    sessions: list[ClientSession] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        headers["X-Forwarded-For"] = request.remote or ""
        target = origin + request.path_qs
        async with sessions[0].request(
            request.method, target, headers=headers, data=request.content, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def start(_app: web.Application) -> None:
        sessions.append(ClientSession(connector=TCPConnector(limit=256), auto_decompress=False))

    async def stop(_app: web.Application) -> None:
        await sessions[0].close()

    app = web.Application()
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


def _poll() -> web.Application:
    ring, line = Keyring([KEY.encode()]), Line(0, [b"\x55" * 4096])

    async def status(request: web.Request) -> web.Response:
        try:
            token = ring.verify(request.cookies.get("wr-full", ""), "full")
        except InvalidTokenError:
            return web.json_response({"state": "ended"})
        ahead = line.ahead(token.number % 32768)
        return web.json_response(
            {"room": "full", "state": "waiting", "position": ahead + 1, "ahead": ahead, "poll_after": 12.4}
        )

    app = web.Application()
    app.router.add_get("/.waitingroom/status", status)
    return app


def _decision() -> web.Application:
    ring = Keyring([KEY.encode()])

    async def decide(request: web.Request) -> web.Response:
        try:
            token = ring.verify(request.cookies.get("wr-open", ""), "open")
        except InvalidTokenError:
            return web.Response(status=401)
        return web.Response(status=204 if token.use is Use.PASS and token.expires > time.time() else 401)

    app = web.Application()
    app.router.add_get("/.waitingroom/decision", decide)
    return app


def main() -> None:
    """Serve until ended."""
    kind, port = sys.argv[1], int(sys.argv[2])
    app = _proxy(sys.argv[3]) if kind == "proxy" else _poll() if kind == "poll" else _decision()
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
