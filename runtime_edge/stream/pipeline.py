"""Pipeline: the threads of a stream, and what each does with a picture.

    capture → (policy) → prepare → front, send or not → encode and send, several at a time → results in order

One thread each for capture, preparation and front; as many lanes as frames may be in flight. Between them are bounded
channels, so that memory does not grow and nobody polls. With a policy that drops, pictures are dropped before they are
prepared, and a picture is prepared as late as the front allows: what waits is the newest picture.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from splitwire.codec.errors import BitstreamError, SplitwireError, TransportError, UsageError
from splitwire.runtime_edge.events import Event, EventSink
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.waiting import FIRST_PAUSE_S, MAX_PAUSE_S, may_pass

from .channel import Channel, Ended, Policy
from .ordered import Ordered
from .parts import (
    Decision,
    DriftPart,
    Fallback,
    Look,
    RatePart,
    Size,
    SkipPart,
    SpoolPart,
    Stages,
    Status,
    StreamResult,
)
from .window import Window

if TYPE_CHECKING:
    from splitwire.runtime_edge.graph import FrontOutputs, Input
    from splitwire.runtime_edge.sources.base import Captured, Source
    from splitwire.runtime_edge.transport import Key

DAMAGE = (BitstreamError, TransportError, UsageError)
"""What a server of ours answers, or seems to answer, when the link has changed a byte."""
WAITING_PICTURES = 2
"""Pictures that wait for their preparation, where none is dropped for a newer one."""
SLACK = 8
"""Answered frames that may wait for the caller, where no picture is dropped."""
SMOOTHING = 0.2


@dataclass(kw_only=True)
class Job:
    """One picture on its way. before: the job whose answer it repeats, or is compared with."""

    captured: Captured
    input: Input | None = None
    size: Size | None = None
    front: FrontOutputs | None = None
    front_ms: float = 0.0
    before: Job | None = None
    status: Status = "failed"
    result: SplitResult | None = None
    error: SplitwireError | None = None
    key: Key | None = None
    finished: bool = False


@dataclass(kw_only=True)
class Parts:
    """What may plug into a pipeline."""

    rate: RatePart | None
    drift: DriftPart | None
    skip: SkipPart | None
    spool: SpoolPart | None
    fallback: Fallback | None
    on_event: EventSink
    spool_fallback: bool = False


class Pipeline:
    """The running stages of one stream.

    source: closed with the pipeline. in_flight: frames in flight; None: measured, at most `most_in_flight`.
    wait_s: seconds for which a frame is sent again while the server is away.
    """

    def __init__(
        self,
        stages: Stages,
        source: Source,
        parts: Parts,
        *,
        policy: Policy,
        in_flight: int | None,
        most_in_flight: int,
        wait_s: float,
    ) -> None:
        self._stages = stages
        self._source = source
        self._parts = parts
        self._wait_s = wait_s
        self._drops = policy != "block"
        self._captured: Channel[Captured] = Channel(1 if policy == "drop-oldest" else WAITING_PICTURES, policy)
        self._prepared: Channel[Job] = Channel(1)
        self._sending: Channel[Job] = Channel(1)
        self.results: Ordered[Job] = Ordered()
        self.window = Window(in_flight, most=most_in_flight, slack=0 if self._drops else SLACK)
        self._turn = threading.Lock()
        self._watching = threading.Lock()
        self._computing = threading.Lock()
        self._fallback_failed = self._server_is_ours = False
        self._counting = threading.Lock()
        self._lanes = 0
        self._waiting_lanes = 0
        self._last_sent: Job | None = None
        self._source_error: SplitwireError | None = None
        self._stopping = threading.Event()
        self.counts = {"captured": 0, "dropped": 0, "bytes_sent": 0, "on_device": 0}
        self.statuses: dict[Status, int] = {"answered": 0, "repeated": 0, "spooled": 0, "failed": 0}
        self._threads: list[threading.Thread] = []
        for stage in (self._capture, self._prepare, self._run_front):
            self._start(stage)

    def stop(self, error: BaseException | None = None) -> None:
        """End all stages, and let the results end: with `error`, if there is one. Does not wait for them."""
        self._stopping.set()
        self.results.abort(error or Ended())
        for channel in (self._captured, self._prepared, self._sending):
            channel.abort()
        self.window.close()
        self._source.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads, at most `timeout_s` seconds in all. One that waits for an answer ends when it comes."""
        deadline = time.monotonic() + timeout_s
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def hand_over(self, job: Job) -> StreamResult:
        """The result of a job that was taken from `results`, and all that is to be done then."""
        self.window.leave()
        before, job.before = job.before, None
        status, answer_of = job.status, job
        if before is not None and status == "repeated":
            answer_of = before
            if before.error is not None:
                status, job.error = "failed", before.error
        elif before is not None and before.result is not None and job.result is not None:
            self._audit(before.result, job.result)
        job.input = job.front = None
        self.statuses[status] += 1
        now = time.monotonic()
        result = answer_of.result
        return StreamResult(
            index=job.captured.index,
            name=job.captured.name,
            captured=job.captured.wall,
            size=job.size,
            status=status,
            age_ms=(now - job.captured.captured) * 1e3,
            answer_age_ms=None if result is None else (now - answer_of.captured.captured) * 1e3,
            result=result,
            error=job.error,
            key=job.key,
        )

    # ------------------------------------------------------------------ the threads

    def _start(self, stage: Callable[[], None]) -> None:
        name = f"splitwire-{stage.__name__.strip('_').replace('_', '-')}"
        thread = threading.Thread(target=self._guarded, args=(stage,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, stage: Callable[[], None]) -> None:
        """Run a stage to its end. An error that is no frame's own ends the stream, and reaches the caller."""
        try:
            stage()
        except Ended:
            pass
        except BaseException as e:
            self.stop(e)

    def _capture(self) -> None:
        try:
            for captured in self._source:
                self.counts["captured"] += 1
                self.counts["dropped"] += self._captured.put(captured)
        except SplitwireError as e:
            self._source_error = e  # raised when all pictures before it are done
        finally:
            self._captured.end()

    def _prepare(self) -> None:
        seconds = 0.0
        try:
            while True:
                if self._drops:
                    self._prepared.wait_for_demand(seconds)
                captured = self._captured.get()
                start = time.monotonic()
                job = Job(captured=captured)
                try:
                    job.input, job.size = self._stages.prepared(captured.image)
                except SplitwireError as e:
                    job.error = e
                seconds += SMOOTHING * (time.monotonic() - start - seconds)
                self._prepared.put(job)
        finally:
            self._prepared.end()

    def _run_front(self) -> None:
        seconds = 0.0
        try:
            while self.window.enter():
                job = self._prepared.get()
                self.results.add(job)
                start = time.monotonic()
                if seconds and self.window.has_room():
                    self._prepared.expect(start + seconds)
                self._features(job)
                seconds += (SMOOTHING if seconds else 1.0) * (time.monotonic() - start - seconds)
        finally:
            self._sending.end()
            self.results.end(self._source_error)

    def _features(self, job: Job) -> None:
        """Run the front on a job, and pass it on if its frame is to be sent."""
        try:
            if job.error is None and job.input is not None:
                start = time.perf_counter()
                job.front = self._stages.run_front(job.input)
                job.front_ms = (time.perf_counter() - start) * 1e3
        except SplitwireError as e:
            job.error = e
        if job.error is not None or job.front is None or job.input is None:
            self.results.finish(job)
            return
        decision = Decision.SEND
        if self._parts.skip is not None:
            look = Look(captured=job.captured, input=job.input, features=job.front.features)
            decision = self._parts.skip.decide(look, time.monotonic())
        if decision is not Decision.SEND:
            job.before = self._last_sent
        if decision is Decision.REPEAT:
            job.status = "repeated"
            self.results.finish(job)
            return
        self._last_sent = job
        with self._counting:
            starts = not self._waiting_lanes and self._lanes < self.window.limit
            self._lanes += starts
        if starts:
            self._start(self._lane)
        self._sending.put(job)

    def _lane(self) -> None:
        """Send frames, one after the other. Of the lanes that are free, one waits for a frame, the others for it."""
        while True:
            with self._counting:
                self._waiting_lanes += 1
            with self._turn:
                try:
                    if not self.window.wait():
                        return
                    job = self._sending.get()
                finally:
                    with self._counting:
                        self._waiting_lanes -= 1
                busy = self.window.is_full() or len(self._sending) > 0
                alone = self.window.sent()
                op = None if self._parts.rate is None else self._parts.rate.choose()
            seconds = None
            try:
                seconds = self._deliver(job, op, busy)
            finally:
                self.window.answered(seconds, alone=alone)
                self.results.finish(job)

    def _deliver(self, job: Job, op: str | None, busy: bool) -> float | None:
        """Encode and send the frame of a job, and note what became of it. Returns the seconds of the round trip."""
        front, x = job.front, job.input
        if front is None or x is None:
            raise AssertionError("a job without features was sent")
        begin = time.perf_counter()
        frame_id = self._stages.next_frame_id()
        try:
            frame = self._stages.encode(front.features, op=op, frame_id=frame_id, sizes=front.sizes)
            if self._parts.drift is not None:
                with self._watching:
                    event = self._parts.drift.observe(front.features, len(frame))
                if event is not None:
                    self._parts.on_event(event)
            encoded = time.perf_counter()
            return self._send(job, frame, frame_id, op, busy, (job.front_ms, (encoded - begin) * 1e3))
        except SplitwireError as e:
            job.error = e
            if self._parts.skip is not None:
                self._parts.skip.forget()
            return None

    def _send(
        self, job: Job, frame: bytes, frame_id: int, op: str | None, busy: bool, ms: tuple[float, float]
    ) -> float | None:
        """Send a frame; if that fails, answer it here, or spool it.

        Returns the seconds of the round trip; None if the server did not answer. Raises SplitwireError.
        """
        rate, spool = self._parts.rate, self._parts.spool
        front, x = job.front, job.input
        if front is None or x is None:
            raise AssertionError("a job without features was sent")
        key = job.key = None if spool is None else spool.new_key()
        sent = time.monotonic()
        pause, deadline = FIRST_PAUSE_S, sent + self._wait_s
        while True:
            sent = time.monotonic()
            try:
                reply = self._stages.send(frame, frame_id=frame_id, key=key)
                break
            except SplitwireError as e:
                now = time.monotonic()
                passes = isinstance(e, TransportError) and may_pass(e)
                if rate is not None and isinstance(e, TransportError):
                    rate.lost(now)
                waits = passes and self._parts.fallback is None and now < deadline
                if waits and not self._stopping.wait(min(pause, deadline - now)):
                    pause = min(2 * pause, MAX_PAUSE_S)
                    continue
                # A server that has answered frames is ours: that it refuses one can be damage by the link.
                kept = passes or (isinstance(e, DAMAGE) and self._server_is_ours)
                if isinstance(e, TransportError) and self._answer_here(job, ms):
                    with suppress(SplitwireError):  # the spool tells of its own troubles
                        if kept and self._parts.spool_fallback and self._store(job, frame):
                            return None
                    job.key = None
                elif kept and self._store(job, frame):
                    job.status = "spooled"
                else:
                    raise
                return None
        seconds = time.monotonic() - sent
        self._server_is_ours = True
        self.counts["bytes_sent"] += reply.bytes_sent
        if rate is not None:
            rate.delivered(reply.bytes_sent, sent, sent + seconds, busy)
        job.result = self._stages.assemble(
            front, reply, op=op, images=len(x), frame_bytes=len(frame), ms=(*ms, seconds * 1e3), where="cloud"
        )
        job.status = "answered"
        job.front = job.input = None
        return seconds

    def _store(self, job: Job, frame: bytes) -> bool:
        """Spool a frame. False: there is no spool, or it is full and drops what is new. Raises SplitwireError."""
        spool = self._parts.spool
        if spool is None or job.key is None:
            return False
        return spool.put(frame, job.key, job.captured.wall).result() is not None

    def _answer_here(self, job: Job, ms: tuple[float, float]) -> bool:
        """Let the fallback answer a job. False: there is none, or it cannot.

        The frame is of the session's operating point: no link asks for a smaller one. One at a time, because the front
        needs the cores too.
        """
        fallback, front, x = self._parts.fallback, job.front, job.input
        if fallback is None or front is None or x is None:
            return False
        with self._computing:
            start = time.perf_counter()
            try:
                frame = self._stages.encode(
                    front.features, op=None, frame_id=self._stages.next_frame_id(), sizes=front.sizes
                )
                reply = replace(fallback.send(frame), bytes_sent=0, bytes_received=0)
            except SplitwireError as e:
                if not self._fallback_failed:
                    self._parts.on_event(Event(kind="fallback_failed", text=f"the fallback cannot answer: {e}"))
                self._fallback_failed = True
                return False
            self._fallback_failed = False
            spent = (time.perf_counter() - start) * 1e3
        job.result = self._stages.assemble(
            front, reply, op=None, images=len(x), frame_bytes=len(frame), ms=(*ms, spent), where="device"
        )
        job.status = "answered"
        job.front = job.input = None
        with self._counting:
            self.counts["on_device"] += 1
        return True

    def _audit(self, repeated: SplitResult, answered: SplitResult) -> None:
        if self._parts.skip is not None:
            event = self._parts.skip.audit(repeated, answered)
            if event is not None:
                self._parts.on_event(event)
