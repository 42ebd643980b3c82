"""Is the split right? back(front(x)) against the whole network."""

from __future__ import annotations

import numpy as np

from splitwire.codec.errors import ExportError

from .inference import Float32Array, Graph, largest_difference
from .split import Halves

TOLERANCE = 1e-4
"""Largest |back(front(x)) − whole(x)| / max(1, |whole(x)|) that passes. The halves hold the same operators, so they
are mostly equal to the bit; fusions across the cut may move the last digits."""

BATCHES = (1, 3)
"""The sizes that are tried; the graph was traced with batch 2, so that both are new to it."""


def check_halves(whole: Graph, halves: Halves, inputs: Float32Array) -> float:
    """Largest relative difference between the joined halves and the whole, over BATCHES.

    whole: the network as made with exact=True. inputs: (3, C, H, W) float32. A graph with a fixed batch is tried at
    that batch alone. Raises ExportError if the difference is over TOLERANCE.
    """
    front = Graph.of(halves.front, what="front half", exact=True)
    back = Graph.of(halves.back, what="back half", exact=True)
    worst = 0.0
    for x in _batches(inputs, whole.batch):
        expected = dict(zip(whole.outputs, whole.run(x), strict=True))
        made = dict(zip(front.outputs, front.run(x), strict=True))
        answers = dict(zip(back.outputs, back.run(*(made[name] for name in back.inputs)), strict=True))
        joined = {**made, **answers}  # early outputs, and cut tensors that are outputs too, come from the front
        difference = largest_difference([joined[n] for n in expected], list(expected.values()))
        if difference > TOLERANCE:
            raise ExportError(
                f"the halves do not give what the whole network gives: they differ by {difference:.3g} at batch"
                f" {len(x)}, {TOLERANCE:g} is allowed; cut at another layer, and please report this network"
            )
        worst = max(worst, difference)
    return worst


def feature_shape(front: Graph, inputs: Float32Array) -> tuple[int, ...]:
    """Shape of one image's tensor at the cut, as the front half makes it (shape inference may not know it)."""
    x = inputs[:1] if front.batch is None else _batches(inputs, front.batch)[0]
    return tuple(front.run(x)[0].shape[1:])


def _batches(inputs: Float32Array, fixed: int | None) -> list[Float32Array]:
    if fixed is not None:
        return [np.resize(inputs, (fixed, *inputs.shape[1:]))]
    return [np.ascontiguousarray(inputs[:n]) for n in BATCHES]


def fill_up(inputs: list[Float32Array], shape: tuple[int, ...]) -> Float32Array:
    """The inputs that verification uses: the first calibration inputs, and noise for those that are missing.

    Returns (max(BATCHES), *shape) float32.
    """
    rng = np.random.default_rng(0)
    taken = inputs[: max(BATCHES)]
    noise = [rng.standard_normal(shape, dtype=np.float32) for _ in range(max(BATCHES) - len(taken))]
    return np.stack([*taken, *noise])
