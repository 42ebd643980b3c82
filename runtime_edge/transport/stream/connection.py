"""One stream: frames out in order, replies in in any order. A thread reads; any thread sends.

A frame is pending from `transmit` until it is settled: with the server's answer, or with the reason why none comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from splitwire.codec.errors import BitstreamError, LimitExceeded, SplitwireError
from splitwire.codec.wire.stream import (
    CLOSING,
    MAX_NUMBER,
    MAX_WINDOW,
    Keyed,
    Kind,
    Record,
    RecordParser,
    Refusal,
    Replied,
    Status,
    Welcome,
    frame_record,
    goodbye_record,
    keyed_record,
    number_record,
    parse_number,
    parse_refusal,
    parse_reply,
    varint,
)
from splitwire.runtime_edge.transport.base import Key
from splitwire.runtime_edge.transport.http1 import NotHttp
from splitwire.runtime_edge.transport.sockets import Broken, DeadlinePassed, LinkError, ReadTimedOut

from .sockets import DuplexSocket

FROM_SERVER = frozenset({int(Kind.REPLY), int(Kind.WINDOW), int(Kind.PONG), int(Kind.GOODBYE)})
GOODBYE_S = 1.0
"""Longest wait to say goodbye, seconds."""


class NotStream(LinkError):
    """What the server sends is not of the protocol; the argument says why."""


class Refused(LinkError):
    """The server ended the stream with a goodbye that names an error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


Failure = LinkError | NotHttp | SplitwireError
NextKey = Callable[[], Key]


class Pending:
    """A frame on its way.

    key: None until its first transmission, if the caller gave none. sent, received, attempts: bytes and transmissions
    so far.
    """

    __slots__ = ("_done", "attempts", "frame", "key", "outcome", "received", "sent", "since")

    def __init__(self, frame: bytes, key: Key | None) -> None:
        self.frame = frame
        self.key = key
        self.sent = self.received = self.attempts = 0
        self.since = 0.0
        self.outcome: Replied | Failure | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def begin(self) -> None:
        """Begin another attempt. Each attempt is settled once, and `wait` returns True once for it."""
        self.attempts += 1
        self.outcome = None

    def settle(self, outcome: Replied | Failure) -> None:
        """Say how it ended, and wake the thread that waits."""
        self.outcome = outcome
        self._done.release()

    def wait(self, timeout: float) -> bool:
        """Whether it is settled within `timeout` seconds."""
        return self._done.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A stream behind its welcome. parser: with what has been received behind it.

    device, boot, counter: as in the hello. sent, received: bytes that opening it took.
    """

    sock: DuplexSocket
    parser: RecordParser
    welcome: Welcome
    device: str
    boot: str
    counter: int
    sent: int
    received: int


class Connection:
    """A stream that is open.

    write_limit: longest wait for the server to take the next bytes, seconds. ping_s: after this time without a byte
    from the server it is pinged, and after as long again it counts as gone.
    """

    def __init__(self, opened: Opened, *, write_limit: float, ping_s: float) -> None:
        self._opened = opened
        self._sock = opened.sock
        self._parser = opened.parser
        self._write_limit = write_limit
        self._ping_s = min(ping_s, opened.welcome.idle_s / 3)
        self._window = opened.welcome.window
        self._next_counter = opened.counter
        self._sequence = 0
        self._in_flight: dict[int, Pending] = {}
        # Over the choice of a sequence number and the write, so that both have one order.
        self._turn = threading.Lock()
        # Over a write: the reading thread sends pings, also while others wait for the window.
        self._writing = threading.Lock()
        # Over the window, the frames in flight and the fields below.
        self._state = threading.Condition()
        self._ending = False
        self._failure: Failure | None = None
        self.heard = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="splitwire-stream", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """Whether frames can be sent: the stream is open, and the server has not said goodbye."""
        return not self._ending

    def transmit(self, pending: Pending, next_key: NextKey, deadline: float) -> None:
        """Send a frame, when the window allows it; `pending` is settled later, or at once if that fails.

        next_key: makes the key of a frame that has none. deadline: as time.monotonic() counts.
        """
        most = self._opened.welcome.max_frame
        if len(pending.frame) > most:
            pending.settle(LimitExceeded(f"the frame has {len(pending.frame)} bytes; the server takes {most}"))
            return
        if not self._turn.acquire(timeout=_allowed(deadline)):
            pending.settle(DeadlinePassed())
            return
        try:
            with self._state:
                while not self._ending and len(self._in_flight) >= self._window:
                    if not self._state.wait(_allowed(deadline)):
                        pending.settle(DeadlinePassed())
                        return
                if self._ending:
                    pending.settle(self._failure or Broken())
                    return
                if pending.key is None:
                    pending.key = next_key()
                record = self._record(pending.frame, pending.key)
                self._in_flight[self._sequence] = pending
                self._sequence += 1
            pending.since = time.monotonic()
            pending.sent += len(record)
            try:
                self._write(record, deadline)
            except LinkError as e:  # a part of the record may be sent, so nothing can follow it
                self.fail(e)
        finally:
            self._turn.release()

    def _record(self, frame: bytes, key: Key) -> bytes:
        """The shortest record that says this key."""
        opened = self._opened
        if (key.device, key.boot) != (opened.device, opened.boot):
            return keyed_record(Keyed(self._sequence, key.counter, key.device, key.boot, frame))
        expected, self._next_counter = self._next_counter, min(key.counter + 1, MAX_NUMBER)
        if key.counter == expected:
            return frame_record(self._sequence, frame)
        return keyed_record(Keyed(self._sequence, key.counter, "", "", frame))

    def _write(self, data: bytes, deadline: float) -> None:
        if not self._writing.acquire(timeout=_allowed(deadline)):
            raise DeadlinePassed
        try:
            self._sock.send(data, limit=self._write_limit, deadline=deadline)
        finally:
            self._writing.release()

    # ------------------------------------------------------------------ the reading thread

    def _read(self) -> None:
        failure: Failure = Broken()
        try:
            self._take_records()
            pinged = False
            while True:
                data = self._sock.receive(self._ping_s)
                if data:
                    pinged = False
                    self.heard = time.monotonic()
                    self._parser.feed(data)
                    self._take_records()
                elif data is not None:
                    break
                elif pinged:
                    failure = ReadTimedOut()
                    break
                else:
                    pinged = True
                    self._ping()
        except LinkError as e:
            failure = e
        except BitstreamError as e:
            failure = NotStream(str(e))
        except Exception as e:
            failure = Broken()
            failure.__cause__ = e
        finally:
            self.fail(failure)
            self._sock.close()

    def _ping(self) -> None:
        """Ask whether the server is there. A write that waits asks the same, so then there is no ping."""
        if self._writing.acquire(blocking=False):
            try:
                ping = number_record(Kind.PING, 0)
                self._sock.send(ping, limit=self._write_limit, deadline=time.monotonic() + self._write_limit)
            finally:
                self._writing.release()

    def _take_records(self) -> None:
        while (record := self._parser.next_record()) is not None:
            self._take(record)

    def _take(self, record: Record) -> None:
        if record.head == Kind.REPLY:
            replied = parse_reply(record.body)
            with self._state:
                if replied.sequence >= self._sequence:
                    raise NotStream(f"it answers frame {replied.sequence}, which was not sent")
                pending = self._in_flight.pop(replied.sequence, None)
                if replied.status is Status.DAMAGED:  # the server reads nothing behind it
                    self._ending = True
                self._state.notify()
            if pending is not None:
                size = len(record.body) + 4
                pending.received += 1 + len(varint(size)) + size
                pending.settle(replied)
        elif record.head == Kind.WINDOW:
            window = parse_number(record.body, MAX_WINDOW)
            with self._state:
                self._window = max(1, window)
                self._state.notify_all()
        elif record.head == Kind.GOODBYE:
            refusal = parse_refusal(record.body)
            if refusal.code != CLOSING:
                raise Refused(refusal)
            with self._state:
                self._ending = True
                idle = not self._in_flight
                self._state.notify_all()
            if idle:
                raise Broken
        if self._ending and not self._in_flight:
            raise Broken

    # ------------------------------------------------------------------ the end

    def fail(self, failure: Failure) -> None:
        """End the stream; every frame in flight is settled with `failure`. A second call has no effect."""
        with self._state:
            if self._failure is not None:
                return
            self._failure = failure
            self._ending = True
            lost, self._in_flight = list(self._in_flight.values()), {}
            self._state.notify_all()
        self._sock.shut()
        for pending in lost:
            pending.settle(failure)

    def close(self) -> None:
        """Say goodbye and end the stream."""
        if self._failure is None:
            goodbye = goodbye_record(Refusal(code=CLOSING, message="the device closes the stream"))
            with suppress(LinkError):
                self._write(goodbye, time.monotonic() + GOODBYE_S)
            self.fail(Broken())

    def drop(self) -> None:
        """Close this process's copy of the connection, in the child of a fork()."""
        self._sock.close()


def _allowed(deadline: float) -> float:
    """Seconds until the deadline, as a lock takes them."""
    return min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
