"""What reaches the storefront through us, beside what reaches it through nginx and HAProxy, byte for byte.

`tests/requests.py` has the requests. Every case in which the three do not pass on the same belongs to one of
the classes below, and each class is explained in docs/security.md.
"""

import asyncio
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from tests import rivals
from tests.requests import MALFORMED, WELL_FORMED
from tests.rivals import HAPROXY, NGINX, Seen, Told

CASES = {f"good: {name}": case for name, case in WELL_FORMED.items()} | {
    f"bad: {name}": case for name, case in MALFORMED.items()
}
SECURITY = Path(__file__).parents[1] / "docs" / "security.md"

_THIS_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    *(b"content-length", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"via"),
}
"""What each proxy frames and notes in its own way."""

Gist = tuple[tuple[tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes | None], ...], bool, int]


class Trio(NamedTuple):
    """What came of one case at each proxy."""

    ours: Told
    nginx: Told
    haproxy: Told


def gist(told: Told) -> Gist:
    """What of it is compared: requests, their lines but for those of a hop, bodies, and what follows."""
    requests = tuple((one.method, one.target, lines(one), one.body) for one in told.requests)
    return requests, told.ended, len(told.unreadable)


def lines(seen: Seen) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(sorted((name, value) for name, value in seen.headers if name not in _THIS_HOP))


def whole(told: Told) -> int:
    """Requests that came to their end."""
    return sum(one.body is not None for one in told.requests)


def bodies(told: Told) -> list[tuple[bytes, bytes | None]]:
    return [(one.method, one.body) for one in told.requests]


def stricter(trio: Trio) -> bool:
    """We refuse what one of the others passes on."""
    return max(whole(trio.nginx), whole(trio.haproxy)) > whole(trio.ours) or (
        (trio.nginx.ended or trio.haproxy.ended) and not trio.ours.ended
    )


def laxer(trio: Trio) -> bool:
    """One of the others refuses what we and the third pass on in the same way."""
    return gist(trio.ours) in (gist(trio.nginx), gist(trio.haproxy)) and (
        min(whole(trio.nginx), whole(trio.haproxy)) < whole(trio.ours)
    )


def otherwise(trio: Trio) -> bool:
    """Whoever passes it on passes on as many requests with the same bodies; something else differs."""
    passing = [told for told in trio if told.requests]
    return all(bodies(told) == bodies(trio.ours) for told in passing) and trio.ours in passing


class Difference(NamedTuple):
    """A class of cases: how the three differ in them, and a pattern of their names."""

    shape: Callable[[Trio], bool]
    cases: str


DIFFERENCES = {
    "bare line feeds and carriage returns": Difference(
        stricter,
        r"bad: ((LF|CR|LF CR|CR CR LF|LF LF|NUL) (behind .*|at the end|everywhere|before)|bare (CR|LF) .*"
        r"|CR CR LF.*|.* hidden by a bare (CR|LF).*|LFs before)",
    ),
    "empty lines before a request": Difference(stricter, r"bad: (CR LFs? before|empty line between)"),
    "folded lines": Difference(
        stricter,
        r"bad: (folded line.*|line folded by a tab.*|line of blanks|.* hidden by a fold.*|.* on two lines.*)",
    ),
    "names outside the grammar": Difference(
        stricter, r"bad: (line without colon.*|non-ASCII name.*|name .*|Transfer-Encoding in two parts.*)"
    ),
    "control characters in values": Difference(stricter, r"bad: 0x.. in a value"),
    "Host malformed, missing or repeated": Difference(stricter, r"bad: (Host .*|second Host.*|no Host.*)"),
    "request lines outside the grammar": Difference(
        stricter,
        r"bad: (two spaces before .*|tab .*|space behind the version|no version|HTTP/.*|asterisk for GET"
        r"|other scheme|scheme alone|user in the target|0x7f in the target|tunnel)",
    ),
    "lengths and codings in other spellings": Difference(
        stricter, r"bad: (length 5,.*|length .*\\t.*|coding chunked,|coding \\tchunked|two equal lengths)"
    ),
    "a length and a coding at once": Difference(
        stricter, r"bad: (length \d+ and coding .*|coding .* and length \d+|CL\.TE)"
    ),
    "chunks in HTTP/1.0": Difference(stricter, r"bad: chunked (and a length )?in HTTP/1\.0"),
    "chunks outside the grammar": Difference(stricter, r"bad: chunks: .*"),
    "number of header lines": Difference(stricter, r"bad: too many lines.*"),
    "unusual methods": Difference(laxer, r"good: method .*"),
    "unusual targets": Difference(laxer, r"good: (target .*|any server)"),
    "unusual but unambiguous lines": Difference(
        laxer, r"good: (two Authorizations|expects twice|Host .*|HTTP/1\.0 asks for a tunnel)"
    ),
    "absolute targets": Difference(otherwise, r"good: (absolute .*|HTTP/1\.0, absolute)"),
    "HTTP/1.0 without Host": Difference(otherwise, r"good: HTTP/1\.0, kept, without Host"),
    "names that are rare": Difference(
        otherwise, r"good: name (X_Under|X\.Dot|Content_Length|Transfer_Encoding|!.*)"
    ),
    "lines that are ours": Difference(otherwise, r"good: (name (Cf-)?Waiting-Room.*|.*our own cookies)"),
    "lines for this hop": Difference(otherwise, r"good: (name Proxy-Authorization|Connection .*|h2c)"),
    "expectations": Difference(otherwise, r"good: (expects 100-[cC]ontinue.*|an .*expectation.*)"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trio]:
    """What came of every case, at each of the three."""
    if not (NGINX.exists() and HAPROXY.exists()):
        pytest.skip(f"{NGINX} or {HAPROXY} is not installed")
    folder = tmp_path_factory.mktemp("rivals")

    async def ask() -> dict[str, Trio]:
        found = await asyncio.gather(
            rivals.ours(CASES), rivals.nginx(CASES, folder), rivals.haproxy(CASES, folder)
        )
        return {name: Trio(*(one[name] for one in found)) for name in CASES}

    return uvloop.run(ask())


@pytest.fixture(scope="module")
def unaided() -> dict[str, Told]:
    """What the origin, which is a strict reader, makes of the well-formed cases without any proxy."""
    return uvloop.run(rivals.nobody({name: case for name, case in CASES.items() if name.startswith("good")}))


@pytest.fixture(scope="module")
def differing(told: dict[str, Trio]) -> dict[str, Trio]:
    """The cases that are not passed on in the same way by all three."""
    return {name: trio for name, trio in told.items() if len({gist(one) for one in trio}) > 1}


def classes_of(name: str, trio: Trio) -> list[str]:
    return [
        title for title, (shape, cases) in DIFFERENCES.items() if re.fullmatch(cases, name) and shape(trio)
    ]


def shown(trio: Trio) -> str:
    """Enough of what came of a case to see what is wrong."""
    return "\n".join(
        f"  {who}: {reprlib.repr(gist(told))} {told.answer[:40]!r}" for who, told in trio._asdict().items()
    )


def test_there_are_enough_cases() -> None:
    """Hundreds of requests of either kind are compared."""
    assert min(len(WELL_FORMED), len(MALFORMED)) >= 200


def test_well_formed_requests_arrive_as_they_were_sent(
    told: dict[str, Trio], unaided: dict[str, Told]
) -> None:
    """As many, with the same methods and bodies, and nothing before, between or behind them."""
    for name, direct in unaided.items():
        ours = told[name].ours
        assert (bodies(ours), ours.ended, ours.unreadable) == (bodies(direct), True, ()), name
        assert len(direct.requests) == whole(ours) == CASES[name].expected, name


def test_nothing_malformed_arrives(told: dict[str, Trio]) -> None:
    """Only the requests before the fault arrive; nothing that follows it is taken for one."""
    for name, case in CASES.items():
        ours = told[name].ours
        if name.startswith("bad"):
            assert len(ours.requests) == whole(ours) == case.expected, name
            assert (ours.ended, ours.unreadable) == (False, ()), name
            assert re.search(rb"HTTP/1\.1 4\d\d [^$]*\r\nConnection: close\r\n", ours.answer), name


def test_no_body_is_taken_for_a_request(told: dict[str, Trio]) -> None:
    """The request that stands inside another one's body is never seen as one."""
    assert b"/smuggled" not in {seen.target for trio in told.values() for seen in trio.ours.requests}


def test_nothing_passes_here_alone(told: dict[str, Trio]) -> None:
    """Never does more arrive through us than through the laxer of the two."""
    for name, trio in told.items():
        assert whole(trio.ours) <= max(whole(trio.nginx), whole(trio.haproxy)), f"{name}\n{shown(trio)}"


def test_every_difference_is_explained(differing: dict[str, Trio]) -> None:
    """Every case that the three do not pass on alike belongs to one class, and differs as that says."""
    classes = {name: classes_of(name, trio) for name, trio in differing.items()}
    lost = {name: found for name, found in classes.items() if len(found) != 1}
    assert lost == {}, "\n".join(f"{name}: {lost[name]}\n{shown(differing[name])}" for name in lost)


def test_every_explanation_is_needed(differing: dict[str, Trio]) -> None:
    """No class is left that no case falls into."""
    found = {title for name, trio in differing.items() for title in classes_of(name, trio)}
    assert found == set(DIFFERENCES)


def test_every_difference_is_documented() -> None:
    """The table of docs/security.md has these classes and no others."""
    section = (
        SECURITY.read_text().partition("## Where we differ from nginx and HAProxy")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| ([^|]+?) +\|", section, re.MULTILINE)
    assert rows[1:] == list(DIFFERENCES)
