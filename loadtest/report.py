"""A judged run as JSON, JUnit and Markdown, and the figures that all reports open with."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

from loadtest import promises
from loadtest.bounds import Finding, Outcome, merged, share
from loadtest.charts import duration, percent
from loadtest.gates import Verdict
from loadtest.results import OUTCOMES, Results

SCHEMA = 1
"""Of the JSON report; that of the results inside it is their own."""

OUTCOME_WORDS = {
    "bought": "bought",
    "left": "left without buying",
    "gave_up": "gave up waiting",
    "refused": "were refused: the room was full or over",
    "failed": "met an error",
    "lost": "lost their place",
    "unfinished": "were still there at the end",
}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Figure:
    """A number that a report opens with.

    Attributes:
        name: what it is.
        value: as it is read.
        note: what it is to be compared with; may be empty.
        plain: the number itself, in seconds or as a share; NaN where nobody knows.
    """

    name: str
    value: str
    note: str
    plain: float


def figures(results: Results) -> list[Figure]:
    """What a run was in a few numbers."""
    room = results.scenario.get("room") or {}
    offered = sum(each.offered for each in results.intervals)
    peak = max((each.offered for each in results.intervals), default=0)
    inside, _when = promises.most_inside(_stays(results))
    waits = sorted(promises.waited(each) for each in results.stories if each.entered is not None)
    pages = merged(each for name, each in results.timings.items() if name.startswith("page:"))
    errors = share(sum(e.errors for e in results.intervals), sum(e.requests for e in results.intervals))
    outcomes = Counter(each.outcome for each in results.stories)
    kept, told = promises.kept_word(results.stories)
    limit = room.get("total_active_users")
    waiting = max((each.waiting for each in results.intervals), default=0)
    bought = share(outcomes["bought"], len(results.stories))
    return [
        Figure("Arrivals", f"{offered:,}", f"up to {peak:,} a second", offered),
        Figure("Most waiting", f"{waiting:,}", "at once", waiting),
        Figure("Most inside", f"{inside:,}", f"limit {limit:,}" if limit else "no limit", inside),
        Figure("Wait, median", *_duration(_ranked(waits, 50), f"p95 {duration(_ranked(waits, 95))}")),
        Figure("Wait as told", percent(share(kept, told)), f"of {told:,} people", share(kept, told)),
        Figure("Pages, p95", *_duration(pages.percentile(95), f"of {pages.count:,}")),
        Figure("Errors", percent(errors), "of the shop's pages", errors),
        Figure("Bought", percent(bought), f"{outcomes['bought']:,} people", bought),
    ]


def _duration(seconds: float, note: str) -> tuple[str, str, float]:
    return duration(seconds), note, seconds


def _ranked(values: list[float], share: float) -> float:
    return values[max(0, math.ceil(len(values) * share / 100) - 1)] if values else math.nan


def _stays(results: Results) -> list[promises.Stay]:
    if results.origin is None:
        return promises.stays_of_stories(results.stories)
    return promises.stays_of_log(results.origin)


def outcomes(results: Results) -> list[tuple[str, int]]:
    """How it ended for how many shoppers, in words, only what happened."""
    counts = Counter(story.outcome for story in results.stories)
    return [(OUTCOME_WORDS[each], counts[each]) for each in OUTCOMES if counts[each]]


def started(results: Results) -> str:
    """When a run began, in UTC."""
    return datetime.fromtimestamp(results.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_json(results: Results, verdict: Verdict) -> str:
    """Everything: verdict, figures, and the results themselves, as strict JSON: what is not known is null."""
    document = {
        "schema": SCHEMA,
        "verdict": {
            "outcome": verdict.outcome,
            "exit_code": verdict.exit_code,
            "reason": verdict.reason,
            "gates": [asdict(finding) for finding in verdict.findings],
        },
        "figures": {figure.name: figure.plain for figure in figures(results)},
        "results": results.to_json(),
    }
    return json.dumps(strict(document), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def as_junit(results: Results, verdict: Verdict) -> str:
    """A case for each gate, and one for whether the run came to its end: failed is failure, unknown error."""
    whole = Finding(
        "Ran to its end",
        Outcome.INCONCLUSIVE if results.stopped else Outcome.PASSED,
        results.stopped or "whole",
        "whole",
    )
    cases = [whole, *verdict.findings]
    counts = Counter(case.outcome for case in cases)
    name = str(results.scenario.get("name", "load"))
    totals = {
        "name": _xml(f"load {name}"),
        "tests": str(len(cases)),
        "failures": str(counts[Outcome.FAILED]),
        "errors": str(counts[Outcome.INCONCLUSIVE]),
        "time": f"{results.seconds:.3f}",
    }
    root = ET.Element("testsuites", totals)
    when = datetime.fromtimestamp(results.started_at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    suite = ET.SubElement(root, "testsuite", totals | {"timestamp": when, "skipped": "0"})
    for case in cases:
        _case(suite, case, name)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _case(suite: ET.Element, case: Finding, scenario: str) -> None:
    about = {"classname": _xml(f"load.{scenario}"), "name": _xml(case.name), "time": "0"}
    element = ET.SubElement(suite, "testcase", about)
    said = _xml(f"{case.figure}; must be {case.bound}")
    if case.outcome is Outcome.PASSED:
        ET.SubElement(element, "system-out").text = said
        return
    kind = "failure" if case.outcome is Outcome.FAILED else "error"
    ET.SubElement(element, kind, {"message": said, "type": case.outcome}).text = _xml(case.why)


def as_markdown(results: Results, verdict: Verdict) -> str:
    """Short, for a pull request: verdict, figures, and every gate."""
    lines = [
        f"## Load test {_markdown(str(results.scenario.get('name', '')))}: {verdict.outcome}",
        "",
        _markdown(verdict.reason),
        "",
        " · ".join(f"{figure.name} **{figure.value}** ({figure.note})" for figure in figures(results)),
        "",
        "| | gate | found | must be |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {case.outcome} | {_markdown(case.name)} | {_markdown(case.figure)} | {_markdown(case.bound)} |"
        for case in verdict.findings
    ]
    said = [
        f"- {_markdown(case.name)}: {_markdown(case.why)}"
        for case in verdict.findings
        if case.outcome is not Outcome.PASSED and case.why
    ]
    lasted = f"{started(results)}, {results.seconds:.0f} s, {_workers(results.workers)}."
    return "\n".join([*lines, "", *said, *([""] if said else []), lasted, ""])


def strict(value: Any) -> Any:
    """What JSON can hold: numbers that are none become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [strict(each) for each in value]
    return value


def _workers(count: int) -> str:
    return "one worker" if count == 1 else f"{count} workers"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _xml(text: str) -> str:
    """Text without what no XML may hold."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
