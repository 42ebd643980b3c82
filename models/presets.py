"""What torchvision keeps with its weights, as our Preprocessing, for any image size. Its record is `entry`."""

from __future__ import annotations

from typing import Any

import msgspec

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import MAX_DIM, Preprocessing
from splitwire.models.recipes import Task

Size = tuple[int, int]

FIXED = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
"""Detectors whose boxes belong to one input size; torchvision resizes every image to it inside the network."""

DETECTOR_SIZES = {**FIXED, "fasterrcnn_mobilenet_v3_large_320_fpn": 320}
DETECTOR_SIZE = 640
"""Sides of the input of the other detectors. torchvision scales a 4:3 picture to 800 × 1066, twice the work; at 320
its Faster R-CNN with MobileNetV3 has 22.8 instead of 32.8 box mAP (its published figures)."""


def preprocessing(name: str, task: Task, entry: Any, size: Size | None) -> Preprocessing:
    """What the weights were evaluated with; `size`, (height, width), takes the place of the preset's own.

    classification: the preset. segmentation: resized as the preset says, then a centre crop of the same size, since
    an exported network has one input size. detection: the whole image resized to the input, values in [0, 1]; the
    network normalises.
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
    """(height, width) of what the caller gave; None stays None. Raises UsageError for what `name` cannot take."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(1 <= side <= MAX_DIM for side in sides):
        raise UsageError(f"the image size must be one number of pixels or (height, width), is {size}")
    fixed = FIXED.get(name)
    if fixed is not None and sides != (fixed, fixed):
        raise UsageError(f"{name} takes images of {fixed}x{fixed} only, not {sides[1]}x{sides[0]}; leave the size out")
    return sides
