"""What a gateway knows of one room between two exchanges with the store.

Requests are decided from a `Desk` alone: it holds the last snapshot and gathers what the next tick hands in.
No clock of its own: `now` is monotonic seconds, and the room's clock is judged from the last tick.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable

from waitingroom.arrivals import Arrivals
from waitingroom.forecast import LATEST, SOONEST, seen_number
from waitingroom.handin import MOST_VOUCHED, HandIn, Testimony, Witness
from waitingroom.line import SEGMENT
from waitingroom.opening import Opening, rank_of
from waitingroom.room import Arrival, Method, Room, Snapshot, State, Status
from waitingroom.tickets import Token, Use

MOST_REMEMBERED = 200_000
"""Numbers of each kind that a gateway keeps in mind; beyond, it learns them again from the store."""

STALE = 5.0
"""Seconds without an answer of the store after which a place is only said to be kept."""

SETTLED = 3000
"""Milliseconds after which whoever took a number has polled, and the line shows them."""

MOST_SEEN = 20_000
"""Numbers seen that one tick carries, so that none holds the store up; the rest goes with the next."""


MOST_TOUCHED = 1000
"""Seats touched that one tick carries if there are many, or a fifth of them: each is handed in within about
five ticks, and however many shoppers are inside, no tick holds the store up."""

SOON = 15_000
"""Milliseconds; a seat whose pass ends sooner is handed in with the very next tick."""


class Desk:
    """One room at one gateway.

    Attributes:
        room: the configuration in force.
        snapshot: what the last tick brought home.
        hand_in: what the next one will carry.
        arrivals: people who came while the store was away.
        epoch_seen: the highest epoch in a verified token.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.snapshot = Snapshot(epoch=room.epoch)
        self.hand_in = HandIn()
        self.arrivals = Arrivals()
        self.epoch_seen = 0
        self._highest = 0
        self._lowest: int | None = None
        self._oldest: int | None = None
        self._before: Snapshot | None = None
        self._witness = Witness()
        self._opening = Opening()
        self._trials: dict[str, int] = {}
        self._at = 0.0
        self._longest = room.session_duration
        self._urgent: set[str] = set()
        self._spent: set[int] = set()
        self._missed: set[int] = set()
        self._ended: dict[str, int] = {}
        self._leases: dict[str, int] = {}
        self._issued: deque[tuple[int, int, int]] = deque()
        self._gone: list[int] = []

    @property
    def warm(self) -> bool:
        """Whether the store has been heard of at all."""
        return self.snapshot.clock > 0

    @property
    def off(self) -> bool:
        """Whether the room lets everybody through without counting."""
        return self.room.suspended or self.room.queueing_method is Method.PASSTHROUGH

    @property
    def open(self) -> bool:
        """Whether a newcomer may expect to walk in, as far as the last snapshot tells."""
        seen, room = self.snapshot, self.room
        free = seen.inside + seen.offered < room.total_active_users and not (room.paused or room.queue_all)
        return free and seen.candidates == 0 and seen.calm == 0

    def clock(self, now: float) -> int:
        """The room's clock in milliseconds, never behind what the store would say now."""
        return self.snapshot.clock + int((now - self._at) * 1000)

    @property
    def settled(self) -> bool:
        """Whether the store knows all that this gateway could vouch for."""
        return self.snapshot.fence == self._witness.vouched

    def take(self, *, goodbye: bool = False) -> HandIn:
        """What there is to hand in; from here on the next one is gathered."""
        taken, self.hand_in = self.hand_in, HandIn()
        while len(taken.seen) > MOST_SEEN:
            self.hand_in.seen.add(taken.seen.pop())
        most = max(MOST_TOUCHED, len(taken.touched) // 5) if self.settled else MOST_VOUCHED
        if len(taken.touched) > most:
            seats = list(taken.touched)
            now = dict.fromkeys(seats[:most]) | dict.fromkeys(self._urgent & taken.touched.keys())
            self.hand_in.touched = dict.fromkeys(seat for seat in seats[most:] if seat not in now)
            taken.touched = now
        self._urgent.clear()
        taken.arrivals, taken.blocks = dict(self.arrivals.open), self.arrivals.known
        taken.highest, taken.lowest, taken.oldest = self._highest, self._lowest, self._oldest
        taken.goodbye = goodbye
        self._testify(taken)
        return taken

    def _testify(self, taken: HandIn) -> None:
        if self.settled:
            taken.vouched = self.snapshot.fence
            return
        # What was known before the store's answer that began all this: it may have forgotten.
        was = self._before or self.snapshot
        seats = {
            seat: end for seat, end in self._leases.items() if end > was.clock and seat not in self._ended
        }
        whole = Testimony(
            leases={seat: end for seat, end in seats.items() if seat not in self._trials},
            trials={seat: end for seat, end in seats.items() if seat in self._trials},
            ended=tuple(self._ended),
            offers=dict(was.offers),
            blocks=tuple(self.arrivals.blocks()),
            line=was.line.segments() if was.born != self.snapshot.born else {},
            clock=was.clock,
            born=was.born,
        )
        taken.testimony, last = self._witness.next_part(whole)
        if last and not self.hand_in.touched:
            taken.vouched = self.snapshot.fence

    def take_back(self, carried: HandIn) -> None:
        """The store may not have heard what was handed in: it goes with the next tick."""
        self.hand_in.merge(carried)
        self._witness.again()

    def vouch(self, token: Token, *, stands: bool) -> None:
        """Note what a verified token proves: that its number was issued, and its epoch in force.

        `stands` says that it is a pass whose time is not over.
        """
        self.epoch_seen = max(self.epoch_seen, token.epoch)
        self._highest = max(self._highest, token.number)
        if token.epoch < self.room.epoch or not token.number:
            return
        if stands:
            self._lowest = token.number if self._lowest is None else min(self._lowest, token.number)
        if token.use is Use.TICKET:
            self._oldest = token.number if self._oldest is None else min(self._oldest, token.number)

    def absorb(self, room: Room, snapshot: Snapshot, handed_in: HandIn, sent: float) -> None:
        """Take home the answer to a tick that was sent at `sent`.

        The room's clock is counted from when the tick was *sent*, so that a pass is never believed longer
        than its lease lives in the store.
        """
        if snapshot.epoch != self.snapshot.epoch:
            # What was gathered during the tick speaks of numbers and seats that are void by now.
            self.hand_in = HandIn()
            for gathered in (
                self._spent,
                self._missed,
                self._ended,
                self._leases,
                self._trials,
                self._issued,
            ):
                gathered.clear()
            self.arrivals.clear()
            self._witness.clear()
            self._lowest = self._oldest = None
        if snapshot.fence == self.snapshot.fence:
            self.arrivals.absorb(snapshot.blocks)
        else:
            # The store may have lost its list: it is read from the beginning.
            self.arrivals.known = 0
            self._witness.again()
            self._before = self._before or self.snapshot
        if handed_in.vouched:
            self._witness.vouched = handed_in.vouched
            if handed_in.vouched == snapshot.fence:
                self._before = None
        self._witness.note(snapshot.entered)
        self._witness.forget(snapshot.first)
        self.room, self.snapshot, self._at = room, snapshot, sent
        self._opening.clear()
        # A pass may have been given under an earlier, longer session.
        self._longest = max(self._longest, room.session_duration)
        self._remember(self._spent, snapshot.spent)
        self._missed -= handed_in.here
        self._missed -= snapshot.offers.keys()
        self._remember(self._missed, snapshot.missed)
        self._ended |= dict.fromkeys(snapshot.ended, snapshot.clock)
        if snapshot.lease_end is not None:
            self._leases |= dict.fromkeys(handed_in.touched, snapshot.lease_end)
        for seat in self._trials.keys() & handed_in.touched.keys():
            # The cookie has come back, and with it the trial has become a seat for a whole session.
            del self._trials[seat]
            self._leases[seat] = max(self._leases[seat], snapshot.clock + int(room.session_duration * 1000))
        self._settle()
        self._forget(snapshot.clock)

    def _settle(self) -> None:
        seen = self.snapshot
        if self._issued:
            _, issued, joined = self._issued[-1]
            if seen.issued - issued != seen.totals.joined - joined:
                # The store began anew and left numbers out; nobody has those.
                self._issued.clear()
        self._issued.append((seen.clock, seen.issued, seen.totals.joined))
        while len(self._issued) > 1 and self._issued[1][0] <= seen.clock - SETTLED:
            self._issued.popleft()
        del self._gone[: bisect_right(self._gone, self._issued[0][1])]

    def _over(self, number: int) -> None:
        at = bisect_left(self._gone, number)
        if self._issued and number > self._issued[0][1] and self._gone[at : at + 1] != [number]:
            self._gone.insert(at, number)

    def _unheard(self, number: int) -> int:
        """People in front of `number` who took theirs too lately for the line to show them.

        Never too few, so that the position that is shown need not grow: for a few seconds, who entered or
        left at another gateway still counts.
        """
        if not self._issued or number <= self._issued[0][1] or number > self.snapshot.issued + SEGMENT:
            return 0
        settled, line = self._issued[0][1], self.snapshot.line
        gone = bisect_left(self._gone, number)
        return max(0, number - settled - 1 - gone - line.ahead(number) + line.ahead(settled + 1))

    def _remember(self, gathered: set[int], numbers: Iterable[int]) -> None:
        if len(gathered) > MOST_REMEMBERED:
            gathered.clear()
        gathered.update(numbers)

    def _forget(self, clock: int) -> None:
        # Two of the maps grow by those who pass through; going over them now and then keeps each tick cheap.
        if clock // 1000 % 16:
            return
        self._leases = {seat: end for seat, end in self._leases.items() if end > clock}
        self._trials = {seat: end for seat, end in self._trials.items() if end > clock}
        self._ended = {seat: at for seat, at in self._ended.items() if at + 2000 * self._longest > clock}

    def stale(self, now: float) -> bool:
        """Whether the store has been silent for too long to speak for it."""
        return now - self._at > STALE

    def holds(self, token: Token, now: float) -> bool:
        """Whether `token`, which is not refused, is a pass for a seat that stands."""
        # The room's clock stands still while the store is silent: nobody inside is put out by that.
        stale = self.stale(now)
        if token.use is Use.PASS:
            return token.end > (self.snapshot.clock if stale else self.clock(now))
        return token.use is Use.GUEST and stale and token.end > self.clock(now)

    def lived(self, token: Token) -> bool:
        """Whether a pass stood, or its seat did, when the store was last heard of."""
        return max(token.end, self._leases.get(token.seat, 0)) > self.snapshot.clock

    def lets_in(self, token: Token, now: float) -> bool:
        """Whether the holder of a ticket enters although nobody counts, because the room is set to open."""
        return self._open_by_itself(now) and self._opening.enter(self.room, rank_of(token), now)

    def _open_by_itself(self, now: float) -> bool:
        away = now - self._at
        return self.room.on_store_outage == "open" and STALE < away <= self.room.outage_limit

    def refusal(self, token: Token, now: float) -> str | None:
        """Why `token` proves nothing, in one word; None for a kept place, or a seat that may still live.

        An epoch above the room's is one of which this gateway has not yet heard.
        """
        if token.epoch < self.room.epoch:
            return "epoch"
        if token.seat in self._ended:
            return "ended"
        return "expired" if token.use is Use.TICKET and token.end <= self.clock(now) else None

    def touch(self, token: Token) -> None:
        """Somebody inside made a request; of those whom the store has not counted it is told nothing."""
        if token.use is Use.GUEST:
            return
        self.hand_in.touched[token.seat] = None
        if token.end < self.snapshot.clock + SOON:
            self._urgent.add(token.seat)

    def weigh(self, token: Token, *, failed: bool) -> None:
        """The storefront has answered somebody inside, or failed them."""
        self.hand_in.answers[token.seat] = failed

    def renewed(self, token: Token) -> int | None:
        """The new end for a pass that is worth signing again, None while the old one will do."""
        if self.snapshot.lease_end is not None and not self.outgrown(token.end, self.snapshot.lease_end):
            return None  # no lease ends later than one touched just now
        end = self._leases.get(token.seat)
        return end if end is not None and self.outgrown(token.end, end) else None

    def outgrown(self, old: int, new: int) -> bool:
        """Whether a pass with the old end is worth replacing by one with the new: a quarter of a session."""
        return new - old >= self.room.session_duration * 250

    def leave(self, token: Token, now: float) -> None:
        """Somebody gave up their place or seat, or the origin ended it."""
        self.hand_in.left.add(token.seat)
        self.hand_in.touched.pop(token.seat, None)
        self._leases.pop(token.seat, None)
        self._ended[token.seat] = self.clock(now)
        self._over(token.number)

    def poll(self, token: Token, now: float, jitter: float, shown: int | None = None) -> Status:
        """What the holder of a ticket is told; that they asked is handed in."""
        number = token.number
        if self._open_by_itself(now) and self._opening.ask(self.room, rank_of(token), now):
            return self.say(State.YOUR_TURN)
        if token.arrival is not None:
            return self.await_number(now)
        self.hand_in.seen.add(number)
        if number in self._spent:
            # Another tab has entered, and its pass is still on the way.
            entered = self._leases.get(token.seat, 0) > self.clock(now)
            return self.say(State.INSIDE) if entered else self.say(State.ENDED, poll_after=LATEST)
        status = self.look(number, now, jitter, shown)
        status.missed = number in self._missed
        return status

    def visit(self, token: Token, now: float, jitter: float) -> Status:
        """The same for somebody who came by themselves, which a poll cannot show."""
        if token.number:
            self.hand_in.here.add(token.number)
            self._missed.discard(token.number)
        return self.poll(token, now, jitter)

    def look(self, number: int, now: float, jitter: float, shown: int | None = None) -> Status:
        """The same without handing anything in: who has just joined is present once their cookie is back."""
        status = seen_number(self.snapshot, number, jitter, self.room, shown, self._unheard(number))
        if self.stale(now):
            status.state, status.poll_after = State.UNAVAILABLE, STALE
            status.low = status.high = status.until = None
        return status

    def enter(self, token: Token, *, trial: bool) -> None:
        """The store has given a seat up to the end of this pass; on trial until the cookie has come back."""
        self._leases[token.seat] = token.end
        if trial:
            self._trials[token.seat] = token.end
        else:
            self._trials.pop(token.seat, None)
        self._over(token.number)

    def arrive(self, gateway: str, now: float, wall: float) -> Arrival:
        """Somebody has come whom the store cannot number yet.

        Seconds are the store's as well as they can be told without it: `wall` is Unix time for a gateway that
        has never heard of it.
        """
        second = self.snapshot.stamp / 1000 + now - self._at if self.warm else wall
        return self.arrivals.arrive(gateway, int(second))

    def await_number(self, now: float) -> Status:
        """What somebody is told who has come, and has no number yet."""
        if self.stale(now):
            return self.say(State.UNAVAILABLE, poll_after=STALE)
        return self.say(State.WAITING)

    def say(self, state: State, *, poll_after: float = SOONEST, until: float | None = None) -> Status:
        """A status that does not depend on a number."""
        return Status(self.room.name, state, poll_after=poll_after, until=until, message=self.room.message)

    def called(self, number: int, now: float) -> bool:
        """Whether the store has more to say of this number than a place in line.

        A number that is not in the line may have a seat whose pass was lost on the way.
        """
        waits = number in self.snapshot.line and number not in self._spent
        return not self.stale(now) and (number in self.snapshot.offers or not waits)
