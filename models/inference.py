"""Run a whole network in PyTorch, as the reference for the split network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def scores(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, C, H, W) float32 network inputs → (n, K) float32 class scores, in PyTorch on the CPU."""
    with torch.inference_mode():
        out: NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
    return out
