"""Whether a store survives the loss of a server, judged from what its servers told."""

from typing import Any

import pytest

from tests.test_checks import finds, told
from waitingroom.checks import Level
from waitingroom.failover import judge_cluster, judge_sentinels, judge_server, judge_survey
from waitingroom.servers import Shape
from waitingroom.survey import Survey, Told

WATCH = {
    "name": "sale-primary",
    "ip": "10.0.0.1",
    "port": 6379,
    "num-other-sentinels": 2,
    "num-slaves": 2,
    "quorum": 2,
    "down-after-milliseconds": 3000,
    "is_sdown": False,
    "is_odown": False,
}
INFO = {
    "role": "master",
    "connected_slaves": 2,
    "aof_enabled": 1,
    "maxmemory": 1 << 30,
    "used_memory": 1 << 20,
}
SETTINGS = {
    "appendfsync": "everysec",
    "replica-read-only": "yes",
    "min-replicas-to-write": "1",
    "min-replicas-max-lag": "10",
    "cluster-node-timeout": "3000",
    "cluster-require-full-coverage": "no",
}
CLUSTER = {"cluster_state": "ok", "cluster_slots_ok": "16384"}


def sentinels(*changes: dict[str, Any]) -> list[Told]:
    """Three of them, or as many as there are changes, who differ in these."""
    each = changes if len(changes) > 1 else changes * 3
    return [Told(f"10.0.0.{index}:26379", WATCH | change) for index, change in enumerate(each, 1)]


def members(primaries: int = 3, **lost: str) -> dict[str, dict[str, Any]]:
    """Primaries with a replica each, whose flags `lost` may add to."""
    found = {}
    for index in range(primaries):
        found[f"10.0.0.{index}:6379"] = {
            "node_id": f"p{index}",
            "master_id": "-",
            "flags": "master",
            "slots": [["0", "1"]],
        }
        found[f"10.0.1.{index}:6379"] = {
            "node_id": f"r{index}",
            "master_id": f"p{index}",
            "flags": "slave" + lost.get(f"r{index}", ""),
            "slots": [],
        }
    return found


def test_sentinels_that_are_enough_and_agree_are_good() -> None:
    """Three who name one primary, with a majority for a quorum and seconds of patience, are no finding."""
    assert told(judge_sentinels(sentinels({}))) == {}
    assert told(judge_sentinels(sentinels(*[{"num-other-sentinels": 4, "quorum": 3}] * 5))) == {}


@pytest.mark.parametrize(
    ("asked", "level", "words"),
    [
        (
            [*sentinels({})[:2], Told("10.0.0.3:26379", error="refused")],
            Level.WARNING,
            "10.0.0.3:26379 does not",
        ),
        (sentinels({}, {}, {"ip": "10.0.0.2"}), Level.ERROR, "10.0.0.1:6379, 10.0.0.2:6379"),
        (sentinels(*[{"num-other-sentinels": 1}] * 2), Level.WARNING, "2 watch the primary"),
        (sentinels({})[:1], Level.WARNING, "[store] url names 1"),
        (sentinels({"quorum": 1}), Level.WARNING, "the quorum is 1 of 3"),
        (sentinels({}, {}, {"quorum": 3}), Level.WARNING, "the quorum is 3 of 3"),
        (sentinels({"num-other-sentinels": 4}), Level.WARNING, "the quorum is 2 of 5"),
        (sentinels({}, {}, {"down-after-milliseconds": 30_000}), Level.WARNING, "silent for 30 s"),
        (sentinels({"is_sdown": True}), Level.ERROR, "the primary is down"),
        (sentinels({"num-slaves": 0}), Level.ERROR, "no replica"),
    ],
    ids=["away", "at odds", "two", "one named", "low", "high", "minority", "patient", "down", "alone"],
)
def test_sentinels_that_would_not_act_are_found(asked: list[Told], level: Level, words: str) -> None:
    """Too few, too patient, at odds, or with nothing to fail over to."""
    assert finds(judge_sentinels(asked), level, words)


def test_a_server_set_as_it_should_be_is_good() -> None:
    """Of whatever shape the store is."""
    for shape in Shape:
        assert told(judge_server(Told("10.0.0.1:6379", INFO, SETTINGS), shape)) == {}


@pytest.mark.parametrize(
    ("shape", "info", "settings", "level", "words"),
    [
        (Shape.SINGLE, {"maxmemory": 0}, {}, Level.NOTICE, "no maxmemory is set"),
        (Shape.SINGLE, {"used_memory": 900 << 20}, {}, Level.WARNING, "88% of 1024 MiB"),
        (Shape.SINGLE, {}, {"appendfsync": "no"}, Level.WARNING, "appendfsync is no"),
        (Shape.SENTINEL, {}, {"replica-read-only": "no"}, Level.WARNING, "replica-read-only is no"),
        (Shape.SENTINEL, {}, {"min-replicas-to-write": "0"}, Level.WARNING, "min-replicas-to-write is 0"),
        (Shape.SENTINEL, {}, {"min-replicas-max-lag": "0"}, Level.WARNING, "min-replicas-max-lag is 0"),
        (Shape.SENTINEL, {}, {"min-replicas-max-lag": "60"}, Level.WARNING, "min-replicas-max-lag is 60 s"),
        (Shape.SENTINEL, {"connected_slaves": 1}, {}, Level.WARNING, "1 replicas, of which"),
        (Shape.CLUSTER, {"connected_slaves": 1}, {}, Level.WARNING, "1 replicas, of which"),
        (Shape.CLUSTER, {}, {"cluster-require-full-coverage": "yes"}, Level.NOTICE, "full-coverage is yes"),
        (Shape.CLUSTER, {}, {"cluster-node-timeout": "15000"}, Level.WARNING, "cluster-node-timeout is 15 s"),
        (Shape.CLUSTER, {}, {"cluster-node-timeout": "200"}, Level.WARNING, "cluster-node-timeout is 0.2 s"),
    ],
)
def test_settings_that_would_let_one_down_are_found(
    shape: Shape, info: dict[str, Any], settings: dict[str, str], level: Level, words: str
) -> None:
    """Each is judged where it matters: what a cluster does by itself is not asked of it."""
    server = Told("10.0.0.1:6379", INFO | info, SETTINGS | settings)
    found = told(judge_server(server, shape))
    assert [its for what, its in found.items() if words in what] == [level], found
    assert len(found) == 1


def test_what_a_server_does_not_tell_is_said() -> None:
    """One that is away matters where it could become the primary; refused settings are no fault."""
    away = Told("10.0.0.2:6379", error="no answer within 3 s")
    assert finds(judge_server(away, Shape.SENTINEL), Level.WARNING, "cannot be reached: no answer")
    assert told(judge_server(away, Shape.SINGLE)) == {}
    assert finds(judge_server(Told("store:6379", INFO), Shape.SINGLE), Level.NOTICE, "CONFIG is refused")


def test_a_whole_cluster_is_good() -> None:
    """All that is left to say is what a cluster is for."""
    assert list(told(judge_cluster(CLUSTER, members())).values()) == [Level.NOTICE]
    assert told(judge_cluster({}, {})) == {}


@pytest.mark.parametrize(
    ("cluster", "nodes", "words"),
    [
        ({"cluster_state": "fail"}, members(), "its state is fail"),
        ({"cluster_slots_ok": "16383"}, members(), "16383 of 16384 slots"),
        ({}, members(r1=",fail"), "the primary 10.0.0.1:6379 has no replica"),
        ({}, members(primaries=2), "it has 2 primaries"),
    ],
    ids=["down", "gap", "alone", "two"],
)
def test_a_cluster_with_something_missing_is_found(
    cluster: dict[str, str], nodes: dict[str, dict[str, Any]], words: str
) -> None:
    """Slots without a server, primaries without a replica, and too few to decide on a fail-over."""
    assert finds(judge_cluster(CLUSTER | cluster, nodes), Level.ERROR, words)


def test_a_survey_is_judged_as_a_whole() -> None:
    """Sentinels and every server; or the cluster and every server."""
    servers = (Told("10.0.0.1:6379", INFO, SETTINGS | {"appendfsync": "no"}),) * 2
    survey = Survey(tuple(sentinels({"quorum": 1})), servers)
    assert [item.subject for item in judge_survey(survey, Shape.SENTINEL) if item.level is Level.WARNING] == [
        "sentinels",
        "store 10.0.0.1:6379",
        "store 10.0.0.1:6379",
    ]
    survey = Survey((), servers, CLUSTER | {"cluster_state": "fail"}, members())
    levels = [item.level for item in judge_survey(survey, Shape.CLUSTER)]
    assert (levels.count(Level.ERROR), levels.count(Level.WARNING)) == (1, 2)
