"""What a service is made of: a link that can be replaced, rate and skip that can; and making all of it.

`prepare` makes everything that can be wrong in a configuration, and collects what is, before anything starts.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import onnxruntime as ort

from splitwire.codec.errors import (
    ServerBusy,
    SplitwireError,
    TransportError,
    UsageError,
)
from splitwire.codec.shared.providers import full_name
from splitwire.runtime_edge.control import DriftMonitor, RateController
from splitwire.runtime_edge.events import Event, EventSink, ignore
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Source, open_source
from splitwire.runtime_edge.stream.parts import Decision, Fallback, Look
from splitwire.runtime_edge.stream.skip import Sameness, Skip, SkipTable
from splitwire.runtime_edge.transport import HttpTransport, Key, Reply, StreamTransport, Timeouts, Tls, TokenFile
from splitwire.runtime_edge.waiting import may_pass

from .config import EdgeConfig, OutletSection, ServerSection
from .metrics import loopback_address
from .outlets import MqttOutlet, load_hook

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from splitwire.codec.profile import CodecProfile

    from .sample import Sample

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


class Carrier(Protocol):
    """A transport for one frame or several."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply: ...

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]: ...

    def close(self) -> None: ...


class Link:
    """A transport whose server can be replaced while frames are on their way, and that tells when it is down.

    device: id in the keys of frames that come without one. patient: every failure of the link counts as one that may
    pass, so that the frame is sent again or spooled: in the field a name that does not resolve, or a token that is
    refused, is put right by somebody later. on_event: gets `link_down` with the reason, and `link_up`.
    """

    def __init__(self, carrier: Carrier, *, device: str, patient: bool, on_event: EventSink = ignore) -> None:
        self._carrier, self._patient, self._on_event = carrier, patient, on_event
        self._device, self._boot = device, secrets.token_hex(8)
        self._lock = threading.Lock()
        self._counter = 0
        self._users: dict[Carrier, int] = {carrier: 0}
        self._last_start: float | None = None
        self.up: bool | None = None
        """Whether the last frame reached the server; None before the first."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """As Transport.send. A frame without a key gets one."""
        with self._carrying() as carrier:
            try:
                reply = carrier.send(frame, self._key() if key is None else key)
            except TransportError as e:
                self._failed(e)
                if not self._patient or may_pass(e):
                    raise  # as it is: its cause says that it may pass
                raise TransportError(str(e)) from e
            self._reached()
            return reply

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """As BatchTransport.send_many."""
        with self._carrying() as carrier:
            answers = carrier.send_many(frames, [self._key() if key is None else key for key in keys])
            failed = next((a for a in answers if isinstance(a, TransportError)), None)
            if failed is not None:
                self._failed(failed)
            elif answers:
                self._reached()
            return answers

    def replace(self, carrier: Carrier) -> None:
        """Send from now on through another transport. The old one is closed when its last frame is answered."""
        with self._lock:
            old, self._carrier = self._carrier, carrier
            self._users[carrier] = 0
            unused = not self._users[old]
            if unused:
                del self._users[old]
        if unused:
            old.close()

    def finish(self, seconds: float) -> None:
        """Frames that are not on their way after this time are refused at once, and so are spooled."""
        self._last_start = time.monotonic() + seconds

    def close(self) -> None:
        """Close the transports."""
        with self._lock:
            carriers = list(self._users)
        for carrier in carriers:
            carrier.close()

    def _key(self) -> Key:
        with self._lock:
            self._counter += 1
            return Key(self._device, self._boot, self._counter - 1)

    @contextmanager
    def _carrying(self) -> Iterator[Carrier]:
        if self._last_start is not None and time.monotonic() > self._last_start:
            raise TransportError("the service ends: the frame is not sent any more") from TimeoutError()
        with self._lock:
            carrier = self._carrier
            self._users[carrier] += 1
        try:
            yield carrier
        finally:
            with self._lock:
                self._users[carrier] -= 1
                done = carrier is not self._carrier and not self._users[carrier]
                if done:
                    del self._users[carrier]
            if done:
                carrier.close()

    def _reached(self) -> None:
        if self.up:
            return
        with self._lock:
            before, self.up = self.up, True
        if not before:
            self._on_event(Event(kind="link_up", text="the server answers"))

    def _failed(self, e: TransportError) -> None:
        """Tell of the failure if it is news."""
        if isinstance(e, ServerBusy):  # it is there, and says when to come again
            return
        with self._lock:
            before, self.up = self.up, False
        if before is not False:
            self._on_event(Event(kind="link_down", text=f"frames do not get through: {e}", fields={"code": e.code}))


class RateSwitch:
    """A rate control that can be replaced, or left out: then every frame takes the operating point `op`."""

    def __init__(self, op: str) -> None:
        self._op = op
        self.current: RateController | None = None

    @property
    def fixed(self) -> str | None:
        """The operating point of all frames; None while a rate control chooses."""
        return self._op if self.current is None else None

    def choose(self) -> str:
        """The operating point of the next frame."""
        current = self.current
        return self._op if current is None else current.choose()

    def delivered(self, frame_bytes: int, sent: float, acknowledged: float, busy: bool) -> None:
        """As RatePart."""
        if (current := self.current) is not None:
            current.delivered(frame_bytes, sent, acknowledged, busy)

    def lost(self, now: float) -> None:
        """As RatePart."""
        if (current := self.current) is not None:
            current.lost(now)


class SkipSwitch:
    """Decides which frames are sent, by a Skip that can be replaced or left out; and shows each frame to the sample."""

    def __init__(self, sample: Sample | None) -> None:
        self._sample = sample
        self.current: Skip | None = None

    def decide(self, look: Look, now: float) -> Decision:
        """As SkipPart."""
        if self._sample is not None:
            self._sample.offer(look)
        current = self.current
        return Decision.SEND if current is None else current.decide(look, now)

    def audit(self, repeated: SplitResult, answered: SplitResult) -> Event | None:
        """As SkipPart."""
        current = self.current
        return None if current is None else current.audit(repeated, answered)

    def forget(self) -> None:
        """As SkipPart."""
        if (current := self.current) is not None:
            current.forget()


class Drift:
    """A DriftMonitor that is told the operating point while it is fixed: then it watches the length of frames too."""

    def __init__(self, monitor: DriftMonitor, rate: RateSwitch) -> None:
        self._monitor, self._rate = monitor, rate

    def observe(self, features: Sequence[NDArray[np.float32]], frame_bytes: int) -> Event | None:
        """As DriftPart."""
        return self._monitor.observe(features, frame_bytes, op=self._rate.fixed)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that a configuration makes before anything starts."""

    link: Link
    session: EdgeSession
    source: Source
    skip: Skip | None
    rate: RateController | None
    fallback: Fallback | None


def prepare(
    config: EdgeConfig,
    on_event: EventSink,
    carrier: Carrier | None = None,
    open_fallback: Callable[[str], Fallback] | None = None,
) -> Prepared:
    """Make the parts, without connecting or writing anything. carrier: the transport, for tests. open_fallback: opens
    `[model] back`; None where the application has no cloud runtime.

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
        patient=bool(config.spool.path),
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
        fallback = tried(lambda: _open_fallback(config, open_fallback))
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
    return Prepared(link=link, session=session, source=source, skip=skip, rate=rate, fallback=fallback)


def device_id(config: EdgeConfig) -> str:
    """The id of this device: the configured one, else the host's name with `-` for what a key may not hold."""
    return config.device.id or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "edge"


def open_carrier(config: EdgeConfig) -> HttpTransport | StreamTransport:
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
        if server.url.lower().startswith(("stream://", "streams://")):
            return StreamTransport(server.url, timeouts=timeouts, token=token, verify=verify, device=device_id(config))
        connections = max(LEAST_CONNECTIONS, config.source.in_flight) + SPARE_CONNECTIONS
        return HttpTransport(server.url, timeouts=timeouts, token=token, verify=verify, max_connections=connections)
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


def _open_fallback(config: EdgeConfig, make: Callable[[str], Fallback] | None) -> Fallback | None:
    if not config.model.back:
        return None
    if make is None:
        raise UsageError("[model] back: this application does not run back halves; `splitwire edge serve` does")
    try:
        return make(config.model.back)
    except SplitwireError as e:
        raise UsageError(f"[model] back: {e}") from e


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
    if not server.url.lower().startswith(("https://", "streams://")):
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
