"""What shoppers notice when the store or the origin is slow, silent or gone."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import eventually
from tests.house import House, Shopper, house, opened, settings
from tests.wire import dial, get
from waitingroom.embedded import EmbeddedValkey

QUICK: dict[str, Any] = {"timeout": 0.1}


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


@contextmanager
def silent(url: str) -> Iterator[None]:
    """The store's process stands still."""
    pid = pid_of(url)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def everybody(inside: Shopper, waiting: Shopper, newcomer: Shopper) -> None:
    """What each of them is told while the store is away."""
    for _ in range(3):
        assert (await inside.visit()).inside
    told = (await waiting.poll()).document
    assert (told["state"], told["position"], told["wait"]) == ("unavailable", 1, None)
    ticket = dict(waiting.jar)
    page = await waiting.visit("/goods")
    assert (page.status, page.state, waiting.jar) == (200, "unavailable", ticket)
    assert (await newcomer.visit()).state == "unavailable"
    assert newcomer.token.arrival is not None
    arrival = dict(newcomer.jar)
    assert ((await newcomer.visit("/goods")).state, newcomer.jar) == ("unavailable", arrival)
    told = (await newcomer.poll()).document
    assert (told["state"], told["position"], newcomer.jar) == ("unavailable", None, arrival)
    app = await newcomer.ask("GET", "/api", accept="application/json")
    assert (app.status, app.document["state"]) == (200, "unavailable")
    assert (await newcomer.ask("POST", "/cart", accept="*/*")).status == 429


async def goes_on(shop: House, inside: Shopper, waiting: Shopper, newcomer: Shopper) -> None:
    """Afterwards nobody has lost anything, and the line moves in its order."""
    assert (await inside.visit()).inside
    number = waiting.token.number
    told = (await waiting.poll()).document
    assert (told["state"], told["position"], waiting.token.number) == ("waiting", 1, number)
    for _ in range(3):
        # Numbers and seats are given again once every gateway has handed in what it kept.
        await shop.tick()
    assert (await newcomer.visit()).state == "waiting"
    assert newcomer.token.number > number
    await inside.leave()
    await shop.pass_time(3, waiting=[waiting, newcomer])
    assert (await newcomer.poll()).document["state"] == "waiting"
    assert (await waiting.visit()).inside


async def test_a_silent_store_takes_nothing_from_anybody(valkey_url: str, tmp_path: Path) -> None:
    """Those inside notice nothing, even past the end of their pass; places are kept; no answer is a 500."""
    async with house(valkey_url, tmp_path, server=QUICK, total_active_users=1) as shop:
        inside, waiting, newcomer = await shop.enter(), await shop.queue(), shop.shopper()
        with silent(valkey_url):
            await shop.tick()
            assert shop.metric("tick_failures_total", room="sale") == 1
            assert (await inside.visit()).inside
            assert (await waiting.poll()).document["state"] == "waiting"
            shop.silence(3600)
            await everybody(inside, waiting, newcomer)
        # For the store an hour has passed as well: its own clock does not let that end anything.
        shop.clock.advance(3_600_000)
        await shop.tick()
        await goes_on(shop, inside, waiting, newcomer)


async def test_a_pass_that_ends_just_as_the_store_falls_silent_still_counts(
    valkey_url: str, tmp_path: Path
) -> None:
    """Until the gateway knows that the store is gone, it asks in vain, and lets in whom it knew inside."""
    async with house(valkey_url, tmp_path, server=QUICK, session_duration=10.0) as shop:
        inside = await shop.enter()
        await inside.visit()
        seat = inside.token.seat
        await shop.pass_time(8)
        with silent(valkey_url):
            shop.silence(4)
            assert (await inside.visit()).inside
        await shop.pass_time(9)
        assert (await inside.visit()).inside
        assert inside.token.seat == seat


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[str]:
    """A store of its own, whose data outlives it."""
    valkey = EmbeddedValkey(folder)
    url = await valkey.start()
    try:
        yield url
    finally:
        await valkey.stop()


async def test_a_store_that_is_killed_and_comes_back_has_lost_nobody(tmp_path: Path) -> None:
    """Between the two the gateway serves; afterwards everything goes on by itself."""
    folder = tmp_path / "data"
    async with AsyncExitStack() as stack:
        async with embedded(folder) as url:
            shop = await stack.enter_async_context(house(url, tmp_path, server=QUICK, total_active_users=1))
            inside, waiting, newcomer = await shop.enter(), await shop.queue(), shop.shopper()
            os.kill(pid_of(url), signal.SIGKILL)
            await shop.tick()
            assert shop.metric("tick_failures_total", room="sale") == 1
            shop.silence(60)
            await everybody(inside, waiting, newcomer)
        await stack.enter_async_context(embedded(folder))
        await shop.tick()
        await goes_on(shop, inside, waiting, newcomer)


async def test_a_gateway_may_start_while_the_store_is_away(valkey_url: str, tmp_path: Path) -> None:
    """It serves those inside at once, and everybody else as soon as the store is back."""
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(house(valkey_url, tmp_path, total_active_users=1))
        inside, waiting, newcomer = await shop.enter(), await shop.queue(), shop.shopper()
        with silent(valkey_url):
            late = opened(settings(valkey_url, tmp_path, shop.desk().room, **QUICK))
            shop.gateways.append(await stack.enter_async_context(late))
            for shopper in (inside, waiting, newcomer):
                shopper.port = shop.gateways[1].public_address[1]
            assert (await inside.visit()).inside
            assert (await waiting.visit()).state == "unavailable"
            assert (await newcomer.visit()).state == "unavailable"
        await shop.tick()
        await goes_on(shop, inside, waiting, newcomer)


@pytest.mark.parametrize(
    ("method", "accept", "kind"),
    [("GET", "text/html", "text/html"), ("POST", "text/html", "text/html"), ("GET", "*/*", "text/plain")],
)
async def test_an_origin_that_is_gone_is_said_to_be(
    valkey_url: str, tmp_path: Path, free_port: Callable[[], int], method: str, accept: str, kind: str
) -> None:
    """502 with a page of ours, which tries again by itself only what may be asked for twice."""
    async with house(valkey_url, tmp_path, upstream=f"http://127.0.0.1:{free_port()}") as shop:
        shopper = shop.shopper()
        reply = await shopper.ask(method, "/", accept=accept)
        assert reply.status == 502
        assert reply.header("content-type").startswith(kind)
        assert reply.header("cache-control") == "no-store"
        assert bool(reply.header("retry-after")) is (method == "GET")
        assert shop.metric("origin_errors_total", room="sale", kind="connect") == 1
        assert shop.metric("requests_total", room="sale", verdict="error") == 1


async def test_a_failing_origin_costs_nobody_their_seat(
    valkey_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """The pass comes with the error page as well, so that trying again is not joining again."""
    upstream = f"http://127.0.0.1:{free_port()}"
    async with house(valkey_url, tmp_path, upstream=upstream, total_active_users=1) as shop:
        shopper = shop.shopper()
        for _ in range(3):
            assert (await shopper.visit()).status == 502
        await shop.tick()
        assert (shop.desk().snapshot.inside, shop.desk().snapshot.totals.joined) == (1, 1)


async def test_an_origin_that_does_not_answer_in_time_is_said_to_be_slow(
    valkey_url: str, tmp_path: Path
) -> None:
    """504 with a page of ours; the shopper keeps the seat."""
    async with house(valkey_url, tmp_path, server={"first_byte_timeout": 0.05}) as shop:
        shopper = shop.shopper()
        reply = await shopper.visit("/slow")
        assert (reply.status, reply.header("content-type")) == (504, "text/html; charset=utf-8")
        assert shop.metric("origin_errors_total", room="sale", kind="timeout") == 1
        assert (await shopper.visit()).inside


async def test_a_shopper_who_leaves_mid_request_is_not_waited_for(valkey_url: str, tmp_path: Path) -> None:
    """Somebody who hangs up while the store decides about them breaks nothing, and holds no request open."""
    async with house(valkey_url, tmp_path) as shop:
        gone = shop.shopper()
        with silent(valkey_url):
            async with dial(gone.port) as wire:
                await wire.send(gone.request("GET", "/"))
        await eventually(lambda: shop.metric("requests_total", room="sale", verdict="forwarded") == 1)
        assert shop.origin.paths == []
        assert (await shop.shopper().visit()).inside


async def test_what_never_reaches_a_decision_is_counted(valkey_url: str, tmp_path: Path) -> None:
    """A request that is no HTTP, and a client too many, show in the metrics as much as any other."""
    async with house(valkey_url, tmp_path, server={"max_connections": 1}) as shop:
        port = shop.shopper().port
        async with dial(port) as first:
            await first.send(get("/slow"))
            await eventually(lambda: len(shop.origin.heads) == 1)
            async with dial(port) as second:
                head, _ = await second.answer(b"GET")
                assert head.status == 503
            shop.origin.release.set()
            await first.answer()
            await first.send(b"GET / HTTP/1.1\r\nHost : shop\r\n\r\n")
            head, _ = await first.answer(b"GET")
            assert head.status == 400
        assert shop.metric("requests_total", room="-", verdict="malformed") == 1
        assert shop.metric("requests_total", room="-", verdict="turned_away") == 1
