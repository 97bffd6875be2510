"""How the values of a scenario's file are read, and how it is said where one is wrong and what was meant."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_HEADER = re.compile(r"\s*\[\[?\s*([\w.\"-]+)\s*\]")
_ASSIGNMENT = re.compile(r"\s*\"?([\w-]+)\"?\s*=")
_Value = TypeVar("_Value")


class ScenarioError(ValueError):
    """A scenario that cannot stand: where, as file:line, what is wrong, and how to mend it."""

    def __init__(self, where: str, what: str, remedy: str) -> None:
        super().__init__(f"{where} {what} {remedy}")
        self.where, self.what, self.remedy = where, what, remedy


class Source:
    """The text of a scenario, and where in it things are.

    Args:
        name: of the file, for errors.
        text: what is in it.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._lines: dict[tuple[str | int, ...], int] = {}
        seen: dict[str, int] = {}
        table: tuple[str | int, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = tuple(header[1].replace('"', "").split("."))
                if line.lstrip().startswith("[["):
                    seen[header[1]] = seen.get(header[1], -1) + 1
                    self._lines.setdefault(table, number)
                    table = (*table, seen[header[1]])
                self._lines.setdefault(table, number)
            elif assignment := _ASSIGNMENT.match(line):
                self._lines.setdefault((*table, assignment[1]), number)

    def at(self, table: tuple[str | int, ...], key: str = "") -> str:
        """Where a key, or else its table, is written: file:line, or the file where it is not."""
        line = self._lines.get((*table, key) if key else table) or self._lines.get(table)
        return f"{self.name}:{line}" if line else self.name

    def unknown(self, given: Iterable[str], known: Iterable[str], table: tuple[str | int, ...]) -> None:
        """Refuse keys that nobody knows.

        Raises:
            ScenarioError: there is one.
        """
        names = list(known)
        for key in given:
            if key not in names:
                remedy = nearest(key, names) or f"Known are {', '.join(names)}."
                raise ScenarioError(self.at(table, key), f"has {key!r}, which means nothing here.", remedy)

    def read(
        self, kind: Callable[[object], _Value], value: object, table: tuple[str | int, ...], key: str
    ) -> _Value:
        """The value of a key, as its kind reads it.

        Raises:
            ScenarioError: it cannot be read.
        """
        try:
            return kind(value)
        except ValueError as error:
            what, remedy = error.args if len(error.args) > 1 else (str(error), "")
            raise ScenarioError(self.at(table, key), f"{key} {what}.", remedy) from error

    def table(self, document: dict[str, Any], name: str) -> dict[str, Any]:
        """A table of the file, empty where it is not there.

        Raises:
            ScenarioError: something else is there.
        """
        found = document.get(name, {})
        if not isinstance(found, dict):
            raise ScenarioError(self.at((), name), f"has {name} as a value.", f"Write a table [{name}].")
        return found

    def tables(self, document: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Tables of one name; a single one may be written without its second brackets.

        Raises:
            ScenarioError: something else is there.
        """
        found = document.get(name, [])
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise ScenarioError(self.at((), name), f"has {name} as a value.", f"Write tables [[{name}]].")
        return found


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a question; empty if nothing is near."""
    close = get_close_matches(name, list(known), 1, 0.6)
    return f"Did you mean {close[0]}?" if close else ""


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, which is no text", "Write it in quotes.")  # noqa: TRY004 - one kind of error for all
    return value


def number(least: float = float("-inf"), most: float = float("inf")) -> Callable[[object], float]:
    """A kind of number, within bounds."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            bounds = f" from {least:g} to {most:g}" if most < float("inf") else f" of at least {least:g}"
            raise ValueError(f"is {value!r}", f"Write a number{bounds if least > float('-inf') else ''}.")
        return float(value)

    return read


def whole(least: int) -> Callable[[object], int]:
    """A kind of whole number, of at least so much."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"is {value!r}", f"Write a whole number of at least {least}.")
        return value

    return read


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"is {value!r}", "Write true or false.")  # noqa: TRY004 - one kind of error for all
    return value


def duration(value: object) -> float:
    """Seconds, from "90s", "5m", "1h30m" or a bare number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    parts = _DURATION.findall(str(value))
    if not isinstance(value, str) or not parts or _DURATION.sub("", value).strip():
        raise ValueError(f"is {value!r}, which is no duration", "Write for example 90s, 5m or 1h30m.")
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)


def choice(*known: str) -> Callable[[object], str]:
    """One of several words."""

    def read(value: object) -> str:
        if value not in known:
            raise ValueError(
                f"is {value!r}", nearest(str(value), known) or f"Write one of {', '.join(known)}."
            )
        return str(value)

    return read


def names(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"is {value!r}", 'Write a list, such as ["shop.example"].')
    return tuple(value)


def rates(value: object) -> tuple[float, ...]:
    """A list of rates."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"is {value!r}", "Write a list of rates, such as [1, 2, 4].")
    return tuple(number(0)(each) for each in value)


def shares(*known: str) -> Callable[[object], dict[str, float]]:
    """A table of weights by name, of which `known` are all, or any if none is given."""

    def read(value: object) -> dict[str, float]:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"is {value!r}", "Write a table, such as { patient = 0.9, hidden = 0.1 }.")
        for name in value:
            if known and name not in known:
                raise ValueError(f"has {name!r}", nearest(name, known) or f"Known are {', '.join(known)}.")
        weights = {name: number(0)(weight) for name, weight in value.items()}
        if not sum(weights.values()):
            raise ValueError("adds up to nothing", "Give at least one of them a weight.")
        return weights

    return read
