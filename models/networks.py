"""Build torchvision's networks: with random weights, or without weights, to load them from a file."""

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
"""For these, torchvision warns unless the caller says whether to initialise the weights."""

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
"""Why a network is not supported → the torchvision module with such networks."""

ZERO_EPS = ("fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""The COCO_V1 weights of these need batch norms with ε = 0; torchvision sets it when it loads them."""


def names() -> list[str]:
    """Every network of torchvision with a supported task, sorted."""
    return sorted(n for module in TASKS.values() for n in torchvision.models.list_models(module=module))


def task_of(name: str) -> Task | None:
    """The task; None if torchvision has no such network, or if its task is not supported (`refusal`)."""
    return next((t for t, module in TASKS.items() if name in torchvision.models.list_models(module=module)), None)


def refusal(name: str) -> str | None:
    """Why a network of torchvision is not supported, in words that follow its name; None if there is no such
    network."""
    return next((why for why, m in OTHERS.items() if name in torchvision.models.list_models(module=m)), None)


def build_random(name: str, size: Size | None = None) -> nn.Module:
    """The network with random weights and batch-norm statistics, always the same.

    The statistics are random so that a batch norm is not the identity, and features stay in a natural range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(name, size)
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]  # a batch norm has both or neither
        return module


def build(name: str, size: Size | None = None, *, weights: Any = None, **options: Any) -> nn.Module:
    """The network in eval mode.

    weights: torchvision's entry; None gives random weights from torch's global generator. size: (height, width) of the
    inputs, if the network depends on it; None takes torchvision's default.
    Raises ValueError or AssertionError if the network cannot have inputs of this size.
    """
    if weights is None:
        if name in ASK_ABOUT_INIT:
            options = {"init_weights": True, **options}
        if task_of(name) != "classification":
            options["weights_backbone"] = None  # otherwise torchvision downloads weights
    module: nn.Module = torchvision.models.get_model(name, weights=weights, **_size_options(name, size), **options)
    if task_of(name) == "segmentation":
        # it is only for training; here it would be a second output that costs time
        module.aux_classifier = None  # type: ignore[assignment]  # torchvision does the same for networks without one
    return module.eval()


def _size_options(name: str, size: Size | None) -> dict[str, Any]:
    """The arguments of torchvision's builder for the image size, if it takes one."""
    if size is None or name in FIXED:
        return {}
    if task_of(name) == "detection":
        return {"min_size": min(size), "max_size": max(size)}  # the network scales its input to this: here, not at all
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise ValueError("it takes square images only")
        return {"image_size": size[0]}
    return {"input_size": size} if name.startswith("maxvit") else {}


def build_empty(
    name: str, size: Size | None = None, *, classes: int | None = None, state: Mapping[str, Any] | None = None
) -> nn.Module:
    """The network without weights, to be filled with `state`; on the meta device if possible, which needs no memory."""
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ASK_ABOUT_INIT:
        options["init_weights"] = False
        if state is not None:  # torchvision sets these when it loads its weights
            options |= {"transform_input": True, "aux_logits": any(k.lower().startswith("aux") for k in state)}
    with torch.random.fork_rng(devices=[]):
        if task_of(name) == "detection":  # the default boxes are tensors outside the state dict; they need values
            return build(name, size, **options)
        try:
            with torch.device("meta"):
                return build(name, size, **options)
        except NotImplementedError:  # RegNet computes its widths with tensors, which have no values on the meta device
            return build(name, size, **options)


def size_in(state: Mapping[str, Any]) -> Size | None:
    """The training image size of a vision transformer in `state`; None for other networks."""
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return None
    side = math.isqrt(positions.shape[1] - 1) * patches.shape[-1]  # one position is that of the class token
    return (side, side)


def classes_in(network: Mapping[str, Any], state: Mapping[str, Any], classes: int) -> int | None:
    """The number of classes in `state`, if this is its only difference from the network; otherwise None.

    network: the state dict of the network, with `classes` classes. A head has k rows per class: k is 1 for scores, 4
    for boxes, and the number of default boxes in a one-stage detector. So the sizes of all heads have the same ratio.
    """
    ratios = {
        Fraction(v.shape[0], network[k].shape[0])
        for k, v in state.items()
        if k in network and v.ndim and v.shape != network[k].shape and v.shape[1:] == network[k].shape[1:]
        if network[k].shape[0] % classes == 0
    }
    count = classes * ratios.pop() if len(ratios) == 1 else Fraction(0)
    return int(count) if count.denominator == 1 and count > 0 else None


def zero_eps(network: nn.Module) -> None:
    """Set ε of every batch norm to 0 (ZERO_EPS)."""
    for m in network.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eps = 0.0
