"""What a measurement needs: servers on one core, wrk on another, and the kernel's account of CPU time."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

NEEDED = {
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "redis-server": "redis-server",
    "wrk": "wrk",
    "taskset": "util-linux",
}
"""Programs, and the Debian packages that they come in."""

LUA_MODULE = Path("/usr/share/nginx/modules/ngx_http_lua_module.so")
LUA_PACKAGE = "libnginx-mod-http-lua"

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, OTHER_CORE = _CORES[0], _CORES[-1]
_TICKS = os.sysconf("SC_CLK_TCK")

FULL = 0.9
"""Share of a core beyond which whoever has it can do no more; the rest goes to interrupts and the host."""

_SCRIPT = """
local requests, at, fresh = {}, 0, os.getenv("FRESH") == "1"
local pause = tonumber(os.getenv("PAUSE") or "0")
function init(args)
  math.randomseed(7)
  -- As text, not as a table: its order would be another in each run, and browsers keep theirs.
  local lines = "GET " .. args[1] .. " HTTP/1.1\\r\\nHost: " .. args[2] .. "\\r\\n"
    .. "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\\r\\n"
    .. "Accept: text/html,application/xhtml+xml,*/*;q=0.8\\r\\nAccept-Language: en-GB,en;q=0.9\\r\\n"
    .. "Accept-Encoding: gzip, deflate, br\\r\\nConnection: keep-alive\\r\\n"
  local fetched = "Sec-Fetch-Dest: document\\r\\nSec-Fetch-Mode: navigate\\r\\n"
    .. "Sec-Fetch-Site: none\\r\\n\\r\\n"
  for cookie in io.lines(args[3]) do
    local line = cookie ~= "-" and "Cookie: " .. cookie .. "\\r\\n" or ""
    requests[#requests + 1] = lines .. line .. fetched
  end
end
local count = 0
function request()
  at = at % #requests + 1
  if not fresh then return requests[at] end
  count = count + 1
  return requests[at]:sub(1, -3) .. "X-Request-Id: " .. count .. "-" .. at .. "\\r\\n\\r\\n"
end
if pause > 0 then
  function delay() return math.random(0, 2 * pause) end
end
"""


class MissingToolError(Exception):
    """Programs that a measurement needs are not installed; the message says how to get them."""


@dataclass(frozen=True, slots=True)
class Target:
    """What wrk asks for.

    Attributes:
        path, host: of every request.
        cookies: one of these with each request, in turn; "-" is none.
        connections: kept open.
        pause: mean milliseconds that a connection rests between two requests; 0 asks as fast as it can.
        fresh: each request has a header line that none had before.
    """

    path: str
    host: str
    cookies: Path
    connections: int = 64
    pause: int = 0
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run of wrk against one server.

    Attributes:
        requests: answered; `errors` of them with another status than 2xx or 3xx, or not at all.
        cpu: seconds of CPU time that the server took, its children and helpers among it.
        p50, p99: milliseconds, as wrk saw them.
        others: seconds of CPU time that wrk and the origin took on their core. The start of wrk is among it,
            which may take a second: it is rather too much than too little.
    """

    requests: int
    seconds: float
    errors: int
    cpu: float
    p50: float
    p99: float
    others: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of CPU time a request."""
        return 1e6 * self.cpu / max(1, self.requests)

    def void(self, pause: int) -> str:
        """Why the run says nothing, "" if it does.

        At full speed the server must have been what could do no more: then its rate is its own, whatever else
        was busy as well. At a given pace nobody may have been.
        """
        full, others_full = self.cpu > FULL * self.seconds, self.others > FULL * self.seconds
        if pause:
            return "a core was full" if full or others_full else ""
        return "generator and origin were full before the server" if others_full and not full else ""


def require_tools() -> None:
    """Make sure that everything is there before anything starts.

    Raises:
        MissingToolError: naming every program that is missing, and the packages.
    """
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = {name: package for name, package in NEEDED.items() if shutil.which(name) is None}
    if not LUA_MODULE.exists():
        missing["nginx with Lua"] = LUA_PACKAGE
    if missing:
        raise MissingToolError(
            f"Not installed: {', '.join(missing)}. "
            f"On Debian: sudo apt-get install {' '.join(missing.values())}"
        )


def parse_wrk(text: str) -> tuple[int, float, int]:
    """Requests, seconds and errors of a run, from what wrk prints.

    Raises:
        ValueError: this is no report of wrk.
    """
    done = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", text)
    if done is None:
        raise ValueError(f"wrk said: {text.strip()[:200]}")
    seconds = float(done[2]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[done[3]]
    errors = re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", text)
    return int(done[1]), seconds, sum(int(one or other) for one, other in errors)


def percentile(text: str, which: int) -> float:
    """Milliseconds of a line of wrk's latency distribution, NaN where there is none."""
    line = re.search(rf"^ +{which}% +([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    return float(line[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[line[2]] if line else float("nan")


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the quotients of runs that followed one another, so that slow moments fall on both."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its living children so far, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(stat[11]) + int(stat[12])) / _TICKS + sum(cpu_seconds(int(child)) for child in children)


def resident(pid: int) -> int:
    """Bytes of memory of a process that are its own and in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(anonymous[1]) if anonymous else 0


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@dataclass
class Rig:
    """Where servers run, and what is left behind.

    Attributes:
        folder: where everything is kept that a run leaves behind.
        pids: processes by the name that they were started under.
    """

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def process(
        self,
        name: str,
        command: list[str],
        ports: tuple[int, ...],
        *,
        core: int | None = SERVER_CORE,
        end: signal.Signals = signal.SIGTERM,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[int]:
        """Run a server, once it listens on all its ports, and end it afterwards; gives its process id.

        Raises:
            RuntimeError: it did not start; with the end of what it said.
        """
        said = self.folder / f"{name}.said"
        pinned = command if core is None else ["taskset", "-c", str(core), *command]
        with (
            said.open("ab") as output,
            subprocess.Popen(
                pinned,
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd=self.folder,
                env=os.environ | (environment or {}),
            ) as process,
        ):
            try:
                self.pids[name] = process.pid
                _wait_for(lambda: all(listens(port) for port in ports), process, said)
                yield process.pid
            finally:
                process.send_signal(end)

    def run(self, target: Target, port: int, pids: list[int], seconds: int) -> Run:
        """Point wrk at a port for so long; the CPU time of `pids` counts as the server's."""
        script = self.folder / "script.lua"
        script.write_text(_SCRIPT)
        command = ["taskset", "-c", str(OTHER_CORE), "wrk", "-t1", f"-c{target.connections}", f"-d{seconds}s"]
        command += ["--latency", "-s", str(script), f"http://127.0.0.1:{port}", "--", target.path]
        environment = {"PAUSE": str(target.pause), "FRESH": str(int(target.fresh))}
        origin = self.pids["origin"]
        before = sum(map(cpu_seconds, pids)), cpu_seconds(origin), _of_children()
        report = subprocess.run(
            [*command, target.host, str(target.cookies)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        ).stdout
        after = sum(map(cpu_seconds, pids)), cpu_seconds(origin), _of_children()
        cpu, theirs, generator = (now - then for now, then in zip(after, before, strict=True))
        requests, took, errors = parse_wrk(report)
        return Run(
            requests, took, errors, cpu, percentile(report, 50), percentile(report, 99), theirs + generator
        )


def _of_children() -> float:
    """Seconds of CPU time of all children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def free_ports(count: int) -> list[int]:
    """So many ports on which nobody listens."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start: {said.read_text()[-2000:]}")
        time.sleep(0.02)


def patiently(asks: Callable[[], object], passing: type[Exception] = OSError) -> None:
    """Ask until there is an answer; what cannot be reached yet, or fails in this way, is asked again."""
    deadline = time.monotonic() + 15
    while True:
        try:
            asks()
        except (OSError, passing):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
