"""What a request says about its visitor, and what its answer says back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import get
from waitingroom.heads import Head, parse_head, parse_response
from waitingroom.room import Room
from waitingroom.tickets import cookie_names
from waitingroom.visit import (
    cookies,
    host_of,
    kept_by_all,
    plain_path,
    query_value,
    return_path,
    same_origin,
    set_cookie,
)

SALE = Room(name="sale")
HERE = b"shop.example"


def head(*lines: str) -> Head:
    return parse_head(get("/", *lines))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a/b?c=/d", "/a/b"),
        (b"/", "/"),
        (b"//a", "/a"),
        (b"/a//b/", "/a/b"),
        (b"/./a/./b", "/a/b"),
        (b"/x/../a", "/a"),
        (b"/../../a", "/a"),
        (b"/%61", "/a"),
        (b"/x%2F..%2Fa", "/a"),
        (b"/x/%2e%2E/a", "/a"),
        (b"/x\\..\\a", "/a"),
        (b"/a;v=1/b;w", "/a/b"),
        (b"/x/..;/a", "/a"),
        (b"/a%3Fb#c", "/a?b"),
        (b"/caf%C3%A9", "/caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        (b"/%ff", "/\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_path_is_read_as_an_origin_may_read_it(target: bytes, path: str) -> None:
    """Decoded once, without dot segments, doubled slashes, backslashes and parameters."""
    assert plain_path(target) == path


@given(
    st.lists(st.sampled_from([b"a", b"..", b".", b"%2e", b"/", b"//", b"\\", b"%2F", b";", b"%", b"\xff"]))
)
def test_a_plain_path_has_one_reading_only(parts: list[bytes]) -> None:
    """Nothing is left in it that a second reader could take for a step up or down."""
    steps = plain_path(b"/" + b"/".join(parts)).split("/")
    assert steps[0] == ""
    assert not {".", ".."} & set(steps)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (b"/?room=sale", b"sale"),
        (b"/?a=1&room=a%20b+c&room=d", b"a b c"),
        (b"/?room", b""),
        (b"/?rooms=1", None),
        (b"/room=1", None),
        (b"/?room=%zz", b"%zz"),
    ],
)
def test_a_query_gives_its_first_value(target: bytes, value: bytes | None) -> None:
    """Percent-decoded; None where the name does not occur."""
    assert query_value(target, b"room") == value


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"Shop.Example", "shop.example"),
        (b"shop.example:8080", "shop.example"),
        (b"shop.example.", "shop.example"),
        (b"shop.example.:443", "shop.example"),
        (b"[::1]:8080", "[::1]"),
        (b"[::1]", "[::1]"),
        (b"", ""),
    ],
)
def test_a_host_is_bare(authority: bytes, host: str) -> None:
    """Lower case, without a port or the dot of the root."""
    assert host_of(authority) == host


def test_every_cookie_of_the_room_is_found_strictest_first() -> None:
    """In however many lines they come, and between whatever else is there."""
    found = cookies(
        head("Cookie: a=1; wr-sale=x;wr-sales=y", 'Cookie: __Host-wr-sale="z"; wr-sale=w; wr-sale'),
        cookie_names("sale"),
    )
    assert found == [(b"__Host-wr-sale", b"z"), (b"wr-sale", b"x"), (b"wr-sale", b"w")]
    assert cookies(head(), cookie_names("sale")) == []


@pytest.mark.parametrize(
    ("room", "scheme", "line"),
    [
        (SALE, "http", "wr-sale=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"),
        (SALE, "https", "__Host-wr-sale=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"),
        (
            replace(SALE, cookie_domain="shop.example", cookie_samesite="strict"),
            "https",
            "__Secure-wr-sale=t; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure; Domain=shop.example",
        ),
        (
            replace(SALE, cookie_samesite="none"),
            "https",
            "__Host-wr-sale=t; Path=/; Max-Age=60; HttpOnly; SameSite=None; Secure",
        ),
        (
            # Browsers drop a cookie for all sites that is not bound to TLS.
            replace(SALE, cookie_samesite="none"),
            "http",
            "wr-sale=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax",
        ),
    ],
)
def test_a_cookie_is_as_strict_as_the_visit_allows(room: Room, scheme: str, line: str) -> None:
    """The name and the attributes follow the scheme and the room."""
    assert set_cookie(room, scheme, "t", 60) == f"Set-Cookie: {line}\r\n".encode()


@pytest.mark.parametrize(
    ("lines", "same"),
    [
        ((), True),
        (("Origin: http://shop.example",), True),
        (("Origin: https://SHOP.example",), True),
        (("Sec-Fetch-Site: same-origin",), True),
        (("Sec-Fetch-Site: none",), True),
        (("Sec-Fetch-Site: cross-site",), False),
        (("Sec-Fetch-Site: same-site",), False),
        (("Origin: http://evil.example",), False),
        (("Origin: http://shop.example.evil.example",), False),
        (("Origin: http://evil.example/http://shop.example",), False),
        (("Origin: http://shop.example:81",), False),
        (("Origin: null",), False),
        (("Origin:",), False),
    ],
)
def test_only_the_shop_itself_may_change_a_place(*, lines: tuple[str, ...], same: bool) -> None:
    """Another site's page, however it is named, is told apart; clients without pages are let through."""
    assert same_origin(head(*lines), HERE) is same


def test_a_port_that_a_proxy_wrote_out_makes_no_other_site() -> None:
    """Browsers leave the scheme's own port away."""
    assert same_origin(head("Origin: https://shop.example"), b"shop.example:443")
    assert not same_origin(head("Origin: http://shop.example"), b"shop.example:443")


@pytest.mark.parametrize(
    ("referer", "back"),
    [
        ("http://shop.example/goods?a=1", b"/goods?a=1"),
        ("https://SHOP.example/", b"/"),
        ("http://shop.example", b"/sale"),
        ("http://evil.example/goods", b"/sale"),
        ("http://shop.example.evil.example/goods", b"/sale"),
        ("http://shop.example@evil.example/goods", b"/sale"),
        ("http://evil.example/http://shop.example/goods", b"/sale"),
        ("http://shop.example//evil.example", b"/sale"),
        ("http://shop.example/\\evil.example", b"/sale"),
        ("http://shop.example/\t/evil.example", b"/sale"),
        ("//shop.example//evil.example", b"/sale"),
        ("http:///evil.example", b"/sale"),
        ("javascript:alert(1)", b"/sale"),
        ("data:text/html,x", b"/sale"),
        ("http://shop.example/\x80\xff", b"/sale"),
        ("http://shop.example/.waitingroom/here?room=sale", b"/sale"),
        ("", b"/sale"),
    ],
)
def test_here_leads_back_to_the_shop_and_nowhere_else(referer: str, back: bytes) -> None:
    """Whatever a Referer holds, the way back is a path on this very host."""
    assert return_path(head(f"Referer: {referer}"), HERE, "/sale") == back


def test_a_way_back_is_always_a_valid_header() -> None:
    """A room's path may be in any script."""
    assert return_path(head(), HERE, "/\N{CYRILLIC SMALL LETTER ES}") == b"/%D1%81"
    assert return_path(head(), HERE, "//evil.example") == b"/evil.example"
    assert return_path(head(), HERE, "/") == b"/"


@pytest.mark.parametrize(
    ("control", "kept"),
    [
        (("public",), True),
        (("Public, Max-Age=60",), True),
        (("max-age=60",), True),
        (("must-revalidate,s-maxage=60",), True),
        (("max-age=60", "private"), False),
        (("private, max-age=60",), False),
        (("public, no-store",), False),
        (("max-age=0, must-revalidate",), False),
        (("no-cache",), False),
        ((), False),
    ],
)
def test_what_a_common_cache_may_keep_is_recognised(*, control: tuple[str, ...], kept: bool) -> None:
    """Such an answer must not carry anybody's pass."""
    lines = "".join(f"Cache-Control: {value}\r\n" for value in control)
    assert kept_by_all(parse_response(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode(), b"GET")) is kept
