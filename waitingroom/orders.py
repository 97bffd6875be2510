"""The configuration as orders to processes: read from its file, read anew, handed on to workers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from waitingroom.config import ConfigError, Settings, TokenSettings, load_text, read

LONGEST = 64 * 1024 * 1024
"""Bytes of a line between a worker and its supervisor."""

RESTART: Mapping[str, tuple[str, ...]] = {
    "server": ("listen", "private_listen", "workers"),
    "store": ("url", "data", "tick", "timeout"),
    "log": ("format",),
}
"""Settings that are in force from the next start on, by section."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a gateway is configured by, with what its command line says.

    Attributes:
        path: of the file.
        workers: how many there are to be, whatever the file says; None: as it says.
    """

    path: Path
    workers: int | None = None

    def text(self) -> str:
        """What the file says now.

        Raises:
            ConfigError: it cannot be read.
        """
        return read(self.path)

    def read(self) -> Settings:
        """The settings as they are now; raises as `settings`, and as `text`."""
        return self.settings(self.text())

    def settings(self, text: str) -> Settings:
        """The settings that a text gives.

        Raises:
            ConfigError: it cannot stand.
        """
        settings = load_text(text, name=str(self.path))
        if not settings.rooms:
            remedy = "Add [[rooms]] with a name and an upstream."
            raise ConfigError(str(self.path), "has no room.", remedy)
        if self.workers is None:
            return settings
        return replace(settings, server=replace(settings.server, workers=self.workers))


def waiting_for_restart(running: Settings, wanted: Settings) -> list[str]:
    """The settings that differ from those that the gateway was started with, and need a restart."""
    old, new = asdict(running), asdict(wanted)
    changed = [
        f"[{section}] {name}"
        for section, names in RESTART.items()
        for name in names
        if old[section][name] != new[section][name]
    ]
    return changed + [
        f"[server] {name}"
        for name in ("tls_certificate", "private_tls_certificate")
        if bool(old["server"][name]) != bool(new["server"][name])
    ]


def kept_running(running: Settings, wanted: Settings) -> Settings:
    """The settings that are wanted, but for those that need a restart."""
    kept = {
        section: replace(
            getattr(wanted, section), **{name: getattr(getattr(running, section), name) for name in names}
        )
        for section, names in RESTART.items()
    }
    return replace(wanted, **kept)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is to be: a text that has been found good, and what must be the same for all workers.

    A worker that starts later gets the same as those that run, whatever has become of the files meanwhile.

    Attributes:
        path: of the file that the text is from.
        workers: how many there are.
        store_url: of the store that is running.
        keys: that sign and verify.
        visitor_key: of the hash of visitors in the log, in hexadecimal digits.
        as_json: form of the log; None: as the settings say.
    """

    path: str
    text: str
    workers: int
    store_url: str
    keys: Sequence[str]
    visitor_key: str
    as_json: bool | None

    def settings(self) -> Settings:
        """The settings of one worker; what is one gateway's to take is shared out.

        Raises:
            ConfigError: as `Source.settings`.
        """
        whole = Source(Path(self.path), self.workers).settings(self.text)
        server = replace(
            whole.server,
            max_connections=-(-whole.server.max_connections // self.workers),
            upstream_connections=max(1, whole.server.upstream_connections // self.workers),
        )
        store = replace(whole.store, url=self.store_url)
        return replace(whole, server=server, store=store, tokens=TokenSettings(keys=tuple(self.keys)))
