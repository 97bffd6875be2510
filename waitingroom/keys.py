"""What a gateway proves itself by, and others to it: signing keys, admin tokens, certificates.

All of it is read before anything else is done with it, so that what cannot be used changes nothing.
"""

import contextlib
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from waitingroom.access import Token, check_exposure, parse_tokens
from waitingroom.config import ConfigError, Settings
from waitingroom.orders import kept_running
from waitingroom.tickets import Keyring, KeyTooShortError


@dataclass(frozen=True, slots=True)
class Keys:
    """All that the settings of a gateway name, read and found good.

    Attributes:
        signing: the keys of tickets and passes; the first signs, all verify.
        tokens: of the admin API.
        tls, private_tls: what the two listeners are served with; None where there is no certificate.
    """

    signing: list[str]
    tokens: tuple[Token, ...]
    tls: ssl.SSLContext | None
    private_tls: ssl.SSLContext | None

    @classmethod
    def read(cls, settings: Settings) -> "Keys":
        """Read all of it; what may be made is made where it is missing, in the data folder.

        Raises:
            ConfigError: something cannot be used, or tokens would travel in clear text.
        """
        check_exposure(settings)
        server, data = settings.server, data_folder(settings)
        return cls(
            signing=signing_keys(settings, data),
            tokens=admin_tokens(settings, data),
            tls=tls_context(server.tls_certificate, server.tls_key, "[server] tls_certificate"),
            private_tls=tls_context(
                server.private_tls_certificate, server.private_tls_key, "[server] private_tls_certificate"
            ),
        )

    @property
    def keyring(self) -> Keyring:
        """The signing keys, ready to sign and verify."""
        return Keyring([key.encode() for key in self.signing])


def reread(running: Settings, wanted: Settings) -> tuple[Settings, Keys]:
    """What a running gateway takes over of the settings that are wanted, and what they name.

    Raises:
        ConfigError: something cannot be used, now or after a restart.
    """
    check_exposure(wanted)
    settings = kept_running(running, wanted)
    return settings, Keys.read(settings)


class Certificate:
    """What one listener is served with. A handshake gets that of today, not that of the start.

    Args:
        context: of the start; None for plain TCP, which no later one changes.

    Attributes:
        context: to listen with.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = self._today = context
        if context is not None:
            context.sni_callback = self._present

    def replace(self, context: ssl.SSLContext | None) -> None:
        """Present another one from the next handshake on; with none the last one stays."""
        self._today = context or self._today

    def _present(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._today is not None:
            handshake.context = self._today


def unusable(where: str, what: str, error: OSError, remedy: str) -> ConfigError:
    """What to raise when the system refuses something that a setting names."""
    reason = error.strerror or str(error)
    return ConfigError(where, f"{what} cannot be used: {reason}.", remedy)


def data_folder(settings: Settings) -> Path:
    """The folder for what is made where nothing is given, made if it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    data = Path(settings.store.data)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable("[store] data", str(data), error, "Name a folder that can be made.") from None
    return data


def signing_keys(settings: Settings, data: Path) -> list[str]:
    """The signing keys; only beside the embedded store is one made where none is given.

    Raises:
        ConfigError: there is none, or one cannot be used.
    """
    keys = list(settings.tokens.keys)
    if settings.tokens.keys_file:
        lines = _secret(settings.tokens.keys_file, "[tokens] keys_file").splitlines()
        keys += [line.strip() for line in lines]
    if not keys and settings.store.url == "embedded":
        keys = [_made(data / "signing.key")]
    keys = [key for key in keys if key]
    try:
        Keyring([key.encode() for key in keys])
    except KeyTooShortError as error:
        remedy = "Make one with: openssl rand -base64 32"
        raise ConfigError("[tokens] keys", f"{error}.", remedy) from None
    return keys


def admin_tokens(settings: Settings, data: Path) -> tuple[Token, ...]:
    """The tokens of the admin API; where none is given, one is made in the data folder.

    Raises:
        ConfigError: naming file, line and remedy.
    """
    admin = settings.admin
    plain, listed = admin.token or None, ""
    if admin.token_file:
        plain = _secret(admin.token_file, "[admin] token_file").strip()
    elif not plain and not admin.tokens_file:
        plain = _made(data / "admin.token")
    if admin.tokens_file:
        listed = _secret(admin.tokens_file, "[admin] tokens_file")
    return parse_tokens(listed, admin.tokens_file, plain)


def tls_context(certificate: str, key: str, where: str) -> ssl.SSLContext | None:
    """What TLS is served with; None where there is no certificate.

    Raises:
        ConfigError: certificate and key cannot be used together; `where` names the setting.
    """
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        remedy = "Both must be readable PEM files, and belong together."
        raise unusable(where, f"{certificate} with {key}", error, remedy) from None
    return context


def _secret(path: str, where: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise unusable(where, path, error, "Name a file that the gateway may read.") from None
    except UnicodeDecodeError:
        raise ConfigError(where, f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None


def _made(path: Path) -> str:
    """A secret kept in a file that only we may read; whoever comes first makes it, whole or not at all."""
    try:
        if not path.exists():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
            draft.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise unusable("[store] data", str(path), error, "Let the gateway write its data folder.") from None
