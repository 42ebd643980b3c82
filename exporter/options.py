"""What a caller says of an export: small classes, one for each concern."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitwire.codec.device import DeviceProfile
from splitwire.codec.profile import Preprocessing
from splitwire.codec.tasks import Task
from splitwire.exporter.calibration.inputs import LIMIT
from splitwire.exporter.network.adapting.constants import Constants
from splitwire.exporter.network.pictures import PictureOptions
from splitwire.exporter.pair.precision_choice import Accept, BackPrecision, Coder, FrontPrecision
from splitwire.exporter.planning.links import Link
from splitwire.exporter.points.levels import LEVELS, Levels

Network = torch.nn.Module | str | os.PathLike[str]
"""What can be exported: a module, or the path of an ONNX file."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What belongs to the network and its inputs.

    preprocessing: of image files; baked into the pair, the edge uses it too. Where a part of it is said, or nothing,
        the rest follows from the network's input (pictures.py) and is as for ImageNet, with a note.
    input_shape: (1, C, H, W); for a module, and for an ONNX file that leaves the image size open. None reads it off
        an array of inputs, `image_size` (height, width), or the crop of the preprocessing.
    images: the largest number of calibration inputs that are used.
    labels: class names, baked into the pair. task: what the outputs are; None: what they say (purpose.py).
    outputs: names of the outputs that the pair gives; None: all of them.
    constants: values of the other inputs of an ONNX file, by name; they are baked in (constants.py).
    """

    preprocessing: Preprocessing | PictureOptions | None = None
    input_shape: tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None
    images: int = LIMIT
    name: str | None = None
    labels: Sequence[str] | None = None
    task: Task | None = None
    outputs: Sequence[str] | None = None
    constants: Constants | None = None


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """What is sent, and what the halves compute in.

    levels: one operating point each: a number of quantizer levels N makes "n<N>", with uniform quantizers; "a<N>" the
        one over the range with the least output distortion (ranges.py); "e<N>" the one with entropy-constrained
        quantizers at the rate of "n<N>"; "r<bits>" the one with uniform quantizers that has the least output distortion
        at that number of bits per element (budget.py).
    default_op: name of the default operating point; None chooses by measurement (measure.py).
    coder: "predictive" makes the fewest bytes; each tensor that it does not serve well enough gets "context", which is
        several times as fast (docs/codec.md).
    front, back: what the halves compute in (precision.py). accept: asked for each one that is not float32, with its
        Comparison; a half that it refuses is written in float32. None accepts.
    """

    levels: Levels = LEVELS
    default_op: str | None = None
    coder: Coder = "predictive"
    front: FrontPrecision = "float32"
    back: BackPrecision = "float32"
    accept: Accept | None = None


@dataclass(frozen=True, kw_only=True)
class PlanTarget:
    """What an automatic cut is chosen for; None: what plan.py assumes."""

    link: Link | None = None
    device: str | DeviceProfile | None = None
