"""FeatureCodec: the whole codec behind two calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .entropy import CODERS, MOST_LANES, SymbolCoder
from .entropy.ans import MAX_LANES
from .entropy.transform import TransformRans
from .errors import (
    Corrupt,
    FingerprintMismatch,
    LimitExceeded,
    NonFiniteFeatures,
    ShapeMismatch,
    UnsupportedVersion,
    UsageError,
)
from .profile import CodecProfile, TensorPoint, TensorSpec
from .quantizer import BlockPacker, non_finite
from .transform import STEPS, Transform
from .wire.frame import MAX_BATCH, Chunk, DecoderLimits, Frame, build_frame, parse_frame
from .wire.sizes import Int64Array, decode_sizes, encode_sizes

T = TypeVar("T")
Float32Array = NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 20
"""About how many elements a chunk holds. It decides bytes, so it must not depend on the machine."""


@dataclass(frozen=True, kw_only=True)
class DecodedFrame:
    """What a frame decodes to: the tensors, and what the header says.

    tensors: one (B, *shape) float32 array per tensor of the profile. op: name of the operating point.
    frame_id: the number given at encoding. batch: images in the frame.
    concealed: indices of the damaged chunks, whose planes hold the calibration mean; empty without `conceal`.
    sizes: one int64 vector for each vector of sizes in the profile; mostly none.
    steps: for each tensor of a transform pair the step index of its first chunk that is not concealed, or the operating
        point's; () for a scalar pair.
    """

    tensors: list[Float32Array]
    op: str
    frame_id: int
    batch: int
    concealed: tuple[int, ...] = ()
    sizes: tuple[Int64Array, ...] = ()
    steps: tuple[int, ...] = ()


class TensorCoder:
    """One tensor at one operating point through one entropy coder: (B, C, H, W) float32 ↔ chunk payload."""

    def __init__(self, spec: TensorSpec, point: TensorPoint, entropy: SymbolCoder) -> None:
        self.channels, height, width = spec.planes
        self.planes_per_chunk = planes_per_chunk(spec, whole_images=entropy.whole_images)
        self.coder_id = entropy.coder_id
        self.packer = BlockPacker(point.quantizer, entropy.block, entropy.padding, height, width)
        self.entropy = entropy

    @classmethod
    def of(cls, spec: TensorSpec, point: TensorPoint) -> TensorCoder:
        """Choose the coder: the first in CODERS for which the operating point has the tables.

        Both ends choose this way, so that a frame cannot ask for a slower coder than its pair was made for.
        """
        found = (kind.of(point, spec) for kind in CODERS)
        return cls(spec, point, next(entropy for entropy in found if entropy is not None))

    def encode(self, x: Float32Array, tensor: int, first_plane: int) -> Chunk:
        """Code (planes, H, W) float32 features as one chunk. first_plane: index of the first of them in the tensor.

        Raises NonFiniteFeatures.
        """
        symbols = self.packer.quantize(x)
        channel = first_plane % self.channels
        payload, lanes = self.entropy.encode(symbols, self.packer.rows, self.packer.cols, channel)
        return Chunk(tensor=tensor, coder=self.entropy.coder_id, lanes=lanes, planes=len(x), payload=payload)

    def decode(self, chunk: Chunk, first_plane: int, planes: int, out: Float32Array) -> None:
        """Decode the chunk's planes into `out`, (planes·H·W,) float32. Raises Truncated or Corrupt."""
        symbols = self.entropy.decode(
            chunk.payload, planes, self.packer.rows, self.packer.cols, chunk.lanes, first_plane % self.channels
        )
        self.packer.unpack(symbols, out)


class CoefficientCoder:
    """One tensor of transform coefficients at one step: (B, tiles, N) float32 ↔ chunk payload. A plane is an image.

    usual: the step index of the operating point.
    """

    def __init__(self, spec: TensorSpec, entropy: TransformRans, step: int, usual: int) -> None:
        self.planes_per_chunk = max(1, CHUNK_ELEMENTS // spec.elements)
        self.coder_id = entropy.coder_id
        self.entropy = entropy
        self.step = step
        self.usual = usual

    def encode(self, x: Float32Array, tensor: int, first_plane: int) -> Chunk:
        """Quantize and code (images, tiles, N) coefficients as one chunk. Raises NonFiniteFeatures."""
        payload, lanes = self.entropy.encode(x, self.step, self.usual)
        return Chunk(tensor=tensor, coder=self.coder_id, lanes=lanes, planes=len(x), payload=payload)

    def decode(self, chunk: Chunk, first_plane: int, planes: int, out: Float32Array) -> int:
        """Decode the chunk into `out`, (images·tiles·N,) float32; returns its step. Raises Truncated or Corrupt."""
        return self.entropy.decode(chunk.payload, chunk.lanes, out, self.usual)


class FeatureCodec:
    """Encodes feature tensors to a frame and decodes frames, as the profile says. Safe to share between threads.

    limits: the largest frame and tensors that it decodes. threads: how many chunks are coded at the same time (the
    kernels release the GIL); the bytes do not depend on it.
    """

    def __init__(self, profile: CodecProfile, limits: DecoderLimits | None = None, *, threads: int = 1) -> None:
        self.profile = profile
        self.limits = limits or DecoderLimits()
        self._pool = ThreadPoolExecutor(threads, "splitwire-codec") if threads > 1 else None
        self.fingerprint = profile.fingerprint
        self._compact = profile.frames == "compact"
        self._coders = lru_cache(maxsize=None)(self._build_coders)
        self._transforms = [
            TransformRans(t.transform, t.shape) for t in profile.tensors if isinstance(t.transform, Transform)
        ]

    def _build_coders(self, op: int, step_offset: int = 0) -> Sequence[TensorCoder | CoefficientCoder]:
        """The coder of each tensor. step_offset: added to the steps of the operating point, for coefficients."""
        specs, point = self.profile.tensors, self.profile.operating_points[op]
        if not isinstance(point.steps, tuple):
            return [TensorCoder.of(s, p) for s, p in zip(specs, point.tensors, strict=True)]
        steps = [min(max(step + step_offset, 0), STEPS - 1) for step in point.steps]
        return [CoefficientCoder(*each) for each in zip(specs, self._transforms, steps, point.steps, strict=True)]

    def encode(
        self,
        tensors: Sequence[Float32Array],
        *,
        op: str | None = None,
        frame_id: int = 0,
        sizes: Sequence[Int64Array] = (),
        step_offset: int = 0,
    ) -> bytes:
        """Encode one (B, *shape) float32 array per tensor of the profile to one frame (docs/bitstream.md).

        op: name of an operating point; None is the profile's default. frame_id: in [0, 2^32), comes back on decoding.
        sizes: one (length,) int64 vector for each vector of sizes in the profile.
        step_offset: for a transform pair, added to the step indices of the operating point, and the sum clamped to
            0..127: 4 doubles the step, −4 halves it.
        Raises ShapeMismatch, NonFiniteFeatures, ProfileError (no such operating point), UsageError (a step offset for a
        scalar pair).
        """
        index = self.profile.point_index(op)
        if step_offset and not self.profile.is_transform:
            raise UsageError("step_offset is for transform pairs; this pair is scalar: choose an operating point")
        batch = self._check(tensors)
        behind = encode_sizes(sizes, self.profile.size_specs, len(tensors))
        jobs: list[Callable[[], Chunk]] = []
        coders = self._coders(index, min(max(step_offset, -STEPS), STEPS))
        for i, (spec, coder, x) in enumerate(zip(self.profile.tensors, coders, tensors, strict=True)):
            planes = np.ascontiguousarray(x).reshape(-1, *spec.planes[1:])
            many = coder.planes_per_chunk
            jobs += [
                partial(coder.encode, planes[first : first + many], i, first) for first in range(0, len(planes), many)
            ]
        try:
            chunks = [*self._run(jobs), *behind]
        except NonFiniteFeatures:
            # Raised again with the index in the tensor; the first error has the index in a chunk.
            raise non_finite(next(x for x in tensors if not np.isfinite(x).all())) from None
        frame = Frame(op=index, fingerprint=self.fingerprint, frame_id=frame_id, batch=batch, chunks=chunks)
        return build_frame(frame, compact=self._compact)

    def decode(self, data: bytes | memoryview, *, conceal: bool = False) -> DecodedFrame:
        """Decode a frame to its tensors.

        conceal: fill the planes of a damaged chunk with the calibration mean and list the chunk in the result, instead
        of refusing the frame. Three cases are refused even so: a damaged header, a profile without a mean, and a frame
        of one chunk, of which nothing would remain.
        Raises BitstreamError (Truncated, Corrupt, UnsupportedVersion, LimitExceeded) or FingerprintMismatch, and
        nothing else, for any bytes.
        """
        frame = parse_frame(data, self.limits, keep_damaged=conceal)
        if not self.fingerprint.startswith(frame.fingerprint):
            ours = self.fingerprint[: len(frame.fingerprint)]
            raise FingerprintMismatch(
                f"frame is of pair {frame.fingerprint.hex()}, this half is of pair {ours.hex()} "
                f"({self.profile.model} cut at {self.profile.cut}); deploy front and back of one export"
            )
        if frame.op >= len(self.profile.operating_points):
            raise Corrupt(f"frame names operating point {frame.op} of {len(self.profile.operating_points)}")
        elements = frame.batch * sum(max(t.elements, t.feature_elements) for t in self.profile.tensors)
        if elements > self.limits.elements:
            raise LimitExceeded(f"frame decodes to {elements} elements, over the limit of {self.limits.elements}")
        specs = self.profile.size_specs
        last = max(0, len(frame.chunks) - len(specs))
        sizes = decode_sizes(frame.chunks[last:], specs, len(self.profile.tensors))
        coded = frame.chunks[:last]
        counts = self._check_chunks(frame, coded)
        tensors = [np.empty((frame.batch, *spec.shape), np.float32) for spec in self.profile.tensors]
        coders = self._coders(frame.op)
        jobs: list[Callable[[], int | None]] = []
        coded_tensors = []
        concealed = []
        done = [0] * len(tensors)
        for i, (chunk, count) in enumerate(zip(coded, counts, strict=True)):
            spec, first = self.profile.tensors[chunk.tensor], done[chunk.tensor]
            done[chunk.tensor] = first + count
            size = spec.planes[1] * spec.planes[2]
            out = tensors[chunk.tensor].reshape(-1)[first * size : (first + count) * size]
            if not chunk.damaged:
                jobs.append(partial(coders[chunk.tensor].decode, chunk, first, count, out))
                coded_tensors.append(chunk.tensor)
            elif spec.mean is not None:
                out[:] = spec.mean
                concealed.append(i)
            else:
                raise Corrupt(f"chunk {i} is damaged, and the profile has no mean to conceal tensor {spec.name!r} with")
        steps = {i: c.step for i, c in enumerate(coders) if isinstance(c, CoefficientCoder)}
        found = zip(
            reversed(coded_tensors), reversed(self._run(jobs)), strict=True
        )  # of each the first chunk comes last
        steps |= {tensor: step for tensor, step in found if step is not None}
        op = self.profile.operating_points[frame.op].name
        return DecodedFrame(
            tensors=tensors, op=op, frame_id=frame.frame_id, batch=frame.batch, concealed=tuple(concealed),
            sizes=tuple(sizes), steps=tuple(steps.values()),
        )  # fmt: skip

    def _run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Run the jobs and return their results in order. If several fail, the error of the first one is raised."""
        if self._pool is None or len(jobs) == 1:
            return [job() for job in jobs]
        return [future.result() for future in [self._pool.submit(job) for job in jobs]]

    def _check(self, tensors: Sequence[Float32Array]) -> int:
        """Check the tensors against the profile and return their batch size. Raises ShapeMismatch."""
        specs = self.profile.tensors
        if len(tensors) != len(specs):
            names = ", ".join(s.name for s in specs)
            raise ShapeMismatch(f"expected {len(specs)} tensors ({names}), got {len(tensors)}")
        for spec, x in zip(specs, tensors, strict=True):
            if x.dtype != np.float32 or x.shape[1:] != spec.shape or x.shape[0] != tensors[0].shape[0]:
                raise ShapeMismatch(
                    f"tensor {spec.name!r} must be float32 of shape (batch, {', '.join(map(str, spec.shape))}), "
                    f"got {x.dtype} of shape {x.shape}"
                )
        batch = int(tensors[0].shape[0])
        if not 1 <= batch <= MAX_BATCH:
            raise ShapeMismatch(f"batch must be 1..{MAX_BATCH}, got {batch}")
        return batch

    def _check_chunks(self, frame: Frame, coded: Sequence[Chunk]) -> list[int]:
        """Check that the chunks hold every plane of every tensor once and in order, by known coders and lane counts.

        coded: the chunks of the tensors, without those of the sizes. Returns how many planes each chunk holds.
        Raises Corrupt or UnsupportedVersion.
        """
        coders = self._coders(frame.op)
        expected = [frame.batch * t.planes[0] for t in self.profile.tensors]
        counts = [expected[0] if chunk.planes is None else chunk.planes for chunk in coded]
        planes = [0] * len(coders)
        current = 0
        for i, chunk in enumerate(coded):
            coder = coders[0].coder_id if chunk.coder is None else chunk.coder
            if coder not in MOST_LANES:
                ours = ", ".join(map(str, sorted(MOST_LANES)))
                raise UnsupportedVersion(f"chunk {i} uses coder {coder}, this build has {ours}; update splitwire")
            if chunk.tensor < current or chunk.tensor >= len(planes) or chunk.lanes > MOST_LANES[coder]:
                raise Corrupt(f"chunk {i} is invalid: tensor {chunk.tensor} of {len(planes)}, {chunk.lanes} lanes")
            if coder != coders[chunk.tensor].coder_id:
                name = self.profile.operating_points[frame.op].name
                raise Corrupt(
                    f"chunk {i} uses coder {coder}, operating point {name!r} is of coder "
                    f"{coders[chunk.tensor].coder_id}"
                )
            current = chunk.tensor
            planes[current] += counts[i]
        if planes != expected:
            raise Corrupt(f"chunks hold {planes} planes per tensor, a batch of {frame.batch} needs {expected}")
        return counts


def planes_per_chunk(spec: TensorSpec, *, whole_images: bool) -> int:
    """How many planes the encoder puts into a chunk, for about CHUNK_ELEMENTS elements.

    These are whole images if `whole_images` is set and one image fits; else a multiple of the lanes.
    """
    channels, height, width = spec.planes
    if whole_images and spec.elements <= CHUNK_ELEMENTS:
        return CHUNK_ELEMENTS // spec.elements * channels
    return max(1, CHUNK_ELEMENTS // (height * width * MAX_LANES)) * MAX_LANES
