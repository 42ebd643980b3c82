"""Level indices, bit-packed, then compressed by zstd: what a careful user would build."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.quantizer import dequantize, quantize

from .protocol import Features, Sent

UInt8Array = NDArray[np.uint8]


def bits_of(quantizer: Quantizer) -> int:
    """⌈log2 N⌉: bits of one packed level index."""
    return math.ceil(math.log2(len(quantizer.levels)))


def pack(q: UInt8Array, bits: int) -> UInt8Array:
    """Level indices of any shape, below 2^bits → ⌈n·bits/8⌉ bytes."""
    return np.packbits(np.unpackbits(q.reshape(-1, 1), axis=1, count=bits, bitorder="little"))


def unpack(data: UInt8Array, size: int, bits: int) -> UInt8Array:
    """The inverse of `pack`: (size,) level indices."""
    return np.packbits(np.unpackbits(data, count=size * bits).reshape(size, bits), axis=1, bitorder="little")[:, 0]


def packed_zstd_bytes(features: NDArray[np.float32], quantizer: Quantizer, level: int = 3) -> int:
    """Bytes of features of any shape as the same level indices, packed to ⌈log2 N⌉ bits each, then zstd."""
    import zstandard

    packed = pack(quantize(features, quantizer), bits_of(quantizer))
    return len(zstandard.ZstdCompressor(level=level).compress(packed.tobytes()))


class PackedZstd:
    """The level indices of one operating point, packed tensor by tensor, through zstd on one thread.

    side: bytes of the profile's sizes. The decoded features are those of splitwire's frame of the
    same point.
    """

    def __init__(self, profile: CodecProfile, op: str, level: int, *, family: str, side: int) -> None:
        import zstandard

        self.family, self.setting, self.received = family, op, f"op {op}"
        self._side = side
        self._shapes = [(1, *t.shape) for t in profile.tensors]
        point = profile.operating_points[profile.point_index(op)]
        self._quantizers = [t.quantizer for t in point.tensors]
        self._compress = zstandard.ZstdCompressor(level=level, threads=0).compress
        self._decompress = zstandard.ZstdDecompressor().decompress

    def fit(self, sample: Sequence[Features]) -> None:
        """Nothing to learn: the profile holds the quantizers."""

    def encode(self, features: Features) -> Sent:
        packed = (pack(quantize(x, q), bits_of(q)) for x, q in zip(features, self._quantizers, strict=True))
        return Sent(payload=self._compress(b"".join(p.tobytes() for p in packed)), side=self._side)

    def decode(self, sent: Sent) -> Features:
        data, features, start = np.frombuffer(self._decompress(sent.payload), np.uint8), [], 0
        for shape, quantizer in zip(self._shapes, self._quantizers, strict=True):
            size, bits = math.prod(shape), bits_of(quantizer)
            end = start + -(-size * bits // 8)
            features.append(dequantize(unpack(data[start:end], size, bits), quantizer).reshape(shape))
            start = end
        return tuple(features)
