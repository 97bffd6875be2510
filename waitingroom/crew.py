"""The workers of a gateway as one: what they have counted together, and the private listener before them."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from waitingroom.access import Access
from waitingroom.admin import LARGEST_BODY
from waitingroom.child import Child
from waitingroom.figures import Export, Figures, Told, Total
from waitingroom.guard import counted, guard
from waitingroom.problems import ProblemError, body_of, leaving, problems, seal
from waitingroom.telemetry import Telemetry

PATIENCE = aiohttp.ClientTimeout(total=30.0)

WORKER = "http://localhost"
"""How a worker is addressed on its own socket: by a name that it takes for its own."""

_OF_ONE_HOP = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_REPEATABLE = frozenset({"GET", "HEAD"})


class Crew:
    """The workers that live, and what those had counted that do not.

    Args:
        size: how many there are to be.
        telemetry: of the supervisor.
        looping: says whose workers die again and again, by index.

    Attributes:
        draining: the gateway is about to stop.
    """

    def __init__(self, size: int, telemetry: Telemetry, looping: Callable[[], list[int]]) -> None:
        self.telemetry = telemetry
        self._looping = looping
        self.draining = False
        self._size = size
        self._living: list[Child] = []
        self._total = Total()

    def join(self, child: Child) -> None:
        """Count one more among the living."""
        self._living.append(child)

    def part(self, child: Child) -> None:
        """Count one among the dead."""
        self._living.remove(child)
        if figures := child.figures:
            self._total.bury(figures)

    def keep_rooms(self, rooms: Iterable[str]) -> None:
        """Tell nothing more of any other room."""
        self._total.forget(rooms)

    @property
    def living(self) -> list[Child]:
        """All of them, oldest first."""
        return list(self._living)

    @property
    def ready(self) -> list[Child]:
        """Those that serve and are to go on, oldest first: their console remembers most."""
        return [child for child in self._living if child.ready and not child.leaving]

    async def figures(self) -> Figures:
        """What all have counted, asked for anew; who does not answer is taken by their last word."""
        await asyncio.gather(*(child.ask() for child in self._living if child.ready))
        self.telemetry.workers(len(self.ready), looping=bool(self._looping()))
        now = time.monotonic()
        told = [Told(last, now - child.heard_at) for child in self._living if (last := child.figures)]
        return self._total.combine(Figures.parse(self.telemetry.export()), told, now)

    def tell(self) -> dict[str, Any]:
        """How many there are, and how they are."""
        return {"of": self._size, "ready": len(self.ready), "crash_looping": self._looping()}


def application(crew: Crew, access: Access) -> web.Application:
    """The application of the private listener of a gateway with workers.

    Who comes in is decided here, where addresses are known and attempts are counted; a worker asks for the
    token once more, because its role and its name matter there.
    """
    middlewares = [counted(crew.telemetry), problems, guard(access)]
    app = web.Application(client_max_size=LARGEST_BODY, middlewares=middlewares)

    async def metrics(request: web.Request) -> web.Response:
        body, kind = Export(await crew.figures()).render(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "workers": crew.tell()})

    async def ready(_: web.Request) -> web.Response:
        return await _readiness(crew)

    async def hand_on(request: web.Request) -> web.Response:
        return await _handed_on(crew, request)

    app.on_response_prepare.append(seal)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/", hand_on)
    app.router.add_get("/v1/console.json", hand_on)
    app.router.add_route("*", "/v1/{rest:.*}", hand_on)
    return app


async def _readiness(crew: Crew) -> web.Response:
    """Ready is a gateway that has one ready worker."""
    if crew.draining:
        raise leaving()
    answers = await asyncio.gather(*(_probe(child) for child in crew.ready))
    good = [document for status, document in answers if status == web.HTTPOk.status_code]
    if good:
        workers = crew.tell() | {"ready": len(good)}
        return web.json_response(good[0] | {"workers": workers})
    if answers:
        document = answers[0][1] | {"workers": crew.tell() | {"ready": 0}}
        return web.json_response(document, status=503, content_type="application/problem+json")
    raise _nobody()


async def _probe(child: Child) -> tuple[int, dict[str, Any]]:
    try:
        async with child.session.get(f"{WORKER}/readyz", timeout=aiohttp.ClientTimeout(total=1.0)) as answer:
            return answer.status, await answer.json(content_type=None)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RuntimeError):
        return 503, {"status": 503, "title": "Not ready", "detail": "The worker does not answer."}


async def _handed_on(crew: Crew, request: web.Request) -> web.Response:
    """The answer of a worker, of the first that can be reached."""
    body = await body_of(request)
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OF_ONE_HOP]
    target = URL(f"{WORKER}{request.raw_path}", encoded=True)
    for child in crew.ready:
        try:
            async with child.session.request(
                request.method,
                target,
                data=body or None,
                headers=headers,
                skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT),
                allow_redirects=False,
                timeout=PATIENCE,
            ) as answer:
                kept = [
                    (name, value) for name, value in answer.headers.items() if name.lower() not in _OF_ONE_HOP
                ]
                return web.Response(status=answer.status, body=await answer.read(), headers=dict(kept))
        except aiohttp.ClientConnectorError:
            continue
        except (aiohttp.ClientError, OSError, TimeoutError):
            if request.method not in _REPEATABLE:
                raise _lost() from None
    raise _nobody()


def _nobody() -> ProblemError:
    what = "No worker of this gateway serves at the moment."
    remedy = "Ask again in a moment; if it stays, the log of the gateway says why they end."
    return ProblemError(503, "Not ready", what, remedy, {"Retry-After": "1"})


def _lost() -> ProblemError:
    what = "The worker that was asked has gone. Whether anything was changed is not certain."
    return ProblemError(503, "The worker has gone", what, "Read the room again.", {"Retry-After": "1"})
