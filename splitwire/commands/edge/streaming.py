"""`splitwire edge run` on a stream: cameras, videos, watched folders, standard input, and pictures with its options."""

from __future__ import annotations

import importlib
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from splitwire.codec.errors import FeatureError, SplitwireError, TransportError, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.console import err, out, print_json
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.findings import Findings, document, find
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Paced, Pictures, Source, open_source
from splitwire.runtime_edge.sources.opening import is_camera
from splitwire.runtime_edge.sources.video import SUFFIXES
from splitwire.runtime_edge.spool import Spooled
from splitwire.runtime_edge.stream import POLICIES, Policy, Stream, StreamResult
from splitwire.runtime_edge.stream.skip import Gate, Sameness, Skip, SkipTable
from splitwire.runtime_edge.transport import Reply
from splitwire.runtime_edge.waiting import may_pass

from .controls import ControlOptions, Controls
from .output import described, on_one_line, print_event

STATUS_S = 5.0
"""Seconds between two lines about rate and age."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The options of a stream as the user gave them; None or False where not.

    watch: the source is a folder to watch. fps: pictures per second. policy: None: by the source. skip_unchanged,
    skip_table, max_changed, refresh_s, gate: of `Skip`. controls: the other parts.
    """

    watch: bool = False
    fps: float | None = None
    policy: str | None = None
    in_flight: int | None = None
    skip_unchanged: bool = False
    skip_table: Path | None = None
    max_changed: float = 0.01
    refresh_s: float = 10.0
    gate: str | None = None
    controls: ControlOptions = field(default_factory=ControlOptions)

    @property
    def any_given(self) -> bool:
        """Whether one is given that only a stream has."""
        return self != StreamOptions(max_changed=self.max_changed, refresh_s=self.refresh_s)


def is_stream(places: list[str], options: StreamOptions) -> bool:
    """Whether `edge run` streams: by its options, or because a place is no picture and no folder."""
    return options.any_given or any(
        p == "-" or is_camera(p) or "://" in p or Path(p).suffix.lower() in SUFFIXES for p in places
    )


def open_places(places: list[str], options: StreamOptions, on_event: Callable[[Event], None]) -> Source:
    """The source of a stream: several pictures and folders, or one of another kind. Raises UsageError."""
    if options.fps is not None and not options.fps > 0:
        raise UsageError(f"--fps must be more than 0, got {options.fps:g}")
    if len(places) == 1:
        return open_source(places[0], watch=options.watch, fps=options.fps, on_event=on_event)
    if options.watch or is_stream(places, StreamOptions()):
        raise UsageError("a camera, video, watched folder or standard input is the only source of a run; give one")
    pictures = Pictures(places)
    return pictures if options.fps is None else Paced(pictures, options.fps)


def chosen_policy(source: Source, policy: str | None) -> Policy:
    """The policy: the user's, else drop-oldest for a camera and block for what is stored. Raises UsageError."""
    if policy is None:
        return "drop-oldest" if source.live and not is_lossless(source) else "block"
    if policy not in POLICIES:
        raise UsageError(f"--policy is {', '.join(POLICIES)}; got {policy!r}")
    return policy


def is_lossless(source: Source) -> bool:
    """Whether the source keeps what is not read yet: a folder, a pipe."""
    return type(source).__name__ in ("WatchedFolder", "Pipe")


def make_skip(
    profile: CodecProfile, front: Path, options: StreamOptions, task: str | None, min_score: float
) -> Skip | None:
    """The part that decides which frames are sent; None if all are. Raises UsageError."""
    if not options.skip_unchanged and options.gate is None:
        if options.skip_table is not None:
            raise UsageError("--skip-table goes with --skip-unchanged")
        return None
    threshold = None
    if options.skip_unchanged:
        if not 0 < options.max_changed < 1:
            raise UsageError(f"--max-changed is a share between 0 and 1, got {options.max_changed:g}")
        table = SkipTable.load(options.skip_table or SkipTable.path_beside(front), profile)
        threshold = table.threshold(options.max_changed)
    return Skip(
        profile,
        threshold=threshold,
        same=Sameness(profile, task=task, min_score=min_score),
        share=options.max_changed,
        refresh_s=options.refresh_s or None,
        gate=None if options.gate is None else load_gate(options.gate),
    )


def load_gate(name: str) -> Gate:
    """The function of `module:function`; the current folder is searched too. Raises UsageError."""
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        gate = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise UsageError(f"--gate {on_one_line(name)}: {e}; expected module:function") from e
    finally:
        sys.path.remove("")
    if not callable(gate):
        raise UsageError(f"--gate {on_one_line(name)} is no function")
    return cast("Gate", gate)


def print_json_event(event: Event) -> None:
    """Print an event as a line of JSON, among the results."""
    print_json({"event": event.kind, "text": event.text, "wall": event.wall, **dict(event.fields)}, indent=None)


class Ages:
    """A histogram of ages in constant memory; its quantiles are at most 5 % too large."""

    RATIO = 1.05

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._number = 0

    def add(self, ms: float) -> None:
        """Add an age, ms."""
        bucket = math.ceil(math.log(max(ms, 1e-3), self.RATIO))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._number += 1

    def quantile(self, q: float) -> float | None:
        """The age that a share `q` of all do not exceed, ms; None without ages."""
        below = 0
        for bucket in sorted(self._counts):
            below += self._counts[bucket]
            if below >= q * self._number:
                return float(self.RATIO**bucket)
        return None


@dataclass(kw_only=True)
class StreamJob:
    """Runs a stream, and prints each result at once and a summary at the end.

    wait_s: seconds without an answer after which a server that is away ends the run.
    """

    session: EdgeSession
    source: Source
    policy: Policy
    options: StreamOptions
    skip: Skip | None
    wait_s: float
    task: str | None
    top: int
    min_score: float
    as_json: bool
    ages: Ages = field(default_factory=Ages)
    begin: float = 0.0
    failing_since: float | None = None
    drained: int = 0
    printing: threading.Lock = field(default_factory=threading.Lock)

    def run(self, controls: Controls) -> None:
        """Run to the end of the source, and for wait_s seconds until the spool is empty. The summary comes in any case.

        Raises SplitwireError, KeyboardInterrupt.
        """
        self.session.warm_up()
        stored = self.policy == "block"
        stream = self.session.stream(
            self.source,
            policy=self.policy,
            in_flight=self.options.in_flight,
            skip=self.skip,
            rate=controls.rate,
            drift=controls.drift,
            spool=controls.spool,
            fallback=controls.fallback,
            spool_fallback=controls.spool_fallback,
            wait_s=self.wait_s if stored and controls.spool is None else 0.0,
            on_event=print_json_event if self.as_json else print_event,
        )
        self.begin = told = time.monotonic()
        stopped: str | None = None
        try:
            with stream:
                for result in stream:
                    self._result(result)
                    if time.monotonic() - told > STATUS_S and not self.as_json and not out.is_terminal:
                        told = time.monotonic()
                        err.print(self._status(stream), markup=False, soft_wrap=True)
            controls.wait_for_spool(self.wait_s)
        except KeyboardInterrupt as e:
            stopped = "interrupted"
            e.add_note(f"{sum(self._counts(stream).values()):,} results are printed")
            raise
        except SplitwireError as e:
            stopped = on_one_line(str(e))
            raise
        finally:
            self._summary(stream, stopped, controls)

    def _result(self, result: StreamResult) -> None:
        self.ages.add(result.age_ms)
        findings = None
        if result.result is not None:
            findings = self.session.find(
                result.result, size=result.size, task=self.task, top=self.top, min_score=self.min_score
            )
        with self.printing:
            if self.as_json:
                print_json(self._row(result, findings), indent=None)
            else:
                self._line(result, findings)
        self._check(result)

    def late(self, record: Spooled, reply: Reply) -> None:
        """Print the answer to a frame that waited in the spool. Called by the drain, in its thread."""
        profile = self.session.profile
        findings = find(reply.outputs, profile, task=self.task, top=self.top, min_score=self.min_score)
        age_ms = max(0.0, (time.time() - record.captured_wall) * 1e3)
        with self.printing:
            self.drained += 1
            if self.as_json:
                row = {"key": str(record.key), "captured": record.captured_wall, "status": "drained", "age_ms": age_ms}
                row |= {"where": "cloud", **document(findings)}
                row |= {"frame_bytes": len(record.frame), "bytes_sent": reply.bytes_sent}
                print_json(row, indent=None)
                return
            head = f"{record.key}  drained  {len(record.frame):,} bytes  age {age_ms:,.0f} ms"
            out.print(on_one_line(f"{head}  {'; '.join(described(findings))}"), markup=False, soft_wrap=True)
            out.file.flush()

    def _check(self, result: StreamResult) -> None:
        """Raise an error that the next frame has too: at once, or after wait_s seconds if it may pass."""
        error = result.error
        if error is None or isinstance(error, UsageError | FeatureError):  # of this picture
            if result.status == "answered":
                self.failing_since = None
            return
        if not isinstance(error, TransportError) or not may_pass(error):
            raise error
        now = time.monotonic()
        self.failing_since = now if self.failing_since is None else self.failing_since
        if self.policy == "block" or now - self.failing_since >= self.wait_s:  # with block, it has waited already
            raise error

    def _row(self, result: StreamResult, findings: Findings | None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "index": result.index,
            "image": result.name,
            "captured": result.captured,
            "status": result.status,
            "age_ms": result.age_ms,
            "answer_age_ms": result.answer_age_ms,
        }
        if result.key is not None:
            row["key"] = str(result.key)
        if result.result is not None and findings is not None:
            row |= {"where": result.result.where, **document(findings)}
            if result.status == "answered":
                row |= {
                    "op": result.result.op,
                    "frame_bytes": result.result.frame_bytes,
                    "bytes_sent": result.result.bytes_sent,
                }
        if result.error is not None:
            row["error"] = {"code": result.error.code, "message": on_one_line(str(result.error))}
        return row

    def _line(self, result: StreamResult, findings: Findings | None) -> None:
        what = "; ".join(described(findings)) if findings is not None else ""
        if result.error is not None:
            what = str(result.error)
        repeated = f" (answer {result.answer_age_ms:,.0f} ms)" if result.status == "repeated" else ""
        sent = ""
        if result.result is not None and result.status == "answered":
            here = result.result.where == "device"
            sent = "  on this device" if here else f"  {result.result.frame_bytes:,} bytes"
        head = f"{result.index}  {Path(result.name).name}  {result.status}{sent}  age {result.age_ms:,.0f} ms{repeated}"
        out.print(on_one_line(f"{head}  {what}"), markup=False, soft_wrap=True)
        out.file.flush()

    @staticmethod
    def _counts(stream: Stream) -> dict[str, int]:
        s = stream.stats
        return {"answered": s.answered, "repeated": s.repeated, "spooled": s.spooled, "failed": s.failed}

    def _rate(self, stream: Stream) -> float:
        return sum(self._counts(stream).values()) / max(time.monotonic() - self.begin, 1e-9)

    def _status(self, stream: Stream) -> str:
        counts = ", ".join(f"{n:,} {status}" for status, n in self._counts(stream).items() if n) or "no results"
        half, most = self.ages.quantile(0.5), self.ages.quantile(0.99)
        ages = "" if half is None or most is None else f"; age {half:,.0f} ms, 99 % below {most:,.0f} ms"
        dropped = f", {stream.stats.dropped:,} dropped" if stream.stats.dropped else ""
        return f"{counts}{dropped}; {self._rate(stream):.1f} frames/s{ages}"

    def _summary(self, stream: Stream, stopped: str | None, controls: Controls) -> None:
        stats = stream.stats
        waiting = None if controls.spool is None else controls.spool.stats().frames
        if not self.as_json:
            out.print("")
            out.print(self._status(stream), markup=False, soft_wrap=True)
            trip = "" if stats.round_trip_ms is None else f", round trip {stats.round_trip_ms:.1f} ms"
            text = f"{stats.bytes_sent:,} bytes sent, at most {stats.largest_in_flight} frames in flight{trip}"
            out.print(text, markup=False, soft_wrap=True)
            if controls.fallback is not None:
                out.print(f"{stats.on_device:,} answered on this device", markup=False, soft_wrap=True)
            if waiting is not None:
                out.print(f"{self.drained:,} answered out of the spool, {waiting:,} wait in it", soft_wrap=True)
            return
        summary = {
            "captured": stats.captured,
            "dropped": stats.dropped,
            **self._counts(stream),
            "seconds": time.monotonic() - self.begin,
            "frames_per_second": self._rate(stream),
            "age_ms": {"median": self.ages.quantile(0.5), "p99": self.ages.quantile(0.99)},
            "bytes_sent": stats.bytes_sent,
            "in_flight": stats.largest_in_flight,
            "round_trip_ms": stats.round_trip_ms,
            "policy": self.policy,
            "on_device": stats.on_device,
            "drained": self.drained,
            "waiting": waiting,
            "stopped": stopped,
        }
        print_json({"summary": summary}, indent=None)
