"""A judged run as one HTML page that asks nothing of the network: what its template says and draws."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from loadtest import charts, promises
from loadtest.bounds import merged, share
from loadtest.charts import clock, duration, percent
from loadtest.gates import MOST_CPU, MOST_DROPPED, MOST_LAG, Verdict
from loadtest.report import OUTCOME_WORDS, figures, started
from loadtest.results import OUTCOMES, Interval, Results, Story

_ROWS = 24
_COLUMNS = 24
_TENTHS = 10


@dataclass(frozen=True)
class Key:
    """What a colour stands for."""

    name: str
    ink: str
    dash: bool = False


@dataclass(frozen=True)
class Path:
    """One path of a picture: `kind` says how it is drawn, `ink` in which colour."""

    kind: str
    ink: str
    d: str


@dataclass(frozen=True)
class Tick:
    """A word at an axis, `at` per cent of its length; `side` where it may not stick out."""

    at: float
    text: str
    side: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture, and the same in words.

    Attributes:
        title: of it.
        text: what it shows, for those who do not see it.
        top: the highest value of its scale.
        paths: in the order in which they are drawn.
        keys: what the colours stand for.
        grid: path of the lines that help the eye.
        axis: words below.
        tall: whether it needs height.
    """

    title: str
    text: str
    top: str
    paths: list[Path]
    keys: list[Key] = field(default_factory=list)
    grid: str = ""
    axis: list[Tick] = field(default_factory=list)
    tall: bool = False


def as_html(results: Results, verdict: Verdict) -> str:
    """The report: self-contained, without scripts, for any screen."""
    environment = Environment(
        loader=PackageLoader("loadtest"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    scenario = results.scenario
    return environment.get_template("report.html").render(
        name=scenario.get("name", "A run"),
        about=scenario.get("about", ""),
        target=scenario.get("target", ""),
        verdict=verdict,
        figures=figures(results),
        started=started(results),
        lasted=f"{clock(results.seconds)} long",
        scenario=json.dumps(scenario, indent=2, ensure_ascii=False),
        **_course(results),
        **_waits(results.stories),
        **_order(results.stories),
        **_seen(results),
        health=_health(results),
    )


def _course(results: Results) -> dict[str, Any]:
    seconds = results.intervals
    groups = [[seconds[index] for index in group] for group in charts.buckets(len(seconds))]
    end = float(len(seconds))
    moments = charts.ticks(end)
    drawn = [*_crowd(results, groups), *_shop(groups)]
    grid = charts.upright(moments, end)
    drawn = [_with(chart, grid=grid) for chart in drawn]
    if drawn and seconds:
        drawn[-1] = _with(drawn[-1], axis=_axis(moments, end, clock))
    size = len(groups[0]) if groups else 1
    return {
        "course": drawn,
        "unit": "seconds" if size == 1 else f"steps of {size} s",
        "course_heads": (
            *("From", "Offered/s", "Started/s", "Admitted/s", "Waiting", "Inside"),
            *("Pages/s", "Errors", "p50", "p95"),
        ),
        "course_rows": [
            _course_row([seconds[index] for index in group]) for group in charts.buckets(len(seconds), _ROWS)
        ],
    }


def _crowd(results: Results, groups: Sequence[Sequence[Interval]]) -> list[Chart]:
    room = results.scenario.get("room") or {}
    limit, rate = room.get("total_active_users"), room.get("new_users_per_minute")
    offered, begun = _mean(groups, "offered"), _mean(groups, "started")
    admitted = _mean(groups, "admitted")
    waiting, inside = _most(groups, "waiting"), _most(groups, "inside")
    return [
        _curves("Arrivals a second", [("offered", "a", "", offered), ("started", "d", "dash", begun)]),
        _curves("Waiting", [("people", "b", "", waiting)], filled=True),
        _curves("Inside", [("people", "a", "", inside)], filled=True, limit=limit),
        _curves("Admitted a second", [("people", "c", "", admitted)], filled=True, limit=rate and rate / 60),
    ]


def _shop(groups: Sequence[Sequence[Interval]]) -> list[Chart]:
    latency = [merged(interval.latency for interval in group) for group in groups]
    median, slow = ([each.percentile(percent) for each in latency] for percent in (50, 95))
    errors, requests = _mean(groups, "errors"), _mean(groups, "requests")
    return [
        _curves("Pages of the shop", [("p95", "b", "", slow), ("median", "a", "", median)], unit=duration),
        _curves("Pages a second", [("asked for", "a", "", requests), ("failed", "d", "", errors)]),
    ]


def _mean(groups: Sequence[Sequence[Interval]], name: str) -> list[float]:
    return [sum(getattr(each, name) for each in group) / len(group) for group in groups]


def _most(groups: Sequence[Sequence[Interval]], name: str) -> list[float]:
    return [float(max(getattr(each, name) for each in group)) for group in groups]


def _curves(
    title: str,
    curves: Sequence[tuple[str, str, str, Sequence[float]]],
    *,
    filled: bool = False,
    limit: float | None = None,
    unit: Callable[[float], str] = lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}",  # noqa: PLR2004 - from there on whole numbers
) -> Chart:
    """Curves (name, ink, kind of path, values) over the whole run, on one scale, with their limit."""
    highest = charts.top([*(value for *_, values in curves for value in values), limit or 0])
    paths = [
        Path("fill", ink, charts.area(values, highest)) for _name, ink, _kind, values in curves if filled
    ]
    if limit:
        paths.append(Path("dash", "s", charts.level(limit, highest)))
    paths += [Path(kind, ink, charts.line(values, highest)) for _name, ink, kind, values in curves]
    keys = [Key(name, ink, dash=bool(kind)) for name, ink, kind, _values in curves]
    keys += [Key(f"limit {unit(limit)}", "s", dash=True)] if limit else []
    peaks = (
        f"{name} up to {unit(peak)}"
        for name, _ink, _kind, values in curves
        if (peak := _peak(values)) is not None
    )
    text = f"{title} over time: {'; '.join(peaks) or 'no data'}."
    return Chart(title, text + (f" The limit is {unit(limit)}." if limit else ""), unit(highest), paths, keys)


def _peak(values: Iterable[float]) -> float | None:
    return max((value for value in values if not math.isnan(value)), default=None)


def _with(chart: Chart, **changes: Any) -> Chart:
    return Chart(**{**chart.__dict__, **changes})


def _axis(moments: Sequence[float], end: float, unit: Callable[[float], str]) -> list[Tick]:
    def tick(at: float) -> Tick:
        place = 100 * at / end
        return Tick(round(place, 2), unit(at), "first" if place < 4 else "last" if place > 94 else "")  # noqa: PLR2004 - as wide as half a word

    return [tick(at) for at in moments]


def _course_row(part: Sequence[Interval]) -> list[str]:
    latency = merged(interval.latency for interval in part)
    rates = [
        f"{sum(getattr(e, name) for e in part) / len(part):.1f}"
        for name in ("offered", "started", "admitted")
    ]
    most = [f"{max(getattr(e, name) for e in part):,}" for name in ("waiting", "inside")]
    pages = f"{sum(e.requests for e in part) / len(part):.1f}"
    errors = f"{sum(e.errors for e in part):,}"
    return [
        clock(part[0].at),
        *rates,
        *most,
        *(pages, errors, duration(latency.percentile(50)), duration(latency.percentile(95))),
    ]


def _waits(stories: Sequence[Story]) -> dict[str, Any]:
    people = sorted(
        (each for each in promises.present(stories) if each.joined is not None),
        key=lambda each: each.joined or 0,
    )
    waits = [promises.waited(story) for story in people]
    kept, told = promises.kept_word(stories)
    gone = [story for story in stories if story.outcome == "gave_up"]
    if not people:
        said = "Nobody waited and was let in."
        return {"waits_said": said, "waits": [], "waits_rows": [], "waits_heads": ()}
    ranked = sorted(waits)
    said = (
        f"{len(people):,} people waited all along and were let in: half of them within "
        f"{duration(_rank(ranked, 50))}, 95 in 100 within {duration(_rank(ranked, 95))}, "
        f"the last after {duration(ranked[-1])}. Of {told:,} who were told a range, it held "
        f"for {percent(share(kept, told))}. {len(gone):,} gave up."
    )
    counts, wide = _columns(ranked)
    return {
        "waits_said": said,
        "waits": [_distribution(counts, wide), _told([each for each in people if each.told], ranked[-1])],
        "waits_heads": ("Waited", "people"),
        "waits_rows": [
            (f"{duration(index * wide)} to {duration((index + 1) * wide)}", count)
            for index, count in enumerate(counts)
        ],
    }


def _columns(ranked: Sequence[float]) -> tuple[list[int], float]:
    """How many waits fall into each column, and how wide in seconds a column is."""
    wide = charts.top([ranked[-1] / _COLUMNS])
    counts = Counter(int(wait / wide) for wait in ranked)
    return [counts[index] for index in range(max(counts) + 1)], wide


def _distribution(counts: list[int], wide: float) -> Chart:
    end = len(counts) * wide
    mode = max(range(len(counts)), key=counts.__getitem__)
    about = duration((mode + 0.5) * wide)
    text = f"How many people waited how long. Most, {counts[mode]}, waited about {about}."
    paths = [Path("bars", "a", charts.bars(counts))]
    axis = _axis(charts.ticks(end), end, clock) if end >= 1 else []
    return Chart(
        "People by how long they waited", text, f"{charts.top(counts):g}", paths, axis=axis, tall=True
    )


def _told(people: Sequence[Story], longest: float) -> Chart:
    shown = [people[index] for index in charts.thinned(people)]
    points = [(each.joined or 0.0, promises.waited(each)) for each in shown]
    ranges = [(each.joined or 0.0, *each.told) for each in shown if each.told is not None]
    end = max((at for at, _wait in points), default=0.0) * 1.02 + 1
    highest = charts.top(
        [longest, *sorted(high for _at, _low, high in ranges)[: math.ceil(len(ranges) * 0.98)]]
    )
    paths = [
        Path("span", "s", charts.spans(ranges, end, highest)),
        Path("cloud", "b", charts.dots(points, end, highest)),
    ]
    moments = charts.ticks(end)
    text = "By when each person joined: the range of waiting they were told first, and how long they waited."
    return Chart(
        "Told and true, by when people joined",
        text,
        duration(highest),
        paths,
        [Key("told", "s"), Key("true", "b")],
        charts.upright(moments, end),
        _axis(moments, end, clock),
        tall=True,
    )


def _order(stories: Sequence[Story]) -> dict[str, Any]:
    found = promises.order(promises.waits(stories))
    people = sorted(promises.present(stories), key=lambda each: each.joined or 0)
    if not found.pairs:
        return {"order_said": "Too few waited to tell.", "order": [], "order_rows": [], "order_heads": ()}
    said = (
        f"Of {found.pairs:,} pairs of people of whom one surely came first, in {found.overtaken:,} the other "
        f"was inside while the first was told to wait on: Kendall's tau is {found.tau:.4f}, and 1 is "
        f"perfect. One person was overtaken by {found.worst} at worst. People are those who waited, were "
        "there all along, and went in. Who asks seldom goes in some time after the call; nobody barged then."
    )
    admitted = {
        story.index: rank for rank, story in enumerate(sorted(people, key=lambda each: each.entered or 0))
    }
    points = [(rank, admitted[people[rank].index]) for rank in charts.thinned(people)]
    count = len(people)
    return {
        "order_said": said,
        "order": [
            Chart(
                "Order of admission (upwards) by order of arrival",
                f"Each person as a dot, on the line from corner to corner if nobody overtook anybody. {said}",
                f"the last of {count:,}",
                [
                    Path("dash", "s", f"M0 {charts.HEIGHT}L{charts.WIDTH} 0"),
                    Path("cloud", "a", charts.dots(points, count, count)),
                ],
                [Key("a person", "a"), Key("first come, first served", "s", dash=True)],
                axis=[Tick(0, "first to come", "first"), Tick(100, "last to come", "last")],
                tall=True,
            )
        ],
        "order_heads": ("Came as", "people", "median wait", "went in as, on average"),
        "order_rows": [_tenth(people, admitted, group) for group in charts.buckets(count, _TENTHS)],
    }


def _tenth(people: Sequence[Story], admitted: dict[int, int], group: range) -> tuple[str, str, str, str]:
    part = [people[index] for index in group]
    waits = sorted(promises.waited(story) for story in part)
    mean = sum(admitted[story.index] + 1 for story in part) / len(part)
    return (
        f"{group[0] + 1:,} to {group[-1] + 1:,}",
        f"{len(part):,}",
        duration(_rank(waits, 50)),
        f"{mean:,.1f}",
    )


def _rank(ranked: Sequence[float], percent: float) -> float:
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def _seen(results: Results) -> dict[str, Any]:
    people = len(results.stories)
    counts = Counter(story.outcome for story in results.stories)
    by_habit = Counter((story.habit, story.outcome) for story in results.stories)
    habits = sorted({story.habit for story in results.stories})
    timings = [
        (name, f"{each.count:,}", *(duration(each.percentile(part)) for part in (50, 95, 99, 100)))
        for name, each in sorted(results.timings.items())
    ]
    return {
        "outcomes": [
            {
                "name": OUTCOME_WORDS[each],
                "people": f"{counts[each]:,}",
                "share": percent(share(counts[each], people)),
                "width": round(100 * counts[each] / max(1, people), 2),
            }
            for each in OUTCOMES
            if counts[each]
        ],
        "habit_heads": ("Habit", *(OUTCOME_WORDS[each].partition(":")[0] for each in OUTCOMES)),
        "habit_rows": [(habit, *(f"{by_habit[habit, each]:,}" for each in OUTCOMES)) for habit in habits],
        "timing_heads": ("What", "answers", "median", "p95", "p99", "longest"),
        "timing_rows": timings,
        "failure_rows": sorted(results.failures.items(), key=lambda each: -each[1]),
    }


def _health(results: Results) -> list[tuple[str, str, str]]:
    generator = results.generator
    offered = sum(each.offered for each in results.intervals)
    dropped = percent(share(generator.dropped, offered))
    return [
        (
            "Late starts",
            duration(generator.lag_p99),
            f"99 in 100 began no later; {MOST_LAG * 1000:.0f} ms may be",
        ),
        ("Over 50 ms late", f"{generator.late:,}", f"of {offered:,} arrivals"),
        ("Never began", f"{generator.dropped:,}", f"{dropped} of arrivals; {MOST_DROPPED:.1%} may be"),
        ("CPU", f"{generator.cpu_percent_p95:.0f} %", f"of one core, p95; {MOST_CPU:.0f} % may be"),
        ("Workers", f"{results.workers}", f"{generator.lost_workers} of them vanished"),
        ("Target", str(results.scenario.get("target", "")), ""),
        ("Seed, scale", f"{results.scenario.get('seed', '')}, {results.scenario.get('scale', 1.0):g}", ""),
        ("Storefront's log", "none" if results.origin is None else f"{len(results.origin):,} rows", ""),
        ("Scraped metrics", f"{len(results.metrics):,} series", ""),
    ]
