"""Many connections, many gateways, and how long a start takes; `make bench-many`.

    python -m benchmarks.many [--compiled FOLDER] [--json FILE] [--only idle|storm|ticks|scaling|start]

Exit codes: 0 measured; 1 a connection was lost; 2 a program is missing.
"""

import argparse
import itertools
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, cast

import redis

from benchmarks.paths import machine
from benchmarks.rig import (
    OTHER_CORE,
    SERVER_CORE,
    MissingToolError,
    Rig,
    Target,
    children_of,
    free_ports,
    require_tools,
    resident,
)
from benchmarks.stands import ROOM_FULL, ROOM_OPEN, Market, Stand, gateway, passes
from waitingroom import embedded

Figures = dict[str, Any]

IDLE = 10_000
STORM = 5_000


def _request(path: str, host: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\nAccept-Encoding: gzip\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\r\n"
    ).encode()


def _dial(port: int, count: int) -> list[socket.socket]:
    """So many connections, begun one after the other without waiting for any."""
    made = []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        made.append(one)
    return made


def _ask(sockets: list[socket.socket], request: bytes, patience: float) -> tuple[int, float]:
    """Send a request by each connection once it stands; how many were answered, and the seconds it took."""
    selector = selectors.DefaultSelector()
    for one in sockets:
        selector.register(one, selectors.EVENT_WRITE)
    began = time.monotonic()
    answered = 0
    while selector.get_map() and time.monotonic() < began + patience:
        for key, events in selector.select(0.2):
            one = cast("socket.socket", key.fileobj)
            try:
                if events & selectors.EVENT_WRITE:
                    one.send(request)
                    selector.modify(one, selectors.EVENT_READ)
                else:
                    answered += one.recv(65536).startswith(b"HTTP/1.1 200")
                    selector.unregister(one)
            except OSError:
                selector.unregister(one)
    return answered, time.monotonic() - began


def _held(stand: Stand, request: bytes) -> float:
    """Bytes of memory for each of many connections that were answered once and are idle."""
    pids = [pid for parent in stand.pids for pid in (parent, *children_of(parent))]
    before = sum(map(resident, pids))
    sockets: list[socket.socket] = []
    for _ in range(IDLE // 500):
        more = _dial(stand.port, 500)
        answered, _ = _ask(more, request, 20)
        assert answered == len(more), f"{answered} of {len(more)} were answered"
        sockets += more
    used = sum(map(resident, pids)) - before
    for one in sockets:
        one.close()
    return used / IDLE


def idle(market: Market) -> Figures:
    """What a waiting browser's open connection costs, beside one at nginx that was sent a file."""
    ours = _held(market["gateway"], _request("/item", ROOM_FULL))
    theirs = _held(market["nginx, file"], _request("/page", ROOM_FULL))
    return {"connections": IDLE, "gateway_bytes": ours, "nginx_bytes": theirs, "ratio": ours / theirs}


def storm(market: Market) -> Figures:
    """Thousands of browsers that all connect within a second, and are all answered."""
    port = market["gateway"].port
    began = time.monotonic()
    sockets = _dial(port, STORM)
    dialled = time.monotonic() - began
    answered, took = _ask(sockets, _request("/item", ROOM_FULL), 30)
    for one in sockets:
        one.close()
    return {"connections": STORM, "dialled_in_s": dialled, "answered": answered, "all_answered_in_s": took}


def ticks(rig: Rig, origin: int, compiled: Path | None) -> list[Figures]:
    """The store's processor time for one second of one gateway, as gateways are added."""
    rows: list[Figures] = []
    for count in (1, 2, 4, 8):
        with ExitStack() as stack:
            _, url = _store(rig, stack, f"ticks-{count}")
            for index in range(count):
                ports = free_ports(2)
                name = f"ticking-{count}-{index}"
                stack.enter_context(
                    gateway(rig, name, (ports[0], ports[1]), origin, compiled=compiled, store=url, core=None)
                )
            with redis.Redis.from_url(url) as client:
                _people(client, "full", 100_000)
                time.sleep(2)
                before, began = _script_ms(client), time.monotonic()
                time.sleep(8)
                spent = (_script_ms(client) - before) / (time.monotonic() - began)
        rows.append({"gateways": count, "store_ms_a_gateway_second": spent / count})
    return rows


def _script_ms(client: "redis.Redis") -> float:
    """Milliseconds that the store has spent in scripts, by its own account."""
    return float(client.info("commandstats").get("cmdstat_evalsha", {}).get("usec", 0)) / 1000


def _people(client: "redis.Redis", room: str, count: int) -> None:
    """Let so many numbers be given, and every second of them be heard of just now."""
    issued = client.hincrby(f"wr:{{{room}}}:state", "issued", count)
    period = int(client.hget(f"wr:{{{room}}}:state", "period") or 0)
    segment, offset = divmod(issued - count, 1 << 20)
    key = f"wr:{{{room}}}:seen:main:{segment}:{period % 64}"
    client.setrange(key, offset // 8, b"\x55" * (min(count, (1 << 20) - offset) // 8))
    client.expire(key, 600)


def _store(rig: Rig, stack: ExitStack, name: str) -> tuple[int, str]:
    address = rig.folder / f"{name}.sock"
    command = [str(embedded.binary()), "--port", "0", "--save", "", "--unixsocket", str(address)]
    pid = stack.enter_context(rig.process(name, command, (), core=None))
    while not address.exists():
        time.sleep(0.02)
    return pid, f"unix://{address}"


def scaling(rig: Rig, origin: int, compiled: Path | None) -> list[Figures]:
    """Requests proxied a second by 1, 2 and 4 gateways on one store, on the cores that there are."""
    cookies = rig.folder / "scaling.cookies"
    cookies.write_text("\n".join(passes(2000)) + "\n")
    rows: list[Figures] = []
    for count in (1, 2, 4):
        with ExitStack() as stack:
            _, url = _store(rig, stack, f"scaling-{count}")
            stands = []
            for index in range(count):
                ports = free_ports(2)
                core = (SERVER_CORE, OTHER_CORE)[index % 2]
                name = f"scaled-{count}-{index}"
                pid = stack.enter_context(
                    gateway(rig, name, (ports[0], ports[1]), origin, compiled=compiled, store=url, core=core)
                )
                stands.append(Stand(ports[0], [pid]))
            rows.append({"gateways": count} | _together(rig, stands, cookies))
    for row in rows:
        row["efficiency"] = row["rate"] / rows[0]["rate"] / row["gateways"]
    return rows


def _together(rig: Rig, stands: list[Stand], cookies: Path) -> Figures:
    """All of them under load at one time, each with a wrk of its own."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only here

    target = Target("/item", ROOM_OPEN, cookies, 32)
    with ThreadPoolExecutor(len(stands)) as pool:
        runs = list(pool.map(lambda stand: rig.run(target, stand.port, stand.pids, 4), stands))
    return {
        "rate": sum(run.rate for run in runs),
        "cpu_us": 1e6 * sum(run.cpu for run in runs) / sum(run.requests for run in runs),
        "errors": sum(run.errors for run in runs),
    }


def start(rig: Rig, origin: int, compiled: Path | None) -> Figures:
    """Seconds to help, and to a gateway that is ready with its embedded store; medians of five."""
    environment = os.environ | {"PYTHONPATH": str(compiled or Path(__file__).parents[1])}

    def run(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *words], check=True, capture_output=True, cwd=rig.folder, env=environment
        )
        return time.perf_counter() - began

    turns = itertools.count()

    def ready() -> float:
        public, private = free_ports(2)
        began = time.perf_counter()
        name = f"start-{next(turns)}"  # a new data folder for each
        with gateway(rig, name, (public, private), origin, compiled=compiled, core=None):
            return time.perf_counter() - began

    times = {
        "interpreter": _five(lambda: run("-c", "pass")),
        "help": _five(lambda: run("-m", "waitingroom", "--help")),
        "serve": _five(ready),
    }
    return times | {f"{name}_ratio": times[name] / times["interpreter"] for name in ("help", "serve")}


def _five(once: Callable[[], float]) -> float:
    return median(once() for _ in range(5))


def told(found: Figures) -> str:
    """What was measured, as text."""
    lines = [machine()]
    if row := found.get("idle"):
        ours, theirs = row["gateway_bytes"] / 1024, row["nginx_bytes"] / 1024
        each = f"{ours:.1f} KiB each at the gateway, {theirs:.1f} at nginx, ratio {row['ratio']:.1f}"
        lines.append(f"idle: {row['connections']:,} connections, {each}")
    if row := found.get("storm"):
        lines.append(
            f"storm: {row['connections']:,} connections dialled in {row['dialled_in_s']:.2f} s, "
            f"{row['answered']:,} answered, the last after {row['all_answered_in_s']:.2f} s"
        )
    for row in found.get("ticks", ()):
        spent = f"{row['store_ms_a_gateway_second']:.2f} ms of the store's time"
        lines.append(f"ticks: {row['gateways']} gateways, {spent} for a second of one")
    for row in found.get("scaling", ()):
        rate = f"{row['rate']:,.0f} requests a second at {row['cpu_us']:.1f} us"
        lines.append(f"scaling: {row['gateways']} gateways, {rate}, efficiency {row['efficiency']:.2f}")
    if row := found.get("start"):
        shown = f"{row['help']:.2f} s, {row['help_ratio']:.0f} times that"
        ready = f"{row['serve']:.2f} s, {row['serve_ratio']:.0f} times that"
        lines.append(f"start: interpreter {row['interpreter']:.3f} s; --help {shown}; serve ready {ready}")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compiled", type=Path, metavar="FOLDER", help="an installed wheel, data path compiled"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    parser.add_argument("--only", default="", help="one of the measurements")
    options = parser.parse_args()
    try:
        require_tools()
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 2
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    compiled = options.compiled and options.compiled.resolve()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Market(Rig(Path(name)), compiled) as market:
        measurements: dict[str, Callable[[], Any]] = {
            "idle": lambda: idle(market),
            "storm": lambda: storm(market),
            "ticks": lambda: ticks(market.rig, market.origin, compiled),
            "scaling": lambda: scaling(market.rig, market.origin, compiled),
            "start": lambda: start(market.rig, market.origin, compiled),
        }
        found = {what: measure() for what, measure in measurements.items() if options.only in what}
    print(told(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int("storm" in found and found["storm"]["answered"] < found["storm"]["connections"])


if __name__ == "__main__":
    sys.exit(main())
