"""What a measurement needs: servers on one core, wrk on another, and the kernel's account of CPU time."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

NEEDED = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
"""Programs, and the Debian packages that they come in."""

ROOM_OPEN, ROOM_FULL = "open.test", "full.test"
"""Hosts of two rooms: one that everybody walks into, one that everybody has to wait for."""

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, OTHER_CORE = _CORES[0], _CORES[-1]
_TICKS = os.sysconf("SC_CLK_TCK")

_SCRIPT = """
local requests, at = {}, 0
function init(args)
  local headers = {
    ["Host"] = args[2], ["Accept"] = "text/html,application/xhtml+xml,*/*;q=0.8",
    ["Accept-Encoding"] = "gzip, deflate, br", ["Accept-Language"] = "en-GB,en;q=0.9",
    ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    ["Sec-Fetch-Dest"] = "document", ["Sec-Fetch-Mode"] = "navigate", ["Sec-Fetch-Site"] = "none",
  }
  for cookie in io.lines(args[3]) do
    headers["Cookie"] = cookie ~= "-" and cookie or nil
    requests[#requests + 1] = wrk.format("GET", args[1], headers)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""

_NGINX = """
worker_processes 1;
pid {name}.pid;
error_log {name}.err;
events {{ worker_connections 1024; }}
http {{
    access_log {log};
    keepalive_requests 1000000000;
    client_body_temp_path {name}-body;
    proxy_temp_path {name}-proxy;
    fastcgi_temp_path {name}-fastcgi;
    uwsgi_temp_path {name}-uwsgi;
    scgi_temp_path {name}-scgi;
{servers}
}}
"""

_FILES = """    server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}"""

_PROXY = """    upstream origin {{
        server 127.0.0.1:{origin}; keepalive 256; keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}"""

_GATEWAY = """
[server]
listen = "127.0.0.1:{port}"
private_listen = "127.0.0.1:{private}"
[store]
data = "{folder}/data"
[[rooms]]
name = "open"
hosts = ["{open}"]
upstream = "http://127.0.0.1:{origin}"
total_active_users = 1000000
new_users_per_minute = 6000000
[[rooms]]
name = "full"
hosts = ["{full}"]
upstream = "http://127.0.0.1:{origin}"
queue_all = true
"""


class MissingToolError(Exception):
    """Programs that a measurement needs are not installed; the message says how to get them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of wrk against one server.

    Attributes:
        requests: answered; `errors` of them with another status than 2xx or 3xx, or not at all.
        cpu: seconds of CPU time that the server took, its children among it.
        others: share of the server's core that went to other processes.
    """

    requests: int
    seconds: float
    errors: int
    cpu: float
    others: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of CPU time a request."""
        return 1e6 * self.cpu / max(1, self.requests)


@dataclass(frozen=True, slots=True)
class Target:
    """Where wrk is pointed: a path and a Host, with one of these cookies in turn ("-" is none)."""

    port: int
    path: str
    host: str
    cookies: tuple[str, ...] = ("-",)


def require_tools() -> None:
    """Make sure that everything is there before anything starts.

    Raises:
        MissingToolError: naming every program that is missing, and the packages.
    """
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        packages = " ".join(NEEDED[name] for name in missing)
        raise MissingToolError(
            f"Not installed: {', '.join(missing)}. On Debian: sudo apt-get install {packages}"
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


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the quotients of runs that followed one another, so that slow moments fall on both."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its living children so far, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(stat[11]) + int(stat[12])) / _TICKS + sum(cpu_seconds(int(child)) for child in children)


def _busy(core: int) -> float:
    """Seconds that a core has worked so far, for whomever."""
    line = re.search(rf"^cpu{core} (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    assert line is not None
    user, nice, system, _idle, _wait, irq, soft, *_ = (int(field) for field in line[1].split())
    return (user + nice + system + irq + soft) / _TICKS


class Rig:
    """A gateway with its store, nginx as proxy and as file server, and the origin behind both.

    Attributes:
        folder: where everything is kept that a run leaves behind.
        gateway, proxy, files, origin: ports.
        store_url: of the gateway's embedded store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway, self.private, self.proxy, self.files, self.origin = _ports(5)
        self.store_url = f"unix://{folder}/data/valkey.sock"
        self._pids: dict[int, int] = {}

    @contextmanager
    def running(self, files: dict[str, bytes]) -> Iterator[None]:
        """Start everything, with these files at the origin and at nginx, and end it afterwards."""
        root = self.folder / "www"
        root.mkdir()
        for name, content in files.items():
            (root / name).write_bytes(content)
        # Workers of nginx give up root; they still have to read the files.
        for folder in (self.folder, root):
            folder.chmod(0o755)
        (self.folder / "script.lua").write_text(_SCRIPT)
        served = _FILES.format(port=self.files, root=root)
        proxied = _PROXY.format(port=self.proxy, origin=self.origin)
        with ExitStack() as stack:
            origin = _FILES.format(port=self.origin, root=root)
            stack.enter_context(self._nginx("origin", OTHER_CORE, origin, self.origin, "off"))
            for name, servers, port in (("files", served, self.files), ("proxy", proxied, self.proxy)):
                # The gateway writes a line a request; so does nginx.
                stack.enter_context(self._nginx(name, SERVER_CORE, servers, port, "/dev/null"))
            stack.enter_context(self._serve())
            yield

    def _nginx(self, name: str, core: int, servers: str, port: int, log: str) -> AbstractContextManager[None]:
        config = self.folder / f"{name}.conf"
        config.write_text(_NGINX.format(name=self.folder / name, servers=servers, log=log))
        command = ["nginx", "-c", str(config), "-e", str(self.folder / f"{name}.err"), "-g", "daemon off;"]
        return self._process(core, command, port, signal.SIGQUIT)

    def _serve(self) -> AbstractContextManager[None]:
        config = self.folder / "gateway.toml"
        config.write_text(
            _GATEWAY.format(
                port=self.gateway,
                private=self.private,
                origin=self.origin,
                folder=self.folder,
                open=ROOM_OPEN,
                full=ROOM_FULL,
            )
        )
        command = [sys.executable, "-m", "waitingroom", "serve", "--config", str(config), "--json"]
        return self._process(SERVER_CORE, command, self.gateway, signal.SIGTERM)

    @contextmanager
    def _process(self, core: int, command: list[str], port: int, end: signal.Signals) -> Iterator[None]:
        pinned = ["taskset", "-c", str(core), *command]
        with (
            (self.folder / "errors").open("ab") as errors,
            subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=errors) as process,
        ):
            try:
                self._pids[port] = process.pid
                _wait_for(lambda: _listens(port), process, self.folder / "errors")
                yield
            finally:
                process.send_signal(end)

    def run(self, target: Target, seconds: int) -> Run:
        """Point wrk at a target for so long."""
        cookies = self.folder / "cookies"
        cookies.write_text("\n".join(target.cookies) + "\n")
        command = ["taskset", "-c", str(OTHER_CORE), "wrk", "-t1", "-c64", f"-d{seconds}s"]
        command += ["-s", str(self.folder / "script.lua"), f"http://127.0.0.1:{target.port}", "--"]
        pid = self._pids[target.port]
        cpu, busy = cpu_seconds(pid), _busy(SERVER_CORE)
        report = subprocess.run(
            [*command, target.path, target.host, str(cookies)], capture_output=True, text=True, check=True
        )
        cpu, busy = cpu_seconds(pid) - cpu, _busy(SERVER_CORE) - busy
        requests, took, errors = parse_wrk(report.stdout)
        return Run(requests, took, errors, cpu, max(0.0, busy - cpu) / took)

    def ask(self, path: str, host: str, cookie: str = "") -> tuple[str, bytes]:
        """One request to the gateway: the cookie that it set ("" if none), and the body as it was sent."""
        headers = {"Host": host, "Accept": "text/html", "Accept-Encoding": "gzip", "Cookie": cookie}
        request = Request(f"http://127.0.0.1:{self.gateway}{path}", headers=headers)
        with urlopen(request, timeout=10) as answer:
            return (answer.headers["Set-Cookie"] or "").partition(";")[0], answer.read()


def _ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes], errors: Path) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start: {errors.read_text()[-2000:]}")
        time.sleep(0.02)
