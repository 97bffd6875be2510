"""A small shop to stand behind the gateway: pretty, complete, and with a limit beyond which it fails.

It knows only its own session cookie and nothing of any waiting room, except that its thank-you page gives
the seat back; that makes its log a judge of what a waiting room in front of it promises.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
from aiohttp import BodyPartReader, web

from waitingroom.ledger import Ledger, Visit

SESSION_COOKIE = "shop_session"
GIVE_BACK_SEAT = {"Waiting-Room-Command": "revoke"}

_TEMPLATES = Path(__file__).parent / "templates" / "shop"
_STATIC = frozenset({"shop.css", "shop.js", "icon.svg"})
_FREE = (
    "/static/",
    "/live/",
    "/orders",
    "/_shop/",
)  # costs the shop next to nothing, so capacity is not asked
_SESSION = re.compile(r"[0-9a-f]{32}")
_SECONDS_BETWEEN_NEWS = 1.0
_VISITOR = web.RequestKey("visitor", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Product:
    """A lamp. `price` is in cents, `hue` the colour of its picture in degrees, `shade` its form."""

    id: str
    name: str
    price: int
    shade: str
    hue: int
    blurb: str


CATALOGUE = (
    Product(
        "vesper", "Vesper", 18900, "globe", 262, "A full moon on a brass stem, for the end of the bench."
    ),
    Product(
        "morel", "Morel", 21500, "mushroom", 228, "Wide and low. It lights the book and leaves the room."
    ),
    Product("gable", "Gable", 16400, "cone", 300, "Six panes, one seam, and a shadow like a tent's."),
    Product("harbour", "Harbour", 24900, "lantern", 196, "A ship's lantern that never learned to swing."),
    Product("ember", "Ember", 19800, "drop", 336, "A drop of glass caught on its way down."),
    Product("crescent", "Crescent", 27500, "moon", 244, "Cut by eye, so that no two agree about the moon."),
)


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much the shop bears, as a real one does: slower with every request in flight, then not at all.

    Attributes:
        workers: requests served at one time.
        service: seconds that a page takes when nobody else is there.
        comfort: requests in flight at which a page takes twice as long; beyond, the square of it.
        backlog: requests in flight beyond which the answer is 503 at once.
        patience: seconds in the shop's own queue after which the answer is 504.
    """

    workers: int = 4
    service: float = 0.1
    comfort: float = 16.0
    backlog: int = 60
    patience: float = 6.0

    def seconds(self, in_flight: int) -> float:
        """How long a page takes while so many requests contend for the same machine."""
        return self.service * (1.0 + (in_flight / self.comfort) ** 2)


class Storefront:
    """The shop on a loopback port of its own.

    Args:
        port: 0 takes a free one.
        capacity: what it bears.
        made: lamps of each kind.
    """

    def __init__(self, port: int = 0, capacity: Capacity = Capacity(), made: int = 2000) -> None:
        self.log = Ledger()
        self.orders = 0
        self._port = port
        self._capacity = capacity
        self._made = made
        self._stock = {product.id: made for product in CATALOGUE}
        self._products = {product.id: product for product in CATALOGUE}
        self._baskets: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._watching: Counter[str] = Counter()
        self._in_flight = 0
        self._workers = asyncio.Semaphore(capacity.workers)
        self._sold = asyncio.Condition()
        self._runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=0.5, auto_decompress=False
        )
        self._pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True
        )
        self._pages.filters["money"] = lambda cents: f"€ {cents / 100:,.2f}"
        self._pages.filters["number"] = "{:,}".format

    async def start(self) -> tuple[str, int]:
        """Open the shop; return its host and port.

        Raises:
            OSError: the port is taken.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024).start()
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def stop(self) -> None:
        """Close the shop and every connection to it."""
        await self._runner.cleanup()

    def inside(self, now: float, window: float) -> int:
        """People inside at `now`, on the monotonic clock; silence of `window` seconds ends a stay."""
        return self.log.inside(now, window)

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._front_door])
        app.add_routes(
            [
                web.get("/", self._catalogue),
                web.get("/product/{id}", self._product),
                web.get("/basket", self._basket),
                web.post("/basket", self._add),
                web.post("/checkout", self._checkout),
                web.get("/thanks/{order:[0-9]+}", self._thanks),
                web.get("/photos", self._photos),
                web.post("/photos", self._receive_photo),
                web.get("/live/{id}", self._live),
                web.get("/orders", self._news),
                web.get("/static/{name}", self._static),
                web.get("/_shop/stats", self._stats),
            ]
        )
        return app

    @web.middleware
    async def _front_door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Know the visitor, keep the log, and let only as many through as the shop bears."""
        if request.path.startswith(_FREE):
            return await handler(request)
        session = request.cookies.get(SESSION_COOKIE, "")
        returning = _SESSION.fullmatch(session) is not None
        session = session if returning else secrets.token_hex(16)
        request[_VISITOR] = session
        visit = Visit(time.monotonic(), session, request.path, returning)
        self.log.append(visit)
        try:
            response = await self._within_capacity(request, handler)
        except ConnectionError:
            response = web.Response(status=400)  # the visitor went away while sending; nobody reads this
        except web.HTTPException as refusal:
            visit.status = refusal.status
            raise
        finally:
            visit.seconds = time.monotonic() - visit.at
        visit.status = response.status
        visit.leaving = GIVE_BACK_SEAT.items() <= response.headers.items()
        if visit.leaving:
            response.del_cookie(SESSION_COOKIE)
        elif not returning:
            response.set_cookie(SESSION_COOKIE, session, httponly=True, samesite="Lax")
        return response

    async def _within_capacity(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._in_flight >= self._capacity.backlog:
            return _apology(503, "Service Unavailable")
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._capacity.patience), self._workers:
                await asyncio.sleep(self._capacity.seconds(self._in_flight))
        except TimeoutError:
            return _apology(504, "Gateway Time-out")
        finally:
            self._in_flight -= 1
        return await handler(request)

    def _page(self, request: web.Request, template: str, **values: object) -> web.Response:
        count = self._baskets[request[_VISITOR]].total() if request[_VISITOR] in self._baskets else 0
        text = self._pages.get_template(template).render(count=count, **values)
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    def _wanted(self, request: web.Request) -> Product:
        product = self._products.get(request.match_info["id"])
        if product is None:
            raise web.HTTPNotFound(text="There is no such lamp.")
        return product

    async def _catalogue(self, request: web.Request) -> web.StreamResponse:
        return self._page(
            request, "catalogue.html", products=CATALOGUE, stock=self._stock, orders=self.orders
        )

    async def _product(self, request: web.Request) -> web.StreamResponse:
        product = self._wanted(request)
        return self._page(
            request, "product.html", product=product, stock=self._stock[product.id], made=self._made
        )

    async def _basket(self, request: web.Request) -> web.StreamResponse:
        return self._basket_page(request, "")

    def _basket_page(self, request: web.Request, notice: str) -> web.Response:
        basket = self._baskets.get(request[_VISITOR], Counter())
        lines = [(self._products[name], count) for name, count in basket.items()]
        total = sum(product.price * count for product, count in lines)
        return self._page(request, "basket.html", lines=lines, total=total, notice=notice)

    async def _add(self, request: web.Request) -> web.StreamResponse:
        wanted = str((await request.post()).get("product", ""))
        if wanted not in self._products:
            raise web.HTTPBadRequest(text="There is no such lamp.")
        self._baskets[request[_VISITOR]][wanted] += 1
        return _see_other("/basket")

    async def _checkout(self, request: web.Request) -> web.StreamResponse:
        basket = self._baskets.get(request[_VISITOR], Counter())
        if not basket:
            return _see_other("/basket")
        gone = [self._products[name].name for name, count in basket.items() if self._stock[name] < count]
        if gone:
            return self._basket_page(request, f"Sold out while you were choosing: {', '.join(gone)}.")
        for name, count in self._baskets.pop(request[_VISITOR]).items():
            self._stock[name] -= count
        self.orders += 1
        async with self._sold:
            self._sold.notify_all()
        return _see_other(f"/thanks/{self.orders}")

    async def _thanks(self, request: web.Request) -> web.StreamResponse:
        page = self._page(request, "thanks.html", order=f"{int(request.match_info['order']):06d}")
        page.headers.update(GIVE_BACK_SEAT)
        return page

    async def _photos(self, request: web.Request) -> web.StreamResponse:
        return self._page(request, "photos.html", size=None)

    async def _receive_photo(self, request: web.Request) -> web.StreamResponse:
        """Measure what is sent, piece by piece: a form's file, or the bare body of any other type."""
        digest, size = hashlib.sha256(), 0
        async for piece in _pieces(request):
            digest.update(piece)
            size += len(piece)
        if "text/html" in request.headers.get("Accept", ""):
            return self._page(request, "photos.html", size=size, sha256=digest.hexdigest())
        return web.json_response({"size": size, "sha256": digest.hexdigest()})

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Tell the stock each second, and at once whenever the browser says anything."""
        product = self._wanted(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._watching[product.id] += 1
        try:
            while not socket.closed:
                await socket.send_json(
                    {"left": self._stock[product.id], "watching": self._watching[product.id]}
                )
                with contextlib.suppress(TimeoutError):
                    await socket.receive(timeout=_SECONDS_BETWEEN_NEWS)
        except ConnectionError:
            pass  # the browser went away between two lines
        finally:
            self._watching[product.id] -= 1
        return socket

    async def _news(self, request: web.Request) -> web.StreamResponse:
        """Tell the number of orders, as server-sent events, whenever it changes."""
        stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await stream.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await stream.write(f"data: {self.orders}\n\n".encode())
                async with self._sold:
                    await self._sold.wait()
        return stream

    async def _static(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] not in _STATIC:
            raise web.HTTPNotFound
        path = _TEMPLATES / "static" / request.match_info["name"]
        return web.FileResponse(path, headers={"Cache-Control": "public, max-age=3600"})

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        window = float(request.query.get("window", "10"))
        now = time.monotonic()
        return web.json_response(
            {
                "requests": len(self.log),
                "failures": self.log.failures(),
                "p95_seconds": round(self.log.p95(now - window), 3),
                "inside": self.inside(now, window),
                "in_flight": self._in_flight,
                "orders": self.orders,
            },
            dumps=lambda value: json.dumps(value, indent=1),
        )


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    if not request.content_type.startswith("multipart/"):
        async for piece in request.content.iter_any():
            yield piece
        return
    async for part in await request.multipart():
        while isinstance(part, BodyPartReader) and (piece := await part.read_chunk(65536)):
            yield piece


def _see_other(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


def _apology(status: int, title: str) -> web.Response:
    """What a shop on its knees really sends."""
    return web.Response(status=status, text=f"<h1>{status} {title}</h1>", content_type="text/html")
