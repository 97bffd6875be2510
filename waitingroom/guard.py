"""Who comes in to the private listener: the middlewares that count, and that ask for the token."""

import math
import time
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import HttpVersion10, hdrs, web
from aiohttp.typedefs import Middleware

from waitingroom.access import Access, Role, Token, bearer
from waitingroom.metrics import AdminOutcome
from waitingroom.problems import Handler, ProblemError, unreadable
from waitingroom.telemetry import Telemetry

PROBES = frozenset({"/healthz", "/readyz"})
"""What anybody may ask who reaches the listener."""

NUMBERS = frozenset({"/", "/metrics", "/v1/console.json"})
"""What may be read without a token where `Access.open_console` says so: numbers, no secrets."""

READING = frozenset({"GET", "HEAD"})
TOKEN = web.RequestKey("token", Token)

OUTCOMES: Mapping[int, AdminOutcome] = {401: "unauthenticated", 403: "forbidden", 429: "limited"}


def counted(telemetry: Telemetry) -> Middleware:
    """The middleware that counts what becomes of requests; numbers and probes only where they are refused."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        outcome: AdminOutcome = "failed"
        try:
            response = await handler(request)
            good = response.status < HTTPStatus.BAD_REQUEST
            bad: AdminOutcome = "failed" if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "refused"
            outcome = "ok" if good else OUTCOMES.get(response.status, bad)
        finally:
            if outcome not in ("ok", "failed") or _route(request) not in PROBES | NUMBERS:
                telemetry.admin_request(outcome)
        return response

    return count


def guard(access: Access) -> Middleware:
    """The middleware that decides who comes in.

    It judges the route that was found, not the path as written, and puts the token at `TOKEN`.
    """

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        route, now = _route(request), time.monotonic()
        if request.version < HttpVersion10:
            # The parser takes a request line without a version, and yet reads header lines after it.
            raise unreadable(HTTPStatus.BAD_REQUEST)
        if route in PROBES:
            return await handler(request)
        token = access.holder(bearer(request.headers.getall(hdrs.AUTHORIZATION, ())))
        if token is None and route in NUMBERS and access.open_console:
            if not request.secure and not access.is_named(request.headers.getall(hdrs.HOST, ())):
                raise _misdirected()
            return await handler(request)
        if token is None:
            wait = access.failed(request.remote or "", now)
            raise _limited("Too many attempts without a valid token", wait) if wait else _unknown(route)
        changing = request.method not in READING
        require(token, Role.OPERATOR if changing else Role.VIEWER)
        if changing and (wait := access.change(token, now)):
            raise _limited("Too many changes with this token", wait)
        request[TOKEN] = token
        return await handler(request)

    return ask


def require(token: Token, needed: Role) -> None:
    """See that a token's role suffices.

    Raises:
        ProblemError: 403, naming the role that is needed.
    """
    if not token.role.covers(needed):
        raise ProblemError(
            403,
            "The token may not do that",
            f"The role of {token.name} is {token.role}; this needs at least {needed}.",
            "Ask somebody with that role; docs/security.md says who may do what.",
            needed=needed,
        )


def _unknown(route: str) -> ProblemError:
    remedy = (
        "Send 'Authorization: Bearer <token>'; the token is in the file admin.token of the data folder, "
        "unless [admin] says otherwise."
    )
    if route in NUMBERS:
        remedy = "Send 'Authorization: Bearer <token>' with a token of any role, or set [admin] open_console."
    return ProblemError(
        401,
        "The admin token is missing or wrong",
        "This part of the private listener needs a bearer token that it knows.",
        remedy,
        {"WWW-Authenticate": 'Bearer realm="waitingroom"'},
    )


def _limited(title: str, wait: float) -> ProblemError:
    seconds = math.ceil(wait)
    headers = {"Retry-After": str(seconds)}
    return ProblemError(429, title, f"{title}.", f"Try again in {seconds} s.", headers)


def _misdirected() -> ProblemError:
    return ProblemError(
        421,
        "Not a name of this listener",
        "Without a token it is read under its address or localhost only, lest a page elsewhere read it.",
        "Name the host in [admin] hosts, or use the address.",
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""
