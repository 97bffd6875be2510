"""Shoppers and their browsers, against a server that answers what the protocol, or a fault, says."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from loadtest import journeys
from loadtest.browser import Browser, Site, Unanswered
from loadtest.grammar import Source
from loadtest.record import Record, doubts
from loadtest.results import Generator, Results, Story
from loadtest.scenario import Scenario, parse
from loadtest.shopper import Shopper

TEXT = """
name = "one"
target = "http://{address}"
[[arrivals]]
curve = "constant"
rate = 1
duration = "1s"
[shoppers]
think_median = "1ms"
patience_scale = "{patience}"
patience_shape = 20
page_patience = "500ms"
away = "50ms"
habits = {{ {habit} = 1 }}
[room]
name = "sale"
"""
SHOP = ("200 OK", "", "a page of the shop")
GONE = ("502 Bad Gateway", "", "")


def told(state: str, seconds: float = 0.01) -> tuple[str, str, str]:
    """A waiting page."""
    return "200 OK", f"Waiting-Room: {state}\r\nRetry-After: {seconds}\r\n", '<main data-room="sale">'


def status(state: str, position: int | None = None, **more: object) -> tuple[str, str, str]:
    """A status document."""
    document = {
        "state": state,
        "position": position,
        "poll_after": 0.01,
        "wait": {"low": 1, "high": 2},
        **more,
    }
    return "200 OK", "Content-Type: application/json\r\n", json.dumps(document)


Answer = tuple[str, str, str]


@dataclass
class Script:
    """A server that gives its answers in turn, the last again and again; pages and states have their own."""

    pages: list[Answer]
    states: list[Answer] = field(default_factory=lambda: [status("your_turn", until=0)])
    asked: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, head: str) -> Answer | None:
        self.asked.append(" ".join(head.split(" ", 2)[:2]))
        self.cookies += [line[8:] for line in head.split("\r\n") if line.startswith("Cookie: ")]
        path = self.asked[-1].split(" ")[1]
        if path.startswith(("/.waitingroom/here", "/.waitingroom/leave")):
            return "303 See Other", "Location: /\r\n", ""
        queue = self.states if path.startswith("/.waitingroom/status") else self.pages
        return queue.pop(0) if len(queue) > 1 else queue[0]


def serve(listener: socket.socket, script: Script) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=converse, args=(client, script), daemon=True).start()


def converse(client: socket.socket, script: Script) -> None:
    with client:
        data = b""
        while chunk := client.recv(65536):
            data += chunk
            while b"\r\n\r\n" in data:
                head, _, data = data.partition(b"\r\n\r\n")
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")),
                    0,
                )
                while len(data) < length:
                    data += client.recv(65536)
                data = data[length:]
                answer = script.answer(head.decode())
                if answer is None:
                    return
                first, lines, body = answer
                client.sendall(
                    f"HTTP/1.1 {first}\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )


@contextmanager
def scripted(*pages: Answer, states: list[Answer] | None = None) -> Iterator[Script]:
    script = Script(list(pages))
    if states is not None:
        script.states = states
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script.address = "{}:{}".format(*listener.getsockname())
        thread = threading.Thread(target=serve, args=(listener, script), daemon=True)
        thread.start()
        try:
            yield script
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at "it is your turn" for three seconds in a test."""
    monkeypatch.setattr("loadtest.waiting._REACTION", 0.01)
    monkeypatch.setattr("loadtest.shopper._RELOAD", 0.01)


def scene(script: Script, habit: str = "patient", patience: str = "10s") -> Scenario:
    return parse(Source("x", TEXT.format(address=script.address, habit=habit, patience=patience)))


def live(
    script: Script,
    habit: str = "patient",
    patience: str = "10s",
    journey: Callable[[Shopper], str] | None = None,
) -> tuple[Story, Record]:
    """One shopper who sees one page and leaves; what became of it."""
    record = Record()
    scenario = scene(script, habit, patience)
    zero = time.monotonic()
    person = Shopper(0, 0.0, scenario, Site.find(scenario.target), record, zero)
    person.live(journey or (lambda person: str(person.page("home", "/").status and "left")))
    assert (record.waiting, record.inside, record.present) == (0, 0, 0)
    (story,) = record.stories
    return story, record


def failures(record: Record) -> dict[str, int]:
    return record.results({}, 0, 1).failures


def test_someone_waits_and_enters() -> None:
    """Told to wait, they ask when they were told to, and navigate when it is their turn."""
    states = [status("waiting", 3), status("waiting", 2), status("your_turn", until=5)]
    with scripted(told("waiting"), SHOP, states=states) as script:
        story, record = live(script)
    assert script.asked == [
        "GET /",
        "GET /.waitingroom/status?room=sale",
        "GET /.waitingroom/status?room=sale&shown=3",
        "GET /.waitingroom/status?room=sale&shown=2",
        "GET /",
    ]
    assert (story.outcome, story.positions, story.number, story.told) == ("left", (3, 2), 3, (1, 2))
    assert story.entered is not None
    assert story.joined is not None
    assert story.entered > story.joined
    assert failures(record) == {}


def test_a_missed_turn_is_answered_with_here() -> None:
    """Who missed their turn says that they are here, and waits on."""
    states = [status("waiting", 1, missed=True), status("waiting", 1), status("your_turn")]
    with scripted(told("waiting"), SHOP, states=states) as script:
        story, _ = live(script, patience="20s")
    assert "GET /.waitingroom/here?room=sale" in script.asked
    assert (story.outcome, story.missed) == ("left", True)


@pytest.mark.parametrize("state", ["challenge", "full"])
def test_patience_meets_a_challenge_and_a_full_room(state: str) -> None:
    """After the time that it says, the page is asked for again; nothing else is."""
    with scripted(told(state), told(state), SHOP) as script:
        story, _ = live(script)
    assert script.asked == ["GET /"] * 3
    assert story.outcome == "left"


def test_patience_ends() -> None:
    """Who gives up is on record as such, in about the time that they had."""
    with scripted(told("waiting"), states=[status("paused", 5)]) as script:
        story, _ = live(script, patience="300ms")
    assert (story.outcome, story.entered) == ("gave_up", None)
    assert 0.1 < story.ended < 1


def test_a_room_that_is_over_refuses() -> None:
    """When the room has ended, people go."""
    with scripted(told("ended")) as script:
        assert live(script, patience="20s")[0].outcome == "refused"


def test_a_place_that_is_gone_is_lost() -> None:
    """Who stood in line and has to start anew has lost their place."""
    pages = [told("waiting"), told("ended"), told("ended"), told("waiting")]
    with scripted(*pages, states=[status("waiting", 3), status("ended")]) as script:
        assert live(script, patience="20s")[0].outcome == "lost"


def test_a_room_in_trouble_is_asked_again() -> None:
    """A status that does not come is a failure of the room, and not the end of waiting."""
    states = [("500 Internal Server Error", "", ""), status("your_turn")]
    with scripted(told("waiting"), SHOP, states=states) as script:
        story, record = live(script, patience="30s")
    assert story.outcome == "left"
    assert failures(record) == {"room: status 500": 1}


def test_a_shop_that_fails_three_times_loses_a_customer() -> None:
    """A failed page is loaded three times; then people leave."""
    with scripted(GONE) as script:
        story, record = live(script)
    assert script.asked == ["GET /"] * 3
    assert (story.outcome, failures(record)) == ("failed", {"status 502": 3})


def fill_a_basket(person: Shopper) -> str:
    person.page("home", "/")
    person.page("basket", "/b", {"a": "1"})
    return "left"


def test_a_form_that_came_too_early_goes_by_the_line() -> None:
    """A form that is answered with "wait" is sent again once its sender is inside."""
    with scripted(SHOP, ("429 Too Many Requests", "", ""), told("waiting"), SHOP) as script:
        story, _ = live(script, journey=fill_a_basket)
    assert [asked for asked in script.asked if "status" not in asked] == [
        "GET /",
        "POST /b",
        "GET /",
        "GET /",
        "POST /b",
    ]
    assert story.outcome == "left"


def test_cookies_are_kept_and_dropped() -> None:
    """What a host sets comes back to it, until it says otherwise; every shopper has their own."""
    page = ("200 OK", "Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; Max-Age=60\r\n", "")
    gone = ("200 OK", "Set-Cookie: a=; Max-Age=0\r\n", "")
    with scripted(page, gone, SHOP) as script:
        site = Site.find(f"http://{script.address}")
        browser, other = Browser(site), Browser(site)
        for _ in range(3):
            browser.navigate("/")
        other.navigate("/")
        browser.close()
        other.close()
    assert script.cookies == ["a=1; b=2", "b=2"]


def test_redirects_stay_at_home() -> None:
    """A redirect on the same host is followed; one that leads elsewhere is not, whoever asks for it."""
    here, away = (
        ("303 See Other", "Location: /next?a=1#b\r\n", ""),
        ("302 Found", "Location: http://shop.example/\r\n", ""),
    )
    with scripted(here, SHOP, away) as script:
        browser = Browser(Site.find(f"http://{script.address}"))
        assert browser.navigate("/", {"a": "b"}).path == "/next?a=1"
        with pytest.raises(Unanswered, match="redirect elsewhere"):
            browser.navigate("/")
        browser.close()
    assert script.asked == ["POST /", "GET /next?a=1", "GET /"]


def test_no_answer_has_a_name() -> None:
    """Refused, too late and broken are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        origin = "http://{}:{}".format(*silent.getsockname())
        with pytest.raises(Unanswered, match="timeout"):
            Browser(Site.find(origin), patience=0.05).navigate("/")
    with pytest.raises(Unanswered, match="refused"):
        Browser(Site.find(origin)).navigate("/")
    with scripted(("what", "", "")) as script, pytest.raises(Unanswered, match="broken"):
        Browser(Site.find(f"http://{script.address}")).navigate("/")


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"),
        ("Connection: close\r\n", "abcde"),
        ("Content-Length: 5\r\n", "abcde"),
    ],
)
def test_bodies_are_read_however_they_end(lines: str, body: str) -> None:
    """Chunks, a length, or the end of the connection: the body is the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(f"HTTP/1.1 200 OK\r\n{lines}\r\n{body}".encode())

        thread = threading.Thread(target=once)
        thread.start()
        browser = Browser(Site.find("http://{}:{}".format(*listener.getsockname())))
        assert browser.navigate("/").text == "abcde"
        browser.close()
        thread.join()


def test_the_chain_is_wandered_by_its_weights() -> None:
    """People go where the chain leads, and buy where it ends in paying."""
    with scripted(SHOP) as script:
        story, record = live(script, journey=journeys.shop)
    assert story.outcome in ("bought", "left")
    pages = Counter(name for name in record.results({}, 0, 1).timings if name.startswith("page:"))
    assert pages["page:home"] == 1


def test_a_journey_that_does_not_exist_is_named() -> None:
    """A chain with an unknown page, or a journey that is nowhere, is an error before anybody comes."""
    text = TEXT.format(address="127.0.0.1:1", habit="patient", patience="1s")
    with pytest.raises(ValueError, match=r"page 'hom'\. Did you mean home\?"):
        journeys.find(parse(Source("x", f"{text}[chain]\nhom = {{ exit = 1 }}\n")))
    with pytest.raises(ValueError, match=r"page 'prodct'\. Did you mean product\?"):
        journeys.find(parse(Source("x", f"{text}[chain]\nhome = {{ prodct = 1 }}\n")))
    with pytest.raises(ValueError, match="has no journey 'nowhere:mine'"):
        journeys.find(parse(Source("x", text.replace("[shoppers]", '[shoppers]\njourney = "nowhere:mine"'))))


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        (Generator(lag_p99=0.11), "Arrivals were late: 110 ms"),
        (Generator(cpu_percent_p95=86), "The generator was busy: 86 %"),
        (Generator(dropped=1), "1 of 0 arrivals were dropped"),
        (Generator(lost_workers=1), "1 workers vanished"),
    ],
)
def test_a_generator_that_was_the_bottleneck_is_doubted(generator: Generator, says: str) -> None:
    """A run says so when it was the generator that could not keep up."""
    with scripted(SHOP) as script:
        _, record = live(script)
    good = record.results({}, 0, 1)
    assert doubts(good) == []
    assert any(
        says in doubt
        for doubt in doubts(
            Results({}, 0, 1, stories=good.stories, timings=good.timings, generator=generator)
        )
    )
    assert doubts(Results({}, 0, 1)) == ["There is no data: nobody came."]
