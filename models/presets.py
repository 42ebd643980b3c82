"""torchvision's metadata of weights (`entry`) as our Preprocessing, for any image size."""

from __future__ import annotations

from typing import Any

import msgspec

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import MAX_DIM, Preprocessing
from splitwire.models.recipes import Task

Size = tuple[int, int]

FIXED = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
"""Detectors with a fixed input size. torchvision resizes every image to it inside the network."""

DETECTOR_SIZES = {**FIXED, "fasterrcnn_mobilenet_v3_large_320_fpn": 320}
DETECTOR_SIZE = 640
"""Input side of the other detectors. torchvision scales a 4:3 picture to 800 × 1066, which is twice the work. At 320,
its Faster R-CNN with MobileNetV3 has a box mAP of 22.8 instead of 32.8 (published figures)."""


def preprocessing(name: str, task: Task, entry: Any, size: Size | None) -> Preprocessing:
    """The preprocessing of the evaluation of the weights. size: (height, width), if not that of the preset.

    classification: the preset. segmentation: the resize of the preset, then a centre crop of the same size, because an
    exported network has one input size. detection: the whole image is resized to the input, with values in [0, 1]; the
    network itself normalises.
    """
    if task == "detection":
        side = DETECTOR_SIZES.get(name, DETECTOR_SIZE)
        p = Preprocessing(resize=(side, side), crop=(side, side), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        preset = entry.transforms()
        crop = getattr(preset, "crop_size", preset.resize_size)  # SemanticSegmentation has none
        p = Preprocessing(
            resize=preset.resize_size[0],
            crop=(crop[0], crop[-1]),
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
    return p if size is None else resized(p, size)


def resized(p: Preprocessing, size: Size) -> Preprocessing:
    """The same preprocessing for inputs of `size`, (height, width): the same margin around the crop, or none."""
    if size == p.crop:
        return p
    resize: int | Size | None = None
    if isinstance(p.resize, int):
        resize = round(p.resize * min(size) / min(p.crop))
    elif p.resize is not None:
        resize = (round(p.resize[0] * size[0] / p.crop[0]), round(p.resize[1] * size[1] / p.crop[1]))
    return msgspec.structs.replace(p, crop=size, resize=resize)


def as_size(name: str, size: int | tuple[int, ...] | None) -> Size | None:
    """The caller's size as (height, width); None stays None. Raises UsageError if the network cannot have this size."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(1 <= side <= MAX_DIM for side in sides):
        raise UsageError(f"the image size must be one number of pixels or (height, width), is {size}")
    fixed = FIXED.get(name)
    if fixed is not None and sides != (fixed, fixed):
        raise UsageError(f"{name} takes images of {fixed}x{fixed} only, not {sides[1]}x{sides[0]}; leave the size out")
    return sides
