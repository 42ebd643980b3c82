"""What a service is made of, made from its configuration.

`prepare` makes everything that can be wrong in a configuration, and collects what is, before anything starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import onnxruntime as ort

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.shared.providers import full_name
from splitwire.runtime_edge.control import RateController
from splitwire.runtime_edge.events import EventSink
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Source, open_source
from splitwire.runtime_edge.stream import Fallback
from splitwire.runtime_edge.stream.skip import Sameness, Skip, SkipTable
from splitwire.runtime_edge.transport import (
    WITH_TLS,
    Key,
    Reply,
    ServerTransport,
    Timeouts,
    Tls,
    TokenFile,
    open_url,
)

from .config import EdgeConfig, OutletSection, ServerSection
from .link import Carrier, Link, host_id
from .metrics import loopback_address
from .outlets import MqttOutlet, load_hook

if TYPE_CHECKING:
    from splitwire.codec.profile import CodecProfile

CONNECT_S = 5.0
SPARE_CONNECTIONS = 2
"""Connections beside those of the frames in flight: the drain has its own."""
LEAST_CONNECTIONS = 8
T = TypeVar("T")


class Problems(UsageError):
    """A configuration that cannot work. lines: what is wrong, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


class LocalFallback(Fallback, Protocol):
    """The back half on this device."""

    def warm_up(self) -> None:
        """Run once, so that the first frame does not wait for the compilation of a kernel."""
        ...


OpenFallback = Callable[[str, "CodecProfile"], LocalFallback]
"""Opens a back.onnx, which must be of the pair of this profile. Raises SplitwireError."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that a configuration makes before anything starts."""

    link: Link
    session: EdgeSession
    fallback: LocalFallback | None
    source: Source
    skip: Skip | None
    rate: RateController | None


def prepare(
    config: EdgeConfig,
    on_event: EventSink,
    carrier: Carrier | None = None,
    open_fallback: OpenFallback | None = None,
) -> Prepared:
    """Make the parts, without connecting or writing anything.

    carrier: the transport, for tests. open_fallback: opens `[model] back`; None where the application has no cloud
    runtime.

    Raises Problems with a line for each mistake.
    """
    lines: list[str] = []

    def tried(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except SplitwireError as e:
            lines.append(" ".join(str(e).split()))
            return None

    opened = carrier if carrier is not None else tried(lambda: open_carrier(config))
    link = Link(
        _Nothing() if opened is None else opened,
        device=device_id(config),
        patient=bool(config.spool.path or config.model.back),
        on_event=on_event,
    )
    skip = rate = fallback = None
    session = tried(lambda: _open_session(config, link, on_event))
    if session is not None:
        profile = session.profile
        if profile.preprocessing is None:
            lines.append("[model] front was exported without preprocessing: it takes arrays only, not pictures")
        skip = tried(lambda: open_skip(config, profile))
        rate = tried(lambda: open_rate(config, profile))
        fallback = tried(lambda: _open_fallback(config, profile, open_fallback))
    source = tried(lambda: _open_source(config, on_event))
    for check in (
        *(lambda outlet=outlet: _check_outlet(outlet) for outlet in config.outlet),
        lambda: _check_folder("[spool] path", config.spool.path),
        lambda: _check_folder("[drift] capture", config.drift.capture),
        lambda: loopback_address(config.metrics.listen) if config.metrics.listen else None,
    ):
        tried(check)
    if lines or session is None or source is None or opened is None:
        if session is not None:
            session.close()
        if source is not None:
            source.close()
        raise Problems(lines)
    return Prepared(link=link, session=session, fallback=fallback, source=source, skip=skip, rate=rate)


def device_id(config: EdgeConfig) -> str:
    """The id of this device: the configured one, else the host's name."""
    return config.device.id or host_id()


def open_carrier(config: EdgeConfig) -> ServerTransport:
    """The transport of `[server]`. Connects at the first frame. Raises UsageError."""
    server = config.server
    verify = _tls(server)
    token: TokenFile | None = None
    if server.token_file:
        try:
            token = TokenFile(server.token_file)
        except UsageError as e:
            raise UsageError(f"[server] token_file: {e}") from e
    limit = server.deadline_s
    timeouts = Timeouts(connect=min(CONNECT_S, limit), read=limit, write=limit, total=limit)
    try:
        return open_url(
            server.url,
            timeouts=timeouts,
            token=token,
            verify=verify,
            max_connections=max(LEAST_CONNECTIONS, config.source.in_flight) + SPARE_CONNECTIONS,
            device=device_id(config),
        )
    except UsageError as e:
        raise UsageError(f"[server] url: {e}") from e


def open_skip(config: EdgeConfig, profile: CodecProfile) -> Skip | None:
    """The part that decides which frames are sent; None if all are. Raises UsageError."""
    options = config.skip
    if not options.changed and not options.gate:
        return None
    gate: Any = None
    if options.gate:
        try:
            gate = load_hook(options.gate)
        except UsageError as e:
            raise UsageError(f"[skip] gate: {e}") from e
    threshold = None
    if options.changed:
        try:
            table = SkipTable.load(SkipTable.path_beside(Path(config.model.front)), profile)
            threshold = table.threshold(options.changed)
        except UsageError as e:
            raise UsageError(f"[skip] changed: {e}") from e
    return Skip(
        profile,
        threshold=threshold,
        same=Sameness(profile, task=config.model.task or None, min_score=config.model.min_score),
        share=options.changed or 0.01,
        refresh_s=options.refresh_s,
        audit_every=options.audit,
        gate=gate,
    )


def open_rate(config: EdgeConfig, profile: CodecProfile) -> RateController | None:
    """The rate control; None for a fixed operating point. Raises ProfileError."""
    if not config.rate.target_ms:
        return None
    return RateController(
        profile,
        target_s=config.rate.target_ms / 1e3,
        fps=config.source.fps or None,
        min_op=config.model.min_op or None,
    )


def _open_session(config: EdgeConfig, link: Link, on_event: EventSink) -> EdgeSession:
    model = config.model
    providers = None
    if model.provider != "auto":
        providers = [full_name(model.provider, ort.get_available_providers())]
    try:
        return EdgeSession(
            model.front,
            transport=link,
            op=model.op or None,
            threads=model.threads or None,
            providers=providers,
            on_event=on_event,
        )
    except SplitwireError as e:
        raise UsageError(f"[model] {e}") from e


def _open_fallback(config: EdgeConfig, profile: CodecProfile, make: OpenFallback | None) -> LocalFallback | None:
    if not config.model.back:
        return None
    if make is None:
        raise UsageError("[model] back: this application does not run back halves; `splitwire edge serve` does")
    try:
        return make(config.model.back, profile)
    except SplitwireError as e:
        raise UsageError(f"[model] back: {e}") from e


class _Nothing:
    """Stands for the transport while the other parts are tried and the server's section is wrong."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        raise UsageError("there is no server")

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        return [UsageError("there is no server") for _ in frames]

    def close(self) -> None: ...


def _open_source(config: EdgeConfig, on_event: EventSink) -> Source:
    source = config.source
    if source.uri == "-":
        raise UsageError("[source] uri: a service does not read standard input; `splitwire edge run -` does")
    try:
        return open_source(source.uri, watch=source.watch, fps=source.fps or None, on_event=on_event)
    except UsageError as e:
        raise UsageError(f"[source] uri: {e}") from e


def _tls(server: ServerSection) -> Tls | bool:
    if not (server.ca or server.cert):
        return True
    if not server.url.lower().startswith(WITH_TLS):
        raise UsageError(f"[server] ca and cert go with an https:// or streams:// url; got {server.url}")
    try:
        return Tls(ca=server.ca or None, cert=server.cert or None, key=server.key or None)
    except UsageError as e:
        raise UsageError(f"[server] {e}") from e


def _check_outlet(outlet: OutletSection) -> None:
    """Raise UsageError for an outlet that can never work. Opens nothing."""
    kind = outlet.kind
    if kind == "file":
        _check_folder("[[outlet]] file", outlet.target)
    elif kind == "hook":
        load_hook(outlet.target)
    elif kind == "mqtt":
        MqttOutlet.check(outlet.target)


def _check_folder(key: str, path: str) -> None:
    """Raise UsageError unless the folder of a path is there and can be written to. An empty path is none."""
    if not path:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{key}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{key}: {folder} cannot be written to")
    if key != "[drift] capture" and Path(path).is_dir():
        raise UsageError(f"{key}: {path} is a folder; expected a file")
