"""The status document, in the three shapes in which an app or a page's script gets it."""

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from math import ceil

from waitingroom.room import Method, Room, State, Status

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_quoted = lru_cache(maxsize=256)(_encode)

_PROBLEM = (
    b'{"type":"about:blank","title":"Too Many Requests","status":429,'
    b'"detail":"This visitor has no seat in the shop yet. The request was not passed on.",'
)


def status_json(status: Status) -> bytes:
    """Write the status document (`application/json`), as an encoder would, at a third of the cost."""
    position, low, high = status.position, status.low, status.high
    place = "null" if position is None else str(position)
    ahead = "null" if position is None else str(position - 1)
    wait = "null" if low is None or high is None else f'{{"low":{round(low)},"high":{ceil(high)}}}'
    until = "" if status.until is None else f',"until":{int(status.until)}'
    missed = ',"missed":true' if status.missed else ""
    slowed = ',"slowed":true' if status.slowed else ""
    return (
        f'{{"room":"{status.room}","state":"{status.state.value}","position":{place},"ahead":{ahead},'
        f'"wait":{wait},"poll_after":{status.poll_after:.1f},"message":{_quoted(status.message)},'
        f'"updated":{round(status.updated)}{until}{missed}{slowed}}}'
    ).encode()


_NO_LOTTERY_NO_EVENT = {
    **dict.fromkeys(("waitTime25Percentile", "waitTime50Percentile", "waitTime75Percentile"), 0),
    **dict.fromkeys(("isRandomQueue", "isEventActive", "shuffleAtEventStart", "infiniteQueue"), False),
    **dict.fromkeys(("timeUntilEventStart", "timeUntilEventEnd"), 0),
    **dict.fromkeys(("timeUntilEventStartFormatted", "timeUntilEventEndFormatted"), "unavailable"),
}


def cloudflare_json(room: Room, status: Status) -> bytes:
    """Write the status document with `cfWaitingRoom` inside: the fields that Cloudflare's JSON answer has."""
    known = status.low is not None and status.high is not None
    minutes = (
        ceil((status.low + status.high) / 120) if status.low is not None and status.high is not None else 0
    )
    method = room.queueing_method
    theirs = {
        "inWaitingRoom": True,
        "waitTimeKnown": known,
        "waitTime": minutes,
        "waitTimeFormatted": f"{minutes} minute{'' if minutes == 1 else 's'}" if known else "unavailable",
        "queueIsFull": status.state is State.FULL,
        "queueAll": room.queue_all or room.paused,
        "lastUpdated": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(status.updated))
        + f".{int(status.updated % 1 * 1000):03d}Z",
        "refreshIntervalSeconds": 0 if method is Method.REJECT else ceil(status.poll_after),
        "queueingMethod": method,
        "isFIFOQueue": method is Method.FIFO,
        "isPassthroughQueue": method is Method.PASSTHROUGH,
        "isRejectQueue": method is Method.REJECT,
        "isEventPrequeueing": status.state is State.PREQUEUE,
        "turnstile": "",
        **_NO_LOTTERY_NO_EVENT,
    }
    return b'%b,"cfWaitingRoom":%b}' % (status_json(status)[:-1], _encode(theirs).encode())


def challenge_json(document: bytes, challenge: Mapping[str, object]) -> bytes:
    """Write a status document that sets its reader a `challenge` besides."""
    return b'%b,"challenge":%b}' % (document[:-1], _encode(challenge).encode())


def problem_json(status: Status) -> bytes:
    """Write the answer to a request that is no page: 429 with `application/problem+json` (RFC 9457)."""
    return _PROBLEM + status_json(status)[1:]
