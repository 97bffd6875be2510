"""What `waitingroom check` finds, and what it says about it."""

import json
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.test_cli import run
from waitingroom.checks import (
    Finding,
    Level,
    certificate_end,
    judge_certificate,
    judge_listeners,
    judge_machine,
    judge_rooms,
    judge_secrets,
    judge_store,
)
from waitingroom.config import Settings, load_text

ROOM = '[[rooms]]\nname = "{name}"\nupstream = "http://127.0.0.1:9"\n'
SALE = ROOM.format(name="sale")
PRIVATE_TLS = "private_tls_certificate = 'p.pem'\nprivate_tls_key = 'p.key'"
GOOD_STORE = {"valkey_version": "9.1.2", "role": "master", "aof_enabled": 1, "connected_slaves": 1}


def settings(text: str = SALE) -> Settings:
    return load_text(text, {})


def told(found: Iterable[Finding]) -> dict[str, Level]:
    """What was found to be other than good, with its level."""
    listed = list(found)
    for finding in listed:
        assert finding.subject
        assert finding.what
        assert finding.level is Level.OK or (finding.why.endswith(".") and finding.mend), finding
    return {f"{item.subject}: {item.what}": item.level for item in listed if item.level is not Level.OK}


def finds(found: Iterable[Finding], level: Level, words: str) -> bool:
    return any(words in text and level is its for text, its in told(found).items())


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("", Level.ERROR, "there is no room"),
        (SALE + "total_active_users = 100", Level.NOTICE, "about 20 people a minute in, not 600"),
        (
            SALE + "total_active_users = 60000\nnew_users_per_minute = 100\nsession_duration='10s'",
            Level.NOTICE,
            "takes 600 minutes",
        ),
        (SALE + ROOM.format(name="twin"), Level.ERROR, "2 rooms protect / on every host"),
        (SALE + "cookie_samesite = 'none'", Level.ERROR, "without TLS"),
        (SALE + "cookie_domain = 'shop.example'\nhosts = ['badshop.example']", Level.ERROR, "does not cover"),
        ("".join(ROOM.format(name=f"r{n}") + f"path = '/{n}'\n" for n in range(9)), Level.WARNING, "9 rooms"),
    ],
    ids=["none", "seats too few", "rate too low", "twins", "samesite", "domain", "cookies"],
)
def test_rooms_that_make_no_sense_are_found(text: str, level: Level, words: str) -> None:
    """Rooms are judged by themselves and together."""
    assert finds(judge_rooms(settings(text)), level, words)


def test_limits_that_fit_are_good() -> None:
    """By Little's law 600 a minute who stay five minutes fill 3,000 seats: no finding then."""
    assert told(judge_rooms(settings(SALE + "total_active_users = 3000"))) == {}
    subdomain = "cookie_domain = 'shop.example'\nhosts = ['shop.example', 'm.shop.example']"
    assert told(judge_rooms(settings(SALE + "total_active_users = 3000\n" + subdomain))) == {}


@pytest.mark.parametrize(
    ("server", "level", "words"),
    [
        ("private_listen = '0.0.0.0:9090'", Level.ERROR, "reached from other machines, and has no TLS"),
        ("private_listen = 'gateway.example:9090'", Level.ERROR, "reached from other machines"),
        (
            "private_listen = '0.0.0.0:9090'\n[admin]\nallow_plaintext = true",
            Level.NOTICE,
            "from other machines without TLS",
        ),
        (
            f"private_listen = '0.0.0.0:9090'\n{PRIVATE_TLS}\n[admin]\nopen_console = true",
            Level.NOTICE,
            "console and metrics at 0.0.0.0:9090 need no token",
        ),
        ("listen = '0.0.0.0:80'", Level.NOTICE, "no proxy is trusted"),
        ("listen = '[::]:80'\ntrusted_proxies = ['0.0.0.0/0']", Level.WARNING, "the whole world"),
        ("listen = '127.0.0.1:80'", Level.NOTICE, "this machine only"),
    ],
)
def test_who_can_reach_what_is_told(server: str, level: Level, words: str) -> None:
    """Listeners that are more open, or less, than somebody may think are found."""
    assert finds(judge_listeners(settings(f"[server]\n{server}\n{SALE}")), level, words)


def test_listeners_as_they_should_be_are_good() -> None:
    """Behind a known proxy, with a private listener on loopback, there is nothing to say."""
    server = (
        "[server]\nlisten = '0.0.0.0:80'\ntrusted_proxies = ['10.0.0.0/8']\nprivate_listen = '[::1]:9090'\n"
    )
    assert told(judge_listeners(settings(server + SALE))) == {}
    with_tls = server.replace("[::1]", "[::]") + PRIVATE_TLS + "\n"
    assert told(judge_listeners(settings(with_tls + SALE))) == {}


def test_a_shared_store_needs_a_shared_key() -> None:
    """Without a key, gateways on one store would throw out each other's visitors."""
    assert finds(
        judge_secrets(settings("[store]\nurl = 'redis://store.example'")), Level.ERROR, "store is shared"
    )
    assert told(judge_secrets(settings())) == {}


@pytest.mark.parametrize(
    ("files", "somaxconn", "words"),
    [(1024, 4096, "1024 are allowed, 10512"), (100_000, 128, "somaxconn is 128")],
)
def test_a_system_that_allows_too_little_is_found(files: int, somaxconn: int, words: str) -> None:
    """Open files and the backlog are held against what the configuration promises."""
    assert finds(judge_machine(settings(), files, somaxconn), Level.WARNING, words)


@pytest.mark.parametrize("files", [resource.RLIM_INFINITY, 10_512])
def test_a_system_that_allows_enough_is_good(files: int) -> None:
    """As many files as are needed are enough; where there is no backlog to read, nothing is said of it."""
    assert told(judge_machine(settings(), files, None)) == {}


@pytest.mark.parametrize(
    ("info", "latency", "offset", "level", "words"),
    [
        (
            {"valkey_version": None, "redis_version": "6.0.16"},
            0.001,
            0.0,
            Level.ERROR,
            "Redis 6.0.16 is too old",
        ),
        ({}, 0.2, 0.0, Level.WARNING, "200 ms of the 300 ms"),
        ({"role": "slave"}, 0.001, 0.0, Level.ERROR, "replica"),
        ({"maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, 0.001, 0.0, Level.ERROR, "allkeys-lru"),
        ({"aof_enabled": 0}, 0.001, 0.0, Level.WARNING, "AOF is off"),
        ({"connected_slaves": 0}, 0.001, 0.0, Level.NOTICE, "no replica"),
        ({}, 0.001, -7.0, Level.WARNING, "-7.0 s from ours"),
    ],
)
def test_a_store_that_would_let_one_down_is_found(
    info: dict[str, Any], latency: float, offset: float, level: Level, words: str
) -> None:
    """Version, latency, role, eviction, durability, availability and clock are judged."""
    merged = {key: value for key, value in (GOOD_STORE | info).items() if value is not None}
    assert finds(judge_store(merged, latency, offset, 0.3, shared=True), level, words)


def test_a_good_store_is_good() -> None:
    """A Valkey that persists, with a replica, near by, is no finding; nor is a lone bundled one."""
    assert told(judge_store(GOOD_STORE, 0.001, 0.2, 0.3, shared=True)) == {}
    assert told(judge_store(GOOD_STORE | {"connected_slaves": 0}, 0.001, None, 0.3, shared=False)) == {}


@pytest.mark.parametrize(
    ("days", "level"), [(-1, Level.ERROR), (10, Level.WARNING), (31, Level.OK)], ids=["over", "soon", "fine"]
)
def test_a_certificate_that_ends_is_found_in_time(days: int, level: Level) -> None:
    """A certificate is an error when it has ended, and a warning in its last thirty days."""
    assert judge_certificate(days * 86400.0, 0.0).level is level


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[int], tuple[Path, Path]]:
    """Makes a certificate that ends in so many days, and its key."""

    def make(days: int) -> tuple[Path, Path]:
        chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=shop.example"
        )
        subprocess.run(
            [*command.split(), "-days", str(days), "-out", str(chain), "-keyout", str(key)],
            check=True,
            capture_output=True,
        )
        return chain, key

    return make


@pytest.mark.parametrize("days", [20, 12_000], ids=["two digits of year", "four digits of year"])
def test_the_end_of_a_certificate_is_read_from_it(
    certificate: Callable[[int], tuple[Path, Path]], days: int
) -> None:
    """The end is the one that OpenSSL wrote, in either form that RFC 5280 has for times."""
    chain, _ = certificate(days)
    assert certificate_end(chain.read_text()) == pytest.approx(time.time() + days * 86400, abs=60)


def check(text: str, folder: Path) -> tuple[int, dict[str, str]]:
    """Exit code of a check, and what it found at which level."""
    config = folder / "waitingroom.toml"
    config.write_text(f"[store]\ndata = '{folder}/data'\n{text}")
    result = run("check", "--config", str(config), "--json")
    document = json.loads(result.stdout)
    assert document["ok"] == (result.exit_code == 0)
    return result.exit_code, {
        f"{item['subject']}: {item['what']}": item["level"] for item in document["findings"]
    }


def test_a_bad_configuration_is_the_only_finding(tmp_path: Path) -> None:
    """What cannot even be read is told with its line and the nearest name."""
    code, found = check("listen = 1", tmp_path)
    assert code == 1
    assert len(found) == 1
    assert "error" in found.values()


def test_a_storefront_is_tried(tmp_path: Path) -> None:
    """A storefront that does not accept connections is an error."""
    code, found = check(SALE, tmp_path)
    assert code == 1
    assert any("storefront http://127.0.0.1:9: cannot be reached" in text for text in found)


def test_a_gateway_that_would_ask_itself_is_found(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """An upstream that is the gateway's own address is an error."""
    port = free_port()
    room = f"[[rooms]]\nname = 'sale'\nupstream = 'http://127.0.0.1:{port}'\n"
    _, found = check(f"[server]\nlisten = '127.0.0.1:{port}'\n{room}", tmp_path)
    assert found[f"storefront http://127.0.0.1:{port}: is the gateway's own address"] == "error"


def test_files_are_looked_at(tmp_path: Path, certificate: Callable[[int], tuple[Path, Path]]) -> None:
    """Certificate, key file, token file and logo are read as the gateway will read them."""
    chain, key = certificate(10)
    open_key, missing = tmp_path / "signing.keys", tmp_path / "none.token"
    open_key.write_text("k" * 40)
    open_key.chmod(0o644)
    text = f"""
[server]
tls_certificate = '{chain}'
tls_key = '{key}'
[tokens]
keys_file = '{open_key}'
[admin]
token_file = '{missing}'
{SALE}"""
    code, found = check(text, tmp_path)
    assert code == 1
    levels = {text.partition(":")[0]: level for text, level in found.items()}
    assert (levels["certificate"], levels["signing key"], levels["admin token"]) == (
        "warning",
        "warning",
        "error",
    )
    chain.write_text("nothing of the kind")
    assert any(f"{chain} cannot be used" in text for text in check(text, tmp_path)[1])


def test_the_private_certificate_is_looked_at(
    tmp_path: Path, certificate: Callable[[int], tuple[Path, Path]]
) -> None:
    """That of the private listener is judged as the other is, and named apart from it."""
    chain, key = certificate(10)
    files = f"[server]\nprivate_tls_certificate = '{chain}'\nprivate_tls_key = '{key}'\n"
    found = check(files + SALE, tmp_path)[1]
    assert [level for text, level in found.items() if text.startswith("private certificate: it ends")] == [
        "warning"
    ]
    assert not [text for text in found if text.startswith("certificate")]


@pytest.mark.parametrize(
    ("listed", "mode", "level", "words"),
    [
        ("anna viewer sha256:" + "0" * 64, 0o600, "ok", "admin tokens: 1 may come in"),
        ("anna viewer sha256:" + "0" * 64, 0o644, "warning", "is open to others"),
        ("anna boss sha256:" + "0" * 64, 0o600, "error", "tokens line 1: has a role that there is not"),
        ("a-token-in-clear-text", 0o600, "error", "tokens line 1: is not a name, a role and a digest"),
    ],
)
def test_the_file_of_tokens_is_read(tmp_path: Path, listed: str, mode: int, level: str, words: str) -> None:
    """What the gateway would refuse is found before, without a token being made or shown."""
    file = tmp_path / "tokens"
    file.write_text(listed)
    file.chmod(mode)
    _, found = check(f"[admin]\ntokens_file = '{file}'\n{SALE}", tmp_path)
    assert [its for text, its in found.items() if words in text] == [level]
    assert not [text for text in found if "clear-text" in text]
    assert not (tmp_path / "data" / "admin.token").exists()


def test_a_real_store_is_judged(tmp_path: Path, valkey_url: str) -> None:
    """A store that answers tells of itself; what is changed there shows in the next check."""
    text = f"url = '{valkey_url}'\n[tokens]\nkeys = ['{'k' * 40}']\n{SALE}"
    _, found = check(text, tmp_path)
    assert any("Valkey" in text and level == "ok" for text, level in found.items())
    assert found["store durability: AOF is off"] == "warning"
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert check(text, tmp_path)[1]["store memory: maxmemory-policy is allkeys-lru"] == "error"
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")


def test_a_store_out_of_reach_is_an_error(tmp_path: Path) -> None:
    """A store that does not answer is told with the reason and the remedy."""
    text = f"url = 'unix://{tmp_path}/none.sock'\n[tokens]\nkeys = ['{'k' * 40}']\n{SALE}"
    code, found = check(text, tmp_path)
    assert code == 1
    assert any(text.startswith("store: cannot be reached") for text in found)


def test_everything_good_is_code_0(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """A reachable storefront, the bundled store and limits that fit leave nothing to mend."""
    with socket.create_server(("127.0.0.1", free_port())) as shop:
        room = SALE.replace(":9", f":{shop.getsockname()[1]}") + "total_active_users = 3000\n"
        text = f"[server]\nmax_connections = 100\nupstream_connections = 10\n{room}"
        code, found = check(text, tmp_path)
        assert code == 0, found
        told = run("check", "--config", str(tmp_path / "waitingroom.toml")).stdout
    assert "accepts connections in" in told
    assert "notice" in told
