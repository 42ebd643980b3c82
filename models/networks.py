"""Torchvision's networks as modules: built with random weights, or to be filled from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
import torchvision
from torch import nn

from splitwire.models.presets import FIXED, Size
from splitwire.models.recipes import Task

ASK_ABOUT_INIT = ("googlenet", "inception_v3")
"""torchvision warns unless it is told whether to initialise these."""

TASKS: dict[Task, Any] = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "detection": torchvision.models.detection,
}

OTHERS = {
    "takes video clips": torchvision.models.video,
    "takes pairs of images (optical flow)": torchvision.models.optical_flow,
    "is quantised already, in a form that is not exported": torchvision.models.quantization,
}
"""What torchvision has beyond, and why it is not taken."""

ZERO_EPS = ("fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Their COCO_V1 weights are meant for batch norms whose ε is 0, says torchvision when it loads them."""


def names() -> list[str]:
    """Every network of torchvision that has one of our tasks, sorted."""
    return sorted(n for module in TASKS.values() for n in torchvision.models.list_models(module=module))


def task_of(name: str) -> Task | None:
    """None if torchvision has no such network, or it has none of our tasks (`refusal`)."""
    return next((t for t, module in TASKS.items() if name in torchvision.models.list_models(module=module)), None)


def refusal(name: str) -> str | None:
    """Why a network of torchvision is not taken, in words that follow its name; None if it has none of that name."""
    return next((why for why, m in OTHERS.items() if name in torchvision.models.list_models(module=m)), None)


def build_random(name: str, size: Size | None = None) -> nn.Module:
    """The network with random weights and batch-norm statistics, the same ones every time.

    The statistics keep a batch norm from being the identity, and random features in a natural range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(name, size)
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]  # both or neither
        return module


def build(name: str, size: Size | None = None, *, weights: Any = None, **options: Any) -> nn.Module:
    """The network, in eval mode, with `weights`, torchvision's entry, or random ones from torch's global generator.

    size: (height, width) of its inputs, where building depends on it; None: torchvision's own.
    Raises ValueError or AssertionError if the network cannot have inputs of this size.
    """
    if weights is None:
        if name in ASK_ABOUT_INIT:
            options = {"init_weights": True, **options}
        if task_of(name) != "classification":
            options["weights_backbone"] = None  # torchvision would download some
    module: nn.Module = torchvision.models.get_model(name, weights=weights, **_size_options(name, size), **options)
    if task_of(name) == "segmentation":
        # helps in training alone; here it would be a second output with a second cost
        module.aux_classifier = None  # type: ignore[assignment]  # as torchvision has it without one
    return module.eval()


def _size_options(name: str, size: Size | None) -> dict[str, Any]:
    """What torchvision's builder calls the image size, if it asks."""
    if size is None or name in FIXED:
        return {}
    if task_of(name) == "detection":
        return {"min_size": min(size), "max_size": max(size)}  # what the network scales its input to: to itself
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise ValueError("it takes square images only")
        return {"image_size": size[0]}
    return {"input_size": size} if name.startswith("maxvit") else {}


def build_empty(
    name: str, size: Size | None = None, *, classes: int | None = None, state: Mapping[str, Any] | None = None
) -> nn.Module:
    """The network to be filled with `state`, without memory for its weights (on the meta device) where it can be."""
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ASK_ABOUT_INIT:
        options["init_weights"] = False
        if state is not None:  # what torchvision sets when it loads its own weights
            options |= {"transform_input": True, "aux_logits": any(k.lower().startswith("aux") for k in state)}
    with torch.random.fork_rng(devices=[]):
        if task_of(name) == "detection":  # the default boxes are tensors beside the state dict; they need values
            return build(name, size, **options)
        try:
            with torch.device("meta"):
                return build(name, size, **options)
        except NotImplementedError:  # RegNet reckons its widths with tensors, which have no values there
            return build(name, size, **options)


def size_in(state: Mapping[str, Any]) -> Size | None:
    """The image size that a vision transformer in `state` was trained for; None for other networks."""
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return None
    side = math.isqrt(positions.shape[1] - 1) * patches.shape[-1]  # one position is the class token's
    return (side, side)


def classes_in(own: Mapping[str, Any], state: Mapping[str, Any], classes: int) -> int | None:
    """How many classes the state dict has, where that is its only difference from the network; else None.

    own: the network's state dict, with `classes` classes. A head has k rows per class: k = 1 for scores, 4 for
    boxes, the number of default boxes in a detector of one stage; so all heads grow by the same ratio.
    """
    ratios = {
        Fraction(v.shape[0], own[k].shape[0])
        for k, v in state.items()
        if k in own and v.ndim and v.shape != own[k].shape and v.shape[1:] == own[k].shape[1:]
        if own[k].shape[0] % classes == 0
    }
    found = classes * ratios.pop() if len(ratios) == 1 else Fraction(0)
    return int(found) if found.denominator == 1 and found > 0 else None


def zero_eps(network: nn.Module) -> None:
    """Set ε of every batch norm to 0 (ZERO_EPS)."""
    for m in network.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eps = 0.0
