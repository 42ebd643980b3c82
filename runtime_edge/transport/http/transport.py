"""HttpTransport posts frames to `splitwire cloud serve`, over HTTP/1.1 with keep-alive (docs/http.md)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from splitwire.codec.errors import ServerBusy, SplitwireError, TransportError, UsageError
from splitwire.codec.wire.batch import FRAMES_MEDIA_TYPE, MAX_RECORDS, FrameRecord, build_frames, record_bytes
from splitwire.codec.wire.reply import CHECKED_VERSION, FRAME_MEDIA_TYPE, DecodedReply
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import Answer, NoBatches, reply_to, understand, understand_batch
from splitwire.runtime_edge.transport.base import Key, Reply, Timeouts, make_reply
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile
from splitwire.runtime_edge.transport.retry import CircuitBreaker
from splitwire.runtime_edge.transport.sockets import Tally

from .client import MAX_REPLY_BYTES, HttpClient

MAX_BATCH_BYTES = 4 << 20
"""Frames that wait are sent in bodies up to this size. A server takes 16 MiB by default."""
ASK_AGAIN_S = 3600.0
"""A server without /v1/batch gets the frames one by one for this many seconds. Then it may be a newer one."""


class HttpTransport:
    """Sends frames to `splitwire cloud serve` over HTTP/1.1, on connections that stay open.

    url: http://host:port or https://host, with a path in front of /v1/infer if a proxy needs one.
    timeouts: how long to wait; None for the defaults of Timeouts.
    retries: how often a failed attempt is repeated. A retry follows only if the inference cannot have run: there was no
        connection; an open connection closed before the answer began; the frame was damaged on its way; or the server
        answered 503 with a Retry-After. A frame with a key is repeated after any failure of the link: the server
        answers it from memory.
    retry_reads: also repeat a frame without a key after a read timeout. The server may then run the inference twice.
    token: sent as `Authorization: Bearer …`; a TokenFile for one that is renewed.
    lean: leave out Content-Type and User-Agent, 57 bytes of every frame. `splitwire cloud serve` needs neither; a proxy
        may need them.
    max_connections: most connections at a time. max_reply_bytes: a longer reply is refused.
    verify: for https: True for the system's certificates, False to trust anyone, a Tls of files, or an ssl.SSLContext.
    breaker: decides when the server is not tried at all; None for one with the defaults. on_event: gets its events.

    Raises UsageError for a wrong argument. The head of a request has few lines, because every frame sends it. Proxies
    and credentials from the environment are not used. A child of fork() can use the transport of its parent.
    """

    def __init__(
        self,
        url: str,
        *,
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
        address = Address(url)
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
        self._url = f"{address.base}/v1/infer"
        name = "" if lean else "User-Agent: splitwire\r\n"
        asks = f"r={CHECKED_VERSION}"
        kind = f"Accept: */*;{asks}" if lean else f"Content-Type: {FRAME_MEDIA_TYPE};{asks}"
        self._infer_head = f"POST {address.path}/v1/infer HTTP/1.1\r\nHost: {address.host}\r\n{kind}\r\n{name}"
        self._batch_head = (
            f"POST {address.path}/v1/batch HTTP/1.1\r\nHost: {address.host}\r\n"
            f"Content-Type: {FRAMES_MEDIA_TYPE}\r\n{name}"
        )
        self._alone_until = 0.0
        self._took_batch = False

    @property
    def url(self) -> str:
        """The URL that frames are posted to."""
        return self._url

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker: its state says whether the server is tried."""
        return self._client.breaker

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Post one frame and wait for its reply, at most Timeouts.total seconds in all.

        key: sent as `Idempotency-Key`. Raises TransportError (CircuitOpen: the server is not tried for now), or the
        error that the server names.
        """
        tally = Tally()
        head = self._infer_head if key is None else f'{self._infer_head}Idempotency-Key: "{key}"\r\n'

        def read(answer: Answer) -> DecodedReply:
            return reply_to(frame, understand(answer, self._server), self._server)

        decoded, attempts = self._client.deliver(head, frame, keyed=key is not None, read=read, tally=tally)
        return make_reply(decoded, sent=tally.sent, received=tally.received, attempts=attempts)

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Post frames, several per request, and wait for all replies.

        keys: one per frame; None for a frame without. Returns, in the order of the frames, the reply or the error of
        each. Each request may take Timeouts.total seconds. A failure of the link is the error of every frame of that
        request and of those behind it, which are not sent. A server without /v1/batch, or one that refuses the request
        as a whole, gets the frames one by one.
        Raises UsageError for a closed transport, or if there is not one key per frame.
        """
        if len(frames) != len(keys):
            raise UsageError(f"send_many takes one key (or None) per frame; got {len(frames)} frames, {len(keys)} keys")
        records = [
            FrameRecord(frame=frame, key="" if key is None else str(key))
            for frame, key in zip(frames, keys, strict=True)
        ]
        results: list[Reply | SplitwireError] = []
        for request in _requests(records):
            at = len(results)
            try:
                if time.monotonic() >= self._alone_until:
                    try:
                        results += self._send_batch(request)
                        continue
                    except NoBatches:
                        if not self._took_batch:  # else the link has damaged the request
                            self._alone_until = time.monotonic() + ASK_AGAIN_S
                    except SplitwireError as e:
                        # The server refuses the request as a whole: then each frame gets an answer of its own.
                        if isinstance(e, TransportError) or self._client.is_closed.is_set():
                            raise
                for frame, key in zip(frames[at : at + len(request)], keys[at : at + len(request)], strict=True):
                    results.append(self._result(frame, key))
            except UsageError:
                raise
            except SplitwireError as e:
                results += [e] * (at + len(request) - len(results))
                if isinstance(e, TransportError):
                    break
        missing = len(frames) - len(results)
        return results + [results[-1]] * missing if missing else results

    def close(self) -> None:
        """Close the connections; a pause before a retry ends at once. A second call has no effect."""
        self._client.close()

    def _result(self, frame: bytes, key: Key | None) -> Reply | SplitwireError:
        """The reply or the server's error for one frame. Raises UsageError (closed) and failures of the link."""
        try:
            return self.send(frame, key)
        except SplitwireError as e:
            if self._client.is_closed.is_set() or (isinstance(e, TransportError) and not isinstance(e, ServerBusy)):
                raise
            return e

    def _send_batch(self, records: Sequence[FrameRecord]) -> list[Reply | SplitwireError]:
        tally = Tally()
        body = build_frames(records)

        def read(answer: Answer) -> list[DecodedReply | SplitwireError]:
            answers = understand_batch(answer, self._server, len(records))
            for record, reply in zip(records, answers, strict=True):
                if not isinstance(reply, SplitwireError):
                    reply_to(record.frame, reply, self._server)
            return answers

        keyed = all(record.key for record in records)
        answers, attempts = self._client.deliver(self._batch_head, body, keyed=keyed, read=read, tally=tally)
        self._took_batch = True
        # Each frame bears its share of the heads: what was sent and received, in proportion to its own bytes.
        sizes = [record_bytes(record) for record in records]
        sent, received = _shares(tally.sent, sizes), _shares(tally.received, [1] * len(records))
        return [
            answer
            if isinstance(answer, SplitwireError)
            else make_reply(answer, sent=sent[i], received=received[i], attempts=attempts)
            for i, answer in enumerate(answers)
        ]


def _requests(records: Sequence[FrameRecord]) -> Iterator[list[FrameRecord]]:
    """The records in groups for one request each; a frame over MAX_BATCH_BYTES is a group of its own."""
    group: list[FrameRecord] = []
    size = 0
    for record in records:
        if group and (len(group) == MAX_RECORDS or size + record_bytes(record) > MAX_BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(record)
        size += record_bytes(record)
    if group:
        yield group


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts in proportion to the weights; the parts add up to it."""
    whole = sum(weights)
    edges = [0]
    done = 0
    for weight in weights:
        done += weight
        edges.append(total * done // whole)
    return [b - a for a, b in pairwise(edges)]
