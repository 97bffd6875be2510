"""Files that people hand in: read line by line, in bounded memory; errors name the place and the remedy."""

import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path

LONGEST_LINE = 65_536
"""Bytes of a line that are read; a longer one is a bad line."""

_CHUNK = 1 << 20
_NAMED = 5
_EARLIEST, _LATEST = 946_684_800, 4_102_444_800  # the years 2000 to 2100: other numbers are no times
_MILLI, _MICRO = 1e11, 1e14


class InputError(ValueError):
    """A file or number that cannot be used.

    Attributes:
        where: the file with its line, or the option.
        what: what is the matter there.
        remedy: what to do about it.
    """

    def __init__(self, where: str, what: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}; {remedy}")
        self.where, self.what, self.remedy = where, what, remedy


@dataclass(frozen=True, slots=True)
class BadLines:
    """Lines that were passed over: how many, and the first few by number and reason, never by content."""

    count: int = 0
    first: tuple[tuple[int, str], ...] = ()

    def and_one(self, number: int, why: str) -> "BadLines":
        """The same with one more."""
        first = (*self.first, (number, why)) if len(self.first) < _NAMED else self.first
        return BadLines(self.count + 1, first)

    def __str__(self) -> str:
        named = "; ".join(f"line {number}: {why}" for number, why in self.first)
        return f"{self.count:,} unusable" + (
            f" ({named}{'; ...' if self.count > _NAMED else ''})" if named else ""
        )


def lines(path: Path, read: Callable[[int], None] = lambda _: None) -> Iterator[tuple[int, str | None]]:
    """The lines of a plain or gzipped text file with their numbers; None stands for one that is too long.

    Args:
        path: the file; whether it is gzipped is seen from its first bytes.
        read: told how many bytes of the file, as it lies on the disk, have been read so far.

    Raises:
        InputError: the file cannot be read, or its compression is damaged.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            text = gzip.GzipFile(fileobj=file) if packed else file
            yield from _split(text, file, read)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(path), f"damaged compression ({error})", "fetch the file again") from error
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "name a file that can be read") from error


def _split(
    text: io.BufferedIOBase, file: io.BufferedIOBase, read: Callable[[int], None]
) -> Iterator[tuple[int, str | None]]:
    rest, number, overlong = b"", 0, False
    while chunk := text.read(_CHUNK):
        read(file.tell())
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield number, None if overlong or len(line) > LONGEST_LINE else _text(line)
            overlong = False
        if len(rest) > LONGEST_LINE:
            rest, overlong = b"", True
    if rest or overlong:
        yield number + 1, None if overlong else _text(rest)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace").removeprefix("\ufeff")


def unix_time(text: str, zone: tzinfo = UTC) -> float | None:
    """Unix seconds from an ISO 8601 time or a Unix time in s, ms or µs; None where it is neither.

    A date without a time of day is none: it says nothing of a curve. `zone` is taken where none is written.
    """
    text = text.strip()
    try:
        number = float(text) if text[:1].isdigit() else math.nan
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        number /= 1e6 if number >= _MICRO else 1e3 if number >= _MILLI else 1.0
        return number if _EARLIEST <= number < _LATEST else None
    if ":" not in text:
        return None
    iso = text.removesuffix(" UTC").removesuffix(" GMT")
    head, space, offset = iso.rpartition(" ")
    if space and offset[:1] in {"+", "-"}:
        iso = head + offset
    try:
        moment = datetime.fromisoformat(iso)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC if iso != text else zone)
        seconds = moment.timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if _EARLIEST <= seconds < _LATEST else None


def has_zone(text: str) -> bool:
    """Whether a time that `unix_time` takes says its zone itself."""
    tail = text.strip()[10:]
    return ":" not in text or tail.endswith(("Z", "z", "UTC", "GMT")) or "+" in tail or "-" in tail
