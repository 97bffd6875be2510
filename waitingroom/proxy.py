"""One request to one origin: how the bytes of its bodies flow, and how it may end.

`Upstream.forward` sends an exchange to the origin; on a pooled connection that takes no task or timer.
"""

import math
import ssl
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

import httptools

from waitingroom.bodies import Body, Chunked, Counted, Endless
from waitingroom.exchange import Exchange
from waitingroom.forwarded import forwarding_lines
from waitingroom.heads import CRLF2, BadResponseError, ResponseHead, parse_response
from waitingroom.hop import end_to_end_trailers, inbound_head, outbound_head
from waitingroom.outbox import LARGE
from waitingroom.upstream import Failure, Link, OriginLimits, Pool

__all__ = ["Failure", "OriginLimits", "Upstream", "Watcher", "inbound_head", "outbound_head"]

_IDEMPOTENT: Final = {b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"}

Case_contra = TypeVar("Case_contra", contravariant=True)
Case = TypeVar("Case")


class Watcher(Protocol[Case_contra]):
    """Whoever wants to know how a forwarded request fares; `case` is theirs, and says which one it is."""

    def answered(self, case: Case_contra, head: ResponseHead) -> bytes:
        """The origin's answer begins; returns header lines to add to it."""

    def failed(self, case: Case_contra, status: int, reason: str) -> None:
        """The origin has not answered: answer the exchange, with 502, 503 or 504, in its place."""

    def ended(
        self, case: Case_contra, status: int, latency: float | None, sent: int, failure: Failure | None
    ) -> None:
        """Called once, at the end, however it ended.

        Args:
            case: which one.
            status: what the shopper was answered; 499 if they left before.
            latency: seconds from the request sent to the head of the origin's answer, None without one.
            sent: bytes of the answer's body.
            failure: what went wrong, None if nothing did.
        """


class Upstream(Generic[Case]):
    """The storefront behind the gateway.

    Args:
        url: http://, https:// or unix:// address of the origin.
        watcher: told of every request.
        limits: what the origin is asked to bear.
        strip_cookies: beginnings of names of cookies that the origin must not see.
        context: TLS settings for an https origin.

    Raises:
        ValueError: `url` names no origin.
    """

    def __init__(
        self,
        url: str,
        watcher: Watcher[Case],
        *,
        limits: OriginLimits = OriginLimits(),  # noqa: B008 - frozen
        strip_cookies: tuple[bytes, ...] = (),
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits
        self.pool = Pool(url, limits, context)
        self.watcher = watcher
        self._strip_cookies = strip_cookies

    def forward(self, exchange: Exchange, case: Case) -> None:
        """Send the request to the origin and its answer to the shopper, whenever it comes.

        Args:
            exchange: unanswered; if its client is gone already, the watcher hears so.
            case: handed to the watcher.
        """
        lines = forwarding_lines(exchange.client, exchange.peer)
        raw = outbound_head(exchange.head, lines, self._strip_cookies)
        forwarding = _Forwarding(self, exchange, raw, case)
        if exchange.gone:
            forwarding.gone()
            return
        exchange.relay = forwarding
        self.pool.serve(forwarding)

    def adapt(self, limits: OriginLimits) -> None:
        """Ask no more than this of the origin from now on."""
        self.limits = limits
        self.pool.adapt(limits)

    async def close(self) -> None:
        """Close every connection to the origin."""
        await self.pool.close()


class _Forwarding:
    """One exchange on its way through one link: its relay on the shopper's side, its job on the origin's."""

    def __init__(self, upstream: Upstream[Any], exchange: Exchange, raw: bytes, case: object) -> None:
        self._upstream = upstream
        self._exchange = exchange
        self._raw = raw
        self._case = case
        self.deadline = math.inf
        self.done = False
        self._link: Link | None = None
        self._answer: ResponseHead | None = None
        self._reader: Body | None = None
        self._latency: float | None = None
        self._buffer = b""
        self._begun = 0.0
        self._sent = 0
        self._body_begun = False
        self._request_sent = False
        self._retried = False
        self._chunked_out = False
        self._tunnel = False
        self._half_ended = False

    def begin(self, link: Link) -> None:
        """Send the head, then ask for the body."""
        self._link = link
        self._begun = monotonic()
        link.wait(self._upstream.limits.first_byte_timeout)
        link.write(self._raw)
        if self._exchange.head.fields.has_body:
            self._exchange.pull()
        else:
            self._request_sent = True

    def body(self, data: bytes) -> None:
        """Pass on a piece of the request's body, or of the tunnel."""
        link = self._link
        if link is None:
            return
        self._body_begun = True
        link.wait(self._patience())
        if self._exchange.head.fields.chunked and not self._tunnel:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        link.write(data)

    def body_end(self, trailers: bytes) -> None:
        """Complete the request, or our half of the tunnel."""
        link = self._link
        if link is None:
            return
        if self._tunnel:
            link.half_close()
            self._end_half()
            return
        self._request_sent = True
        link.wait(self._patience())
        if self._exchange.head.fields.chunked:
            link.write(b"0\r\n" + end_to_end_trailers(trailers) + b"\r\n")

    def choke(self) -> None:
        """The origin takes no more for now."""
        self._exchange.pause()

    def unchoke(self) -> None:
        """The origin takes more."""
        self._exchange.resume()

    def received(self, data: bytes) -> None:
        """Bytes from the origin."""
        if self._tunnel:
            self._stream(data)
            return
        try:
            if self._reader is not None:
                self._decode(self._reader, data)
            else:
                self._read_heads(self._buffer + data if self._buffer else data)
        except (BadResponseError, httptools.HttpParserError):
            self._fail(Failure.MALFORMED)

    def _read_heads(self, data: bytes) -> None:
        """Any number of interim heads, then the final one with what there is of its body."""
        while not self.done and self._answer is None:
            end = data.find(CRLF2) + 4
            if end < 4:  # noqa: PLR2004 - length of the mark that was not found
                if len(data) > self._upstream.limits.head_bytes:
                    raise BadResponseError("the head of the answer is too long")
                self._buffer = data
                return
            raw = data if end == len(data) else data[:end]
            head = parse_response(raw, self._exchange.head.method, self._upstream.pool.memory)
            if head.status >= 200:  # noqa: PLR2004 - the first final status
                self._begin_answer(head, data, end)
                return
            data = data[end:]
            if head.status == 101:  # noqa: PLR2004 - switching protocols
                self._begin_tunnel(head, data)
            else:
                self._exchange.interim(inbound_head(head) + b"\r\n")

    def _begin_answer(self, head: ResponseHead, data: bytes, at: int) -> None:
        """Begin the answer; what there is of its body stands in `data` from `at` on."""
        link, exchange = self._link, self._exchange
        assert link is not None
        self._latency = monotonic() - self._begun
        self._answer = head
        self._buffer = b""
        extra = self._upstream.watcher.answered(self._case, head)
        length = head.length
        if length is not None and len(data) - at >= length:
            # The common case: all of a small answer in one read goes out in one write.
            self._sent = 0 if exchange.head.method == b"HEAD" else length
            body = (data if length < LARGE else memoryview(data))[at : at + length]
            exchange.start(inbound_head(head, extra), body)
            self._complete(clean=len(data) - at == length)
            return
        self._reader = Counted(length) if length is not None else Chunked() if head.chunked else Endless()
        self._chunked_out = length is None and exchange.head.fields.minor == 1
        if length is None and not self._chunked_out:
            exchange.close_after()
        link.wait(self._upstream.limits.idle_timeout)
        exchange.start(inbound_head(head, extra, chunked=self._chunked_out))
        if at < len(data):
            self._decode(self._reader, data[at:])

    def _decode(self, reader: Body, data: bytes) -> None:
        link = self._link
        assert link is not None
        data, rest = reader.feed(data)
        if data:
            self._stream(data)
        if reader.done:
            if self._chunked_out:
                self._exchange.write(b"0\r\n" + end_to_end_trailers(reader.trailers) + b"\r\n")
            self._complete(clean=not rest)

    def _stream(self, data: bytes) -> None:
        link = self._link
        assert link is not None
        self._sent += len(data)
        link.wait(self._patience())
        self._exchange.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked_out else data)

    def _begin_tunnel(self, head: ResponseHead, rest: bytes) -> None:
        if not self._exchange.head.fields.upgrade:
            raise BadResponseError("an upgrade that nobody asked for")
        assert self._link is not None
        self._latency = monotonic() - self._begun
        self._answer = head
        self._tunnel = True
        extra = self._upstream.watcher.answered(self._case, head)
        protocol = b", ".join(head.get_all(b"upgrade"))
        lines = b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (extra, protocol)
        self._link.wait(self._upstream.limits.tunnel_timeout)
        self._exchange.tunnel(inbound_head(head, lines))
        if rest:
            self._stream(rest)

    def hold(self) -> None:
        """The shopper takes no more for now."""
        if self._link is not None:
            self._link.pause()

    def flow(self) -> None:
        """The shopper takes more."""
        if self._link is not None:
            self._link.resume(self._patience())

    def _patience(self) -> float:
        limits = self._upstream.limits
        if self._tunnel:
            return limits.idle_timeout if self._half_ended else limits.tunnel_timeout
        waiting = self._request_sent and self._answer is None
        return limits.first_byte_timeout if waiting else limits.idle_timeout

    def half_closed(self) -> bool:
        """The origin has said all it will; in a tunnel the shopper may still have something to say."""
        if not self._tunnel:
            return False
        self._exchange.half_close()
        self._end_half()
        return self._link is not None

    def _end_half(self) -> None:
        """One side of the tunnel has said all it will; the other gets a while, and then there is an end."""
        link = self._link
        if link is None:
            return
        if not self._half_ended:
            self._half_ended = True
            link.wait(self._patience())
            return
        self._link = None
        link.close()
        self._exchange.finish()
        self._report(101, None)

    def gone(self) -> None:
        """The shopper has left: whatever the origin still does is for nobody."""
        link, self._link = self._link, None
        if self._tunnel and link is not None:
            link.close()
            self._report(101, None)
            return
        if link is not None:
            link.cut()
        else:
            self._upstream.pool.leave(self)
        self._report(499, Failure.GONE)

    def lost(self, link: Link, error: Exception | None) -> None:
        """The origin has closed the connection; that may be the end of the answer, or its failure."""
        self._link = None
        if self._tunnel:
            self._exchange.finish()
            self._report(101, None)
        elif isinstance(self._reader, Endless) and error is None:
            if self._chunked_out:
                self._exchange.write(b"0\r\n\r\n")
            self._exchange.finish()
            self._report(self._answer.status if self._answer else 0, None)
        elif link.reused and self._may_retry():
            self._retried = True
            self._upstream.pool.open(self)
        else:
            self._fail(Failure.RESET)

    def _may_retry(self) -> bool:
        # A connection at rest may close just as it is used; nothing was seen then (RFC 9110 §9.2.2).
        untouched = self._answer is None and not self._buffer and not self._body_begun and not self._retried
        return untouched and self._exchange.head.method in _IDEMPOTENT

    def expired(self) -> None:
        """Nothing was heard for too long, in the line or from the origin."""
        if self._link is None:
            self._upstream.pool.leave(self)
            self._fail(Failure.BUSY)
        else:
            self._fail(Failure.FIRST_BYTE_TIMEOUT if self._answer is None else Failure.IDLE_TIMEOUT)

    def failed(self, failure: Failure) -> None:
        """No connection could be had."""
        if not self.done:
            self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.cut()
        status = failure.status
        if self._answer is not None:
            status = self._answer.status
            self._exchange.cut()
        else:
            self._upstream.watcher.failed(self._case, status, failure.value)
        self._report(status, failure)

    def _complete(self, *, clean: bool) -> None:
        """The answer is whole; the link may serve on if nothing is left on it in either direction."""
        link, self._link = self._link, None
        answer = self._answer
        assert link is not None
        assert answer is not None
        if clean and answer.keep_alive and self._request_sent:
            link.release()
        else:
            link.cut()
        self._report(answer.status, None)
        self._exchange.finish()

    def _report(self, status: int, failure: Failure | None) -> None:
        if not self.done:
            self.done = True
            self._upstream.watcher.ended(self._case, status, self._latency, self._sent, failure)
