"""What every setting is, means and may be, and where its value comes from."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from waitingroom.config import INTERNAL, PREFIX, SECTIONS, ConfigError, Settings
from waitingroom.durations import format_duration
from waitingroom.room import Method, Room

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "max_length": "characters, at most"}


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting; all texts, as somebody would write them.

    Attributes:
        key: such as `server.listen`, or `rooms.sale.path`.
        source: where the value comes from.
    """

    key: str
    value: str
    source: str
    default: str
    meaning: str
    bounds: str


def explain(settings: Settings, path: Path | None, environ: Mapping[str, str]) -> list[Explained]:
    """Every setting of every section and room. Secrets are withheld."""
    document = tomllib.loads(path.read_text()) if path else {}
    found = []
    for section, kind in SECTIONS.items():
        values, written = asdict(getattr(settings, section)), document.get(section, {})
        for item in fields(kind):
            source = f"file {path}" if item.name in written else "default"
            variable = f"{PREFIX}{section}__{item.name}".upper()
            if variable in environ:
                source = f"environment {variable}"
            found.append(_explained(item, f"{section}.{item.name}", values[item.name], source))
    found += _rooms(settings, path, document.get("rooms", []))
    return found


def _rooms(settings: Settings, path: Path | None, tables: list[dict[str, Any]]) -> Iterator[Explained]:
    if not settings.rooms:
        for item in _columns():
            yield _explained(item, f"rooms.{item.name}", item.default, "default")
    for room, written in zip(settings.rooms, tables, strict=True):
        for item in _columns():
            source = f"file {path}" if item.name in written else "default"
            yield _explained(item, f"rooms.{room.name}.{item.name}", getattr(room, item.name), source)


def _columns() -> list[Field[Any]]:
    return [item for item in fields(Room) if item.name not in INTERNAL]


def select(rows: list[Explained], key: str) -> list[Explained]:
    """The settings that `key` names: a whole key, its last part, or a section or room.

    Raises:
        ConfigError: none is named so; with the nearest that is.
    """
    chosen = [row for row in rows if _names(row.key, key)]
    if chosen:
        return chosen
    known = sorted({name for row in rows for name in (row.key, row.key.rpartition(".")[2])})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"Did you mean {near[0]}?" if near else "Without a key, all are listed."
    raise ConfigError(key, "is not a setting.", remedy)


def _names(whole: str, key: str) -> bool:
    parts = whole.split(".")
    return key == whole or key == parts[-1] or whole.startswith(f"{key}.") or key == f"{parts[0]}.{parts[-1]}"


def _explained(item: "Field[Any]", key: str, value: object, source: str) -> Explained:
    rules = item.metadata
    secret, duration = rules.get("secret"), rules.get("duration")
    shown = "(withheld)" if secret and value != item.default else _shown(value, duration=bool(duration))
    default = _shown(item.default, duration=bool(duration))
    return Explained(key, shown, source, default, rules["doc"], _bounds(item))


def _bounds(item: "Field[Any]") -> str:
    rules = item.metadata
    if isinstance(item.default, StrEnum):
        return "one of " + ", ".join(Method)
    if "choices" in rules:
        return "one of " + ", ".join(map(str, rules["choices"]))
    limits = [
        f"{words} {_shown(rules[rule], duration=bool(rules.get('duration')))}"
        for rule, words in _BOUNDS.items()
        if rule in rules
    ]
    return ", ".join(limits) or (f"like {rules['pattern']}" if "pattern" in rules else "")


def _shown(value: object, *, duration: bool = False) -> str:
    if duration and isinstance(value, int | float):
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "empty"


def room_values(pairs: list[str]) -> dict[str, Any]:
    """Settings of a room from "key=value", in the types that the admin API takes.

    Raises:
        ConfigError: one is not written so, or is no setting; with the nearest that is.
    """
    known = {item.name: item for item in _columns()}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(pair, "is not written as key=value.", "For example: paused=true")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            remedy = f"Did you mean {near[0]}?" if near else "'waitingroom config explain' lists them."
            raise ConfigError(key, "is not a setting of a room.", remedy)
        values[key] = _typed(known[key], value)
    return values


def _typed(item: "Field[Any]", value: str) -> object:
    """Numbers, switches and lists as such; what cannot be read is left for the gateway to refuse."""
    if isinstance(item.default, tuple):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(item.default, bool):
        return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(
            value, value
        )
    if isinstance(item.default, int) and value.isascii() and value.isdigit():
        return int(value[:20])
    return value
