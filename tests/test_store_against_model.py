"""The real scripts and the model in lockstep: whatever happens, in any order, they agree on what shows."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.clockwork import EDGE, OPENING, Clock
from tests.model import WaitingRoom
from waitingroom.arrivals import Arrivals
from waitingroom.handin import HandIn
from waitingroom.room import Answer, Arrival, Knock, Method, Room, Snapshot, fair_share
from waitingroom.store import Store
from waitingroom.tickets import seat_of

GATEWAYS = ("a", "b", "c")
SMALL = Room(
    name="r",
    session_duration=20.0,
    presence_window=90.0,
    claim_window=12.0,
    hold_for=60.0,
    version=1,
)
CHANGES: tuple[dict[str, Any], ...] = (
    {"total_active_users": 1},
    {"total_active_users": 3},
    {"total_active_users": 40},
    {"new_users_per_minute": 7},
    {"new_users_per_minute": 90},
    {"new_users_per_minute": 601},
    {"session_duration": 5.0},
    {"session_duration": 45.5},
    {"claim_window": 3.0},
    {"hold_for": 5.0},
    {"paused": True},
    {"paused": False},
    {"queue_all": True},
    {"queue_all": False},
    {"disable_session_renewal": True},
    {"disable_session_renewal": False},
    {"queueing_method": Method.REJECT},
    {"queueing_method": Method.FIFO},
)


@dataclass
class Gateway:
    """One gateway as the machine plays it: its store, what it last took home, what it has gathered."""

    store: Store
    room: Room
    snapshot: Snapshot = field(default_factory=Snapshot)
    gathered: HandIn = field(default_factory=HandIn)
    arrivals: Arrivals = field(default_factory=Arrivals)


class Lockstep(RuleBasedStateMachine):
    """Plays gateways and visitors; every rule does the same to the store and to the model, and compares."""

    def __init__(
        self, clock: Clock, runner: asyncio.Runner, stores: dict[str, Store], names: Iterator[int]
    ) -> None:
        super().__init__()
        self.clock, self.runner, self.stores = clock, runner, stores
        self.name = f"r{next(names)}"
        self.tickets: list[Knock] = []
        self.arrived: list[tuple[Arrival, Knock]] = []
        self.last_call: tuple[str, int, list[Knock], list[Answer]] | None = None
        self.sequence = 0

    @initialize(
        opening=st.sampled_from([EDGE, EDGE - 1000, OPENING + 17]),
        limits=st.sampled_from([(4, 120), (40, 7), (40, 90), (30, 3000)]),
    )
    def open_room(self, opening: int, limits: tuple[int, int]) -> None:
        """Numbers begin just below the end of a segment, or in the middle of one."""
        self.clock.set(opening)
        seats, rate = limits
        room = replace(SMALL, name=self.name, total_active_users=seats, new_users_per_minute=rate)
        room = self.runner.run(self.stores["a"].seed(room))
        self.model = WaitingRoom(room, opening)
        self.gateways = {name: Gateway(store, room) for name, store in self.stores.items()}

    def ticket(self, index: int) -> Knock:
        return self.tickets[index % len(self.tickets)]

    def knock(self, gateway: str, knocks: list[Knock]) -> list[Answer]:
        self.sequence += 1
        answers = self.runner.run(self.stores[gateway].enter(self.name, knocks, self.sequence))
        assert answers == self.model.knock(gateway, self.sequence, self.clock.now, knocks)
        self.last_call = (gateway, self.sequence, knocks, answers)
        return answers

    def tick(self, name: str) -> None:
        gateway, model = self.gateways[name], self.model
        handed, first = gateway.gathered, model.first_segment
        handed.vouched = gateway.snapshot.fence
        handed.arrivals, handed.blocks = dict(gateway.arrivals.open), gateway.arrivals.known
        before = gateway.snapshot
        call = gateway.store.tick(gateway.room, gateway.snapshot, handed)
        spent, missed = model.tick(
            name,
            self.clock.now,
            gateway.room.epoch,
            handed.vouched,
            handed.arrivals,
            (
                handed.asked,
                handed.failed,
                fair_share(before.asked + handed.asked, before.failed + handed.failed, before.share),
            ),
            sorted(handed.seen),
            sorted(handed.here),
            sorted(handed.touched),
            sorted(handed.left),
        )
        gateway.room, gateway.snapshot = self.runner.run(call)
        snapshot = gateway.snapshot
        visible = self.visible(before, handed) | {
            "first": first,
            "spent": sorted(spent),
            "missed": sorted(missed),
        }
        told = {key: getattr(snapshot, key) for key in visible if key not in {"room", "line"}}
        told |= {
            "room": gateway.room,
            "line": list(snapshot.line.numbers()),
            "totals": asdict(snapshot.totals),
            "blocks": [list(block) for block in snapshot.blocks],
        }
        told |= {key: sorted(told[key]) for key in ("spent", "missed", "ended", "gateways", "entered")}
        assert told == visible
        self.take_numbers(gateway, before)

    def visible(self, before: Snapshot, handed: HandIn) -> dict[str, Any]:
        """What the next snapshot has to say, as the model has it."""
        model, since = self.model, before.clock - 3000
        return {
            "room": model.room,
            "clock": model.clock,
            "fence": model.fence,
            "epoch": model.epoch,
            "issued": model.issued,
            "inside": model.inside,
            "offers": model.offers,
            "offered": len(model.offers),
            "line": model.waiting(model.room.presence_window * 1000),
            "waiting": len(model.waiting(model.room.presence_window * 1000)),
            "present": len(model.waiting(75_000)),
            "candidates": model.candidates,
            "totals": model.totals,
            "ended": sorted(seat for seat, when in model.ended.items() if when >= since),
            "entered": sorted(n for n, when in model.entered.items() if when >= since),
            "gateways": sorted(model.gateways),
            "calm": max(0, model.gather_until - model.clock),
            "lease_end": None if model.room.disable_session_renewal else model.clock + model.session,
            "asked": pytest.approx(model.asked, abs=2e-3),
            "failed": pytest.approx(model.failed, abs=2e-3),
            "share": model.share,
            "blocks": [list(block) for block in model.blocks[handed.blocks :]],
            "again": None if model.again() is None else pytest.approx(model.again(), abs=1e-3),
        }

    def take_numbers(self, gateway: Gateway, before: Snapshot) -> None:
        """Whoever came while the store was away has a ticket like all others once their number is known."""
        if gateway.snapshot.epoch != before.epoch:
            gateway.arrivals.clear()
            return
        gateway.arrivals.absorb(gateway.snapshot.blocks)
        for arrival, knock in list(self.arrived):
            if knock.epoch == gateway.room.epoch and (number := gateway.arrivals.number(arrival)) is not None:
                self.tickets.append(replace(knock, number=number))
                self.arrived.remove((arrival, knock))

    @rule(gateway=st.sampled_from(GATEWAYS), people=st.integers(1, 4), ago=st.integers(0, 3))
    def arrive(self, gateway: str, people: int, ago: int) -> None:
        """Newcomers whom the store could not be asked about."""
        door = self.gateways[gateway]
        for index in range(people):
            arrival = door.arrivals.arrive(gateway, self.clock.now // 1000 - ago)
            self.arrived.append((arrival, Knock(f"a{len(self.arrived)}.{index}", epoch=door.room.epoch)))

    @rule(gateway=st.sampled_from(GATEWAYS), people=st.integers(1, 6))
    def join(self, gateway: str, people: int) -> None:
        """Newcomers, all in one call."""
        knocks = [Knock(f"v{self.sequence}.{i}") for i in range(people)]
        for knock, answer in zip(knocks, self.knock(gateway, knocks), strict=True):
            if answer.number:
                self.tickets.append(replace(knock, number=answer.number, epoch=answer.epoch))

    @precondition(lambda self: self.tickets)
    @rule(
        gateway=st.sampled_from(GATEWAYS),
        who=st.lists(st.integers(0, 40), max_size=4),
        navigation=st.booleans(),
    )
    def come_to_the_door(self, gateway: str, who: list[int], navigation: bool) -> None:  # noqa: FBT001 - drawn
        """Holders of numbers, some of whose turn it may be."""
        self.knock(gateway, [replace(self.ticket(index), join=navigation) for index in who])

    @precondition(lambda self: self.tickets)
    @rule(gateway=st.sampled_from(GATEWAYS))
    def claim(self, gateway: str) -> None:
        """Everybody whose turn it is comes at once, each of them twice."""
        called = [ticket for ticket in self.tickets if ticket.number in self.model.offers]
        self.knock(gateway, [replace(ticket, join=False) for ticket in called + called[::-1]])

    @precondition(lambda self: self.last_call)
    @rule()
    def repeat_the_last_call(self) -> None:
        """A call whose answer was lost is sent again."""
        assert self.last_call
        gateway, sequence, knocks, before = self.last_call
        assert self.runner.run(self.stores[gateway].enter(self.name, knocks, sequence)) == before

    @precondition(lambda self: self.tickets)
    @rule(
        gateway=st.sampled_from(GATEWAYS),
        who=st.lists(st.integers(0, 60), min_size=1, max_size=8),
        what=st.sampled_from(["seen", "seen", "here", "touched", "left"]),
    )
    def hand_in(self, gateway: str, who: list[int], what: str) -> None:
        """Visitors poll, say that they are here, make requests, or leave."""
        door = self.gateways[gateway]
        for ticket in map(self.ticket, who):
            if ticket.epoch != door.room.epoch:
                continue
            if what in {"seen", "here"}:
                door.gathered.seen.add(ticket.number)
            gathered: Any = getattr(door.gathered, what)
            seat = seat_of(ticket.lane, ticket.number, ticket.visitor)
            if what == "touched":
                gathered[seat] = None
            else:
                gathered.add(seat if what == "left" else ticket.number)

    @rule(gateway=st.sampled_from(GATEWAYS), asked=st.integers(1, 12), good=st.integers(0, 12))
    def storefront_answers(self, gateway: str, asked: int, good: int) -> None:
        """The storefront serves requests, or fails some."""
        answers = self.gateways[gateway].gathered.answers
        answers |= {f"main:{index}:v": index >= good for index in range(asked)}

    @rule(gateway=st.sampled_from(GATEWAYS), answered=st.booleans())
    def exchange(self, gateway: str, answered: bool) -> None:  # noqa: FBT001 - drawn
        """A tick; one whose answer was lost hands the same in again at the next."""
        self.tick(gateway)
        if answered:
            self.gateways[gateway].gathered = HandIn()

    @rule(milliseconds=st.sampled_from([1, 99, 100, 500, 1000, 2999, 3000]))
    def time_passes(self, milliseconds: int) -> None:
        """A moment."""
        self.clock.advance(milliseconds)

    @rule(milliseconds=st.sampled_from([3001, 16_000, 90_000, -1, -60_000]))
    def clock_jumps(self, milliseconds: int) -> None:
        """A pause of the store, or its clock set back."""
        self.clock.advance(milliseconds)

    @rule(
        gateway=st.sampled_from(GATEWAYS),
        ticks=st.integers(1, 20),
        step=st.sampled_from([300, 1000, 2500]),
        doing=st.sets(st.sampled_from(["poll", "join", "claim"])),
    )
    def ticks_pass(self, gateway: str, ticks: int, step: int, doing: set[str]) -> None:
        """Time passes as it should, while one gateway's visitors poll, come and claim, or nobody does."""
        door = self.gateways[gateway]
        for turn in range(ticks):
            self.clock.advance(step)
            if "poll" in doing:
                here = (ticket for ticket in self.tickets if ticket.epoch == door.room.epoch)
                door.gathered.seen |= {ticket.number for ticket in here}
            if "join" in doing and turn % 7 == 6:
                self.join(gateway, 1)
            if "claim" in doing:
                self.claim(gateway)
            self.tick(gateway)
            door.gathered = HandIn()

    @rule(change=st.sampled_from(CHANGES))
    def change(self, change: dict[str, Any]) -> None:
        """Somebody changes the room."""
        before = self.model.room
        self.model.room = self.runner.run(
            self.stores["b"].change(replace(before, **change), before, "somebody", "to see what happens")
        )

    @rule()
    def raise_epoch(self) -> None:
        """Somebody voids every place and seat."""
        self.change({"epoch": self.model.room.epoch + 1})

    def teardown(self) -> None:
        """However it went: every gateway sees the same at the end."""
        if hasattr(self, "model"):
            for name in GATEWAYS:
                self.tick(name)


@pytest.fixture(params=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty store of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_scripts_do_what_the_model_says(url: str) -> None:
    """In every order of events the scripts answer, count and call as the model does."""
    examples = int(os.environ.get("WAITINGROOM_TEST_EXAMPLES", "60"))
    profile = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    names = iter(range(10**9))
    with asyncio.Runner() as runner, Clock(url) as clock:
        stores = {name: clock.store(name) for name in GATEWAYS}

        class Played(Lockstep):
            def __init__(self) -> None:
                super().__init__(clock, runner, stores, names)

        run_state_machine_as_test(Played, settings=profile)
        for store in stores.values():
            runner.run(store.close())
