"""OipHttpTransport posts frames over the Open Inference Protocol: a frame alone as the body (docs/oip.md)."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from urllib.parse import quote

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.wire.oip.tensors import HEADER_LENGTH
from splitwire.codec.wire.reply import DecodedReply
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import Answer
from splitwire.runtime_edge.transport.base import Key, Reply, Timeouts, make_reply, send_each
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile
from splitwire.runtime_edge.transport.http.client import MAX_REPLY_BYTES, HttpClient
from splitwire.runtime_edge.transport.retry import CircuitBreaker
from splitwire.runtime_edge.transport.sockets import Tally

from .answers import MAX_VERSION, MODEL, model_of, reply_for, understand

SCHEME = "oip+"


class OipHttpTransport:
    """Sends frames over the Open Inference Protocol, HTTP/1.1, on connections that stay open.

    url: http://host:port or https://host, also with `oip+` in front, with a path in front of /v2 if a proxy needs one.
    model: name of the model on the server; "" for the fingerprint in each frame, by which `splitwire cloud serve` finds
        it. version: its version; "" for the newest.
    lean: leave out Content-Type and User-Agent.

    The other arguments, retries and errors are those of HttpTransport.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        version: str = "",
        timeouts: Timeouts | None = None,
        retries: int = 2,
        retry_reads: bool = False,
        token: str | TokenFile | None = None,
        lean: bool = False,
        max_connections: int = 8,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        verify: bool | ssl.SSLContext | Tls = True,
        breaker: CircuitBreaker | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        if model and not MODEL.fullmatch(model):
            raise UsageError(f"{model[:64]!r} is no name of a model: no spaces, no ?, # or %")
        if version and not (version.isascii() and version.isdigit() and len(version) <= MAX_VERSION):
            raise UsageError(f"{version[:64]!r} is no version of a model: a number, such as 1")
        address = Address(url[len(SCHEME) :] if url.lower().startswith(SCHEME) else url)
        self._client = HttpClient(
            address,
            owner=type(self).__name__,
            timeouts=timeouts,
            retries=retries,
            retry_reads=retry_reads,
            token=token,
            max_connections=max_connections,
            max_reply_bytes=max_reply_bytes,
            verify=verify,
            breaker=breaker,
            on_event=on_event,
        )
        self._server = address.server
        self._url = f"{address.base}/v2"
        self._model = model
        self._before = f"POST {address.path}/v2/models/"
        more = "" if lean else "Content-Type: application/octet-stream\r\nUser-Agent: splitwire\r\n"
        self._after = (
            f"{f'/versions/{version}' if version else ''}/infer HTTP/1.1\r\nHost: {address.host}\r\n"
            f"{HEADER_LENGTH}: 0\r\n{more}"
        )

    @property
    def url(self) -> str:
        """The URL of the protocol on the server."""
        return self._url

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker: its state says whether the server is tried."""
        return self._client.breaker

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Post one frame and wait for its reply, at most Timeouts.total seconds in all.

        key: sent as `Idempotency-Key`. Raises TransportError (CircuitOpen: the server is not tried for now), the error
        that the server names, or BitstreamError for bytes that are no frame where no model is given.
        """
        tally = Tally()
        head = f"{self._before}{quote(model_of(frame, self._model))}{self._after}"
        if key is not None:
            head += f'Idempotency-Key: "{key}"\r\n'

        def read(answer: Answer) -> DecodedReply:
            return reply_for(frame, understand(answer, self._server), self._server)

        decoded, attempts = self._client.deliver(head, frame, keyed=key is not None, read=read, tally=tally)
        return make_reply(decoded, sent=tally.sent, received=tally.received, attempts=attempts)

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Send one frame after the other, and return the reply or the error of each: a request holds one frame.

        A failure of the link is the error of every frame behind it too. Raises UsageError.
        """
        return send_each(self.send, frames, keys)

    def close(self) -> None:
        """Close the connections; a pause before a retry ends at once. A second call has no effect."""
        self._client.close()
