"""Runs the calls of one batch: decode each, the back once, a reply for each. In a compute thread, or in the event loop.

An error of one frame is the error of its call only. If the back fails on the batch, each call runs on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np

from splitwire.codec.codec import DecodedFrame
from splitwire.runtime_cloud.call import Call
from splitwire.runtime_cloud.session import CloudResult, CloudSession

from .core import Batch
from .job import Done, Job

SPLIT_S = 0.5e-3
"""Decoding is divided between threads from this time on. For less, handing it over takes longer than it saves."""

Decoded = tuple[Job, DecodedFrame, float]
"""(call, its frame, milliseconds)."""


def run(batch: Batch, helpers: Executor | None = None) -> None:
    """Run a batch; sets `done` or `error` of each job. helpers: threads that decode too. Raises nothing."""
    if len(batch.jobs) == 1:
        _run_alone(batch.jobs[0])
    else:
        _run_together(batch.jobs[0].session, batch.jobs, helpers)


def _run_alone(job: Job) -> None:
    session, call = job.session, job.call
    begun = time.perf_counter()
    try:
        cut = call.tensors
        result = session.infer(call.frame) if cut is None else session.infer_tensors(cut.tensors, cut.sizes)
        reply = session.reply(result, call.outputs) if job.with_reply else b""
    except Exception as e:
        job.error = e
        return
    job.done = Done(result, reply, begun, time.perf_counter(), result.batch)


def _run_together(session: CloudSession, jobs: Sequence[Job], helpers: Executor | None) -> None:
    begun = time.perf_counter()
    costs = session.costs
    decode_s = 0.0 if costs is None else costs.decode_s * sum(job.images for job in jobs)
    if helpers is None or decode_s < SPLIT_S:
        decoded = _decode(session, jobs)
    else:
        parts = min(len(jobs), int(decode_s // SPLIT_S) + 1)
        slices = [jobs[i::parts] for i in range(parts)]
        futures = [helpers.submit(partial(_decode, session, part)) for part in slices[1:]]
        decoded = _decode(session, slices[0])
        for future in futures:
            decoded += future.result()
    if not decoded:
        return
    images = sum(frame.batch for _, frame, _ in decoded)
    start = time.perf_counter()
    try:
        tensors = [np.concatenate(each) for each in zip(*(frame.tensors for _, frame, _ in decoded), strict=True)]
        outputs = session.run_back(tensors)
    except Exception:
        for job, _, _ in decoded:
            _run_alone(job)
        return
    back_ms = (time.perf_counter() - start) * 1e3
    first = 0
    for job, frame, decode_ms in decoded:
        last = first + frame.batch
        result = CloudResult(
            outputs={name: values[first:last] for name, values in outputs.items()},
            decode_ms=decode_ms,
            back_ms=back_ms,
            op=frame.op,
            frame_id=frame.frame_id,
            batch=frame.batch,
        )
        first = last
        try:
            reply = session.reply(result, job.call.outputs) if job.with_reply else b""
        except Exception as e:
            job.error = e
            continue
        job.done = Done(result, reply, begun, time.perf_counter(), images)


def _decode(session: CloudSession, jobs: Sequence[Job]) -> list[Decoded]:
    """Decode the frames of some calls. A call whose frame fails gets its error, and is not in the list."""
    decoded: list[Decoded] = []
    for job in jobs:
        start = time.perf_counter()
        try:
            frame = _crossing(session, job.call)
        except Exception as e:
            job.error = e
            continue
        decoded.append((job, frame, (time.perf_counter() - start) * 1e3))
    return decoded


def _crossing(session: CloudSession, call: Call) -> DecodedFrame:
    """What crosses the cut: decoded from the frame of a call, or as the call has it."""
    if call.tensors is None:
        return session.decode(call.frame)
    tensors = list(call.tensors.tensors)
    return DecodedFrame(tensors=tensors, op="", frame_id=0, batch=len(tensors[0]), sizes=tuple(call.tensors.sizes))
