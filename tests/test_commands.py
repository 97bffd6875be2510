"""Every command in the documentation is run, in the order in which a reader would."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from waitingroom.storefront import Storefront

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "monitoring").glob("*.md")),
    *sorted((ROOT / "runbooks").glob("*.md")),
]
FENCE = re.compile(r"^```(sh|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {page.name: FENCE.findall(page.read_text()) for page in PAGES}
WITH_COMMANDS = [name for name, blocks in BLOCKS.items() if any(language == "sh" for language, _ in blocks)]

GATEWAY = """
[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:8000"
"""

FINDINGS = 1
"""Exit code of `waitingroom check` where it has found something, which depends on the machine."""


def commands(text: str) -> list[str]:
    """The lines of a block of shell, without comments, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := re.sub(r"\s+#.*", "", line).strip())]


class Reader:
    """Somebody who follows a page: writes what it shows, runs what it says, in an empty folder."""

    def __init__(self, folder: Path, ports: tuple[int, int], origin: str, ended: ExitStack) -> None:
        self.folder, self.origin, self._ended = folder, origin, ended
        self._url = f"http://127.0.0.1:{ports[1]}"
        self._env = {name: value for name, value in os.environ.items() if "WAITINGROOM" not in name} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WAITINGROOM__SERVER__LISTEN": f"127.0.0.1:{ports[0]}",
            "WAITINGROOM__SERVER__PRIVATE_LISTEN": f"127.0.0.1:{ports[1]}",
            "WAITINGROOM_URL": self._url,
        }

    def write(self, toml: str) -> None:
        """Keep a configuration; the shop it names is the one that runs here."""
        shop = re.sub(r"http://127\.0\.0\.1:8000", self.origin, toml)
        (self.folder / "waitingroom.toml").write_text(shop)

    def follow(self, command: str) -> None:
        """Run one command, which must do what the page says it does."""
        words = shlex.split(command)
        if words[0] == "make":
            self._make(words[1:])
        elif words[0] == "git":
            assert words[1] == "clone", command
        elif words[:2] == ["waitingroom", "serve"]:
            self._serve(words)
        elif words[:2] == ["waitingroom", "demo"]:
            self._run([*words, "--seconds", "2", "--shoppers", "5", "--port", "0"])
        elif words == ["waitingroom", "status"]:
            self._watch(words)
        elif words[0] == "curl":
            self._run(
                ["bash", "-c", command.replace("http://127.0.0.1:9090", self._url) + " --fail-with-body"]
            )
        else:
            self._run(words, allowed=(0, FINDINGS) if words[1] == "check" else (0,))

    def _make(self, words: list[str]) -> None:
        """A verb of the Makefile: the demonstration is run, the rest, this very test too, only planned."""
        run = ["demo", "ARGS=--seconds 2 --shoppers 5 --port 0"]
        self._run(["make", *(run if words == ["demo"] else ["--dry-run", *words])], folder=ROOT)

    def _run(self, words: list[str], allowed: tuple[int, ...] = (0,), folder: Path | None = None) -> None:
        where = folder or self.folder
        done = subprocess.run(words, cwd=where, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode in allowed, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"

    def _watch(self, words: list[str]) -> None:
        """What goes on until it is interrupted is right if it says something."""
        with subprocess.Popen(words, cwd=self.folder, env=self._env, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.terminate()

    def _serve(self, words: list[str]) -> None:
        process = subprocess.Popen(words, cwd=self.folder, env=self._env, stdout=subprocess.DEVNULL)
        self._ended.callback(process.wait, 10)
        self._ended.callback(process.terminate)
        deadline = time.monotonic() + 20
        probe = ["waitingroom", "status", "--once"]
        while subprocess.run(probe, env=self._env, capture_output=True, check=False).returncode:
            assert process.poll() is None, "the gateway has ended"
            assert time.monotonic() < deadline, "the gateway does not answer"


@pytest.fixture
def reader(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[[str], Reader]]:
    """Give the reader of a page, once it is known where the shop is."""
    with ExitStack() as ended:
        yield lambda origin: Reader(tmp_path, (free_port(), free_port()), origin, ended)


@pytest.mark.parametrize("page", WITH_COMMANDS)
async def test_commands_in_the_documentation_work(page: str, reader: Callable[[str], Reader]) -> None:
    """Whoever copies the commands of a page, in order, sees each of them succeed."""
    shop = Storefront()
    host, port = await shop.start()
    try:
        follower = reader(f"http://{host}:{port}")
        if "waitingroom serve" not in str(BLOCKS[page]) and "waitingroom " in str(BLOCKS[page]):
            # A page that only speaks of a running gateway finds one.
            follower.write(GATEWAY)
            await asyncio.to_thread(follower.follow, "waitingroom serve --config waitingroom.toml")
        for language, text in BLOCKS[page]:
            if language == "toml":
                follower.write(text)
                continue
            for command in commands(text):
                await asyncio.to_thread(follower.follow, command)
    finally:
        await shop.stop()
