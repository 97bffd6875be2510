"""Ten thousand connections that do nothing, and the shoppers among them."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.wire import OK, dial, get, storefront

LIMIT = 10_000
HOLDERS = 3
EACH = 3300
"""Connections of each holder; three of them leave a few places free."""

GATEWAY = """
import asyncio, resource, sys, uvloop
from tests.wire import Forwarder
from waitingroom.http1 import Limits, Listener
from waitingroom.proxy import Upstream

async def main():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    forwarder = Forwarder(lambda head: b"")
    forwarder.upstream = Upstream(sys.argv[1], forwarder)
    limits = Limits(connections=int(sys.argv[2]), head_timeout=300, keepalive_timeout=300)
    listener = Listener(forwarder, limits)
    server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

uvloop.run(main())
"""

HOLDER = """
import resource, socket, sys
port, count, source = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 9000), most))
held = []
for number in range(count):
    one = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
    if number % 2:
        one.sendall(b"GET / HTTP/1.1\\r\\nHost: shop.example\\r\\n\\r\\n")
        one.recv(65536)
    held.append(one)
print(len(held), flush=True)
sys.stdin.read()
"""


@contextmanager
def running(script: str, *arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A Python process, and the first line that it said."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def hold(port: int, count: int, source: str) -> "asyncio.subprocess.Process":
    """A process with so many connections, half of which were answered once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(port), str(count), source),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert int(await process.stdout.readline()) == count
    return process


async def shop(port: int, requests: int) -> list[float]:
    """Seconds that each of so many shoppers, all newly connected, waited for a page."""
    waited = []
    for number in range(requests):
        began = time.monotonic()
        async with dial(port) as client:
            await client.send(get(f"/{number}"))
            assert (await client.answer())[1] == b"ok"
        waited.append(time.monotonic() - began)
    return waited


async def test_ten_thousand_idle_connections_keep_nobody_out() -> None:
    """They cost a few kilobytes each; shoppers are served at once, even beyond the limit."""
    async with storefront(OK) as origin:
        with running(GATEWAY, origin.url, LIMIT) as (gateway, port_told):
            port = int(port_told)
            await shop(port, 50)
            before = resident(gateway.pid)
            holders = [await hold(port, EACH, f"127.0.1.{number}") for number in range(HOLDERS)]
            each = (resident(gateway.pid) - before) / (HOLDERS * EACH)
            quiet = await shop(port, 200)
            flooding = asyncio.create_task(hold(port, 3000, "127.0.2.1"))
            crowded = await shop(port, 200)
            holders.append(await flooding)
            crowded += await shop(port, 200)
            held = resident(gateway.pid) - before
            for holder in holders:
                holder.kill()
                await holder.wait()
    assert each < 6 * 1024, f"{each:.0f} bytes for each idle connection"
    assert held < LIMIT * 8 * 1024
    assert median(quiet) < 0.1, "a shopper waits while the others idle"
    assert median(crowded) < 0.2, "a shopper waits while idle connections give way"
    assert max(quiet + crowded) < 3.0
