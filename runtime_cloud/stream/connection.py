"""One stream: records in, inference in the compute threads, replies out. Nothing that comes is trusted.

    HELLO     until the client's hello
    OPEN      frames and replies
    DRAINING  goodbye is said, because the server stops: frames that were taken are answered, nothing more is read
    ENDING    goodbye is said, for good: what still arrives is dropped, so that the client can read the goodbye

All in the thread of the event loop, except the inference.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from typing import Any, cast

import msgspec

from splitwire.codec.errors import (
    AuthRefused,
    BitstreamError,
    Corrupt,
    Forbidden,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    UnsupportedVersion,
    UsageError,
)
from splitwire.codec.wire.frame import DecoderLimits, parse_frame
from splitwire.codec.wire.reply import printable
from splitwire.codec.wire.stream import (
    CLOSING,
    FRAME,
    MAX_NUMBER,
    MAX_RECORD,
    SEQUENCES,
    VERSION,
    Hello,
    Kind,
    Record,
    RecordParser,
    Refusal,
    Status,
    Welcome,
    goodbye_record,
    number_record,
    parse_hello,
    parse_keyed,
    parse_number,
    refusal_body,
    reply_record,
    welcome_record,
)
from splitwire.runtime_cloud.security import NOBODY, Caller, public_text
from splitwire.runtime_cloud.service import Call

from .streams import Streams

log = logging.getLogger("splitwire.cloud")

BEFORE_HELLO = frozenset({int(Kind.HELLO)})
AFTER_HELLO = frozenset({FRAME, int(Kind.KEYED), int(Kind.PING), int(Kind.GOODBYE)})
Key = tuple[str, str, int]
"""(device, boot, counter): which frame of which run of which device."""
LINGER_S = 1.0
"""How long a connection stays open behind a goodbye, for the client to read it. Closing at once while bytes arrive
would reset the connection, and the goodbye would be lost."""
WRITE_BUFFER = 1 << 20
"""Replies that wait for the client, bytes; with more, nothing is read from it."""


class State(enum.Enum):
    """See the module."""

    HELLO = "hello"
    OPEN = "open"
    DRAINING = "draining"
    ENDING = "ending"


class StreamConnection(asyncio.Protocol):
    """The server's end of one stream."""

    def __init__(self, streams: Streams, caller: Caller = NOBODY) -> None:
        self._streams = streams
        self._caller = caller
        self._gate = streams.service.gate
        limits = streams.service.limits
        self._max_frame = min(limits.max_body, MAX_RECORD)
        self._frame_limits = DecoderLimits(frame_bytes=self._max_frame)
        self._parser = RecordParser(BEFORE_HELLO, self._max_frame)
        self._state = State.HELLO
        self._connections: set[Any] = set()
        self._transport: asyncio.Transport
        self._hello: Hello
        self._sequence = 0
        self._counter = 0
        self._in_flight = 0
        self._window = self._largest_window = 0
        self._buffered = 0
        now = asyncio.get_running_loop().time()
        self._opened = self._heard = now
        self._record_since: float | None = None
        self._stuck_since: float | None = None
        self._ended: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ what asyncio and uvicorn call

    def end_with(self, connections: set[Any]) -> None:
        """Belong to a server: its `shutdown` reaches this stream while the stream is in its set of connections."""
        self._connections = connections
        connections.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, behind the 101."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no instance of it
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._streams.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the stream. Inferences that run go on: their answers are remembered for the next connection."""
        self._state = State.ENDING
        self._connections.discard(self)
        self._streams.remove(self)
        self._hold(0)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._state in (State.DRAINING, State.ENDING):
            return
        self._heard = asyncio.get_running_loop().time()
        self._parser.feed(data)
        try:
            while (record := self._parser.next_record()) is not None:
                self._record_since = None
                self._take(record)
            self._hold(self._parser.buffered)
        except SplitwireError as e:
            self._end(e)
            return
        except Exception:
            log.exception("stream: a record is not handled")
            self._end(SplitwireError("the server failed on this record; its log says how"))
            return
        if self._parser.buffered and self._record_since is None:
            self._record_since = self._heard

    def eof_received(self) -> None:
        """The client sends no more: close, whatever is on the way."""
        self._leave()

    def pause_writing(self) -> None:
        """The client does not read its replies: read nothing from it until it does."""
        self._stuck_since = asyncio.get_running_loop().time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stuck_since = None
        self._heard = asyncio.get_running_loop().time()
        self._transport.resume_reading()

    def shutdown(self) -> None:
        """The server stops: say goodbye, answer what was taken, and close."""
        if self._state is State.OPEN:
            self._drain("the server stops")
        elif self._state is State.HELLO:
            self._end(ServerBusy("the server stops", self._gate.limits.retry_after))

    # ------------------------------------------------------------------ what the other streams cause

    def set_share(self, window: int) -> None:
        """Announce another window."""
        if self._state is State.OPEN:
            window = min(window, self._hello.window)
            if window != self._window:
                self._window = window
                self._largest_window = max(window, self._largest_window)
                self._write(number_record(Kind.WINDOW, window))

    def check_times(self, now: float) -> None:
        """End the stream if it is silent, stuck, or late with its hello or with the rest of a record."""
        body_timeout = self._gate.limits.body_timeout
        if self._stuck_since is not None:
            if now - self._stuck_since > body_timeout:
                self._transport.abort()
            return
        if self._state is State.ENDING:
            if self._ended is not None and now - self._ended > LINGER_S:
                self._transport.abort()
        elif self._state is State.HELLO and now - self._opened > self._streams.hello_s:
            self._end(RequestTimeout(f"no hello within {self._streams.hello_s:g} s"))
        elif self._record_since is not None and now - self._record_since > body_timeout:
            self._end(RequestTimeout(f"the rest of a record did not arrive within {body_timeout:g} s"))
        elif self._state is State.OPEN and now - self._heard > self._streams.idle_s:
            self._end(RequestTimeout(f"nothing arrived for {self._streams.idle_s:g} s"))
        elif self._state is State.OPEN and not self._streams.service.policy.still_valid(self._caller):
            self._outlived()

    # ------------------------------------------------------------------ records

    def _take(self, record: Record) -> None:
        """Act on one record. Raises SplitwireError if the stream must end."""
        if record.is_frame:
            if record.head % SEQUENCES != self._sequence % SEQUENCES:
                raise Corrupt(f"frame record is not number {self._sequence}: one was lost, added or repeated")
            self._frame((self._hello.device, self._hello.boot, self._counter), record.body)
            self._counter = min(self._counter + 1, MAX_NUMBER)
        elif record.head == Kind.KEYED:
            keyed = parse_keyed(record.body)
            if keyed.sequence != self._sequence:
                raise Corrupt(f"keyed record has number {keyed.sequence}, expected {self._sequence}")
            if keyed.device:
                self._frame((keyed.device, keyed.boot, keyed.counter), keyed.frame)
            else:
                self._frame((self._hello.device, self._hello.boot, keyed.counter), keyed.frame)
                self._counter = min(keyed.counter + 1, MAX_NUMBER)
        elif record.head == Kind.PING:
            self._write(number_record(Kind.PONG, parse_number(record.body)))
        elif record.head == Kind.HELLO:
            self._greet(parse_hello(record.body))
        else:  # a goodbye: the client wants nothing more
            self._leave()
            self._parser = RecordParser(frozenset(), 1)
            self._transport.close()

    def _greet(self, hello: Hello) -> None:
        """Check a hello and answer it. Raises SplitwireError."""
        if VERSION not in hello.versions:
            raise UnsupportedVersion(
                f"the client speaks version {', '.join(map(str, hello.versions))} of the stream, this server {VERSION}"
            )
        if hello.pair is not None:
            self._streams.service.access.of_pair(self._caller, hello.pair).check_outputs(hello.outputs or ())
        self._hello = hello
        self._counter = hello.counter
        self._window = self._largest_window = min(self._streams.share, hello.window)
        self._state = State.OPEN
        self._parser.accepted = AFTER_HELLO
        welcome = Welcome(version=VERSION, window=self._window, idle_s=self._streams.idle_s, max_frame=self._max_frame)
        self._write(welcome_record(welcome))

    def _frame(self, key: Key, frame: bytes) -> None:
        """Start the inference of a frame. Raises SplitwireError if the stream must end."""
        if self._in_flight >= self._largest_window:
            raise UsageError(f"more than {self._largest_window} frames in flight; wait for replies")
        sequence = self._sequence
        self._sequence += 1
        try:
            parse_frame(frame, self._frame_limits)
        except BitstreamError as e:
            self._write(reply_record(sequence, Status.DAMAGED, refusal_body(_refusal(e))))
            raise Corrupt(f"frame {sequence} is damaged: {e}") from e
        self._in_flight += 1
        task = asyncio.get_running_loop().create_task(self._answer(sequence, key, frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, sequence: int, key: Key, frame: bytes) -> None:
        outputs, deadline = self._hello.outputs, self._hello.deadline
        status, body = Status.OUTPUTS if outputs is None or outputs else Status.TAKEN, b""
        try:
            with self._gate.holding(len(frame)):
                call = Call(
                    frame=frame,
                    key=self._name(key),
                    outputs=outputs,
                    protocol="stream",
                    deadline=None if deadline is None else time.perf_counter() + deadline,
                    priority=self._hello.priority,
                    abandoned=self._is_gone,
                    caller=self._caller,
                )
                body = await self._streams.service.answer(call)
        except SplitwireError as e:
            log.info("stream: %s: %s", e.code, printable(str(e)))
            self._refused(e.code, str(e), key[0])
            if isinstance(e, AuthRefused) and not isinstance(e, Forbidden):
                # Without a reply the client sends the frame again on another connection, with a renewed token.
                self._in_flight -= 1
                self._outlived()
                return
            status, body = Status.ERROR, refusal_body(_refusal(e))
        except Exception:
            log.exception("stream: a frame is not answered")
            self._refused("internal", "a frame is not answered", key[0])
            refusal = Refusal(code="internal", message="the server failed on this frame; its log says how")
            status, body = Status.ERROR, refusal_body(refusal)
        self._in_flight -= 1
        if self._state in (State.OPEN, State.DRAINING):
            self._write(reply_record(sequence, status, body))
            self._close_when_done()

    def _is_gone(self) -> bool:
        """Whether nobody reads replies any more. What does not run yet need not run: the client sends it again."""
        return self._state is State.ENDING

    def _name(self, key: Key) -> str:
        """The key as the answers are kept by. Answers with other outputs are kept apart."""
        outputs = self._hello.outputs
        wanted = "" if outputs is None else f" {msgspec.json.encode(outputs).decode()}"
        return f"{key[0]}:{key[1]}:{key[2]}{wanted}"

    # ------------------------------------------------------------------ the end

    def _drain(self, why: str) -> None:
        """Take nothing more, answer what was taken, and close."""
        self._state = State.DRAINING
        self._write(goodbye_record(Refusal(code=CLOSING, message=why, retry_after=None)))
        self._close_when_done()

    def _outlived(self) -> None:
        """The caller's token or certificate has ended. It opens another connection, with what it has then."""
        if self._state is State.OPEN:
            self._drain("the credentials of this connection are not valid any more")
        else:
            self._close_when_done()

    def _close_when_done(self) -> None:
        """When the stream drains and nothing is in flight any more, end the connection."""
        if self._state is State.DRAINING and not self._in_flight:
            self._linger()

    def _end(self, error: SplitwireError) -> None:
        """Say why, and close once the client has had time to read it."""
        log.info("stream: %s: %s", error.code, printable(str(error)))
        self._refused(error.code, str(error), "" if self._state is State.HELLO else self._hello.device)
        self._write(goodbye_record(_refusal(error)))
        self._linger()

    def _leave(self) -> None:
        """The last state; check_times closes the connection by force if it does not close."""
        self._state = State.ENDING
        if self._ended is None:
            self._ended = asyncio.get_running_loop().time()

    def _linger(self) -> None:
        self._leave()
        self._parser = RecordParser(frozenset(), 1)
        self._hold(0)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        except OSError:  # the client has reset the connection, and the event loop has not told us yet
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _refused(self, code: str, text: str, device: str) -> None:
        self._streams.service.observer.refused(code, printable(text), protocol="stream", device=device)

    def _hold(self, size: int) -> None:
        """Count `size` bytes of an unfinished record towards the memory of all bodies. Raises ServerBusy."""
        change, self._buffered = size - self._buffered, size
        self._gate.count(change)


def _refusal(error: SplitwireError) -> Refusal:
    after = error.retry_after if isinstance(error, ServerBusy) else None
    return Refusal(code=error.code, message=public_text(error)[:4096], retry_after=after)
