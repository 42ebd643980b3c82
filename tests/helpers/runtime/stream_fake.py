"""A stream server that does what a test says: one function per connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from splitwire.codec.wire.reply import encode_reply
from splitwire.codec.wire.stream import (
    FRAME,
    Hello,
    Kind,
    Record,
    RecordParser,
    Status,
    Welcome,
    parse_hello,
    reply_record,
    welcome_record,
)

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: splitwire-stream\r\n\r\n"


class End:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, log: Log) -> None:
        self.socket = connection
        self.log = log
        self._parser = RecordParser({*Kind, FRAME}, 1 << 24)

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> bytes:
        """The head of the HTTP request."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = self.socket.recv(1)
            assert part, head
            head += part
        return head

    def record(self) -> Record | None:
        """The next record; None at the end."""
        while (record := self._parser.next_record()) is None:
            with contextlib.suppress(ConnectionResetError):
                part = self.socket.recv(65536)
            if not part:
                return None
            self._parser.feed(part)
        return record

    def frame(self) -> Record:
        """The next frame or keyed record."""
        while (record := self.record()) is not None and not (record.is_frame or record.head == Kind.KEYED):
            pass
        assert record is not None
        self.log.frames.append(record)
        return record

    def greet(self, *, window: int = 16, idle_s: float = 75.0, max_frame: int = 1 << 20) -> Hello:
        """Switch protocols, read the hello and welcome the client."""
        self.log.heads.append(self.head())
        self.say(SWITCHED)
        record = self.record()
        assert record is not None
        hello = parse_hello(record.body)
        self.log.hellos.append(hello)
        self.say(welcome_record(Welcome(version=1, window=window, idle_s=idle_s, max_frame=max_frame)))
        return hello

    def answer(self, sequence: int, frame_id: int = 0) -> None:
        self.say(answer(sequence, frame_id))

    def until_closed(self) -> None:
        while self.record() is not None:
            pass


def answer(sequence: int, frame_id: int = 0) -> bytes:
    body = encode_reply({"logits": np.zeros((1, 5), np.float32)}, frame_id=frame_id, decode_ms=0.1, back_ms=0.2)
    return reply_record(sequence, Status.OUTPUTS, body)


@dataclass
class Log:
    """What the fake server has seen."""

    url: str
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    frames: list[Record] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@contextlib.contextmanager
def fake_stream(*scripts: Callable[[End], None]) -> Iterator[Log]:
    """The n-th connection gets the n-th script, the last one again and again; it is closed when the script returns."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    host, port = listener.getsockname()
    log = Log(url=f"stream://{host}:{port}")
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket, script: Callable[[End], None]) -> None:
        with connection:
            connection.settimeout(10)
            try:
                script(End(connection, log))
            except (AssertionError, OSError) as e:
                log.errors.append(e)

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                script = scripts[min(log.connections, len(scripts) - 1)]
                log.connections += 1
                threads.append(threading.Thread(target=serve, args=(connection, script), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield log
    finally:
        stop.set()
        accepting.join(10)
        for thread in threads:
            thread.join(10)
        listener.close()
