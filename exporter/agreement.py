"""Is the export right? The ONNX graph against the torch module it was made from."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils import _pytree as pytree

from splitwire.codec.errors import ExportError

from .graph import evaluating
from .inference import Array, Float32Array, Graph, largest_difference
from .verify import BATCHES

TORCH_TOLERANCE = 1e-3
"""Largest |ONNX − torch| / max(1, largest |torch|) that passes: other kernels, other summation order. Float32 networks
agree to 1e-5; a graph that is wrong is off by far more (swin_t with free sizes: 0.03)."""


def check_torch(module: torch.nn.Module, whole: Graph, inputs: Float32Array) -> float:
    """Largest relative difference between the ONNX graph and the torch module it came from, over BATCHES.

    Raises ExportError if it is over TORCH_TOLERANCE: the export is wrong, or holds for the traced batch alone.
    """
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    worst = 0.0
    for n in BATCHES if whole.batch is None else (whole.batch,):
        x = np.resize(inputs, (n, *inputs.shape[1:]))
        with evaluating(module), torch.no_grad():
            leaves = pytree.tree_leaves(module(torch.from_numpy(x).to(place)))
        expected: list[Array] = [t.cpu().numpy() for t in leaves if isinstance(t, torch.Tensor)]
        ours = whole.run(x)
        difference = largest_difference(ours, expected, by_output=True) if len(ours) == len(expected) else float("inf")
        if difference > TORCH_TOLERANCE:
            raise ExportError(
                f"the ONNX graph does not give what the torch module gives: they differ by {difference:.3g} at batch"
                f" {n}, {TORCH_TOLERANCE:g} is allowed; does forward() depend on the batch size, or on chance?"
            )
        worst = max(worst, difference)
    return worst
