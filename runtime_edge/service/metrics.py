"""Prometheus metrics and health of a service, on a loopback address.

GET /metrics   the metrics, in Prometheus' text format
GET /healthz   200 while the process works
GET /readyz    200 once the front half is loaded and warm, 503 before and while it drains
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from splitwire.codec.errors import DeviceError, UsageError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, seconds."""
REQUEST_TIMEOUT_S = 5.0
STAGES = ("front", "encode", "network", "decode", "back")


class Metrics:
    """What one service counts. Times are in seconds, sizes in bytes. All methods are safe to call from any thread."""

    def __init__(self, device: str) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.frames = Counter(
            "splitwire_edge_frames", "Frames by what became of them", ["status"], **made
        )  # fmt: skip
        self.errors = Counter("splitwire_edge_errors", "Frames that failed, by the code of the error", ["code"], **made)
        self.events = Counter("splitwire_edge_events", "Events by kind", ["kind"], **made)
        self.on_device = Counter("splitwire_edge_fallback_frames", "Frames that the fallback answered", **made)
        self.bytes_sent = Counter("splitwire_edge_sent_bytes", "Bytes written to the link", **made)
        self.age = Histogram(
            "splitwire_edge_age_seconds", "From capture to answer", buckets=SECONDS, **made
        )  # fmt: skip
        self.stages = Histogram(
            "splitwire_edge_stage_seconds", "Time of one stage of a frame", ["stage"], buckets=SECONDS, **made
        )  # fmt: skip
        self.bits = Gauge("splitwire_edge_bits_per_element", "Of the last frame", **made)
        self.point = Gauge("splitwire_edge_operating_point", "Index of the last frame's operating point", **made)
        self.spool_frames = Gauge("splitwire_edge_spool_frames", "Frames that wait in the spool", **made)
        self.spool_bytes = Gauge("splitwire_edge_spool_bytes", "Bytes that wait in the spool", **made)
        self.lost_lines = Counter(
            "splitwire_edge_outlet_lost_lines", "Lines that an outlet did not take", ["outlet"], **made
        )  # fmt: skip
        self.connected = Gauge("splitwire_edge_connected", "1 while the server answers", **made)
        labels = ["device", "model", "cut", "provider"]
        self.info = Gauge("splitwire_edge_info", "Constant 1; the labels say what runs", labels, **made)
        self.device = device

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class HealthServer:
    """Serves metrics and health until it is closed.

    listen: address:port of a loopback address; port 0 takes a free one. ready: called for each /readyz.
    Raises UsageError for an address that is not loopback, DeviceError if the port is taken.
    """

    def __init__(self, listen: str, metrics: Metrics, ready: Callable[[], bool]) -> None:
        host, port = loopback_address(listen)

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S
            server_version = "splitwire"
            sys_version = ""

            def do_GET(self) -> None:
                status, kind, body = _answer(self.path, metrics, ready)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: a scrape every few seconds is no news."""

        family = ThreadingHTTPServer
        try:
            self._server = family((host, port), Handler)
        except OSError as e:
            raise DeviceError(
                f"cannot listen on {listen}: {(e.strerror or str(e)).lower()}; set [metrics] listen"
            ) from e
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="splitwire-metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """http://address:port"""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop serving. A second call has no effect."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def loopback_address(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9464`. Raises UsageError unless it is an IPv4 loopback address and a port."""
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
    except ValueError as e:
        raise UsageError(
            f"[metrics] listen is {listen!r}; expected an address and a port such as 127.0.0.1:9464"
        ) from e
    if not address.is_loopback or not 0 <= number <= 65535:
        raise UsageError(
            f"[metrics] listen is {listen!r}: metrics have no password, so they stay on a loopback address, as"
            " 127.0.0.1:9464; let a collector on this device forward them"
        )
    return str(address), number


def _answer(path: str, metrics: Metrics, ready: Callable[[], bool]) -> tuple[int, str, bytes]:
    match path.partition("?")[0]:
        case "/metrics":
            return 200, CONTENT_TYPE_LATEST, metrics.text()
        case "/healthz":
            return 200, "application/json", b'{"status":"live"}\n'
        case "/readyz":
            up = ready()
            return (200 if up else 503), "application/json", b'{"status":"%s"}\n' % (b"ready" if up else b"not ready")
    return 404, "application/json", b'{"error":"there are /metrics, /healthz and /readyz"}\n'
