"""A recorded session as a journey: what a browser saved as HAR becomes a function that shoppers live.

Written are pages alone: what other hosts serve, pictures and scripts are dropped. Headers and cookies are
never written, neither are tokens and what somebody typed; parts of a path that look like an id are marked, so
that one can give a list of them.
"""

import json
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from loadtest.inputs import InputError

LARGEST = 256 * 1024 * 1024
"""Bytes of a recording that are read."""

PLACEHOLDER = "REMOVED"
"""Stands for a token or a personal value."""

_EXPECTED = "save the session as HAR in the browser's network panel"
_LONGEST_THOUGHT = 300.0
_USUAL_THOUGHT = 8.0
_SHORTEST_SECRET = 8
_SECRET = re.compile(
    r"token|csrf|xsrf|nonce|sess|auth|passw|pwd|secret|jwt|sig|api.?key|^key$|^sid$|^code$|^state$|captcha",
    re.IGNORECASE,
)
_PERSONAL = re.compile(
    r"mail|name|phone|tel|street|addr|city|zip|postal|postcode|birth|card|cvc|cvv|iban|user|login|account|company",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"eyJ[\w-]{8,}|(?=[\w+/=.~-]*\d)(?=[\w+/=.~-]*[a-z])(?=[\w+/=.~-]*[A-Z])[\w+/=.~-]{20,}")
_PLAIN = re.compile(r"[a-z0-9_.-]{1,24}", re.IGNORECASE)
_NUMBER = re.compile(r"\d{7}")
_ID = re.compile(r"\d+|[0-9a-f]{8}-[0-9a-f-]{27}|(?=[a-f]*\d)[0-9a-f]{8,}", re.IGNORECASE)
_LONE = re.compile("[\ud800-\udfff]")
_DONE = re.compile(r"thank|success|confirm|complete|receipt", re.IGNORECASE)
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Step:
    """One page of the session.

    Attributes:
        name: under which it is measured.
        method: "GET" or "POST".
        path: with its query, free of secrets; ids stand in braces: /product/{4711}.
        form: fields that were sent, free of secrets and of what is personal.
        think: seconds between the page before and this one.
    """

    name: str
    method: str
    path: str
    form: Mapping[str, str] | None
    think: float


@dataclass(frozen=True, slots=True)
class Recording:
    """A session: its pages in order, whether it ended in an order, and entries dropped, by reason."""

    host: str
    steps: tuple[Step, ...]
    bought: bool
    dropped: Mapping[str, int]


def read_har(path: Path, host: str | None = None) -> Recording:
    """The pages of a recorded session.

    Args:
        path: HAR, as browsers save it.
        host: whose pages are kept; else the host of the first page.

    Raises:
        InputError: the file cannot be read or is no HAR, or has no page of the host.
    """
    try:
        if path.stat().st_size > LARGEST:
            remedy = "record one session, without the bodies"
            raise InputError(str(path), f"more than {LARGEST >> 20} MB", remedy)
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "name a file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"no JSON ({type(error).__name__})", _EXPECTED) from error
    return recording(document, str(path), host)


def recording(document: object, where: str, host: str | None = None) -> Recording:
    """The same from a document that has been read.

    Raises:
        InputError: it is no HAR, or has no page of the host.
    """
    log = document.get("log") if isinstance(document, dict) else None
    entries = log.get("entries") if isinstance(log, dict) else None
    if not isinstance(entries, list):
        raise InputError(where, "no log.entries in it", _EXPECTED)
    found = [entry for entry in map(_Entry.read, entries) if entry is not None]
    secrets = {value for entry in found for value in entry.secrets}
    dropped = {"unreadable": len(entries) - len(found), "other hosts": 0, "no page": 0, "redirects": 0}
    home = host or next((entry.host for entry in found if entry.page), "")
    steps: list[Step] = []
    due, last, ended = "", "", None
    for entry in sorted(found, key=lambda entry: entry.began):
        if entry.host != home:
            dropped["other hosts"] += 1
        elif not entry.page:
            dropped["no page"] += 1
        elif entry.url == due:
            dropped["redirects"] += 1
            due, last, ended = entry.leads_to, entry.leads_to or entry.url, entry.ended
        else:
            think = 0.0 if ended is None else min(_LONGEST_THOUGHT, max(0.0, entry.began - ended))
            steps.append(_step(entry, secrets, round(think, 1)))
            due, last, ended = entry.leads_to, entry.leads_to or entry.url, entry.ended
    if not steps:
        raise InputError(where, f"no page of {home or 'any host'}", "record pages, or name their --host")
    reasons = {reason: count for reason, count in dropped.items() if count}
    return Recording(home, tuple(steps), bool(_DONE.search(last)), reasons)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is needed of one entry. Times are in Unix seconds."""

    began: float
    ended: float
    method: str
    url: str
    host: str
    page: bool
    leads_to: str
    form: tuple[tuple[str, str], ...]
    secrets: frozenset[str]

    @classmethod
    def read(cls, entry: Any) -> "_Entry | None":
        """One entry, or None where it is unreadable."""
        try:
            request, response = entry["request"], entry["response"]
            method, url = str(request["method"]), str(request["url"])
            parts = urlsplit(url)
            began = datetime.fromisoformat(str(entry["startedDateTime"])).timestamp()
            took = max(0.0, float(entry.get("time") or 0)) / 1000
            leads_to = str(response.get("redirectURL") or "")
            kind = str(response.get("content", {}).get("mimeType") or "")
            form, sent = _form(request.get("postData"))
            secrets = frozenset(_secrets(request, response, [*parse_qsl(parts.query), *form]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None
        html = entry.get("_resourceType") == "document" or (not entry.get("_resourceType") and "html" in kind)
        page = method == "GET" and (html or (bool(leads_to) and not _asset(kind)))
        page = page or (method == "POST" and (sent == _FORM or html))
        if _LONE.search(url + "".join(part for field in form for part in field)):
            return None
        base = f"{parts.scheme}://{parts.netloc}"
        onward = base + leads_to if leads_to.startswith("/") else leads_to
        return cls(began, began + took, method, url, parts.netloc, page, onward, tuple(form), secrets)


def _asset(kind: str) -> bool:
    return kind.startswith(("image/", "font/", "text/css", "video/", "audio/")) or "javascript" in kind


def _form(data: Any) -> tuple[list[tuple[str, str]], str]:
    """The fields that were sent, and their content type without parameters."""
    if not isinstance(data, dict):
        return [], ""
    kind = str(data.get("mimeType") or "").partition(";")[0].strip().lower()
    params = data.get("params")
    if isinstance(params, list) and params:
        # In params browsers leave names and values as they were sent.
        sent = [(str(each["name"]), str(each.get("value", ""))) for each in params]
        return [(_plain(name), _plain(value)) for name, value in sent], kind
    return (
        (parse_qsl(str(data.get("text") or ""), keep_blank_values=True), kind)
        if kind == _FORM
        else ([], kind)
    )


def _plain(text: str) -> str:
    return unquote(text.replace("+", " "))


def _secrets(
    request: dict[str, Any], response: dict[str, Any], fields: Iterable[tuple[str, str]]
) -> Iterable[str]:
    """Every value that is a secret by where it stands: cookies, authorization, fields with such names."""
    for side in (request, response):
        for cookie in side.get("cookies") or ():
            yield from _long_enough(str(cookie["value"]))
        for header in side.get("headers") or ():
            name, value = str(header["name"]).lower(), str(header["value"])
            if name in {"cookie", "set-cookie"}:
                for part in re.split(r"[;\n]", value):
                    yield from _long_enough(part.partition("=")[2])
            elif "authorization" in name or _SECRET.search(name):
                yield from _long_enough(value.rpartition(" ")[2])
    for name, value in fields:
        if _SECRET.search(name):
            yield from _long_enough(value)


def _long_enough(value: str) -> Iterable[str]:
    """A value and its decoded form, where they are long enough to be told from words."""
    value = value.strip().strip('"')
    if len(value) >= _SHORTEST_SECRET:
        yield value
        yield unquote(value)


def _step(entry: _Entry, secrets: set[str], think: float) -> Step:
    parts = urlsplit(entry.url)
    segments = [_segment(unquote(part), secrets) for part in parts.path.split("/")]
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode(_written(pairs, secrets))
    path = "/".join(segments) or "/"
    form = dict(_written(entry.form, secrets))
    words = [re.sub(r"\W+", "_", part).strip("_") for part in segments if part and not part.startswith("{")]
    name = (words[0] if words else "home")[:30].lower() or "page"
    return Step(name, entry.method, path + (f"?{query}" if query else ""), form or None, think)


def _segment(text: str, secrets: set[str]) -> str:
    if _hidden(text, secrets) or "@" in text:
        return PLACEHOLDER
    return "{" + text + "}" if _ID.fullmatch(text) else quote(text)


def _written(pairs: Iterable[tuple[str, str]], secrets: set[str]) -> list[tuple[str, str]]:
    return [(name, _value(name, value, secrets)) for name, value in pairs if not _hidden(name, secrets)]


def _value(name: str, value: str, secrets: set[str]) -> str:
    """What may be written of a field: a plain choice as it is, else what stands for it."""
    if "mail" in name.lower():
        return "shopper@example.com"
    if _SECRET.search(name) or _PERSONAL.search(name) or _hidden(value, secrets):
        return PLACEHOLDER
    return value if not value or (_PLAIN.fullmatch(value) and not _NUMBER.search(value)) else PLACEHOLDER


def _hidden(text: str, secrets: set[str]) -> bool:
    return bool(_TOKEN.search(text)) or any(secret in text for secret in secrets)


def journey(found: Recording, name: str = "recorded") -> str:
    """The session as a Python module with a function of a shopper, for `journey = "module:function"`.

    Ids in paths become lists of one, from which one is taken by chance: add to them what else there is. Think
    times are told as multiples of the scenario's `think_median`.

    Args:
        found: the session.
        name: of the function.

    Raises:
        InputError: the name is none for a function.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError("--name", f"{name!r} is no name for a function", "write a word such as recorded")
    ids: dict[str, list[str]] = {}
    calls = [line for step in found.steps for line in _calls(step, ids)]
    lists = [f"{constant} = ({', '.join(map(repr, values))},)" for constant, values in ids.items()]
    told = "".join(f"{count} {reason}; " for reason, count in found.dropped.items()) or "nothing; "
    lines = [
        f'"""A recorded session of {_harmless(found.host)}, {len(found.steps)} pages. Dropped: {told[:-2]}.',
        "",
        f"{PLACEHOLDER} stands for a token, or for what somebody typed: put in what your shop takes.",
        '"""',
        "",
        "from loadtest.shopper import Shopper",
        "",
        *([*lists, ""] if lists else []),
        "",
        f"def {name}(person: Shopper) -> str:",
        '    """Open the pages of the session, one after the other."""',
        *calls,
        f'    return "{"bought" if found.bought else "left"}"',
    ]
    return "\n".join(lines) + "\n"


def _calls(step: Step, ids: dict[str, list[str]]) -> list[str]:
    lines = []
    if step.think:
        lines.append(f"    person.think({step.think / _USUAL_THOUGHT:.2f})  # {step.think:g} s")
    pieces = re.split(r"\{([^{}]*)\}", step.path)
    path = repr(step.path)
    if len(pieces) > 1:
        constant = f"{re.sub(r'[^A-Z0-9]+', '_', step.name.upper()).strip('_') or 'PAGE'}_IDS"
        constant = constant if constant[0].isalpha() else f"PAGE_{constant}"
        known = ids.setdefault(constant, [])
        for value in pieces[1::2]:
            if value not in known:
                known.append(value)
        chosen = f"person.chance.choice({constant})"
        path = " + ".join(chosen if at % 2 else repr(piece) for at, piece in enumerate(pieces) if piece)
    form = f", {dict(step.form)!r}" if step.form else ", {}" if step.method == "POST" else ""
    lines.append(f"    person.page({step.name!r}, {path}{form})")
    return lines


def _harmless(text: str) -> str:
    return re.sub(r"[^\w.:\[\]-]", "", text)
