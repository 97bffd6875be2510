"""What several commands have in common: their options and arguments."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Url = Annotated[str, typer.Option("--url", envvar="WAITINGROOM_URL", help="Private listener of the gateway.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with the admin token; else WAITINGROOM__ADMIN__TOKEN or ..._TOKEN_FILE, else "
        ".waitingroom/admin.token.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=64, help="Worker processes; else as [server] workers says.")
]
Author = Annotated[str | None, typer.Option("--author", help="Who changes it; else your login name.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads the audit.")]
Name = Annotated[str, typer.Argument(help="Name of the room.")]
PRIVATE = "http://127.0.0.1:9090"
