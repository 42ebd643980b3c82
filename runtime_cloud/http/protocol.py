"""HTTP on one connection, by uvicorn with httptools, and with limits of our own: httptools stores a head of any length.

uvicorn has no public way to take a connection out of HTTP. But its protocol classes are plain asyncio protocols, and
they hand `scope["state"]` to the application. This one puts `hand_over` there, which the route of streams calls.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.security.policy import certificate_of
from splitwire.runtime_cloud.stream.connection import StreamConnection
from splitwire.runtime_cloud.stream.upgrade import HAND_OVER, SWITCHING

from .door import CERTIFICATE
from .statuses import plain_response

FRAMING, FRAMING_PER_BYTE = 64 << 10, 8
"""Bytes of a chunked body that are not the body: at most the first, and the second for each byte of the body. A chunk
of one byte takes five more."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. `http_protocol` makes the class for a server.

    limits: of the server. watched: the connections of the server, which one timer looks at.
    """

    limits: ClassVar[ServerLimits]
    watched: ClassVar[set[HttpProtocol]]
    _tick: ClassVar[asyncio.TimerHandle | None]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, {**app_state, HAND_OVER: self.hand_over}, _loop)
        self._in_head = True
        self._served = False  # a request of this connection was answered
        self._fed = self._body = 0  # bytes of this head; behind it, bytes of this body as sent and as meant
        self._since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take the connection, or refuse it if there are too many."""
        self._since = self.loop.time()
        if len(self.connections) >= self.limits.connections and not self.make_room():
            busy = "too many connections; come back later"
            transport.write(plain_response(503, "server_busy", busy, retry_after=self.limits.retry_after))
            transport.close()
            return
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state[CERTIFICATE] = certificate_of(tls.getpeercert())
        self.watched.add(self)
        if type(self)._tick is None:
            self._schedule()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.watched.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, at most as much of a head as is allowed."""
        if self._in_head:
            if not self._fed:
                self._since = self.loop.time()
            room = max(0, self.limits.max_head - self._fed)
            if len(data) > room:
                self._feed(data[:room])
                if not self._has_head():
                    limit = self.limits.max_head
                    self._refuse(431, "limit_exceeded", f"the head is longer than the limit of {limit} bytes")
                    return
                data = data[room:]
        self._feed(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn's returns None
        """The client sends no more. A whole request is answered before the connection closes."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.scheme != "http":
            return None
        cycle.keep_alive = False
        return True

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._fed = self._body = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there; what comes next is another head."""
        self._in_head = True
        self._fed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent."""
        self._served = True
        super().on_response_complete()

    def hand_over(self, protocol: StreamConnection) -> None:
        """End HTTP on this connection; `protocol` gets it, and is told to shut down with the others."""
        http: Any = self
        http.cycle.disconnected = True  # what the application answers to this request goes nowhere
        self.watched.discard(self)
        self.connections.discard(self)
        protocol.end_with(self.connections)
        self.transport.write(SWITCHING)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the answer says what is supported, and any client can ask for anything."""

    def _has_head(self) -> bool:
        return not self._in_head

    def _feed(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._fed += len(data)
        super().data_received(data)
        if not self._in_head and self._fed - self._body > FRAMING + FRAMING_PER_BYTE * self._body:
            self._refuse(400, "error", "the chunks are mostly framing: send larger ones")

    def _refuse(self, status: int, code: str, message: str) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:  # else an answer may be on its way already
            self.transport.write(plain_response(status, code, message))
        self.transport.close()

    def make_room(self) -> bool:
        """Close the connection that is silent for longest of those that never sent a request."""
        silent = [c for c in self.watched if not c._served and c._in_head and not c._fed]
        if not silent:
            return False
        oldest = min(silent, key=lambda c: c._since)
        self.watched.discard(oldest)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _schedule(self) -> None:
        type(self)._tick = self.loop.call_later(min(1.0, self.limits.head_timeout / 4), self._look)

    def _look(self) -> None:
        """Close the connections whose heads do not arrive. Idle ones behind an answer are uvicorn's."""
        type(self)._tick = None
        too_old = self.loop.time() - self.limits.head_timeout
        for connection in list(self.watched):
            if connection._since < too_old and connection._in_head and (connection._fed or not connection._served):
                seconds = self.limits.head_timeout
                connection._refuse(408, "request_timeout", f"the head did not arrive within {seconds:g} s")
        if self.watched:
            self._schedule()


def http_protocol(limits: ServerLimits) -> type[HttpProtocol]:
    """The protocol class of one server, for uvicorn's `http` setting."""
    made: type[HttpProtocol] = type(
        "HttpProtocol", (HttpProtocol,), {"limits": limits, "watched": set(), "_tick": None}
    )
    return made
