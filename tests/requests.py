"""Requests as bytes, for whoever reads HTTP/1.1: well-formed ones, and those that nothing good can come of.

Most are made from small tables, so that each spelling meets each place. `test_differential` sends them
through several proxies, each followed by further requests: whatever is left open swallows those.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """What a client sends on one connection.

    Attributes:
        raw: all bytes.
        expected: requests that a strict reader finds in them; what follows those is no request.
    """

    raw: bytes
    expected: int


HOST = b"Host: shop.example"
CHUNKED = b"Transfer-Encoding: chunked"


def head(*lines: bytes, start: bytes = b"GET /x HTTP/1.1", host: bytes = HOST) -> bytes:
    """A head of these lines; `host` b"" leaves that line away."""
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def post(body: bytes, *lines: bytes, start: bytes = b"POST /x HTTP/1.1") -> bytes:
    """A request with a body and these lines, which have to frame it."""
    return head(*lines, start=start) + body


def chunked(wire: bytes, *lines: bytes, coding: bytes = CHUNKED) -> bytes:
    """A request with a chunked body as it is on the wire."""
    return post(wire, coding, *lines)


ONE_CHUNK = b"3\r\nabc\r\n0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
"""A request that must never be seen by anybody, because it stands inside another one's body."""

TCHARS = b"!#$%&'*+-.^_`|~"

# fmt: off
_METHODS = [
    *(b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND", b"PURGE"),
    *(b"M-SEARCH", b"get", b"FOO", b"Z" * 40, TCHARS, b"G3T"),
]
_TARGETS = [
    *(b"/", b"/a", b"/a?b=c", b"/a?b?c", b"/?", b"/a%20b", b"/%2e%2e/a", b"/a/../b", b"/a/./b", b"/../a"),
    *(b"//a", b"/a//b", b"/a;b=c/d", b"/.", b"/..", b"/%00"),
    *(b"/%2F%5C", b"/?a=%0d%0aX:%20y", b"/a:b@c", b"/*"),
    *(b"/~!$&'()*+,;=:@-._", b"/?/?", b"/" + b"a" * 3000, b"/?" + b"b=c&" * 500, b"/.waitingroom/status"),
    b"/http://other.example/",
    # Outside the grammar of URIs, and sent by browsers and their like all the same.
    *(b'/"x"', b"/<x>", b"/{x}", b"/\\x", b"/x|y^z`", b"/x[y]", b"/x#y", b"/\xc3\xa4\xff", b"/%zz%1"),
]
_ABSOLUTE = [
    *(b"http://shop.example/", b"http://shop.example/a?b"),
    *(b"HTTP://Shop.Example/a", b"https://shop.example/a"),
    *(b"http://other.example/a", b"http://shop.example"),
    *(b"http://shop.example?q", b"http://shop.example:81/a"),
    *(b"http://127.0.0.1/a", b"http://[::1]:81/a", b"http://other.example//a"),
]
_HOSTS = [
    *(b"shop.example", b"SHOP.example", b"shop.example:80", b"shop.example:8080", b"shop.example."),
    *(b"127.0.0.1", b"127.0.0.1:81", b"[::1]", b"[::1]:81"),
    *(b"xn--bcher-kva.example", b"a-b.c_d.example", b"a"),
    *(b"  shop.example  ", b"\tshop.example\t", b"shop%2eexample", b"shop~example"),
]
_NAMES = [
    *(b"X", b"x-lower", b"X-UPPER", b"X_Under", b"X.Dot", b"1", b"X" * 200, TCHARS, b"Accept", b"Referer"),
    *(b"Range", b"If-None-Match", b"Authorization", b"Content-Type", b"Content-Encoding", b"Cookie", b"Via"),
    *(b"Cache-Control", b"Origin", b"Date", b"Max-Forwards", b"X-Http-Method-Override", b"Content-MD5"),
    *(b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded"),
    *(b"X-Real-IP", b"X-Original-URL"),
    *(b"Waiting-Room", b"Waiting-Room-Command", b"Cf-Waiting-Room-Visitor", b"Proxy-Authorization", b"Proxy"),
    *(b"Content_Length", b"Transfer_Encoding", b"X-Content-Length", b"Content-Length-X"),
    *(b"Trailer", b"Set-Cookie"),
]
_VALUES = [
    *(b"", b" ", b"a", b"a b", b"a\tb", b"  a  ", b"\ta\t", b"a,b, c"),
    *(b'"a, \\"b"', b"a: b", b"\xe4", b"\xc3\xa4"),
    *(b"\xff\x80", b"a" * 4000, b"(comment)", b"<>@[]{}\\", b";;;"),
    *(b"=?utf-8?q?a?=", b"%0d%0a", b"${jndi:x}"),
]
_LENGTHS = [b"5", b"005", b" 5 ", b"5 ", b"0000000000000005"]
_CODINGS = [b"chunked", b"Chunked", b"CHUNKED", b"  chunked  ", b"chunked "]
_CHUNKS = {
    "one": ONE_CHUNK,
    "none": b"0\r\n\r\n",
    "three": b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n",
    "upper-case size": b"A\r\n0123456789\r\n0\r\n\r\n",
    "lower-case size": b"a\r\n0123456789\r\n0\r\n\r\n",
    "leading zeros": b"0003\r\nabc\r\n000\r\n\r\n",
    "extension": b"3;a\r\nabc\r\n0;b\r\n\r\n",
    "extension with value": b"3;a=b;c=d\r\nabc\r\n0\r\n\r\n",
    "quoted extension": b'3;a="b c"\r\nabc\r\n0\r\n\r\n',
    "trailer": b"3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n",
    "trailers that may not pass": b"3\r\nabc\r\n0\r\nHost: evil\r\nCookie: wr-a=b\r\n\r\n",
    "a request inside": b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n",
    "an end inside": b"5\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "large": b"8000\r\n" + b"x" * 0x8000 + b"\r\n0\r\n\r\n",
}
_CONNECTIONS = [
    *(b"keep-alive", b"Keep-Alive", b"X-Private", b"x-private, keep-alive"),
    *(b"Host", b"Cookie", b"Content-Type"),
    *(b"Content-Length", b"Transfer-Encoding", b"X-Forwarded-For", b"te", b"upgrade", b"foo", b",,", b""),
    *(b"Accept, Accept", b"Authorization", b"Origin", b"Forwarded", b"keep-alive, upgrade", b"Expect"),
]
_LINES: dict[str, tuple[bytes, ...]] = {
    "two of a name": (b"X-A: 1", b"X-A: 2"),
    "two of a name in two cases": (b"X-A: 1", b"x-a: 2"),
    "two Cookies": (b"Cookie: a=b", b"Cookie: c=d"),
    "our own cookies": (b"Cookie: a=b; wr-sale=t; __Host-wr-sale=u; c=d",),
    "none but our own cookies": (b"Cookie: wr-sale=t",),
    "odd cookies": (b"Cookie: ;; a;=b; c=d=e;",),
    "two Accepts": (b"Accept: a/b", b"Accept: c/d"),
    "two Authorizations": (b"Authorization: a", b"Authorization: b"),
    "two Content-Types": (b"Content-Type: a/b", b"Content-Type: c/d"),
    "two Referers": (b"Referer: /a", b"Referer: /b"),
    "two User-Agents": (b"User-Agent: a", b"User-Agent: b"),
    "ninety lines": tuple(b"X-%d: y" % number for number in range(90)),
    "a Set-Cookie": (b"Set-Cookie: a=b",),
    "TE": (b"TE: trailers", b"Connection: TE"),
    "TE with codings": (b"TE: gzip, trailers;q=0.5",),
    "Keep-Alive": (b"Keep-Alive: timeout=5",),
    "Proxy-Connection": (b"Proxy-Connection: keep-alive",),
    "a WebSocket": (b"Connection: Upgrade", b"Upgrade: websocket",
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                    b"Sec-WebSocket-Version: 13"),
    "Upgrade without Connection": (b"Upgrade: websocket",),
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
    "an unknown expectation": (b"Expect: 200-ok",),
    "an expectation without a body": (b"Expect: 100-continue",),
    "a coding of nothing": (b"Content-Encoding: gzip",),
    "length of nothing": (b"Content-Length: 0",),
    "Connection on two lines": (b"Connection: x-a", b"Connection: x-b", b"X-A: 1", b"X-B: 2"),
}
_OLD = b"GET /x HTTP/1.0"
_ITS_LENGTH = b"Content-Length: %d" % len(SMUGGLED)
_BY_HAND = {
    "any server": head(start=b"OPTIONS * HTTP/1.1"),
    "CL.0": post(SMUGGLED, _ITS_LENGTH),
    "0.CL": post(SMUGGLED, _ITS_LENGTH, start=b"GET /x HTTP/1.1"),
    "0.CL with HEAD": post(SMUGGLED, _ITS_LENGTH, start=b"HEAD /x HTTP/1.1"),
    "0.CL with OPTIONS": post(SMUGGLED, _ITS_LENGTH, start=b"OPTIONS /x HTTP/1.1"),
    "0.TE": post(_CHUNKS["a request inside"], CHUNKED, start=b"GET /x HTTP/1.1"),
    "0.TE with DELETE": post(_CHUNKS["a request inside"], CHUNKED, start=b"DELETE /x HTTP/1.1"),
    "expects 100-continue": post(b"abcde", b"Content-Length: 5", b"Expect: 100-continue"),
    "expects 100-Continue": post(b"abcde", b"Content-Length: 5", b"Expect: 100-Continue"),
    "expects 100-continue, chunked": chunked(ONE_CHUNK, b"Expect: 100-continue"),
    "expects twice": post(
        b"abcde", b"Content-Length: 5", b"Expect: 100-continue", b"Expect: 100-continue"
    ),
    "announced trailer": chunked(b"0\r\nX-Sum: 6\r\n\r\n", b"Trailer: X-Sum"),
    "announced trailer, TE": chunked(b"0\r\nX-Sum: 6\r\n\r\n", b"Trailer: X-Sum", b"TE: trailers"),
    "an upgrade with a body": post(
        b"abcde", b"Content-Length: 5", b"Connection: Upgrade", b"Upgrade: websocket"
    ),
    "a body like a head": post(b"X: y\r\n\r\n", b"Content-Length: 8"),
    "a body of zeros": post(b"\0" * 100, b"Content-Length: 100"),
    "a large body": post(b"x" * 100_000, b"Content-Length: 100000"),
    "HTTP/1.0, kept": head(b"Connection: keep-alive", start=_OLD),
    "HTTP/1.0, kept, without Host": head(b"Connection: keep-alive", start=_OLD, host=b""),
    "HTTP/1.0, kept, with a body": post(
        b"abcde", b"Content-Length: 5", b"Connection: Keep-Alive", start=b"POST /x HTTP/1.0"
    ),
    "HTTP/1.0, absolute": head(b"Connection: keep-alive", start=b"GET http://shop.example/a HTTP/1.0"),
    "HTTP/1.0 asks for a tunnel": head(b"Connection: keep-alive, upgrade", b"Upgrade: websocket", start=_OLD),
}
# fmt: on


def _short(text: bytes) -> str:
    """Enough of it for a name."""
    return ascii(text[:40].decode("latin-1"))[1:-1]


def _good_heads() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for method in _METHODS:
        found[f"method {_short(method)}"] = head(start=method + b" /x HTTP/1.1")
        if method != b"TRACE":
            found[f"method {_short(method)} with a body"] = post(
                b"abcde", b"Content-Length: 5", start=method + b" /x HTTP/1.1"
            )
    for target in _TARGETS:
        found[f"target {_short(target)}"] = head(start=b"GET " + target + b" HTTP/1.1")
    for target in _ABSOLUTE:
        found[f"absolute {_short(target)}"] = head(start=b"GET " + target + b" HTTP/1.1")
    for host in _HOSTS:
        found[f"Host {_short(host)}"] = head(host=b"Host: " + host)
    for name in _NAMES:
        found[f"name {_short(name)}"] = head(name + b": 1")
    for value in _VALUES:
        found[f"value {_short(value)}"] = head(b"X-A: " + value)
    return found | {name: head(*lines) for name, lines in _LINES.items()}


def _good_bodies() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for length in _LENGTHS:
        found[f"length {_short(length)}"] = post(b"abcde", b"Content-Length: " + length)
        found[f"length {_short(length)} without a blank"] = post(
            b"abcde", b"content-length:" + length.strip()
        )
    for coding in _CODINGS:
        found[f"coding {_short(coding)}"] = chunked(ONE_CHUNK, coding=b"Transfer-Encoding: " + coding)
        found[f"coding {_short(coding)} in other case"] = chunked(
            ONE_CHUNK, coding=b"TRANSFER-encoding:" + coding
        )
    for options in _CONNECTIONS:
        lines = (b"X-Private: 1", b"Cookie: a=b", b"Content-Type: a/b", b"Accept: c/d", b"Authorization: e")
        found[f"Connection {_short(options)}"] = post(
            b"abcde", b"Content-Length: 5", b"Connection: " + options, *lines
        )
    return found | {f"chunks: {name}": chunked(wire) for name, wire in _CHUNKS.items()}


def _well_formed() -> dict[str, Case]:
    found = _good_heads() | _good_bodies() | _BY_HAND
    return {name: Case(raw, 1) for name, raw in found.items()} | {
        "two pipelined": Case(head() + head(start=b"GET /y HTTP/1.1"), 2),
        "a body, pipelined": Case(post(b"abcde", b"Content-Length: 5") + head(start=b"GET /y HTTP/1.1"), 2),
        "chunks, pipelined": Case(chunked(ONE_CHUNK) + head(start=b"GET /y HTTP/1.1"), 2),
        "ten pipelined": Case(b"".join(head(start=b"GET /%d HTTP/1.1" % n) for n in range(10)), 10),
        "two bodies, pipelined": Case(post(SMUGGLED, b"Content-Length: %d" % len(SMUGGLED)) * 2, 2),
    }


WELL_FORMED = _well_formed()
"""What the grammar allows; every request of it has to arrive as it was sent."""

# fmt: off
_BAD_LENGTHS = [
    *(b"+5", b"-5", b"0x5", b"5,5", b"5, 5", b"5 5", b"5a", b"a", b"", b" "),
    *(b"5.0", b"5;a", b"\t5", b"5\t", b"\v5"),
    *(b"5\0", b"\xd9\xa5", b"99999999999999999999", b"18446744073709551621", b'"5"', b"5,", b",5", b"1e1"),
]
_BAD_CODINGS = [
    *(b"xchunked", b"chunkedx", b"chunk", b"identity", b"gzip", b"gzip, chunked"),
    *(b"chunked, gzip", b"", b","),
    *(b"chunked, chunked", b"chunked,", b",chunked", b"chunked, identity"),
    *(b"identity, chunked", b"\tchunked"),
    *(b"\vchunked", b"chunked\v", b"chunked\0", b"chunked;q=1", b'"chunked"', b"'chunked'", b"chun ked"),
    *(b"\xa0chunked", b"chunked\xa0", b"ch\xc3\xbcnked", b"cow", b"deflate, chunked", b"trailers, chunked"),
]
_BAD_LINES: dict[str, tuple[bytes, ...]] = {
    "space before the colon": (b"X-A : 1",),
    "tab before the colon": (b"X-A\t: 1",),
    "folded line": (b"X-A: 1", b" 2"),
    "line folded by a tab": (b"X-A: 1", b"\t2"),
    "line without colon": (b"nonsense",),
    "empty name": (b": 1",),
    "non-ASCII name": (b"X-\xe4: 1",),
    "name in quotes": (b'"X-A": 1',),
    "name with a bracket": (b"X[A]: 1",),
    "name with a slash": (b"X/A: 1",),
    "name with a blank": (b"X A: 1",),
    "name with an at sign": (b"X@A: 1",),
    "name with a backslash": (b"X\\A: 1",),
    "bare CR in a value": (b"X-A: 1\rX-B: 2",),
    "bare CR at the end of a value": (b"X-A: 1\r",),
    "bare LF in a value": (b"X-A: 1\nX-B: 2",),
    "CR CR LF": (b"X-A: 1\r\r",),
    "LF CR": (b"X-A: 1\n\r",),
    "line of blanks": (b"  ",),
    "second Host": (b"Host: shop.example",),
    "other second Host": (b"Host: other.example",),
    "second Host in other case": (b"hOST: other.example",),
    "Content-Length hidden by a blank": (b"Content-Length : 5",),
    "Content-Length hidden by a fold": (b"X-A: 1", b" Content-Length: 5"),
    "Content-Length on two lines": (b"Content-Length:", b" 5"),
    "Transfer-Encoding hidden by a blank": (b"Transfer-Encoding : chunked",),
    "Transfer-Encoding hidden by a fold": (b"X-A: 1", b" Transfer-Encoding: chunked"),
    "Transfer-Encoding hidden by a bare LF": (b"X-A: 1\nTransfer-Encoding: chunked",),
    "Transfer-Encoding hidden by a bare CR": (b"X-A: 1\rTransfer-Encoding: chunked",),
    "Transfer-Encoding on two lines": (b"Transfer-Encoding:", b" chunked"),
    "Transfer-Encoding in two parts": (b"Transfer-", b"Encoding: chunked"),
    "Transfer-Encoding behind NUL": (b"\0Transfer-Encoding: chunked",),
    "Content-Length behind a vertical tab": (b"\vContent-Length: 5",),
    "too many lines": tuple(b"X-%d: y" % number for number in range(200)),
}
_BAD_HOSTS = [
    *(b"a/b", b"a@b", b"a b", b"", b"a,b", b"a:b", b"a:80:81", b"[::1"),
    *(b"a?b", b"a#b", b"a\\b", b"<a>", b"a\tb"),
    *(b"\xe4", b"a:99999999", b"a\0b", b"[zz]", b"::1", b"a\x7fb", b"http://a"),
    *(b"a|b", b"a'b", b'"a"', b"a;b"),
]
_BAD_STARTS = {
    "two spaces before the target": b"GET  /x HTTP/1.1",
    "two spaces before the version": b"GET /x  HTTP/1.1",
    "tab in the request line": b"GET\t/x HTTP/1.1",
    "tab before the version": b"GET /x\tHTTP/1.1",
    "space in the target": b"GET /x y HTTP/1.1",
    "space before the method": b" GET /x HTTP/1.1",
    "space behind the version": b"GET /x HTTP/1.1 ",
    "no method": b"/x HTTP/1.1",
    "no target": b"GET HTTP/1.1",
    "no version": b"GET /x",
    "empty request line": b"",
    "method with a colon": b"GET: /x HTTP/1.1",
    "method with a bracket": b"G[T /x HTTP/1.1",
    "non-ASCII method": b"G\xcbT /x HTTP/1.1",
    "relative target": b"GET x HTTP/1.1",
    "query alone": b"GET ?x HTTP/1.1",
    "asterisk for GET": b"GET * HTTP/1.1",
    "other scheme": b"GET ftp://shop.example/ HTTP/1.1",
    "scheme alone": b"GET http:// HTTP/1.1",
    "scheme with one slash": b"GET http:/x HTTP/1.1",
    "user in the target": b"GET http://u@shop.example/ HTTP/1.1",
    "space in the authority": b"GET http://a b/ HTTP/1.1",
    "authority for GET": b"GET shop.example:80 HTTP/1.1",
    "tunnel": b"CONNECT shop.example:443 HTTP/1.1",
    "tunnel to a path": b"CONNECT /x HTTP/1.1",
    "HTTP/1.2": b"GET /x HTTP/1.2",
    "HTTP/1.10": b"GET /x HTTP/1.10",
    "HTTP/01.1": b"GET /x HTTP/01.1",
    "HTTP/1": b"GET /x HTTP/1",
    "HTTP/1.": b"GET /x HTTP/1.",
    "HTTP/11": b"GET /x HTTP/11",
    "HTTP/0.9": b"GET /x HTTP/0.9",
    "HTTP/2.0": b"GET /x HTTP/2.0",
    "HTTP/3": b"GET /x HTTP/3",
    "HTTP/-1.1": b"GET /x HTTP/-1.1",
    "HTTP 1.1": b"GET /x HTTP 1.1",
    "HTTP/1.1 twice": b"GET /x HTTP/1.1 HTTP/1.1",
    "http/1.1": b"GET /x http/1.1",
    "ICY/1.1": b"GET /x ICY/1.1",
}
_BAD_CHUNKS = {
    "plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "blank before": b" 3\r\nabc\r\n0\r\n\r\n",
    "blank behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "tab behind": b"3\t\r\nabc\r\n0\r\n\r\n",
    "blank before the extension": b"3 ;a\r\nabc\r\n0\r\n\r\n",
    "overflow": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "wrapping around": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "no digit": b"g\r\nabc\r\n0\r\n\r\n",
    "quotes": b'"3"\r\nabc\r\n0\r\n\r\n',
    "comma": b"3,3\r\nabc\r\n0\r\n\r\n",
    "point": b"3.0\r\nabc\r\n0\r\n\r\n",
    "underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "bare LF behind the size": b"3\nabc\r\n0\r\n\r\n",
    "bare CR behind the size": b"3\rabc\r\n0\r\n\r\n",
    "bare LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "nothing behind the data": b"3\r\nabc0\r\n\r\n",
    "other bytes behind the data": b"3\r\nabcXX0\r\n\r\n",
    "longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
    "bare LF in the extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "bare CR in the extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "control character in the extension": b"3;a=\x01\r\nabc\r\n0\r\n\r\n",
    "NUL in the extension": b"3;\0\r\nabc\r\n0\r\n\r\n",
    "empty extension": b"3;\r\nabc\r\n0\r\n\r\n",
    "folded trailer": b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "trailer without colon": b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n",
    "trailer with a blank before the colon": b"3\r\nabc\r\n0\r\nA : b\r\n\r\n",
    "NUL in a trailer": b"3\r\nabc\r\n0\r\nA: \0\r\n\r\n",
    "Content-Length as a trailer": b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
    "Transfer-Encoding as a trailer": b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bare LF at the end": b"3\r\nabc\r\n0\r\n\n",
    "bare LF behind the last chunk": b"3\r\nabc\r\n0\n\r\n",
    "bare CR at the end": b"3\r\nabc\r\n0\r\n\r\r",
    "bad at once": b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    "second one bad": b"3\r\nabc\r\nzz\r\n0\r\n\r\n",
    "length of a request": b"0\r\n" + SMUGGLED,
}
_BREAKS = {"LF": b"\n", "CR": b"\r", "CR CR LF": b"\r\r\n", "LF CR": b"\n\r", "LF LF": b"\n\n", "NUL": b"\0"}
_CONTROLS = [*range(9), 11, 12, *range(14, 32), 127]
_PLACES = {
    "the method": b"GE%bT /x HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    "the target": b"GET /x%by HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    "a name": b"GET /x HTTP/1.1\r\nHost: shop.example\r\nX-%bA: 1\r\n\r\n",
    "a value": b"GET /x HTTP/1.1\r\nHost: shop.example\r\nX-A: 1%b2\r\n\r\n",
}


_BAD_BY_HAND = {
    "TE.CL": chunked(b"5c\r\n" + SMUGGLED, b"Content-Length: 4"),
    "CL.TE": post(b"0\r\n\r\n" + SMUGGLED, b"Content-Length: %d" % (len(SMUGGLED) + 5), CHUNKED),
    "TE.TE": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-encoding: cow"),
    "TE.TE, the other way": chunked(b"0\r\n\r\n" + SMUGGLED, CHUNKED, coding=b"Transfer-Encoding: cow"),
    "two equal codings": chunked(ONE_CHUNK, CHUNKED),
    "two equal lengths": post(b"abcde", b"Content-Length: 5", b"Content-Length: 5"),
    "two lengths": post(b"abcde", b"Content-Length: 5", b"Content-Length: 6"),
    "two lengths, the other way": post(b"abcde", b"Content-Length: 6", b"Content-Length: 5"),
    "two lengths in two cases": post(b"abcde", b"Content-Length: 5", b"content-length: 0"),
    "chunked in HTTP/1.0": post(ONE_CHUNK, CHUNKED, b"Connection: keep-alive", start=b"POST /x HTTP/1.0"),
    "chunked and a length in HTTP/1.0": post(
        ONE_CHUNK, CHUNKED, b"Content-Length: 13", b"Connection: keep-alive", start=b"POST /x HTTP/1.0"
    ),
    "no Host": head(host=b""),
    "no Host, absolute": head(start=b"GET http://shop.example/x HTTP/1.1", host=b""),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"a" * 100 + b"\r\n\r\n",
    "PROXY": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + head(),
    "PROXY, second version": b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\x7f\0\0\1\x7f\0\0\1\0\1\0\2" + head(),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "bytes": bytes(range(256)) + b"\r\n\r\n",
    "endless target": head(start=b"GET /" + b"a" * 60_000 + b" HTTP/1.1"),
    "endless value": head(b"X-A: " + b"a" * 60_000),
    "endless name": head(b"X" * 60_000 + b": 1"),
    "endless method": head(start=b"G" * 60_000 + b" /x HTTP/1.1"),
    "endless Host": head(host=b"Host: " + b"a" * 60_000),
    "LFs before": b"\n" * 50 + head(),
    "CR LF before": b"\r\n" + head(),
    "CR LFs before": b"\r\n" * 20 + head(),
    "BOM before": b"\xef\xbb\xbf" + head(),
    "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}
# fmt: on


def _bad_framings() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for length in _BAD_LENGTHS:
        found[f"length {_short(length)}"] = post(b"abcde", b"Content-Length: " + length)
    for coding in _BAD_CODINGS:
        found[f"coding {_short(coding)}"] = chunked(ONE_CHUNK, coding=b"Transfer-Encoding: " + coding)
    for coding in (b"chunked", b"Chunked", b"xchunked", b"identity", b"chunked, identity", b" chunked"):
        for length in (b"5", b"0", b"13", b"99"):
            both = b"Content-Length: " + length, b"Transfer-Encoding: " + coding
            found[f"length {_short(length)} and coding {_short(coding)}"] = post(ONE_CHUNK, *both)
            found[f"coding {_short(coding)} and length {_short(length)}"] = post(ONE_CHUNK, *both[::-1])
    for name, lines in _BAD_LINES.items():
        if "-Encoding" in name:
            found[f"{name}, with a length"] = post(ONE_CHUNK, b"Content-Length: 13", *lines)
            found[f"{name}, with chunks"] = post(ONE_CHUNK, *lines)
    return found | {f"chunks: {name}": chunked(wire) for name, wire in _BAD_CHUNKS.items()}


def _bad_heads() -> dict[str, bytes]:
    found: dict[str, bytes] = {name: head(start=start) for name, start in _BAD_STARTS.items()}
    for name, lines in _BAD_LINES.items():
        found[name] = head(*lines)
        found[f"{name}, first"] = head(HOST, *lines[1:], host=lines[0])
    for host in _BAD_HOSTS:
        found[f"Host {_short(host)}"] = head(host=b"Host: " + host)
    for name, ending in _BREAKS.items():
        found[f"{name} behind the request line"] = b"GET /x HTTP/1.1%bHost: shop.example\r\n\r\n" % ending
        found[f"{name} behind a line"] = b"GET /x HTTP/1.1\r\nHost: shop.example%bX-A: 1\r\n\r\n" % ending
        found[f"{name} at the end"] = b"GET /x HTTP/1.1\r\nHost: shop.example\r\n%b" % ending
        found[f"{name} everywhere"] = b"GET /x HTTP/1.1%bHost: shop.example%b%b" % ((ending,) * 3)
        found[f"{name} before"] = ending + head()
    for place, template in _PLACES.items():
        for control in _CONTROLS:
            found[f"{control:#04x} in {place}"] = template % bytes([control])
    return found


def _malformed() -> dict[str, Case]:
    found = _bad_heads() | _bad_framings() | _BAD_BY_HAND
    return {name: Case(raw, 0) for name, raw in found.items()} | {
        "good, then bad": Case(head() + head(b"X : y"), 1),
        "good body, then bad": Case(post(b"abcde", b"Content-Length: 5") + b"nonsense\r\n\r\n", 1),
        "body longer than said": Case(post(b"abcde(", b"Content-Length: 5"), 1),
        "bytes behind the last chunk": Case(chunked(ONE_CHUNK + b"(abc"), 1),
        "empty line between": Case(head() + b"\r\n" + head(start=b"GET /y HTTP/1.1"), 1),
    }


MALFORMED = _malformed()
"""What two readers could read in two ways, or cannot be read at all; nothing of it may arrive as a request
beyond those before the fault."""
