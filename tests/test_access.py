"""Roles, the file of tokens, and limits: who may do what on the private listener, decided without one."""

import hmac
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_architecture import ROOT
from waitingroom.access import (
    FAILURES,
    MOST_ACCOUNTS,
    OPERATOR_SETTINGS,
    Access,
    Limit,
    Meter,
    Role,
    Token,
    bearer,
    digest,
    is_loopback,
    parse_tokens,
    role_for,
    token_line,
)
from waitingroom.config import INTERNAL, ConfigError
from waitingroom.room import Room

PLAIN = "plain-token-of-the-tests-0123456789"
SECRETS = {role: f"{role}-token-of-the-tests-0123456789" for role in Role}
LISTED = "".join(f"{role}-of-ours {role} sha256:{digest(SECRETS[role]).hex()}\n" for role in Role)
HEX = digest("something").hex()


def parsed(text: str, plain: str | None = None) -> tuple[Token, ...] | ConfigError:
    """The tokens of a file, or how it is refused."""
    try:
        return parse_tokens(text, "admin.tokens", plain)
    except ConfigError as error:
        return error


def test_a_file_of_tokens_is_read() -> None:
    """Comments, empty lines, and the line ends and marks that editors leave are passed over."""
    lines = ["\ufeff# who", "", f" anna\toperator  sha256:{HEX.upper()}  # until June"]
    text = "\r\n".join([*lines, f"b@c.d viewer sha256:{'0' * 64}"])
    anna, other = parse_tokens(text, "f")
    assert (anna.name, anna.role, anna.digest) == ("anna", Role.OPERATOR, digest("something"))
    assert (other.name, other.role) == ("b@c.d", Role.VIEWER)
    assert HEX not in repr(anna)


def test_a_plain_token_is_one_more() -> None:
    """The token of [admin] token is called admin, may do everything, and stands beside those of the file."""
    tokens = parse_tokens(LISTED, "f", PLAIN)
    assert tokens[0] == Token("admin", Role.ADMIN, digest(PLAIN))
    assert [token.role for token in tokens[1:]] == list(Role)


@pytest.mark.parametrize(
    ("text", "plain", "where", "words"),
    [
        ("a-clear-text-token", None, "admin.tokens line 1", "'waitingroom key token"),
        (f"\n\na operator sha256:{HEX} x", None, "admin.tokens line 3", "not a name, a role and a digest"),
        (f"/a operator sha256:{HEX}", None, "admin.tokens line 1", "at most 64 letters"),
        (f"{'a' * 65} operator sha256:{HEX}", None, "admin.tokens line 1", "at most 64 letters"),
        (f"a oprator sha256:{HEX}", None, "admin.tokens line 1", "Did you mean operator?"),
        (f"a boss sha256:{HEX}", None, "admin.tokens line 1", "Roles are viewer, operator, admin."),
        (f"a operator {HEX}", None, "admin.tokens line 1", "sha256: and 64 hexadecimal digits"),
        (f"a operator sha256:{HEX[:-1]}", None, "admin.tokens line 1", "64 hexadecimal digits"),
        (f"a operator sha256:{digest('').hex()}", None, "admin.tokens line 1", "has no digest of a token"),
        (f"a admin sha256:{HEX}\na admin sha256:{'0' * 64}", None, "line 2", "repeats the name of line 1"),
        (f"a admin sha256:{HEX}\nb admin sha256:{HEX}", None, "line 2", "repeats the token of line 1"),
        (f"admin viewer sha256:{HEX}", PLAIN, "line 1", "repeats the name of [admin] token"),
        (f"a viewer sha256:{digest(PLAIN).hex()}", PLAIN, "line 1", "repeats the token of [admin] token"),
        ("# nobody yet\n\n", None, "admin.tokens line 3", "there is no token"),
        ("", "short", "[admin] token", "fewer than 16 characters"),
        ("", "", "[admin] token", "fewer than 16 characters"),
    ],
)
def test_a_line_that_cannot_stand_is_named(text: str, plain: str | None, where: str, words: str) -> None:
    """File, line and remedy are told; the line is not, because it may be a token."""
    error = parsed(text, plain)
    assert isinstance(error, ConfigError)
    assert error.where.endswith(where)
    assert words in str(error)
    assert error.remedy
    assert "clear-text" not in str(error)
    assert HEX not in str(error)


WORDS = st.sampled_from(
    ["anna", "operator", "viewer", f"sha256:{HEX}", "sha256:", "#", " ", "\n", "\r", "\t"]
)


@given(st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3))).map("".join)))
def test_any_file_is_read_or_refused_by_line(text: str) -> None:
    """Whatever stands in the file gives tokens, all different, or an error that names a line of it."""
    found = parsed(text)
    if isinstance(found, ConfigError):
        line = re.fullmatch(r"admin.tokens line (\d+)", found.where)
        assert line is not None
        assert 1 <= int(line[1]) <= text.count("\n") + 1
        assert found.remedy
    else:
        assert len(found) == len({token.name for token in found}) == len({token.digest for token in found})
        assert found


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,9}", fullmatch=True), st.sampled_from(Role), min_size=1
    )
)
def test_lines_that_are_made_are_read(roles: dict[str, Role]) -> None:
    """What `key token` prints for a name and a role is what the gateway reads."""
    made = [token_line(name, role, f"secret of {name}") for name, role in roles.items()]
    assert parse_tokens("\n".join(made), "f") == tuple(
        Token(name, role, digest(f"secret of {name}")) for name, role in roles.items()
    )


@pytest.mark.parametrize("name", ["", "a b", "#a", "-a", "anna:x", "änna", "a\n", "a" * 65])
def test_a_name_that_could_not_be_read_is_refused(name: str) -> None:
    """No line is made that would break the file."""
    with pytest.raises(ConfigError, match=r"--name.*at most 64"):
        token_line(name, Role.VIEWER, "secret")


def test_every_digest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is held against every token, so that the time does not tell which was nearly right."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    door = Access(parse_tokens(LISTED, "f"), open_console=True)
    for secret in (*SECRETS.values(), "wrong", ""):
        compared.clear()
        found = door.holder(secret)
        assert (found and found.role) == next((role for role in Role if SECRETS[role] == secret), None)
        assert compared == [(32, 32)] * 3
    assert Access((Token("nobody", Role.ADMIN, digest("")),), open_console=True).holder("") is None


@pytest.mark.parametrize(
    ("lines", "secret"),
    [
        (["Bearer abc"], "abc"),
        (["bearer   a b "], "a b"),
        (["Basic abc"], ""),
        (["Bearer"], ""),
        (["abc"], ""),
        ([], ""),
        (["Bearer abc", "Bearer abc"], ""),
    ],
)
def test_one_bearer_line_counts(lines: list[str], secret: str) -> None:
    """The scheme may be written in any case; two lines are none."""
    assert bearer(lines) == secret


def test_what_an_operator_may_set() -> None:
    """Limits, switches and message; every other setting, and every one to come, is an administrator's."""
    assert {
        "total_active_users",
        "new_users_per_minute",
        "paused",
        "queue_all",
        "message",
    } == OPERATOR_SETTINGS
    for item in fields(Room):
        if item.name not in INTERNAL:
            assert (role_for([item.name, "paused"]) is Role.OPERATOR) == (item.name in OPERATOR_SETTINGS)
    assert role_for(["no such setting"]) is Role.OPERATOR
    assert [(role.covers(Role.OPERATOR), role.covers(Role.ADMIN)) for role in Role] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    section = (ROOT / "docs" / "security.md").read_text().partition("## Who may do what")[2]
    (row,) = re.findall(r"^\| `operator` \| .*; set (.*) \|$", section, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == OPERATOR_SETTINGS


@given(st.lists(st.floats(0, 100), max_size=150).map(sorted), st.integers(1, 120), st.integers(1, 20))
def test_no_window_sees_more_than_the_limit(times: list[float], rate: int, burst: int) -> None:
    """Of any arrivals, no span of time sees more granted than the burst and its share of the rate."""
    limit, due, granted = Limit(rate, burst), 0.0, []
    for now in times:
        due, wait = limit.take(due, now)
        if not wait:
            granted.append(now)
        else:
            assert limit.take(due, now + wait + 1e-6)[1] == 0
    for first, begin in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= burst + (granted[last] - begin) * rate / 60 + 1e-6


def test_accounts_are_bounded_and_forgotten() -> None:
    """However many addresses fail, memory is bounded: newcomers share an account until others are level."""
    meter = Meter(FAILURES)
    assert all(meter.take(f"peer {number}", 1.0) == 0 for number in range(MOST_ACCOUNTS))
    waits = [meter.take(f"stranger {number}", 1.0) for number in range(50)]
    assert [bool(wait) for wait in waits] == [False] * FAILURES.burst + [True] * (50 - FAILURES.burst)
    assert len(meter) == MOST_ACCOUNTS + 1
    assert meter.take("late", 1.0 + 3600) == 0
    assert len(meter) == 1


def test_half_of_an_address_is_counted_where_the_other_is_free_to_choose() -> None:
    """IPv6 addresses of one /64 share their failures; IPv4 addresses, and those written as IPv6, do not."""
    for peers, shared in (
        (["2001:db8::1", "2001:db8::2:3"], True),
        (["2001:db8::1", "2001:db8:0:1::1"], False),
        (["192.0.2.1", "192.0.2.2"], False),
        (["::ffff:192.0.2.1", "::ffff:192.0.2.2"], False),
        (["", "192.0.2.1"], False),
    ):
        door = Access((), open_console=True)
        waits = [[door.failed(peer, 0.0) for _ in range(FAILURES.burst)] for peer in peers]
        assert not any(waits[0])
        assert all(waits[1]) == any(waits[1]) == shared


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("127.0.0.1:9090", True),
        ("127.0.0.1", True),
        ("[::1]:9090", True),
        ("[::1]", True),
        ("192.0.2.7:9090", True),
        ("localhost:9090", True),
        ("LOCALHOST.", True),
        ("ops.example:443", True),
        ("gateway", True),
        ("evil.example:9090", False),
        ("evil.localhost", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1:9090:9090", False),
        ("localhost:9090@evil.example", False),
        ("", False),
        (":9090", False),
    ],
)
def test_names_that_strangers_can_point_here_are_none(host: str, named: bool) -> None:  # noqa: FBT001 - a row
    """Addresses, localhost and the names that were given are the listener's, and no others."""
    door = Access((), open_console=True, hosts=["ops.example", "Gateway"])
    assert door.is_named([host]) is named
    assert not door.is_named([host, host])
    assert not door.is_named([])


@pytest.mark.parametrize(
    ("listen", "own"),
    [
        ("127.0.0.1:9090", True),
        ("127.8.9.1:1", True),
        ("[::1]:9090", True),
        ("localhost:9090", True),
        ("0.0.0.0:9090", False),
        ("[::]:9090", False),
        ("192.0.2.1:9090", False),
        ("127.1:9090", False),
        ("gateway.example:9090", False),
        ("localhost.example:9090", False),
    ],
)
def test_what_is_loopback(listen: str, own: bool) -> None:  # noqa: FBT001 - a row
    """Only what surely cannot be reached from elsewhere counts as this machine's own."""
    assert is_loopback(listen) is own
