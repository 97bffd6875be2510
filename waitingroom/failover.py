"""Judges whether a store survives the loss of a server: what is, why it matters, how to mend it.

Plain functions of what a survey found out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from waitingroom.checks import Finding, Findings, Level
from waitingroom.servers import Shape
from waitingroom.survey import Survey, Told

ENOUGH_SENTINELS = 3
"""With fewer, the loss of one leaves no majority."""

LONGEST_DOWN_MS = 5000
"""A primary that is silent for longer than this should have been replaced: a queue that stands is noticed."""

SHORTEST_NODE_TIMEOUT_MS = 1000
LONGEST_LAG_S = 10
FULL = 0.75
SLOTS = 16_384


def judge_survey(survey: Survey, shape: Shape) -> Findings:
    """All there is to say about the servers of a store and those who watch them."""
    if shape is Shape.SENTINEL:
        yield from judge_sentinels(survey.sentinels)
    if shape is Shape.CLUSTER:
        yield from judge_cluster(survey.cluster, survey.members)
    for told in survey.servers:
        yield from judge_server(told, shape)


def judge_sentinels(told: Sequence[Told]) -> Findings:
    """Whether those who watch the primary are enough, agree, and would act in time."""
    for one in told:
        if one.error:
            why = "The fewer answer, the fewer have to be lost before nobody can name a new primary."
            mend = "Start it, or mend [store] url, its password, or the firewall."
            what = f"{one.address} does not answer: {one.error}"
            yield Finding(Level.WARNING, "sentinels", what, why, mend)
    states = [one.info for one in told if not one.error]
    if not states:
        return
    primaries = sorted({f"{state['ip']}:{state['port']}" for state in states})
    if len(primaries) > 1:
        why = "Gateways that ask different ones would write to different servers."
        what = f"they name different primaries: {', '.join(primaries)}"
        mend = "Wait for a fail-over that is under way; otherwise SENTINEL RESET on those that are wrong."
        yield Finding(Level.ERROR, "sentinels", what, why, mend)
    known = max(state["num-other-sentinels"] for state in states) + 1
    if known < ENOUGH_SENTINELS or len(told) < ENOUGH_SENTINELS:
        why = "Two cannot outvote one that is cut off, and one that is lost may be the only one we know."
        mend = "Run three or more on machines of their own, and name all of them in [store] url."
        what = f"{known} watch the primary, and [store] url names {len(told)}"
        yield Finding(Level.WARNING, "sentinels", what, why, mend)
    else:
        what = f"{len(states)} of {len(told)} answer and name {' and '.join(primaries)} as the primary"
        yield Finding(Level.OK, "sentinels", what)
    yield from _judge_watch(states, known)


def _judge_watch(states: Sequence[Mapping[str, Any]], known: int) -> Findings:
    """What the Sentinels have been told to do."""
    majority = known // 2 + 1
    for quorum in sorted({state["quorum"] for state in states}):
        if known >= ENOUGH_SENTINELS and not majority <= quorum < known:
            few = "A single one that is cut off starts a fail-over."
            why = few if quorum < majority else "With one of them lost, no fail-over starts any more."
            mend = f"SENTINEL SET {states[0]['name']} quorum {majority}, on each of them"
            what = f"the quorum is {quorum} of {known}"
            yield Finding(Level.WARNING, "sentinels", what, why, mend)
    slowest = max(state["down-after-milliseconds"] for state in states)
    if slowest > LONGEST_DOWN_MS:
        why = (
            "For that long, and for the fail-over after it, nobody new is let in and the queue stands still."
        )
        mend = f"SENTINEL SET {states[0]['name']} down-after-milliseconds 3000, on each of them"
        what = f"a primary has to be silent for {slowest / 1000:.0f} s before it is replaced"
        yield Finding(Level.WARNING, "sentinels", what, why, mend)
    if all(state["is_sdown"] or state["is_odown"] for state in states):
        why, mend = "Nothing can be written until there is a new one.", "Look at the primary, and at its log."
        yield Finding(Level.ERROR, "sentinels", "they say that the primary is down", why, mend)
    if not max(state["num-slaves"] for state in states):
        why = "There is nothing to fail over to."
        mend = "Give it two replicas, on machines of their own."
        yield Finding(Level.ERROR, "sentinels", "the primary has no replica", why, mend)


def judge_cluster(cluster: Mapping[str, str], members: Mapping[str, Mapping[str, Any]]) -> Findings:
    """Whether every slot is served, and by servers that can be replaced."""
    if not cluster:
        return  # that it cannot be reached is said already
    state, served = cluster.get("cluster_state", ""), int(cluster.get("cluster_slots_ok", 0))
    if state != "ok" or served < SLOTS:
        why = "A room whose slot nobody serves lets nobody in."
        mend = "CLUSTER NODES shows which server is missing; start it, or give its slots to others."
        what = f"its state is {state}, and {served} of {SLOTS} slots are served"
        yield Finding(Level.ERROR, "cluster", what, why, mend)
    primaries = {
        member["node_id"]: address
        for address, member in members.items()
        if "master" in _flags(member) and member["slots"]
    }
    backed = {
        member["master_id"] for member in members.values() if _flags(member) & {"slave", "fail"} == {"slave"}
    }
    for name, address in primaries.items():
        if name not in backed:
            why = "If it is lost, every room on it stands still until it is back."
            mend = "Give it a replica: CLUSTER REPLICATE on a new server."
            yield Finding(Level.ERROR, "cluster", f"the primary {address} has no replica", why, mend)
    if len(primaries) < ENOUGH_SENTINELS:
        why = "A majority of the primaries decides on a fail-over; of fewer than three, none may be lost."
        mend = "Spread the slots over three primaries, or use Sentinel."
        yield Finding(Level.ERROR, "cluster", f"it has {len(primaries)} primaries", why, mend)
    elif state == "ok":
        what = f"every slot is served by one of {len(primaries)} primaries"
        yield Finding(Level.OK, "cluster", what)
    why = "A cluster spreads rooms over servers; it makes no single room faster or safer than Sentinel would."
    what = "each room lives on one of the servers: all of its keys share a hash tag"
    yield Finding(Level.NOTICE, "cluster", what, why, "Nothing, if there are many rooms; else use Sentinel.")


def _flags(member: Mapping[str, Any]) -> set[str]:
    return set(str(member["flags"]).split(","))


def judge_server(told: Told, shape: Shape) -> Findings:
    """Whether one server is set so that it keeps what it was told, also as the primary after a fail-over."""
    subject = f"store {told.address}"
    if told.error:
        if shape is not Shape.SINGLE:
            why = "After a fail-over it may be the primary, and the gateways must reach it."
            mend = "Start it, or mend the firewall, or its password, which has to be that of the others."
            yield Finding(Level.WARNING, subject, f"cannot be reached: {told.error}", why, mend)
        return
    yield from _judge_memory(told.info, subject)
    if told.settings is None:
        why = "A managed store may be set well; here it can only not be seen."
        mend = "Ask whoever runs it for appendfsync, min-replicas-to-write and maxmemory-policy."
        yield Finding(Level.NOTICE, subject, "does not tell its settings: CONFIG is refused", why, mend)
        return
    settings = told.settings
    if told.info.get("aof_enabled") and settings.get("appendfsync") == "no":
        why = "After a crash of its machine it has lost up to half a minute: seats, and numbers given out."
        what = "appendfsync is no"
        yield Finding(Level.WARNING, subject, what, why, "CONFIG SET appendfsync everysec")
    if settings.get("replica-read-only", "yes") != "yes":
        why = "Whatever is written to a replica by mistake is lost, and nobody is told."
        what = "replica-read-only is no"
        yield Finding(Level.WARNING, subject, what, why, "CONFIG SET replica-read-only yes")
    if shape is Shape.SENTINEL:
        yield from _judge_cut_off(settings, subject)
    if shape is Shape.CLUSTER:
        yield from _judge_node(settings, subject)
    if shape is not Shape.SINGLE:
        yield from _judge_spare(told.info, settings, subject)


def _judge_memory(info: Mapping[str, Any], subject: str) -> Findings:
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if not most:
        why = "When memory runs out, the system ends it, where it could have refused a write."
        mend = "CONFIG SET maxmemory to what the machine can spare; a million who wait take a few megabytes."
        yield Finding(Level.NOTICE, subject, "no maxmemory is set", why, mend)
    elif used > FULL * most:
        why = "Once it is full, it refuses to write, and nobody new is let in."
        mend = "Raise maxmemory, or find out what else is kept there."
        what = f"{used / most:.0%} of {most >> 20} MiB are used"
        yield Finding(Level.WARNING, subject, what, why, mend)
    else:
        yield Finding(Level.OK, subject, f"{used / most:.0%} of {most >> 20} MiB are used")


def _judge_cut_off(settings: Mapping[str, str], subject: str) -> Findings:
    """Whether a primary that has lost its replicas stops, so that nothing is written to two."""
    needed = int(settings.get("min-replicas-to-write", 0))
    lag = int(settings.get("min-replicas-max-lag", 0))
    why = "A primary that was cut off goes on letting people in beside the new one, and then forgets them."
    if needed < 1 or lag < 1:
        what = (
            f"min-replicas-to-write is {needed}"
            if needed < 1
            else "min-replicas-max-lag is 0, which is never"
        )
        mend = f"CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag {LONGEST_LAG_S}"
        yield Finding(Level.WARNING, subject, what, why, mend)
    elif lag > LONGEST_LAG_S:
        mend = f"CONFIG SET min-replicas-max-lag {LONGEST_LAG_S}"
        yield Finding(Level.WARNING, subject, f"min-replicas-max-lag is {lag} s", why, mend)


def _judge_spare(info: Mapping[str, Any], settings: Mapping[str, str], subject: str) -> Findings:
    """Whether there are replicas to spare: one of them will be the primary."""
    needed, there = int(settings.get("min-replicas-to-write", 0)), int(info.get("connected_slaves", 0))
    if info.get("role") == "master" and 0 < there <= needed:
        why = "After a fail-over too few are left for it to take writes, until the lost server is back."
        mend = f"Run {needed + 1} replicas or more."
        what = f"it has {there} replicas, of which min-replicas-to-write needs {needed}"
        yield Finding(Level.WARNING, subject, what, why, mend)


def _judge_node(settings: Mapping[str, str], subject: str) -> Findings:
    """What a server of a cluster has been told to do."""
    if settings.get("cluster-require-full-coverage", "no") != "no":
        why = "While one server's slots are not served, all the others refuse their rooms too."
        mend = "CONFIG SET cluster-require-full-coverage no"
        yield Finding(Level.NOTICE, subject, "cluster-require-full-coverage is yes", why, mend)
    patience = int(settings.get("cluster-node-timeout", SHORTEST_NODE_TIMEOUT_MS))
    if not SHORTEST_NODE_TIMEOUT_MS <= patience <= LONGEST_DOWN_MS:
        long = "For that long, and for the fail-over after it, the rooms of a lost server stand still."
        why = long if patience > LONGEST_DOWN_MS else "A busy second is taken for a loss."
        mend = "CONFIG SET cluster-node-timeout 3000"
        yield Finding(Level.WARNING, subject, f"cluster-node-timeout is {patience / 1000:g} s", why, mend)
