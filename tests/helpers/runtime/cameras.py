"""Cameras for tests, on 127.0.0.1: an HTTP server of MJPEG, and a small RTSP server (MPEG-4 video, RTP over TCP)."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)
FPS = 25


def picture(index: int) -> np.ndarray:
    """(48, 64, 3): gray, lighter with the index; 0 to 9."""
    return np.full((SIZE[1], SIZE[0], 3), 20 + 20 * (index % 10), np.uint8)


class Server:
    """A TCP server whose clients can be stalled, cut off and refused, as a camera's."""

    def __init__(self, serve: Callable[[Server, socket.socket], None]) -> None:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with outer.lock:
                    outer.clients.append(self.request)
                    outer.connections += 1
                if outer.refusing:
                    return
                with contextlib.suppress(OSError):
                    serve(outer, self.request)

        class Tcp(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.lock = threading.Lock()
        self.clients: list[socket.socket] = []
        self.connections = 0
        self.stalled = threading.Event()
        self.refusing = False
        self._tcp = Tcp(("127.0.0.1", 0), Handler)
        self.port = self._tcp.server_address[1]
        self._thread = threading.Thread(target=self._tcp.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Close all connections."""
        with self.lock:
            for client in self.clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            self.clients.clear()

    def close(self) -> None:
        self.stalled.set()
        self.cut()
        self._tcp.shutdown()
        self._tcp.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def mjpeg_camera() -> Iterator[Server]:
    """http://127.0.0.1:port/: multipart/x-mixed-replace, 25 pictures per second. It sends nothing while `stalled`."""

    def serve(server: Server, client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        index = 0
        while True:
            data = io.BytesIO()
            Image.fromarray(picture(index)).save(data, "JPEG")
            body = data.getvalue()
            while server.stalled.is_set():
                time.sleep(0.01)
                client.sendall(b"")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body + b"\r\n")
            index += 1
            time.sleep(1 / FPS)

    server = Server(serve)
    try:
        yield server
    finally:
        server.stalled.clear()
        server.refusing = True
        server.close()


@contextlib.contextmanager
def rtsp_camera() -> Iterator[Server]:
    """rtsp://127.0.0.1:port/: RFC 2326 as far as FFmpeg's client asks, MP4V-ES (RFC 6416) interleaved."""
    config, packets = encoded(50)
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n"
        "m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\n"
        f"a=fmtp:96 profile-level-id=1; config={config.hex()}\r\na=control:track1\r\n"
    )

    def serve(server: Server, client: socket.socket) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = client.recv(4096)
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            method = head.split(b" ", 1)[0].decode()
            sequence = re.search(rb"(?i)cseq: *(\d+)", head)
            assert sequence is not None
            answers = {
                "OPTIONS": ("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""),
                "DESCRIBE": ("Content-Type: application/sdp\r\n", sdp),
                "SETUP": ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", ""),
            }
            extra, body = answers.get(method, ("Session: 1\r\n", ""))
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence[1].decode()}\r\n{extra}{length}\r\n{body}".encode())
            if method == "PLAY":
                play(server, client, packets)
                return

    server = Server(serve)
    try:
        yield server
    finally:
        server.stalled.clear()
        server.refusing = True
        server.close()


def play(server: Server, client: socket.socket, packets: list[bytes]) -> None:
    for i in range(10**6):
        while server.stalled.is_set():
            time.sleep(0.01)
        payload = packets[i % len(packets)]
        stamp = i * 90000 // FPS
        header = struct.pack(">BBHII", 0x80, 0x80 | 96, i & 0xFFFF, stamp & 0xFFFFFFFF, 0x5EED)  # marker: a whole frame
        client.sendall(b"$\0" + struct.pack(">H", len(header) + len(payload)) + header + payload)
        time.sleep(1 / FPS)


def encoded(count: int) -> tuple[bytes, list[bytes]]:
    """The configuration and the frames of an MPEG-4 Part 2 video of `picture(0)`, `picture(1)`, …: key frames only."""
    codec: Any = av.CodecContext.create("mpeg4", "w")
    codec.width, codec.height = SIZE
    codec.pix_fmt = "yuv420p"
    codec.framerate = FPS
    codec.time_base = Fraction(1, FPS)
    codec.gop_size = 1
    codec.options = {"flags": "+global_header"}
    packets: list[bytes] = []
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24").reformat(format="yuv420p")
        frame.pts = i
        packets += [bytes(p) for p in codec.encode(frame)]
    packets += [bytes(p) for p in codec.encode(None)]
    return bytes(codec.extradata), packets
