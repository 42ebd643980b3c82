"""Milliseconds per stage of the split network on one core, image by image; and the machine they are of."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.shared.pictures import spread
from splitwire.evaluation.data.dataset import Dataset

from .measure import Reader
from .pair import Pair

IMAGES = 32
SECONDS = 20.0
"""Most images; and the seconds after which no further one is started."""

PACKAGES = (
    "splitwire", "numpy", "numba", "onnxruntime", "pillow", "av", "zstandard", "pycocotools", "scikit-learn",
    "constriction",
)  # fmt: skip
"""The figures depend on their versions, those of the benchmarks too."""


def time_stages(folder: Path, data: Dataset, op: str) -> dict[str, float]:
    """Median ms per image of "front", "encode", "decode" and "back" at an operating point, each on one thread.

    folder: of the pair. One image at a time, or as many as the graphs take at least. The first run is not counted.
    """
    pair = Pair(folder, threads=1, features=False)
    codec, n = FeatureCodec(pair.profile), pair.smallest
    taken: dict[str, list[float]] = {"front": [], "encode": [], "decode": [], "back": []}
    warm = False
    begun = time.monotonic()
    for _, item in Reader(data, spread(len(data), IMAGES)):
        for count in (True,) if warm else (False, True):
            start = time.perf_counter()
            fronts = pair.front([item.x] * n)
            fronted = time.perf_counter()
            frame = codec.encode(fronts[0].crossing, op=op, sizes=fronts[0].sizes)
            encoded = time.perf_counter()
            tensors = tuple(codec.decode(frame).tensors)
            decoded = time.perf_counter()
            pair.receive([tensors] * n, fronts)
            end = time.perf_counter()
            seconds = ((fronted - start) / n, encoded - fronted, decoded - encoded, (end - decoded) / n)
            for stage, s in zip(taken, seconds, strict=True):
                taken[stage] += [s * 1e3] if count else []
        warm = True
        if time.monotonic() - begun > SECONDS:
            break
    return {stage: statistics.median(ms) for stage, ms in taken.items()}


def machine() -> dict[str, str]:
    """Architecture, processor and cores, and the versions of what the figures depend on, as far as it is installed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = {"architecture": platform.machine(), "processor": _processor(), "cores": str(cores)}
    return info | {"system": platform.system(), "python": platform.python_version()} | versions()


def versions() -> dict[str, str]:
    """Package → version, of PACKAGES."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
