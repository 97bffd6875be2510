"""What a journey from a recorded session promises."""

import ast
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from loadtest.cli_history import mount
from loadtest.har import PLACEHOLDER, journey, read_har, recording
from loadtest.inputs import InputError

SHOP = "https://shop.example"
SESSION = "s3ss10nValueOfSomebody"
CSRF = "8f14e45fceea167a5a36dedd4bea2543"


def entry(second: float, url: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "startedDateTime": f"2025-11-28T09:00:{second:06.3f}Z",
        "time": 500,
        "request": {
            "method": method,
            "url": url if "://" in url else SHOP + url,
            "headers": [
                {"name": "Cookie", "value": f"shop={SESSION}"},
                {"name": "Authorization", "value": "Bearer abcdef-bearer-value"},
            ],
            "cookies": [{"name": "shop", "value": SESSION}],
        },
        "response": {
            "status": 200, "redirectURL": "",
            "content": {"mimeType": more.pop("kind", "text/html; charset=utf-8")},
            "headers": [], "cookies": [],
        },
    }  # fmt: skip
    if "form" in more:
        fields = [{"name": name, "value": value} for name, value in more.pop("form").items()]
        found["request"]["postData"] = {"mimeType": "application/x-www-form-urlencoded", "params": fields}
    found["response"]["redirectURL"] = more.pop("leads_to", "")
    return found | more


VISIT = [
    entry(0, "/"),
    entry(0.5, "/static/shop.css", kind="text/css"),
    entry(0.6, "https://tracker.example/pixel", kind="text/html"),
    entry(4.5, "/product/4711?ref=mail&utm_source=x&sid=abc123abc123"),
    entry(10, "/basket", "POST", form={"product": "vesper", "csrf_token": CSRF}, leads_to="/basket"),
    entry(10.5, "/basket"),
    entry(11, f"/basket/{SESSION}/view"),
    entry(20, "/checkout", "POST", form={
        "email": "jo%40shop.example", "name": "Jo+Doe", "delivery": "parcel", "note": "ring twice, please",
        "number": "4111111111111111",
    }, leads_to=f"{SHOP}/thanks/881"),
    entry(20.6, "/thanks/881"),
    entry(30, f"/thanks/881?again={CSRF}"),
]  # fmt: skip


def session(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"log": {"entries": list(entries)}}


class Person:
    """Lives a journey and keeps what it did."""

    def __init__(self) -> None:
        self.chance = Random(1)
        self.did: list[Any] = []

    def page(self, name: str, path: str, form: dict[str, str] | None = None) -> None:
        self.did.append((name, path, form))

    def think(self, factor: float = 1.0) -> None:
        self.did.append(round(factor * 8, 1))


def lived(text: str, name: str = "recorded") -> tuple[str, list[Any]]:
    """What a written journey returns, and what it does; its import of the kit is left out."""
    space: dict[str, Any] = {"Shopper": object}
    exec(text.replace("from loadtest.shopper import Shopper\n", ""), space)
    person = Person()
    return space[name](person), person.did


def test_pages_stay_with_their_think_times() -> None:
    """Pages in order with pauses; files, other hosts and the targets of redirects are dropped and counted."""
    found = recording(session(*VISIT), "x.har")
    assert found.host == "shop.example"
    assert found.dropped == {"other hosts": 1, "no page": 1, "redirects": 2}
    assert [(step.name, step.method, step.think) for step in found.steps] == [
        ("home", "GET", 0.0), ("product", "GET", 4.0), ("basket", "POST", 5.0), ("basket", "GET", 0.0),
        ("checkout", "POST", 8.5), ("thanks", "GET", 8.9),
    ]  # fmt: skip


def test_the_journey_runs() -> None:
    """What is written is a function of a shopper that opens the same pages, and ends in an order."""
    outcome, did = lived(journey(recording(session(*VISIT), "x.har")))
    assert outcome == "bought"
    assert did[:5] == [
        ("home", "/", None), 4.0,
        ("product", f"/product/4711?ref=mail&utm_source=x&sid={PLACEHOLDER}", None), 5.0,
        ("basket", "/basket", {"product": "vesper", "csrf_token": PLACEHOLDER}),
    ]  # fmt: skip
    assert did[-3][2] == {
        "email": "shopper@example.com", "name": PLACEHOLDER, "delivery": "parcel", "note": PLACEHOLDER,
        "number": PLACEHOLDER,
    }  # fmt: skip


def test_ids_are_marked_and_can_be_added_to() -> None:
    """An id in a path is taken from a list at the top of the file, one list a page."""
    visits = [
        entry(0, "/product/4711"),
        entry(2, "/product/4712"),
        entry(4, "/p/1b4e28ba-2fa1-11d2-883f-0016d3cca427/x"),
    ]
    text = journey(recording(session(*visits), "x.har"))
    assert "PRODUCT_IDS = ('4711', '4712',)" in text
    assert "P_IDS = ('1b4e28ba-2fa1-11d2-883f-0016d3cca427',)" in text
    assert {did[1] for did in lived(text)[1] if isinstance(did, tuple)} <= {
        "/product/4711", "/product/4712", "/p/1b4e28ba-2fa1-11d2-883f-0016d3cca427/x",
    }  # fmt: skip


def test_no_secret_is_written() -> None:
    """Cookies, authorization, tokens, wherever they come again, and what was typed are left out."""
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    visits = [
        *VISIT,
        entry(40, f"/reset/{jwt}"),
        entry(41, "/unsubscribe/jo@shop.example"),
        entry(42, "/go?to=abcdef-bearer-value&x=Zm9vYmFyMTIzNDU2Nzg5MEE5"),
    ]
    text = journey(recording(session(*visits), "x.har"))
    for secret in (
        SESSION,
        CSRF,
        jwt,
        "bearer-value",
        "jo@",
        "jo%40",
        "Doe",
        "ring",
        "4111",
        "abc123abc123",
        "Zm9v",
    ):
        assert secret not in text, secret
    assert f"/reset/{PLACEHOLDER}" in text


def test_a_session_ends_in_an_order_where_its_last_form_leads_to_thanks() -> None:
    """A page of thanks counts whether it was opened or only led to; a basket at the end is no order."""
    assert recording(session(*VISIT[:-1]), "x.har").bought
    assert not recording(session(*VISIT[:6]), "x.har").bought


def test_words_of_the_recording_are_never_code() -> None:
    """Quotes, braces and line ends in addresses stay inside strings."""
    nasty = [entry(0, "/a'+__import__('os')+'/{1}\n/\"\"\"?q='};x={'"), entry(1, "/{0}/%7B9%7D/7", "POST")]
    text = journey(recording(session(*nasty), "x.har"))
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} <= {
        "person.page",
        "person.think",
        "person.chance.choice",
    }
    assert lived(text)[0] == "left"


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "no log.entries"),
        ({"log": {"entries": 3}}, "no log.entries"),
        (session(), "no page of any host"),
        (session(entry(0, "/x.png", kind="image/png")), "no page of any host"),
        (session({"request": 1}, {"response": {}}), "no page of any host"),
    ],
)
def test_what_is_no_session_is_refused(document: Any, what: str) -> None:
    """A document without a page of a host says so, and how to record one."""
    with pytest.raises(InputError, match=what):
        recording(document, "x.har")


def test_another_host_can_be_chosen() -> None:
    """A session that begins elsewhere is read for the named host."""
    assert recording(session(*VISIT), "x.har", "tracker.example").steps[0].path == "/pixel"
    with pytest.raises(InputError, match=r"no page of other\.example"):
        recording(session(*VISIT), "x.har", "other.example")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "startedDateTime": st.just("2025-11-28T09:00:00Z") | VALUES,
                "request": st.fixed_dictionaries(
                    {
                        "method": st.sampled_from(["GET", "POST"]) | VALUES,
                        "url": st.text(max_size=20).map(lambda text: f"{SHOP}/{text}") | VALUES,
                    },
                    optional={
                        "postData": st.fixed_dictionaries(
                            {
                                "mimeType": st.just("application/x-www-form-urlencoded"),
                                "text": st.text(max_size=20),
                            }
                        )
                        | VALUES,
                        "headers": VALUES,
                    },
                ),
                "response": st.fixed_dictionaries(
                    {"content": st.just({"mimeType": "text/html"})}, optional={"redirectURL": VALUES}
                )
                | VALUES,
            },
            optional={"time": VALUES},
        )
        | VALUES,
        max_size=4,
    )
)
def test_any_recording_is_a_journey_or_refused(entries: list[Any]) -> None:
    """Whatever a file holds, the answer is a journey that runs, or a clear error."""
    try:
        found = recording({"log": {"entries": entries}}, "x.har")
    except InputError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right
        return
    assert lived(journey(found))[0] in ("bought", "left")


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Bytes that are no recording are a clear error."""
    path = tmp_path_factory.getbasetemp() / "any.har"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_har(path)


def test_the_command_writes_a_module(tmp_path: Path) -> None:
    """`from-har` writes the journey, tells what was dropped, and never replaces a file."""
    app = typer.Typer()
    mount(app, "")
    har, module = tmp_path / "x.har", tmp_path / "mine.py"
    har.write_text(json.dumps(session(*VISIT)))
    first, second = (
        CliRunner().invoke(app, ["from-har", str(har), "--name", "visit", "--write", str(module)])
        for _ in range(2)
    )
    assert (first.exit_code, second.exit_code) == (0, 2)
    assert "6 pages of shop.example; dropped: 1 other hosts, 1 no page, 2 redirects" in first.output
    assert lived(module.read_text(), "visit")[0] == "bought"
    assert CliRunner().invoke(app, ["from-har", str(har), "--name", "class"]).exit_code == 2
