"""Scenarios: what comes, how it behaves and what it must find, in one small TOML file."""

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from loadtest import curves
from loadtest.curves import Curve
from loadtest.grammar import (
    ScenarioError,
    Source,
    choice,
    duration,
    flag,
    names,
    nearest,
    number,
    rates,
    shares,
    text,
    whole,
)

READY_MADE = Path(__file__).parent / "scenarios"
HABITS = ("patient", "hidden", "sleeper", "returner", "tabs", "forgetful", "bot", "f5", "retry")
_Table = TypeVar("_Table")


def _key(kind: Callable[[object], Any], default: Any = MISSING, name: str = "") -> Any:
    """A key of a table: how its value is read, its default, and its name where Python has it reserved."""
    metadata = {"kind": kind, "name": name}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Safety:
    """What a run never does.

    Attributes:
        owned: hosts, besides loopback, that may be loaded: those that you answer for.
        most_shoppers: arrivals in all; a scenario with more is refused.
        most_minutes: after which it ends by itself, whatever happens.
        at_once: shoppers present at one time; who is due beyond is dropped, and counted.
    """

    owned: tuple[str, ...] = _key(names, ())
    most_shoppers: int = _key(whole(1), 20_000)
    most_minutes: float = _key(number(0.01, 24 * 60), 30.0)
    at_once: int = _key(whole(1), 10_000)


@dataclass(frozen=True)
class Arrivals:
    """One curve of arrivals; several add up. Rates are arrivals a second, times are seconds.

    Attributes:
        curve: its form; `CURVES` says what each needs.
        spacing: "poisson", as people who do not know of each other; or "regular".
        start: when it begins.
        given: its other values, by the names in the file.
        shape: what follows from them, `start` included and without the scale.
    """

    curve: str
    spacing: str
    start: float
    given: dict[str, Any]
    shape: Curve = field(compare=False)


@dataclass(frozen=True)
class Shoppers:
    """What people are like.

    Attributes:
        journey: what they do in the shop: "shop", or module:function of one's own.
        patience_scale: of the Weibull distribution of how long they wait in line, in seconds.
        patience_shape: of the same; above 1 more of them leave the longer they have waited.
        think_median: of the log-normal time between two pages, in seconds.
        think_sigma: of the same.
        pages_most: pages after which anybody leaves.
        page_patience: seconds that they wait for a page.
        away: median of how long sleepers and returners are away, in seconds.
        finish: seconds that those who have come may take, after the last has.
        habits: shares of how they behave, by name out of `HABITS`.
        languages: shares of the languages they ask for.
        devices: shares of "mobile" and "desktop".
    """

    journey: str = _key(text, "shop")
    patience_scale: float = _key(duration, 1200.0)
    patience_shape: float = _key(number(0.1, 20), 1.5)
    think_median: float = _key(duration, 8.0)
    think_sigma: float = _key(number(0, 5), 0.8)
    pages_most: int = _key(whole(1), 40)
    page_patience: float = _key(duration, 30.0)
    away: float = _key(duration, 90.0)
    finish: float = _key(duration, 120.0)
    habits: dict[str, float] = _key(shares(*HABITS), lambda: {"patient": 1.0})
    languages: dict[str, float] = _key(shares(), lambda: {"en": 1.0})
    devices: dict[str, float] = _key(shares("mobile", "desktop"), lambda: {"mobile": 0.7, "desktop": 0.3})


@dataclass(frozen=True)
class Room:
    """What the waiting room before the target is configured to; the fixed gates judge by it.

    Attributes:
        name: of the room; empty where there is none, or where the page may say it.
        total_active_users: its limit; None where there is no room.
        new_users_per_minute: its rate; None where there is no room.
        metrics: URL of the gateway's metrics.
        origin_log: file into which the storefront logs, as JSON lines.
    """

    name: str = _key(text, "")
    total_active_users: int | None = _key(whole(1), None)
    new_users_per_minute: int | None = _key(whole(1), None)
    metrics: str = _key(text, "")
    origin_log: str = _key(text, "")


@dataclass(frozen=True)
class Gate:
    """A bound that decides between passed and failed.

    Attributes:
        measure: "latency", "ratio", "count" or "metric".
        of: what is measured, such as "page:product", or "errors".
        query: of a metric: its name, with labels in braces.
        percentile: of a latency.
        since: whether latency counts from the "intended" or the actual "start".
        most: highest value that passes, seconds for latency.
        least: lowest value that passes.
        window: seconds over which it is judged; None is the whole run.
        sustained: windows in a row that must be bad.
        abort: whether a bad one ends the run.
        grace: seconds from the start during which it is not judged.
    """

    measure: str = _key(choice("latency", "ratio", "count", "metric"))
    of: str = _key(text, "")
    query: str = _key(text, "")
    percentile: float = _key(number(0, 100), 95.0)
    since: str = _key(choice("start", "intended"), "start", "from")
    most: float | None = _key(number(), None)
    least: float | None = _key(number(), None)
    window: float | None = _key(duration, None)
    sustained: int = _key(whole(1), 1)
    abort: bool = _key(flag, False)
    grace: float = _key(duration, 0.0)


@dataclass(frozen=True)
class Scenario:
    """A rehearsal.

    Attributes:
        name: of the scenario.
        target: origin of the storefront, as shoppers know it.
        seed: of all chance in it.
        scale: by which arrivals are multiplied.
        about: what it proves, for whoever reads the report.
        arrivals: curves that add up.
        chain: by page, the weights of what follows it; empty is the journey's own.
    """

    name: str = _key(text)
    target: str = _key(text)
    seed: int = _key(whole(0), 1)
    scale: float = _key(number(1e-6, 1e6), 1.0)
    about: str = _key(text, "")
    safety: Safety = field(default_factory=Safety)
    arrivals: tuple[Arrivals, ...] = ()
    shoppers: Shoppers = field(default_factory=Shoppers)
    room: Room = field(default_factory=Room)
    chain: dict[str, dict[str, float]] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()

    def due(self, worker: int = 0, workers: int = 1) -> Iterator[tuple[int, float]]:
        """Number and due second of each arrival that one worker of several takes."""
        parts = [(each.shape.scaled(self.scale), each.spacing) for each in self.arrivals]
        return curves.arrivals(parts, self.seed, worker, workers)

    def rate(self, at: float) -> float:
        """Arrivals a second at this moment, in seconds since the run began."""
        return self.scale * sum(each.shape.rate(at) for each in self.arrivals)

    @property
    def total(self) -> float:
        """How many come in all."""
        return self.scale * sum(each.shape.total for each in self.arrivals)

    @property
    def arriving(self) -> float:
        """Seconds during which they come."""
        return max((each.shape.duration for each in self.arrivals), default=0.0)

    @property
    def longest(self) -> float:
        """Seconds after which the run ends whatever happens."""
        return min(self.arriving + self.shoppers.finish, self.safety.most_minutes * 60)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, keys named as in the file and durations in seconds."""
        plain = asdict(replace(self, arrivals=()))
        plain["gates"] = [{"from" if k == "since" else k: v for k, v in g.items()} for g in plain["gates"]]
        plain["arrivals"] = [
            {"curve": each.curve, "spacing": each.spacing, "start": each.start, **each.given}
            for each in self.arrivals
        ]
        return plain


_BUMP: dict[str, Callable[[object], Any]] = {
    "base": number(0),
    "peak": number(0),
    "at": duration,
    "duration": duration,
}
# What each curve needs, and what it may have, besides `curve`, `spacing` and `start`.
CURVES: dict[str, dict[str, Callable[[object], Any]]] = {
    "constant": {"rate": number(0), "duration": duration},
    "ramp": {"from": number(0), "to": number(0), "duration": duration},
    "step": {"rates": rates, "each": duration},
    "spike": _BUMP | {"rise": duration, "hold": duration},
    "wave": _BUMP | {"width": duration},
    "replay": {"file": text, "factor": number(0)},
}
_OPTIONAL = {"base": 0.0, "factor": 1.0}
_TABLES = {"safety": Safety, "shoppers": Shoppers, "room": Room}
_LISTS = ("arrivals", "gates")


def load(name: str, *, scale: float | None = None, target: str | None = None) -> Scenario:
    """Read a scenario, and check all of it.

    Args:
        name: a file, or the name of a ready-made scenario.
        scale: instead of the scenario's own.
        target: instead of the scenario's own.

    Raises:
        ScenarioError: it cannot stand, or may not be run against its target.
    """
    path = _find(name)
    try:
        source = Source(str(path), path.read_text())
    except OSError as error:
        raise ScenarioError(str(path), f"cannot be read: {error.strerror}.", "Check the name.") from error
    scenario = parse(source, path.parent)
    changes: dict[str, Any] = {}
    if scale is not None:
        changes["scale"] = scale
    if target is not None:
        changes["target"] = target
    scenario = replace(scenario, **changes)
    scenario = replace(scenario, target=scenario.target.rstrip("/"))
    _check(scenario, source, "--target" if target else source.at((), "target"))
    return scenario


def parse(source: Source, folder: Path = Path()) -> Scenario:
    """The scenario that a text describes; files that it names lie in `folder`. Its safety is not checked.

    Raises:
        ScenarioError: it cannot stand.
    """
    try:
        document = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(source.name, f"is not TOML: {error}.", "Mend the file.") from error
    extra = {*_TABLES, *_LISTS, "chain"}
    known = [item.name for item in fields(Scenario)]
    source.unknown(document, known, ())
    plain = {key: value for key, value in document.items() if key not in extra}
    tables: dict[str, Any] = {
        name: _table(kind, source.table(document, name), source, (name,)) for name, kind in _TABLES.items()
    }
    given = source.tables(document, "arrivals")
    tables["arrivals"] = tuple(_arrivals(each, source, n, folder) for n, each in enumerate(given))
    tables["gates"] = tuple(
        _table(Gate, each, source, ("gates", n)) for n, each in enumerate(source.tables(document, "gates"))
    )
    tables["chain"] = {
        page: source.read(shares(), weights, ("chain",), page)
        for page, weights in source.table(document, "chain").items()
    }
    return replace(_table(Scenario, plain, source, ()), **tables)


def ready_made() -> list[str]:
    """Names of the scenarios that come with the kit."""
    return sorted(path.stem for path in READY_MADE.glob("*.toml"))


def _find(name: str) -> Path:
    if name in ready_made():
        return READY_MADE / f"{name}.toml"
    path = Path(name)
    if not path.exists():
        hint = nearest(name, ready_made()) or f"Ready-made ones are {', '.join(ready_made())}."
        raise ScenarioError(name, "is no file, and no ready-made scenario.", hint)
    return path


def _table(kind: type[_Table], given: dict[str, Any], source: Source, where: tuple[str | int, ...]) -> _Table:
    """One table of the file as its dataclass."""
    keys: dict[str, Field[Any]] = {
        item.metadata["name"] or item.name: item
        for item in fields(kind)  # type: ignore[arg-type] # every kind is a dataclass
        if "kind" in item.metadata
    }
    source.unknown(given, keys, where)
    values = {}
    for key, item in keys.items():
        if key in given:
            values[item.name] = source.read(item.metadata["kind"], given[key], where, key)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ScenarioError(source.at(where), f"has no {key}.", f"Add {key} = …")
    return kind(**values)


def _arrivals(given: dict[str, Any], source: Source, position: int, folder: Path) -> Arrivals:
    where = ("arrivals", position)
    form = source.read(choice(*CURVES), given.get("curve", ""), where, "curve")
    wanted = CURVES[form]
    source.unknown(given, [*wanted, "curve", "spacing", "start"], where)
    values: dict[str, Any] = {key: default for key, default in _OPTIONAL.items() if key in wanted}
    for key, kind in wanted.items():
        if key in given:
            values[key] = source.read(kind, given[key], where, key)
        elif key not in values:
            raise ScenarioError(source.at(where), f"has no {key}, which a {form} needs.", f"Add {key} = …")
    usual = "regular" if form == "replay" else "poisson"
    spacing = source.read(choice("poisson", "regular"), given.get("spacing", usual), where, "spacing")
    start = source.read(duration, given.get("start", 0), where, "start")
    try:
        shape = _shape(form, values, folder).shifted(start)
    except (ValueError, OSError) as error:
        raise ScenarioError(source.at(where), f"is no {form}: {error}.", "Change its values.") from error
    return Arrivals(form, spacing, start, values, shape)


def _shape(form: str, values: dict[str, Any], folder: Path) -> Curve:
    v = values
    match form:
        case "constant":
            return curves.constant(v["rate"], v["duration"])
        case "ramp":
            return curves.ramp(v["from"], v["to"], v["duration"])
        case "step":
            return curves.step(v["rates"], v["each"])
        case "spike":
            return curves.spike(v["base"], v["peak"], v["at"], v["rise"], v["hold"], v["duration"])
        case "wave":
            return curves.wave(v["base"], v["peak"], v["at"], v["width"], v["duration"])
        case _:
            return curves.replay(curves.moments(folder / v["file"]), v["factor"])


def _check(scenario: Scenario, source: Source, where: str) -> None:
    """What only the whole can tell, safety above all; `where` the target is named."""
    parts = urlsplit(scenario.target)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        what = f"target is {scenario.target!r}, which is no origin."
        raise ScenarioError(where, what, "Write for example http://127.0.0.1:8080, without a path.")
    if not is_loopback(parts.hostname) and parts.hostname not in scenario.safety.owned:
        what = f"may not load {parts.hostname}: it is neither loopback nor listed as yours."
        raise ScenarioError(where, what, "List it in [safety] owned, if you answer for it.")
    if not scenario.total:
        raise ScenarioError(source.name, "lets nobody come.", "Add [[arrivals]] with a curve.")
    if scenario.total > scenario.safety.most_shoppers:
        what = f"lets {scenario.total:,.0f} people come, and allows {scenario.safety.most_shoppers:,}."
        raise ScenarioError(source.at(("safety",)), what, "Lower scale, or raise most_shoppers in [safety].")
    if scenario.arriving > scenario.safety.most_minutes * 60:
        what = f"lasts {scenario.arriving / 60:.1f} minutes, and allows {scenario.safety.most_minutes:g}."
        raise ScenarioError(source.at(("safety",)), what, "Shorten it, or raise most_minutes in [safety].")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback, by its name or address alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
