"""FeatureCodec: the whole codec behind two calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .entropy import CODERS, SymbolCoder
from .errors import Corrupt, FingerprintMismatch, LimitExceeded, ShapeMismatch, UnsupportedVersion
from .frame import Chunk, Frame, Limits, build_frame, parse_frame
from .profile import CodecProfile, TensorPoint, TensorSpec
from .quantizer import BlockPacker

Float32Array = NDArray[np.float32]
MAX_BATCH = 65535


@dataclass(frozen=True, kw_only=True)
class DecodedFrame:
    """tensors: one (B, *shape) float32 array per tensor of the profile. op: name of the operating point."""

    tensors: list[Float32Array]
    op: str
    frame_id: int
    batch: int


class TensorCoder:
    """One tensor at one operating point through one entropy coder: (B, C, H, W) float32 ↔ chunk payload."""

    def __init__(self, spec: TensorSpec, point: TensorPoint, entropy: SymbolCoder) -> None:
        self.channels, height, width = spec.planes
        self.packer = BlockPacker(point.quantizer, entropy.block, entropy.padding, height, width)
        self.entropy = entropy

    @classmethod
    def all_of(cls, spec: TensorSpec, point: TensorPoint) -> dict[int, TensorCoder]:
        """By wire id, every coder that the point has what it needs for; the first is the one that encodes."""
        found = (kind.of(point, spec.planes[0]) for kind in CODERS)
        return {entropy.coder_id: cls(spec, point, entropy) for entropy in found if entropy is not None}

    def encode(self, x: Float32Array, tensor: int) -> Chunk:
        """All planes of `x` as one chunk. Raises NonFiniteFeatures."""
        symbols = self.packer.quantize(x)
        payload, lanes = self.entropy.encode(symbols, self.packer.rows, self.packer.cols)
        planes = x.shape[0] * self.channels
        return Chunk(tensor=tensor, coder=self.entropy.coder_id, lanes=lanes, planes=planes, payload=payload)

    def decode(self, chunk: Chunk, first_plane: int, out: Float32Array) -> None:
        """Decode the chunk's planes into `out`, (planes·H·W,) float32. Raises Truncated or Corrupt."""
        symbols = self.entropy.decode(
            chunk.payload, chunk.planes, self.packer.rows, self.packer.cols, chunk.lanes, first_plane % self.channels
        )
        self.packer.unpack(symbols, out)


class FeatureCodec:
    """Encode feature tensors to a frame and back, as the profile says. Safe to share between threads."""

    def __init__(self, profile: CodecProfile, limits: Limits | None = None) -> None:
        self.profile = profile
        self.limits = limits or Limits()
        self.fingerprint = profile.fingerprint
        self._coders = lru_cache(maxsize=None)(self._build_coders)

    def _build_coders(self, op: int) -> list[dict[int, TensorCoder]]:
        points = self.profile.operating_points[op].tensors
        return [TensorCoder.all_of(s, p) for s, p in zip(self.profile.tensors, points, strict=True)]

    def encode(self, tensors: Sequence[Float32Array], *, op: str | None = None, frame_id: int = 0) -> bytes:
        """One (B, *shape) float32 array per tensor of the profile → one frame (docs/bitstream.md).

        op: name of an operating point; None is the profile's default. frame_id: in [0, 2^32), comes back on decoding.
        Raises ShapeMismatch, NonFiniteFeatures, ProfileError (no such operating point).
        """
        index = self.profile.point_index(op)
        batch = self._check(tensors)
        encoders = [next(iter(coders.values())) for coders in self._coders(index)]
        chunks = [coder.encode(x, i) for i, (coder, x) in enumerate(zip(encoders, tensors, strict=True))]
        return build_frame(Frame(op=index, fingerprint=self.fingerprint, frame_id=frame_id, batch=batch, chunks=chunks))

    def decode(self, data: bytes | memoryview) -> DecodedFrame:
        """Frame → tensors.

        Raises BitstreamError (Truncated, Corrupt, UnsupportedVersion, LimitExceeded) or FingerprintMismatch; nothing
        else, whatever the bytes.
        """
        frame = parse_frame(data, self.limits)
        if frame.fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"frame is of pair {frame.fingerprint.hex()}, this half is of pair {self.fingerprint.hex()} "
                f"({self.profile.model} cut at {self.profile.cut}); deploy front and back of one export"
            )
        if frame.op >= len(self.profile.operating_points):
            raise Corrupt(f"frame names operating point {frame.op} of {len(self.profile.operating_points)}")
        elements = frame.batch * sum(t.elements for t in self.profile.tensors)
        if elements > self.limits.elements:
            raise LimitExceeded(f"frame decodes to {elements} elements, over the limit of {self.limits.elements}")
        self._check_chunks(frame)
        tensors: list[Float32Array] = []
        for i, (spec, coders) in enumerate(zip(self.profile.tensors, self._coders(frame.op), strict=True)):
            out = np.empty((frame.batch, *spec.shape), np.float32)
            flat, size, plane = out.reshape(-1), spec.elements // spec.planes[0], 0
            for chunk in frame.chunks:
                if chunk.tensor == i:
                    coders[chunk.coder].decode(chunk, plane, flat[plane * size : (plane + chunk.planes) * size])
                    plane += chunk.planes
            tensors.append(out)
        op = self.profile.operating_points[frame.op].name
        return DecodedFrame(tensors=tensors, op=op, frame_id=frame.frame_id, batch=frame.batch)

    def _check(self, tensors: Sequence[Float32Array]) -> int:
        """Batch size, the same for all. Raises ShapeMismatch."""
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

    def _check_chunks(self, frame: Frame) -> None:
        """Every plane of every tensor once, in order, by a coder and lanes we have."""
        known = {kind.coder_id: kind for kind in CODERS}
        coders = self._coders(frame.op)
        planes = [0] * len(coders)
        current = 0
        for i, chunk in enumerate(frame.chunks):
            kind = known.get(chunk.coder)
            if kind is None:
                raise UnsupportedVersion(
                    f"chunk {i} uses coder {chunk.coder}, this build has {', '.join(map(str, known))}; update splitwire"
                )
            if chunk.tensor < current or chunk.tensor >= len(planes) or chunk.lanes > kind.max_lanes:
                raise Corrupt(f"chunk {i} is invalid: tensor {chunk.tensor} of {len(planes)}, {chunk.lanes} lanes")
            if chunk.coder not in coders[chunk.tensor]:
                name = self.profile.operating_points[frame.op].name
                raise Corrupt(f"chunk {i} uses coder {chunk.coder}, for which operating point {name!r} has no tables")
            current = chunk.tensor
            planes[current] += chunk.planes
        expected = [frame.batch * t.planes[0] for t in self.profile.tensors]
        if planes != expected:
            raise Corrupt(f"chunks hold {planes} planes per tensor, a batch of {frame.batch} needs {expected}")
