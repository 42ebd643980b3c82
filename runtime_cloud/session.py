"""CloudSession decodes a frame and runs the back: a frame in, the outputs of the network out."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from splitwire.codec.codec import DecodedFrame, FeatureCodec
from splitwire.codec.errors import ShapeMismatch, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.wire.reply import Outputs, encode_reply, printable
from splitwire.codec.wire.sizes import Int64Array

from .graph import Float32Array, OutputSpec, open_back


@dataclass(frozen=True, kw_only=True)
class CloudResult:
    """The outputs for one frame, and the times.

    outputs: by name, in graph order. decode_ms, back_ms: milliseconds. op, frame_id: operating point and id of the
    frame. batch: number of images in the frame.
    """

    outputs: Outputs
    decode_ms: float
    back_ms: float
    op: str
    frame_id: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class BatchCosts:
    """What a model costs on this machine, measured at load (batching/measure.py). Times are in seconds.

    decode_s: decoding a frame of one image. back_s: one run of the back with 1, 2, 4, … images; () if it cannot run on
    made-up features. largest: the largest batch that frames of several devices share; 1: they run one by one.
    reason: why the model must not be batched; "" if it may.
    """

    decode_s: float
    back_s: tuple[float, ...]
    largest: int
    reason: str


class CloudSession:
    """The codec and the back half of one pair. Threads can share it. `decode` and `run_back` are the stages of `infer`.

    `with session:` is a lease: `close` releases the back's memory when the last lease has ended.
    back: path of back.onnx. threads: threads of one inference; None lets ONNX Runtime choose. providers: execution
    providers of ONNX Runtime, in order of preference; None: CUDA if it is there and starts, else the CPU.
    Raises UsageError, ProfileError, DeviceError.
    """

    def __init__(self, back: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        self.path = Path(back)
        self._graph = open_back(back, threads=threads, providers=providers)
        self._codec = FeatureCodec(self.profile)
        self.fingerprint = self.profile.fingerprint  # computed once, not per frame: it hashes the whole profile
        self.pair = self.fingerprint.hex()
        self.elements = sum(math.prod(t.shape) for t in self.profile.tensors)
        """Elements of the feature tensors of one image."""
        self.costs: BatchCosts | None = None
        """What the model costs, and whether it is batched; None until a server has measured it."""
        self.version = ""
        """The version of the model in the repository of a server; "" outside of one."""
        self.answers = 0
        """Frames that a server has answered with it."""
        self._lock = threading.Lock()
        self._leases = 0
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        with self._lock:
            if self._closing and not self._leases:
                raise UsageError(f"model {self.profile.model!r} is closed")
            self._leases += 1
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._leases -= 1
            last = self._closing and not self._leases
        if last:
            self._release()

    @property
    def leases(self) -> int:
        """How many `with` blocks use the session now."""
        return self._leases

    def close(self, on_closed: Callable[[], None] | None = None) -> None:
        """Release the memory of the back, at once or when the last lease ends. Closing twice is allowed.

        on_closed: called then, in the thread that ends the last lease. Afterwards `infer` raises UsageError.
        """
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                self._on_closed = on_closed
            idle = not self._leases
        if first and idle:
            self._release()

    def _release(self) -> None:
        self._graph.close()
        if self._on_closed is not None:
            self._on_closed()

    @property
    def profile(self) -> CodecProfile:
        """The CodecProfile of the pair, the same in both halves."""
        return self._graph.profile

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in graph order."""
        return self._graph.outputs

    @property
    def provider(self) -> str:
        """The execution provider that runs the back, by ONNX Runtime's name."""
        return self._graph.provider

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The providers that were preferred and did not start, each with the reason in one line."""
        return self._graph.passed_over

    @property
    def output_specs(self) -> tuple[OutputSpec, ...]:
        """Name, element type and shape of the outputs, as back.onnx declares them."""
        return self._graph.output_specs

    @property
    def batch(self) -> int | None:
        """The only batch size that the network takes; None for any."""
        return self._graph.batch

    def infer_tensors(self, tensors: Sequence[Float32Array], sizes: Sequence[Int64Array] = ()) -> CloudResult:
        """Run the back on tensors that no frame carried. Arguments and errors as of `run_back`."""
        start = time.perf_counter()
        outputs = self.run_back(tensors, sizes)
        back_ms = (time.perf_counter() - start) * 1e3
        return CloudResult(
            outputs=outputs, decode_ms=0.0, back_ms=back_ms, op="", frame_id=0, batch=tensors[0].shape[0]
        )

    def infer(self, frame: bytes) -> CloudResult:
        """Decode a frame and run the back on it.

        Raises BitstreamError, FingerprintMismatch with both fingerprints in hex, or ShapeMismatch if the network does
        not take the batch size of the frame.
        """
        start = time.perf_counter()
        decoded = self.decode(frame)
        decode_done = time.perf_counter()
        outputs = self.run_back(decoded.tensors, decoded.sizes)
        end = time.perf_counter()
        return CloudResult(
            outputs=outputs,
            decode_ms=(decode_done - start) * 1e3,
            back_ms=(end - decode_done) * 1e3,
            op=decoded.op,
            frame_id=decoded.frame_id,
            batch=decoded.batch,
        )

    def handle(self, frame: bytes, outputs: Sequence[str] | None = None) -> bytes:
        """Frame bytes → reply bytes. A server calls this, and so can a LoopbackTransport. Raises as `infer`.

        outputs: names of the outputs in the reply; None for all. With no name the inference runs, and there are no
        reply bytes. Raises UsageError for a name that is none.
        """
        self.check_outputs(outputs or ())
        return self.reply(self.infer(frame), outputs)

    def reply(self, result: CloudResult, outputs: Sequence[str] | None = None) -> bytes:
        """The reply bytes of a result, with these outputs of the pair; None for all, and no bytes for none."""
        wanted = result.outputs if outputs is None else {name: result.outputs[name] for name in outputs}
        if not wanted:
            return b""
        return encode_reply(wanted, frame_id=result.frame_id, decode_ms=result.decode_ms, back_ms=result.back_ms)

    def check_outputs(self, names: Sequence[str]) -> None:
        """Raise UsageError if one of the names is no output of the pair."""
        for name in names:
            if name not in self.outputs:
                has = ", ".join(self.outputs)
                raise UsageError(f"the pair has no output {printable(name[:64])!r}; it has {has}")

    def decode(self, frame: bytes) -> DecodedFrame:
        """Stage 1: decode a frame into feature tensors. Raises as `infer`."""
        return self._codec.decode(frame)

    def run_back(self, tensors: Sequence[Float32Array], sizes: Sequence[Int64Array] = ()) -> Outputs:
        """Stage 2: run the back, and return the outputs by name.

        tensors: one (B, *shape) float32 array per tensor of the profile. sizes: one int64 vector per size of the
        profile; most profiles have none. Raises ShapeMismatch.
        """
        return self._graph.run(tensors, sizes)

    def random_frame(self, seed: int) -> bytes:
        """A frame of random features at the default operating point, for measurements. One image, or the batch that
        the network takes; sizes are 1."""
        rng = np.random.default_rng(seed)
        batch = self._graph.batch or 1
        tensors = [np.abs(rng.normal(size=(batch, *t.shape))).astype(np.float32) for t in self.profile.tensors]
        sizes = [np.ones(s.length, dtype=np.int64) for s in self.profile.size_specs]
        return self._codec.encode(tensors, sizes=sizes)

    def warm_up(self) -> None:
        """Decode and run one frame of zeros at each operating point, so that no frame waits for compiling kernels."""
        batch = self._graph.batch or 1
        zeros = [np.zeros((batch, *t.shape), dtype=np.float32) for t in self.profile.tensors]
        sizes = [np.ones(s.length, dtype=np.int64) for s in self.profile.size_specs]
        for point in self.profile.operating_points:
            with suppress(ShapeMismatch) if sizes else nullcontext():  # the back may refuse made-up sizes
                self.infer(self._codec.encode(zeros, op=point.name, sizes=sizes))
