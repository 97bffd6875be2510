"""A fail-over that loses writes repeats no number, and a primary with an old state is not believed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.clockwork import Teller
from tests.conftest import eventually
from tests.servers import Watched, running
from waitingroom.desk import Desk
from waitingroom.room import Entry, Knock, Room
from waitingroom.store import Store, StoreUnavailableError

SALE = Room(name="sale", total_active_users=3, new_users_per_minute=60_000)


@asynccontextmanager
async def tellers(url: str, *names: str) -> AsyncIterator[list[Teller]]:
    """So many gateways on a store, each settled."""
    stores = [Store(url, name) for name in names]
    made = [Teller(store, Desk(await store.seed(SALE))) for store in stores]
    await settled(made)
    yield made
    for store in stores:
        await store.close()


async def settled(gateways: list[Teller]) -> None:
    """Wait until every gateway has said what it knows and people may enter."""

    async def holds() -> bool:
        told = [await gateway.tick() for gateway in gateways]
        return all(told) and all(
            gateway.desk.settled and gateway.desk.snapshot.calm == 0 for gateway in gateways
        )

    await eventually(holds, 30)


@pytest.mark.slow
async def test_a_fail_over_that_lost_writes_repeats_nothing(tmp_path: Path) -> None:
    """Numbers and seats that only gateways remember are not given again by the server that takes over."""
    with running(Watched, tmp_path, None, **{"min-replicas-to-write": "0"}) as servers:
        async with tellers(servers.url, "a", "b") as (one, other):
            primary = servers.primary()
            replicas = servers.replicas(primary)
            for node in replicas:
                node.freeze()
            primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            lost = [*await one.join("v1", "v2"), *await other.join("v3", "v4"), *await one.join("v5")]
            assert [answer.entry for answer in lost].count(Entry.TRIAL) == 1
            primary.kill()
            for node in replicas:
                node.thaw()
            await eventually(lambda: servers.primary() is not primary, 30)
            await settled([one, other])
            assert one.desk.snapshot.inside == 1
            given = [*await other.join("v6", "v7"), *await one.join("v8")]
            numbers = [answer.number for answer in lost + given]
            assert len(set(numbers)) == len(numbers)
            assert min(answer.number for answer in given) > max(answer.number for answer in lost) + 10_000
            seats = [answer for answer in lost + given if answer.entry is Entry.TRIAL]
            assert len(seats) <= SALE.total_active_users


@pytest.mark.slow
async def test_a_thawed_primary_is_not_believed(tmp_path: Path) -> None:
    """Whoever has heard of its successor gets no answer, and changes nothing; others get no number."""
    with running(Watched, tmp_path) as servers:
        async with tellers(servers.url, "a", "b") as (one, other):
            old = servers.primary()
            old.client.hset("wr:{sale}:state", "born", 0)
            await one.tick()
            fence = one.desk.snapshot.fence
            old.freeze()
            await eventually(lambda: servers.primary() is not old, 30)
            await settled([one, other])
            assert one.desk.snapshot.fence > fence
            for node in servers.sentinels:
                node.freeze()
            old.client.connection_pool.disconnect()
            old.thaw()
            old.client.config_set("min-replicas-to-write", 0)
            before = old.client.hgetall("wr:{sale}:state")
            stray = Store(f"redis://127.0.0.1:{old.port}", "stray")
            unaware = Store(f"redis://127.0.0.1:{old.port}", "unaware")
            stray._known = {"sale": dict(one.store._known["sale"])}
            with pytest.raises(StoreUnavailableError, match="old state"):
                await stray.enter("sale", [Knock("v1")])
            after = old.client.hgetall("wr:{sale}:state")
            assert {key: after[key] for key in before} == before | {"doubted": after["doubted"]}
            (answer,) = await unaware.enter("sale", [Knock("v2")])
            assert answer.entry is Entry.LATER
            (number,) = {answer.number for answer in await one.join("v3")}
            assert number > int(before["issued"])
            for store in (stray, unaware):
                await store.close()
            for node in servers.sentinels:
                node.thaw()
