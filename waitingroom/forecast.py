"""What somebody who waits is told: how far, how long, and when to ask again. Pure functions."""

from waitingroom.room import Room, Snapshot, State, Status

SOONEST, LATEST = 2.0, 60.0
"""Bounds of `poll_after` in seconds; a hidden tab gets about one timer a minute."""


def smooth_pace(room: Room, before: Snapshot, after: Snapshot, span: float = 60.0) -> float:
    """Offers a second, as an exponential average over about `span` seconds of the room's clock.

    It begins with what Little's law says of a full room whose seats turn over once a session, and time in
    which nobody waited leaves it alone: that says nothing about how fast people are called.
    """
    slowest = min(room.new_users_per_minute / 60, room.total_active_users / room.session_duration)
    known = slowest if before.pace is None else before.pace
    seconds = (after.clock - before.clock) / 1000
    if after.totals.offered < before.totals.offered:
        return known  # the store has begun anew, and so have its counts
    if (
        not before.clock
        or seconds <= 0
        or before.epoch != after.epoch
        or not (before.waiting or after.waiting)
    ):
        return known
    seen = (after.totals.offered - before.totals.offered) / seconds
    return known + min(1.0, seconds / span) * (seen - known)


def estimate_wait(room: Room, pace: float | None, ahead: int) -> tuple[float, float] | None:
    """Shortest and longest honest wait in seconds for somebody with `ahead` people in front, None if unknown.

    Nobody can be called faster than the room's rate; the pace of the last minute says how fast they are. The
    range is wide on purpose: what it covers is measured.
    """
    if room.paused or room.queue_all or pace is None or pace <= 0:
        return None
    fastest = (ahead + 1) * 60 / room.new_users_per_minute
    usual = (ahead + 1) / pace
    return max(fastest, 0.6 * usual), max(fastest, 1.6 * usual) + SOONEST


def poll_after(low: float | None, ahead: int, jitter: float) -> float:
    """Seconds until asking again is of use: seldom far back, often near the front.

    Whoever is near the front asks often, however slowly people are called: a seat that comes free is theirs.

    Args:
        low: shortest expected wait in seconds, None if unknown.
        ahead: people in front.
        jitter: a random number in [0, 1), so that visitors do not ask in step.
    """
    near = SOONEST + ahead / 5
    seldom = near if low is None else min(near, low / 5)
    return max(SOONEST, min(LATEST, seldom) * (1 - 0.25 * jitter))


def shown_position(true: int, shown: int | None) -> int:
    """The position that a page shows: never more than it has shown before."""
    return true if shown is None or shown < 1 else min(true, shown)


def seen_number(
    snapshot: Snapshot, number: int, jitter: float, room: Room, shown: int | None = None, unheard: int = 0
) -> Status:
    """What the holder of a waiting `number` is told; the line does not show `unheard` more in front."""
    deadline = snapshot.offers.get(number)
    if deadline is not None:
        left = max(0.0, (deadline - snapshot.clock) / 1000)
        return Status(room.name, State.YOUR_TURN, poll_after=SOONEST, until=left, message=room.message)
    ahead = snapshot.line.ahead(number) + unheard
    wait = estimate_wait(room, snapshot.pace, ahead) if snapshot.share > 0 else None
    low, high = wait or (None, None)
    return Status(
        room.name,
        State.PAUSED if room.paused else State.WAITING,
        position=shown_position(ahead + 1, shown),
        low=low,
        high=high,
        poll_after=poll_after(low, ahead, jitter),
        message=room.message,
        slowed=snapshot.share < 1,
    )
