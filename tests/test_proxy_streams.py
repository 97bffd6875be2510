import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEBIBYTE = 1 << 20
BLOCK = bytes(range(256)) * 1024
GATEWAY = """
import asyncio, sys, uvloop
from tests.wire import Forwarder
from waitingroom.http1 import Listener
from waitingroom.proxy import Upstream

async def main():
    forwarder = Forwarder(lambda head: b"")
    forwarder.upstream = Upstream(sys.argv[1], forwarder)
    listener = Listener(forwarder)
    server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

uvloop.run(main())
"""
SIZES = [256 * MEBIBYTE, pytest.param(1024 * MEBIBYTE, marks=pytest.mark.slow)]
FRAMINGS = ["Content-Length", "chunked"]


class Origin(threading.Thread):
    """A storefront for one upload or download at a time; `read` is what it counted of an upload."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.let_go = threading.Event()

    def run(self) -> None:
        """Serve connections until the listening socket closes."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Answer /down/<size> with so many bytes, anything else with what arrived."""
        head, rest = read_head(connection)
        size = int(re.findall(rb"/(\d+)", head)[0])
        if b"/down/" in head:
            send_body(connection, b"HTTP/1.1 200 OK\r\n", size, chunked=b"chunked" in head)
        else:
            self.let_go.wait()
            seen = read_body(connection, rest, size, chunked=b"chunked" in head)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n%010d" % seen)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def send_body(connection: socket.socket, start: bytes, size: int, *, chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    connection.sendall(start + framing + b"\r\n\r\n")
    block = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK
    for _ in range(size // len(BLOCK)):
        connection.sendall(block)
    if chunked:
        connection.sendall(b"0\r\n\r\n")


def read_body(connection: socket.socket, rest: bytes, size: int, *, chunked: bool) -> int:
    """The checksum of a body of known length; of chunks only their end is looked for."""
    seen, left = zlib.crc32(rest), size - len(rest)
    last = rest
    while left > 0 or chunked:
        data = connection.recv(MEBIBYTE)
        last = (last + data)[-5:]
        left -= len(data)
        if not data or (chunked and last == b"0\r\n\r\n"):
            break
        seen = zlib.crc32(data, seen)
    return 0 if chunked else seen


def checksum(size: int) -> int:
    seen = 0
    for _ in range(size // len(BLOCK)):
        seen = zlib.crc32(BLOCK, seen)
    return seen


class Gateway:
    """The gateway as a process of its own."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", GATEWAY, url], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def peak(self) -> int:
        """The most memory that it ever held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate()


@contextmanager
def serving() -> Iterator[tuple[Gateway, Origin]]:
    origin = Origin()
    origin.start()
    gateway = Gateway(origin.url)
    try:
        yield gateway, origin
    finally:
        gateway.stop()
        origin.let_go.set()
        origin.listener.close()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_downloads_take_constant_memory(size: int, framing: str) -> None:
    """A shopper who does not read for a while stops the origin, and the gateway holds next to nothing."""
    chunked = framing == "chunked"
    with serving() as (gateway, _), socket.create_connection(("127.0.0.1", gateway.port)) as client:
        before = gateway.peak()
        client.sendall(b"GET /down/%d?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (size, framing.encode()))
        _, rest = read_head(client)
        seen = read_body(client, rest, size, chunked=chunked)
        assert gateway.peak() - before < 16 * MEBIBYTE
        assert chunked or seen == checksum(size)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_uploads_take_constant_memory(size: int, framing: str) -> None:
    """An origin that does not read for a while stops the shopper, and the gateway holds next to nothing."""
    chunked = framing == "chunked"
    with serving() as (gateway, origin), socket.create_connection(("127.0.0.1", gateway.port)) as client:
        before = gateway.peak()
        start = b"POST /up/%d?%b HTTP/1.1\r\nHost: a\r\n" % (size, framing.encode())
        sending = threading.Thread(target=send_body, args=(client, start, size), kwargs={"chunked": chunked})
        sending.start()
        sending.join(0.3)
        assert sending.is_alive(), "nothing held the shopper back"
        origin.let_go.set()
        sending.join()
        _, answer = read_head(client)
        assert gateway.peak() - before < 16 * MEBIBYTE
        assert chunked or int(answer) == checksum(size)
