"""File and environment to frozen settings: everything that can be set stands in a table here or in `Room`.

A value comes from the environment (`WAITINGROOM__SERVER__LISTEN`), else from the TOML file, else from its
default. Secrets may be given as a file: `keys_file`, `token_file`.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from waitingroom.addresses import LISTEN, is_origin
from waitingroom.branding import logo_url, palette
from waitingroom.durations import parse_duration
from waitingroom.room import Method, Room, setting

if TYPE_CHECKING:
    from pydantic import BaseModel

PREFIX = "WAITINGROOM__"
_RULES = ("ge", "gt", "le", "pattern", "max_length")

_STORE = r"^(embedded|(rediss?(\+sentinel|\+cluster)?|unix)://\S+)$"

Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """A setting that cannot stand: where it is, what is wrong, and how to mend it."""

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        super().__init__(f"{where}: {what}" + (f" {remedy}" if remedy else ""))
        self.where, self.what, self.remedy = where, what, remedy


@dataclass(frozen=True, slots=True)
class Server:
    """[server]: the two listeners and their limits. Durations are seconds, sizes bytes."""

    listen: str = setting("127.0.0.1:8080", "Address for shoppers.", pattern=LISTEN)
    private_listen: str = setting("127.0.0.1:9090", "Address for metrics and admin API.", pattern=LISTEN)
    trusted_proxies: tuple[str, ...] = setting((), "Networks whose forwarded headers count.")
    tls_certificate: str = setting("", "File with the certificate chain; turns TLS on.")
    tls_key: str = setting("", "File with the private key of the certificate.")
    private_tls_certificate: str = setting("", "File with a certificate chain for the private listener.")
    private_tls_key: str = setting("", "File with the private key of that certificate.")
    max_connections: int = setting(10_000, "Connections of shoppers at one time.", ge=1)
    max_head_bytes: int = setting(32_768, "Largest request line and headers.", ge=1024, le=1_048_576)
    max_headers: int = setting(100, "Most headers of a request.", ge=10, le=1000)
    head_timeout: float = setting(10.0, "Time for a request's head to arrive.", duration=True, gt=0)
    keepalive_timeout: float = setting(75.0, "Time that an idle connection is kept.", duration=True, gt=0)
    body_timeout: float = setting(60.0, "Longest silence in the middle of a body.", duration=True, gt=0)
    min_body_rate: int = setting(500, "Least average rate of a body, in bytes a second; 0 is any.", ge=0)
    upstream_connections: int = setting(256, "Connections to one storefront at one time.", ge=1)
    connect_timeout: float = setting(
        5.0, "Time for the storefront to accept a connection.", duration=True, gt=0
    )
    first_byte_timeout: float = setting(
        60.0, "Time for the storefront to begin its answer.", duration=True, gt=0
    )
    drain_timeout: float = setting(
        10.0, "Time that requests under way are given when the gateway stops.", duration=True, ge=0
    )
    workers: int = setting(1, "Worker processes that share the address for shoppers.", ge=1, le=64)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """[store]: where the queue is kept."""

    url: str = setting(
        "embedded", "embedded, or a URL such as redis://store.example:6379/0.", pattern=_STORE, secret=True
    )
    data: str = setting(
        ".waitingroom", "Folder of the embedded store, of the signing key and the admin token."
    )
    tick: float = setting(
        1.0, "Time between two exchanges of a gateway with the store.", duration=True, ge=0.2, le=5
    )
    timeout: float = setting(
        0.3, "Time after which a call to the store has failed.", duration=True, gt=0, le=5
    )


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """[tokens]: keys that sign tickets and passes."""

    keys: tuple[str, ...] = setting(
        (), "Keys of at least 32 bytes; the first signs, all verify. Better in a file.", secret=True
    )
    keys_file: str = setting("", "File with one key a line.")


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """[admin]: who may change rooms."""

    token: str = setting(
        "",
        "Bearer token of the admin API, at least 16 characters. Better in a file.",
        secret=True,
        pattern=r"^(.{16,})?$",
    )
    token_file: str = setting("", "File with the bearer token.")
    tokens_file: str = setting("", "File with one token a line: name, role, sha256:digest.")
    allow_plaintext: bool = setting(
        False, "Let the private listener be reached from other machines without TLS."
    )
    open_console: bool = setting(False, "Let other machines, too, read console and metrics without a token.")
    hosts: tuple[str, ...] = setting(
        (), "Names under which console and metrics may be read without a token, besides localhost."
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """[log]: what is written to standard output."""

    format: str = setting(
        "auto", "json, console, or auto: console on a terminal.", choices=("auto", "json", "console")
    )
    level: str = setting(
        "info", "Least severe level that is written.", choices=("debug", "info", "warning", "error")
    )
    poll_sample: int = setting(100, "One in this many polls is written.", ge=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked."""

    server: Server = field(default_factory=Server)
    store: StoreSettings = field(default_factory=StoreSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    log: LogSettings = field(default_factory=LogSettings)
    rooms: tuple[Room, ...] = ()

    def __repr__(self) -> str:
        return f"<settings of {len(self.rooms)} rooms>"

    @property
    def trusted(self) -> tuple[Network, ...]:
        """The networks whose forwarded headers count."""
        return tuple(ip_network(text) for text in self.server.trusted_proxies)


SECTIONS: dict[str, type] = {
    "server": Server,
    "store": StoreSettings,
    "tokens": TokenSettings,
    "admin": AdminSettings,
    "log": LogSettings,
}
INTERNAL = frozenset({"version"})
"""Fields of a room that the store keeps and nobody sets."""


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a file and the environment.

    Raises:
        ConfigError: with the file, line and key, what is wrong, and the nearest valid name.
    """
    return load_text("", environ) if path is None else load_text(read(path), environ, name=str(path))


def read(path: Path) -> str:
    """The text of a file; raises as `load`."""
    try:
        return path.read_text()
    except OSError as error:
        remedy = "Give the file with --config."
        raise ConfigError(str(path), f"cannot be read ({error.strerror}).", remedy) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not UTF-8 text.", "Save it as UTF-8.") from None


def load_text(text: str, environ: Mapping[str, str] | None = None, name: str = "configuration") -> Settings:
    """The same from TOML text; `name` is what errors call it."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(name, f"is not TOML: {error}.") from None
    source = _Source(name, text)
    _lay_environment_over(document, os.environ if environ is None else environ, source)
    for key in document:
        if key not in SECTIONS and key != "rooms":
            raise source.unknown("", key, [*SECTIONS, "rooms"])
    sections = {
        key: _build(kind, document.get(key, {}), f"[{key}]", source) for key, kind in SECTIONS.items()
    }
    tables = document.get("rooms", [])
    if not isinstance(tables, list):
        raise ConfigError(f"{name}: rooms", "must be written as [[rooms]], once for each room.")
    rooms = tuple(_build(Room, table, f"[[rooms]] {index + 1}", source) for index, table in enumerate(tables))
    settings = Settings(rooms=rooms, **sections)
    _check_together(settings, source)
    return settings


def change_room(room: Room, changes: Mapping[str, Any]) -> Room:
    """`room` with some settings changed, checked as the file is.

    Raises:
        ConfigError: naming the setting and the remedy.
    """
    source = _Source(f"room {room.name}", "")
    if "name" in changes:
        raise ConfigError(f"room {room.name}: name", "cannot be changed.", "Configure another room.")
    merged = {key: value for key, value in asdict(room).items() if key not in INTERNAL} | dict(changes)
    new: Room = _build(Room, merged, "", source)
    _check_room(new, source, "")
    if new.epoch < room.epoch:
        raise ConfigError(f"room {room.name}: epoch", "would bring back voided tickets.", "Raise it instead.")
    return Room(**(_plain(new) | {"version": room.version}))


def dump_room(room: Room) -> str:
    """The room as the JSON that the store keeps and the scripts read."""
    return json.dumps(asdict(room), separators=(",", ":"))


def load_room(text: str | bytes) -> Room:
    """The room from the store's JSON; settings that this version does not know are passed over."""
    raw: dict[str, Any] = json.loads(text)
    known = {item.name for item in fields(Room)}
    values: dict[str, Any] = {key: value for key, value in raw.items() if key in known}
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    values["queueing_method"] = Method(raw["queueing_method"])
    return Room(**values)


def differences(file: Room, stored: Room) -> dict[str, tuple[Any, Any]]:
    """Settings in which the file and the store disagree: name to (file's, store's)."""
    ours, theirs = asdict(file), asdict(stored)
    live = INTERNAL | {"epoch", "paused"}
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key] and key not in live}


class _Source:
    """Where a setting stands, for errors."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.variables: dict[tuple[str, str], str] = {}
        self._lines: dict[tuple[str, str], int] = {}
        table, rooms = "", 0
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[+\s*([\w-]+)\s*\]", line):
                rooms += header[1] == "rooms"
                table = f"[[rooms]] {rooms}" if header[1] == "rooms" else f"[{header[1]}]"
                self._lines |= {("", header[1]): number, (table, ""): number}
            elif key := re.match(r"\s*([\w-]+)\s*=", line):
                self._lines.setdefault((table, key[1]), number)

    def where(self, table: str, key: str) -> str:
        if (table, key) in self.variables:
            return f"environment {self.variables[table, key]}"
        number = self._lines.get((table, key)) or self._lines.get((table, ""))
        line = f" line {number}" if number else ""
        return f"{self.name}{line}: {f'{table} ' if table else ''}{key}"

    def unknown(self, table: str, key: str, names: list[str]) -> ConfigError:
        near = difflib.get_close_matches(key, names, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(names))}."
        return ConfigError(self.where(table, key), "is not a setting.", remedy)


def _build(kind: type, table: object, label: str, source: _Source) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"{source.name}: {label}", "must be a table.")
    known = {item.name: item for item in fields(kind) if item.name not in INTERNAL}
    values = dict(table)
    for key, value in table.items():
        if key not in known:
            raise source.unknown(label, key, list(known))
        if known[key].metadata.get("duration"):
            try:
                values[key] = parse_duration(value)
            except (ValueError, OverflowError) as error:
                raise ConfigError(source.where(label, key), f"{error}.") from None
    return kind(**_plain(_check(kind, values, label, source)))


def _check(kind: type, values: dict[str, Any], label: str, source: _Source) -> "BaseModel":
    from pydantic import ValidationError  # noqa: PLC0415 - `--help` must not wait for it

    try:
        return _model(kind).model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        got = "" if _field(kind, key).metadata.get("secret") else f" (got {first['input']!r})"
        doc = _field(kind, key).metadata["doc"]
        raise ConfigError(source.where(label, key), f"{first['msg']}{got}.", doc) from None


def _field(kind: type, name: str) -> Any:
    return next(item for item in fields(kind) if item.name == name)


@cache
def _model(kind: type) -> "type[BaseModel]":
    """A pydantic model that checks what the metadata of a settings table says."""
    from pydantic import ConfigDict, Field, create_model  # noqa: PLC0415 - see `_check`

    hints = get_type_hints(kind)
    columns: dict[str, Any] = {}
    for item in fields(kind):
        if item.name in INTERNAL:
            continue
        rules = {rule: item.metadata[rule] for rule in _RULES if rule in item.metadata}
        choices = item.metadata.get("choices")
        annotation = Literal.__getitem__(choices) if choices else hints[item.name]
        columns[item.name] = (annotation, Field(default=item.default, **rules))
    return create_model(
        kind.__name__, __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False), **columns
    )


def _plain(model: Any) -> dict[str, Any]:
    if isinstance(model, Room):
        return {item.name: getattr(model, item.name) for item in fields(model)}
    return {name: getattr(model, name) for name in type(model).model_fields}


def _lay_environment_over(document: dict[str, Any], environ: Mapping[str, str], source: _Source) -> None:
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        kind = SECTIONS.get(section)
        if kind is None or not key:
            raise ConfigError(name, "is not a setting.", f"Sections are {', '.join(SECTIONS)}.")
        hint = get_type_hints(kind).get(key)
        many = hint is not None and Ellipsis in get_args(hint)
        parts = [part.strip() for part in environ[name].split(",") if part.strip()]
        source.variables[f"[{section}]", key] = name
        if isinstance(table := document.setdefault(section, {}), dict):
            table[key] = parts if many else environ[name]


def _check_together(settings: Settings, source: _Source) -> None:
    for text in settings.server.trusted_proxies:
        try:
            ip_network(text)
        except ValueError as error:
            where = source.where("[server]", "trusted_proxies")
            raise ConfigError(where, f"{error}.", "Write networks such as 10.0.0.0/8.") from None
    for prefix in ("", "private_"):
        certificate, key = f"{prefix}tls_certificate", f"{prefix}tls_key"
        if bool(getattr(settings.server, certificate)) != bool(getattr(settings.server, key)):
            where = source.where("[server]", certificate)
            raise ConfigError(where, f"needs {key}, and the other way round.", "Give both or neither.")
    names: set[str] = set()
    for index, room in enumerate(settings.rooms, 1):
        label = f"[[rooms]] {index}"
        if room.name in names:
            raise ConfigError(source.where(label, "name"), f"{room.name!r} is given twice.", "Name it anew.")
        names.add(room.name)
        _check_room(room, source, label)


def _check_room(room: Room, source: _Source, label: str) -> None:
    if not room.name:
        raise ConfigError(source.where(label, "name"), "is missing.", "Every room needs a name.")
    if not is_origin(room.upstream):
        where, remedy = source.where(label, "upstream"), "Write for example http://127.0.0.1:8000."
        raise ConfigError(where, f"{room.upstream!r} is not an address.", remedy)
    if room.hosts and any(host != host.lower() or "/" in host or ":" in host for host in room.hosts):
        where, remedy = source.where(label, "hosts"), "Write shop.example, without scheme or port."
        raise ConfigError(where, "must be bare lower-case host names.", remedy)
    for setting_name, check in (("accent_color", palette), ("shop_logo", logo_url)):
        value = getattr(room, setting_name)
        try:
            if value:
                check(value)
        except ValueError as error:
            raise ConfigError(source.where(label, setting_name), f"{error}.") from None
    if room.claim_window > room.hold_for:
        where = source.where(label, "claim_window")
        raise ConfigError(where, "is longer than hold_for.", "Hold places for at least as long.")
