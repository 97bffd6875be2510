"""File and environment to settings: what is written counts, what cannot stand is named with its remedy."""

import os
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitingroom.addresses import parse_origin
from waitingroom.config import (
    SECTIONS,
    ConfigError,
    change_room,
    differences,
    dump_room,
    load,
    load_room,
    load_text,
)
from waitingroom.durations import format_duration, parse_duration
from waitingroom.room import Method, Room

TWO_ROOMS = """
[server]
listen = "127.0.0.1:8000"
trusted_proxies = ["10.0.0.0/8"]

[[rooms]]
name = "sale"
upstream = "http://127.0.0.1:9000"
session_duration = "1h30m"
hosts = ["shop.example"]
queueing_method = "reject"

[[rooms]]
name = "shop"
upstream = "unix:/run/shop.sock"
"""


def error_of(text: str, **environ: str) -> ConfigError:
    """How a configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        load_text(text, environ, "waitingroom.toml")
    return refused.value


def room(*lines: str) -> str:
    """A second room with some settings of its own; they begin on line 15."""
    return TWO_ROOMS.replace('[[rooms]]\nname = "shop"', '[[rooms]]\nname = "shop"\n' + "\n".join(lines))


def test_file_counts_where_it_speaks_and_defaults_elsewhere(tmp_path: Path) -> None:
    """What the file says is what is set, durations in seconds; the rest is as documented."""
    path = tmp_path / "waitingroom.toml"
    path.write_text(TWO_ROOMS)
    settings = load(path, {})
    sale, shop = settings.rooms
    assert (settings.server.listen, settings.store.url) == ("127.0.0.1:8000", "embedded")
    assert settings.trusted == (ip_network("10.0.0.0/8"),)
    assert (sale.session_duration, sale.queueing_method, sale.hosts) == (
        5400.0,
        Method.REJECT,
        ("shop.example",),
    )
    assert shop == Room(name="shop", upstream="unix:/run/shop.sock")
    assert load(None, {}).rooms == ()
    assert repr(settings) == "<settings of 2 rooms>"


def test_environment_counts_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides its setting; lists have commas; other variables are nobody's business."""
    environ = {
        "WAITINGROOM__SERVER__LISTEN": "0.0.0.0:80",
        "WAITINGROOM__SERVER__TRUSTED_PROXIES": "10.0.0.0/8, ::1/128,",
        "WAITINGROOM__STORE__TICK": "500ms",
        "WAITINGROOM__SERVER__MAX_CONNECTIONS": "7",
        "WAITINGROOM_OTHER": "x",
    }
    settings = load_text(TWO_ROOMS, environ)
    assert (settings.server.listen, settings.store.tick, settings.server.max_connections) == (
        "0.0.0.0:80",
        0.5,
        7,
    )
    assert settings.server.trusted_proxies == ("10.0.0.0/8", "::1/128")
    for name in [name for name in os.environ if name.startswith("WAITINGROOM__")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WAITINGROOM__LOG__LEVEL", "debug")
    assert load_text("").log.level == "debug"


@pytest.mark.parametrize(
    ("text", "where", "remedy"),
    [
        ("[sevrer]\n", "waitingroom.toml line 1: sevrer", "Did you mean server?"),
        ("zzz = 1\n", "waitingroom.toml line 1: zzz", "Known are admin, log, rooms, server, store, tokens."),
        (
            room("total_activ_users = 5"),
            "line 15: [[rooms]] 2 total_activ_users",
            "Did you mean total_active_users?",
        ),
        (room("version = 5"), "line 15: [[rooms]] 2 version", "Known are accent_color"),
        (room("total_active_users = 0"), "line 15: [[rooms]] 2 total_active_users", "Most shoppers inside"),
        (room('session_duration = "soon"'), "line 15: [[rooms]] 2 session_duration", "write for example 90s"),
        (room("session_duration = inf"), "line 15: [[rooms]] 2 session_duration", "without a request"),
        (room("presence_window = nan"), "line 15: [[rooms]] 2 presence_window", "not heard of"),
        (room('hosts = ["https://shop.example"]'), "line 15: [[rooms]] 2 hosts", "without scheme or port"),
        (room('hosts = "shop.example"'), "line 15: [[rooms]] 2 hosts", "Hosts that the room protects"),
        (
            room('claim_window = "1h"\nhold_for = "10m"'),
            "line 15: [[rooms]] 2 claim_window",
            "at least as long",
        ),
        (room("queueing_status_code = 404"), "line 15: [[rooms]] 2 queueing_status_code", "HTTP status"),
        (room('shop_logo = "/nowhere.svg"'), "line 15: [[rooms]] 2 shop_logo", "/nowhere.svg"),
        (room('accent_color = "red"'), "line 15: [[rooms]] 2 accent_color", "Colour"),
        (TWO_ROOMS.replace('"shop"', '"sale"'), "line 14: [[rooms]] 2 name", "Name it anew."),
        (TWO_ROOMS.replace('name = "shop"\n', ""), "line 13: [[rooms]] 2 name", "Every room needs a name."),
        (TWO_ROOMS.replace("unix:", "file:"), "line 15: [[rooms]] 2 upstream", "http://127.0.0.1:8000"),
        (TWO_ROOMS.replace("10.0.0.0/8", "10.0.0.1/8"), "line 4: [server] trusted_proxies", "10.0.0.0/8"),
        ('[server]\ntls_key = "k"\n', "line 1: [server] tls_certificate", "both or neither"),
        (
            '[server]\nprivate_tls_key = "k"\n',
            "line 1: [server] private_tls_certificate",
            "needs private_tls_key, and the other way round",
        ),
        ("[rooms]\n", "waitingroom.toml: rooms", "[[rooms]]"),
        ("server = 5\n", "waitingroom.toml: [server]", "must be a table"),
        ("rooms = [5]\n", "waitingroom.toml: [[rooms]] 1", "must be a table"),
        ("[server\n", "waitingroom.toml", "is not TOML"),
    ],
)
def test_setting_that_cannot_stand_is_named_with_its_remedy(text: str, where: str, remedy: str) -> None:
    """Every error says in which file, on which line and at which key, what is wrong, and how to mend it."""
    error = error_of(text)
    assert where in error.where
    assert error.where.startswith("waitingroom.toml")
    assert remedy in str(error)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("WAITINGROOM__SERVER__LISTN", "x", "Did you mean listen?"),
        ("WAITINGROOM__SERVER__LISTEN", "8080", "Address for shoppers"),
        ("WAITINGROOM__SERVER__LISTEN", "127.0.0.1:65536", "Address for shoppers"),
        ("WAITINGROOM__STORE__TICK", "often", "write for example 90s"),
        ("WAITINGROOM__SEVRER__LISTEN", "x", "Sections are server"),
        ("WAITINGROOM__SERVER", "x", "Sections are server"),
    ],
)
def test_variable_that_cannot_stand_is_named(name: str, value: str, remedy: str) -> None:
    """An error in the environment names the variable, not the file that says otherwise."""
    error = error_of(TWO_ROOMS, **{name: value})
    assert name in error.where
    assert remedy in str(error)


def test_variable_for_a_section_that_is_no_table_changes_nothing() -> None:
    """A file that is wrong is told so, whatever the environment adds."""
    assert "must be a table" in str(error_of("server = 5", WAITINGROOM__SERVER__LISTEN="127.0.0.1:1"))


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and one that is not text are errors, not tracebacks."""
    missing, binary = tmp_path / "missing.toml", tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read.*--config"):
        load(missing, {})
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(binary, {})


def test_secrets_are_never_shown() -> None:
    """Neither the settings' repr nor an error repeats a key or a token."""
    settings = load_text('[tokens]\nkeys = ["s3cr3t"]\n[admin]\ntoken = "s3cr3t-s3cr3t-s3cr3t"\n', {})
    shown = [repr(settings), repr(settings.tokens), repr(settings.admin)]
    shown += [str(error_of(text)) for text in ('[admin]\ntoken = "s3cr3t"', '[tokens]\nkeys = "s3cr3t"')]
    shown += [str(error_of("", WAITINGROOM__ADMIN__TOKEN="s3cr3t"))]
    assert not [text for text in shown if "s3cr3t" in text]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("90s", 90),
        ("1h30m", 5400),
        ("1d", 86400),
        ("250ms", 0.25),
        (7, 7),
        ("1.5", 1.5),
        (" 2 m ", 120),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    """Units, sums of units, and plain seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "m5", "-5m", True, None, [5], "1.2.3"])
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Anything else is an error that shows how to write one."""
    with pytest.raises(ValueError, match="is not a duration; write for example 90s"):
        parse_duration(text)


@given(st.integers(0, 10**7))
def test_durations_are_written_as_they_are_read(seconds: int) -> None:
    """Writing a duration and reading it again changes nothing."""
    assert parse_duration(format_duration(seconds)) == seconds
    assert [format_duration(each) for each in (300, 5400, 90, 86400, 0.5)] == [
        "5m",
        "90m",
        "90s",
        "1d",
        "0.5s",
    ]


def test_change_is_checked_as_the_file_is() -> None:
    """A live change goes by the same rules, keeps the version, and changes nothing else."""
    before = Room(name="sale", upstream="http://127.0.0.1:9000", version=4)
    changed = change_room(before, {"session_duration": "10m", "queueing_method": "reject", "epoch": 2})
    assert changed == replace(before, session_duration=600.0, queueing_method=Method.REJECT, epoch=2)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "other"}, "room sale: name: cannot be changed"),
        ({"totl_active_users": 5}, "Did you mean total_active_users?"),
        ({"version": 9}, "is not a setting"),
        ({"total_active_users": "many"}, "room sale: total_active_users"),
        ({"hosts": ["SHOP.example"]}, "bare lower-case host names"),
        ({"epoch": 2}, "would bring back voided tickets"),
        ({"session_duration": float("inf")}, "room sale: session_duration"),
    ],
)
def test_change_that_cannot_stand_is_refused(changes: dict[str, Any], what: str) -> None:
    """The error names room, setting and remedy; an epoch never goes back, a name never changes."""
    with pytest.raises(ConfigError) as refused:
        change_room(Room(name="sale", upstream="http://127.0.0.1:9000", epoch=3), changes)
    assert what in str(refused.value)


def test_room_comes_back_from_the_store_as_it_was() -> None:
    """Every field survives, and settings of another version are passed over."""
    room = Room(
        name="sale",
        hosts=("a.example", "b.example"),
        queueing_method=Method.PASSTHROUGH,
        bypass_paths=("/pay",),
        message='"Grüße", 愛',
        version=7,
    )
    text = dump_room(room)
    assert load_room(text) == load_room(text.encode()) == room
    assert load_room(text[:-1] + ',"from_the_future":[1]}') == room


def test_differences_between_file_and_store_are_named() -> None:
    """Settings that operators changed are told with both values; what only lives in the store is not."""
    file = Room(name="sale", total_active_users=5)
    stored = replace(file, total_active_users=9, paused=True, epoch=3, version=8)
    assert differences(file, stored) == {"total_active_users": (5, 9)}


def test_every_setting_says_what_it_is() -> None:
    """No setting without a sentence for operators."""
    for kind in (*SECTIONS.values(), Room):
        documents = [item.metadata["doc"] for item in fields(kind) if item.name != "version"]
        assert all(len(text) > 10 and text.rstrip().endswith(".") for text in documents)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{a = " * 5000,
        "a = " + "9" * 5000,
        "[server]\nhead_timeout = " + "9" * 400,
    ],
    ids=["lists in lists", "tables in tables", "digits", "seconds"],
)
def test_what_is_too_much_to_read_is_refused_like_any_other(text: str) -> None:
    """Nesting without end, or a number beyond all numbers, is an error with its place, not a trace."""
    assert error_of(text).where.startswith("waitingroom.toml")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:8000", ("", "127.0.0.1", 8000, False)),
        ("https://shop.example", ("", "shop.example", 443, True)),
        ("http://[::1]", ("", "::1", 80, False)),
        ("http://[::1]:81", ("", "::1", 81, False)),
        ("unix:/run/shop.sock", ("/run/shop.sock", "", 80, False)),
        ("unix:///run/shop.sock", ("/run/shop.sock", "", 80, False)),
    ],
)
def test_origins_are_read(url: str, origin: tuple[str, str, int, bool]) -> None:
    """Host and port, TLS or not, or the path of a socket."""
    assert parse_origin(url) == origin
    assert load_text(TWO_ROOMS.replace("unix:/run/shop.sock", url), {}).rooms[1].upstream == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://[",
            "http://[:::]",
            "http://:80",
            "http://a:99999",
            "http://a:x",
            "http://u@a",
            "http://a/b",
        ),
        *("http://a b", "unix:", "unix:/", "unix://host/path", "http://", "a"),
    ],
)
def test_what_cannot_be_connected_to_is_no_origin(url: str) -> None:
    """It is found when the configuration is read, not when the first shopper comes."""
    assert "upstream" in error_of(TWO_ROOMS.replace("unix:/run/shop.sock", url)).where
