"""What several processes have counted, as one.

Each metric says in the table how it is combined; see `metrics.Combine`. Nothing here knows a process or a
socket: figures come as the plain values of `Telemetry.export`, and times are arguments.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from waitingroom.metrics import METRICS, NO_ROOM, OF_THE_FIRST, Distribution, families, forget

Labels = tuple[str, ...]

_STORE = [row.name for row in METRICS if row.combine == "store"]
_AGE = next(row.name for row in METRICS if row.combine == "age")
"""How long ago a worker has heard of what `_STORE` says."""


def _numbers() -> dict[str, defaultdict[Labels, float]]:
    return {row.name: defaultdict(float) for row in METRICS if row.kind != "histogram"}


def _distributions() -> dict[str, defaultdict[Labels, Distribution]]:
    return {
        row.name: defaultdict(partial(Distribution, row.buckets))
        for row in METRICS
        if row.kind == "histogram"
    }


@dataclass(slots=True)
class Figures:
    """What one process has counted, or several together: by metric and labels.

    Attributes:
        process: what the client library says of the process itself, by name.
    """

    numbers: dict[str, defaultdict[Labels, float]] = field(default_factory=_numbers)
    distributions: dict[str, defaultdict[Labels, Distribution]] = field(default_factory=_distributions)
    process: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Figures":
        """The figures of an export; metrics that this version does not know are passed over."""
        found = cls()
        for name, known in found.numbers.items():
            known.update((tuple(labels), value) for labels, value in document["numbers"].get(name, ()))
        for name, series in found.distributions.items():
            for labels, counts, total in document["distributions"].get(name, ()):
                series[tuple(labels)].add(counts, total)
        found.process.update(document["process"])
        return found


class Told(NamedTuple):
    """What a worker has told of itself, and how many seconds ago."""

    figures: Figures
    age: float


class Total:
    """What a gateway of several processes has counted since its supervisor started."""

    def __init__(self) -> None:
        self._dead = Figures()
        self._heard: dict[Labels, tuple[float, dict[str, float]]] = {}

    def bury(self, figures: Figures) -> None:
        """Keep what a worker had counted that is no more, lest a counter go back."""
        for row in METRICS:
            if row.combine == "sum" and row.kind != "gauge":
                _add(self._dead, figures, row.name)
        for name, value in figures.process.items():
            if name.endswith("_total"):
                self._dead.process[name] += value

    def forget(self, rooms: Iterable[str]) -> None:
        """Keep nothing of the dead and of the store but what concerns these rooms."""
        kept = {NO_ROOM, *rooms}
        self._heard = {labels: heard for labels, heard in self._heard.items() if labels[0] in kept}
        forget(self._dead.numbers, self._dead.distributions, lambda room: room not in kept)

    def combine(self, own: Figures, living: Sequence[Told], now: float) -> Figures:
        """The figures of the gateway at `now`, in monotonic seconds.

        Args:
            own: what the supervisor says of itself.
            living: what each worker has told last.
            now: only differences count.
        """
        total = Figures()
        figures = [own, *(told.figures for told in living)]
        for row in METRICS:
            if row.combine == "sum":
                for part in (*figures, self._dead):
                    _add(total, part, row.name)
            elif row.combine == "own":
                total.numbers[row.name] = own.numbers[row.name]
            elif row.combine == "worst":
                total.numbers[row.name] = _worst([part.numbers[row.name] for part in figures])
        self._combine_store(total, living, now)
        for part in (*figures, self._dead):
            for name, value in part.process.items():
                total.process[name] += value
        total.process.update({name: own.process[name] for name in OF_THE_FIRST})
        return total

    def _combine_store(self, total: Figures, living: Sequence[Told], now: float) -> None:
        """What the store says, as it was told last; ages go on growing when nobody is left to tell."""
        ages = total.numbers[_AGE]
        for told in living:
            numbers = told.figures.numbers
            for room, age in numbers[_AGE].items():
                heard = now - told.age - age
                ages[room] = max(now - heard, ages.get(room, 0.0))
                values = {name: numbers[name][room] for name in _STORE if room in numbers[name]}
                # One who heard of it earlier may be all who are left: what was said is not taken back.
                if values and heard >= self._heard.get(room, (heard, {}))[0]:
                    self._heard[room] = heard, values
        for room, (heard, values) in self._heard.items():
            ages.setdefault(room, now - heard)
            for name, value in values.items():
                total.numbers[name][room] = value


def _add(total: Figures, part: Figures, name: str) -> None:
    if name in total.numbers:
        for labels, value in part.numbers[name].items():
            total.numbers[name][labels] += value
    else:
        for labels, observed in part.distributions[name].items():
            total.distributions[name][labels].add(observed.counts, observed.total)


def _worst(parts: Iterable[Mapping[Labels, float]]) -> defaultdict[Labels, float]:
    worst: defaultdict[Labels, float] = defaultdict(float)
    for part in parts:
        for labels, value in part.items():
            worst[labels] = max(value, worst.get(labels, value))
    return worst


@dataclass(slots=True)
class Export:
    """Figures as Prometheus reads them; a `Collector` by what it does."""

    figures: Figures

    def collect(self) -> Iterator[Metric]:
        """Every row of the table, then what concerns the processes."""
        yield from families(self.figures.numbers, self.figures.distributions)
        for known in ProcessCollector(registry=None).collect():
            family = CounterMetricFamily if known.type == "counter" else GaugeMetricFamily
            name = known.samples[0].name
            yield family(known.name, known.documentation, value=self.figures.process[name])

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that the `Accept` header asks for, with its `Content-Type`."""
        encode, content_type = choose_encoder(accept)
        return encode(cast("CollectorRegistry", self)), content_type
