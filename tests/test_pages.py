import gzip
import json
import os
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import escape, unescape
from itertools import product
from pathlib import Path
from string import Formatter

import pytest
from babel.numbers import format_decimal
from hypothesis import given
from hypothesis import strategies as st

from waitingroom import branding, locales
from waitingroom.challenge import Seal
from waitingroom.documents import cloudflare_json, problem_json, status_json
from waitingroom.pages import (
    Form,
    Page,
    Pages,
    Trouble,
    negotiate,
)
from waitingroom.room import Method, Room, State, Status
from waitingroom.stencil import Stencil, hole

ROOM = Room(name="sale", upstream="http://127.0.0.1:8000", shop_name="Lumen & Oak")
STATUS = Status("sale", State.WAITING, position=214, low=150, high=290, poll_after=5, updated=1_790_000_000)
LANGUAGES = locales.load()
SIZE_LIMIT = 14 * 1024


@pytest.fixture(scope="module")
def pages() -> Pages:
    """The pages of one room."""
    return Pages([ROOM])


def shown(
    pages: Pages, status: Status = STATUS, room: Room = ROOM, languages: str = "en", host: str = "a.example"
) -> str:
    """Text of a waiting page."""
    return pages.render(room, status, host=host, languages=languages, accepts_gzip=False).body.decode()


def header(page: Page, name: bytes) -> str:
    """The one value of a header."""
    (value,) = [value for key, value in page.headers if key == name]
    return value.decode()


def visible(html: str) -> str:
    """What is left of a page without styles, scripts, hidden parts and tags."""
    html = re.sub(r"<(style|script).*?</\1>|<div [^>]*hidden>.*?</div>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@pytest.mark.parametrize(("state", "tag"), [*product(State, LANGUAGES)])
def test_every_state_renders_in_every_language(pages: Pages, state: State, tag: str) -> None:
    """Whatever a visitor is told, there is a small, complete page for it in their language."""
    status = replace(STATUS, state=state, until=100 if state is State.YOUR_TURN else None)
    language = LANGUAGES[tag]
    page = pages.render(ROOM, status, host="a.example", languages=tag, accepts_gzip=True)
    html = gzip.decompress(page.body).decode()
    title = language.say("your_turn_title" if state is State.INSIDE else f"{state}_title")
    assert f'<html lang="{language.tag}" dir="{language.direction}">' in html
    assert escape(title) in html.split("<title>")[1].split("</title>")[0]
    assert escape(title) in visible(html)
    assert "\0" not in html
    assert len(page.body) <= SIZE_LIMIT
    assert header(page, b"Waiting-Room") == state
    assert header(page, b"Content-Language") == language.tag


@pytest.mark.parametrize(("trouble", "tag"), [*product(Trouble, LANGUAGES)])
def test_every_trouble_renders_in_every_language(pages: Pages, trouble: Trouble, tag: str) -> None:
    """Whatever goes wrong, there is a small, calm page for it in the visitor's language."""
    page = pages.render_error(None, trouble, host="a.example", languages=tag, accepts_gzip=True)
    html = gzip.decompress(page.body).decode()
    assert escape(LANGUAGES[tag].say(f"{trouble}_title")) in visible(html)
    assert "\0" not in html
    assert len(page.body) <= SIZE_LIMIT


def test_waiting_page_is_true_without_javascript(pages: Pages) -> None:
    """The page says place, people ahead, wait and time, and refreshes itself, before any script runs."""
    html = shown(pages)
    for text in (
        "214",
        "213 people ahead of you",
        "2 to 5 minutes",
        "14:13:20 UTC",
        "kept on this device for 24 hours",
    ):
        assert text in visible(html)
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in html
    assert "<title>214 · You are in line · Lumen &amp; Oak</title>" in html


def test_refresh_is_never_faster_than_two_seconds(pages: Pages) -> None:
    """A visitor without JavaScript near the front does not reload in a frenzy."""
    page = pages.render(ROOM, replace(STATUS, poll_after=0.4), host="", languages="", accepts_gzip=False)
    assert b'http-equiv="refresh" content="2"' in page.body
    assert header(page, b"Retry-After") == "2"


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("/drop?a=1&b=2", "5;url=/drop?a=1&amp;b=2"),
        ('/"><script>', "5;url=/&quot;&gt;&lt;script&gt;"),
        ("//evil.example/", "5"),
        ("/\\evil.example/", "5"),
        ("javascript:alert(1)", "5"),
        ("", "5"),
    ],
)
def test_refresh_stays_on_this_host(pages: Pages, target: str, content: str) -> None:
    """The refresh leads to what the visitor asked for, and nowhere else."""
    page = pages.render(ROOM, STATUS, host="", languages="", accepts_gzip=False, target=target)
    assert f'<meta http-equiv="refresh" content="{content}">' in page.body.decode()


def test_missed_turn_offers_to_say_here(pages: Pages) -> None:
    """Somebody who missed their turn is told that the place is kept, and how to say that they are back."""
    html = shown(pages, replace(STATUS, missed=True, position=1))
    assert "Your turn came while you were away" in visible(html)
    assert 'href="/.waitingroom/here?room=sale"' in html
    assert "You are next" in visible(html)


def test_a_storefront_in_trouble_is_the_reason_for_the_wait(pages: Pages) -> None:
    """While fewer people go in, the page says why, and that the place is kept."""
    html = shown(pages, replace(STATUS, slowed=True, position=3))
    assert "The shop is having a hard time right now, so fewer people go in." in visible(html)
    assert "It is busy right now" not in visible(html)


def test_unknown_place_is_said_so(pages: Pages) -> None:
    """Before the first place is known, the page shows no number."""
    html = shown(pages, replace(STATUS, position=None, low=None, high=None))
    assert "Your place is being worked out." in visible(html)
    assert "Not known yet" in visible(html)


def test_leaving_asks_first_without_javascript(pages: Pages) -> None:
    """The form that gives up the place stands behind a disclosure that says what is lost."""
    html = shown(pages)
    disclosure = html.split("<details>")[1].split("</details>")[0]
    assert '<form method="post" action="/.waitingroom/leave?room=sale">' in disclosure
    assert "You give up your place" in disclosure


def test_ended_page_leads_where_it_is_told(pages: Pages) -> None:
    """On the page after leaving, joining again leads back to the shop, not to the address of the form."""
    ended = replace(STATUS, state=State.ENDED, position=None)
    page = pages.render(ROOM, ended, host="", languages="", accepts_gzip=False, again='/drop?a=1&b="')
    assert b'href="/drop?a=1&amp;b=&quot;"' in page.body
    assert b"http-equiv" not in page.body


@pytest.mark.parametrize("name", ["host", "shop_name", "message"])
def test_hostile_text_stays_text(name: str) -> None:
    """No host, shop name or message of whatever content becomes markup."""
    hostile = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    room = replace(ROOM, shop_name=hostile if name == "shop_name" else "")
    status = replace(STATUS, message=hostile if name == "message" else "")
    html = shown(Pages([room]), status, room, host=hostile if name == "host" else "a.example")
    assert hostile in unescape(html.split("<script>")[0])
    assert "<script>alert" not in html
    assert "<img" not in html


def test_policy_names_the_hash_of_what_is_inline(pages: Pages) -> None:
    """The strict policy lets exactly the page's own style and script through."""
    page = pages.render(ROOM, STATUS, host="", languages="", accepts_gzip=False)
    policy = header(page, b"Content-Security-Policy")
    for element in ("style", "script"):
        (inline,) = re.findall(rf"<{element}>(.*?)</{element}>", page.body.decode(), flags=re.DOTALL)
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|style=", page.body.decode().split("<body>")[1].split("<script>")[0])


def test_page_is_for_nobody_else(pages: Pages) -> None:
    """No cache keeps a waiting page, no search engine lists it."""
    page = pages.render(ROOM, STATUS, host="", languages="", accepts_gzip=True)
    assert header(page, b"Cache-Control") == "no-store"
    assert header(page, b"X-Robots-Tag") == "noindex"
    assert header(page, b"Referrer-Policy") == "same-origin"
    assert header(page, b"Content-Encoding") == "gzip"


def test_change_of_room_shows_at_once(pages: Pages) -> None:
    """A page that is rendered with a changed room has the room's new look."""
    assert "Night Market" in shown(pages, room=replace(ROOM, version=7, shop_name="Night Market"))
    assert "Lumen" in shown(pages)


def test_failed_change_keeps_the_old_look() -> None:
    """A colour that cannot be read is refused, and the room goes on with the one that it had."""
    pages = Pages([ROOM])
    with pytest.raises(ValueError, match="accent_color #ffdd00 has a contrast of"):
        pages.update(replace(ROOM, accent_color="#ffdd00"))
    assert "#0b57d0" in shown(pages)


def test_error_page_asks_again_only_when_told(pages: Pages) -> None:
    """The page after a failed GET reloads itself; the page after a failed POST never does."""
    again = pages.render_error(
        ROOM, Trouble.ORIGIN_DOWN, host="", languages="", accepts_gzip=False, retry_after=10
    )
    assert b'<noscript><meta http-equiv="refresh" content="10"></noscript>' in again.body
    assert header(again, b"Retry-After") == "10"
    never = pages.render_error(ROOM, Trouble.NOT_SENT, host="", languages="", accepts_gzip=False)
    assert b"http-equiv" not in never.body
    assert b"<script" not in never.body


HTML = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("method", "accept", "dest", "mode", "purpose", "form"),
    [
        (b"GET", HTML, b"document", b"navigate", b"", Form.PAGE),
        (b"HEAD", HTML, b"", b"", b"", Form.PAGE),
        (b"GET", HTML, b"", b"", b"", Form.PAGE),
        (b"GET", HTML, b"iframe", b"navigate", b"", Form.PAGE),
        (b"GET", b"application/json", b"", b"", b"", Form.JSON),
        (b"GET", b"application/json, text/plain, */*", b"empty", b"cors", b"", Form.JSON),
        (b"GET", b"*/*", b"empty", b"cors", b"", Form.PROBLEM),
        (b"GET", HTML, b"empty", b"same-origin", b"", Form.PROBLEM),
        (b"GET", b"image/avif,*/*;q=0.8", b"image", b"no-cors", b"", Form.PROBLEM),
        (b"GET", b"*/*", b"script", b"no-cors", b"", Form.PROBLEM),
        (b"GET", b"*/*", b"", b"", b"", Form.PROBLEM),
        (b"GET", b"", b"", b"", b"", Form.PROBLEM),
        (b"GET", HTML, b"embed", b"navigate", b"", Form.PROBLEM),
        (b"GET", HTML, b"document", b"navigate", b"prefetch;prerender", Form.PROBLEM),
        (b"POST", HTML, b"document", b"navigate", b"", Form.FORM),
        (b"POST", HTML, b"", b"", b"", Form.FORM),
        (b"POST", b"application/json", b"empty", b"cors", b"", Form.PROBLEM),
        (b"DELETE", b"*/*", b"", b"", b"", Form.PROBLEM),
    ],
)
def test_answer_fits_what_was_asked_for(
    method: bytes, accept: bytes, dest: bytes, mode: bytes, purpose: bytes, form: Form
) -> None:
    """A navigation gets a page, an app the document, an asset or call a problem, a sent form its own page."""
    assert negotiate(method, accept, dest=dest, mode=mode, purpose=purpose) is form


def test_status_document_has_the_agreed_fields() -> None:
    """The document has its eight fields, and `until` and `missed` only where they mean something."""
    assert json.loads(status_json(STATUS)) == {
        "room": "sale",
        "state": "waiting",
        "position": 214,
        "ahead": 213,
        "wait": {"low": 150, "high": 290},
        "poll_after": 5,
        "message": "",
        "updated": 1_790_000_000,
    }
    turn = json.loads(status_json(Status("sale", State.YOUR_TURN, until=118.9)))
    assert (turn["until"], turn["wait"], turn["position"]) == (118, None, None)
    assert json.loads(status_json(replace(STATUS, missed=True)))["missed"] is True
    assert json.loads(status_json(replace(STATUS, slowed=True)))["slowed"] is True
    assert len(status_json(STATUS)) < 300


def test_problem_is_a_problem_with_the_document_in_it() -> None:
    """A refused call learns from one object that it was too early, and when to come back."""
    problem = json.loads(problem_json(STATUS))
    assert (problem["status"], problem["title"], problem["type"]) == (429, "Too Many Requests", "about:blank")
    assert problem.items() >= json.loads(status_json(STATUS)).items()


def test_cloudflare_clients_find_their_fields() -> None:
    """A client written for Cloudflare's JSON answer finds every field, with the type that it expects."""
    document = json.loads(cloudflare_json(ROOM, replace(STATUS, updated=1_790_000_000.25)))
    theirs = document["cfWaitingRoom"]
    assert document.items() >= json.loads(status_json(STATUS)).items()
    assert len(theirs) == 25
    assert theirs["inWaitingRoom"] is True
    assert (theirs["waitTimeKnown"], theirs["waitTime"], theirs["waitTimeFormatted"]) == (
        True,
        4,
        "4 minutes",
    )
    assert theirs["lastUpdated"] == "2026-09-21T14:13:20.250Z"
    assert (theirs["refreshIntervalSeconds"], theirs["queueingMethod"], theirs["isFIFOQueue"]) == (
        5,
        "fifo",
        True,
    )


def test_cloudflare_fields_tell_unknown_waits_and_full_rooms() -> None:
    """Where nothing is known, nothing is claimed; a room that refuses says so."""
    room = replace(ROOM, queueing_method=Method.REJECT)
    theirs = json.loads(cloudflare_json(room, Status("sale", State.FULL)))["cfWaitingRoom"]
    assert (theirs["waitTimeKnown"], theirs["waitTime"], theirs["waitTimeFormatted"]) == (
        False,
        0,
        "unavailable",
    )
    assert (theirs["queueIsFull"], theirs["isRejectQueue"], theirs["refreshIntervalSeconds"]) == (
        True,
        True,
        0,
    )


@pytest.mark.parametrize(
    ("accept", "tag"),
    [
        ("de", "de"),
        ("de-AT, en;q=0.8", "de"),
        ("zh-Hant-TW, fr;q=0.4, es;q=0.7", "es"),
        ("EN-gb", "en"),
        ("pl;q=0, fr;q=0.1", "fr"),
        ("*", "en"),
        ("", "en"),
        ("xx-de", "en"),
        ("de;q=nonsense, ar", "ar"),
        (";;;,=,\xff, ja ; q=0.5", "ja"),
        (b"ja\xff, fr", "fr"),
    ],
)
def test_language_follows_the_visitors_wishes(accept: str | bytes, tag: str) -> None:
    """The best of our languages is found by quality and prefix; what cannot be read is passed over."""
    assert locales.choose(accept, LANGUAGES).tag == tag


@given(
    st.one_of(
        st.text(), st.binary(), st.lists(st.from_regex(r"[a-z]{1,3}(-[A-Z]{2})?;q=[01]\.\d")).map(",".join)
    )
)
def test_no_language_header_is_an_error(accept: str | bytes) -> None:
    """Whatever is sent as `Accept-Language`, there is a language."""
    assert locales.choose(accept, LANGUAGES) in LANGUAGES.values()


def placeholders(text: str) -> set[str]:
    """Names in braces."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("tag", LANGUAGES)
def test_language_is_complete(tag: str) -> None:
    """Each language has the texts of English, in each of its plural categories, with the same numbers."""
    english, language = LANGUAGES["en"], LANGUAGES[tag]
    assert language.texts.keys() == english.texts.keys()
    categories = set(language._locale.plural_form.tags) | {"other"}
    for key, text in language.texts.items():
        wanted = english.texts[key]
        if isinstance(wanted, str):
            assert isinstance(text, str)
            assert placeholders(text) == placeholders(wanted), key
            continue
        assert not isinstance(text, str)
        assert text.keys() == categories, key
        for category, form in text.items():
            # "one" and "two" may be words; a range in them is then exact.
            loose = category in {"zero", "one", "two"}
            assert placeholders(form) <= placeholders(wanted["other"]), (key, category)
            assert loose or placeholders(form) == placeholders(wanted["other"]), (key, category)


@pytest.mark.parametrize("tag", LANGUAGES)
def test_numbers_are_grouped_as_the_language_does(tag: str) -> None:
    """Positions of any size are written as Babel, which knows the languages, would write them."""
    for number in (*range(0, 12_000, 7), 123_456, 1_234_567, 10**9):
        assert LANGUAGES[tag].number(number) == format_decimal(number, locale=tag, numbering_system="latn")


@pytest.mark.parametrize(
    ("tag", "number", "text"),
    [
        ("en", 1, "1 person ahead of you"),
        ("en", 1234, "1,234 people ahead of you"),
        ("de", 1234, "1.234 Personen vor Ihnen"),
        ("fr", 1, "1 personne devant vous"),
        ("pl", 2, "2 osoby przed Tobą"),
        ("pl", 5, "5 osób przed Tobą"),
        ("pl", 22, "22 osoby przed Tobą"),
        ("ar", 2, "شخصان أمامك"),
        ("ar", 3, "3 أشخاص أمامك"),
        ("ar", 11, "11 شخصًا أمامك"),
        ("ar", 100, "100 شخص أمامك"),
        ("ja", 7, "お客様の前に7人"),
    ],
)
def test_people_are_counted_as_the_language_counts(tag: str, number: int, text: str) -> None:
    """Plural forms and digit groups are those of the language."""
    assert LANGUAGES[tag].count("ahead", number) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (None, None, "Not known yet"),
        (0, 45, "Less than a minute"),
        (0, 61, "Up to 2 minutes"),
        (59, 61, "Up to 2 minutes"),
        (120, 120, "1 to 2 minutes"),
        (150, 290, "2 to 5 minutes"),
        (1500, 2280, "25 to 40 minutes"),
        (3500, 9000, "55 to 150 minutes"),
        (7300, 12000, "2 to 4 hours"),
        (3000, 20000, "Up to 6 hours"),
    ],
)
def test_wait_is_an_honest_range(low: float | None, high: float | None, text: str) -> None:
    """The range shown holds the range estimated, in the largest unit that does."""
    assert LANGUAGES["en"].wait(low, high) == text


@given(st.floats(0, 90_000), st.floats(0, 90_000), st.sampled_from(sorted(LANGUAGES)))
def test_no_wait_is_shorter_on_the_page(one: float, two: float, tag: str) -> None:
    """Rounding never promises less than the longest wait nor more than the shortest."""
    low, high = sorted((one, two))
    numbers = [int(digits) for digits in re.findall(r"\d+", LANGUAGES["en"].wait(low, high))]
    unit = 3600 if "hour" in LANGUAGES["en"].wait(low, high) else 60
    assert not numbers or (numbers[-1] * unit >= high and (len(numbers) == 1 or numbers[0] * unit <= low))
    assert "{" not in LANGUAGES[tag].wait(low, high)


def test_contrast_is_that_of_the_guidelines() -> None:
    """The ratio agrees with known values, whichever colour comes first."""
    assert branding.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert branding.contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)


@given(st.integers(0, 0xFFFFFF).map("#{:06x}".format))
def test_every_colour_passes_or_is_refused_with_one_that_does(accent: str) -> None:
    """Each theme reads at 4.5:1, text on buttons too; a refused colour comes with the nearest that passes."""
    try:
        palette = branding.palette(accent)
    except ValueError as error:
        palette = branding.palette(str(error)[-7:])
    assert branding.contrast(palette.light, branding.LIGHT) >= 4.5
    assert branding.contrast(palette.dark, branding.DARK) >= 4.5
    assert branding.contrast(palette.light, palette.on_light) >= 4.5
    assert branding.contrast(palette.dark, palette.on_dark) >= 4.5


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle r="4"/></svg>'


@pytest.mark.parametrize(
    ("data", "kind"), [(SVG, "svg+xml"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF....WEBP", "webp")]
)
def test_logo_goes_into_the_page(tmp_path: Path, data: bytes, kind: str) -> None:
    """A logo of each allowed type is part of the page, with the shop's name for those who do not see it."""
    (logo := tmp_path / "logo").write_bytes(data)
    room = replace(ROOM, shop_logo=str(logo))
    html = shown(Pages([room]), room=room)
    assert f"url(data:image/{kind};base64,{b64encode(data).decode()})" in html
    assert '<span class="logo" role="img" aria-label="Lumen &amp; Oak"></span>' in html


def test_page_with_the_largest_logo_is_small_enough(tmp_path: Path) -> None:
    """Even with a logo at its limit the page comes in one response of at most 14 kB."""
    noise = b"".join(sha256(bytes([n])).digest() for n in range(256))[: branding.LOGO_LIMIT - 8]
    (logo := tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + noise)
    room = replace(ROOM, shop_logo=str(logo))
    pages = Pages([room])
    sizes = {
        t: len(pages.render(room, STATUS, host="", languages=t, accepts_gzip=True).body) for t in LANGUAGES
    }
    assert max(sizes.values()) <= SIZE_LIMIT, sizes


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GIF89a", "neither SVG, PNG nor WebP"),
        (SVG + b" " * 9000, "more than the 6144 bytes"),
        (SVG.replace(b"<circle", b"<script>alert(1)</script><circle"), "run no script"),
        (SVG.replace(b"<circle", b'<circle onclick="x()"'), "run no script"),
        (SVG.replace(b"<circle", b'<image href="https://x.example/a.png"/><circle'), "load nothing"),
        (None, "cannot be read"),
    ],
)
def test_unfit_logo_is_refused_with_the_reason(tmp_path: Path, data: bytes | None, complaint: str) -> None:
    """A logo that is missing, too large, of another type or active is an error that says which."""
    logo = tmp_path / "logo.svg"
    if data is not None:
        logo.write_bytes(data)
    with pytest.raises(ValueError, match=complaint):
        branding.logo_url(str(logo))


def test_logo_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """What is no file is refused at once; opening it would wait for whoever writes there."""
    pipe = tmp_path / "logo.svg"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is not a file"):
        branding.logo_url(str(pipe))


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.sampled_from("abc"))
    ),
    st.integers(0, 70_000),
)
def test_gzip_stream_is_the_filled_text(parts: list[tuple[str, str]], size: int) -> None:
    """Whatever text with whatever holes: the assembled stream unpacks to the filled text."""
    stencil = Stencil("".join(text * 40 + hole(name) for text, name in parts) + "end" * 200)
    values = {"a": b"x" * size, "b": b"", "c": "ü".encode()}
    assert gzip.decompress(stencil.gzip(values)) == stencil.fill(values)


CHALLENGE = Seal([b"k" * 32]).challenge("sale", "c00002", 16, 1_790_000_000_000, b"n" * 12)


def challenged(pages: Pages, tag: str = "en", room: Room = ROOM, target: str = "/drop") -> Page:
    """The page that has a newcomer's browser show that it is one."""
    about = {"host": "a.example", "languages": tag, "accepts_gzip": True, "target": target}
    return pages.render_challenge(room, CHALLENGE, 10, **about)  # type: ignore[arg-type]  # keywords of each type


@pytest.mark.parametrize("tag", LANGUAGES)
def test_the_challenge_renders_in_every_language(pages: Pages, tag: str) -> None:
    """There is a small, complete page for a challenged newcomer in their language, true without scripts."""
    page = challenged(pages, tag)
    html = gzip.decompress(page.body).decode()
    language = LANGUAGES[tag]
    for text in (*map(language.say, ("challenge_title", "challenge_lead", "challenge_button")),):
        assert escape(text) in visible(html)
    assert escape(language.count("challenge_delay", 10)) in visible(html)
    assert '<noscript><meta http-equiv="refresh" content="10;url=/drop"></noscript>' in html
    assert f'method="post" action="/.waitingroom/join?room=sale&amp;proof={CHALLENGE.text}"' in html
    assert "\0" not in html
    assert len(page.body) <= SIZE_LIMIT
    assert header(page, b"Waiting-Room") == "challenge"
    assert header(page, b"Retry-After") == "10"


def test_the_challenge_with_the_largest_logo_is_small_enough(tmp_path: Path) -> None:
    """Even with a logo at its limit the page comes in one response of at most 14 kB."""
    noise = b"".join(sha256(bytes([n])).digest() for n in range(256))[: branding.LOGO_LIMIT - 8]
    (logo := tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + noise)
    room = replace(ROOM, shop_logo=str(logo))
    pages = Pages([room])
    assert max(len(challenged(pages, tag, room).body) for tag in LANGUAGES) <= SIZE_LIMIT


def test_the_challenge_runs_its_own_script_alone(pages: Pages) -> None:
    """The strict policy names the hash of this page's script, which is not the waiting page's."""
    page = challenged(pages)
    (script,) = re.findall(r"<script>(.*?)</script>", gzip.decompress(page.body).decode(), flags=re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = header(page, b"Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "form-action 'self'" in policy
    assert digest not in header(
        pages.render(ROOM, STATUS, host="", languages="", accepts_gzip=False), b"Content-Security-Policy"
    )
