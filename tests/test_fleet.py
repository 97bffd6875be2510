import asyncio
import signal
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import accumulate
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.fleet import Fleet, Seen, Visitor, running

TRAVEL = 0.25
"""Seconds that a request may be under way between the store's answer and the storefront's log."""

Port = Callable[[], int]


def stays(log: Iterable[Seen]) -> dict[str, tuple[float, float]]:
    """First and last request of every visitor, in order of the first."""
    found: dict[str, tuple[float, float]] = {}
    for seen in log:
        found[seen.visitor] = found.get(seen.visitor, (seen.at, seen.at))[0], seen.at
    return found


def most_at_once(intervals: Iterable[tuple[float, float]]) -> int:
    """The greatest number of intervals that overlap at one instant."""
    changes = sorted(change for start, end in intervals for change in ((start, 1), (end, -1)))
    return max(accumulate(change for _, change in changes))


def most_over(entries: Iterable[float], rate: float) -> float:
    """The most by which the entries in any window of time exceed `rate` times its length."""
    # From entry i to entry j there are j - i + 1 in (tj - ti): the worst i has the lowest i - rate * ti.
    excess, lowest = 0.0, float("inf")
    for index, at in enumerate(entries):
        lowest = min(lowest, index - rate * at)
        excess = max(excess, index + 1 - rate * at - lowest)
    return excess


def most_overtaken(numbers: Iterable[int]) -> int:
    """The most lower numbers that were still outside when somebody entered."""
    entered = list(numbers)
    outside, most = sorted(entered), 0
    for number in entered:
        ahead = bisect_left(outside, number)
        most = max(most, ahead)
        del outside[ahead]
    return most


async def queue_up(fleet: Fleet, visitors: list[Visitor]) -> None:
    """Have everybody take a number, and poll until the store has heard of all of them."""
    waiting = (await fleet.snapshot()).waiting + len(visitors)
    await asyncio.gather(*(visitor.visit() for visitor in visitors))

    async def seen() -> bool:
        await asyncio.gather(*(visitor.poll() for visitor in visitors))
        return (await fleet.snapshot()).waiting == waiting

    await eventually(seen, 20)


def in_line_by_number(visitors: list[Visitor]) -> Callable[[], Awaitable[bool]]:
    """A condition: each of these is told the position that their number gives them among the others."""

    async def holds() -> bool:
        numbers = sorted(visitor.number for visitor in visitors)
        told = [await visitor.poll() for visitor in visitors]
        return [1 + numbers.index(visitor.number) for visitor in visitors] == [
            document["position"] for document in told
        ]

    return holds


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_crowd_enters_by_number(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """2,000 visitors at two gateways enter by number, within both limits, and nobody meets an error.

    Seats are offered strictly by number, so whoever enters may have passed only people who hold an offer.
    """
    seats, rate = 100, 200
    limits = {"total_active_users": seats, "new_users_per_minute": rate * 60}
    async with running(tmp_path, valkey_url, free_port, **limits) as fleet:
        crowd = fleet.visitors(2000)
        first, rest = crowd[:seats], crowd[seats:]
        await asyncio.gather(*(visitor.enter() for visitor in first))
        await queue_up(fleet, rest)
        shopping = [asyncio.create_task(visitor.shop()) for visitor in rest]
        await asyncio.gather(*(visitor.leave() for visitor in first))
        await asyncio.wait_for(asyncio.gather(*shopping), 90)
        inside = stays(fleet.log())
    numbers = {visitor.name: visitor.number for visitor in crowd}
    assert len(inside) == len(set(numbers.values())) == len(crowd)
    assert sum((visitor.statuses for visitor in crowd), Counter()).keys() == {200}
    assert most_at_once(inside.values()) <= seats
    worth = rate * fleet.tick
    assert most_over((start for start, _ in inside.values()), rate) <= worth + rate * TRAVEL
    assert most_overtaken(numbers[name] for name in inside) <= seats


async def test_one_claim_at_two_gateways(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """A seat claimed at both gateways at once is one seat, and nobody else's turn is used up."""
    async with running(tmp_path, valkey_url, free_port, total_active_users=2) as fleet:
        ada, bob, cleo, dora = fleet.visitors(4)
        for visitor in (ada, bob):
            await visitor.enter()
        for visitor in (cleo, dora):
            await queue_up(fleet, [visitor])
        await ada.leave()
        twin = Visitor("cleo's other tab", fleet, 1 - cleo.gateway, cleo.cookie)
        for tab in (cleo, twin):
            await eventually(called(tab))
        await asyncio.gather(cleo.visit(), twin.visit())
        assert cleo.inside
        assert twin.inside
        snapshot = await fleet.snapshot()
        assert (snapshot.inside, snapshot.offered, snapshot.waiting) == (2, 0, 1)
        await eventually(in_line_by_number([dora]))
        await cleo.leave()
        await asyncio.wait_for(dora.enter(), 10)


def called(visitor: Visitor) -> Callable[[], Awaitable[bool]]:
    """A condition: it is this visitor's turn."""

    async def holds() -> bool:
        return bool((await visitor.poll())["state"] == "your_turn")

    return holds


async def test_newcomers_do_not_barge(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """A seat that comes free while somebody waits is theirs, however many newcomers knock at any gateway."""
    async with running(tmp_path, valkey_url, free_port, total_active_users=1) as fleet:
        ada, bob = fleet.visitors(2)
        await ada.enter()
        await queue_up(fleet, [bob])
        await ada.leave()
        for turn in range(20):
            newcomers = fleet.visitors(10, f"newcomer{turn}-")
            await asyncio.gather(*(newcomer.visit() for newcomer in newcomers))
            assert not any(newcomer.inside for newcomer in newcomers)
        await asyncio.wait_for(bob.enter(), 10)
        assert [seen.visitor for seen in fleet.log()] == [ada.name, bob.name]


async def test_position_told_at_joining_does_not_grow(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """Of 200 who come in the same moment, each is told at once a position that will not turn out too good."""
    async with running(tmp_path, valkey_url, free_port, 1.0, total_active_users=1) as fleet:
        ada, *crowd = fleet.visitors(201)
        await ada.enter()
        await ada.visit()
        await asyncio.gather(*(visitor.visit(accept="application/json") for visitor in crowd))
        told = {visitor.number: visitor.reply.document["position"] for visitor in crowd}
        ranks = {number: rank for rank, number in enumerate(sorted(told), 1)}
        assert all(ranks[number] <= told[number] <= ranks[number] + 1 for number in told)
        await eventually(in_line_by_number(crowd), 10)


async def test_unused_rate_is_not_banked(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """After three seconds without anybody a burst gets one tick's worth of seats, then the rate."""
    rate, tick = 20, 0.5
    limits = {"total_active_users": 1000, "new_users_per_minute": rate * 60}
    async with running(tmp_path, valkey_url, free_port, tick, **limits) as fleet:
        began = (await fleet.snapshot()).clock

        async def idle() -> bool:
            return (await fleet.snapshot()).clock - began >= 3000

        await eventually(idle, 10)
        entering = asyncio.gather(*(visitor.enter() for visitor in fleet.visitors(60)))
        await asyncio.wait_for(entering, 20)
        entries = [start for start, _ in stays(fleet.log()).values()]
        assert len(entries) == 60
        assert most_over(entries, rate) <= rate * tick + rate * TRAVEL


async def test_places_survive_gateways(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """A gateway that restarts, or is killed, costs nobody their place: the same cookie goes on anywhere."""
    async with running(tmp_path, valkey_url, free_port, total_active_users=2) as fleet:
        inside, waiting = fleet.visitors(2, "inside"), fleet.visitors(12)
        for visitor in inside:
            await visitor.enter()
        await queue_up(fleet, waiting)
        numbers = [visitor.number for visitor in waiting]
        await eventually(in_line_by_number(waiting))
        await fleet.end(0, signal.SIGTERM)
        await fleet.start(0)
        await eventually(in_line_by_number(waiting))
        await fleet.end(1, signal.SIGKILL)
        await asyncio.gather(*(visitor.visit() for visitor in (*inside, *waiting)))
        assert all(visitor.inside for visitor in inside)
        await eventually(in_line_by_number(waiting))
        assert {visitor.gateway for visitor in waiting} == {0}
        assert [visitor.number for visitor in waiting] == numbers
        await asyncio.gather(*(visitor.leave() for visitor in inside))
        await asyncio.wait_for(asyncio.gather(*(visitor.shop() for visitor in waiting)), 40)
        number = {visitor.name: visitor.number for visitor in waiting}
        entered = [number[seen] for seen in stays(fleet.log()) if seen in number]
        assert len(entered) == len(waiting)
        assert most_overtaken(entered) <= 2


@pytest.mark.slow
async def test_a_gateway_that_stood_still(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """One is stopped for many ticks: the other admits on; nobody has failed afterwards, and limits held."""
    seats, rate = 10, 40
    limits = {"total_active_users": seats, "new_users_per_minute": rate * 60}
    async with running(tmp_path, valkey_url, free_port, **limits) as fleet:
        inside, waiting = fleet.visitors(seats, "inside"), fleet.visitors(24)
        for visitor in inside:
            await visitor.enter()
        here, there = [[v for v in waiting if v.gateway == index] for index in range(2)]
        await queue_up(fleet, here)
        await queue_up(fleet, there)
        staying, leaving = inside[:4], inside[4:]
        stood_still = fleet.processes[1]
        began = (await fleet.snapshot()).clock
        stood_still.send_signal(signal.SIGSTOP)
        try:
            shopping = [asyncio.create_task(visitor.shop()) for visitor in waiting]
            looks = [asyncio.create_task(visitor.visit()) for visitor in staying]
            await asyncio.gather(*(visitor.leave() for visitor in leaving if visitor.gateway == 0))

            async def goes_on() -> bool:
                entered = len(stays(fleet.log())) - seats
                return (
                    entered >= len(here) // 2 and (await fleet.snapshot()).clock - began > 5000 * fleet.tick
                )

            await eventually(goes_on, 20)
        finally:
            stood_still.send_signal(signal.SIGCONT)
        await asyncio.wait_for(asyncio.gather(*looks), 10)
        assert all(visitor.inside for visitor in staying)
        await asyncio.gather(*(visitor.leave() for visitor in leaving if visitor.gateway == 1))
        await asyncio.wait_for(asyncio.gather(*shopping), 60)
        for visitor in staying:
            assert (await visitor.visit()).state == ""
        entries = stays(fleet.log())
    assert len(entries) == len(inside) + len(waiting)
    assert sum((visitor.statuses for visitor in (*inside, *waiting)), Counter()).keys() == {200}
    assert most_at_once(entries.values()) <= seats
    starts = sorted(start for start, _ in entries.values())
    assert most_over(starts, rate) <= rate * fleet.tick + rate * TRAVEL
