"""A run that never was: people at a room that keeps every promise, computed in milliseconds from a seed."""

from dataclasses import replace
from random import Random
from typing import Any

from loadtest.histogram import Histogram
from loadtest.results import Generator, Interval, Results, Story

LIMIT, RATE = 20, 120
SECONDS = 150
GATES: list[dict[str, Any]] = [
    {"measure": "latency", "of": "page:product", "percentile": 95, "from": "intended", "most": 0.8},
    {"measure": "ratio", "of": "errors", "most": 0.01, "window": 10.0, "sustained": 2},
    {"measure": "metric", "query": "waitingroom_stalled", "most": 0.0},
]


def honest(*, seed: int = 1, people: int = 200, slower: float = 1.0, **changes: Any) -> Results:
    """Results of a room of `LIMIT` seats and `RATE` entries a minute, first come, first served.

    Args:
        seed: of all chance.
        people: who come, within 40 s.
        slower: factor on the shop's latencies.
        changes: fields of `Results` to replace.
    """
    chance = Random(seed)
    stories = _stories(chance, people)
    pages = [
        (second, chance.lognormvariate(-2.3, 0.5) * slower)
        for story in stories
        if story.entered is not None
        for second in range(int(story.entered), int(story.ended))
    ]
    product, home = Histogram(), Histogram()
    for index, (_second, seconds) in enumerate(pages):
        (product if index % 2 else home).record(seconds)
    asked = Histogram()
    asked.record(0.004, times=10 * people)
    whole = Results(
        scenario={
            "name": "doors-open",
            "about": "Everybody comes at once.",
            "target": "http://127.0.0.1:8080",
            "seed": seed,
            "scale": 1.0,
            "arrivals": [{"curve": "spike", "peak": 10.0}],
            "room": {"name": "sale", "total_active_users": LIMIT, "new_users_per_minute": RATE},
            "gates": GATES,
        },
        started_at=1_795_000_000.0,
        seconds=float(SECONDS),
        intervals=_intervals(stories, pages),
        stories=stories,
        timings={
            "page:home": home,
            "page:product": product,
            "open:page:product": product,
            "room:status": asked,
        },
        generator=Generator(31.0, 0.004),
        metrics={"waitingroom_stalled": [(float(at), 0.0) for at in range(0, SECONDS, 5)]},
    )
    return replace(whole, **changes)


def _stories(chance: Random, people: int) -> list[Story]:
    began = sorted(chance.uniform(0, 40) for _ in range(people))
    leaving: list[float] = []
    stories: list[Story] = []
    door = 0.0
    for index, at in enumerate(began):
        free = sorted(leaving)[-LIMIT] if len(leaving) >= LIMIT else 0.0
        door = max(door + 60 / RATE, at, free)
        ahead = sum(each > at for each in (story.entered or 0 for story in stories))
        entered = door + (chance.uniform(0, 1.5) if ahead else 0.05)
        ended = entered + chance.uniform(2, 8)
        leaving.append(ended)
        story = Story(index, at, at + 0.002, None, None, entered, ended, chance.choice(["bought", "left"]))
        if ahead:
            joined, wait = at + 0.01, entered - at
            steps = tuple(range(ahead, 0, -max(1, ahead // 5)))
            told = (wait * 0.7, wait * 1.4)
            still = max(joined, door - 0.2)
            story = replace(story, joined=joined, still=still, number=ahead, positions=steps, told=told)
        if entered > SECONDS:
            story = replace(story, entered=None, ended=float(SECONDS), outcome="unfinished")
        stories.append(story)
    return stories


def _intervals(stories: list[Story], pages: list[tuple[int, float]]) -> list[Interval]:
    latency = [Histogram() for _ in range(SECONDS)]
    for second, seconds in pages:
        if second < SECONDS:
            latency[second].record(seconds)
    intervals = []
    for at in range(SECONDS):
        came = sum(at <= story.due < at + 1 for story in stories)
        intervals.append(
            Interval(
                at,
                offered=came,
                started=came,
                waiting=sum(
                    story.joined is not None and story.joined < at + 1 <= (story.entered or SECONDS)
                    for story in stories
                ),
                inside=sum(
                    story.entered is not None and story.entered < at + 1 <= story.ended for story in stories
                ),
                admitted=sum(story.entered is not None and at <= story.entered < at + 1 for story in stories),
                requests=latency[at].count,
                latency=latency[at],
            )
        )
    return intervals


def log_of(results: Results) -> list[dict[str, Any]]:
    """What the storefront would have logged: rows as somebody enters, in between, and as they leave."""
    return [
        {"at": at, "visitor": str(story.index), "path": "/", "status": 200, "seconds": 0.02}
        for story in results.stories
        if story.entered is not None
        for at in (story.entered, (story.entered + story.ended) / 2, story.ended)
    ]
