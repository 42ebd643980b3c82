"""What a user would send instead: the same features in other forms, or the image itself."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.profile import Quantizer
from splitwire.codec.quantizer import quantize

ZSTD_LEVEL = 3
JPEG_QUALITY = 90


def packed_zstd_bytes(features: NDArray[np.float32], quantizer: Quantizer) -> int:
    """Bytes of (1, C, H, W) features as the same level indices, packed to ⌈log2 N⌉ bits each, then zstd level 3."""
    import zstandard

    q = quantize(features, quantizer).reshape(-1, 1)
    bits = math.ceil(math.log2(len(quantizer.levels)))
    packed = np.packbits(np.unpackbits(q, axis=1, bitorder="little")[:, :bits])
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(packed.tobytes()))


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG of quality 90, optimised tables."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
