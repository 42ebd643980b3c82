"""Measures what a frame costs on the edge beside front and codec: CPU of the process, time, and bytes on the link.

It writes build/bench/transports.json and prints the same as a table. A process of its own answers with prepared bytes,
so only the client is measured. The contenders take turns in blocks, so that a busy moment affects all of them. The peer
is a bare socket that sends the frame with a length in front, and reads an answer of known length.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from splitwire.codec.shared.files import write_json
from splitwire.codec.wire.reply import encode_reply, with_checksum
from splitwire.codec.wire.stream import Welcome, welcome_record
from splitwire.evaluation.measuring.stages import machine
from splitwire.runtime_edge.transport import HttpTransport, Key, StreamTransport

OUT = Path("build/bench")
BLOCK = 200
BLOCKS = 15
FRAME = bytes(range(102))  # as long as a frame of the demo at its default point
CLASSES = 10

SERVER = """
import socket, struct, sys, threading, zlib
reply, plain, welcome = map(bytes.fromhex, sys.argv[1:])
head = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n" % len(reply)
head += b"content-type: application/vnd.splitwire.reply\\r\\n\\r\\n"

def http(c):
    data = b""
    while True:
        while (end := data.find(b"\\r\\n\\r\\n")) < 0:
            part = c.recv(65536)
            if not part:
                return
            data += part
        lower = data[:end].lower()
        at = lower.index(b"content-length: ") + 16
        length = int(lower[at:].split(b"\\r", 1)[0])
        while len(data) < end + 4 + length:
            data += c.recv(65536)
        data = data[end + 4 + length:]
        c.sendall(head + reply)

def raw(c):
    while True:
        size = c.recv(4, socket.MSG_WAITALL)
        if len(size) < 4:
            return
        c.recv(struct.unpack("<I", size)[0], socket.MSG_WAITALL)
        c.sendall(reply)

def number(c):
    value = shift = 0
    while (byte := c.recv(1)[0]) > 127:
        value, shift = value | (byte & 127) << shift, shift + 7
    return value | byte << shift

def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

def record(kind, body):
    checksum = zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "little")
    return kind + varint(len(body) + 4) + body + checksum

def stream(c):
    while not c.recv(65536).endswith(b"\\r\\n\\r\\n"):
        pass
    c.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: splitwire-stream\\r\\n\\r\\n")
    sequence = 0
    while kind := c.recv(1):
        c.recv(number(c), socket.MSG_WAITALL)
        if kind == b"\\1":
            c.sendall(welcome)
        elif kind[0] > 127:
            c.sendall(record(b"\\4", varint(sequence) + b"\\0" + plain))
            sequence += 1

def accept(listener, serve):
    while True:
        c, _ = listener.accept()
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(c,), daemon=True).start()

listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
for listener, serve in zip(listeners, (http, raw, stream)):
    threading.Thread(target=accept, args=(listener, serve), daemon=True).start()
print(*(l.getsockname()[1] for l in listeners), flush=True)
sys.stdin.read()
"""


class Row(Struct, kw_only=True):
    """One contender. cpu_us, wall_us: medians per frame. sent, received: bytes of one frame on the link."""

    name: str
    cpu_us: float
    wall_us: float
    sent: int
    received: int


def main() -> None:
    """Measure, print, and write the JSON file."""
    plain = encode_reply({"logits": np.zeros((1, CLASSES), np.float32)}, frame_id=7, decode_ms=0.1, back_ms=0.3)
    reply = with_checksum(plain)
    welcome = welcome_record(Welcome(version=1, window=16, idle_s=75.0, max_frame=1 << 24))
    with answering(reply, plain, welcome) as (http_port, raw_port, stream_port), contextlib.ExitStack() as stack:
        address = f"http://127.0.0.1:{http_port}"
        full = stack.enter_context(contextlib.closing(HttpTransport(address)))
        lean = stack.enter_context(contextlib.closing(HttpTransport(address, lean=True)))
        stream = stack.enter_context(contextlib.closing(StreamTransport(f"stream://127.0.0.1:{stream_port}")))
        bare = stack.enter_context(socket.create_connection(("127.0.0.1", raw_port)))
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prefixed = struct.pack("<I", len(FRAME)) + FRAME

        def exchange() -> None:
            bare.sendall(prefixed)
            received = 0
            while received < len(reply):
                received += len(bare.recv(65536))

        key = Key("camera-1", "3f9a2c71", 12345)
        rows = measured(
            {
                "bare socket": exchange,
                "HTTP": lambda: full.send(FRAME),
                "HTTP, lean": lambda: lean.send(FRAME),
                "HTTP, lean, with key": lambda: lean.send(FRAME, key),
                "stream": lambda: stream.send(FRAME),
                "stream, 10 at a time": Tenth(lambda: stream.send_many([FRAME] * 10, [None] * 10)),
            },
            {
                "bare socket": (len(prefixed), len(reply)),
                "HTTP": cost(full.send(FRAME)),
                "HTTP, lean": cost(lean.send(FRAME)),
                "HTTP, lean, with key": cost(lean.send(FRAME, key)),
                "stream": cost((stream.send(FRAME), stream.send(FRAME))[1]),  # the first one opens the stream
                "stream, 10 at a time": cost(stream.send(FRAME)),
            },
        )
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "transports.json", {"machine": machine(), "frame": len(FRAME), "transports": rows})
    table = Table("transport", "CPU µs", "elapsed µs", "bytes sent", "received", title=f"a frame of {len(FRAME)} bytes")
    for r in rows:
        table.add_row(r.name, f"{r.cpu_us:.0f}", f"{r.wall_us:.0f}", str(r.sent), str(r.received))
    Console().print(table)


class Tenth:
    """Calls a function that sends ten frames at every tenth call."""

    def __init__(self, send: Callable[[], object]) -> None:
        self._send = send
        self._calls = 0

    def __call__(self) -> None:
        if self._calls % 10 == 0:
            self._send()
        self._calls += 1


def cost(reply: object) -> tuple[int, int]:
    """The bytes of a reply on the link."""
    return reply.bytes_sent, reply.bytes_received  # type: ignore[attr-defined]  # any Reply


def measured(calls: dict[str, Callable[[], object]], costs: dict[str, tuple[int, int]]) -> list[Row]:
    """Medians over blocks in turns."""
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            call()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(BLOCK):
                call()
            cpu[name].append((time.process_time() - begin_cpu) / BLOCK * 1e6)
            wall[name].append((time.perf_counter() - begin) / BLOCK * 1e6)
    return [
        Row(
            name=name,
            cpu_us=statistics.median(cpu[name]),
            wall_us=statistics.median(wall[name]),
            sent=costs[name][0],
            received=costs[name][1],
        )
        for name in calls
    ]


@contextlib.contextmanager
def answering(reply: bytes, plain: bytes, welcome: bytes) -> Iterator[tuple[int, int, int]]:
    """The ports of a process that answers with prepared bytes: over HTTP, over a bare socket, and in a stream.

    reply: for the first two. plain, welcome: what a reply record holds, and the welcome record.
    """
    command = [sys.executable, "-c", SERVER, reply.hex(), plain.hex(), welcome.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - this file's own text
        assert server.stdout is not None
        first, second, third = map(int, server.stdout.readline().split())
        try:
            yield first, second, third
        finally:
            server.kill()


if __name__ == "__main__":
    main()
