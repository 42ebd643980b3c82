"""The picture as HEVC intra, as HEIC files hold it, without their container."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import x265
from .protocol import Sent

SIZE_BYTES = 2


class HevcImage:
    """One QP, preset medium. The payload is width and height, two bytes each, and the Annex-B stream.

    RGB: full-range YCbCr as JPEG has it, 4:2:0, chroma averaged over 2 × 2 and brought back bilinearly. L: luma alone.
    Sides are padded to an even number of at least 16 pixels by repeating the edge; decoding crops them again.
    """

    def __init__(self, qp: int, *, family: str) -> None:
        self.family, self.setting = family, f"qp {qp}"
        self._qp = qp

    def encode(self, picture: Image.Image) -> Sent:
        size = b"".join(n.to_bytes(SIZE_BYTES, "little") for n in picture.size)
        if picture.mode == "L":
            stream = x265.encode(_filled(np.asarray(picture)), "gray", self._qp, {})
        else:
            y, *chroma = Image.fromarray(_filled(np.asarray(picture.convert("RGB")))).convert("YCbCr").split()
            halves = [np.asarray(c.resize((y.width // 2, y.height // 2), Image.Resampling.BOX)) for c in chroma]
            planes = np.concatenate([np.asarray(y).reshape(-1), *(h.reshape(-1) for h in halves)])
            stream = x265.encode(planes.reshape(-1, y.width), "yuv420p", self._qp, {})
        return Sent(payload=size + stream)

    def decode(self, sent: Sent) -> Image.Image:
        across, down = (int.from_bytes(sent.payload[i : i + SIZE_BYTES], "little") for i in (0, SIZE_BYTES))
        pixels, form = x265.decode(sent.payload[2 * SIZE_BYTES :])
        if form == "gray":
            return Image.fromarray(pixels).crop((0, 0, across, down))
        height, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
        halves = pixels[height:].reshape(2, height // 2, width // 2)
        chroma = [Image.fromarray(h).resize((width, height), Image.Resampling.BILINEAR) for h in halves]
        return (
            Image.merge("YCbCr", (Image.fromarray(pixels[:height]), *chroma)).convert("RGB").crop((0, 0, across, down))
        )


def _filled(pixels: x265.UInt8Array) -> x265.UInt8Array:
    """(H, W) or (H, W, 3) with even sides of at least the minimum."""
    missing = [(0, max(n + n % 2, x265.MINIMUM) - n) for n in pixels.shape[:2]]
    return np.pad(pixels, [*missing, *[(0, 0)] * (pixels.ndim - 2)], "edge")
