"""What one image costs in the back half: operations, and the memory that its gradients need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from splitwire.exporter.network.differentiable.graph import TorchGraph

ACTIVATION_BYTES = 1 << 30
"""What is kept of the images of one batch until their gradients are computed takes about this at most."""


@dataclass(frozen=True)
class Work:
    """Of one image in the back half. operations: floating-point, forward. bytes: kept for its gradients."""

    operations: int
    bytes: int

    @classmethod
    def of(cls, back: TorchGraph, features: Sequence[Tensor]) -> Work:
        """features: (1, …) of each tensor, on the back's device."""
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        counter = FlopCounterMode(display=False)
        inputs = [f.detach().clone().requires_grad_(True) for f in features]
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            back(*inputs)
        weights = sum(t.numel() * t.element_size() for t in back.constants)
        return cls(max(counter.get_total_flops(), 1), max(kept - weights, 1))

    def images(self, most: int) -> int:
        """How many images a batch may have, at least one."""
        return max(1, min(most, ACTIVATION_BYTES // self.bytes))
