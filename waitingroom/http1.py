"""The public side of HTTP/1.1: sockets of shoppers on one hand, requests and answers on the other.

A `Listener` makes one `Connection` a client; each request becomes an `Exchange` that is handed to a handler,
in order, the next one only when the last is answered. Nothing here starts a task, and one timer a listener
watches every deadline. The handler either answers (`Exchange.respond`) or sets a `Relay` that streams.
"""

import asyncio
import logging
import math
from typing import cast

import httptools

from waitingroom.bodies import Body, Chunked, Counted, begins_chunk
from waitingroom.exchange import Exchange, Handler, Relay, refusal
from waitingroom.forwarded import Client, Network
from waitingroom.heads import CRLF2, BadRequestError, Head, check_partial, parse_head
from waitingroom.outbox import Speaker
from waitingroom.premises import LIMITS, Limits, Premises

__all__ = ["Connection", "Exchange", "Handler", "Head", "Limits", "Listener", "Relay"]

_LINGER = 2.0
"""Seconds in which a client may still read the last answer."""

_log = logging.getLogger(__name__)


class Listener:
    """The connections of one listening address. Give it to `loop.create_server` as the protocol factory.

    Attributes:
        premises: what its connections share.
        refusals: how many requests were refused before the handler saw them, by status.
    """

    def __init__(self, handler: Handler, limits: Limits = LIMITS, trusted: tuple[Network, ...] = ()) -> None:
        self.premises = premises = Premises(handler, limits, trusted)
        self.outbox = premises.outbox
        self.refusals = premises.refusals
        self.sweep = premises.sweep

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a client that connects."""
        self.premises.called += 1
        return cast("asyncio.Protocol", Connection(self.premises))

    @property
    def connections(self) -> int:
        """Client connections open now."""
        return len(self.sweep.members)


class Connection(Speaker):
    """One client's connection: it waits for a head, or serves one exchange, or lingers to close."""

    def __init__(self, premises: Premises) -> None:
        super().__init__(premises.outbox)
        self._premises = premises
        self._time = asyncio.get_running_loop().time
        self.deadline = math.inf
        self.peer = ""
        self.scheme = "http"
        self._client: Client | None = None
        self._exchange: Exchange | None = None
        self._body: Body | None = None
        self._buffer = b""
        self._left = 0.0
        self._taken = 0
        self._watched = 0.0
        self._choked = False
        self._grace = premises.limits.first_word
        self._since = 0.0
        self._in_loop = False
        self._lingering = False
        self._paused = False
        self._tunnel = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        limits = self._premises.limits
        transport = self.connected(transport, limits.high_water, limits.low_water)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[0]
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
        self._wait(limits.head_timeout)
        if not self._premises.admit(self):
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """The client has left, or the connection was closed here."""
        self._premises.sweep.discard(self)
        self._lingering = True
        self._buffer = b""
        if self._exchange is not None:
            self._exchange.lose()

    def eof_received(self) -> bool:
        """The client will send no more. Outside a tunnel it has left then, once it has its answer."""
        self.flush()
        if not self._tunnel or self.scheme == "https" or self._exchange is None:
            return False
        relay = self._exchange.relay
        if relay is not None:
            relay.body_end(b"")
        return True

    def pause_writing(self) -> None:
        """The client does not keep up with its answer."""
        self._choked = True
        self._watch(self.taken()[0])
        if self._exchange is not None and self._exchange.relay is not None:
            self._exchange.relay.hold()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._choked = False
        if self._exchange is None:
            self._settle()
            return
        self.deadline = math.inf
        if self._body is not None and not self._paused:
            self._wait(self._premises.limits.body_idle_timeout)
        if self._exchange.relay is not None:
            self._exchange.relay.flow()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, of a tunnel, or of the requests after this one."""
        if self._lingering:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._exchange is None and self._body is None:
            self._next()
        else:
            self._pump()

    def expired(self) -> None:
        """Close what keeps us waiting: silently between requests, with 408 in the middle of one."""
        if self._reads():
            return
        if self._lingering or self._choked or (self._exchange is None and not self._buffer):
            self.cut()
        else:
            what = "head" if self._exchange is None else "body"
            self._refuse(408, f"the request {what} took too long")

    def _reads(self) -> bool:
        """Whether the client takes its answer, at the least rate or faster; it is looked at again then."""
        taken, waiting = self.taken()
        if not waiting or (self._lingering and not self._transport.is_closing()):
            return False
        least = self._premises.limits.body_rate * self._premises.limits.body_idle_timeout
        if self.deadline == self._watched and taken - self._taken <= least:
            return False
        self._watch(taken)
        return True

    def _watch(self, taken: int) -> None:
        """Expect the client, which has taken so much, to have taken more in a while."""
        self._taken = taken
        self._wait(self._premises.limits.body_idle_timeout)
        self._watched = self.deadline

    def idles(self) -> bool:
        """Whether nothing is under way: no request has begun, or none that is whole."""
        return self._exchange is None and self._body is None and not self._lingering and not self._choked

    def give_way(self) -> bool:
        """Close at once, to make room; False if some of an answer would be lost."""
        # Over TLS only the kernel knows; else what has left us arrives, whatever becomes of the connection.
        if self.taken()[1] if self.scheme == "https" else self._transport.get_write_buffer_size():
            return False
        self._lingering = True
        self.cut()
        return True

    def _next(self) -> None:
        """Take heads off the buffer and hand them on until one has to wait."""
        if self._in_loop:
            return
        self._in_loop = True
        try:
            while self._buffer and self._idle() and self._take_head():
                pass
        except BadRequestError as error:
            self._refuse(error.status, error.reason)
        finally:
            self._in_loop = False

    def _idle(self) -> bool:
        """Whether the next request may be served; not while the client leaves answers unread."""
        if self._choked and len(self._buffer) > self._premises.limits.head_bytes:
            self.pause()
        return self._exchange is None and self._body is None and not self._lingering and not self._choked

    def _take_head(self) -> bool:
        """Begin the exchange of the head at the front of the buffer; False while that head is incomplete."""
        data = self._buffer
        limits = self._premises.limits
        end = data.find(CRLF2) + 4
        found = end >= 4  # noqa: PLR2004 - length of the mark
        if (end if found else len(data)) > limits.head_bytes:
            raise BadRequestError(431, "the request head is too long")
        if not found:
            check_partial(data)
            return self._incomplete()
        whole = end == len(data)
        head = parse_head(data if whole else data[:end], limits.head_fields, self._premises.memory)
        fields = head.fields
        if fields.has_body:
            if fields.chunked and not fields.expects_continue and not begins_chunk(data, end):
                return self._incomplete()
            self._body = Chunked() if fields.chunked else Counted(fields.length or 0)
        self._buffer = b"" if whole else data[end:]
        self.deadline = math.inf
        self._grace = limits.rest
        self._serve(Exchange(head, self))
        return True

    def _incomplete(self) -> bool:
        """Wait for more of a request's beginning, however often more comes, until its time is up."""
        timeout = self._premises.limits.head_timeout
        if self.deadline > self._time() + timeout:
            self._wait(timeout)
        return False

    def _serve(self, exchange: Exchange) -> None:
        self._exchange = exchange
        try:
            self._premises.handler.handle(exchange)
        except Exception:  # noqa: BLE001 - a bug in the handler must cost one request, not the gateway
            _log.exception("a request could not be handled")
            if exchange.started:
                self.cut()
            else:
                self._refuse(500, "the request could not be handled")

    def _pump(self) -> None:
        """Hand on what the buffer holds of the request's body, or of the tunnel."""
        exchange, body = self._exchange, self._body
        relay = exchange.relay if exchange is not None and exchange.pulling else None
        if exchange is not None and (relay is None or (body is None and not self._tunnel)):
            if len(self._buffer) > self._premises.limits.head_bytes:
                self.pause()
            return
        data, self._buffer = self._buffer, b""
        if self._tunnel and relay is not None:
            relay.body(data)
        elif body is not None:
            self._feed(body, relay, data)

    def _feed(self, body: Body, relay: Relay | None, data: bytes) -> None:
        """Decode a piece of the body for the relay, or past an answer that did without it."""
        try:
            data, self._buffer = body.feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "malformed chunked body")
            return
        if body.done:
            self._body = None
            self.deadline = math.inf
        else:
            self._earn(len(data))
        if relay is None:
            self._settle()
            return
        if data:
            relay.body(data)
        if body.done:
            relay.body_end(body.trailers)

    def _earn(self, size: int) -> None:
        """Give the client time for what it has sent; silence and slowness use up the same patience."""
        limits = self._premises.limits
        earned = size / limits.body_rate if limits.body_rate else math.inf
        self.deadline = min(self.deadline + earned, self._time() + limits.body_idle_timeout)

    def pull(self) -> None:
        """The relay wants the body now."""
        if self._body is not None:
            self.resume()
            self._wait(self._premises.limits.body_idle_timeout)
            if self._buffer:
                self._pump()

    def tunnel(self) -> None:
        """From here on bytes have no meaning to us."""
        self._tunnel = True
        self.resume()
        if self._buffer:
            self._pump()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused:
            self._paused = True
            self._left = self.deadline - self._time()
            if not self._choked:
                self.deadline = math.inf
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._body is not None and not self._choked:
                self._wait(self._left)
            self._transport.resume_reading()

    def client(self, head: Head) -> Client:
        """Who sent the request with this head."""
        if self._premises.trusted:
            return self._premises.client(head, self.peer, self.scheme)
        client = self._client
        if client is None or client.host != head.host:
            client = self._client = Client(self.peer, self.scheme, head.host)
        return client

    def persists(self, head: Head) -> bool:
        """Whether another request may follow the one with this head."""
        return head.fields.keep_alive and not self._premises.draining and not self._lingering

    def skips(self, head: Head) -> bool:
        """Whether what is unread of the body is little enough to be read past."""
        body = self._body
        if body is None:
            return True
        small = isinstance(body, Counted) and body.left <= self._premises.limits.drain_bytes
        return small and not head.fields.expects_continue

    def answered(self, *, keep: bool) -> None:
        """The exchange is complete: read past the rest of its body, go on with the next, or close."""
        exchange, self._exchange = self._exchange, None
        if not keep or exchange is None or not self.skips(exchange.head):
            self._close()
        elif self._body is not None:
            self.resume()
            data, self._buffer = self._buffer, b""
            self._feed(self._body, None, data)
        else:
            self._settle()

    def _settle(self) -> None:
        """Between two requests, once the last body is out of the way."""
        if self._body is None and not self._lingering:
            self._wait(self._premises.limits.keepalive_timeout)
            if self._paused:
                self.resume()
            if self._buffer:
                # Whoever sends on without reading is found out before the next answer is made.
                self.flush()
                self._next()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer with an error of the protocol and close; cut, if an answer has begun."""
        self._premises.refusals[status] += 1
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
            if exchange.started:
                self.cut()
                return
        self.write(refusal(status, reason))
        self._linger()

    def _close(self) -> None:
        if self._body is None and not self._buffer:
            self._lingering = True
            self._wait(self._premises.limits.body_idle_timeout)
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close so that the answer arrives: unread bytes at a closing socket reset it (RFC 9112 §9.6)."""
        self._lingering = True
        self._buffer = b""
        self.resume()
        self._wait(_LINGER)
        if len(self._premises.sweep.members) > self._premises.limits.connections:
            self.close()
        else:
            self.half_close()

    def retire(self, now: float) -> None:
        """Close if nothing is under way, not even a part of a head, and nothing is to be expected."""
        if self.idles() and not self._buffer and now - self._since >= self._grace:
            self._close()

    def cut(self) -> None:
        """Close at once, whatever is unsent."""
        self.abort()

    def _wait(self, seconds: float) -> None:
        self._since = self._time()
        self.deadline = self._since + seconds
