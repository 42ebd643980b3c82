"""Compiles every kernel and caches it on disk, so that the first frame of a new process does not wait for it.

Kernels are compiled for the types that they are called with, so the warm-up encodes and decodes small tensors through
the usual layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .codec import FeatureCodec
from .entropy.rans import neighbour_context
from .errors import DeviceError
from .kernels import statistics
from .kernels.compilation.cache import Loaded
from .kernels.compilation.policy import INTERPRETED, STORE
from .profile import Clipping, CodecProfile, OperatingPoint, Quantizer, TensorPoint, TensorSpec
from .shared.progress import ProgressFn
from .tables import ACTIVITY_SUMS, CELLS, OWN, TABLE_SIZE, ContextTables, PredictionTables, Taps
from .transform import SYMBOLS, UNIT_STEP, Transform

CHANNELS, HEIGHT, WIDTH = 2, 8, 4
SMALL = 4
"""Height of planes for which the predictive coder uses kernels/predictive_interleaved.py."""
EXAMPLE_LEVELS = 4


class WarmUp(Struct, frozen=True, kw_only=True):
    """The result of a warm-up. folder: of the cache files; bytes: of all files used; seconds: in total."""

    folder: str
    kernels: tuple[Loaded, ...]
    bytes: int
    seconds: float


Steps = Sequence[tuple[str, Callable[[], object]]]
"""Stages of a warm-up: what progress shows, and the call that uses kernels."""


def warm_up(root: Path | None = None, progress: ProgressFn | None = None, steps: Steps | None = None) -> WarmUp:
    """Compile every kernel that is not in the cache folder yet, and load the others.

    Run it in a new process: a kernel that this process has already compiled is not written.

    root: the cache folder; None is the usual one (kernels/compilation/cache.py). progress(stage, done, total): called
    as it goes. steps: what to call; None calls every kernel.
    Raises DeviceError if the folder cannot be written, or nothing is compiled here (NUMBA_DISABLE_JIT).
    """
    if INTERPRETED:
        raise DeviceError("NUMBA_DISABLE_JIT is set: kernels are interpreted, there is nothing to compile; unset it")
    start = time.perf_counter()
    folder = STORE.require(root)
    steps = list(_steps()) if steps is None else steps
    for done, (stage, call) in enumerate(steps):
        if progress is not None:
            progress(stage, done, len(steps))
        call()
    if progress is not None:
        progress(steps[-1][0], len(steps), len(steps))
    lost = [one.kernel for one in STORE.loaded if not Path(one.path).is_relative_to(folder)]
    if lost:
        raise DeviceError(
            f"this process had compiled {', '.join(lost)} before, so they are not in {folder}; warm up in a new process"
        )
    return WarmUp(
        folder=str(folder),
        kernels=tuple(STORE.loaded),
        bytes=sum(Path(one.path).stat().st_size for one in STORE.loaded),
        seconds=time.perf_counter() - start,
    )


def _steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (stage, call); together the calls use every kernel with every set of argument types that occurs.

    A new coder needs one more operating point in `example_profile`; coefficients are in `example_transform`.
    tests/system/test_startup.py fails for a kernel that is left out.
    """
    codec, small = (FeatureCodec(example_profile((CHANNELS, height, WIDTH))) for height in (HEIGHT, SMALL))
    x = np.linspace(-1, 2, CHANNELS * HEIGHT * WIDTH, dtype=np.float32).reshape(1, CHANNELS, HEIGHT, WIDTH)
    fixed = x.copy()
    fixed.flags.writeable = False  # as views of bytes and of other libraries' tensors: Numba has another type for them

    def both(codec: FeatureCodec, features: NDArray[np.float32], op: str) -> None:
        codec.decode(codec.encode([features], op=op))

    for point in codec.profile.operating_points:
        yield f"Coding, {point.name}", partial(both, codec, x, point.name)
    for op in (codec.profile.default_op, "means"):
        yield f"Coding, {op}, read-only", partial(both, codec, fixed, op)
    yield "Coding, predicted, small planes", partial(both, small, np.ascontiguousarray(x[:, :, :SMALL]), "predicted")
    transform = FeatureCodec(example_transform((HEIGHT, WIDTH)))
    for name, plane in (("transform", x[:, 0].copy()), ("transform, read-only", fixed[:, 0])):
        yield f"Coding, {name}", partial(both, transform, plane, "transform")
    yield "Counting for the exporter", lambda: statistics.histogram(x.reshape(-1), 2.0, np.zeros(8, np.int64))
    yield "Counting for the exporter", _count_contexts


def example_profile(shape: tuple[int, int, int] = (CHANNELS, HEIGHT, WIDTH)) -> CodecProfile:
    """A profile of one (C, H, W) tensor and no model, with one operating point for each path through the codec.

    Its tables compress nothing: all symbols are equally likely.
    """
    points = {
        "whole-blocks": _tables((2, 2), shape[0]),  # two floats per machine word
        "padded-blocks": _tables((1, 3), shape[0]),  # one float per machine word; planes that are not whole blocks
        "no-tables": None,  # the adaptive binary coder
    }
    quantizer = Quantizer.uniform(0.0, 1.0, EXAMPLE_LEVELS)
    clipping = Clipping(method="histogram")
    coded = {name: TensorPoint(quantizer=quantizer, clipping=clipping, tables=t) for name, t in points.items()}
    coded["predicted"] = TensorPoint(
        quantizer=quantizer, clipping=clipping, tables=None, prediction=_prediction(shape[0])
    )
    preserving = msgspec.structs.replace(quantizer, mean_preserving=True)
    coded["means"] = msgspec.structs.replace(coded["whole-blocks"], quantizer=preserving)
    return CodecProfile(
        model="warm-up", cut="none", front_sha256="", back_sha256="", default_op="whole-blocks",
        tensors=(TensorSpec(name="x", shape=shape, taps=Taps(counts=bytes(shape[0]), sources=b"")),),
        operating_points=tuple(
            OperatingPoint(name=name, tensors=(point,), bits_per_element=0.0) for name, point in coded.items()
        ),
    )  # fmt: skip


def example_transform(shape: tuple[int, int] = (HEIGHT, WIDTH)) -> CodecProfile:
    """A profile of one (tiles, N) tensor of coefficients and no model. Its tables compress nothing."""
    transform = Transform(
        features="x", feature_shape=shape, classes=bytes([UNIT_STEP] * shape[1]), first=0,
        frequencies=np.full(SYMBOLS, TABLE_SIZE // SYMBOLS, "<u2").tobytes(),
        zero_groups=np.array([TABLE_SIZE // 2], "<u2").tobytes(),
    )  # fmt: skip
    return CodecProfile(
        model="warm-up", cut="none", front_sha256="", back_sha256="", default_op="transform",
        tensors=(TensorSpec(name="x", shape=shape, transform=transform),),
        operating_points=(OperatingPoint(name="transform", tensors=(), steps=(UNIT_STEP,), bits_per_element=0.0),),
    )  # fmt: skip


def _tables(block: tuple[int, int], channels: int) -> ContextTables:
    """One table for all contexts."""
    symbols = EXAMPLE_LEVELS ** (block[0] * block[1])
    return ContextTables(
        block=block, padding=0, activities=1, left_activity=bytes(symbols), top_activity=bytes(symbols),
        context_map=bytes(channels * 4), frequencies=_equal(symbols),
    )  # fmt: skip


def _prediction(channels: int) -> PredictionTables:
    """One table for all contexts, no taps, and all weights 0."""
    return PredictionTables(
        rest=0, weights=bytes(len(OWN) * channels), bias=bytes(2 * channels), offset=0, shift=0, activities=1,
        activity=bytes(ACTIVITY_SUMS), classes=1, channel_class=bytes(channels), context_map=bytes(CELLS),
        frequencies=_equal(EXAMPLE_LEVELS),
    )  # fmt: skip


def _equal(symbols: int) -> bytes:
    """Equal frequencies for the symbols of one table; the escape takes the remainder."""
    frequencies = np.full(symbols + 1, (TABLE_SIZE - 1) // symbols, "<u2")
    frequencies[-1] = TABLE_SIZE - int(frequencies[:-1].sum(dtype=np.int64))
    return frequencies.tobytes()


def _count_contexts() -> None:
    symbols = np.zeros(CHANNELS * HEIGHT * WIDTH, np.uint8)
    outside = neighbour_context(bytes(EXAMPLE_LEVELS), outside=1, scale=1)
    counts = np.zeros((8, EXAMPLE_LEVELS), np.int64)
    statistics.count_contexts(symbols, HEIGHT, WIDTH, np.zeros(CHANNELS, np.uint64), outside, outside, counts)
