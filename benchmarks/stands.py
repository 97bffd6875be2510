"""Who is measured: the gateway and what it is compared with, each with the configuration it is started with.

All of them stand before the same origin, on the same core, and are asked the same. Nothing is left out of the
gateway's work: it checks the pass, counts, writes a line of log and watches every time-out.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.request import urlopen

import redis

from benchmarks.rig import OTHER_CORE, SERVER_CORE, Rig, free_ports, patiently
from waitingroom.tickets import Keyring, Token, Use

ROOM_OPEN, ROOM_FULL = "open.test", "full.test"
"""Hosts of two rooms: one that everybody walks into, one that everybody has to wait for."""

KEY = "k" * 40

_NGINX = """
{modules}
worker_processes 1;
pid {name}.pid;
error_log {name}.err;
events {{ worker_connections 16384; }}
http {{
    access_log {log};
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {name}-body;
    proxy_temp_path {name}-proxy;
    fastcgi_temp_path {name}-fastcgi;
    uwsgi_temp_path {name}-uwsgi;
    scgi_temp_path {name}-scgi;
{servers}
}}
"""

_LUA = "load_module modules/ndk_http_module.so;\nload_module modules/ngx_http_lua_module.so;"

_ORIGIN = """    server {{
        listen 127.0.0.1:{port} backlog=16384; root {root}; sendfile on; tcp_nopush on;
        location = /item {{ return 200 "{item}"; }}
        location = /fresh {{ add_header X-Request-Id $request_id; return 200 "{item}"; }}
        location = /status {{ }}
    }}"""

_UPSTREAM = """    upstream origin {{
        server 127.0.0.1:{origin}; keepalive 256; keepalive_requests 1000000000;
    }}
"""

_PASS_ON = """proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;"""

_PROXY = (
    _UPSTREAM
    + """    server {{
        listen 127.0.0.1:{port} backlog=16384;
        location / {{
            {check}
            """
    + _PASS_ON
    + """
        }}
        {more}
    }}"""
)

_ASKING = """
        location = /decision {{
            internal;
            proxy_pass http://decider/.waitingroom/decision?room=open;
            proxy_http_version 1.1;
            proxy_pass_request_body off;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header Host $host;
        }}
    }}
    upstream decider {{
        server 127.0.0.1:{decider}; keepalive 256; keepalive_requests 1000000000;
"""

_REDIS_EACH_TIME = """
            access_by_lua_block {{
                local id = (ngx.var.http_cookie or ""):match("visitor=([%w_-]+)")
                if not id then return ngx.exit(401) end
                local socket = ngx.socket.tcp()
                if not socket:connect("unix:{store}") then return ngx.exit(503) end
                local key = "$" .. #id .. "\\r\\n" .. id .. "\\r\\n"
                socket:send("*2\\r\\n$6\\r\\nEXISTS\\r\\n" .. key)
                if socket:receive() ~= ":1" then return ngx.exit(401) end
                socket:send("*3\\r\\n$6\\r\\nEXPIRE\\r\\n" .. key .. "$4\\r\\n3600\\r\\n")
                socket:receive()
                socket:setkeepalive(60000, 256)
            }}"""

_VERIFYING = """
    init_by_lua_block {{
        local ffi = require "ffi"
        ffi.cdef "const void *EVP_sha256(void); unsigned char *HMAC(const void *, const void *, int, \
const unsigned char *, size_t, unsigned char *, unsigned int *);"
        local crypto = ffi.load("libcrypto.so.3")
        local digest, size = ffi.new("unsigned char[32]"), ffi.new("unsigned int[1]")
        local key = "{key}"
        local function plain(text)
            return (text:gsub("-", "+"):gsub("_", "/")) .. string.rep("=", -#text % 4)
        end
        local known = require("resty.lrucache").new(20000)
        function passes(cookie, room)
            local ends = known:get(room .. (cookie or ""))
            if ends then return ends > ngx.time() end
            local signed, payload, signature = (cookie or ""):match("^([%w_-]+%.([%w_-]+))%.([%w_-]+)$")
            if not signed then return false end
            crypto.HMAC(crypto.EVP_sha256(), key, #key, signed, #signed, digest, size)
            if ngx.decode_base64(plain(signature)) ~= ffi.string(digest, 32) then return false end
            local claims = ngx.decode_base64(plain(payload))
            if not claims:find('"use":"pass"', 1, true) then return false end
            if not claims:find('"aud":"' .. room .. '"', 1, true) then return false end
            ends = tonumber(claims:match('"exp":(%d+)'))
            known:set(room .. cookie, ends)
            return ends > ngx.time()
        end
    }}
"""

_VERIFY = """access_by_lua_block {{
                if not passes(ngx.var["cookie_wr-open"], "open") then return ngx.exit(401) end
            }}"""

_HAPROXY = """
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout client 600s
    timeout server 60s
    timeout connect 5s
    http-reuse always
    option forwardfor
frontend shoppers
    bind 127.0.0.1:{port} backlog 16384
{check}
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin} pool-max-conn 256
"""

_JWT_VERIFY = """
    http-request set-var(txn.pass) req.cook(wr-open)
    http-request set-var(txn.now) date()
    http-request set-var(txn.end) var(txn.pass),jwt_payload_query('$.exp','int')
    http-request return status 401 unless {{ var(txn.pass),jwt_verify("HS256","{key}") -m int 1 }} \
{{ var(txn.pass),jwt_payload_query('$.use') -m str pass }} \
{{ var(txn.pass),jwt_payload_query('$.aud') -m str open }} {{ var(txn.end),sub(txn.now) -m int gt 0 }}"""

_GATEWAY = """
[server]
listen = "127.0.0.1:{port}"
private_listen = "127.0.0.1:{private}"
max_connections = 16000
keepalive_timeout = "10m"
[store]
url = "{store}"
data = "{data}"
[tokens]
keys = ["{key}"]
[log]
format = "json"
[[rooms]]
name = "open"
hosts = ["{open}"]
upstream = "http://127.0.0.1:{origin}"
total_active_users = 1000000
new_users_per_minute = 6000000
session_duration = "1h"
[[rooms]]
name = "full"
hosts = ["{full}"]
upstream = "http://127.0.0.1:{origin}"
queue_all = true
"""


@dataclass(frozen=True, slots=True)
class Stand:
    """A server under test: its port, and the processes whose CPU time is its own."""

    port: int
    pids: list[int]


@dataclass
class Market:
    """Starts stands by name, each once; the origin is there from the start.

    Attributes:
        compiled: folder of a wheel whose data path is compiled; None where there is none.
    """

    rig: Rig
    compiled: Path | None
    stack: ExitStack = field(default_factory=ExitStack)
    stands: dict[str, Stand] = field(default_factory=dict)
    origin: int = 0

    def __enter__(self) -> Self:
        files = self.rig.folder / "www"
        files.mkdir()
        for name, size in (("page", 2048), ("large", 50 * 1024), ("huge", 1024 * 1024)):
            (files / name).write_bytes(b"x" * size)
        (files / "status").write_bytes(b'{"room":"full","state":"waiting","position":214}'.ljust(120))
        # Workers of nginx give up root; they still have to read the files.
        for folder in (self.rig.folder, files):
            folder.chmod(0o755)
        (self.origin,) = free_ports(1)
        servers = _ORIGIN.format(port=self.origin, root=files, item="x" * 1024)
        self.stack.enter_context(self._nginx("origin", servers, self.origin, log="off", core=OTHER_CORE))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __getitem__(self, name: str) -> Stand:
        if name not in self.stands:
            self.stands[name] = _STANDS[name](self)
        return self.stands[name]

    def _nginx(
        self,
        name: str,
        servers: str,
        *ports: int,
        log: str = "/dev/null",
        core: int = SERVER_CORE,
        modules: str = "",
    ) -> AbstractContextManager[int]:
        # The gateway writes a line a request; so does nginx.
        config = self.rig.folder / f"{name}.conf"
        at = self.rig.folder / name
        config.write_text(_NGINX.format(name=at, servers=servers, log=log, modules=modules))
        command = ["nginx", "-c", str(config), "-e", f"{at}.err", "-g", "daemon off;"]
        return self.rig.process(name, command, ports, core=core, end=signal.SIGQUIT)

    def nginx(
        self, name: str, check: str = "", more: str = "", *, before: str = "", lua: bool = False
    ) -> Stand:
        """An nginx before the origin."""
        (port,) = free_ports(1)
        servers = before + _PROXY.format(port=port, origin=self.origin, check=check, more=more)
        modules = _LUA if lua else ""
        return Stand(port, [self.stack.enter_context(self._nginx(name, servers, port, modules=modules))])

    def files(self, name: str) -> Stand:
        """An nginx that serves what the origin serves, by itself."""
        (port,) = free_ports(1)
        servers = _ORIGIN.format(port=port, root=self.rig.folder / "www", item="x" * 1024)
        return Stand(port, [self.stack.enter_context(self._nginx(name, servers, port))])

    def haproxy(self, name: str, check: str = "") -> Stand:
        """An HAProxy before the origin."""
        (port,) = free_ports(1)
        config = self.rig.folder / f"{name}.cfg"
        config.write_text(_HAPROXY.format(port=port, origin=self.origin, check=check))
        running = self.rig.process(name, ["haproxy", "-f", str(config)], (port,), end=signal.SIGUSR1)
        return Stand(port, [self.stack.enter_context(running)])

    def gateway(self, name: str, compiled: Path | None) -> Stand:
        """The gateway with its embedded store, as `waitingroom serve` starts it."""
        port, private = free_ports(2)
        running = gateway(self.rig, name, (port, private), self.origin, compiled=compiled)
        return Stand(port, [self.stack.enter_context(running)])

    def python(self, name: str, *arguments: str) -> Stand:
        """One of the peers written with aiohttp."""
        (port,) = free_ports(1)
        kind, *rest = arguments
        command = [sys.executable, "-m", "benchmarks.peers", kind, str(port), *rest]
        root = {"PYTHONPATH": str(Path(__file__).parents[1])}
        return Stand(
            port, [self.stack.enter_context(self.rig.process(name, command, (port,), environment=root))]
        )

    def asking(self, name: str, decider: Stand) -> Stand:
        """An nginx that asks somebody about each request."""
        stand = self.nginx(name, "auth_request /decision;", _ASKING.format(decider=decider.port))
        return Stand(stand.port, [*stand.pids, *decider.pids])

    def redis_each_time(self, name: str) -> Stand:
        """An nginx that asks Redis about each request: is this one inside, and let them stay inside."""
        address = self.rig.folder / "each-time.sock"
        command = ["redis-server", "--port", "0", "--save", "", "--unixsocket", str(address)]
        command += ["--unixsocketperm", "777"]
        pid = self.stack.enter_context(self.rig.process("redis", command, ()))
        with redis.Redis(unix_socket_path=str(address)) as client:
            patiently(client.ping, redis.RedisError)
            client.mset({f"v{index}": "inside" for index in range(10_000)})
        stand = self.nginx(name, _REDIS_EACH_TIME.format(store=address), lua=True)
        return Stand(stand.port, [*stand.pids, pid])


_STANDS: dict[str, Callable[[Market], Stand]] = {
    "gateway": lambda market: market.gateway("gateway", market.compiled),
    "gateway, interpreted": lambda market: market.gateway("interpreted", None),
    "nginx": lambda market: market.nginx("nginx"),
    "nginx, file": lambda market: market.files("files"),
    "origin alone": lambda market: market["nginx, file"],
    "haproxy": lambda market: market.haproxy("haproxy"),
    "aiohttp proxy": lambda market: market.python(
        "aiohttp-proxy", "proxy", f"http://127.0.0.1:{market.origin}"
    ),
    "aiohttp handler": lambda market: market.python("aiohttp-poll", "poll"),
    "nginx asking redis": lambda market: market.redis_each_time("redis-each-time"),
    "nginx asking gateway": lambda market: market.asking("asking-gateway", market["gateway"]),
    "nginx asking aiohttp": lambda market: market.asking(
        "asking-aiohttp", market.python("aiohttp-decision", "decision")
    ),
    "nginx verifying": lambda market: market.nginx(
        "verifying", _VERIFY.format(), before=_VERIFYING.format(key=KEY), lua=True
    ),
    "haproxy verifying": lambda market: market.haproxy("jwt-verify", _JWT_VERIFY.format(key=KEY)),
}


@contextmanager
def gateway(
    rig: Rig,
    name: str,
    ports: tuple[int, int],
    origin: int,
    *,
    compiled: Path | None,
    store: str = "embedded",
    core: int | None = SERVER_CORE,
) -> Iterator[int]:
    """A gateway that listens on these ports (public, private), once it is ready; gives its process id."""
    config = rig.folder / f"{name}.toml"
    public, private = ports
    config.write_text(
        _GATEWAY.format(
            port=public,
            private=private,
            store=store,
            data=rig.folder / f"{name}.data",
            origin=origin,
            open=ROOM_OPEN,
            full=ROOM_FULL,
            key=KEY,
        )
    )
    source = compiled or Path(__file__).parents[1]
    command = [sys.executable, "-m", "waitingroom", "serve", "--config", str(config)]
    with rig.process(name, command, ports, core=core, environment={"PYTHONPATH": str(source)}) as pid:
        patiently(lambda: urlopen(f"http://127.0.0.1:{private}/readyz", timeout=5).read())
        yield pid


def store_url(rig: Rig, name: str) -> str:
    """Where the embedded store of a gateway of this name is reached."""
    return f"unix://{rig.folder}/{name}.data/valkey.sock"


def passes(count: int) -> list[str]:
    """Cookies of so many visitors inside, as far as anybody who knows the key can tell; good for an hour."""
    ring, now = Keyring([KEY.encode()]), int(time.time())
    return [
        f"visitor=v{index}; wr-open="
        + ring.sign(
            Token(
                Use.PASS,
                "open",
                f"visitor-{index:06d}",
                index + 1,
                1,
                1000 * now + 3_600_000,
                now,
                now + 3600,
            )
        )
        for index in range(count)
    ]
