"""From [store] url to a client: of one server, of the one that Sentinels name, or of a cluster.

No command is tried twice in here, for only the caller knows what that would mean, and each has ended within
the time-out, whatever it had to wait for. A connection whose answer did not come is closed, so that no answer
can be taken for another's. After an error that tells of a lost or demoted primary, the next command looks for
the primary anew.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn, cast
from urllib.parse import unquote

from redis import exceptions
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from waitingroom.config import ConfigError

ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
"""What a client raises where the store did not do as it was asked; a time-out is among them."""

CONFIRM_S = 1.0
"""Seconds after which the Sentinels are asked, beside the commands, whether the primary is still the same."""

_SENTINELS_SHARE = 1 / 3  # of the time-out, so that one that is away leaves time for the command
_SOCKET_SHARE = 0.9  # the same: redis-py gives a server up only where its own time-out comes first

_URL = re.compile(r"([a-z+]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::(\d{1,5}))?")
_LAST_PORT = 65_535
_EXAMPLES = {
    "redis": "redis://user:password@10.0.0.1:6379/0",
    "rediss": "rediss://user:password@store.example:6379/0?ssl_ca_certs=/etc/ssl/store.pem",
    "unix": "unix:///run/valkey/valkey.sock",
    "redis+sentinel": "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379,10.0.0.3:26379/sale-primary",
    "redis+cluster": "redis+cluster://user:password@10.0.0.1:6379,10.0.0.2:6379",
}
_OF_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_OF_KIND = {
    "unix": {"db", "username", "password"},
    "redis+sentinel": {"sentinel_username", "sentinel_password"},
}
_WORDS: Mapping[str, Mapping[str, Any]] = {
    "ssl_check_hostname": {"yes": True, "true": True, "no": False, "false": False},
    "ssl_cert_reqs": {"required": "required", "none": "none"},
}


class Shape(Enum):
    """How the servers of a store stand together."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is, as [store] url says.

    Attributes:
        shape: how its servers stand together.
        hosts: names and ports of the server, of the Sentinels, or of some of the cluster; none for a socket.
        primary: what the Sentinels call it.
        options: user, password, database, TLS or the socket's path, as redis-py calls them.
        watch: user, password and TLS of the Sentinels.
    """

    shape: Shape
    hosts: tuple[tuple[str, int], ...]
    primary: str
    options: Mapping[str, Any] = field(repr=False)
    watch: Mapping[str, Any] = field(repr=False)


def parse(url: str) -> Place:
    """Where the store is.

    Raises:
        ConfigError: naming [store] url, what is wrong, and an example that is right.
    """
    found = _URL.fullmatch(url)
    kind = found[1].replace("rediss+", "redis+") if found else ""
    if found is None or kind not in _EXAMPLES:
        _refuse(kind, "is none of the kinds known" if found else "cannot be read")
    login, _, hosts = found[2].rpartition("@")
    user, _, password = login.partition(":")
    given = {"username": unquote(user), "password": unquote(password)}
    options: dict[str, Any] = {key: value for key, value in given.items() if value}
    secure = {"ssl": True} if found[1].startswith("rediss") else {}
    for pair in filter(None, (found[4] or "").split("&")):
        key, _, value = pair.partition("=")
        options[key] = _option(kind, key, unquote(value), secure=bool(secure))
    if kind == "unix":
        if hosts or len(found[3]) < len("/s"):
            _refuse(kind, "names no absolute path of a socket")
        return Place(Shape.SINGLE, (), "", options | {"unix_socket_path": unquote(found[3])}, {})
    shape = Shape(kind.partition("+")[2] or "single")
    options |= secure
    watch = {key: value for key, value in options.items() if key.startswith("ssl")}
    for key in _OF_KIND["redis+sentinel"] & options.keys():
        watch[key.removeprefix("sentinel_")] = options.pop(key)
    primary, options["db"] = _path(kind, shape, found[3])
    listed = tuple(_host(kind, text, 26379 if shape is Shape.SENTINEL else 6379) for text in hosts.split(","))
    if shape is Shape.SINGLE and len(listed) > 1:
        _refuse(kind, "names more than one host; say whether these are Sentinels or a cluster")
    return Place(shape, listed, primary, options, watch)


def _refuse(kind: str, what: str) -> NoReturn:
    # The value is never shown: where it cannot be read, any part of it may be the password.
    example = _EXAMPLES.get(kind, _EXAMPLES["redis"])
    remedy = f"Write for example {example} (in a user or password, % : / ? # @ as %25 %3A %2F %3F %23 %40)."
    raise ConfigError("[store] url", f"{what}.", remedy)


def _option(kind: str, key: str, value: str, *, secure: bool) -> Any:
    known = _OF_KIND.get(kind, set()) | (_OF_TLS if secure else set())
    if key not in known:
        named = f"takes {', '.join(sorted(known))}" if known else "takes nothing"
        shown = f", not {key}" if key.isidentifier() else ""
        _refuse(kind, f"has something unknown after the ?; a URL of this kind {named} there{shown}")
    words = _WORDS.get(key)
    if words and value not in words:
        _refuse(kind, f"has a {key} that is none of {', '.join(words)}")
    if key == "db":
        return _database(kind, value)
    return words[value] if words else value


def _database(kind: str, text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) <= len("65535")):
        _refuse(kind, "ends in a database that is no number")
    return int(text or 0)


def _path(kind: str, shape: Shape, path: str) -> tuple[str, int]:
    """What follows the hosts: the primary's name, and the database."""
    first, _, rest = path.removeprefix("/").partition("/")
    if shape is Shape.SENTINEL:
        if not first:
            _refuse(kind, "does not say what the Sentinels call the primary")
        return unquote(first), _database(kind, rest)
    if rest or (first and shape is Shape.CLUSTER):
        _refuse(kind, "goes on after the hosts, but a cluster has no databases" if not rest else "has a path")
    return "", _database(kind, first)


def _host(kind: str, text: str, default: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[3] or default) if found else 0
    if not found or not 0 < port <= _LAST_PORT:
        _refuse(kind, "has a host or port that is none")
    return found[1] or found[2], port


def connect(url: str, *, timeout: float, connections: int) -> "Server | Cluster":
    """A client of the store, which connects with its first command.

    Args:
        url: as `parse` takes it.
        timeout: seconds within which each command has ended, connecting included.
        connections: most of them at one time, to each server.

    Raises:
        ConfigError: the URL names no store.
    """
    return client(parse(url), timeout=timeout, connections=connections)


def client(place: Place, *, timeout: float, connections: int) -> "Server | Cluster":
    """The same for a place."""
    manner: dict[str, Any] = {
        "socket_timeout": timeout * _SOCKET_SHARE,
        "socket_connect_timeout": timeout * _SOCKET_SHARE,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "max_connections": connections,
        # Where it is on, redis-py uses a connection again without a look at whether anything is left in it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    options = manner | dict(place.options)
    if place.shape is Shape.CLUSTER:
        return Cluster(place.hosts, timeout, options)
    if place.shape is Shape.SENTINEL:
        sentinels = Sentinels(place.hosts, sentinel_kwargs=manner | dict(place.watch))
        sentinels.patience = timeout * _SENTINELS_SHARE
        served = cast("Server", Server.from_pool(Primary(place.primary, sentinels, **options)))
    else:
        host, port = place.hosts[0] if place.hosts else ("localhost", 0)
        served = Server(host=host, port=port, **options)
    served.within = timeout
    return served


def _lost(error: Exception) -> bool:
    """Whether an error tells that this server is not, or no longer, the one to ask."""
    if isinstance(error, exceptions.MaxConnectionsError):
        return False
    kinds = (exceptions.ConnectionError, exceptions.ReadOnlyError, exceptions.ClusterDownError)
    return isinstance(error, kinds) or str(error).startswith("NOREPLICAS")


def _late(seconds: float) -> exceptions.TimeoutError:
    return exceptions.TimeoutError(f"no answer within {seconds:.3g} s")


class Server(Redis):
    """A client of one server, or of whichever its pool finds.

    Attributes:
        within: seconds in which a command has ended.
    """

    within: float

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py does it, but within a time as a whole."""
        try:
            async with asyncio.timeout(self.within):
                try:
                    return await super().execute_command(*args, **options)
                except exceptions.RedisError as error:
                    if _lost(error):
                        await self.forsake()
                    raise
        except TimeoutError:
            raise _late(self.within) from None

    async def forsake(self) -> None:
        """Look for the server anew: idle connections lead to the same one, the name perhaps elsewhere."""
        await self.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self, *args: Any, **options: Any) -> None:
        """Close every connection, whether or not the other side says goodbye."""
        with suppress(*ERRORS):
            await super().aclose(*args, **options)


class Sentinels(Sentinel):
    """All of them are asked at once, and the newest of what they say counts.

    One by one, as redis-py asks, the first that is away would use up the time-out; and one that was cut off
    still names the primary that was.

    Attributes:
        patience: seconds that they have for an answer.
    """

    patience: float

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary.

        Raises:
            MasterNotFoundError: none that can be reached has one that is up.
        """
        told = await asyncio.gather(*(self._ask(sentinel, service_name) for sentinel in self.sentinels))
        states = [answer for answer in told if isinstance(answer, dict)]
        newest = max((state["config-epoch"] for state in states), default=0)
        for state in states:
            if state["config-epoch"] == newest and self.check_master_state(state, service_name):
                return state["ip"], state["port"]
        reasons = sorted({"it is down" if isinstance(answer, dict) else str(answer) for answer in told})
        raise MasterNotFoundError(f"no Sentinel has a primary {service_name}: {'; '.join(reasons)}")

    async def _ask(self, sentinel: Redis, name: str) -> dict[str, Any] | Exception:
        try:
            async with asyncio.timeout(self.patience):
                return cast("dict[str, Any]", await sentinel.execute_command("SENTINEL MASTER", name))
        except TimeoutError:
            return _late(self.patience)
        except ERRORS as error:
            return error


class Primary(SentinelConnectionPool):
    """Connections to the primary that the Sentinels name.

    redis-py asks them for each new connection. A primary that was cut off from them but not from us would
    never make us open one, so they are also asked from time to time, beside the commands.
    """

    def __init__(self, name: str, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(name, sentinels, **options)
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        """A connection to the primary, as far as is known."""
        due = asyncio.get_running_loop().time() - self._asked > CONFIRM_S
        if self.master_address and due and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._confirm(), name="confirm the store's primary")
        return cast("AbstractConnection", await super().get_connection(*args, **options))

    async def _confirm(self) -> None:
        with suppress(*ERRORS):
            await self.get_master_address()

    async def get_master_address(self) -> tuple[str, int]:
        """Host and port of the primary; a connection to one that no longer is it is not used again."""
        self._asked = asyncio.get_running_loop().time()
        before = self.master_address
        address = cast("tuple[str, int]", await super().get_master_address())
        if before not in (None, address):
            await self.update_active_connections_for_reconnect()
        return address

    async def aclose(self) -> None:
        """Close every connection, those to the Sentinels included."""
        if self._asking is not None:
            self._asking.cancel()
        try:
            await super().aclose()
        finally:
            await self.sentinel_manager.aclose()


class Cluster(RedisCluster):
    """A client of a cluster that draws its map of slots anew after any sign that it is out of date.

    Args:
        hosts: some of its servers.
        within: seconds in which a command has ended.
        options: for each connection.
    """

    def __init__(self, hosts: Iterable[tuple[str, int]], within: float, options: Mapping[str, Any]) -> None:
        nodes = [ClusterNode(host, port) for host, port in hosts]
        # Rooms whose slots are served go on where others are not. A MOVED mends the map for its slot: to
        # begin anew with every fifth, as redis-py would, cuts off the commands that are under way.
        super().__init__(startup_nodes=nodes, require_full_coverage=False, reinitialize_steps=0, **options)
        self._within = within
        self.commands_parser = _FirstIsKey()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py does it, but within a time as a whole."""
        try:
            async with asyncio.timeout(self._within):
                return await super().execute_command(*args, **options)
        except TimeoutError:
            self._initialize = True
            raise _late(self._within) from None
        except exceptions.RedisError as error:
            self._initialize |= _lost(error)
            raise
        except exceptions.RedisClusterException:
            # Where every address has changed, the names in the URL may still lead to the cluster.
            self.nodes_manager.startup_nodes |= {node.name: node for node in self.startup_nodes}
            self._initialize = True
            raise
        except (LookupError, AttributeError) as error:
            # A slot that nobody serves, or a server named by ASK that is new, is no case for redis-py.
            self._initialize = True
            raise exceptions.SlotNotCoveredError(f"not on the map of the cluster: {error!r}") from error

    async def forsake(self) -> None:
        """Draw the map of slots anew with the next command."""
        self._initialize = True

    async def aclose(self) -> None:
        """Close every connection, also where the map is out of date, when redis-py would leave them open."""
        with suppress(*ERRORS):
            await super().aclose()
            await self.nodes_manager.aclose()
            await self.nodes_manager.aclose("startup_nodes")


class _FirstIsKey(AsyncCommandsParser):
    """Which key a command is about: with all that the store calls, scripts apart, its first argument.

    redis-py would have a server list all its commands whenever the map is drawn, and always the same server,
    without which no room could then be reached.
    """

    async def initialize(self, node: ClusterNode | None = None) -> None:
        """Nothing has to be asked."""

    async def get_keys(self, *args: Any) -> tuple[str, ...] | None:
        """The key of a command and its arguments."""
        return args[1:2] or None
