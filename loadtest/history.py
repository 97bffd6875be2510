"""What happened last time: orders or visits a minute, counted from an export or an access log."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from itertools import chain, islice
from pathlib import Path

from loadtest.inputs import BadLines, InputError, has_zone, lines, unix_time

MINUTE = 60
MOST_DAYS = 400
"""Days on either side of the middle of a history; what lies farther off is a stray."""

_MOST_MINUTES = 1_500_000
_SAMPLE = 200
_MOSTLY = 0.8
_DELIMITERS = ",;\t|"
_NAMES = (
    r"^(order[_ ]?(placed|created|date|time)|created|placed|ordered|order_?ts)",
    r"creat|placed|ordered",
    r"date|time|stamp|^ts$|^at$|_at$",
)
_Row = tuple[int, list[str] | str]


@dataclass(frozen=True, slots=True)
class Visits:
    """What an access log tells of visits. `pages` and `seconds` are means a visit.

    Attributes:
        count: visits.
        pages: pages a visit, files such as pictures left out.
        seconds: from the first page of a visit to its last.
        carried: pages a second in the busiest five minutes.
        failed: the share of the pages of those minutes that were answered by 5xx.
    """

    count: int
    pages: float
    seconds: float
    carried: float
    failed: float


@dataclass(frozen=True, slots=True)
class History:
    """Counts a minute, without gaps.

    Attributes:
        kind: "orders" or "visits".
        start: Unix time of the first minute, a multiple of 60.
        counts: orders or visits begun, a minute each.
        bad: lines that were passed over.
        notes: what was assumed, as sentences.
        visits: what only an access log tells.
    """

    kind: str
    start: int
    counts: tuple[int, ...]
    bad: BadLines = field(default_factory=BadLines)
    notes: tuple[str, ...] = ()
    visits: Visits | None = None

    @property
    def busiest(self) -> int:
        """The index of the minute with the highest count."""
        return self.counts.index(max(self.counts))

    def at(self, index: int) -> datetime:
        """When the minute of an index begins, in UTC."""
        return datetime.fromtimestamp(self.start + index * MINUTE, UTC)


@dataclass(slots=True)
class Minutes:
    """Events counted by minute, in memory that strange times cannot fill."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, minute: int, events: int = 1) -> bool:
        """Count events in a minute since 1970; False where there are too many different minutes already."""
        if minute not in self.counts and len(self.counts) >= _MOST_MINUTES:
            return False
        self.counts[minute] += events
        return True

    def series(self) -> tuple[int, tuple[int, ...], int]:
        """The first minute, a count for each minute from there on, and how many events were strays.

        Raises:
            ValueError: nothing was counted.
        """
        if not self.counts:
            raise ValueError("nothing was counted")
        events, half = 0, self.counts.total() / 2
        for minute in sorted(self.counts):
            events += self.counts[minute]
            if events >= half:
                break
        reach = MOST_DAYS * 24 * 60
        kept = {at: count for at, count in self.counts.items() if abs(at - minute) <= reach}
        first, last = min(kept), max(kept)
        strays = self.counts.total() - sum(kept.values())
        return first, tuple(kept.get(at, 0) for at in range(first, last + 1)), strays


def read_orders(
    path: Path,
    *,
    column: str | None = None,
    zone: tzinfo = UTC,
    read: Callable[[int], None] = lambda _: None,
) -> History:
    """Orders a minute from a CSV file with one order a row.

    The time column is the one named `column`; else one whose name says so, or the only one that holds times.
    Times are ISO 8601 or Unix times; those without a zone are taken to be in `zone`.

    Raises:
        InputError: the file cannot be read, or has no usable time in it.
    """
    rows = _rows(path, read)
    sample = list(islice(rows, _SAMPLE))
    table = [cells for _, cells in sample if isinstance(cells, list)]
    place, header, note = _time_column(path, table, column)
    minutes, bad, notes, naive = Minutes(), BadLines(), [note], 0
    for index, (number, cells) in enumerate(chain(sample, rows)):
        if index == 0 and header:
            continue
        if isinstance(cells, str):
            bad = bad.and_one(number, cells)
        elif cells:
            text = cells[place] if place < len(cells) else ""
            seconds = unix_time(text, zone)
            if seconds is None or not minutes.add(int(seconds // MINUTE)):
                bad = bad.and_one(number, "no time in the time column" if seconds is None else "a stray time")
            elif not has_zone(text):
                naive += 1
    if naive:
        notes.append(f"{naive:,} times without a zone were taken as {zone}.")
    return history("orders", minutes, bad, notes, str(path), "one order a row with an ISO or Unix time")


def history(
    kind: str, minutes: Minutes, bad: BadLines, notes: Sequence[str], where: str, expected: str
) -> History:
    """What was counted, as a history.

    Raises:
        InputError: nothing was.
    """
    if not minutes.counts:
        raise InputError(where, f"nothing usable among its lines, {bad}", f"expected: {expected}")
    first, counts, strays = minutes.series()
    if strays:
        notes = [*notes, f"{strays:,} {kind} more than {MOST_DAYS} days from the others were left out."]
    return History(kind, first * MINUTE, counts, bad, tuple(notes))


def _rows(path: Path, read: Callable[[int], None]) -> Iterator[_Row]:
    """The rows of a table with the number of their last line; for an unreadable one, what is wrong."""
    at, overlong = 0, 0

    def texts() -> Iterator[str]:
        nonlocal at, overlong
        for number, line in lines(path, read):
            at = number
            overlong = number if line is None else overlong
            yield "\n" if line is None else line.replace("\0", "") + "\n"

    stream = texts()
    first = next(stream, "")
    delimiter = max(_DELIMITERS, key=first.count)
    table = csv.reader(chain([first] if first else [], stream), delimiter=delimiter)
    while True:
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error:
            yield at, "not a row of the table"
            continue
        if overlong == at > 0:
            yield at, "too long for a row"
        else:
            yield at, cells


def _time_column(path: Path, table: list[list[str]], wanted: str | None) -> tuple[int, bool, str]:
    """Which column holds the times, whether the first row is a header, and a sentence that says so."""
    if not table:
        raise InputError(str(path), "the table is empty", "expected: one order a row with a time in a column")
    body, width = table[1:], max(len(row) for row in table)
    timed = [place for place in range(width) if _mostly_times(body or table, place)]
    header = not any(unix_time(cell) is not None for cell in table[0])
    names = [cell.strip() for cell in table[0]] if header else [f"column {n + 1}" for n in range(width)]
    if wanted is not None:
        if wanted not in names:
            raise InputError(str(path), f"no column {wanted!r}", f"it has {', '.join(map(repr, names))}")
        return names.index(wanted), header, f"The time of an order is its {wanted!r}."
    if not timed:
        raise InputError(
            str(path),
            "no column holds times",
            "expected: ISO 8601 with a time of day (2025-11-28T09:00:12+01:00) or Unix times",
        )
    best = min(timed, key=lambda place: (_rank(names[place] if place < len(names) else ""), place))
    others = [names[place] for place in timed if place != best and place < len(names)]
    aside = f" ({', '.join(map(repr, others))} would be too; choose with --column)" if others else ""
    return best, header, f"The time of an order is its {names[best]!r}{aside}."


def _mostly_times(rows: list[list[str]], place: int) -> bool:
    cells = [row[place] for row in rows if place < len(row) and row[place].strip()]
    return bool(cells) and sum(unix_time(cell) is not None for cell in cells) >= _MOSTLY * len(cells)


def _rank(name: str) -> int:
    """How clearly a column's name says that it is the time of an order, 0 best."""
    for rank, pattern in enumerate(_NAMES):
        if re.search(pattern, name.strip().lower()):
            return rank
    return len(_NAMES)
