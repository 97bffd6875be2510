"""An edge that asks about each request: who may pass, what that costs, and what it leaves behind."""

from pathlib import Path

from tests.house import House, Reply, Shopper, calls, house


async def ruling(shopper: Shopper) -> Reply:
    """What an edge is told about a shopper's request."""
    return await shopper.ask("GET", "/.waitingroom/decision?room=sale", accept="*/*")


async def inside(shop: House) -> Shopper:
    """Somebody whose seat the store has made a full one."""
    shopper = await shop.enter()
    await shop.pass_time(30, inside=[shopper])
    return shopper


async def test_who_is_inside_may_pass_without_the_store(valkey_url: str, tmp_path: Path) -> None:
    """A pass that stands is 204 without a body, and costs no call to the store."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        calls(valkey_url)
        for _ in range(20):
            reply = await ruling(shopper)
            assert (reply.status, reply.body) == (204, b"")
        assert calls(valkey_url) == 0
        assert shop.metric("requests_total", room="sale", verdict="forwarded") >= 20


async def test_who_is_not_inside_is_sent_to_us_and_joins_nothing(valkey_url: str, tmp_path: Path) -> None:
    """Strangers, forgers and people who wait are 401, never 403 or 5xx, and no number is taken."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        waiting, forger = await shop.queue(), shop.shopper()
        forger.jar["wr-sale"] = waiting.jar["wr-sale"][:-3] + "AAA"
        joined = shop.desk().snapshot.issued
        for shopper in (shop.shopper(), forger, waiting):
            reply = await ruling(shopper)
            assert (reply.status, reply.cookies) == (401, [])
            assert reply.header("cache-control") == "no-store"
        await shop.tick()
        assert shop.desk().snapshot.issued == joined


async def test_a_seat_lives_by_what_the_edge_asks(valkey_url: str, tmp_path: Path) -> None:
    """Requests that only the edge sees keep the seat, and the answer hands the renewed pass on."""
    async with house(valkey_url, tmp_path, session_duration=60.0) as shop:
        shopper = await inside(shop)
        given = 0
        for _ in range(10):
            reply = await ruling(shopper)
            assert reply.status == 204
            given += len(reply.cookies)
            await shop.pass_time(21)
        assert given > 0
        assert (await ruling(shopper)).status == 204


async def test_an_ended_seat_does_not_pass(valkey_url: str, tmp_path: Path) -> None:
    """Who has left is 401 from then on, on every gateway."""
    async with house(valkey_url, tmp_path, gateways=2) as shop:
        shopper = await shop.enter()
        kept = dict(shopper.jar)
        await shopper.leave()
        await shop.tick()
        shopper.jar = kept
        shopper.port = shop.gateways[1].public_address[1]
        assert (await ruling(shopper)).status == 401


async def test_a_suspended_room_lets_everybody_pass(valkey_url: str, tmp_path: Path) -> None:
    """A room that is switched off is 204 for strangers, too."""
    async with house(valkey_url, tmp_path, suspended=True) as shop:
        assert (await ruling(shop.shopper())).status == 204
