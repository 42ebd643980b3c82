"""HttpClient posts bodies over HTTP/1.1 on connections that stay open: what the transports over HTTP share."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    Corrupt,
    ServerBusy,
    SplitwireError,
    Truncated,
    UsageError,
)
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import Answer
from splitwire.runtime_edge.transport.base import Timeouts
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile, checked_token, tls_settings
from splitwire.runtime_edge.transport.failures import explain, reason
from splitwire.runtime_edge.transport.http1 import NotHttp, read_response
from splitwire.runtime_edge.transport.retry import MAX_PAUSE_S, CircuitBreaker, RetryBudget, pause
from splitwire.runtime_edge.transport.sockets import (
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
KEEPALIVE_S = 60.0
"""A connection that was idle for this many seconds is not used again. Less than the server's 75 s
(runtime_cloud/engines/process.py)."""


class HttpClient:
    """Posts bodies to one server, each again where that is safe.

    owner: name of the transport, for a message. The other arguments are those of HttpTransport. Raises UsageError.
    Threads can share it, and a child of fork() can use that of its parent.
    """

    def __init__(
        self,
        address: Address,
        *,
        owner: str,
        timeouts: Timeouts | None = None,
        retries: int = 2,
        retry_reads: bool = False,
        token: str | TokenFile | None = None,
        max_connections: int = 8,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        verify: bool | ssl.SSLContext | Tls = True,
        breaker: CircuitBreaker | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        if retries < 0 or max_reply_bytes < 1 or max_connections < 1:
            raise UsageError("retries must be 0 or more, max_reply_bytes and max_connections 1 or more")
        self.server = address.server
        self.is_closed = threading.Event()
        self._address = address
        self._owner = owner
        self._timeouts = timeouts or Timeouts()
        self._retries = retries
        self._retry_reads = retry_reads
        self._max_reply_bytes = max_reply_bytes
        self._token = token if isinstance(token, TokenFile) or token is None else checked_token(token)
        # Reading the trusted certificates takes tens of milliseconds. Plain HTTP does not need them.
        self._tls = tls_settings(verify) if address.tls else None
        self._pool = Pool(self._connect, most=max_connections, keepalive_s=KEEPALIVE_S)
        self.breaker = CircuitBreaker(on_event=on_event) if breaker is None else breaker
        drop_after_fork(self.breaker)
        self._budget = RetryBudget()

    def close(self) -> None:
        """Close the connections; a pause before a retry ends at once. A second call has no effect."""
        self.is_closed.set()
        self._pool.close()

    def deliver(
        self, head: str, body: bytes, *, keyed: bool, read: Callable[[Answer], T], tally: Tally
    ) -> tuple[T, int]:
        """Post a body, again where that is safe; what `read` makes of the answer, and the number of attempts.

        head: the lines of the head but Authorization and Content-Length, each with its end. keyed: the server does not
        compute it twice. tally: counts the bytes. Raises TransportError, and what `read` raises.
        """
        if self.is_closed.is_set():
            raise UsageError(f"this {self._owner} is closed; make a new one")
        total = self._timeouts.total
        deadline = math.inf if total is None else time.monotonic() + total
        attempt = 0
        while True:
            attempt += 1
            tally.begin_attempt()
            self.breaker.admit(self.server)
            asked: float | None = None
            error: SplitwireError
            token = "" if self._token is None else self._current_token()
            try:
                value = self._exchange(head, token, body, read, tally, deadline)
            except ServerBusy as e:
                asked, error = e.retry_after, e
                self.breaker.failed(self.server, "it is busy", asked or 0.0)
                again = asked is not None and asked <= MAX_PAUSE_S
            except (LinkError, NotHttp) as e:
                error = explain(e, self.server, tally, attempt, total)
                error.__cause__ = e
                if isinstance(e, PoolTimedOut):
                    self.breaker.forget()
                else:
                    self.breaker.failed(self.server, reason(e))
                again = self._is_safe(e, tally, keyed)
            except (AuthRefused, Corrupt, Truncated, BadResponse) as e:
                self.breaker.succeeded(self.server)
                error = e
                match e:
                    case AuthRefused():  # the token may have been renewed in this moment
                        again = self._token is not None and self._current_token(now=True) != token
                    case BadResponse():  # the answer may be damaged: with a key it is in the server's memory
                        again = keyed
                    case _:  # the server did not get the frame as it was sent
                        again = True
            except SplitwireError:
                self.breaker.succeeded(self.server)
                raise
            except BaseException:
                self.breaker.forget()
                raise
            else:
                self.breaker.succeeded(self.server)
                self._budget.earn()
                return value, attempt
            if not again or attempt > self._retries or self.breaker.state != "closed" or not self._budget.spend():
                raise error
            nap = pause(attempt, asked)
            if time.monotonic() + nap >= deadline or self.is_closed.wait(nap):
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
                raise BadResponse(f"{self.server} compressed its answer, which was not asked for")
            answer = Answer(
                status=response.status,
                content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
                body=response.body,
                retry_after=headers.get("retry-after"),
                location=headers.get("location"),
                json_length=headers.get("inference-header-content-length"),
                code=headers.get("x-splitwire-code"),
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
