"""A store by its URL: one server, one that Sentinels name, or a cluster; and what the loss of a server is."""

import asyncio
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from tests.conftest import REDIS, eventually
from tests.servers import NAME, Node, Sharded, Watched, parrot, ports, running
from tests.test_checks import SALE, check
from tests.test_cli import run
from waitingroom.config import ConfigError, load_text
from waitingroom.handin import HandIn
from waitingroom.room import Entry, Knock, Room, Snapshot
from waitingroom.servers import ERRORS, Shape, connect, parse
from waitingroom.store import PATIENCE as BACKGROUND
from waitingroom.store import Store, StoreUnavailableError, UnknownRoomError

ROOM = Room(name="sale", total_active_users=50, new_users_per_minute=6000)
PATIENCE = 0.4
"""Seconds that a call may take here."""

SLACK = 1.0
"""Seconds that a busy machine may add."""

BACK = 20.0
"""Seconds within which a store has to work again after the loss of a server; it is two or three as a rule."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A primary, two replicas and three Sentinels, for tests that leave them as they were."""
    with running(Watched, tmp_path_factory.mktemp("watched")) as servers:
        yield servers


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharded]:
    """A cluster of six, for tests that leave it as it was."""
    with running(Sharded, tmp_path_factory.mktemp("sharded")) as servers:
        yield servers


@pytest.fixture(params=["single", "watched", "sharded"])
def url(request: pytest.FixtureRequest) -> str:
    """A store of each shape."""
    if request.param == "single":
        return str(request.getfixturevalue("valkey_url"))
    return str(request.getfixturevalue(request.param).url)


@asynccontextmanager
async def opened(url: str, within: float = PATIENCE) -> AsyncIterator[Store]:
    store = Store(url, "gateway", timeout=within)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def connected(url: str, within: float = PATIENCE) -> AsyncIterator[Any]:
    client = connect(url, timeout=within, connections=8)
    try:
        yield client
    finally:
        await client.aclose()


def slot_of(room: str) -> int:
    """The slot of all its keys."""
    return key_slot(f"{{{room}}}".encode())


# The URL


@pytest.mark.parametrize(
    ("url", "shape", "hosts", "primary", "options", "watch"),
    [
        ("redis://10.0.0.1", Shape.SINGLE, (("10.0.0.1", 6379),), "", {"db": 0}, {}),
        ("redis://h:1/3", Shape.SINGLE, (("h", 1),), "", {"db": 3}, {}),
        (
            "redis://:p%40ss@[::1]:1/",
            Shape.SINGLE,
            (("::1", 1),),
            "",
            {"db": 0, "password": "p@ss"},
            {},
        ),
        (
            "rediss://u:p@h?ssl_ca_certs=/c.pem&ssl_check_hostname=no",
            Shape.SINGLE,
            (("h", 6379),),
            "",
            {
                "db": 0,
                "username": "u",
                "password": "p",
                "ssl": True,
                "ssl_ca_certs": "/c.pem",
                "ssl_check_hostname": False,
            },
            {"ssl": True, "ssl_ca_certs": "/c.pem", "ssl_check_hostname": False},
        ),
        (
            "unix:///run/a%20b.sock?db=2&password=p",
            Shape.SINGLE,
            (),
            "",
            {"unix_socket_path": "/run/a b.sock", "db": 2, "password": "p"},
            {},
        ),
        (
            "redis+sentinel://u:p@h,[::1]:2/sale%2Fone/4?sentinel_username=w&sentinel_password=s%3D+",
            Shape.SENTINEL,
            (("h", 26379), ("::1", 2)),
            "sale/one",
            {"db": 4, "username": "u", "password": "p"},
            {"username": "w", "password": "s=+"},
        ),
        (
            "rediss+sentinel://h/x",
            Shape.SENTINEL,
            (("h", 26379),),
            "x",
            {"db": 0, "ssl": True},
            {"ssl": True},
        ),
        ("redis+cluster://h:1,i:2", Shape.CLUSTER, (("h", 1), ("i", 2)), "", {"db": 0}, {}),
        ("rediss+cluster://h/", Shape.CLUSTER, (("h", 6379),), "", {"db": 0, "ssl": True}, {"ssl": True}),
    ],
)
def test_a_url_says_where_the_store_is(
    url: str,
    shape: Shape,
    hosts: tuple[tuple[str, int], ...],
    primary: str,
    options: dict[str, Any],
    watch: dict[str, Any],
) -> None:
    """Hosts, ports, the primary's name, users, passwords and TLS are read, with ports that are usual."""
    place = parse(url)
    assert (place.shape, place.hosts, place.primary) == (shape, hosts, primary)
    assert place.options == options
    if shape is Shape.SENTINEL:
        assert place.watch == watch
    assert "options" not in repr(place)
    assert "watch" not in repr(place)


@pytest.mark.parametrize(
    ("url", "what", "example"),
    [
        ("redis:/hunter2", "cannot be read", "redis://"),
        ("http://u:hunter2@h", "none of the kinds", "redis://"),
        ("redis://u:hun#ter2@h", "cannot be read", "redis://"),
        ("redis://u:hun/ter2@h", "database that is no number", "redis://user"),
        ("redis://u:hun?ter2@h", "unknown after the ?", "redis://user"),
        ("redis://u:hunter2@", "host or port", "redis://user"),
        ("redis://u:hunter2@h:port", "host or port", "redis://user"),
        ("redis://u:hunter2@h:70000", "host or port", "redis://user"),
        ("redis://u:hunter2@h:1,i:2", "more than one host", "redis://user"),
        ("redis://u:hunter2@h/sale", "database that is no number", "redis://user"),
        ("redis://u:hunter2@h/0/1", "has a path", "redis://user"),
        (
            "redis://u:hunter2@h?retry_on_timeout=1",
            "takes nothing there, not retry_on_timeout",
            "redis://user",
        ),
        ("rediss://u:hunter2@h?ssl_check_hostname=maybe", "none of yes", "rediss://user"),
        ("unix://run/valkey.sock?password=hunter2", "no absolute path", "unix:///"),
        ("unix:///run/valkey.sock?db=x&password=hunter2", "database that is no number", "unix:///"),
        ("redis+sentinel://u:hunter2@h,i,j", "what the Sentinels call the primary", "/sale-primary"),
        ("redis+sentinel://u:hunter2@h,,j/x", "host or port", "/sale-primary"),
        ("redis+sentinel://u:hunter2@h/x/y", "database that is no number", "/sale-primary"),
        (
            "redis+sentinel://u:hunter2@h/x?quorum=2",
            "takes sentinel_password, sentinel_user",
            "/sale-primary",
        ),
        ("redis+cluster://u:hunter2@h/1", "a cluster has no databases", "redis+cluster://"),
        ("redis+cluster://u:hunter2@h?db=1", "takes nothing there, not db", "redis+cluster://"),
    ],
)
def test_a_wrong_url_is_refused_with_a_right_one(url: str, what: str, example: str) -> None:
    """The setting, what is wrong and an example are named; the password is not, nor any part of it."""
    with pytest.raises(ConfigError) as refused:
        connect(url, timeout=1, connections=1)
    assert refused.value.where == "[store] url"
    assert what in refused.value.what
    assert example in refused.value.remedy
    assert "hun" not in str(refused.value)
    assert "ter2" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"])
def test_the_configuration_takes_every_kind_of_store(scheme: str) -> None:
    """A kind that exists is taken; one that does not is refused without showing the password in it."""
    url = f"{scheme}://u:hunter2@h,i/x"
    assert load_text(f"[store]\nurl = '{url}'", {}).store.url == url
    with pytest.raises(ConfigError) as refused:
        load_text(f"[store]\nurl = 'x{url}'", {})
    assert "hunter2" not in str(refused.value)
    assert "redis://" in refused.value.remedy


def test_explain_withholds_the_url_of_a_store(tmp_path: Path) -> None:
    """A URL may have a password in it, so only the default is shown."""
    config = tmp_path / "waitingroom.toml"
    config.write_text("[store]\nurl = 'redis://u:hunter2@h'")
    assert "hunter2" not in run("config", "explain", "store.url", "--config", str(config)).output
    config.write_text("")
    assert "embedded" in run("config", "explain", "store.url", "--config", str(config)).output


# What works


async def test_a_room_lives_in_a_store_of_every_shape(url: str) -> None:
    """Seeding, entering, ticking, changing and the audit work wherever the store is, in a cluster too."""
    async with opened(url) as store:
        for name in ("early", "gala", "console"):  # these are in slots of three servers
            room = await store.seed(replace(ROOM, name=name))
            (answer,) = await store.enter(name, [Knock("anna")])
            assert answer.entry is Entry.TRIAL
            room, snapshot = await store.tick(room, Snapshot(), HandIn(seen={answer.number}))
            assert snapshot.inside == 1
            changed = await store.change(replace(room, total_active_users=7), room, "anna", "the sale is on")
            assert await store.load(name) == changed
            assert [entry.changed for entry in await store.audit(name)] == [{"total_active_users": 7}]
        assert await store.ping() < PATIENCE
        assert (await store.info())["role"] == "master"


# What must not happen


@dataclass
class At:
    """A store of some shape, and the server in it that has the room."""

    url: str
    server: Any


@pytest.fixture
def at(url: str, request: pytest.FixtureRequest) -> Iterator[At]:
    """A store of each shape, and its server."""
    if url.startswith("unix:"):
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield At(url, client)
    else:
        servers = request.getfixturevalue("watched" if "sentinel" in url else "sharded")
        yield At(url, (servers.primary() if "sentinel" in url else servers.primary("sale")).client)


async def test_no_answer_is_taken_for_anothers(at: At) -> None:
    """Calls that are cancelled, or not answered in time, leave nothing behind for a later call to find."""
    random, told, late = Random(1), set[int](), list[Exception]()
    at_a_time = asyncio.Semaphore(8)

    async with connected(at.url, 0.2) as client:

        async def ask(number: int) -> None:
            async with at_a_time:
                try:
                    answer = await client.eval("return ARGV[1]", 1, "wr:{sale}:none", number)
                except ERRORS as error:
                    late.append(error)
                else:
                    assert int(answer) == number
                    told.add(number)

        for turn in range(20):
            if turn == 10:
                at.server.client_pause(300)
            calls = [asyncio.create_task(ask(turn * 100 + index)) for index in range(16)]
            await asyncio.sleep(random.random() / 200)
            for call in random.sample(calls, 5):
                call.cancel()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in done} <= {type(None), asyncio.CancelledError}
    assert len(told) > 100
    assert late


ASKS = {"redis://{}": "HELLO", "redis+sentinel://{}/x": "SENTINEL", "redis+cluster://{}": "CLUSTER"}
"""By kind of URL, what a client says when it looks for the primary."""


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("-READONLY You can't write against a read only replica.", True),
        ("-NOREPLICAS Not enough good replicas to write.", True),
        ("-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("-CLUSTERDOWN The cluster is down", True),
        ("-LOADING Valkey is loading the dataset in memory", True),
        ("-OOM command not allowed when used memory > 'maxmemory'.", False),
        ("-MISCONF Errors writing to the AOF file: No space left on device", False),
        ("-NOPERM User app has no permissions to run the 'get' command", False),
        ("", False),
    ],
)
async def test_what_a_server_refuses_is_told_once(kind: str, line: str, *, lost: bool) -> None:
    """An error or silence is an outage after one try; the next call looks for a primary that was lost."""
    async with parrot(line) as bird, opened(kind.format(f"127.0.0.1:{bird.port}")) as store:
        for calls in (1, 2):
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="load"):
                await store.load("sale")
            assert time.monotonic() - started < PATIENCE + SLACK
            assert bird.heard.count("GET") == calls
            assert bird.heard.count(ASKS[kind]) == (calls if lost or not line else 1)


@pytest.mark.parametrize("kind", ASKS)
async def test_a_call_has_its_time_as_a_whole(kind: str) -> None:
    """A server that is slow with every step of a new connection does not get the time for each of them."""
    async with parrot("$-1") as bird, opened(kind.format(f"127.0.0.1:{bird.port}")) as store:
        bird.pause = BACKGROUND / 4
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await store.load("sale")
        assert time.monotonic() - started < BACKGROUND + SLACK
        bird.pause = 0.0
        with pytest.raises(UnknownRoomError):
            await store.load("sale")


async def test_a_call_that_is_sent_in_circles_ends() -> None:
    """Servers that do not agree on who has a slot get no more time; the next call draws the map anew."""
    async with parrot("$-1") as bird, opened(f"redis+cluster://127.0.0.1:{bird.port}") as store:
        with pytest.raises(UnknownRoomError):
            await store.load("sale")
        bird.line, bird.pause = f"-MOVED {slot_of('sale')} 127.0.0.1:{bird.port}", BACKGROUND / 4
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await store.load("sale")
        assert time.monotonic() - started < BACKGROUND + SLACK
        bird.line, bird.pause = "$-1", 0.0
        with pytest.raises(UnknownRoomError):
            await store.load("sale")
        assert bird.heard.count("CLUSTER") == 2


async def test_a_cluster_that_has_moved_is_found_by_its_names(free_port: Callable[[], int]) -> None:
    """When no address that the cluster told us is good any more, those in the URL are asked again."""
    async with parrot("$-1") as bird, opened(f"redis+cluster://127.0.0.1:{bird.port}") as store:
        bird.member = free_port()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await store.load("sale")
        bird.member = bird.port
        with pytest.raises(UnknownRoomError):
            await store.load("sale")


async def test_the_newest_of_what_sentinels_say_counts() -> None:
    """One that was cut off names the primary that was; it is not believed, wherever it stands in the URL."""
    async with parrot("$-1") as stale, parrot("$-1") as fresh:
        fresh.epoch = 2
        for order in ((stale, fresh), (fresh, stale)):
            hosts = ",".join(f"127.0.0.1:{bird.port}" for bird in order)
            async with opened(f"redis+sentinel://{hosts}/x") as store:
                with pytest.raises(UnknownRoomError):
                    await store.load("sale")
        assert (stale.heard.count("GET"), fresh.heard.count("GET")) == (0, 2)


async def test_what_was_under_way_at_the_old_primary_stays_there() -> None:
    """A connection in use when the Sentinels name another primary is not used for the next call."""
    async with parrot("$-1") as old, parrot("$-1") as new:
        old.epoch = 2
        async with opened(f"redis+sentinel://127.0.0.1:{old.port},127.0.0.1:{new.port}/x") as store:
            for _ in range(2):
                with pytest.raises(UnknownRoomError):
                    await store.load("sale")
            old.pause = PATIENCE / 2
            under_way = asyncio.create_task(store.load("sale"))
            await eventually(lambda: old.heard.count("GET") == 3)
            new.epoch = 3
            with pytest.raises(UnknownRoomError):
                await store.load("sale")
            with pytest.raises(UnknownRoomError):
                await under_way
            for _ in range(2):
                with pytest.raises(UnknownRoomError):
                    await store.load("sale")
        assert (old.heard.count("GET"), new.heard.count("GET")) == (3, 3)


async def test_too_many_calls_at_once_are_not_the_servers_fault() -> None:
    """What exceeds the limit of connections fails at once, and no map is drawn anew for that."""
    async with parrot("$-1") as bird:
        client = connect(f"redis+cluster://127.0.0.1:{bird.port}", timeout=PATIENCE, connections=1)
        try:
            await client.get("x")
            bird.pause = PATIENCE / 4
            ends = await asyncio.gather(*(client.get("x") for _ in range(3)), return_exceptions=True)
            assert [type(end) for end in ends] == [type(None), *[redis.exceptions.MaxConnectionsError] * 2]
            await client.get("x")
        finally:
            await client.aclose()
        assert bird.heard.count("CLUSTER") == 1


async def test_a_sentinel_that_is_away_costs_no_call(watched: Watched) -> None:
    """The first in the URL does not answer, and the others are asked in time."""
    watched.sentinels[0].freeze()
    try:
        async with opened(watched.url) as store:
            for _ in range(3):
                await store.ping()
    finally:
        watched.sentinels[0].thaw()


@pytest.mark.parametrize("sentinels", [False, True])
async def test_connections_that_were_closed_meanwhile_are_opened_again(
    watched: Watched, *, sentinels: bool
) -> None:
    """A server that has been started anew between two calls is noticed by nobody."""
    server = watched.primary()
    async with connected(watched.url if sentinels else f"redis://127.0.0.1:{server.port}") as client:
        await asyncio.gather(*(client.ping() for _ in range(5)))
        server.client.client_kill_filter(_type="normal", skipme=True)
        idle = client.connection_pool._available_connections
        await eventually(lambda: all(each._reader.at_eof() for each in idle))
        for _ in range(5):
            await client.ping()


async def test_a_wrong_kind_of_server_is_an_outage(valkey_url: str, free_port: Any) -> None:
    """A server that is no cluster, or no Sentinel, or not there: every call says that it is unavailable."""
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("port", port := free_port())
        client.config_set("bind", "127.0.0.1")
    try:
        for url in (
            f"redis+cluster://127.0.0.1:{port}",
            f"redis+sentinel://127.0.0.1:{port}/sale-primary",
            f"redis+cluster://127.0.0.1:{free_port()}",
            f"redis://127.0.0.1:{free_port()}",
        ):
            async with opened(url) as store:
                for call in (store.seed(ROOM), store.load("sale"), store.ping(), store.audit("sale")):
                    with pytest.raises(StoreUnavailableError):
                        await call
    finally:
        with redis.Redis.from_url(valkey_url) as client:
            client.config_set("port", 0)


async def test_an_unknown_primary_is_named(watched: Watched) -> None:
    """Sentinels that have never heard of the primary are an error that says which one was asked for."""
    async with opened(watched.url.replace("sale-primary", "sael-primary")) as store:
        with pytest.raises(StoreUnavailableError, match=r"sael-primary.*No such master"):
            await store.ping()


async def test_a_replica_is_not_written_to(watched: Watched) -> None:
    """A replica's own address is no store: it refuses, and is refused."""
    replica = next(node for node in watched.servers if node is not watched.primary())
    async with opened(f"redis://127.0.0.1:{replica.port}") as store:
        with pytest.raises(StoreUnavailableError, match="read only replica"):
            await store.seed(ROOM)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, which no authority has signed, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=store -days 9"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(chain), "-keyout", str(key)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return chain, key


@pytest.mark.parametrize("kind", ASKS)
async def test_every_kind_of_store_is_reached_over_tls(kind: str, certificate: tuple[Path, Path]) -> None:
    """Sentinels and servers have to show a certificate that is trusted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with parrot("$-1", context) as bird:
        url = kind.replace("redis", "rediss", 1).format(f"127.0.0.1:{bird.port}")
        async with opened(f"{url}?ssl_ca_certs={certificate[0]}") as store:
            with pytest.raises(UnknownRoomError):
                await store.load("sale")
        async with opened(url) as store:
            with pytest.raises(StoreUnavailableError, match="certificate"):
                await store.load("sale")


async def test_closing_waits_for_nobody(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """TLS has a goodbye, which a frozen server does not say; a gateway stops all the same."""
    if not REDIS.exists():
        pytest.skip(f"{REDIS} is not installed")
    plain, port = ports(2)
    chain, key = certificate
    files = f"tls-cert-file {chain}\ntls-key-file {key}\ntls-ca-cert-file {chain}\n"
    node = Node(REDIS, tmp_path / "server", plain, f"tls-port {port}\ntls-auth-clients no\n{files}")
    try:
        async with opened(f"rediss://127.0.0.1:{port}?ssl_ca_certs={chain}") as store:
            await eventually(partial(works, store, ROOM))
            node.freeze()
            started = time.monotonic()
        assert time.monotonic() - started < PATIENCE + SLACK
    finally:
        node.client.close()
        node.kill()


# A cluster that changes


async def test_a_room_is_found_where_its_slot_has_gone(sharded: Sharded) -> None:
    """MOVED is followed at once, and ASK for a single key; scripts are refused while a slot is on the way."""
    slot, room = slot_of("moving"), replace(ROOM, name="moving")
    source = sharded.primary("moving")
    target = next(node for node in sharded.servers[:3] if node is not source)
    names = {node: node.client.execute_command("CLUSTER MYID") for node in (source, target)}
    async with opened(sharded.url) as store:
        await store.ping()
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source])
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[target])
        with pytest.raises(UnknownRoomError):
            await store.load("moving")
        with pytest.raises(StoreUnavailableError):
            await store.seed(room)
        for node in (target, source):
            node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[target])
        await store.seed(room)
        served = target.scripts()
        for _ in range(5):
            assert await works(store, room)
        assert target.scripts() >= served + 5


async def test_a_room_moves_with_its_slot_as_a_whole(sharded: Sharded) -> None:
    """Where the servers move slots as a whole, as Valkey 9 can, no call fails on the way."""
    slot, room = slot_of("whole"), replace(ROOM, name="whole")
    source = sharded.primary("whole")
    target = next(node for node in sharded.servers[:3] if node is not source)
    name = target.client.execute_command("CLUSTER MYID")
    async with opened(sharded.url) as store:
        await store.seed(room)
        source.client.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)

        async def has_moved() -> bool:
            assert await works(store, room)
            return sharded.primary("whole") is target

        await eventually(has_moved, BACK)
        assert await works(store, room)


async def test_a_slot_that_nobody_serves_is_an_outage_of_its_rooms(sharded: Sharded) -> None:
    """Rooms in other slots go on; and so does this one, once somebody serves it, without a new start."""
    slot, owner = slot_of("nowhere"), sharded.primary("nowhere")
    async with opened(sharded.url) as store:
        for node in sharded.servers:
            node.client.execute_command("CLUSTER DELSLOTS", slot)
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailableError):
                    await store.seed(replace(ROOM, name="nowhere"))
                await store.seed(ROOM)
        finally:
            owner.client.execute_command("CLUSTER ADDSLOTS", slot)
        await eventually(partial(works, store, replace(ROOM, name="nowhere")), BACK)


# A server is lost


async def works(store: Store, room: Room) -> bool:
    """Whether the store does what it is asked."""
    try:
        await store.tick(room, Snapshot(), HandIn())
    except UnknownRoomError:
        await store.seed(room)
    except StoreUnavailableError:
        return False
    return True


@dataclass
class Outage:
    """What a gateway saw of one.

    Attributes:
        seconds: until the store worked again.
        longest: seconds that a call took to fail.
        elsewhere: calls about a room on other servers that were answered meanwhile.
    """

    seconds: float
    longest: float
    elsewhere: int


async def outage(store: Store, room: Room, other: Room) -> Outage:
    """Call on until the store works again."""
    began, longest, elsewhere = time.monotonic(), 0.0, 0
    while (called := time.monotonic()) < began + BACK:
        if await works(store, room):
            return Outage(time.monotonic() - began, longest, elsewhere)
        longest = max(longest, time.monotonic() - called)
        elsewhere += await works(store, other)
        await asyncio.sleep(0.02)
    pytest.fail(f"no call was answered within {BACK} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "binary", "loss"),
    [
        (Watched, None, Node.freeze),
        (Watched, REDIS, Node.freeze),
        (Watched, None, Node.kill),
        (Sharded, None, Node.freeze),
        (Sharded, None, Node.kill),
    ],
    ids=[
        "sentinel, frozen",
        "sentinel, frozen, redis",
        "sentinel, killed",
        "cluster, frozen",
        "cluster, killed",
    ],
)
async def test_a_lost_primary_is_an_outage_of_seconds(
    kind: type[Watched | Sharded], binary: Path | None, loss: Callable[[Node], None], tmp_path: Path
) -> None:
    """Calls fail in time, the same client works again after the fail-over, and asks the old one no more."""
    with running(kind, tmp_path, binary) as servers:
        async with opened(servers.url) as store:
            room, other = [await store.seed(replace(ROOM, name=name)) for name in ("sale", "vip")]
            await asyncio.gather(*(works(store, room) for _ in range(8)))
            old = servers.primary("sale")
            await eventually(lambda: all(node.client.dbsize() for node in servers.replicas(old)))
            loss(old)
            lost = await outage(store, room, other)
            sys.stdout.write(f"{lost}\n")  # for whoever asks with -s
            assert lost.longest < PATIENCE + SLACK
            assert lost.elsewhere or kind is Watched
            new = servers.primary("sale")
            assert new is not old
            if loss is Node.freeze:
                old.thaw()
                served = old.scripts()
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    assert await works(store, room)
                assert old.scripts() == served
            assert new.scripts() > 0


@pytest.mark.slow
async def test_a_primary_that_only_the_sentinels_lost_is_left(tmp_path: Path) -> None:
    """Cut off from Sentinels and replicas but not from us, it would go on; the new one is asked instead."""
    user = {"user": "app on >hunter2 ~* &* +@all", "min-replicas-to-write": "0"}
    with running(Watched, tmp_path, None, **user) as servers:
        url = servers.url.replace("://", "://app:hunter2@")
        async with opened(url) as store:
            room = await store.seed(ROOM)
            old = servers.primary()
            await eventually(lambda: all(node.client.dbsize() for node in servers.replicas(old)))
            with redis.Redis(port=old.port, username="app", password="hunter2") as inside:
                inside.execute_command("ACL SETUSER", "default", "off")
                inside.execute_command("CLIENT KILL", "USER", "default")
                assert await works(store, room)
                await eventually(lambda: servers.primary() is not old, BACK)
                new = servers.primary()

                async def is_asked() -> bool:
                    return await works(store, room) and new.scripts() > 0

                await eventually(is_asked, BACK)
                calls = partial(inside.info, "commandstats")
                served = calls()["cmdstat_evalsha"]["calls"]
                for _ in range(20):
                    await works(store, room)
                assert calls()["cmdstat_evalsha"]["calls"] == served


# What a check finds


def found_by_check(url: str, folder: Path) -> dict[str, str]:
    """What `waitingroom check` says of a store, and of those around it, with its level."""
    text = f"url = '{url}'\ntimeout = '2s'\n[tokens]\nkeys = ['{'k' * 40}']\n{SALE}"
    _, found = check(text, folder)
    ours = ("store:", "store ", "sentinels:", "cluster:")
    return {what: level for what, level in found.items() if what.startswith(ours)}


@contextmanager
def set_to(nodes: list[Node], **settings: str) -> Iterator[None]:
    """Other settings, for a while."""
    names = [name.replace("_", "-") for name in settings]
    before = [node.client.config_get(*names) for node in nodes]
    for node in nodes:
        for name, value in zip(names, settings.values(), strict=True):
            node.client.config_set(name, value)
    try:
        yield
    finally:
        for node, values in zip(nodes, before, strict=True):
            for name, value in values.items():
                node.client.config_set(name, value)


def test_a_good_set_of_servers_passes_the_check(watched: Watched, sharded: Sharded, tmp_path: Path) -> None:
    """Servers set as the documentation says leave nothing to mend; of a cluster it is told what it is for."""
    found = found_by_check(watched.url, tmp_path)
    assert set(found.values()) == {"ok"}, found
    assert any("3 of 3 answer and name" in what for what in found)
    found = found_by_check(sharded.url, tmp_path)
    notices = {what for what, level in found.items() if level != "ok"}
    assert {found[what] for what in notices} == {"notice"}
    assert all("each room lives on one of the servers" in what for what in notices)
    assert "cluster: every slot is served by one of 3 primaries" in found


def test_what_is_wrong_with_sentinels_and_their_servers_is_found(watched: Watched, tmp_path: Path) -> None:
    """Settings of each server and of the Sentinels are read where they are."""
    replica = next(node for node in watched.servers if node is not watched.primary())
    sentinel = watched.sentinels[1].client
    sentinel.execute_command("SENTINEL", "SET", NAME, "quorum", 1, "down-after-milliseconds", 60_000)
    try:
        with set_to([replica], min_replicas_to_write="0", appendonly="no", maxmemory="0"):
            found = found_by_check(watched.url, tmp_path)
    finally:
        sentinel.execute_command("SENTINEL", "SET", NAME, "quorum", 2, "down-after-milliseconds", 1000)
    at = f"store 127.0.0.1:{replica.port}"
    assert found[f"{at}: min-replicas-to-write is 0"] == "warning"
    assert found[f"{at} durability: AOF is off"] == "warning"
    assert found[f"{at}: no maxmemory is set"] == "notice"
    assert found["sentinels: the quorum is 1 of 3"] == "warning"
    assert found["sentinels: a primary has to be silent for 60 s before it is replaced"] == "warning"


def test_what_is_wrong_with_a_cluster_is_found(sharded: Sharded, tmp_path: Path) -> None:
    """Settings of each server are read, from whichever of them is named."""
    node = sharded.servers[2]
    with set_to([node], cluster_node_timeout="15000", cluster_require_full_coverage="yes"):
        found = found_by_check(f"redis+cluster://127.0.0.1:1,127.0.0.1:{sharded.servers[4].port}", tmp_path)
    at = f"store 127.0.0.1:{node.port}"
    assert found[f"{at}: cluster-node-timeout is 15 s"] == "warning"
    assert found[f"{at}: cluster-require-full-coverage is yes"] == "notice"


def test_a_server_that_tells_no_settings_is_no_reason_to_stop(watched: Watched, tmp_path: Path) -> None:
    """Where CONFIG is forbidden, as in managed stores, the check says so and goes on."""
    for node in watched.servers:
        node.client.execute_command("ACL SETUSER", "app", "on", ">hunter2", "~*", "&*", "+@all", "-config")
    found = found_by_check(watched.url.replace("://", "://app:hunter2@"), tmp_path)
    refused = [level for what, level in found.items() if "CONFIG is refused" in what]
    assert refused == ["notice"] * 3
    assert any("3 of 3 answer and name" in what for what in found)


def test_a_replica_is_named_by_the_check(watched: Watched, tmp_path: Path) -> None:
    """Whoever gives a replica's address is told that it takes no writes."""
    replica = next(node for node in watched.servers if node is not watched.primary())
    assert (
        found_by_check(f"redis://127.0.0.1:{replica.port}", tmp_path)["store role: it is a replica"]
        == "error"
    )


def test_a_wrong_url_is_one_finding_among_others(tmp_path: Path) -> None:
    """The check goes on to say what else there is."""
    _, found = check(f"url = 'redis+sentinel://h,i'\n{SALE}", tmp_path)
    assert found["[store] url: does not say what the Sentinels call the primary."] == "error"
    assert any(what.startswith("storefront") for what in found)


def test_a_store_out_of_reach_is_explained_by_its_sentinels(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Besides that there is no store, each Sentinel that does not answer is named."""
    found = found_by_check(f"redis+sentinel://127.0.0.1:{free_port()}/x", tmp_path)
    assert sorted(found.values()) == ["error", "warning"]
