"""HEVC of the features: each tensor as an 8-bit picture of its channels side by side, coded intra by libx265."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from splitwire.codec.profile import CodecProfile, TensorSpec

from . import x265
from .protocol import Features, Sent
from .raw import Ranges

OUTSIDE = 0.0005
"""Share of the elements that is clipped on each side: 0.05–99.95 percentiles."""

LENGTH_BYTES = 4

DEFAULT: Mapping[str, str] = {}
"""x265's preset medium as it is."""

SCREEN: Mapping[str, str] = {"tskip": "1", "psy-rd": "0", "rdoq-level": "2", "psy-rdoq": "0"}
"""What x265 has for screen content. The wheels' libx265 (4.2) is built without the SCC profile (palette, intra block
copy): it does not know the option. tskip: 4 × 4 blocks without a transform, for sharp edges. psy-rd, psy-rdoq off: no
error is preferred because it looks sharper. rdoq-level 2: levels chosen by their cost in bits.
At equal PSNR of the mosaic it needs 28 % fewer bits than the preset on SqueezeNet features.10 (384×3×3), 12 % on
MobileNetV2 features.14.conv.0 (576×14×14), 4 % on ResNet-18 layer2 (128×12×12). Tried as well and left out, since they
gain nothing or cost bits: no SAO (+1 to +5 %), no deblocking, no strong intra smoothing, smaller coding tree units,
deeper transform trees and rd 5 or 6 (at most 1 % for much more time), tune ssim and psnr (as psy-rd 0), tune grain."""


class Mosaic:
    """(C, H, W) bytes ↔ a picture of rows × columns tiles, near square, at least 16 pixels a side.

    (T, D) tokens are one tile; a vector (D,) is D tiles of one element. Unused tiles are 0; a side below 16
    pixels is padded by repeating the edge.
    """

    def __init__(self, spec: TensorSpec) -> None:
        c, h, w = spec.planes
        self._planes = c, h, w = (w, 1, 1) if (c, h) == (1, 1) else (c, h, w)
        self._cols = min(c, math.ceil(math.sqrt(c * h / w)))
        self._rows = -(-c // self._cols)
        self._height, self._width = self._rows * h, self._cols * w
        self.height, self.width = max(self._height, x265.MINIMUM), max(self._width, x265.MINIMUM)

    def tile(self, q: x265.UInt8Array) -> x265.UInt8Array:
        """Elements in the tensor's order → (height, width)."""
        c, h, w = self._planes
        tiles = np.zeros((self._rows * self._cols, h, w), np.uint8)
        tiles[:c] = q.reshape(c, h, w)
        picture = tiles.reshape(self._rows, self._cols, h, w).swapaxes(1, 2).reshape(self._height, self._width)
        missing = (0, self.height - self._height), (0, self.width - self._width)
        return np.ascontiguousarray(np.pad(picture, missing, "edge"))

    def untile(self, picture: x265.UInt8Array) -> x265.UInt8Array:
        """The inverse: (C·H·W,)."""
        c, h, w = self._planes
        tiles = picture[: self._height, : self._width].reshape(self._rows, h, self._cols, w).swapaxes(1, 2)
        return tiles.reshape(-1, h, w)[:c].reshape(-1)


class HevcFeatures:
    """One QP of one tuning.

    Ranges (the percentiles of the sample) and the parameter sets of the stream are fixed in advance, as splitwire's
    profile is. Neither is counted, which is about 80 bytes per tensor in HEVC's favour. The payload is the rest of each
    tensor's Annex-B stream; where there are several tensors, the length of each stream is in front of it.
    """

    def __init__(self, profile: CodecProfile, qp: int, tuning: Mapping[str, str], *, family: str, side: int) -> None:
        self.family, self.setting, self.received = family, f"qp {qp}", f"{family} qp {qp}"
        self._qp, self._tuning, self._side = qp, tuning, side
        self._shapes = [(1, *t.shape) for t in profile.tensors]
        self._mosaics = [Mosaic(t) for t in profile.tensors]
        self._ranges = Ranges(OUTSIDE)
        self._length = LENGTH_BYTES if len(self._shapes) > 1 else 0

    def fit(self, sample: Sequence[Features]) -> None:
        """Learn the ranges."""
        self._ranges.fit(sample)

    def encode(self, features: Features) -> Sent:
        parts = []
        for i, (x, mosaic) in enumerate(zip(features, self._mosaics, strict=True)):
            stream = x265.encode(mosaic.tile(self._ranges.to_bytes(x, i)), "gray", self._qp, self._tuning)
            _, picture = x265.split(stream)
            parts += [len(picture).to_bytes(self._length, "little") if self._length else b"", picture]
        return Sent(payload=b"".join(parts), side=self._side)

    def decode(self, sent: Sent) -> Features:
        features, start = [], 0
        for i, (shape, mosaic) in enumerate(zip(self._shapes, self._mosaics, strict=True)):
            size = int.from_bytes(sent.payload[start : start + LENGTH_BYTES], "little") if self._length else None
            start += self._length
            picture = sent.payload[start:] if size is None else sent.payload[start : start + size]
            start += len(picture)
            before = x265.parameter_sets(mosaic.width, mosaic.height, self._qp, tuple(self._tuning.items()))
            q = mosaic.untile(x265.decode(before + picture)[0])
            features.append(self._ranges.to_features(q, i).reshape(shape))
        return tuple(features)
