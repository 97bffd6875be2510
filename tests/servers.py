"""Servers that fail over, started for the tests: a primary that Sentinels watch, and a cluster.

Each process is frozen and ended by its own id, and listens on loopback only.
"""

import asyncio
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from waitingroom import embedded

NAME = "sale-primary"
"""What the Sentinels call the primary."""

SAFE = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory": "64mb",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}
SLOTS = ((0, 5461), (5462, 10922), (10923, 16383))


def ports(count: int) -> list[int]:
    """Loopback ports on which nobody listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_for(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until a condition holds, and fail when it does not; a server may be away meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError):
            if holds():
                return
        assert time.monotonic() < deadline, f"{holds} did not hold within {seconds} s"
        time.sleep(0.02)


class Node:
    """One server process, and a client to look at it.

    Attributes:
        port: where it listens.
        client: speaks to it alone.
        away: whether it is frozen or has ended.
    """

    def __init__(self, binary: Path, folder: Path, port: int, lines: str, *arguments: str) -> None:
        folder.mkdir()
        (folder / "config").write_text(f'port {port}\nbind 127.0.0.1\ndir "{folder}"\n{lines}')
        self.port = port
        self.client: Any = redis.Redis(
            port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0), decode_responses=True
        )
        self.away = False
        with (folder / "log").open("ab") as log:
            command = [str(binary), str(folder / "config"), *arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def freeze(self) -> None:
        """Stop it where it is: its sockets stay open, and nothing answers."""
        self.away = True
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.away = False
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, frozen or not."""
        self.away = True
        self._process.kill()
        self._process.wait(10)

    def known(self) -> int:
        """Members of the cluster that it has met."""
        members = self.client.execute_command("CLUSTER NODES").values()
        return sum("handshake" not in member["flags"] for member in members)

    def settled(self) -> bool:
        """Whether it finds the cluster whole, with a replica for each primary."""
        state = self.client.execute_command("CLUSTER INFO")["cluster_state"]
        return state == "ok" and [len(at) for at in self.client.execute_command("CLUSTER SLOTS")] == [4] * 3

    def followed(self, replicas: int) -> bool:
        """Whether so many replicas have said that they have something of what it sent."""
        self.client.publish("followed", "")  # something to send, where nothing else is
        info = self.client.info("replication")
        offsets = [info[f"slave{index}"]["offset"] for index in range(info["connected_slaves"])]
        return len(offsets) == replicas and min(offsets) > 0

    def scripts(self) -> int:
        """Calls of scripts that it has served."""
        stats = self.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


class Watched:
    """A primary with two replicas, and three Sentinels, who wait for one second.

    Attributes:
        servers: primary and replicas, in the order in which they were started.
        sentinels: those who watch them.
        url: as [store] url has it.
    """

    def __init__(self, binary: Path, folder: Path, **settings: str) -> None:
        free = ports(6)
        own = {"min-replicas-to-write": "1", **settings}
        self.servers = [
            Node(binary, folder / f"server{index}", port, _lines(SAFE | own | _replica_of(free[0], index)))
            for index, port in enumerate(free[:3])
        ]
        self.sentinels = [
            Node(binary, folder / f"sentinel{index}", port, _sentinel(port, free), "--sentinel")
            for index, port in enumerate(free[3:])
        ]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in free[3:])}/{NAME}"

    def ready(self) -> None:
        """Wait until it could fail over."""
        wait_for(lambda: self.servers[0].followed(2))
        wait_for(
            lambda: all(at.client.execute_command("SENTINEL", "CKQUORUM", NAME) for at in self.sentinels)
        )

    def primary(self, _room: str = "") -> Node:
        """The server that the Sentinels name, for every room."""
        told = next(node for node in self.sentinels if not node.away).client
        _, port = told.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", NAME)
        return next(server for server in self.servers if server.port == int(port))

    def replicas(self, primary: Node) -> list[Node]:
        """Those that follow it."""
        return [node for node in self.servers if node is not primary]

    def nodes(self) -> list[Node]:
        """Every process."""
        return [*self.servers, *self.sentinels]


class Sharded:
    """A cluster of three primaries with a replica each, and a second of patience.

    Attributes:
        servers: three primaries, and then the replica of each, as they were started.
        url: as [store] url has it.
    """

    def __init__(self, binary: Path, folder: Path, **settings: str) -> None:
        free = ports(12)
        own = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": "1000",
            "cluster-require-full-coverage": "no",
        }
        self.servers = [
            Node(
                binary,
                folder / f"server{port}",
                port,
                _lines(SAFE | own | settings | {"cluster-port": str(bus)}),
            )
            for port, bus in zip(free[:6], free[6:], strict=True)
        ]
        self.url = f"redis+cluster://127.0.0.1:{free[0]},127.0.0.1:{free[4]}"
        self._buses = free[6:]

    def ready(self) -> None:
        """Make a cluster of them, and wait until it could fail over."""
        for node in self.servers:
            wait_for(node.client.ping)
        first = self.servers[0].client
        for node, slots in zip(self.servers, SLOTS, strict=False):
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        for epoch, node in enumerate(self.servers, 1):
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
            first.execute_command("CLUSTER MEET", "127.0.0.1", node.port, self._buses[epoch - 1])
        wait_for(lambda: all(node.known() == len(self.servers) for node in self.servers))
        for primary, replica in zip(self.servers, self.servers[3:], strict=False):
            name = primary.client.execute_command("CLUSTER MYID")
            replica.client.execute_command("CLUSTER REPLICATE", name)
        wait_for(lambda: all(node.settled() for node in self.servers))
        wait_for(lambda: all(node.followed(1) for node in self.servers[:3]))

    def primary(self, room: str) -> Node:
        """The server that has the room, as those say who can."""
        slot = key_slot(f"{{{room}}}".encode())
        told = next(node for node in self.servers if not node.away).client.execute_command("CLUSTER SLOTS")
        port = next(primary[1] for first, last, primary, *_ in told if first <= slot <= last)
        return next(node for node in self.servers if node.port == port)

    def replicas(self, primary: Node) -> list[Node]:
        """The one that follows it, as they were started."""
        return [self.servers[self.servers.index(primary) + 3]]

    def nodes(self) -> list[Node]:
        """Every process."""
        return self.servers


Servers = TypeVar("Servers", bound=Watched | Sharded)


@contextmanager
def running(
    kind: type[Servers], folder: Path, binary: Path | None = None, **settings: str
) -> Iterator[Servers]:
    """Servers of a kind, ready to fail over; `settings` are theirs. They end with the context."""
    servers = kind(binary or embedded.binary(), folder, **settings)
    try:
        servers.ready()
        yield servers
    finally:
        for node in servers.nodes():
            node.client.close()
            node.kill()


class Parrot:
    """A server, Sentinel and cluster in one, which answers every command with one and the same line.

    Attributes:
        port: where it listens.
        heard: the first words of all commands; every connection begins with a HELLO.
        epoch: as a Sentinel, of its configuration.
        member: as a cluster, the port of the one that has every slot.
        line: the answer.
        pause: seconds before each.
        serving: its connections.
    """

    def __init__(self, line: str) -> None:
        self.line, self.pause = line, 0.0
        self.port = self.member = 0
        self.epoch = 1
        self.heard: list[str] = []
        self.serving = set[asyncio.Task[None]]()

    def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin with a connection."""
        self.serving.add(asyncio.create_task(self.answer(reader, writer)))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            while count := int((await reader.readline())[1:] or 0):
                words = [await self._word(reader) for _ in range(count)]
                self.heard.append(words[0])
                await asyncio.sleep(self.pause)
                writer.write(self._reply(words[0]).encode())

    async def _word(self, reader: asyncio.StreamReader) -> str:
        size = int((await reader.readline())[1:])
        return (await reader.readexactly(size + 2))[:-2].decode()

    def _reply(self, word: str) -> str:
        state = {"ip": "127.0.0.1", "port": self.port, "flags": "master", "config-epoch": self.epoch}
        sentinel = [f"%{len(state) + 1}", *(f"+{each}" for pair in state.items() for each in pair)]
        known = {
            "HELLO": ["%1", "+proto", ":3"],
            "CLIENT": ["+OK"],
            "CLUSTER": ["*1", "*3", ":0", ":16383", "*3", "+127.0.0.1", f":{self.member}", "+me"],
            "SENTINEL": [*sentinel, "+num-other-sentinels", "+0"],
        }
        return "".join(f"{line}\r\n" for line in known.get(word, [self.line]) if line)


@asynccontextmanager
async def parrot(line: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Parrot]:
    """A parrot on a free port; an empty line is silence."""
    bird = Parrot(line)
    server = await asyncio.start_server(bird.meet, "127.0.0.1", 0, ssl=tls)
    bird.port = bird.member = server.sockets[0].getsockname()[1]
    try:
        yield bird
    finally:
        server.close()
        for task in bird.serving:
            task.cancel()
        await asyncio.gather(*bird.serving, return_exceptions=True)


def _lines(settings: Mapping[str, str]) -> str:
    return "".join(f"{name} {value or chr(34) * 2}\n" for name, value in settings.items())


def _replica_of(primary: int, index: int) -> dict[str, str]:
    return {"replicaof": f"127.0.0.1 {primary}"} if index else {}


def _sentinel(port: int, free: list[int]) -> str:
    """Its configuration, with what it would otherwise find out within some seconds."""
    name = {each: sha1(str(each).encode()).hexdigest() for each in free}
    lines = [
        f"sentinel myid {name[port]}",
        f"sentinel monitor {NAME} 127.0.0.1 {free[0]} 2",
        f"sentinel down-after-milliseconds {NAME} 1000",
        f"sentinel failover-timeout {NAME} 3000",
        *(f"sentinel known-replica {NAME} 127.0.0.1 {each}" for each in free[1:3]),
        *(
            f"sentinel known-sentinel {NAME} 127.0.0.1 {each} {name[each]}"
            for each in free[3:]
            if each != port
        ),
    ]
    return "\n".join(lines) + "\n"
