"""Inference: checks a request against the model that it names, runs it, and makes the answer.

A model takes frames, as elements of type BYTES of the input `frame`; or what crosses the cut, as plain tensors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import (
    BitstreamError,
    Corrupt,
    LimitExceeded,
    ServerBusy,
    ShapeMismatch,
    SplitwireError,
    Truncated,
    UsageError,
)
from splitwire.codec.wire.frame import parse_frame
from splitwire.codec.wire.oip.tensors import FRAME_INPUT
from splitwire.codec.wire.reply import Outputs, printable
from splitwire.codec.wire.sizes import Int64Array
from splitwire.runtime_cloud.call import Call, CutTensors
from splitwire.runtime_cloud.security.actions import INFER
from splitwire.runtime_cloud.service import Service
from splitwire.runtime_cloud.session import CloudResult, CloudSession

from .requests import InferAnswer, InferRequest, WantedOutput
from .statistics import Statistics

MAX_ANSWER_BYTES = 64 << 20
"""Outputs of the frames of one request, together."""
LOWEST_PRIORITY = 3
STRIPPED = 64
"""numpy's dtype S drops zero bytes at the end of a frame; this many are looked for."""


def frame_input(session: CloudSession) -> str:
    """Name of the input that takes frames: `frame`, with underscores if a tensor of the pair has that name."""
    name = FRAME_INPUT
    while name in session.profile.crossing:
        name += "_"
    return name


class Inference:
    """Runs requests of the protocol on a service. statistics: hears of requests that fail."""

    def __init__(self, service: Service, statistics: Statistics) -> None:
        self.service = service
        self.statistics = statistics

    async def run(
        self,
        model: tuple[str, str],
        request: InferRequest,
        asked: Call,
    ) -> InferAnswer:
        """The answer to a request. model: name and version, "" for the newest. asked: the call without its frame.

        A priority of the request goes before that of `asked`, and of two deadlines the earlier one.
        Raises UnknownModel, UsageError, BitstreamError, FingerprintMismatch, ShapeMismatch, ServerBusy.
        """
        self.service.require_ready()
        session = self.service.access.named(asked.caller, INFER, *model)
        begun = time.perf_counter()
        deadline = asked.deadline
        if request.timeout_us:
            timeout = begun + request.timeout_us / 1e6
            deadline = timeout if deadline is None else min(deadline, timeout)
        priority = min(request.priority, LOWEST_PRIORITY) or asked.priority
        call = replace(asked, model=model, deadline=deadline, priority=priority)
        try:
            wanted = wanted_outputs(session, request)
            frames, tensors = _inputs(session, request)

            if tensors is not None:
                results = [await self.service.infer(replace(call, key="", tensors=tensors))]
            elif call.key and len(frames) > 1:
                raise UsageError("a request with an idempotency key holds one frame; send the frames one by one")
            else:
                results = await self._frames(frames, call)
        except SplitwireError as e:
            if not isinstance(e, ServerBusy):  # as Triton counts: what was refused for its load is no failure
                self.statistics.failed(session.pair, time.perf_counter() - begun)
            raise
        outputs = _joined(results)
        parameters = {"back_ns": sum(round(r.back_ms * 1e6) for r in results)}
        if tensors is None:
            parameters["decode_ns"] = sum(round(r.decode_ms * 1e6) for r in results)
            if len(results) == 1:
                parameters["frame_id"] = results[0].frame_id
        return InferAnswer(
            model=model[0],
            version=self.version_of(session, model[1]),
            id=request.id,
            outputs=[(o.name, outputs[o.name], o.binary) for o in wanted],
            parameters=parameters,
        )

    def version_of(self, session: CloudSession, version: str) -> str:
        """The version that a request for `version` ("" for the newest) got."""
        return version or session.version

    async def _frames(self, frames: Sequence[bytes], call: Call) -> list[CloudResult]:
        """The results of the frames, one after the other, so that a request takes one place in the queue."""
        results: list[CloudResult] = []
        size = 0
        for frame in frames:
            try:
                result = await self.service.infer(replace(call, frame=frame))
            except (Corrupt, Truncated) as e:
                raise _explained(frame, e) from e
            results.append(result)
            size += sum(a.nbytes for a in result.outputs.values())
            if size > MAX_ANSWER_BYTES:
                raise LimitExceeded(
                    f"the outputs of these {len(frames)} frames pass {MAX_ANSWER_BYTES >> 20} MiB; send fewer at a time"
                )
        return results


def wanted_outputs(session: CloudSession, request: InferRequest) -> Sequence[WantedOutput]:
    """The outputs of the answer, in its order. Raises UsageError for one that the model does not have."""
    if not request.outputs:
        return [WantedOutput(name=name, binary=request.binary) for name in session.outputs]
    session.check_outputs([o.name for o in request.outputs])
    return request.outputs


def _inputs(session: CloudSession, request: InferRequest) -> tuple[list[bytes], CutTensors | None]:
    """The frames of a request, or else its tensors."""
    inputs = {i.name: i for i in request.inputs}
    frames = frame_input(session)
    if inputs.keys() == {frames}:
        return inputs[frames].byte_elements(), None
    profile = session.profile
    if inputs.keys() != set(profile.crossing):
        shown = ", ".join(repr(printable(n[:64])) for n in list(inputs)[:8]) or "none"
        cut = " and ".join(repr(n) for n in profile.crossing)
        raise UsageError(f"the request has the inputs {shown}; the model takes frames as {frames!r}, or else {cut}")
    batch = session.batch
    tensors: list[NDArray[np.float32]] = []
    for spec in profile.tensors:
        tensor = inputs[spec.name]
        if tensor.shape[1:] != spec.shape or not tensor.shape or not tensor.shape[0]:
            first = "n" if batch is None else batch
            raise ShapeMismatch(
                f"input {spec.name!r} has the shape {list(tensor.shape)}, the model takes {[first, *spec.shape]}"
            )
        if tensors and tensor.shape[0] != tensors[0].shape[0]:
            raise ShapeMismatch(
                f"input {spec.name!r} has a batch of {tensor.shape[0]}, another one of {tensors[0].shape[0]}"
            )
        tensors.append(tensor.array("FP32"))
    sizes: list[Int64Array] = []
    for size in profile.size_specs:
        tensor = inputs[size.name]
        if tensor.shape != (size.length,):
            raise ShapeMismatch(f"input {size.name!r} has the shape {list(tensor.shape)}, it must be [{size.length}]")
        sizes.append(tensor.array("INT64"))
    return [], CutTensors(tensors=tensors, sizes=sizes)


def _joined(results: Sequence[CloudResult]) -> Outputs:
    """The outputs of several frames as those of one batch. Raises UsageError if an output has not a row per image."""
    if len(results) == 1:
        return results[0].outputs
    joined: dict[str, NDArray[Any]] = {}
    for name in results[0].outputs:
        parts = [r.outputs[name] for r in results]
        rows = all(p.ndim and len(p) == r.batch for p, r in zip(parts, results, strict=True))
        if not rows or len({p.shape[1:] for p in parts}) > 1:
            shapes = ", ".join(str(list(p.shape)) for p in parts[:4])
            raise UsageError(
                f"output {name!r} has not one row of one shape for each image ({shapes}): send one frame per request"
            )
        joined[name] = np.concatenate(parts)
    return joined


def _explained(frame: bytes, error: BitstreamError) -> BitstreamError:
    """The error of a frame, which names the cause if the frame has lost zero bytes at its end."""
    for i in range(1, STRIPPED + 1):
        try:
            parse_frame(frame + bytes(i))
        except BitstreamError:
            continue
        return Truncated(
            f"the frame has lost {i} zero byte{'s' if i > 1 else ''} at its end: numpy's dtype S strips them; "
            "put frames into an array of dtype=object"
        )
    return error
