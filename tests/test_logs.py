"""What the log says, and what it never says."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import eventually
from waitingroom.logs import BACKLOG_LINES, LogWriter, adjust_logging, configure_logging
from waitingroom.requestlog import RequestLog, Served, path_of
from waitingroom.telemetry import Telemetry

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"

Read = Callable[[], list[dict[str, Any]]]


def a_request(**changes: Any) -> Served:
    plain = {"method": b"GET", "target": b"/shoes?size=41", "status": 200, "seconds": 0.0123, "sent": 1234}
    return Served(**{"room": "sale", "verdict": "forwarded", **plain, **changes})


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TextIO]:
    """A file to log to; the process's logging is as before afterwards."""
    handlers, level = logging.root.handlers[:], logging.root.level
    with (tmp_path / "log").open("w+") as file:
        yield file
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def lines_of(writer: LogWriter, stream: TextIO) -> list[str]:
    writer.close()
    stream.seek(0)
    return stream.read().splitlines()


def test_a_request_is_one_line_of_json(stream: TextIO) -> None:
    """The canonical line names room, verdict, method, path, status, times and size, and nothing besides."""
    writer, log = configure_logging(stream)
    log.request(a_request(origin_seconds=0.01))
    (line,) = lines_of(writer, stream)
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("timestamp"))
    assert fields == {
        "level": "info",
        "event": "request",
        "room": "sale",
        "verdict": "forwarded",
        "method": "GET",
        "path": "/shoes",
        "status": 200,
        "duration_ms": 12.3,
        "bytes": 1234,
        "origin_ms": 10.0,
    }


def test_what_is_counted_is_logged(stream: TextIO) -> None:
    """One call counts a request and writes its line; lines that were lost show in the metrics."""
    writer, log = configure_logging(stream)
    telemetry = Telemetry(["sale"], log)
    telemetry.request(a_request())
    assert b'waitingroom_requests_total{room="sale",verdict="forwarded"} 1.0\n' in telemetry.render()[0]
    assert b"waitingroom_log_lines_dropped_total 0.0\n" in telemetry.render()[0]
    writer.dropped = 3
    assert b"waitingroom_log_lines_dropped_total 3.0\n" in telemetry.render()[0]
    assert json.loads(lines_of(writer, stream)[0])["verdict"] == "forwarded"


def test_a_failed_request_is_a_warning(stream: TextIO) -> None:
    """Whoever filters by level finds the answers that were failures."""
    writer, log = configure_logging(stream)
    log.request(a_request(status=502, verdict="error"))
    assert json.loads(lines_of(writer, stream)[0])["level"] == "warning"


class Kept(LogWriter):
    """A writer that keeps its lines, so that Hypothesis need not wait for a thread."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def write(self, line: str) -> None:
        self.kept.append(line)


@given(method=st.binary(max_size=20), target=st.binary(max_size=700))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_of_a_client_break_the_line(method: bytes, target: bytes) -> None:
    """Whatever a client sends, its line is one line of valid JSON without the query."""
    writer = Kept()
    RequestLog(writer).request(a_request(method=method, target=target))
    (line,) = writer.kept
    assert line.count("\n") == 1
    assert line.isascii()
    assert json.loads(line)["path"] == path_of(target)
    assert "?" not in path_of(target)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/basket?token=abc", "/basket"),
        (b"http://ann:secret@shop.example/", "-"),
        (b"*", "-"),
        (b"/verify/" + TOKEN.encode(), "/verify/[withheld]"),
        (b"/" + b"a" * 9000, "/" + "a" * 511),
    ],
)
def test_the_path_holds_no_secret(target: bytes, path: str) -> None:
    """Neither query, nor password, nor a signed token in the path is shown; the path is bounded."""
    assert path_of(target) == path


def test_polls_are_sampled_and_say_so(stream: TextIO) -> None:
    """One poll in N is logged and carries N, so that sums stay right; nothing else is left out."""
    writer, log = configure_logging(stream, poll_sample=10)
    for _ in range(30):
        log.request(a_request(verdict="status_poll"))
    log.request(a_request())
    lines = [json.loads(line) for line in lines_of(writer, stream)]
    assert [line.get("weight") for line in lines] == [10, 10, 10, None]


def test_a_visitor_is_a_keyed_hash(stream: TextIO) -> None:
    """The same visitor has the same short name under one key, another under another, and never the id."""
    writer = LogWriter(stream)
    for key in (b"one", b"one", b"two"):
        RequestLog(writer, visitor_key=key).request(a_request(visitor="visitor-0123456789"))
    lines = lines_of(writer, stream)
    first, again, other = (json.loads(line)["visitor"] for line in lines)
    assert first == again != other
    assert len(first) == 12
    assert "0123456789" not in "".join(lines)


def test_no_secret_is_ever_written(stream: TextIO) -> None:
    """Tokens, cookies and passwords do not reach the log, by whatever way somebody hands them in."""
    writer, log = configure_logging(stream, level="debug")
    logger = structlog.get_logger()
    secrets = {"basket=hunter2", "hunter3", "hunter4", "hunter5", "hunter6", "hunter7", TOKEN}
    logger.info("cookie_read", cookie="basket=hunter2", admin_token="hunter3", signing_key="hunter4")
    logger.info("store_opened", url="redis://default:hunter5@store.example:6379/0")
    logger.info("headers_read", headers={"Cookie": "basket=hunter2", "Authorization": "Bearer hunter6"})
    logger.info("header_read", line=b"Cookie: basket=hunter2\r\n", value="Basic hunter7")
    try:
        raise ValueError(f"cannot read {TOKEN}")
    except ValueError:
        logger.exception("token_refused", text=f"wr-sale={TOKEN}")
    logging.getLogger("aiohttp").error("bad header: Authorization: Bearer %s", "hunter6")
    log.request(a_request(target=b"/x?" + TOKEN.encode()))
    text = "\n".join(lines_of(writer, stream))
    assert [secret for secret in secrets if secret in text] == []
    assert "token_refused" in text
    assert "store.example:6379" in text


def test_libraries_log_in_the_same_form(stream: TextIO) -> None:
    """A warning of asyncio is a line of JSON with level and time, like our own; its debugging is left out."""
    writer, _ = configure_logging(stream)
    logging.getLogger("asyncio").warning("Task was destroyed")
    logging.getLogger("asyncio").info("Using selector")
    (line,) = lines_of(writer, stream)
    assert json.loads(line).items() >= {"event": "Task was destroyed", "level": "warning"}.items()


def test_people_get_plain_lines(stream: TextIO) -> None:
    """At a terminal the same fields are readable text."""
    writer, log = configure_logging(stream, as_json=False)
    structlog.get_logger().warning("store_lost", room="sale")
    log.request(a_request())
    event, request = lines_of(writer, stream)
    assert "store_lost" in event
    assert "room=sale" in event
    assert "path=/shoes" in request
    assert "{" not in request


def test_a_level_leaves_the_rest_out(stream: TextIO) -> None:
    """At `warning` neither requests nor information is written."""
    writer, log = configure_logging(stream, level="warning")
    log.request(a_request())
    structlog.get_logger().info("tick_done")
    structlog.get_logger().warning("tick_late")
    (line,) = lines_of(writer, stream)
    assert json.loads(line)["event"] == "tick_late"


def test_level_and_sample_are_changed_while_it_is_written(stream: TextIO) -> None:
    """What comes after the change is judged by it, requests included."""
    writer, log = configure_logging(stream, level="warning")
    log.request(a_request(target=b"/before"))
    adjust_logging(log, "info", poll_sample=3)
    log.request(a_request(target=b"/after"))
    for _ in range(3):
        log.request(a_request(verdict="status_poll"))
    structlog.get_logger().info("said")
    adjust_logging(log, "error", poll_sample=3)
    structlog.get_logger().warning("unsaid")
    logging.getLogger("library").warning("unsaid")
    written = [json.loads(line) for line in lines_of(writer, stream)]
    assert [(line["event"], line.get("path"), line.get("weight")) for line in written] == [
        ("request", "/after", None),
        ("request", "/shoes", 3),
        ("said", None, None),
    ]


async def test_processes_that_share_a_pipe_tear_no_line() -> None:
    """However much several write at a time, each line arrives whole."""
    source, sink = os.pipe()
    received = b""

    def read() -> bool:
        nonlocal received
        with contextlib.suppress(BlockingIOError):
            received += os.read(source, 1 << 20)
        return received.count(b"\n") == 3 * 4000

    with os.fdopen(sink, "w") as stream:
        os.set_blocking(source, False)
        writers = [LogWriter(stream, shared=True) for _ in range(3)]
        for number in range(4000):
            for name, writer in zip("abc", writers, strict=True):
                writer.write(name * (100 + number % 300) + "\n")
        await eventually(read, 20)
        for writer in writers:
            writer.close()
    os.close(source)
    assert {len(set(line)) for line in received.splitlines()} == {1}
    assert all(writer.dropped == 0 for writer in writers)


def test_lines_keep_their_order(stream: TextIO) -> None:
    """Many lines arrive whole and in the order in which they were written."""
    writer = LogWriter(stream)
    for number in range(5000):
        writer.write(f"{number}\n")
    assert lines_of(writer, stream) == [str(number) for number in range(5000)]


async def test_a_stalled_reader_stalls_nobody() -> None:
    """With a full pipe writing does not wait; what is lost is counted; reading on brings the rest."""
    source, sink = os.pipe()
    with os.fdopen(sink, "w") as stream:
        writer = LogWriter(stream)
        for _ in range(2 * BACKLOG_LINES):
            writer.write("x" * 99 + "\n")
        assert writer.dropped >= BACKLOG_LINES - 5000
        received = 0
        os.set_blocking(source, False)

        def all_read() -> bool:
            nonlocal received
            try:
                received += len(os.read(source, 1 << 20))
            except BlockingIOError:
                return False
            return received == 100 * (2 * BACKLOG_LINES - writer.dropped)

        await eventually(all_read)
        writer.close()
    os.close(source)


async def test_a_reader_who_is_gone_ends_nothing() -> None:
    """When the other end is closed, lines are dropped and counted, and the thread lives on."""
    source, sink = os.pipe()
    os.close(source)
    with os.fdopen(sink, "w") as stream:
        writer = LogWriter(stream)
        writer.write("line\n")
        await eventually(lambda: writer.dropped == 1)
        writer.write("line\n")
        await eventually(lambda: writer.dropped == 2)
        writer.close()
