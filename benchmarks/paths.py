"""What a request costs on each path through the gateway, beside nginx, HAProxy and aiohttp; `make bench`.

    python -m benchmarks.paths [--compiled FOLDER] [--json FILE] [--picture FILE] [--seconds 2] [--rounds 3]
                               [--only WORD]

Runs take turns (A B C A B C); a ratio is the median over the rounds. Exit codes: 0 measured; 1 requests were
not answered as they should, or every run of a row is void; 2 a program is missing.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import redis

from benchmarks import report
from benchmarks.rig import MissingToolError, Rig, Run, Target, require_tools
from benchmarks.stands import ROOM_FULL, ROOM_OPEN, Market, passes, store_url

VISITORS = 10_000
WAITING = 2_000

STATUS = "/.waitingroom/status?room=full"


@dataclass(frozen=True, slots=True)
class Way:
    """A path through the gateway.

    Attributes:
        stands: who is measured on it; ratios are to the second.
        asked: what is asked for, `asked_of` a stand where that is something else.
        crowd: whose cookies are sent: `inside`, `waiting` or `nobody`.
        pause: see `Target`; so with `connections` and `fresh`.
    """

    name: str
    stands: tuple[str, ...]
    asked: str = "/item"
    crowd: str = "inside"
    connections: int = 64
    pause: int = 0
    fresh: bool = False
    asked_of: tuple[tuple[str, str], ...] = ()

    def target(self, stand: str, crowds: dict[str, Path]) -> Target:
        """What wrk asks this stand for."""
        host = ROOM_OPEN if self.crowd == "inside" else ROOM_FULL
        asked = dict(self.asked_of).get(stand, self.asked)
        return Target(asked, host, crowds[self.crowd], self.connections, self.pause, self.fresh)


BOTH = ("gateway", "nginx")
THREE = (*BOTH, "gateway, interpreted")

PATHS = (
    Way(
        "proxied, 1 KiB",
        (*THREE, "haproxy", "nginx asking redis", "aiohttp proxy", "origin alone"),
    ),
    Way("proxied, 1 KiB, 256 connections", THREE, connections=256),
    Way("proxied, 1 KiB, at a pace", (*THREE, "haproxy"), pause=8),
    Way("proxied, 1 KiB, at a pace, 256 connections", THREE, connections=256, pause=32),
    Way("proxied, 1 KiB, every head new, at a pace", THREE, "/fresh", pause=8, fresh=True),
    Way("proxied, 50 KiB", THREE, "/large"),
    Way("proxied, 1 MiB, at a pace", THREE, "/huge", pause=120),
    Way(
        "poll",
        ("gateway", "nginx, file", "gateway, interpreted", "aiohttp handler"),
        STATUS,
        "waiting",
        asked_of=(("nginx, file", "/status"),),
    ),
    Way(
        "waiting page for a newcomer",
        ("gateway", "nginx, file", "gateway, interpreted"),
        crowd="nobody",
        asked_of=(("nginx, file", "/page"),),
    ),
    Way("an edge that asks", ("nginx asking gateway", "nginx", "nginx asking aiohttp")),
    Way("HAProxy that verifies", ("haproxy verifying", "haproxy")),
    Way("nginx that verifies", ("nginx verifying", "nginx")),
)


def crowds(market: Market, folder: Path) -> dict[str, Path]:
    """Files of cookies, by crowd."""
    found = {"inside": passes(VISITORS), "waiting": tickets(market), "nobody": ["-"]}
    files = {}
    for crowd, cookies in found.items():
        files[crowd] = folder / f"{crowd}.cookies"
        files[crowd].write_text("\n".join(cookies) + "\n")
    return files


def tickets(market: Market) -> list[str]:
    """Cookies of people who wait, given by each gateway that will be polled."""
    cookies = []
    for name in ("gateway", "gateway, interpreted"):
        connection = HTTPConnection("127.0.0.1", market[name].port, timeout=10)
        for _ in range(WAITING // 2):
            connection.request("GET", "/item", headers={"Host": ROOM_FULL, "Accept": "text/html"})
            answer = connection.getresponse()
            answer.read()
            cookies.append((answer.headers["Set-Cookie"] or "").partition(";")[0])
        connection.close()
    return cookies


def script_calls(client: "redis.Redis") -> int:
    """Scripts that the store has run so far; every call of a gateway is one."""
    stats: dict[str, Any] = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


def measure(market: Market, path: Way, files: dict[str, Path], seconds: int, rounds: int) -> dict[str, Any]:
    """Let all stands of a path take turns; the runs by stand, and the gateway's store calls."""
    runs: dict[str, list[Run]] = {name: [] for name in path.stands}
    stands = {name: market[name] for name in path.stands}
    calls = answered = 0.0
    with redis.Redis.from_url(store_url(market.rig, "gateway")) as store:
        for turn in range(rounds + 1):
            for name, stand in stands.items():
                before, began = script_calls(store), time.monotonic()
                target = path.target(name, files)
                # The first turn warms everybody up, and does not count.
                run = market.rig.run(target, stand.port, stand.pids, seconds if turn else 1)
                if turn:
                    runs[name].append(run)
                    if name == "gateway":
                        calls += script_calls(store) - before - 2 * (time.monotonic() - began)
                        answered += run.requests
    return {
        "path": path.name,
        "pause": path.pause,
        "runs": {name: [asdict(run) for run in made] for name, made in runs.items()},
        "void": {name: [run.void(path.pause) for run in made] for name, made in runs.items()},
        # Two rooms tick once a second each.
        "calls_per_1000": 1000 * max(0.0, calls) / answered if answered else None,
    }


def machine() -> str:
    """What was measured on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, Python {platform.python_version()}"


def main() -> int:
    """Measure, print, and say by the exit code whether it can be relied on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compiled", type=Path, metavar="FOLDER", help="an installed wheel, data path compiled"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG to FILE")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taking turns (default: 3)")
    parser.add_argument("--only", default="", metavar="WORD", help="paths with WORD in their name")
    options = parser.parse_args()
    try:
        require_tools()
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [path for path in PATHS if options.only in path.name]
    compiled = options.compiled and options.compiled.resolve()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        Market(Rig(Path(name)), compiled) as market,
    ):
        files = crowds(market, Path(name))
        print(f"{machine()}; data path {'compiled' if compiled else 'interpreted'}", flush=True)
        found = []
        for path in chosen:
            found.append(measure(market, path, files, options.seconds, options.rounds))
            print("\n" + report.table(found[-1]), flush=True)
    goals = report.goals(found)
    print("\n" + report.verdicts(goals))
    figures = {"machine": machine(), "compiled": bool(compiled), "paths": found, "goals": goals}
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.picture is not None:
        options.picture.write_text(report.picture(found))
    return int(any(report.unsound(path) for path in found))


if __name__ == "__main__":
    sys.exit(main())
