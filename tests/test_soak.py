"""The soak judges rightly, and two minutes of it hold."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from benchmarks import judges, scene, shoppers
from benchmarks.judges import MEBIBYTE, Finding, Place, Request
from benchmarks.scene import DURATIONS, KILLS, Happened, Scene, schedule
from benchmarks.shoppers import Notes, Trouble
from benchmarks.soak import TROUBLES, Seen, of_troubles, table
from tests.conftest import eventually
from tests.house import KEY
from waitingroom.telemetry import Telemetry
from waitingroom.tickets import Keyring, Token, Use

ROOT = Path(__file__).parents[1]


def memory(grows: float, seconds: int = 600, level: float = 60 * MEBIBYTE) -> list[judges.Point]:
    """A sample a second of a process that grows by so many bytes, with the noise of an allocator."""
    chance = Random(7)
    return [
        (1000 + at, level + grows * at / seconds + chance.choice((0, 0, 0, MEBIBYTE / 2)))
        for at in range(seconds + 1)
    ]


def place(number: int, waited: float, called: float = math.inf, *, absent: bool = False) -> Place:
    """Somebody who was heard of at 100 s, told to wait until `waited`, and called then if at all."""
    return Place(number, 100.0, waited, called, absent)


def seen(folder: Path, *troubles: Trouble) -> Seen:
    """A run in which the storefront refused from 100 s to 103 s, and a gateway was killed at 200 s."""
    stage = Scene(folder, 10, 60, None)
    stage.happened = [Happened("origin refusing", 100, 103), Happened("gateway killed", 200, 202)]
    return Seen(stage, Notes(troubles=list(troubles)))


def troubles(folder: Path, *found: Trouble) -> set[str]:
    """The headings that do not hold."""
    return {finding.name for finding in of_troubles(seen(folder, *found)) if not finding.held}


@pytest.mark.parametrize(("grows", "held"), [(0, True), (0.8, True), (1.4, False), (20, False)])
def test_a_leak_is_found_and_noise_is_not(grows: float, *, held: bool) -> None:
    """More than a MiB in ten minutes is a leak, whatever the allocator does meanwhile."""
    points = memory(grows * MEBIBYTE)
    assert (judges.growth(points) <= judges.allowed_growth(points)) is held


def test_a_step_is_no_slope_and_a_slow_leak_is() -> None:
    """One jump at the end, as of a cache, is not taken for a trend; half a MiB a minute for an hour is."""
    jump = [(at, 60.0 * MEBIBYTE + (2 * MEBIBYTE if at > 580 else 0)) for at in range(600)]
    assert judges.growth(jump) < 0.1 * MEBIBYTE
    hour = memory(30 * MEBIBYTE, 3600)
    assert judges.growth(hour) > judges.allowed_growth(hour)


def test_the_bound_of_memory_is_what_it_says() -> None:
    """1 MiB, or 1 % of a large process; in an hour six times as much; and what is still to fill."""
    assert judges.allowed_growth(memory(0)) == MEBIBYTE
    assert judges.allowed_growth(memory(0, level=500 * MEBIBYTE)) == pytest.approx(5 * MEBIBYTE, rel=0.01)
    assert judges.allowed_growth(memory(0, 3600)) == 6 * MEBIBYTE
    assert judges.allowed_growth(memory(0, 60), filling=5000) == MEBIBYTE + 5000


def test_without_a_measurement_nothing_holds() -> None:
    """A process of which there is no series, and a histogram without observations, are not well."""
    assert not Finding("grew", judges.growth([]), 1).held
    assert not Finding("late", judges.quantile({0.1: 0.0, math.inf: 0.0}, 0.99), 1).held
    assert not Finding("pause", judges.longest_pause([1.0]), 30).held
    assert not Finding("entered", 3, 4, least=True).held


def test_the_storefronts_log_tells_who_was_inside() -> None:
    """From the first request until they leave, or until their session has run out since the last one."""
    lines = ["0.0 ada /\n", "1.0 bob /\n", "5.0 ada /\n", "6.0 bob /bye\n", "30.0 ada /\n", "31.0 b"]
    log = judges.read_log(lines)
    assert judges.stays(log, 20, {}) == [(0.0, 20.0), (30.0, 45.0), (1.0, 6.0)]
    assert judges.stays(log, 20, {"ada": 33.0}) == [(0.0, 20.0), (30.0, 33.0), (1.0, 6.0)]
    assert judges.entries(log) == [0.0, 1.0]
    assert judges.entries(log, [(0.5, 2.0)]) == [0.0]


def test_one_too_many_inside_is_seen() -> None:
    """A limit that was passed for an instant is passed; who comes when somebody leaves is not too many."""
    idle = [Request(float(at), f"v{at}", "/") for at in range(6)]
    assert judges.most_at_once(judges.stays(idle, 20, {})) == 6
    assert judges.most_at_once(judges.stays(idle, 20, {f"v{at}": at + 2.5 for at in range(6)})) == 3


def test_more_than_the_rate_is_seen() -> None:
    """Two a second in any window, however short, beside what the rate allows in it."""
    steady = [second / 2 for second in range(100)]
    assert judges.most_over(steady, 2.0) == pytest.approx(1.0)
    assert judges.most_over(sorted([*steady, *(20.1 + one / 100 for one in range(9))]), 2.0) > 9


def test_somebody_overtaken_is_found() -> None:
    """Told to wait long after a higher number was called, though they had never been away."""
    others = [place(number, 140, 140 + number) for number in range(1, 40)]
    assert judges.overtaken([*others, place(50, 190, 191)]) == []
    assert judges.overtaken([*others, place(7, 190)]) == [7]


@pytest.mark.parametrize(
    "innocent",
    [
        place(7, 190, absent=True),  # was away, and passed over
        Place(7, 178.9, 190),  # was not heard of when number 39 was called
        place(7, 155.9),  # the gateway may not have known yet
        place(7, 150, 151),
    ],
)
def test_nobody_is_overtaken_who_was_not_there(innocent: Place) -> None:
    """Absence, a first poll that came too late, and an answer a few seconds old are no inversion."""
    others = [place(number, 140, 140 + number) for number in range(1, 40) if number != 7]
    assert 7 not in judges.overtaken([*others, innocent])


def test_a_number_with_two_holders_is_found() -> None:
    """One visitor may hold a ticket and a pass of the same number; two may not."""
    assert judges.repeated([(1, "ada"), (1, "ada"), (2, "bob")]) == []
    assert judges.repeated([(1, "ada"), (2, "bob"), (1, "cleo")]) == [1]


@pytest.mark.parametrize("kind", [*TROUBLES])
def test_each_trouble_counts(tmp_path: Path, kind: str) -> None:
    """Outside faults any single one fails the run."""
    assert troubles(tmp_path, Trouble(150, kind, "ada", 1, "")) == {TROUBLES[kind]}


def test_only_the_fault_itself_excuses(tmp_path: Path) -> None:
    """A storefront that refuses excuses errors, a killed gateway connections to it, and no more."""
    assert (
        troubles(tmp_path, Trouble(101, "failed", "ada", 0, ""), Trouble(201, "broken", "bob", 1, ""))
        == set()
    )
    assert troubles(tmp_path, Trouble(201, "failed", "ada", 1, "")) == {TROUBLES["failed"]}
    assert troubles(tmp_path, Trouble(201, "broken", "bob", 0, "")) == {TROUBLES["broken"]}
    for kind in ("put out", "lost", "unanswered", "malformed"):
        found = [Trouble(at, kind, "ada", 1, "") for at in (101.0, 201.0)]
        assert troubles(tmp_path, *found) == {TROUBLES[kind]}


@pytest.mark.parametrize(("minutes", "times"), [(2, 1), (10, 2), (20, 2)])
def test_every_fault_has_its_turn(minutes: int, times: int) -> None:
    """None meets another; in a long run each comes again, and nobody is killed while memory is judged."""
    faults = schedule(60 * minutes)
    counts = Counter(fault.name for fault in faults)
    assert all(counts[name] >= times for name in DURATIONS)
    assert all(one.at + one.seconds < other.at for one, other in pairwise(faults))
    assert max(fault.at for fault in faults if fault.name in KILLS) < 18 * minutes
    assert faults[-1].at + faults[-1].seconds < 60 * minutes


def test_lateness_is_read_from_the_metrics() -> None:
    """The buckets are those that a gateway exports."""
    telemetry = Telemetry(["sale"])
    for late in (0.002, 0.002, 0.3):
        telemetry.loop_lag(late)
    buckets = scene.lag(scene.read_metrics(telemetry.render()[0].decode()))
    assert judges.quantile(buckets, 0.5) == 0.0025
    assert judges.quantile(buckets, 0.99) == 0.5
    assert buckets[math.inf] == 3


def test_a_token_says_whose_it_is() -> None:
    """The crowd reads number and visitor from what a gateway signs; a number to come is none yet."""
    token = Token(Use.TICKET, "sale", "ada", 42, 1, 10, 1, 2)
    assert shoppers.holder(Keyring([KEY.encode()]).sign(token)) == (42, "ada", "ticket")
    assert shoppers.holder("") == (0, "", "")


def test_the_table_shows_what_did_not_hold() -> None:
    """Each finding has its line, and the first troubles follow."""
    row = {"name": "places lost", "value": 1, "bound": 0, "unit": "", "least": False, "held": False}
    trouble = {"at": 3.0, "kind": "lost", "who": "ada", "gateway": 0, "said": "ended"}
    told = {"machine": "", "seconds": 60.0, "counts": {}, "faults": {}, "cores": {}, "complaints": []}
    lines = table(told | {"findings": [row], "troubles": [trouble]})
    assert "places lost" in lines
    assert "NOT HELD" in lines
    assert "3.0 s  lost: ada at gateway 0: ended" in lines


def test_help_says_how_it_is_called() -> None:
    """The command explains itself without running anything."""
    command = [sys.executable, "-m", "benchmarks.soak", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--minutes MINUTES" in shown.stdout
    assert "--json FILE" in shown.stdout


def names(folder: Path) -> set[str]:
    """What a folder holds."""
    return {path.name for path in folder.iterdir()}


async def launched(tmp_path: Path, minutes: float) -> asyncio.subprocess.Process:
    """A soak in a process of its own, gentle on the machine, whose report goes to a file."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.soak", "--minutes", str(minutes), "--arrivals", "5"),
        *("--json", str(tmp_path / "soak.json")),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_two_minutes_hold(tmp_path: Path) -> None:
    """Two gateways, their store and a shop with everything that befalls them, and every promise is kept."""
    process = await launched(tmp_path, 2)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 190)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, said.decode()
    told = json.loads((tmp_path / "soak.json").read_text())
    assert told["counts"]["entered"] > 100
    assert {*DURATIONS} == {*told["faults"]}


async def test_an_ended_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM ends it with every process that it has started, one that is frozen among them."""
    process = await launched(tmp_path, 2)

    def children() -> list[str]:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    await eventually(lambda: len(children()) == 4, 20)
    started = children()
    os.kill(int(started[0]), signal.SIGSTOP)
    process.terminate()
    said, _ = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, said) == (2, b"Ended before its time; nothing was judged.\n")
    assert not names(Path("/proc")) & set(started)
    assert names(tmp_path) == set()
