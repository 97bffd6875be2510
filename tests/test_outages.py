import math
from pathlib import Path

import pytest

from tests.fleet import Fleet, Seen, Visitor
from tests.outages import FAULTS, SEATS, Guest, Verdict, held, hold, judge


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["unreachable", "killed, emptied"])
async def test_a_store_that_fails_costs_nobody_anything(tmp_path: Path, fault: str) -> None:
    """Nobody inside notices, no place is lost, the order holds, and people soon enter again."""
    async with held(tmp_path, 2.0, tick=0.5) as (fleet, sale):
        told = await hold(fleet, sale, FAULTS[fault], before=1.0, after=1.5, crowd=1)
    assert (told.failed, told.lost, told.repeated, told.inversions) == (0, 0, 0, 0)
    assert told.served == told.came > 12
    assert told.statuses == {200}
    assert told.inside <= SEATS
    assert told.overtaken <= SEATS
    assert told.resumed < 5
    # Far below the time-out of a call to the store, on a machine that has other things to do.
    assert told.slowest < 0.3


class _Logged(Fleet):
    """A fleet of which there is only the storefront's log."""

    def __init__(self, seen: list[Seen]) -> None:
        self._seen = seen

    def log(self) -> list[Seen]:
        return self._seen


def _guest(name: str, came: float, *numbers: int) -> Guest:
    fleet = _Logged([])
    return Guest(Visitor(name, fleet, 0), came, list(numbers), entered=came + 1)


def test_the_judge_sees_what_is_wrong() -> None:
    """Too many inside, a number given twice, a place lost, an order swapped, and nobody entering any more."""
    guests = [_guest("a", 0.0, 9), _guest("b", 5.0, 3), _guest("c", 6.0, 3, 4), _guest("d", 7.0)]
    stays = [Seen(at, name, "/") for name, at in zip("abcd" * 2, [1.0, 2, 3, 4, 9, 9, 9, 9], strict=True)]
    told = judge(Verdict(), guests, _Logged(sorted(stays, key=lambda seen: seen.at)), ended=8.0)
    assert (told.inside, told.repeated, told.lost, told.inversions, told.overtaken) == (4, 1, 2, 2, 2)
    assert told.resumed == math.inf
