"""StreamTransport delivers frames over one long-lived connection, and again where it was lost."""

from __future__ import annotations

import itertools
import math
import secrets
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    BitstreamError,
    ServerBusy,
    SplitwireError,
    TransportError,
    UsageError,
)
from splitwire.codec.wire.frame import parse_frame
from splitwire.codec.wire.reply import decode_reply
from splitwire.codec.wire.stream import CLOSING, Replied, Status, parse_refusal
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import refused
from splitwire.runtime_edge.transport.base import Key, Reply, Timeouts, make_reply
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile, checked_token, tls_settings
from splitwire.runtime_edge.transport.failures import explain, reason
from splitwire.runtime_edge.transport.http1 import NotHttp
from splitwire.runtime_edge.transport.retry import MAX_PAUSE_S, CircuitBreaker, pause
from splitwire.runtime_edge.transport.sockets import (
    Broken,
    DeadlinePassed,
    LinkError,
    ReadTimedOut,
    Tally,
    drop_after_fork,
)

from .connection import Connection, Failure, NotStream, Pending, Refused
from .opening import Wishes, open_stream

MAX_REPLY_BYTES = 256 << 20
PING_S = 20.0
WINDOW = 64


class StreamTransport:
    """Sends frames to `splitwire cloud serve` over one connection that stays open (docs/stream.md).

    url: stream://host:port, or streams://host with TLS, with a path in front of /v1/stream if a proxy needs one.
    timeouts: how long to wait; None for the defaults of Timeouts. `read` is the longest wait for a reply, `write` for
        the server to take the next bytes, `total` for everything. `pool` has no meaning here.
    retries: how often a frame is sent again after a failure of the link, or when the server is busy and says until
        when. Each frame has a key, so a server that has answered it answers from memory.
    outputs: names of the outputs that replies shall hold; None for all. With none the server runs the inference and
        only acknowledges: Reply.outputs is empty.
    pair: fingerprint of the pair, 8 bytes; then a server that does not serve it refuses the connection.
    device: id of the device in the keys of frames that come without; None for a random one.
    window: most frames in flight; the server may allow fewer. ping_s: after this time without a byte from the server it
        is pinged, and after as long again the connection counts as lost.
    token, verify, breaker, on_event, max_reply_bytes: as for HttpTransport.

    Raises UsageError for a wrong argument. Several threads may call `send`: their frames share the connection, which is
    opened by the first frame. A child of fork() can use the transport of its parent: it opens a connection of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        retries: int = 2,
        outputs: Sequence[str] | None = None,
        pair: bytes | None = None,
        device: str | None = None,
        window: int = WINDOW,
        ping_s: float = PING_S,
        token: str | TokenFile | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        verify: bool | ssl.SSLContext | Tls = True,
        breaker: CircuitBreaker | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        if retries < 0 or max_reply_bytes < 1 or window < 1 or ping_s <= 0:
            raise UsageError("retries must be 0 or more; max_reply_bytes, window and ping_s more than 0")
        if pair is not None and len(pair) != 8:
            raise UsageError(f"a fingerprint has 8 bytes, got {len(pair)}")
        self._address = Address(url, plain="stream", secure="streams")
        self._timeouts = timeouts or Timeouts()
        self._retries = retries
        self._ping_s = ping_s
        self._wishes = Wishes(
            pair=pair,
            outputs=None if outputs is None else tuple(outputs),
            window=window,
            max_reply_bytes=max_reply_bytes,
        )
        self._token = token if isinstance(token, TokenFile) or token is None else checked_token(token)
        self._tls = tls_settings(verify) if self._address.tls else None
        self._breaker = CircuitBreaker(on_event=on_event) if breaker is None else breaker
        self._device = Key(device or f"edge-{secrets.token_hex(6)}", "x", 0).device  # raises UsageError
        self._closed = False
        self._connection: Connection | None = None
        self._begin()
        drop_after_fork(self._breaker)
        drop_after_fork(self)

    def _begin(self) -> None:
        """What belongs to one process. A child counts its frames under another boot id than its parent."""
        self._boot = secrets.token_hex(8)
        self._counters = itertools.count()
        self._opening = threading.Lock()
        self._refused_at: tuple[float, Failure] | None = None
        self._closing = threading.Event()

    def after_fork(self) -> None:
        """In the child of a fork(): drop the parent's connection and locks."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()
        self._begin()
        if self._closed:
            self._closing.set()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self._address.base

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker: its state says whether the server is tried."""
        return self._breaker

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Send one frame and wait for its reply, at most Timeouts.total seconds in all.

        key: None for one of this transport. Raises TransportError (CircuitOpen: the server is not tried for now), or
        the error that the server names.
        """
        (result,) = self.send_many([frame], [key])
        if isinstance(result, SplitwireError):
            raise result
        return result

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Send frames, as many at a time as the server allows, and wait for all replies.

        keys: one per frame; None for one of this transport. Returns, in the order of the frames, the reply or the error
        of each. All together may take Timeouts.total seconds. Raises UsageError for a closed transport, or if there is
        not one key per frame.
        """
        if len(frames) != len(keys):
            raise UsageError(f"send_many takes one key (or None) per frame; got {len(frames)} frames, {len(keys)} keys")
        if self._closed:
            raise UsageError("this StreamTransport is closed; make a new one")
        total = self._timeouts.total
        deadline = math.inf if total is None else time.monotonic() + total
        results: dict[Pending, Reply | SplitwireError] = {}
        pending = [Pending(frame, key) for frame, key in zip(frames, keys, strict=True)]
        waiting: list[Pending] = pending
        while waiting:
            nap = 0.0
            again: list[Pending] = []
            connections = self._start_all(waiting, deadline)
            for p, connection in zip(waiting, connections, strict=True):
                result, wish = self._conclude(p, connection, deadline)
                if wish is not None and p.attempts <= self._retries and time.monotonic() + wish < deadline:
                    nap = max(nap, wish)
                    again.append(p)
                results[p] = result
            waiting = [] if again and self._closing.wait(nap) else again
        return [results[p] for p in pending]

    def close(self) -> None:
        """Say goodbye and close the connection; a pause before a retry ends at once. A second call has no effect."""
        self._closed = True
        self._closing.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        """A transport that nobody closed must not leave its thread behind."""
        with suppress(Exception):
            self.close()

    # ------------------------------------------------------------------ one attempt

    def _start_all(self, waiting: Sequence[Pending], deadline: float) -> list[Connection | None]:
        """Send frames, on a new connection if need be. Returns the connection of each.

        None: there is none, and the frame is settled with the reason. Then those behind it are not tried either.
        """
        connections: list[Connection | None] = []
        failure: Failure | None = None
        for pending in waiting:
            pending.begin()
            connection = self._connection
            if failure is None and (connection is None or not connection.is_usable):
                try:
                    connection = self._open(pending, deadline)
                except (LinkError, NotHttp, SplitwireError) as e:
                    failure = e
            if failure is not None or connection is None:
                pending.settle(failure or DeadlinePassed())
                connections.append(None)
            else:
                connection.transmit(pending, self._next_key, deadline)
                connections.append(connection)
        return connections

    def _open(self, pending: Pending, deadline: float) -> Connection:
        """The connection, opened if there is none. One thread opens; its failure is that of all that wait for it."""
        began = time.monotonic()
        if not self._opening.acquire(timeout=min(deadline - began, threading.TIMEOUT_MAX)):
            raise DeadlinePassed
        try:
            connection = self._connection
            if connection is not None and connection.is_usable:
                return connection
            if self._closed:
                raise UsageError("this StreamTransport was closed while it sent a frame")
            if self._refused_at is not None and self._refused_at[0] > began:
                raise self._refused_at[1]
            try:
                connection = self._connect(pending, deadline)
            except (LinkError, NotHttp, SplitwireError) as e:
                self._refused_at = time.monotonic(), e
                raise
            self._connection = connection
            if self._closing.is_set():  # while it was opened
                connection.close()
            return connection
        finally:
            self._opening.release()

    def _connect(self, pending: Pending, deadline: float) -> Connection:
        server = self._address.server
        if pending.key is None:
            pending.key = self._next_key()
        while True:
            token = self._current_token()
            self._breaker.admit(server)
            try:
                opened = open_stream(
                    self._address,
                    token=token,
                    tls=self._tls.context() if isinstance(self._tls, Tls) else self._tls,
                    timeouts=self._timeouts,
                    deadline=deadline,
                    first=pending.key,
                    wishes=self._wishes,
                )
            except ServerBusy as e:
                self._breaker.failed(server, "it is busy", e.retry_after or 0.0)
                raise
            except (LinkError, NotHttp) as e:
                self._breaker.failed(server, reason(e))
                raise
            except AuthRefused:
                self._breaker.succeeded(server)
                if self._token is None or self._current_token(now=True) == token:
                    raise  # otherwise the token was renewed in this moment
            except SplitwireError:
                self._breaker.succeeded(server)
                raise
            except BaseException:
                self._breaker.forget()
                raise
            else:
                break
        self._breaker.succeeded(server)
        pending.sent += opened.sent
        pending.received += opened.received
        connection = Connection(opened, write_limit=self._timeouts.write, ping_s=self._ping_s)
        connection.start()
        return connection

    def _next_key(self) -> Key:
        return Key(self._device, self._boot, next(self._counters))

    def _current_token(self, *, now: bool = False) -> str:
        return self._token.current(now=now) if isinstance(self._token, TokenFile) else self._token or ""

    # ------------------------------------------------------------------ its outcome

    def _conclude(
        self, pending: Pending, connection: Connection | None, deadline: float
    ) -> tuple[Reply | SplitwireError, float | None]:
        """Wait for the outcome of an attempt. Returns it, and the pause before another attempt if that is worth one."""
        limit = self._timeouts.read
        while not pending.wait(min(limit, deadline - time.monotonic())):
            late = ReadTimedOut() if time.monotonic() < deadline else DeadlinePassed()
            if connection is None or connection.heard > pending.since:
                return self._explain(late, pending), None  # the link works; the reply is late
            connection.fail(late)  # which settles it, if nothing has by now
            limit = math.inf
        outcome = pending.outcome
        if isinstance(outcome, Replied):
            return self._understand(outcome, pending)
        assert outcome is not None  # noqa: S101 - settled
        match outcome:
            case ServerBusy():
                return outcome, self._pause_for(outcome, pending)
            case BadResponse():  # damaged on its way, or not our server
                return outcome, pause(pending.attempts)
            case SplitwireError():
                return outcome, None
            case Refused():
                if outcome.refusal.code == CLOSING:
                    return self._explain(Broken(), pending), pause(pending.attempts)
                error = refused(outcome.refusal, self._address.server)
                if isinstance(error, ServerBusy):
                    return error, self._pause_for(error, pending)
                return error, pause(pending.attempts)
            case DeadlinePassed():
                return self._explain(outcome, pending), None
        return self._explain(outcome, pending), pause(pending.attempts)

    def _understand(self, replied: Replied, pending: Pending) -> tuple[Reply | SplitwireError, float | None]:
        server = self._address.server
        if replied.status in (Status.ERROR, Status.DAMAGED):
            try:
                error = refused(parse_refusal(replied.body), server)
            except BitstreamError as e:
                return BadResponse(f"{server} answers with an error that cannot be read: {e}"), None
            if replied.status is Status.DAMAGED:
                return error, pause(pending.attempts) if _is_sound(pending.frame) else None
            return error, self._pause_for(error, pending) if isinstance(error, ServerBusy) else None
        cost = {"sent": pending.sent, "received": pending.received, "attempts": pending.attempts}
        if replied.status is Status.TAKEN:
            frame_id = parse_frame(pending.frame).frame_id
            return Reply(
                outputs={},
                frame_id=frame_id,
                decode_ms=0.0,
                back_ms=0.0,
                bytes_sent=pending.sent,
                bytes_received=pending.received,
                attempts=pending.attempts,
            ), None
        try:
            return make_reply(decode_reply(replied.body), **cost), None
        except BadResponse as e:
            return e, None

    @staticmethod
    def _pause_for(busy: ServerBusy, pending: Pending) -> float | None:
        asked = busy.retry_after
        return None if asked is None or asked > MAX_PAUSE_S else pause(pending.attempts, asked)

    def _explain(self, e: LinkError | NotHttp, pending: Pending) -> TransportError:
        server = self._address.server
        error: TransportError
        if isinstance(e, NotStream):
            error = BadResponse(f"{server} does not speak the stream as `splitwire cloud serve` does: {e}")
        else:
            error = explain(e, server, Tally(), pending.attempts, self._timeouts.total)
        error.__cause__ = e
        return error


def _is_sound(frame: bytes) -> bool:
    """Whether a frame was valid when it was sent, so that the link has damaged it."""
    try:
        parse_frame(frame)
    except BitstreamError:
        return False
    return True
