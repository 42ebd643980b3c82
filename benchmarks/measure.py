"""How times are taken."""

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

    Round robin, so that a busy moment hits all alike. Each timed call follows an untimed one of its own: what is
    measured is a stream of them on a core with nothing else to do, not the caches that another contender has left.
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
