"""What the other side says of itself: a gateway's metrics in Prometheus's text format, and the origin's log.

Nothing here opens a connection or keeps time; who does hands over the text, or the file, and the moment.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

Series = Sequence[tuple[float, float]]
"""Samples of one series in order of time: seconds since the run began, and value."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\[\\"n])*)"\s*')
_ESCAPE = re.compile(r'\\([\\"n])')
_VALUE = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_STAMP = re.compile(r"-?\d+")
_WORDS = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf}
_RANGE = re.compile(r"\[(\d+(?:\.\d+)?)(ms|s|m|h)\]")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTILE = re.compile(r"(\d+(?:\.\d+)?)\s*,\s*")


class FormatError(ValueError):
    """A text that is not what it should be, with the line and what is wrong with it."""


@dataclass(frozen=True)
class Sample:
    """One value of a metric, with its labels as (name, value) in order of their names."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float

    @property
    def key(self) -> str:
        """Name and labels as they are written, labels in order; what `Results.metrics` is keyed by."""
        return write_key(self.name, self.labels)


@dataclass(frozen=True)
class Query:
    """A question to scraped series.

    Attributes:
        name: of the metric.
        labels: that series must have; those that they have besides do not matter.
        seconds: over which the growth per second is asked for; None asks for the value itself.
        quantile: between 0 and 1, of the histogram `name` (its buckets are `name_bucket`); None asks for
        none.
    """

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    quantile: float | None = None


def parse(text: str) -> list[Sample]:
    """Samples of one page of metrics. Comments, types and timestamps are passed over.

    Raises:
        FormatError: a line is no sample, or two lines are the same series.
    """
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        sample = _sample(stripped, number)
        if (sample.name, sample.labels) in samples:
            raise FormatError(f"line {number}: {sample.key} occurs twice")
        samples[sample.name, sample.labels] = sample
    return list(samples.values())


def write_key(name: str, labels: Iterable[tuple[str, str]]) -> str:
    """A series as it is written: `name{label="value"}`."""
    escaped = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels))
    return f"{name}{{{escaped}}}" if escaped else name


def read_key(key: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Name and labels of a series, in order of the labels' names.

    Raises:
        FormatError: it is none.
    """
    name, labels, rest = _selector(key.strip())
    if rest:
        raise FormatError(f"{rest!r} is left over in {key!r}")
    return name, labels


def add(metrics: dict[str, list[tuple[float, float]]], at: float, samples: Iterable[Sample]) -> None:
    """Add one scrape, made `at` seconds since the run began, to the series that `Results.metrics` keeps."""
    for sample in samples:
        metrics.setdefault(sample.key, []).append((at, sample.value))


def parse_query(text: str) -> Query:
    """A question: `name`, `name{label="x"}`, `rate(name[30s])` or `histogram_quantile(0.95, name)`.

    `histogram_quantile(0.95, rate(name[30s]))` is the quantile of what was counted in those seconds. Series
    that match are added up.

    Raises:
        FormatError: it is no such question.
    """
    rest, quantile, seconds = text.strip(), None, None
    inner = _called(rest, "histogram_quantile")
    if inner is not None:
        number = _QUANTILE.match(inner)
        if number is None or not 0 <= float(number[1]) <= 1:
            raise FormatError(
                f"{text!r} names no quantile between 0 and 1, as in histogram_quantile(0.95, name)"
            )
        quantile, rest = float(number[1]), inner[number.end() :]
    inner = _called(rest, "rate")
    if inner is None:
        name, labels, rest = _selector(rest)
    else:
        name, labels, rest = _selector(inner)
        window = _RANGE.fullmatch(rest.strip())
        if window is None or not float(window[1]):
            raise FormatError(f"{text!r} says not over how long, as in rate({name}[30s])")
        seconds, rest = float(window[1]) * _UNITS[window[2]], ""
    if rest.strip():
        raise FormatError(f"{rest.strip()!r} is left over in {text!r}")
    return Query(name.removesuffix("_bucket") if quantile is not None else name, labels, seconds, quantile)


def query(metrics: Mapping[str, Series], text: str) -> list[tuple[float, float]]:
    """The answer to a question at each scrape that has one, as (seconds since the run began, value).

    Raises:
        FormatError: it is no question that `parse_query` knows.
    """
    asked = parse_query(text)
    if asked.quantile is None:
        return _added(_asked(series, asked) for _labels, series in _matching(metrics, asked.name, asked))
    bounds: dict[float, list[list[tuple[float, float]]]] = {}
    for labels, series in _matching(metrics, f"{asked.name}_bucket", asked):
        bounds.setdefault(_number(dict(labels).get("le", "NaN")), []).append(_asked(series, asked))
    added = {bound: dict(_added(series)) for bound, series in bounds.items() if not math.isnan(bound)}
    moments = sorted({at for counts in added.values() for at in counts})
    at_each = ((at, {bound: counts[at] for bound, counts in added.items() if at in counts}) for at in moments)
    answers = ((at, quantile(buckets, asked.quantile)) for at, buckets in at_each)
    return [(at, value) for at, value in answers if not math.isnan(value)]


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Quantile of a histogram, given as counts up to each bound (infinity among them), cumulative.

    Between two bounds values are taken to lie evenly, as Prometheus does; beyond the last finite bound it is
    that bound. NaN for an empty histogram, or one without an infinite bound.
    """
    bounds = sorted(buckets)
    total = buckets.get(math.inf, 0.0)
    if total <= 0 or len(bounds) < 2:  # noqa: PLR2004 - a bound and infinity
        return math.nan
    rank, below, reached = share * total, min(0.0, bounds[0]), 0.0
    for bound in bounds:
        count = max(buckets[bound], reached)
        if count >= rank and count > reached:
            return (
                below
                if math.isinf(bound)
                else below + (bound - below) * max(0.0, rank - reached) / (count - reached)
            )
        if not math.isinf(bound):
            below, reached = bound, count
    return below


class Log:
    """The origin's log, JSON lines, read as it grows.

    Args:
        path: of the file; it may come later, and may be written anew.
        started_at: Unix seconds at which the run began; rows from before it are left out.
    """

    def __init__(self, path: Path, started_at: float) -> None:
        self._path = path
        self._started_at = started_at
        self._offset = 0
        self._lines = 0
        self._half = b""

    def read(self) -> list[dict[str, Any]]:
        """Rows since the last call, `at` in seconds since the run began. A line without an end waits for it.

        Raises:
            FormatError: a line is no JSON object with `at` and `visitor`.
            OSError: the file is there and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset, self._lines, self._half = 0, 0, b""
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(new)
        *lines, self._half = (self._half + new).split(b"\n")
        return list(self._rows(lines))

    def _rows(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for line in lines:
            self._lines += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                at = float(row["at"]) - self._started_at
                visitor = row["visitor"]
            except (ValueError, KeyError, TypeError) as error:
                what = f"is no row of a log ({type(error).__name__}: {error})"
                raise FormatError(f"{self._path}:{self._lines} {what}") from error
            if not isinstance(visitor, str | None) or not math.isfinite(at):
                raise FormatError(f"{self._path}:{self._lines} has no time, or a visitor that is no text")
            if at >= 0:
                yield {**row, "at": at}


def _sample(line: str, number: int) -> Sample:
    try:
        name, labels, rest = _selector(line)
        value, *stamp = rest.split()
        if len(stamp) > 1 or not all(_STAMP.fullmatch(each) for each in stamp):
            raise FormatError(f"{rest.strip()!r} is more than a value and a time")
        return Sample(name, labels, _number(value))
    except ValueError as error:
        said = error if isinstance(error, FormatError) else "there is no value"
        raise FormatError(f"line {number}: {said} in {line[:100]!r}") from error


def _number(text: str) -> float:
    word = _WORDS.get(text.lower())
    if word is not None:
        return word
    if not _VALUE.fullmatch(text):
        raise FormatError(f"{text!r} is no number")
    return float(text)


def _selector(text: str) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Name and labels that a text begins with, and what follows them."""
    name = _NAME.match(text)
    if name is None:
        raise FormatError(f"there is no name at the start of {text[:60]!r}")
    rest = text[name.end() :]
    if not rest.lstrip(" \t").startswith("{"):
        return name[0], (), rest
    rest, labels = rest.lstrip(" \t")[1:].lstrip(" \t"), dict[str, str]()
    while not rest.startswith("}"):
        label = _LABEL.match(rest)
        if label is None or label[1] in labels:
            raise FormatError(f"there is no label, or one a second time, at {rest[:60]!r}")
        labels[label[1]] = _ESCAPE.sub(lambda mark: "\n" if mark[1] == "n" else mark[1], label[2])
        rest = rest[label.end() :]
        if rest.startswith(","):
            rest = rest[1:].lstrip(" \t")
        elif not rest.startswith("}"):
            raise FormatError(f"labels do not end at {rest[:60]!r}")
    return name[0], tuple(sorted(labels.items())), rest[1:]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _called(text: str, function: str) -> str | None:
    """What stands in the parentheses of a function; None if the text is no call of it."""
    found = re.fullmatch(rf"{function}\s*\((.*)\)\s*", text.strip(), re.DOTALL)
    return found[1].strip() if found else None


def _matching(
    metrics: Mapping[str, Series], name: str, asked: Query
) -> Iterator[tuple[tuple[tuple[str, str], ...], Series]]:
    for key, series in metrics.items():
        if key.startswith(name):
            found, labels = read_key(key)
            if found == name and set(asked.labels) <= set(labels):
                yield labels, series


def _asked(series: Series, asked: Query) -> list[tuple[float, float]]:
    return list(series) if asked.seconds is None else _rate(series, asked.seconds)


def _rate(series: Series, seconds: float) -> list[tuple[float, float]]:
    """Growth per second over the last `seconds` at each sample; a fall is a counter that began anew."""
    answers, oldest, grown = [], 0, 0.0
    growth = [0.0]
    for (_before, one), (_after, other) in pairwise(series):
        growth.append(other - one if other >= one else other)
    for index, (at, _value) in enumerate(series):
        grown += growth[index]
        while series[oldest][0] < at - seconds:
            oldest += 1
            grown -= growth[oldest]
        if oldest < index:
            answers.append((at, grown / (at - series[oldest][0])))
    return answers


def _added(parts: Iterable[Iterable[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Series added up at each moment that any of them has."""
    total: dict[float, float] = {}
    for series in parts:
        for at, value in series:
            total[at] = total.get(at, 0.0) + value
    return sorted(total.items())
