"""A client of the stream that does what a test says, right or wrong, over a plain socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from runtime_helpers import Pair

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.wire.stream import (
    CLOSING,
    VERSION,
    Hello,
    Kind,
    Record,
    RecordParser,
    Refusal,
    Replied,
    Welcome,
    frame_record,
    goodbye_record,
    hello_record,
    number_record,
    parse_number,
    parse_refusal,
    parse_reply,
    parse_welcome,
)
from splitwire.runtime_cloud.session import CloudSession

REQUEST = b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: splitwire-stream\r\n\r\n"


def hello(
    *,
    versions: Sequence[int] = (VERSION,),
    device: str = "device",
    boot: str = "boot",
    counter: int = 0,
    pair: bytes | None = None,
    outputs: Sequence[str] | None = None,
    window: int = 64,
    deadline: float | None = None,
) -> bytes:
    return hello_record(
        Hello(
            versions=tuple(versions),
            device=device,
            boot=boot,
            counter=counter,
            pair=pair,
            outputs=None if outputs is None else tuple(outputs),
            window=window,
            deadline=deadline,
        )
    )


class StreamClient:
    """A connection behind its 101."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._parser = RecordParser({*Kind}, 1 << 24)
        self.sent = 0
        self.windows: list[int] = []

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self, frame: bytes) -> int:
        """Send a frame record; returns its sequence number."""
        self.say(frame_record(self.sent, frame))
        self.sent += 1
        return self.sent - 1

    def record(self) -> Record | None:
        """The next record; None at the end of the connection."""
        while (record := self._parser.next_record()) is None:
            part = self.socket.recv(65536)
            if not part:
                return None
            self._parser.feed(part)
        if record.head == Kind.WINDOW:
            self.windows.append(parse_number(record.body))
            return self.record()
        return record

    def expect(self, kind: Kind) -> bytes:
        record = self.record()
        assert record is not None, f"closed without {kind.name}"
        assert record.head == kind, f"got {Kind(record.head).name} instead of {kind.name}"
        return record.body

    def welcome(self, data: bytes | None = None) -> Welcome:
        self.say(hello() if data is None else data)
        return parse_welcome(self.expect(Kind.WELCOME))

    def reply(self) -> Replied:
        return parse_reply(self.expect(Kind.REPLY))

    def goodbye(self) -> Refusal:
        """The goodbye, which must be the last that comes."""
        refusal = parse_refusal(self.expect(Kind.GOODBYE))
        with contextlib.suppress(ConnectionResetError):
            assert self.record() is None
        return refusal

    def ping(self, number: int) -> int:
        self.say(number_record(Kind.PING, number))
        return parse_number(self.expect(Kind.PONG))

    def leave(self) -> None:
        self.say(goodbye_record(Refusal(code=CLOSING, message="the test is over")))


@contextlib.contextmanager
def stream_to(address: tuple[str, int], greeting: bytes | None = b"") -> Iterator[StreamClient]:
    """A stream, open. greeting: bytes of the hello, empty for a right one; None to send none yet."""
    with socket.create_connection(address, 10) as connection:
        connection.sendall(REQUEST)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = connection.recv(1)
            assert part, head
            head += part
        assert head.startswith(b"HTTP/1.1 101 "), head
        client = StreamClient(connection)
        if greeting is not None:
            client.welcome(greeting or None)
        yield client


def frame_of(pair: Pair, frame_id: int = 9, value: float = 1.0) -> bytes:
    tensors = [np.full((1, *t.shape), value, np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, frame_id=frame_id)


@contextlib.contextmanager
def watched(session: CloudSession, *, held: bool = False) -> Iterator[tuple[list[int], threading.Event]]:
    """(one entry per inference, the event that lets held inferences go on)."""
    count: list[int] = []
    release = threading.Event()
    run_back = session.run_back

    def counted(*crossing: Any) -> Any:
        count.append(1)
        assert not held or release.wait(20)
        return run_back(*crossing)

    session.run_back = counted  # type: ignore[method-assign, assignment]  # any arguments
    try:
        yield count, release
    finally:
        release.set()
        session.run_back = run_back  # type: ignore[method-assign]  # restored
