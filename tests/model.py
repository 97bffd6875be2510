"""The waiting room as a page of rules, in plain Python: what the scripts have to do, and nothing else.

Times are milliseconds. A place is a number, a seat a string of lane, number and visitor. What gateways vouch
for when the store has forgotten something is not modelled: here it never forgets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from waitingroom.line import SEGMENT
from waitingroom.room import Answer, Block, Entry, Knock, Room, Totals
from waitingroom.tickets import seat_of

PERIOD = 15_000  # people are noted as heard of in periods of this length
RECENT = 75_000  # who was heard of within this may be called
SLACK = 3_000  # a seat outlives its pass by this
CALM = 10_000  # so long gateways have, after a pause, to hand in what they kept
BARRIER = 5_000  # nobody walks in for this long after somebody was told to wait
TRIAL = 30_000  # the first seat, until the cookie has come back
PRESENT = 15_000  # a gateway that has not ticked for this long is not waited for
TOLD = 30_000  # so long it is told who has entered


@dataclass
class WaitingRoom:
    """One room: who waits, who is called, who is inside."""

    room: Room
    clock: int
    tick_length: int = 1000
    heard: dict[int, int] = field(default_factory=dict)  # number -> last period
    gone: set[int] = field(default_factory=set)  # offered, inside, or finished
    held: set[int] = field(default_factory=set)  # missed a turn
    offers: dict[int, int] = field(default_factory=dict)  # number -> deadline
    seats: dict[str, int] = field(default_factory=dict)  # seat -> end
    trials: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # seat -> when it was given back
    entered: dict[int, int] = field(default_factory=dict)  # number -> when it was inside first
    gateways: dict[str, int] = field(default_factory=dict)  # gateway -> last tick
    arrivals: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # by gateway and second, to be numbered
    numbered: dict[tuple[str, int], int] = field(default_factory=dict)
    blocks: list[list[Block]] = field(default_factory=list)
    answered: dict[tuple[str, int], list[Answer]] = field(default_factory=dict)
    limiters: dict[str, float] = field(default_factory=lambda: {"offer": 0.0, "enter": 0.0})
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Totals.__slots__, 0))
    candidates = called = called_before = passed = turned = bar_from = bar_until = 0
    weighed = 0
    asked = failed = 0.0
    share = 1.0
    fence = gather_from = gather_until = 0
    credit = 0.0

    def __post_init__(self) -> None:
        """A new room's numbers begin at the time, far above any that an earlier one can have given."""
        self.stamp = self.clock
        self.epoch = self.room.epoch
        self.issued = self.clock // 1000 * 1000
        self.first_segment = (self.issued + 1) // SEGMENT
        self.filled: dict[int, int] = {}
        self.longest_session = 0

    # Time: the room's clock follows by at most three ticks a call; after more, gateways say what they know.

    def _advance(self, time: int) -> None:
        gap = max(0, time - self.stamp)
        self.stamp, self.clock = time, self.clock + min(gap, 3 * self.tick_length)
        if gap > 3 * self.tick_length:
            self.fence += 1
            self.clock += 1
            self.gather_from, self.gather_until = self.clock, self.clock + CALM
        self.longest_session = max(self.longest_session, self.session)
        if self.epoch != self.room.epoch:
            self._void()

    def _void(self) -> None:
        """A raised epoch voids every place and seat; numbers, limiters and totals go on."""
        for everything in (
            self.heard,
            self.gone,
            self.held,
            self.offers,
            self.seats,
            self.trials,
            self.ended,
            self.entered,
            self.arrivals,
            self.numbered,
            self.blocks,
        ):
            everything.clear()
        self.candidates = self.bar_from = self.bar_until = 0
        self.called = self.called_before = self.passed = 0
        self.epoch = self.room.epoch

    @property
    def session(self) -> int:
        return round(self.room.session_duration * 1000)

    @property
    def period(self) -> int:
        return self.clock // PERIOD

    # Limits: a rate without a bank, and seats of which offers are a part.

    @property
    def interval(self) -> float:
        return 60_000 / self.room.new_users_per_minute

    @property
    def burst(self) -> float:
        return max(1.0, self.tick_length / self.interval)

    def _allowed(self, limiter: str) -> int:
        used = max(self.limiters[limiter] - self.clock, 0) / self.interval
        return max(0, math.floor(self.burst - used + 0.000001))

    def _spend_share(self, people: int) -> None:
        """While the storefront is in trouble each seat costs more of the rate."""
        self._spend("offer", people / self.share if self.share > 0 else people)

    def _spend(self, limiter: str, people: float) -> None:
        self.limiters[limiter] = round(max(self.limiters[limiter], self.clock) + people * self.interval, 3)

    @property
    def gathering(self) -> bool:
        """Whether some gateway may know more than the store: it has ten seconds to say so."""
        return self.clock < self.gather_until

    @property
    def inside(self) -> int:
        return len(self.seats) + len(self.trials)

    def free_seats(self) -> int:
        """Seats that may be given now."""
        if self.room.paused or self.room.queue_all or self.gathering or self.share <= 0:
            return 0
        return max(0, self.room.total_active_users - self.inside - len(self.offers))

    # People: a number is gone, or waits while it has been heard of.

    def is_gone(self, n: int) -> bool:
        """Whether a number can no longer wait; with its segment every number of it ends."""
        return n in self.gone or n // SEGMENT < self.first_segment

    def waiting(self, window: float) -> list[int]:
        """Numbers heard of within `window` and not gone, lowest first."""
        oldest = self.period - math.ceil(window / PERIOD)
        return sorted(n for n, period in self.heard.items() if period >= oldest and not self.is_gone(n))

    # At the door.

    def knock(self, gateway: str, sequence: int, time: int, knocks: Sequence[Knock]) -> list[Answer]:
        """Answer everybody at the door in turn; a repeated call is answered, not executed."""
        if (gateway, sequence) not in self.answered:
            self._advance(time)
            self.answered[gateway, sequence] = [self._answer(knock) for knock in knocks]
        return self.answered[gateway, sequence]

    def _answer(self, knock: Knock) -> Answer:
        n = knock.number if knock.epoch == self.room.epoch else 0
        if n:
            seat = seat_of(knock.lane, n, knock.visitor)
            until = self._renew(seat)
            if until:
                return Answer(Entry.INSIDE, n, until, self.epoch)
            if n in self.offers:
                return self._claim(n, seat)
            if not self.is_gone(n) and not (self.gathering and knock.join):
                return Answer(Entry.WAIT, n, 0, self.epoch)
        if self.gathering or (knock.join and self.arrivals):
            return Answer(Entry.LATER, 0, 0, self.epoch)
        return self._join(knock) if knock.join else Answer(Entry.ENDED, 0, 0, self.epoch)

    def _lease(self, seat: str) -> int:
        self.trials.pop(seat, None)
        if seat not in self.seats:
            self.entered[int(seat.split(":")[1])] = self.clock
        self.seats[seat] = self.clock + self.session + SLACK
        return self.clock + self.session

    def _renew(self, seat: str) -> int:
        """The new end of a seat that stands, 0 for one that does not; without renewal it keeps its end."""
        if seat in self.seats and self.room.disable_session_renewal:
            return max(0, self.seats[seat] - SLACK) if self.seats[seat] - SLACK > self.clock else 0
        return self._lease(seat) if seat in self.seats or seat in self.trials else 0

    def _claim(self, n: int, seat: str) -> Answer:
        """An offer becomes a seat, or is kept while too many enter at once."""
        if self.gathering:
            return Answer(Entry.MOMENT, n, self.gather_until - self.clock, self.epoch)
        if not self._allowed("enter"):
            self.offers[n] = max(self.offers[n], self.clock + self.claim_window)
            return Answer(Entry.MOMENT, n, math.ceil(self.limiters["enter"] - self.clock), self.epoch)
        self._spend("enter", 1)
        self.totals["admitted"] += 1
        del self.offers[n]
        return Answer(Entry.INSIDE, n, self._lease(seat), self.epoch)

    @property
    def claim_window(self) -> int:
        return round(self.room.claim_window * 1000)

    def may_walk_in(self) -> bool:
        """Nobody walks in past people who wait, nor past a limit; few do before their cookie is back."""
        most_trials = max(1, int(min(self.room.total_active_users / 10, self.room.new_users_per_minute / 4)))
        return (
            not self.candidates
            and self.clock >= self.bar_until
            and self.free_seats() > 0
            and min(self._allowed("offer"), self._allowed("enter")) > 0
            and len(self.trials) < most_trials
        )

    def _join(self, knock: Knock) -> Answer:
        walks_in = self.may_walk_in()
        if not walks_in and self.room.queueing_method == "reject":
            return Answer(Entry.FULL, 0, 0, self.epoch)
        self.issued += 1
        self.totals["joined"] += 1
        if not walks_in:
            self.bar_from = self.bar_from or self.issued
            self.bar_until = self.clock + BARRIER
            return Answer(Entry.WAIT, self.issued, 0, self.epoch)
        self._spend_share(1)
        self._spend("enter", 1)
        self.totals["admitted"] += 1
        self.gone.add(self.issued)
        until = self.clock + min(TRIAL, self.session)
        self.trials[seat_of(knock.lane, self.issued, knock.visitor)] = until + SLACK
        return Answer(Entry.TRIAL, self.issued, until, self.epoch)

    # The tick: hand in, let end what has ended, call people, take home.

    def tick(  # noqa: PLR0917 - everything that a gateway hands in
        self,
        gateway: str,
        time: int,
        epoch: int,
        vouched: int,
        arrivals: dict[tuple[str, int], int],
        origin: tuple[int, int, float],
        seen: Sequence[int] = (),
        here: Sequence[int] = (),
        touched: Sequence[str] = (),
        left: Sequence[str] = (),
    ) -> tuple[list[int], list[int]]:
        """One exchange of a gateway; returns which numbers seen are spent, and which missed their turn."""
        self._advance(time)
        if self.period != self.turned:  # who is below a number called a while ago was passed over
            self.passed, self.called_before, self.turned = self.called_before, self.called, self.period
        spent: list[int] = []
        missed: list[int] = []
        if epoch == self.room.epoch:
            for seat in left:
                self._leave(seat)
            for seat in touched:
                self._touch(seat)
            self.held -= set(here)
            spent = [n for n in seen if not self._hear(n)]
            missed = [n for n in seen if n in self.held and n not in spent]
            for key, count in arrivals.items():
                self.arrivals[key] = max(count, self.arrivals.get(key, 0))
        self._attend(gateway, vouched)
        self._weigh(*origin)
        if not self.gathering:
            self._expire()
        self._admit()
        self._lift_barrier()
        if not self.gathering:
            self._number_arrivals()
        self._drop_segments()
        return spent, missed

    def _attend(self, gateway: str, vouched: int) -> None:
        """Once every gateway that was there has said what it knows, all goes on."""
        if not self.gathering or vouched == self.fence:
            self.gateways[gateway] = self.clock
        else:
            self.gateways.setdefault(gateway, self.gather_from - 1)
        if not self.gathering:
            self.gateways = {name: at for name, at in self.gateways.items() if at > self.clock - PRESENT}
        elif min(self.gateways.values()) >= self.gather_from:
            self.gather_until = 0

    def _weigh(self, asked: int, failed: int, share: float) -> None:
        """What the storefront failed counts for some seconds; what follows from it, gateways say."""
        faded = math.exp(-(self.clock - self.weighed) / 5000)
        self.weighed = self.clock
        self.asked = round(self.asked * faded + asked, 3)
        self.failed = round(self.failed * faded + failed, 3)
        self.share = round(share, 3)

    def _number_arrivals(self) -> None:
        """Whoever came while the store was away: numbers in the order of the seconds."""
        block, first = [], self.issued + 1
        for gateway, second in sorted(self.arrivals, key=lambda key: (key[1], key[0])):
            done = self.numbered.get((gateway, second), 0)
            more = self.arrivals[gateway, second] - done
            if more > 0:
                block.append(Block(gateway, second, done, more, self.issued + 1))
                self.numbered[gateway, second] = done + more
                self.issued += more
                self.totals["joined"] += more
        self.arrivals.clear()
        if block:
            self.blocks.append(block)
            self.bar_from = self.bar_from or first
            self.bar_until = self.clock + 2 * BARRIER

    def _leave(self, seat: str) -> None:
        n = int(seat.split(":")[1])
        seated = (self.seats.pop(seat, None) or self.trials.pop(seat, None)) is not None
        offered = self.offers.pop(n, None) is not None
        self.ended.setdefault(seat, self.clock)
        self.totals["left"] += seated
        self.totals["abandoned"] += not seated and (offered or not self.is_gone(n))
        self.gone.add(n)

    def _touch(self, seat: str) -> None:
        """A request of somebody inside keeps, or restores, their seat; unless it was given back."""
        fixed = self.room.disable_session_renewal and seat in self.seats
        if seat not in self.ended and not fixed:
            self.gone.add(int(seat.split(":")[1]))
            self._lease(seat)

    def _hear(self, n: int) -> bool:
        """Note that `n` was heard of; False if it is spent."""
        if n // SEGMENT < self.first_segment:
            return False
        self.heard[n] = self.period
        return not self.is_gone(n) or n in self.offers

    def _expire(self) -> None:
        for seat in [seat for seat, end in self.seats.items() if end <= self.clock]:
            del self.seats[seat]
            self.totals["expired"] += 1
        for seat in [seat for seat, end in self.trials.items() if end <= self.clock]:
            del self.trials[seat]
            self.gone.discard(int(seat.split(":")[1]))  # whoever comes back later finds the number waiting
            self.totals["vanished"] += 1
        for n in [n for n, deadline in self.offers.items() if deadline <= self.clock]:
            del self.offers[n]
            self.gone.discard(n)  # skip and hold: the place stays, ...
            self.held.add(n)  # ... and counts again when its visitor says "I am here"
            self.totals["lapsed"] += 1
        kept = self.clock - self.longest_session - 2 * SLACK
        self.ended = {seat: when for seat, when in self.ended.items() if when >= kept}
        self.entered = {n: when for n, when in self.entered.items() if when >= self.clock - TOLD}

    def _admit(self) -> None:
        """Call the lowest numbers for whom there are seats; who returns to an old place shares by halves."""
        seats = min(self.free_seats(), self._allowed("offer"))
        able = [n for n in self.waiting(RECENT) if n not in self.held]
        returning = [n for n in able if n <= self.passed]
        regular = [n for n in able if n > self.passed]
        back, fresh = self._shares(seats, len(returning), len(regular))
        for n in returning[:back] + regular[:fresh]:
            self.gone.add(n)
            self.offers[n] = self.clock + self.claim_window
        if fresh:
            self.called = max(self.called, regular[fresh - 1])
        if back + fresh:
            self._spend_share(back + fresh)
        self.totals["offered"] += back + fresh
        self.candidates = len(able) - back - fresh

    def _shares(self, seats: int, returning: int, regular: int) -> tuple[int, int]:
        if not seats or not regular:
            return min(seats, returning), 0
        credit = self.credit + seats / 2
        back = min(returning, int(credit))
        self.credit = min(1.0, credit - back)
        fresh = min(regular, seats - back)
        return min(returning, seats - fresh), fresh

    def _lift_barrier(self) -> None:
        """Once everybody told to wait was heard of, those who come need not wait for the barrier to end."""
        if not self.bar_from or self.candidates:
            return
        told = range(self.bar_from, self.issued + 1)
        unheard = [n for n in told if not self.is_gone(n) and self.heard.get(n, 0) < self.period - 1]
        if not unheard or self.clock >= self.bar_until:
            self.bar_from = self.bar_until = 0
        else:
            self.bar_from = unheard[0]

    def _drop_segments(self) -> None:
        """A full segment of numbers ends `hold_for` after the last was given, once nobody waits in it."""
        waiting = {n // SEGMENT for n in self.waiting(self.room.presence_window * 1000)}
        for segment in range(self.first_segment, self.issued // SEGMENT):
            full = self.filled.setdefault(segment, self.clock)
            over = self.clock - full > self.room.hold_for * 1000 and segment not in waiting
            if segment == self.first_segment and over:
                self.first_segment += 1

    def again(self) -> float | None:
        """Milliseconds until the rate alone would let most of a tick's people in; None if it holds nobody."""
        if not self.candidates or not self.free_seats():
            return None
        wanted = max(1, math.floor(self.burst) - 1)
        return max(0.0, self.limiters["offer"] - self.clock - (self.burst - wanted) * self.interval)
