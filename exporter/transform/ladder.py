"""The ladder of operating points of one transform: quantization steps from next to no damage to a lot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitwire.codec.transform import STEPS, UNIT_STEP
from splitwire.exporter.points.damage import Task

POINTS = 8
FINEST = 52
"""Index of the finest step of a ladder. By the quadratic model its damage is a 64th of that of step 1; what is left
behind a clip at zero does not fall with the step."""
STRIDE = 4
"""Step indices between two measurements: an octave."""
MOST = 0.7
"""Share of the damage of sending nothing at which a ladder ends at the latest."""
RANGES: Mapping[Task, tuple[float, float]] = {
    "classes": (0.003, 0.25),
    "detections": (0.01, 0.2),
    "values": (0.001, 0.08),
}
"""Task → the damage (damage.Damage.total) of the finest and of the coarsest point."""
LEAST = 0.01
"""Share of the damage of sending nothing at which a ladder begins at the latest: the outputs of an untrained network
hardly depend on its input."""


@dataclass(frozen=True, kw_only=True)
class LadderPoint:
    """One operating point. name: "q1" is the finest. step: index. bits: mean of an image's payload, by its ideal
    length. damage: Damage.total on the held-out inputs."""

    name: str
    step: int
    bits: float
    damage: float


def ends(task: Task, nothing: float) -> tuple[float, float]:
    """The damage of the finest and of the coarsest point. nothing: the damage of coefficients that are all zero."""
    lowest, highest = RANGES[task]
    return min(lowest, LEAST * nothing), min(highest, MOST * nothing)


def find_range(
    damage_at: Callable[[int], float], lowest: float, highest: float, start: int = UNIT_STEP
) -> dict[int, float]:
    """Damage by step index, an octave apart: from where it is at most `lowest`, or FINEST, to where it is at least
    `highest`, or nothing is left to be lost."""
    measured = {start: damage_at(start)}
    low = high = start
    while measured[low] > lowest and low - STRIDE >= FINEST:
        low -= STRIDE
        measured[low] = damage_at(low)
    while measured[high] < highest and high + STRIDE < STEPS:
        high += STRIDE
        measured[high] = damage_at(high)
        if measured[high] == measured[high - STRIDE]:
            break
    return dict(sorted(measured.items()))


def choose_steps(measured: Mapping[int, float], lowest: float, highest: float, points: int = POINTS) -> list[int]:
    """`points` rising step indices, spread evenly from the index with the damage `lowest` to that with `highest`.

    measured: damage by step index, in rising order, interpolated between. Where it ends above `lowest` or below
    `highest`, so does the ladder, before all is lost.
    """
    highest = min(highest, MOST * max(measured.values()))
    index = np.array(list(measured), np.float64)
    logs = np.maximum.accumulate(np.log(np.maximum(list(measured.values()), 1e-12)))
    logs += np.arange(len(logs)) * 1e-9  # so that it rises
    ends = np.interp(np.log([lowest, highest]), logs, index)
    steps = np.round(np.linspace(ends[0], max(ends[1], ends[0] + points - 1), points)).astype(int)
    steps = np.maximum.accumulate(steps)
    for i in range(1, points):
        steps[i] = max(steps[i], steps[i - 1] + 1)
    return [int(s) for s in steps - max(0, int(steps[-1]) - (STEPS - 1))]


def names(points: Sequence[int]) -> list[str]:
    """Of the operating points, finest first."""
    return [f"q{i + 1}" for i in range(len(points))]
