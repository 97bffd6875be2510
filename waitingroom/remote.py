"""Speaks to the private listener of a running gateway, with nothing but the standard library."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from waitingroom.config import PREFIX, ConfigError, StoreSettings

CA_FILE = "WAITINGROOM_CA_FILE"
"""Variable that names a file with the authorities to trust, instead of the system's."""


class OutOfReachError(Exception):
    """Nobody answered at the address, or not as a gateway does; `remedy` is what to do about it."""

    def __init__(
        self, what: str, remedy: str = "Is it running? --url says where its private listener is."
    ) -> None:
        super().__init__(what)
        self.remedy = remedy


class RefusedError(Exception):
    """The gateway answered with a problem.

    Attributes:
        status: of the answer.
        remedy: what to do about it.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or f"The gateway answered {status}.")
        self.status = status
        self.remedy = str(problem.get("remedy", ""))


class _NoRedirects(HTTPRedirectHandler):
    """A gateway never redirects; whoever does must not be shown the token."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


def _opener(context: ssl.SSLContext | None) -> OpenerDirector:
    # A proxy of the environment is for the outside world; it cannot reach our loopback.
    return build_opener(ProxyHandler({}), _NoRedirects(), HTTPSHandler(context=context))


@dataclass(frozen=True, slots=True)
class Remote:
    """A gateway's private listener.

    Attributes:
        url: such as http://127.0.0.1:9090.
        token: bearer token of the admin API; not needed for `numbers`.
        timeout: seconds.
        authorities: whom to trust with https; None: whom the system trusts.
    """

    url: str
    token: str = ""
    timeout: float = 5.0
    authorities: ssl.SSLContext | None = None

    def numbers(self) -> dict[str, Any]:
        """What the console shows.

        Raises:
            OutOfReachError: nobody answers.
            RefusedError: the gateway has a problem.
        """
        return self._ask("GET", "/v1/console.json")

    def rooms(self) -> list[dict[str, Any]]:
        """Every room; raises as `numbers`."""
        found: list[dict[str, Any]] = self._ask("GET", "/v1/rooms")["rooms"]
        return found

    def room(self, name: str) -> dict[str, Any]:
        """One room; raises as `numbers`."""
        return self._ask("GET", f"/v1/rooms/{_quoted(name)}")

    def audit(self, name: str, limit: int) -> list[dict[str, Any]]:
        """The last changes of a room, newest first; raises as `numbers`."""
        found: list[dict[str, Any]] = self._ask("GET", f"/v1/audit?room={_quoted(name)}&limit={limit}")[
            "entries"
        ]
        return found

    def change(self, name: str, version: int, changes: dict[str, Any], who: dict[str, str]) -> dict[str, Any]:
        """The room after a change that is based on `version`; raises as `numbers`."""
        return self._ask(
            "PATCH", f"/v1/rooms/{_quoted(name)}", {"set": changes, **who}, {"If-Match": f'"{version}"'}
        )

    def act(self, name: str, action: str, who: dict[str, str]) -> dict[str, Any]:
        """The room after pause, resume, drain or epoch; raises as `numbers`."""
        return self._ask("POST", f"/v1/rooms/{_quoted(name)}/{action}", who)

    def _ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        address = self.url.rstrip("/") + path
        data = None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        sent |= {"Content-Type": "application/json"} | (headers or {})
        if not address.startswith(("http://", "https://")):
            raise OutOfReachError(f"{self.url} is not an address; write for example http://127.0.0.1:9090")
        request = Request(address, data, sent, method=method)  # noqa: S310 - the scheme was looked at above
        try:
            with _opener(self.authorities).open(request, timeout=self.timeout) as response:
                return _document(response.read())
        except HTTPError as error:
            with error:
                raise RefusedError(error.code, _document(error.read())) from None
        except (URLError, http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                what = f"the certificate at {self.url} is not trusted: {reason.verify_message}"
                remedy = f"{CA_FILE} may name a file with the authority that signed it."
                raise OutOfReachError(what, remedy) from None
            raise OutOfReachError(f"no gateway answers at {self.url}: {reason}") from None


def reach(url: str, given: Path | None, environ: Mapping[str, str], *, anonymous: bool = False) -> Remote:
    """The private listener at an address, with the token and the authorities that are given.

    Args:
        url: of the listener.
        given: file with the token.
        environ: where token and authorities are looked for, too.
        anonymous: whether it may be asked without a token; then only one that was named for it is sent.

    Raises:
        ConfigError: the token or the authorities cannot be read.
    """
    named = given or any(environ.get(f"{PREFIX}ADMIN__{name}") for name in ("TOKEN", "TOKEN_FILE"))
    token = admin_token(given, environ) if named or not anonymous else ""
    file = environ.get(CA_FILE)
    try:
        authorities = ssl.create_default_context(cafile=file) if file else None
    except OSError as error:
        remedy = "Name a PEM file with the authority that signed the gateway's certificate."
        raise ConfigError(CA_FILE, f"{file} cannot be used: {error.strerror or error}.", remedy) from None
    return Remote(url, token, authorities=authorities)


def admin_token(given: Path | None, environ: Mapping[str, str]) -> str:
    """The token from the file that is given, or from where the gateway has it, too.

    Raises:
        ConfigError: it cannot be read.
    """
    token = environ.get(f"{PREFIX}ADMIN__TOKEN")
    if token and not given:
        return token
    data = Path(environ.get(f"{PREFIX}STORE__DATA", StoreSettings().data))
    path = given or Path(environ.get(f"{PREFIX}ADMIN__TOKEN_FILE", data / "admin.token"))
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Give the file with --token-file; the gateway makes admin.token in its data folder."
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError("admin token", f"{path} cannot be read: {reason}.", remedy) from None


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _document(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise OutOfReachError("what answers there is not a gateway")
    return found
