"""Service: what `splitwire edge serve` runs, from its start to the last line of its outlets.

    source → stream of frames ─┬→ link → results → outlets
                               └→ spool → drain → link → late results → outlets

The thread that calls `run` waits for commands (stop, reload) and looks after metrics and the watchdog; a second one
takes the results of the stream; the outlets, the drain and the sample have threads of their own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_edge.control import DriftMonitor
from splitwire.runtime_edge.events import Event, Field
from splitwire.runtime_edge.findings import document, find
from splitwire.runtime_edge.spool import Drain, Spool, Spooled
from splitwire.runtime_edge.stream import Stream, StreamResult
from splitwire.runtime_edge.transport import Reply

from .config import RELOADED, EdgeConfig
from .link import Carrier
from .logs import STANDARD, set_up_logs
from .metrics import STAGES, HealthServer, Metrics
from .outlets import Line, Pump, open_outlet
from .parts import (
    OpenFallback,
    Prepared,
    device_id,
    open_carrier,
    open_rate,
    open_skip,
    prepare,
)
from .sample import Sample, open_sample
from .switches import Drift, RateSwitch, SkipSwitch
from .systemd import Notifier, Watchdog

Command = Literal["stop", "reload", "ended"]
TICK_S = 1.0
SPOOL_EVERY_S = 5.0
FLUSH_S = 5.0
"""Longest wait for each outlet's last lines."""
EARLY_EVENTS = 100
WARNINGS = frozenset(
    {
        "camera_lost", "capture_failed", "circuit", "drain_failed", "drain_refused", "drain_waits", "drift",
        "fallback_failed", "link_down", "outlet_lost", "provider_unavailable", "reload_refused", "skip_audit",
    }
)  # fmt: skip
"""Kinds of events that are logged as warnings, beside those of the spool; the others are news."""

log = logging.getLogger("splitwire.edge")


class Service:
    """The edge, running.

    config: as it was read. reread: reads it again, for `reload`; it raises UsageError. notifier: None for systemd's.
    carrier: the transport instead of that of `[server]`, for tests. open_fallback: opens `[model] back`.
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        reread: Callable[[], EdgeConfig] | None = None,
        notifier: Notifier | None = None,
        carrier: Carrier | None = None,
        open_fallback: OpenFallback | None = None,
    ) -> None:
        self.config = config
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.metrics = Metrics(device_id(config))
        self._reread, self._carrier, self._open_fallback = reread, carrier, open_fallback
        self._notifier = Notifier() if notifier is None else notifier
        self._pumps: tuple[Pump, ...] = ()
        self._pumps_lock = threading.Lock()
        self._early: deque[Event] | None = deque(maxlen=EARLY_EVENTS)
        self._warm = self._stopping = False
        self._results = self._late = self._dropped = 0
        self._failure: BaseException | None = None
        self._parts: Prepared | None = None
        self._stream: Stream | None = None
        self._spool: Spool | None = None
        self._spool_seen = 0.0
        self._health: HealthServer | None = None
        self._rate: RateSwitch | None = None
        self._skip: SkipSwitch | None = None

    @property
    def ready(self) -> bool:
        """Whether frames are taken: the front is warm, and the service does not end."""
        return self._warm and not self._stopping

    @property
    def health_url(self) -> str | None:
        """Where metrics and health are served; None if nowhere."""
        return None if self._health is None else self._health.url

    def stop(self) -> None:
        """Capture no more, answer or spool what is in flight, and end `run`. Safe in a signal handler."""
        self.commands.put("stop")

    def reload(self) -> None:
        """Read the configuration again. Safe in a signal handler."""
        self.commands.put("reload")

    def run(self) -> None:
        """Run until `stop`, or until the source ends.

        Raises Problems (the configuration cannot work), SpoolError, DeviceError, and the source's own error.
        """
        config = self.config
        set_up_logs(config.log.level, config.log.format)
        self._parts = parts = prepare(config, self.tell, self._carrier, self._open_fallback)
        drain: Drain | None = None
        sample: Sample | None = None
        try:
            self._replace_pumps(self._open_pumps(config))
            if config.metrics.listen:
                self._health = HealthServer(config.metrics.listen, self.metrics, lambda: self.ready)
            if config.spool.path:
                self._spool = self._open_spool(config)
                drain = Drain(
                    self._spool,
                    parts.link,
                    share=config.spool.share,
                    on_reply=self._answered_late,
                    on_event=self.tell,
                )
            sample = open_sample(config, parts.session, self.tell)
            parts.session.warm_up()
            if parts.fallback is not None:
                parts.fallback.warm_up()
            self._serve(parts, drain, sample)
        finally:
            self._stopping = True
            if drain is not None:
                drain.close()
            parts.source.close()
            parts.session.close()
            if sample is not None:
                sample.close()
            if self._spool is not None:
                self._note_spool()
                self._spool.close()
            log.info("ended after %d results, and %d answers out of the spool", self._results, self._late)
            self._replace_pumps(())
            if self._health is not None:
                self._health.close()
        if self._failure is not None:
            raise self._failure

    def tell(self, event: Event) -> None:
        """Take an event: log, metric, outlets. An EventSink, for any thread."""
        warns = event.kind in WARNINGS or event.kind.startswith("spool")
        extra = {"kind": event.kind, **{k: v for k, v in event.fields.items() if k not in STANDARD}}
        log.log(logging.WARNING if warns else logging.INFO, "%s", event.text, extra=extra)
        self.metrics.events.labels(event.kind).inc()
        if event.kind in ("link_up", "link_down"):
            self.metrics.connected.set(event.kind == "link_up")
        with self._pumps_lock:
            if self._early is not None:
                self._early.append(event)
                return
        self._offer({"event": event.kind, "text": event.text, "wall": event.wall, **event.fields}, "events")

    # ------------------------------------------------------------------ running

    def _serve(self, parts: Prepared, drain: Drain | None, sample: Sample | None) -> None:
        config, session = self.config, parts.session
        self._rate = rate = RateSwitch(
            session.profile.operating_points[session.profile.point_index(config.model.op or None)].name
        )
        self._skip = skip = SkipSwitch(sample)
        rate.current, skip.current = parts.rate, parts.skip
        drift = None
        if config.drift.watch and session.drift_reference is not None:
            drift = Drift(DriftMonitor(session.profile, session.drift_reference), rate)
        self._stream = stream = session.stream(
            parts.source,
            policy=config.source.policy,
            in_flight=config.source.in_flight or None,
            rate=rate,
            drift=drift,
            skip=skip,
            spool=self._spool,
            fallback=parts.fallback,
            spool_fallback=config.spool.fallback_too,
            # Without a spool only waiting keeps a frame, and only a source that can wait may be made to.
            wait_s=config.server.deadline_s if self._spool is None and config.source.policy == "block" else 0.0,
            on_event=self.tell,
        )
        taking = threading.Thread(target=self._take, args=(stream,), name="splitwire-results", daemon=True)
        taking.start()
        if drain is not None:
            drain.start()
        profile = session.profile
        self.metrics.info.labels(self.metrics.device, profile.model, profile.cut, session.provider).set(1)
        self._warm = True
        status = f"{profile.model} after {profile.cut}, frames to {config.server.url}"
        where = "" if self._health is None else f"; metrics at {self._health.url}/metrics"
        log.info("ready: %s%s", status, where)
        self._notifier.ready(status)
        self._obey(status, stream, parts)
        stream.close()

    def _obey(self, status: str, stream: Stream, parts: Prepared) -> None:
        """Do what the commands say until the last result is taken."""
        watchdog = Watchdog(self._notifier, self._progress, self._idle)
        pause = min(TICK_S, watchdog.interval_s or TICK_S)
        while True:
            try:
                command = self.commands.get(timeout=pause)
            except queue.Empty:
                self._tick(stream, watchdog)
                continue
            if command == "ended":
                self._tick(stream, watchdog)
                return
            if command == "stop" and not self._stopping:
                log.info("stopping: frames in flight are answered or spooled")
                self._stopping = True
                self._notifier.stopping()
                parts.link.finish(self.config.server.deadline_s)
                parts.source.close()
            elif command == "reload" and not self._stopping:
                self._notifier.reloading()
                self._reload(parts)
                self._notifier.ready(status)

    def _take(self, stream: Stream) -> None:
        """Take the results to the last one."""
        try:
            for result in stream:
                self._result(result)
            if not self._stopping:
                self.tell(Event(kind="source_ended", text="the source has ended, and the service with it"))
        except BaseException as e:
            self._failure = e
            if not isinstance(e, SplitwireError):
                log.exception("a part of the service failed")
        finally:
            self.commands.put("ended")

    def _result(self, result: StreamResult) -> None:
        self._results += 1
        m = self.metrics
        m.frames.labels(result.status).inc()
        line: Line = {
            "index": result.index,
            "image": result.name,
            "captured": result.captured,
            "status": result.status,
            "age_ms": result.age_ms,
            "answer_age_ms": result.answer_age_ms,
        }
        if result.key is not None:
            line["key"] = str(result.key)
        answer = result.result
        if answer is not None:
            line |= {"where": answer.where, **self._found(answer.outputs, result.size)}
            if result.status == "answered":
                line |= {"op": answer.op, "frame_bytes": answer.frame_bytes, "bytes_sent": answer.bytes_sent}
                m.bytes_sent.inc(answer.bytes_sent)
                if answer.where == "device":
                    m.on_device.inc()
                m.age.observe(result.age_ms / 1e3)
                for stage in STAGES:
                    m.stages.labels(stage).observe(getattr(answer.timings, stage) / 1e3)
                m.bits.set(answer.bits_per_element)
                if self._parts is not None:
                    m.point.set(self._parts.session.profile.point_index(answer.op))
        if result.error is not None:
            m.errors.labels(result.error.code).inc()
            line["error"] = {"code": result.error.code, "message": str(result.error)}
        self._offer(line, "results")

    def _answered_late(self, record: Spooled, reply: Reply) -> None:
        """The answer to a frame that waited in the spool. Called by the drain, before the frame leaves the spool."""
        self._late += 1
        self.metrics.frames.labels("drained").inc()
        self.metrics.bytes_sent.inc(reply.bytes_sent)
        line: Line = {
            "key": str(record.key),
            "captured": record.captured_wall,
            "status": "drained",
            "age_ms": max(0.0, (time.time() - record.captured_wall) * 1e3),
            "where": "cloud",
            **self._found(reply.outputs, None),
            "frame_bytes": len(record.frame),
            "bytes_sent": reply.bytes_sent,
        }
        self._offer(line, "results")

    def _found(self, outputs: Outputs, size: tuple[int, int] | None) -> Line:
        """What the outputs say, for a line."""
        if self._parts is None:
            return {}
        model, profile = self.config.model, self._parts.session.profile
        try:
            return document(find(outputs, profile, size=size, task=model.task or None, min_score=model.min_score))
        except UsageError as e:  # outputs of another task than the configured one
            return {"error": {"code": e.code, "message": str(e)}}

    # ------------------------------------------------------------------ looking after

    def _tick(self, stream: Stream, watchdog: Watchdog) -> None:
        dropped = stream.stats.dropped
        self.metrics.frames.labels("dropped").inc(dropped - self._dropped)
        self._dropped = dropped
        if time.monotonic() - self._spool_seen >= SPOOL_EVERY_S:
            self._spool_seen = time.monotonic()
            self._note_spool()
        watchdog.tick()

    def _note_spool(self) -> None:
        if self._spool is not None:
            with suppress(SplitwireError):  # the spool tells of its own troubles
                stats = self._spool.stats()
                self.metrics.spool_frames.set(stats.frames)
                self.metrics.spool_bytes.set(stats.bytes)

    def _progress(self) -> int:
        captured = 0 if self._stream is None else self._stream.stats.captured
        return captured + self._results + self._late

    def _idle(self) -> bool:
        """Whether no frame is on its way from the source to its result."""
        if self._stream is None:
            return True
        stats = self._stream.stats
        return stats.captured <= stats.dropped + stats.answered + stats.repeated + stats.spooled + stats.failed

    # ------------------------------------------------------------------ reloading

    def _reload(self, parts: Prepared) -> None:
        """Take over what can change. A configuration with a mistake changes nothing."""
        pumps: tuple[Pump, ...] | None = None
        try:
            if self._reread is None:
                raise UsageError("this service has no file to read again")
            new, old = self._reread(), self.config
            differ = [f.name for f in msgspec.structs.fields(new) if getattr(new, f.name) != getattr(old, f.name)]
            fixed = [name for name in differ if name not in RELOADED]
            changed = [name for name in differ if name in RELOADED]
            new = msgspec.structs.replace(new, **{name: getattr(old, name) for name in fixed})
            profile = parts.session.profile
            rate = open_rate(new, profile) if "rate" in changed else None
            skip = open_skip(new, profile) if "skip" in changed else None
            carrier = open_carrier(new) if "server" in changed else None
            pumps = self._open_pumps(new) if "outlet" in changed else None
        except SplitwireError as e:
            text = f"the configuration stays as it was: {e}"
            self.tell(Event(kind="reload_refused", text=text, fields={"reason": str(e)}))
            return
        self.config = new
        if "log" in changed:
            set_up_logs(new.log.level, new.log.format)
        if "rate" in changed and self._rate is not None:
            self._rate.current = rate
        if "skip" in changed and self._skip is not None:
            self._skip.current = skip
        if carrier is not None:
            parts.link.replace(carrier)
        if pumps is not None:
            self._replace_pumps(pumps)
        text = f"the configuration was read again; changed: {', '.join(changed) or 'nothing'}"
        if fixed:
            text += f"; these sections need a restart: {', '.join(fixed)}"
        fields: dict[str, Field] = {"changed": ", ".join(changed), "needs_restart": ", ".join(fixed)}
        self.tell(Event(kind="reload", text=text, fields=fields))

    def _open_pumps(self, config: EdgeConfig) -> tuple[Pump, ...]:
        """The outlets of a configuration, all or none. Raises UsageError."""
        opened = []
        try:
            for section in config.outlet:
                outlet = open_outlet(
                    section.kind, section.target, max_bytes=int(section.max_mb * 1e6), keep=section.keep
                )
                opened.append((f"{section.kind} {section.target}".strip(), section.what, outlet))
        except SplitwireError:
            for _, _, outlet in opened:
                outlet.close()
            raise
        return tuple(
            Pump(
                name,
                outlet,
                what=what,
                on_event=self.tell,
                on_lost=self.metrics.lost_lines.labels(name).inc,
            )
            for name, what, outlet in opened
        )

    def _replace_pumps(self, pumps: tuple[Pump, ...]) -> None:
        with self._pumps_lock:
            old, self._pumps = self._pumps, pumps
            early, self._early = self._early, None
        for event in early or ():
            self._offer({"event": event.kind, "text": event.text, "wall": event.wall, **event.fields}, "events")
        for pump in old:
            if left := pump.close(FLUSH_S):
                log.warning("outlet %s did not take its last %d lines", pump.name, left)

    def _offer(self, line: Line, kind: Literal["results", "events"]) -> None:
        for pump in self._pumps:
            pump.offer(line, kind)

    def _open_spool(self, config: EdgeConfig) -> Spool:
        spool = config.spool
        return Spool(
            spool.path,
            tier=spool.tier,
            max_bytes=int(spool.max_mb * 1e6),
            max_age_s=spool.max_age_s,
            when_full=spool.when_full,
            device=device_id(config),
            on_event=self.tell,
        )
