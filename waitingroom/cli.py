"""The command line: the only place that prints or exits.

What only one command needs is imported inside it, so that `--help` and `status` answer at once.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from waitingroom import __version__
from waitingroom.access import Role, token_line
from waitingroom.config import ConfigError, load
from waitingroom.load import app as load_app
from waitingroom.options import PRIVATE, Author, Config, Json, Name, Reason, TokenFile, Url, Workers

if TYPE_CHECKING:
    from waitingroom.remote import Remote

OK, FAILED, MISUSE, OUT_OF_REACH = 0, 1, 2, 3

_CODES = (
    "Exit codes: 0 done; 1 failed, or something was found; 2 misuse, or a configuration that cannot stand; "
    "3 the gateway or the store is out of reach."
)


def _epilog(*examples: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples) + f"\n\n{_CODES}"


def _group(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        epilog=_CODES,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


app = _group("A waiting room in front of a shop: a fair queue for the day when everybody comes at once.")
room_app = _group("Read and change the rooms of a running gateway.")
config_app = _group("What can be set.")
key_app = _group("Keys that sign tickets and passes, and tokens of the admin API.")
app.add_typer(room_app, name="room")
app.add_typer(config_app, name="config")
app.add_typer(key_app, name="key")
app.add_typer(load_app, name="load")


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:  # noqa: FBT002 - Typer's way to declare a flag
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog=_epilog(
        "waitingroom demo", "waitingroom demo --without-room", "waitingroom demo --seconds 60 --shoppers 300"
    )
)
def demo(
    *,
    without_room: Annotated[
        bool, typer.Option("--without-room", help="Let the same crowd meet the bare shop.")
    ] = False,
    shoppers: Annotated[int, typer.Option(min=1, max=5000, help="People before the shop.")] = 100,
    seconds: Annotated[float | None, typer.Option(min=1, help="End by itself after so long.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65533, help="Port of the shop; 0: free ones.")] = 8080,
    inside: Annotated[int, typer.Option(min=1, help="Most shoppers inside.")] = 25,
    rate: Annotated[int, typer.Option(min=1, help="Most who enter in a minute.")] = 120,
    as_json: Json = False,
) -> None:
    """Show what it is for: a small shop, a big crowd, a queue between.

    Needs nothing but this package. Prints the addresses to open, and a live line of what happens; Ctrl-C ends
    it all and leaves nothing behind. With --json the comparison at the end is JSON, the rest goes to standard
    error.
    """
    import asyncio
    from dataclasses import asdict

    from rich.console import Console

    from waitingroom.demo import Limits, run

    limits = None if without_room else Limits(inside, rate)
    with _told():
        summary = asyncio.run(run(Console(stderr=as_json), limits, shoppers, seconds, port))
    if as_json:
        _write_json(asdict(summary) | {"kept": summary.kept})
    raise typer.Exit(OK if summary.kept else FAILED)


@app.command(epilog=_epilog("waitingroom serve -c shop.toml", "waitingroom serve -c shop.toml --workers 4"))
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file with the settings.")],
    workers: Workers = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Log JSON, also on a terminal.")] = False,
) -> None:
    """Run a gateway until SIGTERM or SIGINT.

    It then finishes the requests under way; a second signal does not wait for them. SIGHUP has it read its
    configuration anew; SIGUSR2 replaces the workers one after another, where there are several.
    """
    import uvloop

    from waitingroom.orders import Source

    with _told():
        source = Source(config, workers)
        if source.read().server.workers > 1:
            from waitingroom.supervisor import run
        else:
            from waitingroom.process import run
        forced = uvloop.run(run(source, sys.stdout, as_json=True if as_json else None))
    raise typer.Exit(FAILED if forced else OK)


@app.command(epilog=_epilog("waitingroom check", "waitingroom check --config waitingroom.toml --json"))
def check(config: Config = None, *, as_json: Json = False) -> None:
    """Look over configuration and surroundings before the day.

    Each finding says what is, why it matters on the day, and how to mend it. Changes nothing. A warning or an
    error makes the exit code 1; a notice does not.
    """
    import asyncio

    from waitingroom.checks import Finding, Level
    from waitingroom.inspection import inspect
    from waitingroom.terminal import findings, stdout

    try:
        found = asyncio.run(inspect(load(config)))
    except ConfigError as error:
        why = "The gateway refuses to start with it."
        found = [Finding(Level.ERROR, error.where, error.what, why, error.remedy)]
    found.sort(key=lambda finding: list(Level).index(finding.level))
    bad = any(finding.level in (Level.WARNING, Level.ERROR) for finding in found)
    if as_json:
        _write_json({"ok": not bad, "findings": [finding.document() for finding in found]})
    else:
        stdout().print(findings(found))
    raise typer.Exit(FAILED if bad else OK)


@app.command(
    epilog=_epilog(
        "waitingroom status",
        "waitingroom status --once --json",
        "waitingroom status --url http://127.0.0.1:9091",
    )
)
def status(
    *,
    once: Annotated[bool, typer.Option("--once", help="Tell it once; 1 if something is wrong.")] = False,
    url: Url = PRIVATE,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Tell how the rooms are.

    Live on a terminal; elsewhere a line for each room every five seconds, or a JSON document with --json. No
    token is needed on the gateway's own machine, and none is sent that was not given for it.
    """
    from waitingroom.terminal import status_lines, watch

    remote = _remote(url, token_file, anonymous=True)
    with _told():
        if once:
            told = remote.numbers()
            _write_json(told) if as_json else typer.echo("\n".join(status_lines(told)))
            raise typer.Exit(FAILED if any(room["level"] == "bad" for room in told["rooms"]) else OK)
        watch(remote.numbers, url, as_json=as_json)


@room_app.command("list", epilog=_epilog("waitingroom room list", "waitingroom room list --json"))
def list_rooms(url: Url = PRIVATE, token_file: TokenFile = None, *, as_json: Json = False) -> None:
    """List the rooms with their limits and numbers."""
    from waitingroom.terminal import rooms, stdout

    with _told():
        views = _remote(url, token_file).rooms()
    _write_json({"rooms": views}) if as_json else stdout().print(rooms(views))


@room_app.command(epilog=_epilog("waitingroom room show sale"))
def show(name: Name, url: Url = PRIVATE, token_file: TokenFile = None, *, as_json: Json = False) -> None:
    """Show a room with its last changes."""
    from waitingroom.terminal import room, stdout

    with _told():
        remote = _remote(url, token_file)
        view, changes = remote.room(name), remote.audit(name, 5)
    _write_json(view | {"changes": changes}) if as_json else stdout().print(room(view, changes))


def _action(action: str, text: str, reason: str) -> None:
    """A command for an action that needs nothing but an author and a reason."""

    @room_app.command(
        action, help=text, epilog=_epilog(f'waitingroom room {action} sale --reason "{reason}"')
    )
    def command(
        name: Name,
        reason: Reason,
        author: Author = None,
        url: Url = PRIVATE,
        token_file: TokenFile = None,
        *,
        as_json: Json = False,
    ) -> None:
        _act(action, name, _who(author, reason), _remote(url, token_file), as_json=as_json)


_action(
    "pause",
    "Stop calling people. The waiting page says that the queue is paused; who is inside stays inside.",
    "payment provider is down",
)
_action("resume", "Let people in again. Undoes pause and drain.", "payments work again")
_action("drain", "Let nobody new in; people inside finish. Turns queue_all on.", "maintenance at noon")


@room_app.command(epilog=_epilog('waitingroom room epoch sale --yes --reason "rehearsal is over"'))
def epoch(
    name: Name,
    reason: Reason,
    author: Author = None,
    url: Url = PRIVATE,
    token_file: TokenFile = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Void every ticket and pass of a room.

    Everybody, inside or waiting, starts anew. Asks before it does so.
    """
    if not yes:
        typer.confirm(
            f"Everybody in {name}, inside or waiting, loses their place. Go on?", abort=True, err=True
        )
    _act("epoch", name, _who(author, reason), _remote(url, token_file), as_json=as_json)


@room_app.command(
    "set",
    epilog=_epilog(
        'waitingroom room set sale new_users_per_minute=300 --reason "origin at its limit"',
        'waitingroom room set sale total_active_users=800 message="Size 38 is sold out" --reason "tested"',
    ),
)
def set_(
    name: Name,
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="What to set to what.")],
    reason: Reason,
    author: Author = None,
    url: Url = PRIVATE,
    token_file: TokenFile = None,
    *,
    as_json: Json = False,
) -> None:
    """Change settings of a room.

    In force on every gateway within a second. 'waitingroom config explain' lists the settings.
    """
    from waitingroom.explain import room_values

    with _told():
        changes = room_values(settings)
        remote = _remote(url, token_file)
        before = remote.room(name)
        after = remote.change(name, before["version"], changes, _who(author, reason))
    _report(before, after, as_json=as_json)


@config_app.command(
    epilog=_epilog(
        "waitingroom config explain session_duration",
        "waitingroom config explain server --config waitingroom.toml",
    )
)
def explain(
    key: Annotated[str | None, typer.Argument(help="A setting, section or room; else all.")] = None,
    config: Config = None,
    *,
    as_json: Json = False,
) -> None:
    """Tell what a setting is and means.

    Its value and where that comes from, its default and its bounds. Secrets are withheld.
    """
    from dataclasses import asdict

    from waitingroom.explain import explain, select
    from waitingroom.terminal import explained, stdout

    with _told():
        rows = explain(load(config), config, os.environ)
        chosen = select(rows, key) if key else rows
    if as_json:
        _write_json({"settings": [asdict(row) for row in chosen]})
    else:
        stdout().print(explained(chosen))


@key_app.command(epilog=_epilog("(umask 077; waitingroom key new > signing.keys)"))
def new(*, as_json: Json = False) -> None:
    """Print a new secret of 32 random bytes, for [tokens] keys_file or [admin] token_file."""
    key = secrets.token_urlsafe(32)
    _write_json({"key": key}) if as_json else typer.echo(key)


@key_app.command(epilog=_epilog("waitingroom key token --name anna --role operator"))
def token(
    name: Annotated[str, typer.Option("--name", help="Who it is for; the audit names them.")],
    role: Annotated[Role, typer.Option("--role", help="What they may do.")],
    *,
    as_json: Json = False,
) -> None:
    """Print a new admin token, and below it its line for the file in [admin] tokens_file.

    The token has 256 random bits and is shown this once; the line has only its digest.
    """
    secret = secrets.token_urlsafe(32)
    with _told():
        line = token_line(name, role, secret)
    _write_json({"token": secret, "line": line}) if as_json else typer.echo(f"{secret}\n{line}")


@contextmanager
def _told() -> Iterator[None]:
    """Tells what went wrong in a sentence, with the remedy below it, instead of a traceback."""
    from waitingroom.embedded import EmbeddedError
    from waitingroom.remote import OutOfReachError, RefusedError

    try:
        yield
    except ConfigError as error:
        _fail(MISUSE, f"{error.where}: {error.what}", error.remedy)
    except RefusedError as error:
        code = {404: MISUSE, 422: MISUSE, 503: OUT_OF_REACH}.get(error.status, FAILED)
        _fail(code, str(error), error.remedy)
    except OutOfReachError as error:
        _fail(OUT_OF_REACH, f"{error}.", error.remedy)
    except EmbeddedError as error:
        _fail(OUT_OF_REACH, str(error))
    except OSError as error:
        _fail(FAILED, f"{error.strerror or error}.")


def _fail(code: int, what: str, remedy: str = "") -> NoReturn:
    typer.echo(f"waitingroom: {what}" + (f"\n  {remedy}" if remedy else ""), err=True)
    raise typer.Exit(code)


def _write_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))


def _who(author: str | None, reason: str) -> dict[str, str]:
    import getpass

    return {"author": author or getpass.getuser(), "reason": reason}


def _remote(url: str, token_file: Path | None, *, anonymous: bool = False) -> "Remote":
    from waitingroom.remote import reach

    with _told():
        return reach(url, token_file, os.environ, anonymous=anonymous)


def _act(action: str, name: str, who: dict[str, str], remote: "Remote", *, as_json: bool) -> None:
    with _told():
        before = remote.room(name)
        after = remote.act(name, action, who)
    _report(before, after, as_json=as_json)


def _report(before: dict[str, Any], after: dict[str, Any], *, as_json: bool) -> None:
    from waitingroom.terminal import difference

    _write_json(after) if as_json else typer.echo(difference(before, after))
