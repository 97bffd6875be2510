"""nginx and HAProxy before a recording origin, asked the same as the gateway, byte for byte."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import eventually
from tests.requests import Case
from tests.wire import gate

NGINX, HAPROXY = Path("/usr/sbin/nginx"), Path("/usr/sbin/haproxy")

END = b"/end-of-case"
_ENDS = b"GET %b HTTP/1.1\r\nHost: end.example\r\n\r\n" % END
_LAST = b"GET %b HTTP/1.1\r\nHost: end.example\r\nConnection: close\r\n\r\n" % END
SENTINELS = _ENDS * 2 + _LAST
"""What a client sends behind each case: whatever it left open swallows some of this, and then it ends."""

PROBE = b"GET /probe HTTP/1.1\r\nHost: probe.example\r\nConnection: close\r\n\r\n"

_NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    client_header_timeout 2s; client_body_timeout 2s; client_body_buffer_size 256k;
    upstream origin {{ server 127.0.0.1:{origin}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://origin; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Host $http_host;
        }}
    }}
}}
"""

_HAPROXY = """
global
    maxconn 1000
defaults
    mode http
    timeout client 2s
    timeout server 2s
    timeout connect 2s
    timeout http-request 2s
frontend shoppers
    bind 127.0.0.1:{port}
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin}
"""


@dataclass(frozen=True)
class Seen:
    """A request as the origin saw it; `body` is without its framing, None if it did not come to its end."""

    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


@dataclass
class Recorder:
    """An origin that writes down what it gets, and answers 200 to what is whole.

    Attributes:
        seen: the requests since they were last taken.
        unreadable: what no strict reader takes for a request.
    """

    seen: list[Seen] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one connection to its end."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        await _close(writer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.unreadable.append(error.partial)
            return False
        try:
            seen = _read(raw)
        except ValueError:
            self.unreadable.append(raw)
            return False
        at = len(self.seen)
        self.seen.append(seen)
        fields = dict(seen.headers)
        if fields.get(b"expect", b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, fields)
        self.seen[at] = Seen(seen.method, seen.target, seen.version, seen.headers, body)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + b"ok" * (seen.method != b"HEAD"))
        return fields.get(b"connection") != b"close"

    def take(self) -> tuple[list[Seen], list[bytes]]:
        """What has come since the last time, but for probes."""
        seen = [one for one in self.seen if one.target != b"/probe"]
        taken = seen, self.unreadable
        self.seen, self.unreadable = [], []
        return taken


def _read(raw: bytes) -> Seen:
    start, *lines = raw[:-4].split(b"\r\n")
    method, target, version = start.split(b" ")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise ValueError(line)
        headers.append((name.lower(), value.strip(b" \t")))
    return Seen(method, target, version, tuple(headers), None)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _body(reader: asyncio.StreamReader, fields: Mapping[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body


@dataclass(frozen=True)
class Told:
    """What came of a case.

    Attributes:
        requests: those that the origin saw, without those sent behind the case.
        ended: the requests behind the case were taken for what they are.
        unreadable: bytes at the origin that are no request.
        answer: all that the client got.
    """

    requests: tuple[Seen, ...]
    ended: bool
    unreadable: tuple[bytes, ...]
    answer: bytes


async def replay(cases: Mapping[str, Case], port: int, recorder: Recorder) -> dict[str, Told]:
    """Send every case to the proxy at `port`, one after the other; the recorder is its origin."""
    told = {}
    for name, case in cases.items():
        answer = await _say(port, case.raw + SENTINELS)
        # All that the proxy had to say to the origin has been said once it has served another connection.
        await _say(port, PROBE)
        seen, unreadable = recorder.take()
        requests = tuple(one for one in seen if one.target != END)
        ended = len(requests) < len(seen)
        told[name] = Told(requests, ended, tuple(unreadable), answer)
    return told


async def _say(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        async with asyncio.timeout(20):
            while piece := await reader.read(1 << 16):
                heard += piece
    writer.transport.abort()
    return heard


@asynccontextmanager
async def _recording() -> AsyncIterator[tuple[Recorder, int]]:
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield recorder, server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextmanager
def _process(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def nobody(cases: Mapping[str, Case]) -> dict[str, Told]:
    """What the origin makes of the cases by itself."""
    async with _recording() as (recorder, origin):
        return await replay(cases, origin, recorder)


async def ours(cases: Mapping[str, Case]) -> dict[str, Told]:
    """What comes of the cases at the gateway's listener and proxy."""
    async with _recording() as (recorder, origin), gate(f"http://127.0.0.1:{origin}") as front:
        return await replay(cases, front.port, recorder)


async def nginx(cases: Mapping[str, Case], folder: Path) -> dict[str, Told]:
    """What comes of the cases at Debian's nginx."""
    port = _free_port()
    async with _recording() as (recorder, origin):
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=port, origin=origin))
        command = [str(NGINX), "-c", str(config), "-e", f"{folder}/nginx.err", "-g", "daemon off;"]
        with _process(command):
            await eventually(lambda: _listens(port), 20)
            return await replay(cases, port, recorder)


async def haproxy(cases: Mapping[str, Case], folder: Path) -> dict[str, Told]:
    """What comes of the cases at Debian's HAProxy."""
    port = _free_port()
    async with _recording() as (recorder, origin):
        config = folder / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=port, origin=origin))
        with _process([str(HAPROXY), "-f", str(config)]):
            await eventually(lambda: _listens(port), 20)
            return await replay(cases, port, recorder)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
