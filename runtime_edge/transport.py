"""What a session talks to: a Transport takes a frame and brings back the reply.

    LoopbackTransport   a function in this process, e.g. `CloudSession.handle`
    HttpTransport       `splitwire cloud serve`, over HTTP/1.1 with keep-alive

A transport raises TransportError, or the error of ours that the far end named; nothing else.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol
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
from splitwire.codec.reply import FRAME_MEDIA_TYPE, DecodedReply, Outputs, decode_reply

from .answers import Answer, understand
from .wire import CountingTransport, Tally

MAX_REPLY_BYTES = 256 << 20
KEEPALIVE_S = 60.0
"""Idle seconds after which a connection is not used again; below the server's 75 s (runtime_cloud/serve.py)."""
MAX_PAUSE_S = 10.0
"""Longest pause before a retry. A server that asks for more is not waited for: the caller decides."""
FIRST_PAUSE_S = 0.1
CUT_SHORT = "peer closed connection without sending complete message body"
"""What h11 says where a server is killed while it answers."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one frame.

    decode_ms, back_ms: time spent in the cloud. bytes_sent, bytes_received: what crossed the link for this frame, heads
    and retries included. attempts: 1, unless a try failed and was repeated.
    """

    outputs: Outputs
    frame_id: int
    decode_ms: float
    back_ms: float
    bytes_sent: int
    bytes_received: int
    attempts: int = 1


class Transport(Protocol):
    """The one thing an EdgeSession needs of the network. Implementations may be shared between threads."""

    def send(self, frame: bytes) -> Reply:
        """Deliver a frame and wait for its reply. Raises TransportError, or the error the far end named."""
        ...

    def close(self) -> None:
        """Let go of connections. Calling it twice is fine."""
        ...


class LoopbackTransport:
    """Edge and cloud in one process, through the same bytes as over a network.

    handler: frame bytes → reply bytes, e.g. `CloudSession(back).handle`; its errors come through as they are.
    """

    def __init__(self, handler: Callable[[bytes], bytes]) -> None:
        self._handler = handler

    def send(self, frame: bytes) -> Reply:
        """Hand a frame to the handler. Raises what the handler raises, or BadResponse for what is no reply."""
        answer = self._handler(frame)
        return _reply(decode_reply(answer), sent=len(frame), received=len(answer), attempts=1)

    def close(self) -> None:
        """Do nothing: there is no connection."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long an HttpTransport waits, in seconds.

    connect: to a connection. read: without a byte of the answer. write: without a byte accepted. pool: until one of the
    connections is free, when several threads share a transport.
    """

    connect: float = 5.0
    read: float = 30.0
    write: float = 30.0
    pool: float = 5.0


class HttpTransport:
    """Frames to `splitwire cloud serve` over HTTP/1.1, on connections that stay open.

    url: http://host:port or https://host, with a path in front of /v1/infer if a proxy needs one.
    retries: how often a failed try is repeated. Only failures that cannot have run the inference twice are: no
        connection; a kept connection that was closed before the answer began; a 503 that says when to come back.
    retry_reads: also repeat after a read timeout (the server may then do the work twice).
    token: sent as `Authorization: Bearer …`.
    lean: leave out Content-Type and User-Agent, 70 bytes of every frame. Our server needs neither; a proxy may.
    verify: as httpx: True, False, or an ssl.SSLContext.

    The head of a request has five lines and no more, because it is paid for with every frame (docs/runtime.md).
    Proxies and credentials of the environment are not used.
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
        # Reading the trusted certificates takes tens of milliseconds: only where they are needed.
        tls = httpx.create_ssl_context(verify=verify) if self._url.scheme == "https" else None
        # httpx's transport and messages without its client: no redirects, cookies, proxies or .netrc to switch off, and
        # 0.1 ms less per frame.
        self._wire = CountingTransport(keepalive_s=KEEPALIVE_S, max_connections=max_connections, tls=tls)
        self._closed = False

    @property
    def url(self) -> str:
        """Where frames are posted."""
        return str(self._url)

    def send(self, frame: bytes) -> Reply:
        """Post one frame and wait for its reply. Raises TransportError, or the error that the server named."""
        if self._closed:
            raise UsageError("this HttpTransport is closed; make a new one")
        tally = self._wire.start_tally()
        attempt = 0
        while True:
            attempt += 1
            tally.begin_attempt()
            wait: float | None = None
            try:
                decoded = understand(self._exchange(frame), self._server)
                return _reply(decoded, sent=tally.sent, received=tally.received, attempts=attempt)
            except ServerBusy as busy:
                wait = busy.retry_after
                if wait is None or wait > MAX_PAUSE_S or attempt > self._retries:
                    raise
            except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, UnicodeError) as e:
                if attempt > self._retries or not self._is_safe(e, tally):
                    raise _explain(e, self._server, tally, attempt) from e
            time.sleep(_pause(attempt, wait))

    def close(self) -> None:
        """Close the connections. Calling it twice is fine."""
        self._closed = True
        self._wire.close()

    def _exchange(self, frame: bytes) -> Answer:
        """One try: the request out, the whole answer in, never more than max_reply_bytes of it."""
        # A bare Request: httpx adds Host and Content-Length, and none of a client's default headers.
        extensions = {"timeout": self._timeouts}
        request = httpx.Request("POST", self._url, headers=self._headers, content=frame, extensions=extensions)
        response = self._wire.handle_request(request)
        try:
            headers = response.headers
            if "content-encoding" in headers:
                raise BadResponse(f"{self._server} compressed its answer, which was not asked for")
            declared = headers.get("content-length", "0")
            body = bytearray()
            # int() takes at most 4300 digits; h11 has already refused a length that is not a number of ≤ 20 digits
            if int(declared) > self._max_reply_bytes:
                raise self._too_long(declared)
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_reply_bytes:
                    raise self._too_long("more")
            return Answer(
                status=response.status_code,
                content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
                body=bytes(body),
                retry_after=headers.get("retry-after"),
                location=headers.get("location"),
            )
        finally:
            response.close()

    def _too_long(self, what: str) -> BadResponse:
        return BadResponse(f"{self._server} answers with {what} bytes; the limit is {self._max_reply_bytes}")

    def _is_safe(self, e: Exception, tally: Tally) -> bool:
        """True if repeating cannot run the inference twice, or the caller accepts that."""
        if isinstance(e, (httpcore.ConnectError, httpcore.ConnectTimeout)):
            return True  # nothing of the frame has left
        if isinstance(e, httpcore.ReadTimeout):
            return self._retry_reads
        # A server closes an idle connection at any time; that is seen only when the next request meets it.
        dropped = isinstance(e, (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError))
        return dropped and tally.connects == 0 and tally.attempt_received == 0


def _infer_url(url: str) -> httpx.URL:
    """Base URL → where frames are posted. Raises UsageError for what is not an http(s) base URL."""
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
    """Seconds before try attempt + 1: doubling, with jitter so that a crowd of edges does not return at once."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
    backoff = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * jitter
    return backoff if retry_after is None else retry_after + backoff


def _explain(e: Exception, server: str, tally: Tally, attempts: int) -> TransportError:
    """A failure of the link, in one sentence that says what to do."""
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
    """What a failure began with: httpcore keeps the cause as its argument."""
    while e.args and isinstance(e.args[0], Exception):
        e = e.args[0]
    return e


def _reason(e: Exception) -> str:
    """The bottom of the chain of causes: the operating system's own words, where it has any."""
    e = root_cause(e)
    text = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
    return text[:1].lower() + text[1:]


def _reply(decoded: DecodedReply, *, sent: int, received: int, attempts: int) -> Reply:
    return Reply(
        outputs=decoded.outputs,
        frame_id=decoded.frame_id,
        decode_ms=decoded.decode_ms,
        back_ms=decoded.back_ms,
        bytes_sent=sent,
        bytes_received=received,
        attempts=attempts,
    )
