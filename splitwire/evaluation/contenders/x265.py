"""One picture as HEVC intra by libx265, through PyAV.

The settings are the same in every use: one intra picture; constant QP, with `ipratio=1` so that an intra picture has
this QP; one thread (`pools=none`, one frame thread, no wavefronts, whose entry points would cost bytes); no SEI with
the encoder's options in words. A new encoder is opened for each picture, and that is part of the time: about 1.3 of the
4 to 7 ms of a 60 × 60 picture, and of the 70 to 90 ms of one of 336 × 336 (one core of a cloud server). The stream is
as long as that of an encoder that is kept open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import compress
from operator import not_
from typing import Literal

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from splitwire.codec.errors import DeviceError

UInt8Array = NDArray[np.uint8]

MINIMUM = 16
"""Shortest side that libx265 takes, pixels."""

ALWAYS = {
    "keyint": "1",
    "bframes": "0",
    "rc-lookahead": "0",
    "ipratio": "1",
    "pools": "none",
    "frame-threads": "1",
    "wpp": "0",
    "info": "0",
    "log-level": "none",
}

PARAMETER_SETS = (32, 33, 34)
"""NAL unit types of the video, sequence and picture parameter sets."""


def encode(picture: UInt8Array, form: str, qp: int, tuning: Mapping[str, str]) -> bytes:
    """An Annex-B stream, parameter sets included. Preset medium, then `tuning`, x265's own options.

    picture: as PyAV lays out `form`: "gray" is (H, W), "yuv420p" (3H/2, W); at least MINIMUM a side.
    Raises DeviceError if this PyAV has no libx265.
    """
    height, width = picture.shape if form == "gray" else (picture.shape[0] * 2 // 3, picture.shape[1])
    encoder = _context("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, form, Fraction(1)
    encoder.thread_count = 1
    options = {"qp": str(qp), **ALWAYS, **tuning}
    encoder.options = {"preset": "medium", "x265-params": ":".join(f"{k}={v}" for k, v in options.items())}
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(picture, format=form)), *encoder.encode(None)]
    return b"".join(bytes(p) for p in packets)


def decode(stream: bytes) -> tuple[UInt8Array, str]:
    """The picture of an Annex-B stream, and its form as above."""
    decoder = _context("hevc", "r")
    decoder.thread_count = 1
    frame = [*decoder.decode(av.Packet(stream)), *decoder.decode(None)][0]
    form = "gray" if frame.format.name.startswith("gray") else "yuv420p"
    return frame.to_ndarray(format=form).astype(np.uint8, copy=False), form


def split(stream: bytes) -> tuple[bytes, bytes]:
    """The parameter sets of an Annex-B stream, and the rest."""
    starts = [m.start() for m in re.finditer(rb"\x00?\x00\x00\x01", stream)]
    units = [stream[a:b] for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]
    first = [u.lstrip(b"\x00")[1] >> 1 & 63 in PARAMETER_SETS for u in units]
    return b"".join(compress(units, first)), b"".join(compress(units, map(not_, first)))


@lru_cache(maxsize=256)
def parameter_sets(width: int, height: int, qp: int, tuning: tuple[tuple[str, str], ...]) -> bytes:
    """Those of every gray picture of this size at these settings."""
    return split(encode(np.zeros((height, width), np.uint8), "gray", qp, dict(tuning)))[0]


def _context(name: Literal["libx265", "hevc"], mode: Literal["r", "w"]) -> VideoCodecContext:
    try:
        context = av.CodecContext.create(name, mode)
    except av.codec.codec.UnknownCodecError:
        context = None
    if not isinstance(context, VideoCodecContext):
        raise DeviceError(
            f"this PyAV has no {name}; install the wheel of PyPI (pip install --force-reinstall av) or leave the HEVC"
            " contenders out with --contenders"
        )
    return context
