"""Scenario files: what they say, and what is said about those that cannot stand."""

import re
from pathlib import Path

import pytest

from loadtest import scenario
from loadtest.grammar import ScenarioError, Source
from loadtest.scenario import Gate, Scenario

GOOD = """\
name = "small"
target = "http://127.0.0.1:8080/"
seed = 7

[safety]
owned = ["shop.example"]
most_shoppers = 100

[[arrivals]]
curve = "constant"
rate = 2
duration = "10s"

[[arrivals]]
curve = "spike"
spacing = "regular"
start = "5s"
peak = 8
at = "1s"
rise = "1s"
hold = "2s"
duration = "1m"

[shoppers]
think_median = "200ms"
habits = { patient = 3, bot = 1 }

[room]
name = "sale"
total_active_users = 5

[chain]
home = { product = 1, exit = 1 }

[[gates]]
measure = "latency"
of = "page:product"
from = "intended"
most = 0.8
"""


def written(folder: Path, text: str) -> str:
    path = folder / "small.toml"
    path.write_text(text)
    return str(path)


def test_a_scenario_is_read(tmp_path: Path) -> None:
    """Everything in the file is in the scenario: durations as seconds, curves added up, gates in order."""
    read = scenario.load(written(tmp_path, GOOD))
    assert (read.name, read.seed, read.target) == ("small", 7, "http://127.0.0.1:8080")
    assert read.total == pytest.approx(20 + 8 * 3)
    assert read.rate(8) == 2 + 8
    assert (read.arriving, read.longest) == (65, 65 + 120)
    assert (read.shoppers.think_median, read.shoppers.habits) == (0.2, {"patient": 3, "bot": 1})
    assert read.gates == (Gate("latency", "page:product", since="intended", most=0.8),)
    assert read.chain == {"home": {"product": 1, "exit": 1}}
    assert len(list(read.due())) == 44


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    """Scale and target can be given beside the file, and are checked like its own."""
    path = written(tmp_path, GOOD)
    changed = scenario.load(path, scale=0.5, target="http://shop.example")
    assert changed.total == pytest.approx(22)
    assert changed.target == "http://shop.example"
    with pytest.raises(ScenarioError, match=r"--target may not load shop\.elsewhere"):
        scenario.load(path, target="http://shop.elsewhere")
    with pytest.raises(ScenarioError, match="lets 440 people come, and allows 100"):
        scenario.load(path, scale=10)


def test_a_scenario_can_be_told(tmp_path: Path) -> None:
    """What goes into the results is plain, with the names of the file."""
    told = scenario.load(written(tmp_path, GOOD)).to_dict()
    assert told["gates"][0]["from"] == "intended"
    assert told["arrivals"][0] == {
        "curve": "constant",
        "spacing": "poisson",
        "start": 0,
        "rate": 2,
        "duration": 10,
    }
    assert told["room"]["total_active_users"] == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[room]", "[rom]", r"small\.toml:28 has 'rom', .* Did you mean room\?"),
        ("think_median", "think_medium", r":25 has 'think_medium', .* Did you mean think_median\?"),
        ('"200ms"', '"fast"', r":25 think_median is 'fast', .* 90s, 5m or 1h30m"),
        ("bot = 1", "bott = 1", r":26 habits has 'bott'\. Did you mean bot\?"),
        ("patient = 3, bot = 1", "bot = 0", r":26 habits adds up to nothing"),
        ('"spike"', '"spikes"', r":15 curve is 'spikes'\. Did you mean spike\?"),
        ('hold = "2s"\n', "", r":14 has no hold, which a spike needs"),
        ('hold = "2s"', 'hold = "2m"', r":14 is no spike: rise, hold and fall end at"),
        ("rate = 2", "rate = -2", r":11 rate is -2\. Write a number of at least 0"),
        ("rate = 2", "rate = true", r":11 rate is True"),
        ("rate = 2", "rate = 2\npeak = 3", r":12 has 'peak', which means nothing here"),
        ("seed = 7", "seed = 0.5", r":3 seed is 0\.5\. Write a whole number"),
        ("seed = 7", "seed = ", r"is not TOML: .*line 3"),
        ('name = "small"\n', "", r"small\.toml has no name"),
        (
            'target = "http://127.0.0.1:8080/"',
            'target = "127.0.0.1"',
            r":2 target is '127\.0\.0\.1', which is no",
        ),
        ("127.0.0.1:8080", "shop.elsewhere", r":2 may not load shop\.elsewhere: .* \[safety\] owned"),
        ("127.0.0.1:8080", "192.0.2.1", r":2 may not load 192\.0\.2\.1"),
        ("most_shoppers = 100", "most_shoppers = 10", r":5 lets 44 people come, and allows 10\."),
        ("most_shoppers = 100", "most_minutes = 1", r":5 lasts 1\.1 minutes, and allows 1\."),
        ('owned = ["shop.example"]', "owned = 3", r":6 owned is 3\. Write a list"),
        ('measure = "latency"', 'measure = "latenz"', r":36 measure is 'latenz'\. Did you mean latency\?"),
        ("most = 0.8", "most = 0.8\nabort = 1", r":40 abort is 1\. Write true or false"),
        ("home = { product = 1, exit = 1 }", "home = 3", r":33 home is 3\. Write a table"),
        ("[safety]", "[[safety]]", r":5 has safety as a value\. Write a table \[safety\]"),
    ],
)
def test_a_mistake_is_named_where_it_is(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Each mistake is told with its line, and with what may have been meant."""
    assert old in GOOD
    with pytest.raises(ScenarioError, match=says):
        scenario.load(written(tmp_path, GOOD.replace(old, new, 1)))


def test_a_name_that_is_nowhere_is_compared_with_the_ready_made() -> None:
    """A misspelt name of a ready-made scenario is answered with the right one."""
    with pytest.raises(ScenarioError, match="Did you mean black-friday"):
        scenario.load("blackfriday")


@pytest.mark.parametrize("name", scenario.ready_made())
def test_ready_made_scenarios_stand(name: str) -> None:
    """Each scenario that comes with the kit can be run on this machine, and says what it proves."""
    made: Scenario = scenario.load(name)
    assert made.name == name
    assert made.about
    assert scenario.is_loopback(made.target.split("/")[2].split(":")[0])


def test_the_readme_has_a_row_for_each_scenario() -> None:
    """Each ready-made scenario, habit and curve is in a table of the README, and its example stands."""
    text = (scenario.READY_MADE.parent / "README.md").read_text()
    rows = set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) - {"curve"}
    assert rows == {*scenario.ready_made(), *scenario.HABITS, *scenario.CURVES}
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert scenario.parse(Source("README.md", example)).total > 0


def test_a_scenario_without_arrivals_is_refused(tmp_path: Path) -> None:
    """A run that nobody comes to proves nothing."""
    with pytest.raises(ScenarioError, match="lets nobody come"):
        scenario.load(written(tmp_path, 'name = "none"\ntarget = "http://localhost"\n'))


def test_a_replay_reads_timestamps(tmp_path: Path) -> None:
    """Timestamps are seconds or ISO 8601, beside the scenario; one that is neither is named."""
    (tmp_path / "orders.txt").write_text("# last year\n1764320400\n2025-11-28T09:00:02+00:00\n")
    text = 'name = "r"\ntarget = "http://[::1]:80"\n[[arrivals]]\ncurve = "replay"\nfile = "orders.txt"\n'
    assert [due for _, due in scenario.load(written(tmp_path, text)).due()] == pytest.approx([0, 2])
    (tmp_path / "orders.txt").write_text("1764320400\nnoon\n")
    with pytest.raises(
        ScenarioError, match=r":3 is no replay: line 2 of orders\.txt is no timestamp: 'noon'"
    ):
        scenario.load(written(tmp_path, text))
    with pytest.raises(ScenarioError, match=r":3 is no replay: .*gone\.txt"):
        scenario.load(written(tmp_path, text.replace("orders", "gone")))
