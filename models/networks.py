"""Torchvision's classification networks as modules: built with random weights, or empty, to be filled from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

ASK_ABOUT_INIT = ("googlenet", "inception_v3")
"""torchvision warns unless it is told whether to initialise these."""


def build_random(name: str) -> nn.Module:
    """The network with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name)


def build(name: str, **options: Any) -> nn.Module:
    """The network, in eval mode, with random weights drawn from torch's global generator."""
    if name in ASK_ABOUT_INIT:
        options = {"init_weights": True, **options}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return module.eval()


def build_empty(name: str, *, classes: int | None = None, state: Mapping[str, Any] | None = None) -> nn.Module:
    """The network without memory for its weights (on the meta device) where it can be, to be filled with `state`."""
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ASK_ABOUT_INIT:
        options["init_weights"] = False
        if state is not None:  # what torchvision sets when it loads its own weights
            options |= {"transform_input": True, "aux_logits": any(k.lower().startswith("aux") for k in state)}
    try:
        with torch.device("meta"):
            return build(name, **options)
    except NotImplementedError:  # RegNet reckons its widths with tensors, which have no values there
        return build(name, **options)


def classes_in(name: str, state: Mapping[str, Any]) -> int | None:
    """How many classes the state dict has, where that is its only difference from torchvision's network; else None."""
    own = build_empty(name, state=state).state_dict()
    found = {
        (own[k].shape[0], v.shape[0])
        for k, v in state.items()
        if k in own and v.shape != own[k].shape and v.ndim and v.shape[1:] == own[k].shape[1:]
    }
    # one pair, from 1000 classes to n: classifier.weight, classifier.bias (and those of the auxiliary heads)
    return found.pop()[1] if len(found) == 1 and next(iter(found))[0] == 1000 else None


def outputs_of(module: nn.Module) -> int | None:
    """Number of classes: rows of the last parameter, which belongs to the classifier in all of torchvision."""
    shapes = [p.shape for p in module.parameters()]
    return shapes[-1][0] if shapes else None
