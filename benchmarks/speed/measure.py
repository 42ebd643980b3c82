"""Measures times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

REPEATS = 21
FEWEST = 3
SECONDS = 1.0
"""A slow call is repeated until this much time is spent on it, but at least FEWEST times."""


def medians(calls: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call.

    The calls run in turns, so that a busy moment affects all of them. An untimed run of the same call precedes each
    timed run. So the caches are as in a series of such calls, and not as another contender left them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name, call in calls.items():
            if i >= FEWEST and sum(times[name]) > SECONDS:
                continue
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}
