"""Whatever bytes come, what must hold holds; `make fuzz` looks longer, and where coverage leads it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import properties
from tests.requests import MALFORMED, WELL_FORMED
from waitingroom.room import State, Status

LONGEST = 700
REQUESTS = [case.raw for case in [*WELL_FORMED.values(), *MALFORMED.values()] if len(case.raw) <= LONGEST]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nabc",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1 304\r\nETag: a\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nWaiting-Room-Command: x\r\nConnection: close, x\r\nX: y\r\n\r\n",
]
CHUNKS = [raw.partition(b"\r\n\r\n")[2] for raw in REQUESTS if b"chunked" in raw]
FRAGMENTS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"3\r\nabc\r\n",
    ),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"Connection: close\r\n"),
    *(
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff",
        b"%0d%0a",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"Cookie: wr-a=b; c=d\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade\r\n",
        b"-",
        b"+",
        b"0x",
        b"chunked",
    ),
    *(b" :", b"\r\n ", b"X : y\r\n", b"Content-Length : 3\r\n", b"wr-a=b; ", b"Trailer: A\r\n", b"A: b\r\n"),
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the seeds, or two, with pieces taken out, put in or put elsewhere."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 20)))
        piece = draw(
            st.one_of(
                st.sampled_from(FRAGMENTS),
                st.binary(max_size=3),
                st.just(data[at:to]),
                st.sampled_from(seeds),
            )
        )
        data = data[: draw(st.sampled_from([at, to]))] + piece + data[to:]
    return data[: 4 * LONGEST]


cuts = st.sampled_from([1, 2, 3, 5, 17, 64])
thorough = settings(max_examples=1000, deadline=None)
quick = settings(deadline=None)


@thorough
@given(st.one_of(mutated(REQUESTS), st.binary(max_size=200)), cuts)
def test_requests_are_what_they_are_or_nothing(data: bytes, cut: int) -> None:
    """Through listener and proxy goes what a slow reader of the grammar finds, the same however it is cut."""
    properties.check_requests(data, cut)


@thorough
@given(
    st.sampled_from([b"GET", b"HEAD", b"POST"]), st.one_of(mutated(ANSWERS), st.binary(max_size=200)), cuts
)
def test_answers_are_what_they_are_or_502(method: bytes, data: bytes, cut: int) -> None:
    """A storefront may say what it likes: the shopper gets it as it is read literally, or an error."""
    properties.check_answers(method, data, cut)


@thorough
@given(st.one_of(mutated(CHUNKS), st.binary(max_size=100)), cuts)
def test_chunks_are_read_as_the_grammar_has_them(data: bytes, cut: int) -> None:
    """Against a decoder in plain Python: the same body, trailers and rest, or a refusal."""
    properties.check_chunks(data, cut)


lines = st.lists(
    st.one_of(
        st.sampled_from(
            [b"wr-sale=", b"__Host-wr-sale", b"=", b";", b'"', b" ", b"\t", b"a", b"wr-sales=b", b","]
        ),
        st.binary(max_size=3),
    )
).map(b"".join)


@quick
@given(st.binary(max_size=1100))
def test_tokens_are_genuine_or_nothing(data: bytes) -> None:
    """No bytes prove anything unless we signed them, and none that we signed break the reader."""
    properties.check_token(data)


@quick
@given(st.integers(0, len(properties.GENUINE) - 1), st.integers(0, 7))
def test_a_bit_turned_over_is_a_forgery(at: int, bit: int) -> None:
    """No bit of a token is free to be changed."""
    properties.check_flip(at, bit)


@quick
@given(lines)
def test_cookies_are_found_as_a_literal_reader_finds_them(line: bytes) -> None:
    """However a Cookie line is spelt."""
    properties.check_cookies(line)


addresses = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["unknown", "_hidden", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%a"]),
).map(str.encode)
forwarded = st.lists(
    st.one_of(
        addresses,
        st.sampled_from(
            [b"for=", b"host=", b"proto=", b"https", b'"', b"[", b"]", b":80", b",", b";", b" ", b"%", b"a"]
        ),
        st.binary(max_size=2),
    ),
    max_size=8,
).map(b"".join)


@thorough
@given(forwarded)
def test_the_origin_gets_sound_forwarding_lines(value: bytes) -> None:
    """Nobody's word gets into them that is not an address, a scheme or a host."""
    properties.check_forwarded(value)


tokens = st.sampled_from(
    [
        *(
            "[server]",
            "[[rooms]]",
            "[rooms]",
            "[store]",
            "[log]",
            "\n",
            "=",
            "name",
            "upstream",
            "hosts",
            "path",
        ),
        *(
            "listen",
            "trusted_proxies",
            "head_timeout",
            "max_headers",
            "shop_logo",
            "accent_color",
            "queueing_method",
        ),
        *(
            '"sale"',
            '"http://a"',
            '"unix:/a"',
            '["a"]',
            '"10.0.0.0/8"',
            '"#fff"',
            '"90s"',
            "1",
            "-1",
            "inf",
            "nan",
        ),
        *(
            "true",
            "1e400",
            "9" * 30,
            "1979-05-27",
            "{}",
            "[]",
            '"\\u0000"',
            '""',
            '"1h"',
            '"::1:80"',
            "session_duration",
        ),
        *(
            "total_active_users",
            "epoch",
            "version",
            "keys",
            "token",
            "[a.b]",
            "cookie_domain",
            "claim_window",
        ),
    ]
)
settled = st.sampled_from(
    [
        '[server]\nlisten = "127.0.0.1:80"\n[[rooms]]\nname = "sale"\nupstream = "http://a"\nhosts = ["a"]\n',
        '[[rooms]]\nname = "a"\nupstream = "unix:/a"\nsession_duration = "1h30m"\naccent_color = "#0b57d0"\n',
    ]
)


@thorough
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(tokens, max_size=12).map(" ".join),
        st.tuples(settled, tokens, st.just(" = "), tokens).map("".join),
        st.tuples(settled, st.text(max_size=8), st.just(" = "), st.text(max_size=8)).map("".join),
    ),
    st.dictionaries(
        st.sampled_from(
            [
                "WAITINGROOM__SERVER__LISTEN",
                "WAITINGROOM__STORE__TICK",
                "WAITINGROOM__ROOMS__NAME",
                "WAITINGROOM__",
            ]
        ),
        st.one_of(st.text(max_size=8), tokens),
        max_size=1,
    ),
)
def test_a_configuration_is_taken_or_refused_with_its_place(text: str, environ: dict[str, str]) -> None:
    """Whatever a file and the environment hold, there are settings or one error that says where."""
    properties.check_configuration(text, environ)


seconds = st.floats(0, 1e9)


@quick
@given(
    st.builds(
        Status,
        room=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True),
        state=st.sampled_from(State),
        position=st.none() | st.integers(1, 10**9),
        low=st.none() | seconds,
        high=st.none() | seconds,
        poll_after=seconds,
        message=st.text(),
        updated=seconds,
        until=st.none() | seconds,
        missed=st.booleans(),
    )
)
def test_the_status_document_is_what_an_encoder_writes(status: Status) -> None:
    """Valid JSON, whatever text a shop puts into it."""
    properties.check_status(status)


spelt = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    b"http:",
                    b"https:",
                    b"//",
                    b"/",
                    b"\\",
                    b"/\\",
                    b"%2f",
                    b"%5c",
                    b"\t",
                    b"shop.example",
                    b"evil.example",
                ),
                *(
                    b"@",
                    b":80",
                    b"?",
                    b"#",
                    b"..",
                    b".",
                    b"%0d%0a",
                    b"\xe3\x80\x82",
                    b"javascript:",
                    b"/.waitingroom/",
                ),
            ]
        ),
        st.binary(max_size=2),
    ),
    max_size=8,
).map(b"".join)


@thorough
@given(
    st.one_of(spelt, spelt.map(b"http://shop.example/".__add__), spelt.map(b"http://shop.example".__add__)),
    st.one_of(
        st.from_regex(r"/[^?#\s]{0,8}", fullmatch=True),
        st.sampled_from(["//evil.example", "/\\evil.example"]),
    ),
)
def test_the_way_back_stays_on_this_host(referer: bytes, path: str) -> None:
    """No spelling of a Referer, and no path of a room, sends anybody to another site."""
    properties.check_return(referer, path=path)


targets = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"a",
                b"..",
                b".",
                b"/",
                b"//",
                b"%2e",
                b"%2F",
                b"\\",
                b";",
                b"%",
                b"?",
                b"#",
                b"room=",
                b"&",
                b"+",
                b".waitingroom",
            ]
        ),
        st.binary(max_size=2),
    ),
    max_size=10,
).map(b"".join)


@quick
@given(targets)
def test_paths_and_queries_are_read_literally(target: bytes) -> None:
    """What the router sees is what a slow and literal reader sees."""
    properties.check_path(target)
