"""What a gateway's metrics and a storefront's log say is read as it was written, or refused with the line."""

import json
import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadtest import scrape
from loadtest.scrape import FormatError, Log, Sample, parse, query

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.floats()
LABELS = st.dictionaries(NAMES.filter(lambda name: name != "le"), TEXTS, max_size=3)
SAMPLES = st.builds(
    lambda name, labels, value: Sample(name, tuple(sorted(labels.items())), value), NAMES, LABELS, NUMBERS
)


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


@given(st.lists(SAMPLES, unique_by=lambda sample: sample.key, max_size=8))
def test_what_is_written_is_read(samples: list[Sample]) -> None:
    """Any names, labels and values come back as they were, quotes, newlines, NaN and infinities included."""
    text = "".join(f"{sample.key} {sample.value!r}\n" for sample in samples)
    read = parse(text)
    assert [(each.name, each.labels) for each in read] == [(each.name, each.labels) for each in samples]
    assert all(same(a.value, b.value) for a, b in zip(read, samples, strict=True))
    assert [scrape.read_key(each.key) for each in read] == [(each.name, each.labels) for each in samples]


@given(LABELS, st.floats(0, 1e6), st.lists(st.floats(0, 20), max_size=20))
def test_an_independent_reader_agrees(labels: dict[str, str], value: float, observed: list[float]) -> None:
    """What the usual library writes is read as the usual library reads it, histograms included."""
    labels = {f"l{name}": text for name, text in labels.items()}
    registry = CollectorRegistry()
    gauge = Gauge("inside", 'People "inside"\nnow', ["of", *labels], registry=registry)
    gauge.labels(of="all", **labels).set(value)
    Counter("joins", "Joins", registry=registry).inc(value)
    histogram = Histogram("wait_seconds", "Waits", registry=registry)
    for each in observed:
        histogram.observe(each)
    text = generate_latest(registry).decode()
    theirs = {
        scrape.write_key(sample.name, sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {sample.key: sample.value for sample in parse(text)} == theirs


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text does anything but give samples, which can be written again, or the error of this module."""
    with suppress(FormatError):
        keys = [each.key for each in parse(text)]
        assert [each.key for each in parse("".join(f"{key} 1\n" for key in keys))] == keys


def test_a_page_of_metrics() -> None:
    """Comments, blanks, timestamps, a comma at the end and either infinity are understood."""
    text = (
        '# HELP a "x"\n# TYPE a gauge\n\na 1\n  b{x="1",} +Inf 1795000000000\r\n'
        'c{ y="2" , x="\\n\\\\" } -Inf\nd NaN\n'
    )
    assert [(each.key, str(each.value)) for each in parse(text)] == [
        ("a", "1.0"),
        ('b{x="1"}', "inf"),
        ('c{x="\\n\\\\",y="2"}', "-inf"),
        ("d", "nan"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a", "no value"),
        ("a one", "'one' is no number"),
        ("a 0x1f", "is no number"),
        ("a 1_000", "is no number"),
        ("a 1 2 3", "more than a value and a time"),
        ("a 1 # exemplar", "more than a value"),
        ("9a 1", "no name"),
        ('a{x="1" 1', "labels do not end"),
        ("a{x=1} 1", "no label"),
        ('a{x="\\t"} 1', "no label"),
        ('a{x="1",x="2"} 1', "a second time"),
        ('a{x="1"}{y="2"} 1', "is more than|is no number"),
        ("a 1\na 2", "occurs twice"),
        ("<html>", "no name"),
    ],
)
def test_what_is_no_metric_is_refused(line: str, says: str) -> None:
    """A page that is something else is not half understood."""
    with pytest.raises(FormatError, match=says) as caught:
        parse(f"# TYPE a gauge\n{line}\n")
    assert str(caught.value).startswith("line ")


SERIES = {
    'joins{room="sale",lane="a"}': [(0.0, 0.0), (10.0, 30.0), (20.0, 90.0), (30.0, 10.0)],
    'joins{room="sale",lane="b"}': [(0.0, 5.0), (10.0, 5.0), (20.0, 5.0), (30.0, 5.0)],
    'joins{room="other"}': [(0.0, 500.0)],
    "joins_total": [(0.0, 7.0)],
}


def test_a_name_alone_adds_up_what_matches() -> None:
    """Series of the name that have the labels are added up moment by moment; longer names are others."""
    assert query(SERIES, "joins")[0] == (0.0, 505.0)
    assert query(SERIES, 'joins{room="sale"}') == [(0.0, 5.0), (10.0, 35.0), (20.0, 95.0), (30.0, 15.0)]
    assert query(SERIES, 'joins{room="sale",lane="b"}')[0] == (0.0, 5.0)
    assert query(SERIES, 'joins{room="none"}') == []


def test_a_rate_survives_a_restart() -> None:
    """Growth per second over the window; a counter that fell began anew and did not shrink."""
    rates: list[Any] = query(SERIES, 'rate(joins{lane="a"}[20s])')
    assert rates == [(10.0, 3.0), (20.0, 4.5), (30.0, pytest.approx(3.5))]
    assert query(SERIES, 'rate(joins{lane="a"}[500ms])') == []


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=30), st.sampled_from([1, 3, 10]))
def test_a_rate_is_the_growth_of_its_window(values: list[float], seconds: int) -> None:
    """One pass over a series finds what adding up each window anew finds."""
    series = [(float(at), value) for at, value in enumerate(values)]
    growth = [0.0] + [b - a if b >= a else b for a, b in pairwise(values)]
    expected = [
        (float(n), pytest.approx(sum(growth[max(0, n - seconds) + 1 : n + 1]) / min(n, seconds), abs=1e-6))
        for n in range(1, len(values))
    ]
    rates: list[Any] = query({"x": series}, f"rate(x[{seconds}s])")
    assert rates == expected


def test_quantiles_of_histograms() -> None:
    """Values lie evenly between bounds, stop at the last finite one, and are of growth if that is asked."""
    metrics = {
        f'wait_bucket{{le="{bound}"}}': [(0.0, 0.0), (10.0, count)]
        for bound, count in (("1", 50.0), ("2.0", 90.0), ("+Inf", 100.0))
    }
    assert query(metrics, "histogram_quantile(0.5, wait)") == [(10.0, 1.0)]
    between: list[Any] = query(metrics, "histogram_quantile(0.7, wait_bucket)")
    assert between == [(10.0, pytest.approx(1.5))]
    assert query(metrics, "histogram_quantile(0.99, wait)") == [(10.0, 2.0)]
    assert query(metrics, "histogram_quantile(0.5, rate(wait[10s]))") == [(10.0, 1.0)]
    assert math.isnan(scrape.quantile({1.0: 5.0}, 0.5))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rate(x)",
        "rate(x[0s])",
        "rate(x[1d])",
        "x[5m]",
        "x y",
        "histogram_quantile(2, x)",
        "sum(x)",
        'x{a="1"',
    ],
)
def test_other_questions_are_refused(text: str) -> None:
    """A question of a kind that is not known is an error, and no zero."""
    with pytest.raises(FormatError):
        scrape.parse_query(text)


def test_scrapes_become_series() -> None:
    """Each scrape adds one value to each series, under the name that a query finds."""
    metrics: dict[str, list[tuple[float, float]]] = {}
    for at in (1.0, 2.0):
        scrape.add(metrics, at, parse(f'a{{x="q\\"q"}} {at * 2}\n'))
    assert query(metrics, 'a{x="q\\"q"}') == [(1.0, 2.0), (2.0, 4.0)]


def line(at: float, **more: object) -> str:
    return json.dumps({"at": at, "visitor": "a", "path": "/", "status": 200, "seconds": 0.1, **more}) + "\n"


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    """Each row comes once, in seconds of the run; rows from before are left out, and half a line waits."""
    path = tmp_path / "shop.log"
    log = Log(path, 1000.0)
    assert log.read() == []
    path.write_text(line(999.5) + line(1001.0) + line(1002.0)[:20])
    assert [row["at"] for row in log.read()] == [1.0]
    assert log.read() == []
    with path.open("a") as file:
        file.write(line(1002.0)[20:] + "\n" + line(1003.0, visitor="ä"))
    assert [(row["at"], row["visitor"]) for row in log.read()] == [(2.0, "a"), (3.0, "ä")]


def test_a_log_written_anew_is_read_anew(tmp_path: Path) -> None:
    """A storefront that starts its log again is followed."""
    path = tmp_path / "shop.log"
    path.write_text(line(1.0) + line(2.0))
    log = Log(path, 0.0)
    assert len(log.read()) == 2
    path.write_text(line(3.0))
    assert [row["at"] for row in log.read()] == [3.0]


@given(st.lists(st.integers(1, 400), max_size=8), st.lists(st.text(max_size=5), min_size=1, max_size=8))
def test_a_log_cut_anywhere_is_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], visitors: list[str]
) -> None:
    """However a log's bytes arrive, the same rows are read."""
    path = tmp_path_factory.mktemp("log") / "shop.log"
    whole = "".join(line(float(n), visitor=v) for n, v in enumerate(visitors)).encode()
    log, rows = Log(path, 0.0), []
    for cut in sorted({min(cut, len(whole)) for cut in cuts} | {len(whole)}):
        path.write_bytes(whole[:cut])
        rows += log.read()
    assert [(row["at"], row["visitor"]) for row in rows] == list(enumerate(visitors))


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '{"at": 1}',
        '{"at": "x", "visitor": "a"}',
        '{"at": NaN, "visitor": "a"}',
        "{}",
        '{"at": 1, "visitor": 7}',
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    """A log of another kind is refused with file and line."""
    path = tmp_path / "shop.log"
    path.write_text(line(1.0) + bad + "\n")
    with pytest.raises(FormatError, match=r"shop\.log:2 "):
        Log(path, 0.0).read()
