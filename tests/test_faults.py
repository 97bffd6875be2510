"""The relay does what a toxic says, at once and to everybody, and nothing else."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from redis.asyncio import Redis

from tests.conftest import eventually
from tests.wire import Wire, dial
from waitingroom import faults
from waitingroom.faults import Proxy, relay
from waitingroom.toxics import (
    Bandwidth,
    End,
    Latency,
    LimitData,
    Passed,
    Piece,
    ResetPeer,
    Slicer,
    SlowClose,
    Stream,
    Timeout,
    Toxic,
    shaped,
)

MEGABYTE = os.urandom(1_000_000)


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that says what it is told, until the other side has finished."""
    writers: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def behind() -> AsyncIterator[tuple[Proxy, Wire]]:
    """A relay before an echo, and a connection through it that has been used."""
    async with echo() as url, relay(url, chance=Random(7)) as proxy, dial(proxy.port) as wire:
        await wire.send(b"hello")
        assert await wire.exactly(5) == b"hello"
        yield proxy, wire


async def took(wire: Wire, size: int) -> float:
    """Seconds that so many bytes take there and back, and two milliseconds, by which a timer may be early."""
    start = time.monotonic() - 0.002
    sending = asyncio.create_task(wire.send(MEGABYTE[:size]))
    assert await wire.exactly(size) == MEGABYTE[:size]
    await sending
    return time.monotonic() - start


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def pieces(*toxics: Toxic, data: bytes = b"", end: End | None = None) -> list[Piece]:
    """What becomes of data of the moment 10."""
    return list(shaped(Piece(data, 10.0, end), toxics, {}, Random(7)))


async def test_without_a_toxic_everything_passes() -> None:
    """A megabyte comes back as it went, and an end is passed on both ways."""
    async with behind() as (proxy, wire):
        await took(wire, len(MEGABYTE))
        assert proxy.connections == 1
        wire.writer.write_eof()
        assert await wire.rest() == b""
        await eventually(lambda: proxy.connections == 0)


async def test_the_store_is_reached_by_a_url(valkey_url: str, tmp_path: Path) -> None:
    """A client of the store is given the relay's URL, on a port or on a Unix socket."""
    async with relay(valkey_url) as on_port, relay(valkey_url, path=tmp_path / "store.sock") as on_socket:
        assert on_port.url == f"redis://127.0.0.1:{on_port.port}"
        for proxy in (on_port, on_socket):
            async with Redis.from_url(proxy.url) as client:
                assert await client.ping()
                assert proxy.connections == 1


async def test_a_url_keeps_what_it_says_besides() -> None:
    """Only the place is another."""
    async with relay("redis://:secret@127.0.0.1:6379/3") as proxy:
        assert proxy.url == f"redis://:secret@127.0.0.1:{proxy.port}/3"


@pytest.mark.parametrize("target", ["127.0.0.1:6379", "redis://127.0.0.1", "redis://"])
async def test_a_target_names_a_place(target: str) -> None:
    """Whoever names none is told how to."""
    with pytest.raises(ValueError, match="names no place: say redis://host:port"):
        async with relay(target):
            pass


async def test_nobody_behind_it_is_a_reset(free_port: Callable[[], int]) -> None:
    """A server that is not there is not there for the client either."""
    async with relay(f"http://127.0.0.1:{free_port()}") as proxy, dial(proxy.port) as wire:
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()
        await eventually(lambda: proxy.connections == 0)


async def test_latency_befalls_an_open_connection() -> None:
    """What passes is late by so much, from the moment when it is switched on to the one when it is not."""
    async with behind() as (proxy, wire):
        slow = proxy.add(Latency(300))
        assert await took(wire, 10) >= 0.3
        proxy.remove(slow)
        assert await took(wire, 10) < 0.3


async def test_latency_delays_each_way_it_is_told_to() -> None:
    """Both ways is twice."""
    async with behind() as (proxy, wire):
        proxy.add(Latency(150, stream=Stream.BOTH))
        assert await took(wire, 10) >= 0.3


async def test_a_toxic_is_there_once() -> None:
    """An equal one is refused; others add up."""
    async with behind() as (proxy, wire):
        proxy.add(Latency(100))
        proxy.add(Latency(101))
        with pytest.raises(ValueError, match="in force already"):
            proxy.add(Latency(100))
        assert await took(wire, 10) >= 0.2
        proxy.clear()
        assert proxy.toxics == []


def test_jitter_overtakes_nothing() -> None:
    """Delays vary around the latency; the order of what passes does not."""
    passed: dict[Toxic, Passed] = {}
    chance = Random(7)
    at = [
        shaped(Piece(b"x", 10 + index / 100, None), [Latency(100, jitter=50)], passed, chance)[0].at
        for index in range(50)
    ]
    late = [left - 10 - index / 100 for index, left in enumerate(at)]
    assert at == sorted(at)
    assert min(late) >= 0.05
    assert 0.13 < max(late) <= 0.15


async def test_bandwidth_is_what_it_says() -> None:
    """50 kB at 100 kB/s take half a second, and arrive whole."""
    async with behind() as (proxy, wire):
        proxy.add(Bandwidth(100))
        assert 0.4 < await took(wire, 50_000) < 2


def test_bandwidth_lets_an_end_wait_its_turn() -> None:
    """The end of the data comes after the data; no rate at all is no rate."""
    found = pieces(Bandwidth(1), data=b"x" * 250, end=End.FINISH)
    assert [len(piece.data) for piece in found] == [100, 100, 50, 0]
    assert [piece.at for piece in found] == pytest.approx([10.1, 10.2, 10.25, 10.25])
    assert [piece.end for piece in found] == [None, None, None, End.FINISH]
    with pytest.raises(ValueError, match="rate is 0, and must be positive"):
        Bandwidth(0)


async def test_a_slow_way_holds_little() -> None:
    """Whoever sends into a slow relay is held up: it does not take in what it cannot pass on."""
    async with behind() as (proxy, wire):
        proxy.add(Bandwidth(1000, stream=Stream.UPSTREAM))
        (link,) = proxy._links
        wire.writer.write(MEGABYTE * 8)
        await eventually(lambda: link.client._resting)
        assert link.client._held < 1_000_000


async def test_out_of_reach_is_silence() -> None:
    """With `Timeout(0)` nothing answers and nothing is closed, until it is gone: then nobody can go on."""
    async with behind() as (proxy, wire):
        gone = proxy.add(Timeout(0))
        await wire.send(b"anybody?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.reader.read(1), 0.2)
        proxy.remove(gone)
        assert await wire.rest() == b""
        async with dial(proxy.port) as another:
            assert await took(another, 10) < 5


async def test_a_timeout_closes_in_the_end() -> None:
    """After its time, and for a connection that comes later after its own."""
    async with behind() as (proxy, wire):
        start = time.monotonic() - 0.002
        proxy.add(Timeout(200))
        await wire.send(b"anybody?")
        assert await wire.reader.read() == b""
        async with dial(proxy.port) as another:
            assert await another.reader.read() == b""
        assert time.monotonic() - start >= 0.4


async def test_a_timeout_that_is_taken_back_closes_at_once() -> None:
    """What was lost in it is lost; its timer does not fire at whoever comes next."""
    async with behind() as (proxy, wire):
        proxy.remove(proxy.add(Timeout(300)))
        assert await wire.rest() == b""
        assert proxy.connections == 0


async def test_a_lost_answer_is_lost_for_one_side_only() -> None:
    """Downstream alone: the server does what it is told, and the client never hears of it."""
    async with echo() as url, relay(url) as first, relay(first.url) as second, dial(second.port) as wire:
        second.add(Timeout(0, stream=Stream.DOWNSTREAM))
        first.add(LimitData(4, stream=Stream.UPSTREAM))
        await wire.send(b"done")
        await eventually(lambda: first.connections == 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.reader.read(1), 0.1)


async def test_a_reset_is_a_reset() -> None:
    """Not an orderly close; on open connections and on new ones."""
    async with behind() as (proxy, wire):
        proxy.add(ResetPeer())
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()
        async with dial(proxy.port) as another:
            with pytest.raises(ConnectionResetError):
                await another.reader.read()
    assert pieces(ResetPeer(), data=b"x") == []


async def test_a_slow_close_delays_the_end_alone() -> None:
    """The data is there at once, the end of it later."""
    async with behind() as (proxy, wire):
        proxy.add(SlowClose(300))
        start = time.monotonic() - 0.002
        await wire.send(b"bye")
        wire.writer.write_eof()
        assert await wire.exactly(3) == b"bye"
        assert time.monotonic() - start < 0.3
        assert await wire.rest() == b""
        assert time.monotonic() - start >= 0.3


async def test_a_limit_of_data_ends_the_connection_there() -> None:
    """So many bytes arrive, and then no more."""
    async with behind() as (proxy, wire):
        proxy.add(LimitData(7))
        await wire.send(b"four", b"five!")
        assert await wire.rest() == b"fourfiv"
        await eventually(lambda: proxy.connections == 0)


def test_slices_are_small_and_complete() -> None:
    """Of the average size, give or take, with the pause between two; the end comes after the last."""
    found = pieces(Slicer(10, 3, delay=1000), data=MEGABYTE[:100], end=End.FINISH)
    *slices, last = found
    assert b"".join(piece.data for piece in slices) == MEGABYTE[:100]
    assert {len(piece.data) for piece in slices[:-1]} <= set(range(7, 14))
    assert slices[1].at - slices[0].at == pytest.approx(0.001)
    assert last == Piece(b"", slices[-1].at, End.FINISH)
    with pytest.raises(ValueError, match="size_variation must be less than average_size, which is 3"):
        Slicer(3, 3)


async def test_down_refuses_and_cuts_and_up_is_the_same_place(tmp_path: Path) -> None:
    """On a port and on a Unix socket."""
    async with behind() as (proxy, wire):
        port = proxy.port
        await proxy.down()
        await proxy.down()
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.up()
        await proxy.up()
        async with dial(port) as another:
            await took(another, 10)
    async with echo() as url, relay(url, path=tmp_path / "s") as proxy:
        await proxy.down()
        with pytest.raises(OSError, match=r"No such file|refused"):
            await asyncio.open_unix_connection(tmp_path / "s")
        await proxy.up()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.transport.abort()


async def test_nothing_is_left_open() -> None:
    """At the end of the block nobody is connected, not even somebody who reads nothing."""

    async def hold_up() -> None:
        async with relay(url) as proxy, dial(proxy.port) as wire:
            wire.writer.write(MEGABYTE * 64)
            await eventually(lambda: any(link.client.full for link in proxy._links))
            for link in proxy._links:
                link.end(End.CLOSE)
            assert proxy.connections == 0
        await eventually(lambda: proxy._links == set())

    async with echo() as url:
        await hold_up()
        before = descriptors()
        await hold_up()
        await eventually(lambda: descriptors() <= before)


async def test_processes_freeze_thaw_and_die() -> None:
    """A frozen process says nothing until it is thawed; a killed one never again."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-uc", "while True: print(input())"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    faults.freeze(process.pid)
    process.stdin.write(b"hello\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.stdout.read(1), 0.2)
    faults.thaw(process.pid)
    assert await asyncio.wait_for(process.stdout.readline(), 5) == b"hello\n"
    faults.kill(process.pid)
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL
