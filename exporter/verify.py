"""Is the split right? back(front(x)) against the whole network, and the ONNX graph against the torch module."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils import _pytree as pytree

from splitwire.codec.errors import ExportError

from .graph import evaluating
from .inference import Array, Float32Array, Graph, largest_difference
from .split import Halves

TOLERANCE = 1e-4
"""Largest |back(front(x)) − whole(x)| / max(1, |whole(x)|) that passes. The halves hold the same operators, so they
are mostly equal to the bit; fusions across the cut may move the last digits."""

TORCH_TOLERANCE = 1e-3
"""Largest |ONNX − torch| / max(1, largest |torch|) that passes: other kernels, other summation order. Float32 networks
agree to 1e-5; a graph that is wrong is off by far more (swin_t with free sizes: 0.03)."""

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
        features, *early = front.run(x)
        joined = dict(zip(back.outputs, back.run(features), strict=True))
        joined.update(zip(front.outputs[1:], early, strict=True))
        joined.setdefault(front.outputs[0], features)  # the cut itself may be an output too
        difference = largest_difference([joined[n] for n in expected], list(expected.values()))
        if difference > TOLERANCE:
            raise ExportError(
                f"the halves do not give what the whole network gives: they differ by {difference:.3g} at batch"
                f" {len(x)}, {TOLERANCE:g} is allowed; cut at another layer, and please report this network"
            )
        worst = max(worst, difference)
    return worst


def check_torch(module: torch.nn.Module, whole: Graph, inputs: Float32Array) -> float:
    """Largest relative difference between the ONNX graph and the torch module it came from, over BATCHES.

    Raises ExportError if it is over TORCH_TOLERANCE: the export is wrong, or holds for the traced batch alone.
    """
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    worst = 0.0
    for x in _batches(inputs, whole.batch):
        with evaluating(module), torch.no_grad():
            leaves = pytree.tree_leaves(module(torch.from_numpy(x).to(place)))
        expected: list[Array] = [t.cpu().numpy() for t in leaves if isinstance(t, torch.Tensor)]
        ours = whole.run(x)
        difference = largest_difference(ours, expected, by_output=True) if len(ours) == len(expected) else float("inf")
        if difference > TORCH_TOLERANCE:
            raise ExportError(
                f"the ONNX graph does not give what the torch module gives: they differ by {difference:.3g} at batch"
                f" {len(x)}, {TORCH_TOLERANCE:g} is allowed; does forward() depend on the batch size, or on chance?"
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
