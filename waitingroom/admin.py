"""The private listener: metrics, health, and the admin API."""

from collections.abc import Mapping

from aiohttp import web

from waitingroom.desk import Desk
from waitingroom.store import Store
from waitingroom.telemetry import Telemetry


def application(desks: Mapping[str, Desk], store: Store, telemetry: Telemetry, token: str) -> web.Application:
    """The application of the private listener."""
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        body, kind = telemetry.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    app.router.add_get("/metrics", metrics)
    return app
