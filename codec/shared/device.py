"""DeviceProfile: how fast a machine computes and codes. The edge measures it, the planner reads it.

It is JSON, and strict: unknown fields are an error. A profile measured on the device can be copied to the machine where
the planner runs, and edited by hand.
"""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from splitwire.codec.errors import UsageError

from .files import write_json

FORMAT = 1
MAX_BYTES = 1 << 20
MAX_THREADS = 256
"""Most threads, or the number of cores where that is larger."""

Rate = Annotated[float, Meta(gt=0)]
Amount = Annotated[float, Meta(ge=0)]


class MeasuredCut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The time of one front half on the device.

    model, cut: as in the pair's profile. input_shape: of one image, without the batch axis. shapes: of the features of
    one image. front_ms: milliseconds per image, median. provider: the execution provider that ran it.
    """

    model: str
    cut: str
    input_shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    front_ms: Rate
    provider: str


class DeviceProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of one machine, batch 1.

    source: "measured" on such a machine, or "estimate" from data sheets.
    conv_macs, matmul_macs, depthwise_macs: float32 multiply–accumulates per second of dense convolutions, of matrix
        products, and of depthwise convolutions.
    elementwise_bytes: bytes per second, read and written together, of all other nodes, on feature maps of megabytes.
    weight_bytes: bytes per second of weights that are read once per image and too large for the caches.
    node_overhead_us: microseconds per node of the graph, whatever its size.
    encode_elements, decode_elements: feature elements per second through splitwire's codec, one thread.
    jpeg_encode_pixels, jpeg_decode_pixels: RGB pixels per second.
    compute_watts: drawn while computing. radio_joules_per_byte: of the link's sender. None: not known.
    note: how the rates came about, in words. cuts: front halves that were measured too; unset if none was.
    """

    format: Annotated[int, Meta(ge=1)] = FORMAT
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    source: Literal["measured", "estimate"]
    conv_macs: Rate
    matmul_macs: Rate
    depthwise_macs: Rate
    elementwise_bytes: Rate
    weight_bytes: Rate
    node_overhead_us: Amount
    encode_elements: Rate
    decode_elements: Rate
    jpeg_encode_pixels: Rate
    jpeg_decode_pixels: Rate
    compute_watts: Rate | None = None
    radio_joules_per_byte: Amount | None = None
    note: str | None = None
    cuts: tuple[MeasuredCut, ...] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"device profile format {self.format} is not {FORMAT}; update splitwire")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, is {value}")

    @property
    def measured_cuts(self) -> tuple[MeasuredCut, ...]:
        """The front halves that were measured; () if none was."""
        return self.cuts if isinstance(self.cuts, tuple) else ()

    def rate(self, work: Literal["conv", "depthwise", "matmul", "other"]) -> float:
        """Multiply–accumulates per second of this kind of work. ("other" has none; its rate is that of "conv".)"""
        return {
            "conv": self.conv_macs,
            "depthwise": self.depthwise_macs,
            "matmul": self.matmul_macs,
            "other": self.conv_macs,
        }[work]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises UsageError if it cannot be written."""
        try:
            write_json(path, self)
        except OSError as e:
            raise UsageError(f"{path}: the device profile cannot be written: {e.strerror}") from e

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> DeviceProfile:
        """Parse and check. Raises UsageError, in one line with `source` (a file name), for anything but a profile."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError) as e:
            raise UsageError(
                f"{source}: not a device profile: {e}; make one with `splitwire edge profile --out FILE.json`"
            ) from e

    @classmethod
    def load(cls, path: Path) -> DeviceProfile:
        """Read a file. Raises UsageError if it is missing, unreadable, too large or not a device profile."""
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise UsageError(f"{path}: {size:,} bytes are too many for a device profile")
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as e:
            raise UsageError(f"{path}: no such device profile, or it cannot be read ({e.strerror})") from e


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise UsageError unless `threads` is None or from 1 to MAX_THREADS.

    Every thread is started, and takes memory, before the first inference.
    """
    most = max(MAX_THREADS, os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise UsageError(f"threads must be from 1 to {most}, is {threads}; this machine has {os.cpu_count()} cores")


def int8_overflows() -> bool:
    """Whether this CPU may add 8-bit products in 16 bits, which overflows: x86 without VNNI, or not known to have it.

    ONNX Runtime's slower kernels for it are exact, and on a CPU with VNNI cost an int8 front all that it gains.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
