"""The process: one socket, one event loop, signals, log lines on stderr."""

from __future__ import annotations

import dataclasses
import errno
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from splitwire.codec.errors import DeviceError, SplitwireError, UsageError
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.http.app import Api, create_app
from splitwire.runtime_cloud.http.encrypted import encrypted
from splitwire.runtime_cloud.http.protocol import http_protocol
from splitwire.runtime_cloud.oip import GrpcOptions
from splitwire.runtime_cloud.repository import ServedModels
from splitwire.runtime_cloud.security import Policy, Security
from splitwire.runtime_cloud.security.tls import ServerTls

log = logging.getLogger("splitwire.cloud")

SWITCH_S = 0.5e-3
"""See _switching_often."""

KEEPALIVE_S = 75
"""An idle connection is closed after this time. The edge closes after 60 s, so the edge closes first."""


SPARE_DESCRIPTORS = 64
"""Open files beside the connections: models, logs, the listening socket, libraries."""


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket. Port 0 lets the system choose. Raises UsageError if it cannot listen on host and port."""
    if not 0 <= port <= 65535:  # getaddrinfo takes it modulo 2**16
        raise UsageError(f"cannot listen on port {port}: ports are 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as e:
        raise UsageError(f"cannot listen on {host}:{port}: {e}") from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as e:
        sock.close()
        hint = "; choose another with --port" if e.errno == errno.EADDRINUSE else ""
        raise UsageError(f"cannot listen on {host}:{port}: {e.strerror or e}{hint}") from e
    return sock


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """http://host:port of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells the application that it stops, before it waits for connections: pages that watch would stay.

    drain_s: seconds from the first signal to the stop, in which /readyz says that the server is not ready. A second
    signal ends them.
    """

    def __init__(self, config: uvicorn.Config, api: Api, stopping: Callable[[], None], drain_s: float) -> None:
        super().__init__(config)
        self._api = api
        self._stopping = stopping
        self._drain_s = drain_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at first only say so, if that was asked for. Called in a signal handler."""
        if self._drain_s and self._stop_at is None and self.started:
            self._api.service.stopping = True
            self._stop_at = time.monotonic() + self._drain_s
            self._captured_signals.append(sig)  # uvicorn raises it once more at its end
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets)


def make_server(app: Starlette, *, grace_s: int, drain_s: float = 0.0, tls: ServerTls | None = None) -> uvicorn.Server:
    """The uvicorn server for the application: few response headers, no access log, a shutdown of limited time."""
    api: Api = app.state.api
    protocol: Any = http_protocol(api.service.limits)
    if tls is not None:
        policy = api.service.policy
        tls.changed = lambda text: policy.event("certificate", text)
        protocol = encrypted(protocol, tls, policy, api.service.limits)
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="auto" if sys.platform == "win32" else "uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEPALIVE_S,
        timeout_graceful_shutdown=grace_s,
    )
    return _Server(config, api, app.state.stopping, drain_s)


def serve(
    models: ServedModels,
    *,
    host: str = "127.0.0.1",
    port: int = 8500,
    limits: ServerLimits | None = None,
    grace_s: int = 30,
    drain_s: float = 0.0,
    security: Security | None = None,
    grpc: GrpcOptions | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. Then accept no more requests, finish those that were taken (at most grace_s
    seconds), and return.

    drain_s: seconds before that in which requests are still taken, but /readyz says that the server is not ready, so
    that a load balancer sends them elsewhere. A second signal ends them. security: who may use the server, and TLS;
    its files are read again on SIGHUP. None: anyone on this machine. grpc: serve the Open Inference Protocol over gRPC
    too (docs/oip.md). on_ready: called with the URL as soon as every model is warm. Returns the number of inferences
    that were taken and not finished; 0 means a clean end.
    Raises UsageError (host, port, a public address without authentication, files of `security`), DeviceError (a model
    fails to warm up).
    """
    security = Security() if security is None else security
    tls = security.tls()
    if grpc is not None:
        security.check_host(grpc.host)
    sock = bind(host, port)
    try:
        security.check_address(sock)
    except UsageError:
        sock.close()
        raise
    url = url_of(sock, "http" if tls is None else "https")
    failure: list[Exception] = []

    def ready() -> None:
        log.info("ready: %s", url)
        if on_ready is not None:
            on_ready(url)

    def failed(e: Exception) -> None:
        failure.append(e)
        server.should_exit = True

    limits = _allowed(limits or ServerLimits())
    app = create_app(models, limits, security=security, grpc=grpc, on_ready=ready, on_failure=failed)
    server = make_server(app, grace_s=grace_s, drain_s=drain_s, tls=tls)
    opened = sum(not state.quarantined for state in models.index())
    log.info("listening: %s, warming up %d model%s", url, opened, "" if opened == 1 else "s")
    with _stop_on_signals(server), _switching_often(), _renew_on_sighup(app.state.api.service.policy, tls):
        server.run(sockets=[sock])
    if failure:
        e = failure[0]
        raise e if isinstance(e, SplitwireError) else DeviceError(f"a model fails to run: {e}") from e
    log.info("stopped")
    api: Api = app.state.api
    return api.service.scheduler.running + api.service.scheduler.waiting


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log one short line per event to stderr. For the command only: an application sets up its own logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    for name, threshold in (("splitwire", level), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(threshold)


def _allowed(limits: ServerLimits) -> ServerLimits:
    """The limits with no more connections than the system allows open files. Raises the soft limit to the hard one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    files = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    connections = max(1, files - SPARE_DESCRIPTORS)
    if connections < limits.connections:
        log.warning(
            "the system allows %d open files: %d connections instead of %d", files, connections, limits.connections
        )
    return dataclasses.replace(limits, connections=min(connections, limits.connections))


@contextmanager
def _switching_often() -> Iterator[None]:
    """While the block runs, a thread that waits for the interpreter gets it after SWITCH_S.

    A compute thread gives the interpreter away and takes it back several times per inference. While the event loop is
    busy refusing requests, it would wait for CPython's usual 5 ms each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _renew_on_sighup(policy: Policy, tls: ServerTls | None) -> Iterator[None]:
    """While the block runs, SIGHUP has tokens and certificates read again; without any, it is as it was."""
    if (policy.open and tls is None) or sys.platform == "win32":
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def renew(signal_number: int, frame: FrameType | None) -> None:
        policy.renew()
        if tls is not None:
            tls.renew()

    before = signal.signal(signal.SIGHUP, renew)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def _stop_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT stop `server` and do nothing else.

    uvicorn handles these signals while it serves. At its end it raises them once more for the previous handler, and the
    process would end by the signal (status 143), not with status 0. Here uvicorn's handler is the previous one as well,
    so the second signal has no effect. It also handles signals before uvicorn serves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, server.handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
