"""One gateway of several processes: no worker's end is anybody else's, and what they count adds up."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import eventually
from tests.processes import (
    Crowd,
    Gateway,
    admitted,
    alive,
    configuration,
    descendants,
    judge,
    launched,
    resume,
    room,
    serving,
    shop,
)
from tests.wire import dial, get
from waitingroom.access import Role, token_line
from waitingroom.child import SERVED, Death, is_looping, pause_after

Port = Callable[[], int]


async def visit(
    gateway: Gateway, cookie: str = "", path: str = "/", name: str = "visit"
) -> tuple[int, bytes]:
    """One request on a connection of its own, however long it takes: status and body."""
    async with dial(gateway.port) as wire:
        lines = [f"Cookie: {cookie}"] if cookie else []
        await wire.send(get(path, "Accept: text/html", f"X-Id: {name}", "Connection: close", *lines))
        head, _, body = (await wire.reader.read()).partition(b"\r\n\r\n")
        return int(head[9:12]), body


async def renewed(gateway: Gateway, worker: int, pid: int) -> int:
    """Wait until another process than this one serves as that worker; its process id."""
    await eventually(lambda: gateway.workers().get(worker, pid) != pid, 20)
    return gateway.workers()[worker]


async def test_a_killed_worker_takes_nobody_along_who_waits(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """Who is served by another does not notice; who waits at the dead one is served by the next."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "2", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        cookie = await admitted(gateway.port)
        victim = gateway.workers()[0]
        os.kill(victim, signal.SIGSTOP)  # so that it accepts nobody
        visits = [asyncio.create_task(visit(gateway, cookie, name=f"r{number}")) for number in range(24)]
        await eventually(lambda: any(task.done() for task in visits), 10)
        assert not all(task.done() for task in visits)
        os.kill(victim, signal.SIGKILL)
        assert await asyncio.wait_for(asyncio.gather(*visits), 20) == [
            (200, f"r{number} 0".encode()) for number in range(24)
        ]
        assert set(origin.begun.values()) == {1, 2}  # the cookie's first two visits have one name
        ended = await gateway.event("worker_ended")
        assert (ended["worker"], ended["reason"], ended["code"]) == (0, "crash", -signal.SIGKILL)
        await renewed(gateway, 0, victim)
        await gateway.until("workers_running", is_=2)
        assert await gateway.metric("worker_restarts_total", "crash") == 1


async def test_killing_a_worker_under_load_costs_only_what_it_was_serving(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """No connection is refused, no answer is another's, and nothing is done twice."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "3", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        crowd = Crowd(gateway.port, await admitted(gateway.port))
        clients = 30
        async with crowd.pressing(clients):
            await crowd.more(50)
            victim = gateway.workers()[1]
            os.kill(victim, signal.SIGKILL)
            await renewed(gateway, 1, victim)
            await crowd.more(100)
        assert (crowd.refused, crowd.wrong) == (0, [])
        assert len(crowd.lost) + len(crowd.crossed) < clients
        assert max(origin.begun[name] for name in crowd.answered) == 1


async def test_a_rolling_restart_loses_nobody(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """SIGUSR2 under load: every worker is another process afterwards, and not one request has failed."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "2", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        before = gateway.workers()
        crowd = Crowd(gateway.port, await admitted(gateway.port))
        async with crowd.pressing(40):
            gateway.send(signal.SIGUSR2)
            await gateway.event("restart_done")
            await crowd.more(100)
            await eventually(lambda: not any(map(alive, before.values())), 20)
        judge(crowd, origin)
        assert (crowd.refused, crowd.crossed) == (0, [])
        assert set(gateway.workers()) == set(before)
        # What the workers that have gone had counted is in the sum, to the last request.
        sent = len(crowd.answered) + 2
        assert await gateway.metric("requests_total", "sale", "forwarded") == sent
        assert await gateway.metric("worker_restarts_total", "asked") == 2


async def test_metrics_add_up(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """The sum is what the clients counted, what the store says is said once, and no counter goes back."""
    async with (
        shop() as origin,
        serving(
            tmp_path,
            valkey_url,
            free_port,
            *("--workers", "3"),
            rooms=room(upstream=origin.url, total_active_users=500),
        ) as gateway,
    ):
        cookie = await admitted(gateway.port)
        answers = await asyncio.gather(*(visit(gateway, cookie) for _ in range(60)))
        assert {status for status, _ in answers} == {200}
        async with contextlib.AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(dial(gateway.port)) for _ in range(12)]
            for wire in wires:
                await wire.send(get("/", f"Cookie: {cookie}", "X-Id: kept"))
                await wire.answer()
            await gateway.until("connections_open", "shopper", is_=12)
        before = await gateway.metrics()
        assert before["requests_total", ("sale", "forwarded")] == 2 + 60 + 12
        assert before["origin_latency_seconds_count", ("sale",)] == 2 + 60 + 12
        assert before["limit_shoppers_inside", ("sale",)] == 500
        await gateway.until("joined_total", "sale", is_=1)
        assert before["tick_age_seconds", ("sale",)] < 5
        assert before["build_info", tuple(_build(before))] == 1
        victim = gateway.workers()[2]
        os.kill(victim, signal.SIGKILL)
        await gateway.event("worker_ended")
        between = await gateway.metrics()
        await renewed(gateway, 2, victim)
        after = await gateway.metrics()
        for name, labels in before:
            if name.endswith(("_total", "_count", "_bucket", "_sum")):
                assert before[name, labels] <= between[name, labels] <= after[name, labels], (name, labels)


def _build(samples: dict[tuple[str, tuple[str, ...]], float]) -> tuple[str, ...]:
    (labels,) = [labels for name, labels in samples if name == "build_info"]
    return labels


async def test_a_crash_loop_is_told(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Five deaths in a row: log, metric and health say so, the others serve everybody, and it is tried on."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "2", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        cookie = await admitted(gateway.port)
        for death in range(5):
            await eventually(lambda: first_worker(gateway) is not None, 10)
            os.kill(first_worker(gateway) or 0, signal.SIGKILL)
            await gateway.event("worker_ended", death + 1)
        told = await gateway.event("worker_crash_looping")
        assert (told["level"], told["worker"], told["deaths"]) == ("error", 0, 5)
        assert told["look"]
        assert told["remedy"]
        assert await gateway.metric("workers_crash_looping") == 1
        status, document = await gateway.ask("/healthz")
        assert (status, document["workers"]) == (200, {"of": 2, "ready": 1, "crash_looping": [0]})
        assert (await gateway.ask("/readyz"))[0] == 200
        started = len(gateway.events("worker_ready"))
        answers = await asyncio.gather(*(visit(gateway, cookie) for _ in range(24)))
        assert {status for status, _ in answers} == {200}
        assert len(gateway.events("worker_ready")) == started
        assert (await gateway.event("worker_ended", 5))["again_in_s"] == 5


def first_worker(gateway: Gateway) -> int | None:
    """Process id of the worker with the index 0, ready or not."""
    for pid in descendants(gateway.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[3:5] == [b"waitingroom.worker", b"0"] and alive(pid):
            return pid
    return None


@pytest.mark.slow
async def test_a_worker_that_hangs_is_replaced(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Ten seconds of silence end it; its tick's age shows meanwhile; who waits is served by the next."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "2", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        cookie = await admitted(gateway.port)
        pid = gateway.workers()[1]
        os.kill(pid, signal.SIGSTOP)
        try:
            visits = [asyncio.create_task(visit(gateway, cookie)) for _ in range(24)]

            async def ages() -> bool:
                return await gateway.metric("tick_age_seconds", "sale") > 3

            await eventually(ages, 15)
            assert (await gateway.event("worker_ended"))["reason"] == "hang"
            assert {status for status, _ in await asyncio.wait_for(asyncio.gather(*visits), 20)} == {200}
            assert await gateway.metric("worker_restarts_total", "hang") == 1
        finally:
            resume(pid)


async def test_workers_end_with_their_supervisor(tmp_path: Path, free_port: Port) -> None:
    """However it ends: no worker and no store stays behind, and a new gateway can take over the folder."""
    async with serving(
        tmp_path, "embedded", free_port, "--workers", "2", rooms=room(upstream="http://127.0.0.1:9")
    ) as gateway:
        children = descendants(gateway.process.pid)
        assert len(children) == 3
        gateway.send(signal.SIGKILL)
        await eventually(lambda: not any(map(alive, children)), 20)
    text = gateway.config.read_text()
    private = int(gateway.private.rpartition(":")[2])
    with launched(tmp_path / "again", text, gateway.port, private, "--workers", "2") as again:
        await again.event("gateway_started")


async def test_a_worker_has_its_own_sockets_only(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Each listens on one socket of the public port, the supervisor holds them all."""
    async with serving(
        tmp_path, valkey_url, free_port, "--workers", "3", rooms=room(upstream="http://127.0.0.1:9")
    ) as gateway:
        held = [_listening(pid, gateway.port) for pid in gateway.workers().values()]
        assert [len(inodes) for inodes in held] == [1, 1, 1]
        assert set.union(*held) == _listening(gateway.process.pid, gateway.port)
        assert len(set.union(*held)) == 3


def _listening(pid: int, port: int) -> set[str]:
    """Inodes of the sockets that a process has open, and that listen on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[9] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    opened = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            opened.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    return listening & opened


async def test_a_change_is_in_force_on_every_worker(tmp_path: Path, free_port: Port) -> None:
    """Through any worker to all of them; secrets that were made are the same for all."""
    async with shop() as origin:
        port, private = free_port(), free_port()
        text = configuration(tmp_path, "embedded", port, private, room(upstream=origin.url))
        text = "\n".join(line for line in text.splitlines() if not line.startswith("keys = "))
        with launched(tmp_path, text, port, private, "--workers", "3") as gateway:
            await gateway.event("gateway_started")
            cookie = await admitted(port)
            token = (tmp_path / "data" / "admin.token").read_text().strip()
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
                for _ in range(6):
                    async with session.get(f"{gateway.private}/v1/rooms/sale") as answer:
                        assert answer.status == 200
                body = {"author": "anna", "reason": "the sale is over"}
                async with session.post(f"{gateway.private}/v1/rooms/sale/drain", json=body) as answer:
                    assert answer.status == 200
                async with session.get(f"{gateway.private}/v1/rooms/sail") as answer:
                    assert (answer.status, "sale" in (await answer.json())["remedy"]) == (404, True)
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{gateway.private}/v1/rooms") as answer,
            ):
                assert answer.status == 401

            async def everywhere() -> bool:
                answers = await asyncio.gather(*(visit(gateway) for _ in range(24)))
                return all(b"shop" not in body[:9] and b"<html" in body for _, body in answers)

            await eventually(everywhere, 10)
            answers = await asyncio.gather(*(visit(gateway, cookie, name="in") for _ in range(24)))
            assert set(answers) == {(200, b"in 0")}


async def test_roles_hold_before_workers(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Each token may do what its role says, the audit names it, and each request is counted once."""
    file = tmp_path / "tokens"
    file.write_text("".join(token_line(role, role, f"the token of the {role}") + "\n" for role in Role))
    rooms, more = room(upstream="http://127.0.0.1:9"), f'[admin]\ntokens_file = "{file}"\n'
    said = {"author": "anna", "reason": "the sale is over"}
    async with (
        serving(tmp_path, valkey_url, free_port, "--workers", "2", rooms=rooms, more=more) as gateway,
        aiohttp.ClientSession() as session,
    ):

        async def ask(role: str, method: str, path: str, host: str = "") -> tuple[int, dict[str, Any]]:
            headers = {"Authorization": f"Bearer the token of the {role}"} if role else {}
            headers |= {"Host": host} if host else {}
            body = said if method == "POST" else None
            url = f"{gateway.private}{path}"
            async with session.request(method, url, json=body, headers=headers) as answer:
                assert answer.headers["Server"] == "waitingroom"
                assert answer.headers["Cache-Control"] == "no-store"
                return answer.status, await answer.json()

        assert (await ask("viewer", "GET", "/v1/rooms"))[0] == 200
        refused = await ask("viewer", "POST", "/v1/rooms/sale/pause")
        assert (refused[0], refused[1]["needed"]) == (403, "operator")
        assert (await ask("operator", "POST", "/v1/rooms/sale/pause"))[0] == 200
        refused = await ask("operator", "POST", "/v1/rooms/sale/epoch")
        assert (refused[0], refused[1]["needed"]) == (403, "admin")
        assert (await ask("stranger", "GET", "/v1/rooms"))[0] == 401
        assert (await ask("viewer", "GET", "/v1/audit?room=sale"))[1]["entries"][0]["by"] == "operator"
        assert (await ask("", "GET", "/v1/console.json"))[0] == 200
        assert (await ask("", "GET", "/v1/console.json", "evil.example"))[0] == 421
        for outcome, times in (("ok", 3), ("forbidden", 2), ("unauthenticated", 1), ("refused", 1)):
            assert await gateway.metric("admin_requests_total", outcome) == times


async def test_what_no_worker_can_start_with_ends_the_gateway(tmp_path: Path, free_port: Port) -> None:
    """With the code and the message of a single process, not in a loop."""
    port, private = free_port(), free_port()
    text = configuration(
        tmp_path, "redis://127.0.0.1:port", port, private, room(upstream="http://127.0.0.1:9")
    )
    with launched(tmp_path, text, port, private, "--workers", "2") as gateway:
        assert await gateway.ended() == 2
        message = gateway.log.read_text().splitlines()[-2:]
        assert "[store] url" in message[0]
        assert "redis://" in message[1]


async def test_no_start_where_others_listen(tmp_path: Path, valkey_url: str, free_port: Port) -> None:
    """Sharing the port is for the workers of one gateway: a second gateway is told that it is taken."""
    rooms = room(upstream="http://127.0.0.1:9")
    async with serving(tmp_path, valkey_url, free_port, "--workers", "2", rooms=rooms) as gateway:
        private = free_port()
        text = configuration(tmp_path, valkey_url, gateway.port, private, rooms)
        with launched(tmp_path / "second", text, gateway.port, private, "--workers", "2") as second:
            assert await second.ended() == 2
            assert "in use" in second.log.read_text()


async def test_a_second_signal_does_not_wait_for_workers(
    tmp_path: Path, valkey_url: str, free_port: Port
) -> None:
    """With a request under way SIGTERM waits for it; SIGINT then ends all of it, with code 1."""
    async with (
        shop() as origin,
        serving(
            tmp_path, valkey_url, free_port, "--workers", "2", rooms=room(upstream=origin.url)
        ) as gateway,
    ):
        cookie = await admitted(gateway.port)
        children = descendants(gateway.process.pid)
        async with dial(gateway.port) as wire:
            await wire.send(get("/held", f"Cookie: {cookie}", "X-Id: held"))
            await eventually(lambda: "held" in origin.begun)
            gateway.send(signal.SIGTERM)
            await eventually(lambda: _refused(gateway.port), 10)
            assert gateway.process.poll() is None
            gateway.send(signal.SIGINT)
            assert await gateway.ended() == 1
        assert not any(map(alive, children))


def _refused(port: int) -> bool:
    with socket.socket() as newcomer:
        newcomer.settimeout(3)
        return newcomer.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("served", "pauses"),
    [
        ([0.0], 0.0),
        ([0.0, 0.0], 0.1),
        ([0.0, 0.0, 0.0], 0.2),
        ([0.0, 0.0, SERVED], 0.0),
        ([0.0, SERVED, 0.0], 0.0),
        ([0.0] * 5, 5.0),
        ([0.0] * 12, 5.0),
    ],
)
def test_pauses_grow_while_they_do_not_help(served: list[float], pauses: float) -> None:
    """At once the first time, then ever longer, up to five seconds; a worker that served starts it anew."""
    deaths = [Death(100.0 * number, seconds) for number, seconds in enumerate(served)]
    close = [Death(float(number), seconds) for number, seconds in enumerate(served)]
    assert pause_after(close) == pytest.approx(pauses)
    assert pause_after(deaths) <= 5.0


def test_a_loop_is_five_deaths_in_a_minute_that_nobody_outlived() -> None:
    """Slow deaths, and workers that had served, are none; one that has served for ten seconds ends it."""
    fast = [Death(10.0 * number, 1.0) for number in range(5)]
    assert is_looping(fast)
    assert is_looping(fast, served=SERVED - 1)
    assert not is_looping(fast, served=SERVED)
    assert not is_looping(fast[1:])
    assert not is_looping([*fast[:4], Death(50.0, SERVED)])
    assert not is_looping([Death(20.0 * number, 1.0) for number in range(5)])
