"""What the private listener answers when it cannot do what was asked: problem documents by RFC 9457.

Each says what is wrong and what to do about it. Bad input never becomes a 500.
"""

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from waitingroom.config import ConfigError
from waitingroom.store import StoreUnavailableError, UnknownRoomError

EVERY_ANSWER = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "waitingroom",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer of the private listener, good or bad."""

BODY_PATIENCE = 10.0
"""Seconds for a body to arrive."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemError(Exception):
    """An answer other than the one hoped for; `more` are members of the document besides the usual ones."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        remedy: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(title)
        self._status, self._headers = status, headers
        self._document = {"status": status, "title": title, "detail": detail, "remedy": remedy} | more

    def response(self) -> web.Response:
        """The answer itself."""
        return web.json_response(
            self._document,
            status=self._status,
            headers=self._headers,
            content_type="application/problem+json",
        )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what was raised further in into a problem document."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.response()
    except ConfigError as error:
        setting = error.where.split()[-1]
        return refused(setting, error.what, error.remedy).response()
    except (StoreUnavailableError, UnknownRoomError) as error:
        return _store_away(error).response()
    except web.HTTPException as error:
        return refusal(error).response()


def refusal(error: web.HTTPException) -> ProblemError:
    """What aiohttp refuses by itself, without what it says of it: that may repeat the request."""
    headers = {"Allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else None
    reason = HTTPStatus(error.status).phrase
    return ProblemError(error.status, reason, f"{reason}.", "docs/cli.md lists what there is.", headers)


def unreadable(status: int) -> ProblemError:
    """The request is no HTTP that is acceptable; nothing of it is repeated."""
    detail, remedy = "The request could not be read.", "Send HTTP/1.1 by the book."
    return ProblemError(status, "Not acceptable HTTP", detail, remedy)


def refused(setting: str, what: str, remedy: str) -> ProblemError:
    """The request is understood, and cannot stand because of one of its fields."""
    return ProblemError(422, "The request was refused", f"{setting}: {what}", remedy, setting=setting)


def leaving() -> ProblemError:
    """The gateway is not ready because it stops."""
    what, remedy = "The gateway finishes what is under way, and stops.", "Ask another gateway."
    return ProblemError(503, "The gateway is draining", what, remedy, {"Retry-After": "1"})


async def seal(_: web.Request, response: web.StreamResponse) -> None:
    """Put on an answer what all of them have; for `on_response_prepare`."""
    response.headers.update(EVERY_ANSWER)


async def body_of(request: web.Request) -> bytes:
    """The whole body of a request.

    Raises:
        ProblemError: it cannot be read, or it does not come in time.
    """
    try:
        async with asyncio.timeout(BODY_PATIENCE):
            return await request.read()
    except (web.RequestPayloadError, ConnectionError):
        raise unreadable(HTTPStatus.BAD_REQUEST) from None
    except TimeoutError:
        late = f"It took more than {BODY_PATIENCE:.0f} s."
        raise ProblemError(408, "The body came too slowly", late, "Send it at once.") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or all that there are."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}." if known else ""


def _store_away(error: StoreUnavailableError | UnknownRoomError) -> ProblemError:
    remedy = "Try again in a moment; if it stays, see to the store. Shoppers inside notice nothing."
    title, detail = "The store is out of reach", "Whether anything was changed is not certain."
    if isinstance(error, UnknownRoomError):
        title, detail = "The store has lost the room", "The gateway hands it in again within a second."
    return ProblemError(503, title, detail, remedy, {"Retry-After": "2"})
