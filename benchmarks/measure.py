"""How times are taken, and what is said about the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPEATS = 21
FEWEST = 3
SECONDS = 1.0
"""A slow call is repeated until this much time is spent on it, but at least FEWEST times."""


def medians(calls: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call. One warm-up each, then round robin, so that a busy moment hits all alike."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name, call in calls.items():
            if i >= FEWEST and sum(times[name]) > SECONDS:
                continue
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def machine() -> dict[str, str]:
    """Processor and versions, for the JSON beside the figures."""
    info = {"architecture": platform.machine(), "processor": _processor(), "python": platform.python_version()}
    for package in ("splitwire", "numpy", "numba", "zstandard", "constriction"):
        info[package] = version(package)
    return info


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
