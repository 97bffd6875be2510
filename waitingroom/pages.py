"""What a waiting visitor is sent: the page, or a document, and the choice between them.

A page is compiled once for each room, language and state, with holes for what belongs to one visitor; a
newcomer costs no more than filling these.
"""

import json
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from html import escape
from importlib import resources
from math import ceil
from typing import TYPE_CHECKING

from waitingroom import locales
from waitingroom.branding import Palette, logo_url, palette
from waitingroom.challenge import PARTS, Challenge
from waitingroom.room import Room, State, Status
from waitingroom.stencil import Stencil, hole

if TYPE_CHECKING:
    from jinja2 import Environment

Headers = tuple[tuple[bytes, bytes], ...]


class Form(StrEnum):
    """The form in which somebody who has to wait is told so."""

    PAGE = "page"
    JSON = "json"
    PROBLEM = "problem"
    FORM = "form"


class Trouble(StrEnum):
    """What keeps a visitor from the shop besides the line, and the HTTP status that it goes with."""

    ORIGIN_DOWN = "origin_down"  # 502
    ORIGIN_SLOW = "origin_slow"  # 504
    BUSY = "busy"  # 503
    BAD_REQUEST = "bad_request"  # 400
    NOT_SENT = "not_sent"  # 429


@dataclass(frozen=True, slots=True)
class Page:
    """A body and the headers that belong to it; `Content-Length` is left to whoever sends it."""

    body: bytes
    headers: Headers


def negotiate(
    method: bytes, accept: bytes, *, dest: bytes = b"", mode: bytes = b"", purpose: bytes = b""
) -> Form:
    """Decide in which form a request that has to wait is answered.

    Only `PAGE` and `JSON` are worth a place in line. `FORM` is a form that a browser sends: its sender sees
    the page of `Trouble.NOT_SENT`. All else (assets, calls of scripts, prefetched pages) is a `PROBLEM`.

    Args:
        method: request method.
        accept: `Accept` header.
        dest: `Sec-Fetch-Dest` header, empty if there is none, as with older browsers; so with the others.
        mode: `Sec-Fetch-Mode` header.
        purpose: `Sec-Purpose` header.
    """
    wants_html = b"text/html" in accept or b"application/xhtml+xml" in accept
    navigates = mode == b"navigate" if mode else wants_html
    if b"prefetch" in purpose or (navigates and dest not in (b"", b"document", b"iframe", b"frame")):
        return Form.PROBLEM
    if method not in (b"GET", b"HEAD"):
        return Form.FORM if navigates else Form.PROBLEM
    if b"application/json" in accept and not wants_html:
        return Form.JSON
    return Form.PAGE if navigates else Form.PROBLEM


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_POLLED = frozenset(State) | {"missed", "slowed"}
_CLIENT_TEXTS = (
    *("ahead", "next", "offline", "wait_unknown", "wait_soon", "wait_minutes", "wait_hours"),
    *("wait_upto_minutes", "wait_upto_hours", "held_minutes", "held_seconds"),
)


@dataclass(frozen=True, slots=True)
class _Template:
    """A page but for its holes, and the headers that are the same for all who get it."""

    stencil: Stencil
    headers: Headers

    def page(self, values: Mapping[str, bytes], *, accepts_gzip: bool) -> Page:
        headers = self.headers
        if values["retry"]:
            headers += ((b"Retry-After", values["retry"]),)
        if accepts_gzip:
            return Page(self.stencil.gzip(values), (*headers, (b"Content-Encoding", b"gzip")))
        return Page(self.stencil.fill(values), headers)


@dataclass(frozen=True, slots=True)
class _Look:
    """A room as its page shows it, with the templates compiled so far by language and state."""

    room: Room
    palette: Palette
    logo: str
    templates: dict[tuple[str, str], _Template] = field(default_factory=dict)


class Pages:
    """Every page that the gateway itself sends.

    Args:
        rooms: rooms whose looks are prepared.

    Raises:
        ValueError: a room's colour cannot be read, or its logo cannot be used.
    """

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._languages = locales.load()
        self._environment = _environment()
        self._scripts = {name: _strip(_template_text(f"{name}.js")) for name in ("page", "challenge")}
        self._looks: dict[str, _Look] = {}
        self.update(Room())
        for room in rooms:
            self.update(room)

    def update(self, room: Room) -> None:
        """Take over a new or changed room; on an error the room keeps the look that it had.

        Raises:
            ValueError: the room's colour cannot be read, or its logo cannot be used.
        """
        logo = logo_url(room.shop_logo) if room.shop_logo else ""
        self._looks[room.name] = _Look(room, palette(room.accent_color), logo)

    def render(
        self,
        room: Room,
        status: Status,
        *,
        host: str,
        languages: bytes | str,
        accepts_gzip: bool,
        again: str = "",
        target: str = "",
    ) -> Page:
        """Write the waiting page for one visitor.

        Args:
            room: as it is now; a change that nobody announced with `update` is taken over here.
            status: what the visitor is told.
            host: host that the visitor asked for; the shop's name where it has none.
            languages: `Accept-Language` header.
            accepts_gzip: whether the body may be gzipped.
            again: where the `ended` page offers to start anew; empty for the address that it stands on.
            target: path and query that the visitor asked for. Without JavaScript the page refreshes to it;
                one that is given no address never refreshes in Chromium where its own has a fragment.

        Raises:
            ValueError: as `update`, for a change that was not announced.
        """
        look = self._look(room)
        language = locales.choose(languages, self._languages)
        state = status.state.value
        if status.state is State.WAITING and (status.missed or status.slowed):
            state = "missed" if status.missed else "slowed"
        template = self._template(look, language, state)
        values = _values(status, language)
        values.update(shop=_html(host), again=_html(again), refresh=_refresh(values["retry"], target))
        return template.page(values, accepts_gzip=accepts_gzip)

    def render_error(
        self,
        room: Room | None,
        trouble: Trouble,
        *,
        host: str,
        languages: bytes | str,
        accepts_gzip: bool,
        retry_after: int | None = None,
        target: str = "",
    ) -> Page:
        """Write a page that says what went wrong.

        Args:
            room: where its look is wanted; None for a plain page.
            trouble: what happened.
            host: as for `render`, and so with `languages`, `accepts_gzip` and `target`.
            languages: see `host`.
            accepts_gzip: see `host`.
            target: see `host`.
            retry_after: seconds after which the page asks again by itself; None for never, which is a must
                where the request was not a GET.
        """
        look = self._looks.get(room.name if room else "") or self._looks[""]
        language = locales.choose(languages, self._languages)
        template = self._template(look, language, trouble.value + ("" if retry_after is None else "+retry"))
        retry = b"" if retry_after is None else b"%d" % retry_after
        values = {"shop": _html(host), "retry": retry, "refresh": _refresh(retry, target)}
        return template.page(values, accepts_gzip=accepts_gzip)

    def render_challenge(
        self,
        room: Room,
        challenge: Challenge,
        left: int,
        *,
        host: str,
        languages: bytes | str,
        accepts_gzip: bool,
        target: str,
    ) -> Page:
        """Write the page that has a newcomer's browser show that it is one, before it joins.

        Args:
            room: as for `render`, and so with `host`, `languages` and `accepts_gzip`.
            challenge: what the browser is set.
            left: seconds after which it need not be met; without JavaScript the page goes on then.
            host: see `room`.
            languages: see `room`.
            accepts_gzip: see `room`.
            target: path and query that the visitor asked for.

        Raises:
            ValueError: as `render`.
        """
        look = self._look(room)
        language = locales.choose(languages, self._languages)
        retry = b"%d" % left
        values = {
            "shop": _html(host),
            "retry": retry,
            "refresh": _refresh(retry, target),
            "proof": challenge.text.encode(),
            "bits": b"%d" % challenge.part_bits,
            "delay": language.count("challenge_delay", left).encode(),
        }
        return self._template(look, language, "challenge").page(values, accepts_gzip=accepts_gzip)

    def _look(self, room: Room) -> _Look:
        look = self._looks.get(room.name)
        if look is None or (look.room is not room and look.room != room):
            self.update(room)
            look = self._looks[room.name]
        return look

    def _template(self, look: _Look, language: locales.Language, variant: str) -> _Template:
        key = (language.tag, variant)
        if key not in look.templates:
            look.templates[key] = self._compile(look, language, variant)
        return look.templates[key]

    def _compile(self, look: _Look, language: locales.Language, variant: str) -> _Template:
        state, _, retries = variant.partition("+")
        polled, challenged = state in _POLLED, state == "challenge"
        script = self._scripts["challenge" if challenged else "page"]
        style = _strip(self._environment.get_template("style.css").render(look=look))
        texts = {key: language.texts[key] for key in _CLIENT_TEXTS} if polled else {}
        if challenged:
            texts["done"] = language.texts["challenge_done"]
        html = self._environment.get_template("page.html").render(
            look=look,
            language=language,
            state=state,
            mode="poll" if polled else state if challenged else "reload" if retries else "",
            refreshes=bool(retries) or challenged or (polled and state != State.ENDED),
            parts=PARTS,
            shop=look.room.shop_name or hole("shop"),
            hole=hole,
            style=style,
            script=script,
            texts=_encode(texts).replace("<", "\\u003c"),
        )
        headers = _headers(language.tag, style, script)
        if polled or challenged:
            headers += (
                (b"Waiting-Room", (State.WAITING if state in {"missed", "slowed"} else state).encode()),
            )
        return _Template(Stencil(html), headers)


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - as above

    loader = PackageLoader("waitingroom", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _template_text(name: str) -> str:
    return (resources.files("waitingroom") / "templates" / name).read_text(encoding="utf-8")


def _strip(source: str) -> str:
    """Leave out indentation, blank lines and the lines that only comment."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _headers(tag: str, style: str, script: str) -> Headers:
    digests = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    )
    return (
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Language", tag.encode()),
        (b"Content-Security-Policy", policy.encode()),
        (b"Cache-Control", b"no-store"),
        (b"Vary", b"Accept, Accept-Encoding, Accept-Language, Cookie"),
        (b"X-Robots-Tag", b"noindex"),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Referrer-Policy", b"same-origin"),
    )


def _html(text: str) -> bytes:
    return escape(text).encode()


def _refresh(seconds: bytes, target: str) -> bytes:
    """Write a refresh to our own host: two slashes in front would name another."""
    ours = target.startswith("/") and not target.startswith(("//", "/\\"))
    return seconds + (b";url=" + _html(target) if ours else b"")


def _values(status: Status, language: locales.Language) -> dict[str, bytes]:
    """Write what belongs to one visitor, by the name of its hole."""
    position, seconds = status.position, max(2, ceil(status.poll_after))
    moment = time.gmtime(status.updated)
    number = "" if position is None else language.number(position)
    values = {
        "retry": str(seconds),
        "title_position": f"{number} · " if number and status.state is not State.YOUR_TURN else "",
        "raw_position": "" if position is None else str(position),
        "position": number,
        "ahead": _ahead(position, language),
        "wait": language.wait(status.low, status.high),
        "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", moment),
        "clock": time.strftime("%H:%M:%S UTC", moment),
        "held": _held(status.until, language),
        "checks_every": language.count("checks_every", seconds),
        "message": escape(status.message),
    }
    return {name: value.encode() for name, value in values.items()}


def _ahead(position: int | None, language: locales.Language) -> str:
    if position is None:
        return language.say("place_soon")
    return language.count("ahead", position - 1) if position > 1 else language.say("next")


def _held(until: float | None, language: locales.Language) -> str:
    left = int(until or 0)
    if left == 0:
        return ""
    return language.count("held_seconds", left) if left < 120 else language.count("held_minutes", left // 60)  # noqa: PLR2004 - two minutes
