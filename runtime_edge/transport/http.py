"""HttpTransport posts frames to `splitwire cloud serve`, over HTTP/1.1 with keep-alive."""

from __future__ import annotations

import random
import ssl
import time
from dataclasses import asdict
from urllib.parse import urlsplit

import httpcore
import httpx

from splitwire.codec.errors import (
    BadResponse,
    ConnectTimeout,
    RequestTimeout,
    ServerBusy,
    TransportError,
    UsageError,
)
from splitwire.codec.wire.reply import FRAME_MEDIA_TYPE

from .answers import Answer, understand
from .base import Key, Reply, Timeouts, make_reply
from .sockets import CountingTransport, Tally

MAX_REPLY_BYTES = 256 << 20
KEEPALIVE_S = 60.0
"""A connection that was idle for this many seconds is not used again. Less than the server's 75 s
(runtime_cloud/serve.py)."""
MAX_PAUSE_S = 10.0
"""Longest pause before a retry, seconds. If the server asks for a longer one, there is no retry: the caller decides."""
FIRST_PAUSE_S = 0.1
CUT_SHORT = "peer closed connection without sending complete message body"
"""What h11 says if a server is killed while it answers."""


class HttpTransport:
    """Sends frames to `splitwire cloud serve` over HTTP/1.1, on connections that stay open.

    url: http://host:port or https://host, with a path in front of /v1/infer if a proxy needs one.
    timeouts: how long to wait; None for the defaults of Timeouts.
    retries: how often a failed attempt is repeated. A retry follows only if the inference cannot have run: there was no
        connection; an open connection closed before the answer began; or the server answered 503 with a Retry-After.
    retry_reads: also repeat after a read timeout. The server may then run the inference twice.
    token: sent as `Authorization: Bearer …`.
    lean: leave out Content-Type and User-Agent, 70 bytes of every frame. `splitwire cloud serve` needs neither; a proxy
        may need them.
    max_connections: most connections at a time. max_reply_bytes: a longer reply is refused.
    verify: as in httpx: True, False, or an ssl.SSLContext.

    Raises UsageError for a wrong argument. The head of a request has five lines only, because every frame sends it
    (docs/runtime.md). Proxies and credentials from the environment are not used.
    """

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        retries: int = 2,
        retry_reads: bool = False,
        token: str | None = None,
        lean: bool = False,
        max_connections: int = 8,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._url = _infer_url(url)
        self._server = f"{self._url.host}:{self._url.port or (443 if self._url.scheme == 'https' else 80)}"
        self._headers = [] if lean else [("Content-Type", FRAME_MEDIA_TYPE), ("User-Agent", "splitwire")]
        if token is not None:
            if not token or not all("!" <= c <= "~" for c in token):
                raise UsageError("a token must be printable ASCII without spaces")
            self._headers.append(("Authorization", f"Bearer {token}"))
        if retries < 0 or max_reply_bytes < 1 or max_connections < 1:
            raise UsageError("retries must be 0 or more, max_reply_bytes and max_connections 1 or more")
        self._retries = retries
        self._retry_reads = retry_reads
        self._max_reply_bytes = max_reply_bytes
        self._timeouts = asdict(timeouts or Timeouts())
        # Reading the trusted certificates takes tens of milliseconds. Plain HTTP does not need them.
        tls = httpx.create_ssl_context(verify=verify) if self._url.scheme == "https" else None
        # This uses httpx's transport and messages without its client. So there are no redirects, cookies, proxies or
        # .netrc to switch off, and a frame takes 0.1 ms less.
        self._wire = CountingTransport(keepalive_s=KEEPALIVE_S, max_connections=max_connections, tls=tls)
        self._closed = False

    @property
    def url(self) -> str:
        """The URL that frames are posted to."""
        return str(self._url)

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Post one frame and wait for its reply. Raises TransportError, or the error that the server names.

        key: sent as `Idempotency-Key`.
        """
        if self._closed:
            raise UsageError("this HttpTransport is closed; make a new one")
        tally = self._wire.start_tally()
        attempt = 0
        while True:
            attempt += 1
            tally.begin_attempt()
            wait: float | None = None
            try:
                decoded = understand(self._exchange(frame, key), self._server)
                return make_reply(decoded, sent=tally.sent, received=tally.received, attempts=attempt)
            except ServerBusy as busy:
                wait = busy.retry_after
                if wait is None or wait > MAX_PAUSE_S or attempt > self._retries:
                    raise
            except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, UnicodeError) as e:
                if attempt > self._retries or not self._is_safe(e, tally):
                    raise _explain(e, self._server, tally, attempt) from e
            time.sleep(_pause(attempt, wait))

    def close(self) -> None:
        """Close the connections. A second call has no effect."""
        self._closed = True
        self._wire.close()

    def _exchange(self, frame: bytes, key: Key | None) -> Answer:
        """One attempt: send the request and read the whole answer, at most max_reply_bytes of it."""
        # httpx adds only Host and Content-Length to a bare Request, not the default headers of a client.
        extensions = {"timeout": self._timeouts}
        headers = self._headers if key is None else [*self._headers, ("Idempotency-Key", f'"{key}"')]
        request = httpx.Request("POST", self._url, headers=headers, content=frame, extensions=extensions)
        response = self._wire.handle_request(request)
        try:
            answered = response.headers
            if "content-encoding" in answered:
                raise BadResponse(f"{self._server} compressed its answer, which was not asked for")
            declared = answered.get("content-length", "0")
            body = bytearray()
            # int() takes at most 4300 digits; h11 has refused a length that is not a number of at most 20 digits
            if int(declared) > self._max_reply_bytes:
                raise self._too_long(declared)
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_reply_bytes:
                    raise self._too_long("more")
            return Answer(
                status=response.status_code,
                content_type=answered.get("content-type", "").partition(";")[0].strip().lower(),
                body=bytes(body),
                retry_after=answered.get("retry-after"),
                location=answered.get("location"),
            )
        finally:
            response.close()

    def _too_long(self, what: str) -> BadResponse:
        return BadResponse(f"{self._server} answers with {what} bytes; the limit is {self._max_reply_bytes}")

    def _is_safe(self, e: Exception, tally: Tally) -> bool:
        """True if a retry cannot run the inference twice, or if the caller accepts that."""
        if isinstance(e, (httpcore.ConnectError, httpcore.ConnectTimeout)):
            return True  # no byte of the frame was sent
        if isinstance(e, httpcore.ReadTimeout):
            return self._retry_reads
        # A server may close an idle connection at any time. The edge sees that only with the next request.
        dropped = isinstance(e, (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError))
        return dropped and tally.connects == 0 and tally.attempt_received == 0


def _infer_url(url: str) -> httpx.URL:
    """The URL that frames are posted to, from the base URL. Raises UsageError if that is no http(s) base URL."""
    try:
        parts = urlsplit(url)
        parsed = httpx.URL(url.rstrip("/") + "/v1/infer")
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except (ValueError, httpx.InvalidURL) as e:
        raise UsageError(f"{url!r} is not a URL: {e}; expected http://host:port") from e
    if not sound:
        raise UsageError(f"{url!r} is not a server's address; expected http://host:port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(f"the address of {parts.hostname!r} must not hold a user, a query or a fragment; use token=")
    return parsed


def _pause(attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: doubled each time, with jitter, so that many edges do not retry at once."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
    backoff = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * jitter
    return backoff if retry_after is None else retry_after + backoff


def _explain(e: Exception, server: str, tally: Tally, attempts: int) -> TransportError:
    """The error for a failure of the link; its message is one sentence that says what to do."""
    tries = f" after {attempts} tries" if attempts > 1 else ""
    match e:
        case httpcore.ConnectTimeout():
            return ConnectTimeout(f"{server} did not accept a connection in time{tries}; check the address")
        case httpcore.ConnectError() if isinstance(root_cause(e), ssl.SSLError):
            return ConnectTimeout(
                f"{server}: no TLS connection{tries}: {_reason(e)}; check https:// and the certificate"
            )
        case httpcore.ConnectError() | UnicodeError():
            return ConnectTimeout(f"{server}: {_reason(e)}{tries}; is `splitwire cloud serve` running there?")
        case httpcore.PoolTimeout():
            return RequestTimeout("every connection of this transport is in use; raise max_connections")
        case httpcore.ReadTimeout():
            return RequestTimeout(f"{server} did not answer in time; raise the read timeout, or send less at once")
        case httpcore.TimeoutException():
            return RequestTimeout(f"{server} did not take the frame in time; raise the write timeout, or send less")
        case httpcore.RemoteProtocolError() if CUT_SHORT in str(e):
            return BadResponse(f"{server} closed the connection in the middle of its answer{tries}")
        case httpcore.ProtocolError() if tally.attempt_received:
            return BadResponse(f"{server} does not answer in HTTP as `splitwire cloud serve` does: {_reason(e)}")
    when = "in the middle of its answer" if tally.attempt_received else "before it answered"
    return TransportError(f"{server} closed the connection {when}{tries}: {_reason(e)}")


def root_cause(e: Exception) -> Exception:
    """The first error in a chain of causes. httpcore keeps the cause as the argument of its exception."""
    while e.args and isinstance(e.args[0], Exception):
        e = e.args[0]
    return e


def _reason(e: Exception) -> str:
    """The text of the first error in the chain of causes: that of the operating system, if there is one."""
    e = root_cause(e)
    text = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
    return text[:1].lower() + text[1:]
