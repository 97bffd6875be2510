"""The private listener: metrics, health, the console, and the admin API.

Every change of a room is checked as the configuration file is, names an author and a reason, and is in force
on every gateway with its next tick, this one included.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, NoReturn

from aiohttp import hdrs, web

from waitingroom.access import Access, Token, role_for
from waitingroom.config import change_room
from waitingroom.console import Watch, page
from waitingroom.desk import Desk
from waitingroom.guard import TOKEN, counted, guard, require
from waitingroom.problems import ProblemError, body_of, leaving, nearest, problems, refused, seal
from waitingroom.room import Room
from waitingroom.store import Change, ConflictError, Store
from waitingroom.telemetry import Telemetry

LARGEST_BODY = 65_536
LONGEST_AUTHOR, LONGEST_REASON = 80, 500
MOST_ENTRIES = 1000

ACTIONS: Mapping[str, Callable[[Room], dict[str, Any]]] = {
    "pause": lambda _: {"paused": True},
    "drain": lambda _: {"queue_all": True},
    "resume": lambda _: {"paused": False, "queue_all": False},
    "epoch": lambda room: {"epoch": room.epoch + 1},
}
"""Changes that need no knowledge of the room's version: they are repeated if somebody else was faster."""


def application(
    desks: Mapping[str, Desk],
    store: Store,
    telemetry: Telemetry,
    access: Access,
    *,
    draining: Callable[[], bool],
) -> web.Application:
    """The application of the private listener; rooms, access and draining may change while it is served."""
    admin = _Admin(desks, store, telemetry, draining)
    middlewares = [counted(telemetry), problems, guard(access)]
    app = web.Application(client_max_size=LARGEST_BODY, middlewares=middlewares)
    watch = Watch(desks, telemetry)
    app.cleanup_ctx.append(watch.run)
    html, policy = page()

    async def console(_: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return web.Response(text=html, content_type="text/html", headers=headers)

    async def numbers(_: web.Request) -> web.Response:
        return web.json_response(watch.tell())

    app.on_response_prepare.append(seal)
    app.router.add_get("/", console)
    app.router.add_get("/v1/console.json", numbers)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_get("/healthz", admin.alive)
    app.router.add_get("/readyz", admin.ready)
    app.router.add_get("/v1/rooms", admin.rooms)
    app.router.add_get("/v1/rooms/{name}", admin.read)
    app.router.add_patch("/v1/rooms/{name}", admin.patch)
    app.router.add_post(f"/v1/rooms/{{name}}/{{action:{'|'.join(ACTIONS)}}}", admin.act)
    app.router.add_get("/v1/audit", admin.audit)
    return app


class _Admin:
    """The handlers."""

    def __init__(
        self, desks: Mapping[str, Desk], store: Store, telemetry: Telemetry, draining: Callable[[], bool]
    ) -> None:
        self._desks = desks
        self._store = store
        self._telemetry = telemetry
        self._draining = draining

    async def metrics(self, request: web.Request) -> web.Response:
        body, kind = self._telemetry.render(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})

    async def alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        """Ready is who has once heard of the store about every room; after that, the store may go away."""
        if self._draining():
            raise leaving()
        missing = [name for name, desk in self._desks.items() if not desk.warm]
        if missing:
            raise ProblemError(
                503,
                "Not ready",
                f"The store has not been heard of about: {', '.join(missing)}.",
                "See that the store at [store] url is up and can be reached; 'waitingroom check' looks.",
                {"Retry-After": "1"},
                missing=missing,
            )
        return web.json_response({"status": "ready", "rooms": list(self._desks)})

    async def rooms(self, _: web.Request) -> web.Response:
        loaded = [await self._store.load(name) for name in list(self._desks)]
        return web.json_response({"rooms": [self._view(room) for room in loaded if room.name in self._desks]})

    async def read(self, request: web.Request) -> web.Response:
        return self._answer(await self._store.load(self._name(request)))

    async def patch(self, request: web.Request) -> web.Response:
        name = self._name(request)
        expected = _if_match(request)
        if expected is None:
            raise ProblemError(
                428,
                "Say which version you have seen",
                "A change needs the header If-Match with the version that it is based on.",
                'Read the room first and send its ETag, for example If-Match: "3".',
            )
        body = await _body(request, ("set", "author", "reason"))
        author, reason = _signature(body)
        changes = body.get("set")
        if not isinstance(changes, dict) or not changes:
            raise refused(
                "set", "must be an object with at least one setting.", 'Write {"set": {"paused": true}}.'
            )
        before = await self._store.load(name)
        if before.version != expected:
            await self._conflict(before)
        try:
            return await self._change(before, changes, (author, reason, request[TOKEN]))
        except ConflictError as error:
            await self._conflict(error.current)

    async def act(self, request: web.Request) -> web.Response:
        name = self._name(request)
        author, reason = _signature(await _body(request, ("author", "reason")))
        changes = ACTIONS[request.match_info["action"]]
        expected = _if_match(request)
        before = await self._store.load(name)
        while True:
            if expected not in (None, before.version):
                await self._conflict(before)
            try:
                return await self._change(before, changes(before), (author, reason, request[TOKEN]))
            except ConflictError as error:
                before = error.current

    async def audit(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", "100")
        if not re.fullmatch(r"\d{1,4}", limit, re.ASCII) or not 1 <= int(limit) <= MOST_ENTRIES:
            raise refused("limit", f"{limit[:20]!r} is not a number from 1 to {MOST_ENTRIES}.", "")
        names = [self._known(request.query["room"])] if "room" in request.query else list(self._desks)
        entries = [entry for name in names for entry in await self._store.audit(name, int(limit))]
        entries.sort(key=lambda entry: entry.at, reverse=True)
        return web.json_response({"entries": [asdict(entry) for entry in entries[: int(limit)]]})

    async def _change(
        self, before: Room, changes: Mapping[str, Any], who: tuple[str, str, Token]
    ) -> web.Response:
        """Check and store a change; what changes nothing is answered, but is no new version."""
        author, reason, token = who
        # Before anything is checked: a check may look at files, which only an administrator may ask for.
        require(token, role_for(changes))
        after = change_room(before, changes)
        if after != before:
            after = await self._store.change(after, before, author, reason, token.name)
        return self._answer(after)

    async def _conflict(self, current: Room) -> NoReturn:
        entries = await self._store.audit(current.name, 1)
        raise ProblemError(
            409,
            "Somebody else changed the room first",
            f"The room is now at version {current.version}. {_told(entries[0]) if entries else ''}".strip(),
            "Read the room again, and repeat the change if it is still wanted.",
            {"ETag": f'"{current.version}"'},
            version=current.version,
            last_change=asdict(entries[0]) if entries else None,
        )

    def _name(self, request: web.Request) -> str:
        return self._known(request.match_info["name"])

    def _known(self, name: str) -> str:
        if name in self._desks:
            return name
        raise ProblemError(
            404,
            "No such room",
            f"This gateway has no room {name[:80]!r}.",
            nearest(name, self._desks) or "It has no room at all.",
        )

    def _answer(self, room: Room) -> web.Response:
        return web.json_response(self._view(room), headers={"ETag": f'"{room.version}"'})

    def _view(self, room: Room) -> dict[str, Any]:
        seen = self._desks[self._known(room.name)].snapshot
        settings = asdict(room)
        del settings["version"]
        plain = ("inside", "offered", "waiting", "present", "candidates", "issued", "epoch", "pace", "clock")
        snapshot = (
            {name: getattr(seen, name) for name in plain}
            | asdict(seen.totals)
            | {
                "offered_total": seen.totals.offered,
                "offered": seen.offered,
                "clock_age": round(self._telemetry.tick_age(room.name), 3),
                "stalled": self._telemetry.stalled(room.name),
            }
        )
        return {"name": room.name, "version": room.version, "settings": settings, "snapshot": snapshot}


async def _body(request: web.Request, fields: Iterable[str]) -> dict[str, Any]:
    read = await body_of(request)
    try:
        body = json.loads(read or b"{}")
        # What the store could not keep, or could not give back, is refused here: infinities, half characters.
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ProblemError(
            400, "The body is not JSON", "It could not be read as UTF-8 JSON.", "Send one JSON object."
        ) from None
    if not isinstance(body, dict):
        raise ProblemError(
            400, "The body is not an object", "It is JSON of another kind.", "Send one JSON object."
        )
    for name in body:
        if name not in fields:
            raise refused(name[:80], "is not a field of this request.", nearest(name, fields))
    return body


def _signature(body: Mapping[str, Any]) -> tuple[str, str]:
    """Who changes and why."""
    found = []
    for name, longest in (("author", LONGEST_AUTHOR), ("reason", LONGEST_REASON)):
        value = body.get(name)
        text = " ".join(value.split()) if isinstance(value, str) else ""
        if not text or len(text) > longest or not text.isprintable():
            raise refused(
                name,
                f"must be a text of 1 to {longest} characters.",
                "Whoever reads the audit will want to know.",
            )
        found.append(text)
    return found[0], found[1]


def _if_match(request: web.Request) -> int | None:
    found = re.fullmatch(r'\s*"(\d{1,15})"\s*', request.headers.get(hdrs.IF_MATCH, ""), re.ASCII)
    return int(found[1]) if found else None


def _told(change: Change) -> str:
    settings = ", ".join(f"{name} to {value!r}" for name, value in change.changed.items())
    by = f" (token {change.by})" if change.by else ""
    return f"{change.author}{by} set {settings} with version {change.version}: {change.reason}"
