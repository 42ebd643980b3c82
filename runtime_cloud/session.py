"""CloudSession: a frame in, the network's outputs out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitwire.codec.codec import DecodedFrame, FeatureCodec
from splitwire.codec.errors import ShapeMismatch
from splitwire.codec.profile import CodecProfile
from splitwire.codec.reply import Outputs, encode_reply
from splitwire.codec.sizes import Int64Array

from .graph import Float32Array, open_back


@dataclass(frozen=True, kw_only=True)
class CloudResult:
    """The outputs for one frame, and how long they took.

    outputs: by name, in graph order. decode_ms, back_ms: milliseconds. batch: images in the frame.
    """

    outputs: Outputs
    decode_ms: float
    back_ms: float
    op: str
    frame_id: int
    batch: int


class CloudSession:
    """The codec and the back half of one pair. Safe to share between threads; `decode`, `run_back` are its stages.

    back: path of back.onnx. threads: of one inference; None lets ONNX Runtime choose. providers: of ONNX Runtime,
    in order of preference; None for the CPU. Raises UsageError, ProfileError, DeviceError.
    """

    def __init__(self, back: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        self.path = Path(back)
        self._graph = open_back(back, threads=threads, providers=providers)
        self._codec = FeatureCodec(self.profile)
        self.fingerprint = self.profile.fingerprint  # a hash over the whole profile: once, not per frame

    @property
    def profile(self) -> CodecProfile:
        """What this back and its front have agreed on."""
        return self._graph.profile

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in graph order."""
        return self._graph.outputs

    def infer(self, frame: bytes) -> CloudResult:
        """Frame → outputs.

        Raises BitstreamError, FingerprintMismatch with both fingerprints in hex, or ShapeMismatch where the network
        takes one batch size only and this is another.
        """
        start = time.perf_counter()
        decoded = self.decode(frame)
        between = time.perf_counter()
        outputs = self.run_back(decoded.tensors, decoded.sizes)
        end = time.perf_counter()
        return CloudResult(
            outputs=outputs,
            decode_ms=(between - start) * 1e3,
            back_ms=(end - between) * 1e3,
            op=decoded.op,
            frame_id=decoded.frame_id,
            batch=decoded.batch,
        )

    def handle(self, frame: bytes) -> bytes:
        """Frame → reply bytes: what a server does, and all that a LoopbackTransport needs."""
        result = self.infer(frame)
        return encode_reply(
            result.outputs, frame_id=result.frame_id, decode_ms=result.decode_ms, back_ms=result.back_ms
        )

    def decode(self, frame: bytes) -> DecodedFrame:
        """Stage 1. Frame → feature tensors. Raises as `infer`."""
        return self._codec.decode(frame)

    def run_back(self, tensors: Sequence[Float32Array], sizes: Sequence[Int64Array] = ()) -> Outputs:
        """Stage 2. One (B, *shape) float32 array per tensor of the profile, and its sizes → outputs by name.

        Raises ShapeMismatch.
        """
        return self._graph.run(tensors, sizes)

    def warm_up(self) -> None:
        """Decode and run one frame of zeros at each operating point, so that no frame pays for compiling kernels."""
        batch = self._graph.batch or 1
        zeros = [np.zeros((batch, *t.shape), dtype=np.float32) for t in self.profile.tensors]
        sizes = [np.ones(s.length, dtype=np.int64) for s in self.profile.size_specs]
        for point in self.profile.operating_points:
            with suppress(ShapeMismatch) if sizes else nullcontext():  # the sizes of no image: the back may refuse them
                self.infer(self._codec.encode(zeros, op=point.name, sizes=sizes))
