"""What the command line promises, on a real gateway in a process of its own."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.test_architecture import ROOT
from tests.wire import tls_contexts
from waitingroom import __version__
from waitingroom.access import Role, Token, digest, parse_tokens, token_line
from waitingroom.cli import app
from waitingroom.config import SECTIONS, load_text
from waitingroom.explain import explain
from waitingroom.room import Room
from waitingroom.tickets import Keyring

COMMAND = [sys.executable, "-m", "waitingroom"]

CONFIGURATION = """
[server]
listen = "127.0.0.1:0"
private_listen = "127.0.0.1:0"
[store]
url = "embedded"
data = "{data}"
tick = "200ms"
timeout = "2s"
[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:{upstream}"
"""


def wait_for(holds: Any, seconds: float = 10.0) -> Any:
    """The first true answer; fails when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"{holds} did not hold within {seconds} s"
        select.select([], [], [], 0.02)
    return answer


@dataclass
class Gateway:
    """`waitingroom serve` in a process of its own."""

    process: subprocess.Popen[str]
    data: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def event(self, name: str) -> dict[str, Any]:
        """The first log line of that name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == name:
                return self.lines[-1]
        pytest.fail(f"the gateway ended without saying {name}")

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()


@contextmanager
def serving(folder: Path, upstream: int = 9) -> Iterator[Gateway]:
    config = folder / "waitingroom.toml"
    config.write_text(CONFIGURATION.format(data=folder / "data", upstream=upstream))
    with subprocess.Popen(
        [*COMMAND, "serve", "--config", str(config)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Gateway(process, folder / "data")
        finally:
            process.kill()


@dataclass
class Shell:
    """A terminal beside a running gateway."""

    gateway: Gateway
    url: str

    def run(self, *words: str, **options: Any) -> Result:
        environ = {
            "WAITINGROOM_URL": self.url,
            "WAITINGROOM__STORE__DATA": str(self.gateway.data),
            "USER": "ana",
            "LOGNAME": "ana",
        }
        result = run(*words, env=environ, **options)
        assert self.gateway.token not in result.output
        return result


def run(*words: str, **options: Any) -> Result:
    result = CliRunner().invoke(app, list(words), **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, str]]:
    """One gateway for all tests of this file that only talk to it, with its private address."""
    with serving(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway, f"http://{gateway.event('gateway_started')['private']}"


@pytest.fixture
def shell(started: tuple[Gateway, str]) -> Shell:
    """A terminal beside a running gateway whose room is as it was in the beginning."""
    shell = Shell(*started)
    shell.run("room", "resume", "sale", "--reason", "next test")
    wait_for(lambda: shell.run("status", "--once").stdout.startswith("sale: open"))
    return shell


def settings_of(shell: Shell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shell.run("room", "show", "sale", "--json").stdout)["settings"]
    return found


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is no group, with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def help_of(words: tuple[str, ...]) -> str:
    result = run(*words, "--help", terminal_width=90, prog_name="waitingroom")
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    """The help of each command has an example that begins as it is called, its exit codes, and `--json`."""
    told = help_of(words)
    assert "Examples:" in told
    assert "Exit codes:" in told
    # A recorded session becomes a Python module.
    assert words == ("load", "from-har") or "--json" in told
    assert words == ("key", "new") or f"\n    waitingroom {' '.join(words)}" in told


def test_the_reference_is_equal_to_the_commands() -> None:
    """docs/cli.md holds the help of every command word for word, and of no other."""
    text = (ROOT / "docs" / "cli.md").read_text()
    blocks = dict(
        re.findall(r"^### `waitingroom ([a-z -]+)`\n+```text\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    )
    assert blocks == {" ".join(words): help_of(words) for words in COMMANDS}


def test_examples_are_commands_that_exist() -> None:
    """Every option that an example uses is one of its command."""
    for words, command in COMMANDS.items():
        options = {name for parameter in command.params for name in parameter.opts}
        for example in re.findall(
            rf"^    waitingroom {' '.join(words)}\b(.*)$", help_of(words), re.MULTILINE
        ):
            used = set(re.findall(r"(?<=\s)--[a-z-]+", re.sub(r'"[^"]*"', "", example)))
            assert used <= options, example


def test_version_is_told() -> None:
    """`--version` prints the version and nothing else."""
    assert run("--version").stdout == f"{__version__}\n"


def test_serve_ends_cleanly_when_asked_to(tmp_path: Path) -> None:
    """SIGTERM ends a gateway with code 0, its store with it, and the log is JSON where nobody looks on."""
    with serving(tmp_path) as gateway:
        private = gateway.event("gateway_started")["private"]
        children = (
            Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
        )
        assert run("status", "--once", "--url", f"http://{private}").exit_code == 0
        gateway.process.terminate()
        assert gateway.process.wait(10) == 0
        assert children
        assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """With a request under way SIGTERM waits for it; a second signal ends it, with code 1."""
    with (
        socket.create_server(("127.0.0.1", 0)) as origin,
        serving(tmp_path, origin.getsockname()[1]) as gateway,
    ):
        origin.settimeout(10)
        host, _, port = gateway.event("gateway_started")["public"].rpartition(":")
        with socket.create_connection((host, int(port))) as shopper:
            shopper.sendall(b"GET / HTTP/1.1\r\nHost: shop.example\r\nAccept: text/html\r\n\r\n")
            with origin.accept()[0]:
                gateway.process.terminate()

                def refuses() -> bool:
                    with socket.socket() as newcomer:
                        return newcomer.connect_ex((host, int(port))) != 0

                wait_for(refuses)
                assert gateway.process.poll() is None
                gateway.process.send_signal(signal.SIGINT)
                assert gateway.process.wait(5) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nlissten = '127.0.0.1:1'", "Did you mean listen?"),
        ("[[rooms]]\nname = 'sale'", "upstream"),
        ("[store", "not TOML"),
        ("", "no room"),
        ("[[rooms]]\nname='a'\nupstream='http://127.0.0.1:9'\n[server]\nlisten='192.0.2.1:80'", "192.0.2.1"),
        ("[[rooms]]\nname='a'\nupstream='http://127.0.0.1:9'\n[store]\nurl='redis://127.0.0.1:1'", "key"),
    ],
    ids=["unknown", "missing", "syntax", "empty", "address", "no key"],
)
def test_a_bad_configuration_is_one_clear_message(tmp_path: Path, text: str, named: str) -> None:
    """`serve` refuses what cannot stand with code 2, in two lines at most, without a traceback."""
    config = tmp_path / "bad.toml"
    config.write_text(text)
    environ = os.environ | {"WAITINGROOM__STORE__DATA": str(tmp_path / "data")}
    result = subprocess.run(
        [*COMMAND, "serve", "-c", str(config)], capture_output=True, text=True, check=False, env=environ
    )
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_a_missing_configuration_is_misuse(tmp_path: Path) -> None:
    """A file that is not there is named, with code 2."""
    result = run("serve", "--config", str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert "none.toml" in result.stderr


@pytest.mark.parametrize(
    ("action", "key", "value"), [("pause", "paused", True), ("drain", "queue_all", True)]
)
def test_a_room_is_changed_from_the_terminal(shell: Shell, action: str, key: str, value: object) -> None:
    """Pause and drain are one command, say what they did, and are undone by resume."""
    result = shell.run("room", action, "sale", "--reason", "a test")
    assert result.exit_code == 0
    assert f"{key}: false → true" in result.stdout
    assert settings_of(shell)[key] is value
    assert "nothing to change" in shell.run("room", action, "sale", "--reason", "again").stdout
    assert f"{key}: true → false" in shell.run("room", "resume", "sale", "--reason", "over").stdout


def test_who_changed_a_room_is_shown(shell: Shell) -> None:
    """The last changes of a room are shown with author and reason; not given, it is the login name."""
    shell.run("room", "pause", "sale", "--reason", "payments down")
    shell.run("room", "resume", "sale", "--reason", "payments up", "--author", "ben")
    told = shell.run("room", "show", "sale").stdout
    assert "ana: paused = true (payments down)" in told
    assert "ben: paused = false (payments up)" in told


def test_a_change_without_a_reason_is_misuse(shell: Shell) -> None:
    """No reason, no change."""
    assert shell.run("room", "pause", "sale").exit_code == 2
    assert settings_of(shell)["paused"] is False


def test_settings_are_changed_in_the_words_of_the_file(shell: Shell) -> None:
    """Numbers, durations, switches, lists and texts are written as in the configuration."""
    words = ["new_users_per_minute=90", "session_duration=2m", "queue_all=on", "hosts=a.example, b.example"]
    result = shell.run(
        "room", "set", "sale", *words, "message=Size 38 is sold out", "--reason", "test", "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["settings"]
    assert (found["new_users_per_minute"], found["session_duration"], found["queue_all"]) == (90, 120, True)
    assert (found["hosts"], found["message"]) == (["a.example", "b.example"], "Size 38 is sold out")
    shell.run("room", "set", "sale", "hosts=", "--reason", "test")
    assert settings_of(shell)["hosts"] == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["set", "sale", "new_user_per_minute=5"], "Did you mean new_users_per_minute?"),
        (["set", "sale", "paused"], "key=value"),
        (["set", "sale", "total_active_users=many"], "total_active_users"),
        (["set", "sale", "queue_all=perhaps"], "queue_all"),
        (["pause", "sail"], "Did you mean sale?"),
        (["pause", "a/../sale"], "a/../sale"),
        (["pause", "no such ünïcode?"], "sale"),
    ],
)
def test_misuse_is_told_with_the_nearest_name(shell: Shell, words: list[str], named: str) -> None:
    """What cannot be meant is refused with code 2, and a suggestion."""
    result = shell.run("room", *words, "--reason", "test")
    assert result.exit_code == 2, result.output
    assert named in result.stderr


def test_raising_the_epoch_asks_first(shell: Shell) -> None:
    """Without `--yes`, and without a yes, nobody loses their place."""
    before = settings_of(shell)["epoch"]
    assert shell.run("room", "epoch", "sale", "--reason", "test", input="n\n").exit_code == 1
    assert settings_of(shell)["epoch"] == before
    assert shell.run("room", "epoch", "sale", "--reason", "test", "--yes").exit_code == 0
    assert settings_of(shell)["epoch"] == before + 1


def test_rooms_are_listed(shell: Shell) -> None:
    """The list has every room with its limits, and what is switched."""
    shell.run("room", "drain", "sale", "--reason", "test")
    told = shell.run("room", "list").stdout
    assert re.search(r"sale .* inside, .* a minute .*queue_all", told)
    assert json.loads(shell.run("room", "list", "--json").stdout)["rooms"][0]["name"] == "sale"


def test_a_wrong_token_is_told(shell: Shell, tmp_path: Path) -> None:
    """A token that does not count is a failure; one that cannot be read is misuse; neither is repeated."""
    wrong = tmp_path / "wrong.token"
    wrong.write_text("something else\n")
    result = shell.run("room", "list", "--token-file", str(wrong))
    assert result.exit_code == 1
    assert "something else" not in result.output
    assert shell.run("room", "list", "--token-file", str(tmp_path / "none")).exit_code == 2


def test_the_token_may_come_from_the_environment(shell: Shell) -> None:
    """The variables that give the gateway its token give it to the command line, too."""
    for variable, value in (
        ("WAITINGROOM__ADMIN__TOKEN", shell.gateway.token),
        ("WAITINGROOM__ADMIN__TOKEN_FILE", str(shell.gateway.data / "admin.token")),
    ):
        result = run("room", "list", env={"WAITINGROOM_URL": shell.url, variable: value})
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--once"], ["room", "list"], ["room", "pause", "sale", "--reason", "x"]]
)
def test_a_gateway_out_of_reach_is_code_3(words: list[str], free_port: Any) -> None:
    """Where nobody answers, the address is named, with code 3."""
    url = f"http://127.0.0.1:{free_port()}"
    environ = {"WAITINGROOM_URL": url, "WAITINGROOM__ADMIN__TOKEN": "a token of some length"}
    result = run(*words, env=environ)
    assert result.exit_code == 3
    assert url in result.stderr


def test_what_is_no_gateway_is_told(free_port: Any) -> None:
    """An address without a scheme, or a server of another kind, is out of reach, not a traceback."""
    assert run("status", "--once", "--url", "localhost:9090").exit_code == 3
    with socket.create_server(("127.0.0.1", free_port())) as other:
        url = "http://{}:{}".format(*other.getsockname())
        with subprocess.Popen(
            [*COMMAND, "status", "--once", "--url", url], stderr=subprocess.PIPE
        ) as process:
            with other.accept()[0] as connection:
                connection.sendall(b"220 mail.example ready\r\n\r\n")
            assert process.wait(10) == 3


def test_status_once_is_a_line_for_each_room(shell: Shell) -> None:
    """One line a room with everything that matters, code 0 while nothing is wrong; the same as JSON."""
    result = shell.run("status", "--once")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"sale: open, inside 0 of \d+, waiting 0, offered 0, admitted .* ago\n", result.stdout
    )
    (told,) = json.loads(shell.run("status", "--once", "--json").stdout)["rooms"]
    assert (told["name"], told["level"]) == ("sale", "good")


def test_status_is_live_on_a_terminal(shell: Shell) -> None:
    """On a terminal the rooms are redrawn until Ctrl-C, which is no failure."""
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([*COMMAND, "status", "--url", shell.url], stdout=theirs, env=environ) as process:
        os.close(theirs)
        seen = ""

        def drawn_twice() -> bool:
            nonlocal seen
            seen += os.read(ours, 65536).decode(errors="replace")
            return seen.count("sale") > 1

        wait_for(drawn_twice)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    os.close(ours)
    assert "● open" in seen


def test_status_elsewhere_is_plain_lines(shell: Shell) -> None:
    """Into a pipe, status writes lines (or JSON lines) without any control character."""
    for option in ([], ["--json"]):
        command = [*COMMAND, "status", "--url", shell.url, *option]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 0
        assert "\x1b" not in line
        assert json.loads(line)["rooms"] if option else line.startswith("sale: open")


def test_explain_tells_where_a_value_comes_from(tmp_path: Path) -> None:
    """Environment before file before default; the value is written as in the file."""
    config = tmp_path / "waitingroom.toml"
    config.write_text(CONFIGURATION.format(data="here", upstream=9) + 'session_duration = "90s"')
    environ = {"WAITINGROOM__STORE__TICK": "500ms"}

    def told(key: str) -> str:
        return run("config", "explain", key, "--config", str(config), env=environ).stdout

    assert re.search(
        r"store.tick = 0.5s\n.*\n  from: environment WAITINGROOM__STORE__TICK; default: 1s", told("tick")
    )
    assert re.search(r"rooms.sale.session_duration = 1.5m|90s\n", told("session_duration"))
    assert "waitingroom.toml" in told("rooms.sale.session_duration").replace("\n", "")
    assert "from: default" in told("total_active_users")
    assert told("server").count("server.") >= 10


def test_explain_knows_every_setting() -> None:
    """Every setting of every section and of rooms is explained, with its meaning."""
    rows = explain(load_text("", {}), None, {})
    assert len(rows) == sum(len(fields(kind)) for kind in SECTIONS.values()) + len(fields(Room)) - 1
    assert all(row.meaning and row.default for row in rows)


def test_explain_withholds_secrets(tmp_path: Path) -> None:
    """A key or token in the configuration is never printed, as text or JSON."""
    config = tmp_path / "waitingroom.toml"
    config.write_text(
        "[tokens]\nkeys = ['a very secret key of more than 32 bytes']\n[admin]\ntoken = 'a very secret token'"
    )
    for option in ([], ["--json"]):
        told = run("config", "explain", "--config", str(config), *option).output
        assert "very secret" not in told
        assert "withheld" in told


def test_explain_suggests_the_nearest_setting() -> None:
    """A mistyped setting is misuse, with what was probably meant."""
    result = run("config", "explain", "sesion_duration")
    assert result.exit_code == 2
    assert "Did you mean session_duration?" in result.stderr


def test_a_new_key_signs() -> None:
    """A new key is long enough to sign with, and never the same."""
    first, second = run("key", "new").stdout.strip(), json.loads(run("key", "new", "--json").stdout)["key"]
    assert first != second
    Keyring([first.encode(), second.encode()])


def test_a_new_token_is_told_with_its_line() -> None:
    """The token has 256 bits and never comes twice; the line beside it is what the gateway reads."""
    words = ["key", "token", "--name", "anna", "--role", "operator"]
    secret, line = run(*words).stdout.splitlines()
    told = json.loads(run(*words, "--json").stdout)
    assert (len(secret), len(told["token"])) == (43, 43)
    assert secret != told["token"]
    assert parse_tokens(line, "f") == (Token("anna", Role.OPERATOR, digest(secret)),)
    assert parse_tokens(told["line"], "f") == (Token("anna", Role.OPERATOR, digest(told["token"])),)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--name", "a b", "--role", "viewer"], "at most 64 letters"),
        (["--name", "a", "--role", "boss"], "viewer"),
    ],
)
def test_a_token_that_nobody_could_use_is_misuse(words: list[str], named: str) -> None:
    """A name that would break the file, and a role that there is not, are refused with code 2."""
    result = run("key", "token", *words)
    assert result.exit_code == 2
    assert named in result.stderr


def test_a_role_that_does_not_suffice_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may only look is told what it would take; one that may act stands in the audit."""
    for role in Role:
        (tmp_path / role).write_text(f"a-token-of-the-tests-for-the-role-{role}")
    lines = [token_line(f"our-{role}", role, (tmp_path / role).read_text()) for role in Role]
    (tmp_path / "tokens").write_text("\n".join(lines))
    monkeypatch.setenv("WAITINGROOM__ADMIN__TOKENS_FILE", str(tmp_path / "tokens"))
    with serving(tmp_path) as gateway:
        environ = {"WAITINGROOM_URL": f"http://{gateway.event('gateway_started')['private']}", "USER": "ana"}

        def room(role: str, *words: str) -> Result:
            return run("room", *words, "--token-file", str(tmp_path / role), env=environ)

        looked, acted = room("viewer", "list"), room("operator", "pause", "sale", "--reason", "test")
        assert (looked.exit_code, acted.exit_code) == (0, 0), acted.output
        refused = room("viewer", "resume", "sale", "--reason", "test")
        assert (refused.exit_code, "operator" in refused.stderr) == (1, True)
        refused = room("operator", "set", "sale", "suspended=on", "--reason", "test")
        assert (refused.exit_code, "admin" in refused.stderr) == (1, True)
        assert "ana: paused = true (test), token our-operator" in room("viewer", "show", "sale").stdout


def test_a_gateway_elsewhere_is_asked_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate must be trusted, and `status` needs a token, which is only sent if it was named."""
    tls_contexts(tmp_path)
    both = str(tmp_path / "both.pem")
    monkeypatch.setenv("WAITINGROOM__SERVER__PRIVATE_LISTEN", "0.0.0.0:0")
    for name in ("CERTIFICATE", "KEY"):
        monkeypatch.setenv(f"WAITINGROOM__SERVER__PRIVATE_TLS_{name}", both)
    with serving(tmp_path) as gateway:
        port = gateway.event("gateway_started")["private"].rpartition(":")[2]
        url, data = f"https://127.0.0.1:{port}", str(tmp_path / "data")
        environ = {"WAITINGROOM_URL": url, "WAITINGROOM_CA_FILE": both, "WAITINGROOM__STORE__DATA": data}
        assert run("room", "list", env=environ).exit_code == 0
        unnamed = run("status", "--once", env=environ)
        assert (unnamed.exit_code, "token" in unnamed.stderr) == (1, True)
        named = run("status", "--once", "--token-file", f"{data}/admin.token", env=environ)
        assert named.exit_code == 0, named.output
        stranger = run("room", "list", env=environ | {"WAITINGROOM_CA_FILE": ""})
        assert (stranger.exit_code, "WAITINGROOM_CA_FILE" in stranger.stderr) == (3, True)
        assert run("room", "list", "--url", url.replace("https", "http"), env=environ).exit_code == 3
        for file in ("/nowhere.pem", str(tmp_path / "waitingroom.toml")):
            missing = run("room", "list", env=environ | {"WAITINGROOM_CA_FILE": file})
            assert (missing.exit_code, file in missing.stderr) == (2, True)


def test_demo_can_be_compared_by_a_program() -> None:
    """With `--json` the end of a demonstration is one document on standard output."""
    command = [
        *COMMAND,
        "demo",
        "--without-room",
        "--seconds",
        "1",
        "--shoppers",
        "5",
        "--port",
        "0",
        "--json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["limit"] is None
