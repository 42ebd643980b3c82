"""Sockets that count their bytes: httpx over httpcore's public network interface.

The count is of the bytes written to the socket and read from it, heads included, because those bytes load the link.
Nothing is computed from header lengths. With TLS the count is of the bytes given to TLS, without records and handshake.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpcore
import httpx

CORK_BYTES = 64 << 10
"""A request up to this size is sent in one write, so head and body share the first packet."""


@dataclass(kw_only=True)
class Tally:
    """The bytes of one request.

    sent, received: bytes of all attempts. connects, attempt_received: connections opened and bytes received in the last
    attempt.
    """

    sent: int = 0
    received: int = 0
    connects: int = 0
    attempt_received: int = 0

    def begin_attempt(self) -> None:
        """Call this before each attempt of the same request."""
        self.connects = 0
        self.attempt_received = 0


class _Local(threading.local):
    """The tally of the request that this thread sends. httpcore works in the caller's thread."""

    def __init__(self) -> None:
        self.tally = Tally()


class CountingStream(httpcore.NetworkStream):
    """A connection that adds the bytes it writes and reads to the current tally, and joins small writes.

    h11 gives the head and the body in two calls. With TCP_NODELAY two writes would be two packets. So `write` holds
    small parts back. Every exchange writes a whole request and then reads, so `read` sends the held bytes.
    """

    def __init__(self, inner: httpcore.NetworkStream, local: _Local) -> None:
        self._inner = inner
        self._local = local
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._write_timeout: float | None = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._write_timeout = timeout
        self._held.append(buffer)
        self._held_bytes += len(buffer)
        if self._held_bytes > CORK_BYTES:
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        # Small parts are joined. A large body is not copied once more only to join it with its head.
        for part in [b"".join(held)] if sum(map(len, held)) <= CORK_BYTES else held:
            self._inner.write(part, self._write_timeout)
            self._local.tally.sent += len(part)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            with suppress(httpcore.WriteError):  # as in httpcore: a server may refuse early; its answer says why
                self._flush()
        data = self._inner.read(max_bytes, timeout)
        self._local.tally.received += len(data)
        self._local.tally.attempt_received += len(data)
        return data

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return CountingStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._local)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _CountingBackend(httpcore.NetworkBackend):
    def __init__(self, local: _Local) -> None:
        self._inner = httpcore.SyncBackend()
        self._local = local

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self._local.tally.connects += 1
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return CountingStream(stream, self._local)


class _ResponseStream(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class CountingTransport(httpx.BaseTransport):
    """An httpx transport with keep-alive over sockets that count. Raises httpcore's exceptions, not httpx's.

    keepalive_s: a connection that was idle for longer is not used again. It must be less than the server's limit: then
        the client closes first, and no request uses a connection that the server is closing.
    tls: the SSL context for https addresses.
    """

    def __init__(self, *, keepalive_s: float, max_connections: int, tls: ssl.SSLContext | None) -> None:
        self._local = _Local()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=keepalive_s,
            network_backend=_CountingBackend(self._local),
        )

    def start_tally(self) -> Tally:
        """Start a new tally: it counts what this thread sends and receives from now on."""
        self._local.tally = Tally()
        return self._local.tally

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()
