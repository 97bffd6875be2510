"""What the servers of a store tell of themselves, each asked by itself, for a check before the day."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from redis.exceptions import ResponseError

from waitingroom.servers import ERRORS, Cluster, Place, Server, Shape, client

SETTINGS = (
    "appendfsync",
    "cluster-node-timeout",
    "cluster-require-full-coverage",
    "maxmemory",
    "maxmemory-policy",
    "min-replicas-max-lag",
    "min-replicas-to-write",
    "replica-read-only",
)
"""What is asked for of a server's configuration: nothing that is secret."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one server told, or why it did not.

    Attributes:
        address: host:port, or the path of a socket.
        info: of a server INFO, of a Sentinel SENTINEL MASTER.
        settings: those of SETTINGS that it knows; None where it may not be asked.
        error: why it told nothing.
    """

    address: str
    info: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What all servers of a store told.

    Attributes:
        sentinels: those in the URL.
        servers: all that hold data, as far as their addresses could be found out.
        cluster: CLUSTER INFO; empty where there is none.
        members: CLUSTER NODES, by address.
    """

    sentinels: tuple[Told, ...] = ()
    servers: tuple[Told, ...] = ()
    cluster: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


async def survey(place: Place, patience: float) -> Survey:
    """Ask every server of the store, for `patience` seconds each; what does not answer is told so."""
    if place.shape is Shape.SENTINEL:
        watched = await asyncio.gather(*(_sentinel(place, at, patience) for at in place.hosts))
        addresses = {address for _, listed in watched for address in listed}
        return Survey(tuple(told for told, _ in watched), await _servers(place, addresses, patience))
    if place.shape is Shape.CLUSTER:
        cluster, members = await _cluster(place, patience)
        known = [_address(text) for text, member in members.items() if "noaddr" not in member["flags"]]
        return Survey((), await _servers(place, known, patience), cluster, members)
    return Survey((), await _servers(place, place.hosts or [("", 0)], patience))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _at(place: Place, address: tuple[str, int], patience: float) -> Server | Cluster:
    """A client of one server alone."""
    options = dict(place.options) | {"decode_responses": True}
    alone = replace(place, shape=Shape.SINGLE, hosts=(address,), options=options)
    return client(alone, timeout=patience, connections=1)


async def _servers(place: Place, at: Iterable[tuple[str, int]], patience: float) -> tuple[Told, ...]:
    return tuple(await asyncio.gather(*(_server(place, address, patience) for address in sorted(at))))


async def _server(place: Place, address: tuple[str, int], patience: float) -> Told:
    name = f"{address[0]}:{address[1]}" if address[0] else str(place.options["unix_socket_path"])
    server = _at(place, address, patience)
    try:
        info = await server.info()
        return Told(name, info, await _settings(server))
    except ERRORS as error:
        return Told(name, error=str(error))
    finally:
        await server.aclose()


async def _settings(server: Server | Cluster) -> dict[str, str] | None:
    found: dict[str, Any] = {}
    try:
        for name in SETTINGS:  # one by one: Redis 6.2 does not take several
            found |= await server.execute_command("CONFIG GET", name)
    except ResponseError:
        return None
    return found


async def _sentinel(
    place: Place, address: tuple[str, int], patience: float
) -> tuple[Told, list[tuple[str, int]]]:
    """What a Sentinel told of the primary, and where it says that servers are."""
    name = f"{address[0]}:{address[1]}"
    sentinel = _at(replace(place, options=place.watch), address, patience)
    try:
        info = await sentinel.execute_command("SENTINEL MASTER", place.primary)
        replicas = await sentinel.execute_command("SENTINEL SLAVES", place.primary)
    except ERRORS as error:
        return Told(name, error=str(error)), []
    finally:
        await sentinel.aclose()
    return Told(name, info), [(state["ip"], int(state["port"])) for state in (info, *replicas)]


async def _cluster(place: Place, patience: float) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """What the first server that answers tells of the cluster."""
    for address in place.hosts:
        server = _at(place, address, patience)
        try:
            cluster = await server.execute_command("CLUSTER INFO")
            members = await server.execute_command("CLUSTER NODES")
        except ERRORS:
            continue
        finally:
            await server.aclose()
        return cluster, members
    return {}, {}
