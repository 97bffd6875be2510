"""One shopper's browser, as thin as it can be: one connection that is kept, one jar of cookies, HTTP/1.1.

Plain blocking sockets: in a run, gevent makes of each shopper a greenlet, so thousands of them share a core.
"""

import contextlib
import errno
import gzip
import socket
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode, urljoin, urlsplit

_MOST = 16 * 1024 * 1024  # bytes of an answer; a shop's page is smaller
_REDIRECTS = 5
_AGENTS = {
    "mobile": "Mozilla/5.0 (Linux; Android 15; K) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36",
    "desktop": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36",
}
PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
OWN_LIMIT = "generator out of files or ports"
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)
_SEE_OTHER = (301, 302, 303, 307, 308)


class Unanswered(Exception):  # noqa: N818 - it says what happened
    """No answer came: `kind` is refused, timeout, broken, `OWN_LIMIT`, or what a redirect did."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class Site:
    """Where the target is, looked up once for everybody.

    Attributes:
        origin: scheme, host and port as shoppers write them.
        address: what sockets connect to.
        tls: how its certificate is checked, by the system's authorities; None without TLS.
    """

    origin: str
    host: str
    authority: str
    family: int
    address: tuple[str, int] | tuple[str, int, int, int]
    tls: ssl.SSLContext | None

    @classmethod
    def find(cls, origin: str) -> "Site":
        """Look the target up.

        Raises:
            OSError: nobody knows its name.
        """
        parts = urlsplit(origin)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        found = socket.getaddrinfo(host, parts.port or (443 if secure else 80), type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        tls = ssl.create_default_context() if secure else None
        return cls(origin, host, parts.netloc, family, address, tls)  # type: ignore[arg-type] # of TCP, by type

    def connect(self, timeout: float) -> socket.socket:
        """Open a connection.

        Raises:
            OSError: nobody accepts it in time.
        """
        made = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            made.settimeout(timeout)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(self.address)
            return self.tls.wrap_socket(made, server_hostname=self.host) if self.tls else made
        except BaseException:
            made.close()
            raise


@dataclass(slots=True)
class Reply:
    """What came back: status, header lines by name in small letters, body, and the path that answered."""

    status: int
    headers: dict[str, str]
    body: bytes
    path: str
    cookies: list[str] = field(default_factory=list)

    @property
    def room(self) -> str:
        """What the waiting room says; empty if the storefront answered."""
        return self.headers.get("waiting-room", "")

    @property
    def text(self) -> str:
        """The body as text."""
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return body.decode("utf-8", "replace")


class Browser:
    """Asks for pages and keeps cookies.

    Args:
        site: the target.
        language: that it asks for.
        device: "mobile" or "desktop".
        patience: seconds for an answer.
    """

    def __init__(
        self, site: Site, language: str = "en", device: str = "mobile", patience: float = 30
    ) -> None:
        self.jar: dict[str, str] = {}
        self._site = site
        self._patience = patience
        self._socket: socket.socket | None = None
        self._rest = b""
        self._lines = (
            f"Host: {site.authority}\r\nUser-Agent: {_AGENTS[device]}\r\n"
            f"Accept-Language: {language}\r\nAccept-Encoding: gzip\r\n"
        )

    def navigate(self, path: str, form: dict[str, str] | None = None) -> Reply:
        """Go to a page, or send a form; redirects are followed on the same host, and nowhere else.

        Raises:
            Unanswered: no answer came.
        """
        lines = f"Accept: {PAGE}\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n"
        reply = self.ask("POST" if form is not None else "GET", path, lines, form)
        for _ in range(_REDIRECTS):
            place = reply.headers.get("location", "")
            if reply.status not in _SEE_OTHER or not place:
                return reply
            target = urljoin(f"{self._site.origin}{reply.path}", place)
            if not target.startswith(f"{self._site.origin}/"):
                raise Unanswered("redirect elsewhere")
            reply = self.ask("GET", target.removeprefix(self._site.origin).partition("#")[0], lines)
        raise Unanswered("redirect in a circle")

    def ask(self, method: str, path: str, lines: str = "", form: dict[str, str] | None = None) -> Reply:
        """Send one request and read its answer.

        Args:
            method: of HTTP.
            path: with its query.
            lines: further header lines, each ended.
            form: fields that are sent.

        Raises:
            Unanswered: no answer came.
        """
        body = urlencode(form).encode() if form is not None else b""
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        head = f"{method} {path} HTTP/1.1\r\n{self._lines}{lines}"
        if cookie:
            head += f"Cookie: {cookie}\r\n"
        if form is not None:
            head += "Content-Type: application/x-www-form-urlencoded\r\n"
            head += f"Origin: {self._site.origin}\r\nContent-Length: {len(body)}\r\n"
        try:
            reply = self._exchange(f"{head}\r\n".encode("latin-1", "replace") + body, path)
        except TimeoutError:
            self.close()
            raise Unanswered("timeout") from None
        except ConnectionRefusedError:
            self.close()
            raise Unanswered("refused") from None
        except (OSError, ValueError, IndexError, EOFError) as error:
            self.close()
            own = isinstance(error, OSError) and error.errno in _OWN_LIMITS
            raise Unanswered(OWN_LIMIT if own else "broken") from None
        self._keep(reply.cookies)
        return reply

    def close(self) -> None:
        """Close the connection; the cookies stay."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket, self._rest = None, b""

    def _exchange(self, request: bytes, path: str) -> Reply:
        if self._socket is not None:
            # A server may have closed a connection that was idle; browsers then open another without a word.
            try:
                self._socket.sendall(request)
                return self._read(path)
            except (BrokenPipeError, ConnectionResetError, _NothingCame):
                self.close()
        self._socket = self._site.connect(self._patience)
        self._socket.sendall(request)
        return self._read(path)

    def _read(self, path: str) -> Reply:
        deadline = time.monotonic() + self._patience
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(deadline, b"" if data else None)
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        reply = Reply(int(first.split(" ", 2)[1]), {}, b"", path)
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            if name == "set-cookie":
                reply.cookies.append(value.strip())
            else:
                reply.headers[name] = value.strip()
        self._rest = data[end + 4 :]
        reply.body = self._body(reply, deadline)
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    def _body(self, reply: Reply, deadline: float) -> bytes:
        if reply.status in (204, 304):
            return b""
        if "chunked" in reply.headers.get("transfer-encoding", ""):
            return self._chunks(deadline)
        length = reply.headers.get("content-length")
        if length is None:
            pieces = [self._rest]
            with contextlib.suppress(EOFError):
                while True:
                    pieces.append(self._more(deadline, b""))
            self.close()
            return b"".join(pieces)
        return self._take(int(length), deadline)

    def _chunks(self, deadline: float) -> bytes:
        pieces = []
        while True:
            while (end := self._rest.find(b"\r\n")) < 0:
                self._rest += self._more(deadline, b"")
            size = int(self._rest[:end].partition(b";")[0], 16)
            self._rest = self._rest[end + 2 :]
            pieces.append(self._take(size + 2, deadline)[:-2])
            if not size:
                return b"".join(pieces)

    def _take(self, size: int, deadline: float) -> bytes:
        if size > _MOST:
            raise ValueError("too much")
        while len(self._rest) < size:
            self._rest += self._more(deadline, b"")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _more(self, deadline: float, before: bytes | None) -> bytes:
        assert self._socket is not None
        if time.monotonic() > deadline:
            raise TimeoutError
        data = self._socket.recv(65536)
        if not data:
            raise _NothingCame if before is None else EOFError
        return data

    def _keep(self, cookies: list[str]) -> None:
        for cookie in cookies:
            pair, _, attributes = cookie.partition(";")
            name, _, value = pair.partition("=")
            if "max-age=0" in attributes.lower() or "1970" in attributes:
                self.jar.pop(name.strip(), None)
            else:
                self.jar[name.strip()] = value.strip()


class _NothingCame(EOFError):  # noqa: N818 - it says what happened
    """A kept connection was closed before it answered anything."""
