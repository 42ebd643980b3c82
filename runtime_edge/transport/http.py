"""HttpTransport posts frames to `splitwire cloud serve`, over HTTP/1.1 with keep-alive (docs/http.md)."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TypeVar

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    Corrupt,
    ServerBusy,
    SplitwireError,
    TransportError,
    Truncated,
    UsageError,
)
from splitwire.codec.wire.batch import FRAMES_MEDIA_TYPE, MAX_RECORDS, FrameRecord, build_frames, record_bytes
from splitwire.codec.wire.reply import CHECKED_VERSION, FRAME_MEDIA_TYPE, DecodedReply
from splitwire.runtime_edge.events import EventSink, ignore

from .address import Address
from .answers import Answer, NoBatches, reply_to, understand, understand_batch
from .base import Key, Reply, Timeouts, make_reply
from .credentials import Tls, TokenFile, checked_token, tls_settings
from .failures import explain, reason
from .http1 import NotHttp, read_response
from .retry import MAX_PAUSE_S, CircuitBreaker, RetryBudget, pause
from .sockets import (
    Broken,
    ConnectTimedOut,
    DeadlinePassed,
    Link,
    LinkError,
    NoConnection,
    Pool,
    PoolTimedOut,
    ReadTimedOut,
    Tally,
    WriteTimedOut,
    connect,
    drop_after_fork,
)

T = TypeVar("T")

MAX_REPLY_BYTES = 256 << 20
MAX_BATCH_BYTES = 4 << 20
"""Frames that wait are sent in bodies up to this size. A server takes 16 MiB by default."""
ASK_AGAIN_S = 3600.0
"""A server without /v1/batch gets the frames one by one for this many seconds. Then it may be a newer one."""
KEEPALIVE_S = 60.0
"""A connection that was idle for this many seconds is not used again. Less than the server's 75 s
(runtime_cloud/engines/process.py)."""


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
        if retries < 0 or max_reply_bytes < 1 or max_connections < 1:
            raise UsageError("retries must be 0 or more, max_reply_bytes and max_connections 1 or more")
        self._address = Address(url)
        self._server = self._address.server
        self._timeouts = timeouts or Timeouts()
        self._retries = retries
        self._retry_reads = retry_reads
        self._max_reply_bytes = max_reply_bytes
        self._token = token if isinstance(token, TokenFile) or token is None else checked_token(token)
        name = "" if lean else "User-Agent: splitwire\r\n"
        asks = f"r={CHECKED_VERSION}"
        kind = f"Accept: */*;{asks}" if lean else f"Content-Type: {FRAME_MEDIA_TYPE};{asks}"
        self._infer_head = (
            f"POST {self._address.path}/v1/infer HTTP/1.1\r\nHost: {self._address.host}\r\n{kind}\r\n{name}"
        )
        self._batch_head = (
            f"POST {self._address.path}/v1/batch HTTP/1.1\r\nHost: {self._address.host}\r\n"
            f"Content-Type: {FRAMES_MEDIA_TYPE}\r\n{name}"
        )
        # Reading the trusted certificates takes tens of milliseconds. Plain HTTP does not need them.
        self._tls = tls_settings(verify) if self._address.tls else None
        self._pool = Pool(self._connect, most=max_connections, keepalive_s=KEEPALIVE_S)
        self._breaker = CircuitBreaker(on_event=on_event) if breaker is None else breaker
        drop_after_fork(self._breaker)
        self._budget = RetryBudget()
        self._closed = threading.Event()
        self._alone_until = 0.0
        self._took_batch = False

    @property
    def url(self) -> str:
        """The URL that frames are posted to."""
        return f"{self._address.base}/v1/infer"

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker: its state says whether the server is tried."""
        return self._breaker

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Post one frame and wait for its reply, at most Timeouts.total seconds in all.

        key: sent as `Idempotency-Key`. Raises TransportError (CircuitOpen: the server is not tried for now), or the
        error that the server names.
        """
        tally = Tally()
        head = self._infer_head if key is None else f'{self._infer_head}Idempotency-Key: "{key}"\r\n'

        def read(answer: Answer) -> DecodedReply:
            return reply_to(frame, understand(answer, self._server), self._server)

        decoded, attempts = self._deliver(head, frame, keyed=key is not None, read=read, tally=tally)
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
                        if isinstance(e, TransportError) or self._closed.is_set():
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
        self._closed.set()
        self._pool.close()

    def _result(self, frame: bytes, key: Key | None) -> Reply | SplitwireError:
        """The reply or the server's error for one frame. Raises UsageError (closed) and failures of the link."""
        try:
            return self.send(frame, key)
        except SplitwireError as e:
            if self._closed.is_set() or (isinstance(e, TransportError) and not isinstance(e, ServerBusy)):
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
        answers, attempts = self._deliver(self._batch_head, body, keyed=keyed, read=read, tally=tally)
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

    def _deliver(
        self, head: str, body: bytes, *, keyed: bool, read: Callable[[Answer], T], tally: Tally
    ) -> tuple[T, int]:
        """Post a body, again where that is safe; what `read` makes of the answer, and the number of attempts."""
        if self._closed.is_set():
            raise UsageError("this HttpTransport is closed; make a new one")
        total = self._timeouts.total
        deadline = math.inf if total is None else time.monotonic() + total
        attempt = 0
        while True:
            attempt += 1
            tally.begin_attempt()
            self._breaker.admit(self._server)
            asked: float | None = None
            error: SplitwireError
            token = "" if self._token is None else self._current_token()
            try:
                value = self._exchange(head, token, body, read, tally, deadline)
            except ServerBusy as e:
                asked, error = e.retry_after, e
                self._breaker.failed(self._server, "it is busy", asked or 0.0)
                again = asked is not None and asked <= MAX_PAUSE_S
            except (LinkError, NotHttp) as e:
                error = explain(e, self._server, tally, attempt, total)
                error.__cause__ = e
                if isinstance(e, PoolTimedOut):
                    self._breaker.forget()
                else:
                    self._breaker.failed(self._server, reason(e))
                again = self._is_safe(e, tally, keyed)
            except (AuthRefused, Corrupt, Truncated, BadResponse) as e:
                self._breaker.succeeded(self._server)
                error = e
                match e:
                    case AuthRefused():  # the token may have been renewed in this moment
                        again = self._token is not None and self._current_token(now=True) != token
                    case BadResponse():  # the answer may be damaged: with a key it is in the server's memory
                        again = keyed
                    case _:  # the server did not get the frame as it was sent
                        again = True
            except SplitwireError:
                self._breaker.succeeded(self._server)
                raise
            except BaseException:
                self._breaker.forget()
                raise
            else:
                self._breaker.succeeded(self._server)
                self._budget.earn()
                return value, attempt
            if not again or attempt > self._retries or self._breaker.state != "closed" or not self._budget.spend():
                raise error
            nap = pause(attempt, asked)
            if time.monotonic() + nap >= deadline or self._closed.wait(nap):
                raise error

    def _exchange(
        self, head: str, token: str, body: bytes, read: Callable[[Answer], T], tally: Tally, deadline: float
    ) -> T:
        """One attempt: send the request and read the whole answer, at most max_reply_bytes of it."""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        if self._timeouts.told is not None:
            head += f"X-Splitwire-Deadline-Ms: {max(1, math.ceil(1e3 * (deadline - time.monotonic())))}\r\n"
        request = f"{head}{authorization}Content-Length: {len(body)}\r\n\r\n".encode("ascii")
        link = self._pool.take(tally, limit=self._timeouts.pool, deadline=deadline)
        keep = whole = False
        try:
            with suppress(Broken):  # a server may refuse early, and close; its answer says why
                link.send(request, body, limit=self._timeouts.write)
                whole = True
            response = read_response(link, limit=self._timeouts.read, max_body=self._max_reply_bytes)
            keep = whole and response.keep
            headers = response.headers
            if "content-encoding" in headers:
                raise BadResponse(f"{self._server} compressed its answer, which was not asked for")
            answer = Answer(
                status=response.status,
                content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
                body=response.body,
                retry_after=headers.get("retry-after"),
                location=headers.get("location"),
            )
            return read(answer)
        except (BadResponse, Corrupt, Truncated, UsageError):
            # The link may have added bytes or taken some: what comes next on it may be the answer to another request.
            keep = False
            raise
        finally:
            self._pool.give(link, keep=keep)

    def _connect(self, tally: Tally, deadline: float) -> Link:
        tls = self._tls.context() if isinstance(self._tls, Tls) else self._tls
        return connect(
            self._address.name,
            self._address.port,
            tls=tls,
            tally=tally,
            limit=self._timeouts.connect,
            deadline=deadline,
        )

    def _current_token(self, *, now: bool = False) -> str:
        return self._token.current(now=now) if isinstance(self._token, TokenFile) else self._token or ""

    def _is_safe(self, e: LinkError | NotHttp, tally: Tally, keyed: bool) -> bool:
        """True if a retry cannot run the inference twice, or if the caller accepts that."""
        match e:
            case NoConnection() | ConnectTimedOut():
                return True  # no byte of the frame was sent
            case DeadlinePassed() | PoolTimedOut() | WriteTimedOut():
                return False
            case _ if keyed:
                return True
            case ReadTimedOut():
                return self._retry_reads
            case Broken():
                # A server may close an idle connection at any time. The edge sees that only with the next request.
                return tally.connects == 0 and tally.attempt_received == 0
        return False


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
