"""Compare back(front(x)) with the whole network."""

from __future__ import annotations

import numpy as np

from splitwire.codec.errors import ExportError
from splitwire.exporter.network.inference import Array, Float32Array, Graph, InputType, largest_difference, noise

from .split import Halves

TOLERANCE = 1e-4
"""Largest accepted |back(front(x)) − whole(x)| / max(1, |whole(x)|). The halves have the same operators, so results are
mostly equal to the bit; fusions across the cut may change the last digits."""

Answers = list[dict[str, Array]]
"""Per batch: name of the output → its array."""

BATCHES = (1, 3)
"""Batch sizes of the comparison. The graph was traced with batch 2, so both are new to it."""


def check_halves(whole: Graph | Answers, halves: Halves, inputs: Float32Array) -> float:
    """Largest relative difference between the joined halves and the whole, over BATCHES.

    whole: the network, made with exact=True; or its `answers`. With the answers, only one graph at a time is open in
    ONNX Runtime, which saves memory. inputs: (3, C, H, W) float32. A graph with a fixed batch runs only at that batch.
    Raises ExportError if the difference is over TOLERANCE.
    """
    expected = answers(whole, inputs) if isinstance(whole, Graph) else whole
    front_outputs = answers(Graph.of(halves.front, what="front half", exact=True), inputs)
    back = Graph.of(halves.back, what="back half", exact=True)
    worst = 0.0
    for whole_outputs, early in zip(expected, front_outputs, strict=True):
        late = dict(zip(back.outputs, back.run(*(early[name] for name in back.inputs)), strict=True))
        joined = {**early, **late}  # early outputs, and cut tensors that are outputs too, come from the front
        difference = largest_difference([joined[n] for n in whole_outputs], list(whole_outputs.values()))
        if difference > TOLERANCE:
            batch = len(early[back.inputs[0]])
            raise ExportError(
                f"the halves do not give what the whole network gives: they differ by {difference:.3g} at batch"
                f" {batch}, {TOLERANCE:g} is allowed; cut at another layer, and please report this network"
            )
        worst = max(worst, difference)
    return worst


def answers(graph: Graph, inputs: Float32Array) -> Answers:
    """The outputs of the graph for the inputs at each of BATCHES, by name."""
    return [dict(zip(graph.outputs, graph.run(x), strict=True)) for x in _batches(inputs, graph.batch)]


def _batches(inputs: Float32Array, fixed: int | None) -> list[Float32Array]:
    if fixed is not None:
        return [np.resize(inputs, (fixed, *inputs.shape[1:]))]
    return [np.ascontiguousarray(inputs[:n]) for n in BATCHES]


def fill_up(inputs: list[Float32Array], shape: tuple[int, ...], dtype: InputType = "float32") -> Float32Array:
    """The inputs of the verification: the first calibration inputs, and noise in place of missing ones.

    Returns (max(BATCHES), *shape) of dtype.
    """
    rng = np.random.default_rng(0)
    available = inputs[: max(BATCHES)]
    missing = [noise(shape, dtype, rng) for _ in range(max(BATCHES) - len(available))]
    return np.stack([*available, *missing])
