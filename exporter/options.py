"""The options of an export: small classes, one per concern."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.device import DeviceProfile
from splitwire.codec.shared.tasks import Task
from splitwire.exporter.calibration.inputs import LIMIT
from splitwire.exporter.network.adapting.constants import Constants
from splitwire.exporter.network.pictures import PictureOptions
from splitwire.exporter.pair.codec_choice import CodecKind
from splitwire.exporter.pair.precision_choice import Accept, BackPrecision, Coder, FrontPrecision
from splitwire.exporter.planning.links import Link
from splitwire.exporter.points.levels import Levels
from splitwire.exporter.transform.design import RefineOptions
from splitwire.exporter.transform.refinement.task_loss import LossFunction

Network = torch.nn.Module | str | os.PathLike[str]
"""A network to export: a module, or the path of an ONNX file."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of the network and its inputs.

    preprocessing: of image files; stored in the pair, because the edge uses it too. Missing parts come from the
        network's input (pictures.py), or have the values of ImageNet networks, with a note.
    input_shape: (1, C, H, W), for a module, and for an ONNX file that leaves the image size open. None takes it from an
        array of inputs, from `image_size` (height, width), or from the crop of the preprocessing.
    images: the largest number of calibration inputs to use.
    labels: class names, stored in the pair. task: of the outputs; None determines it from them (purpose.py).
    outputs: names of the outputs of the pair; None keeps all.
    constants: values of the other inputs of an ONNX file, by name; they become part of the graph (constants.py).
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
    """Options of the codec, and the precision of the halves.

    levels: of scalar points, one entry per operating point; None: LEVELS (levels.py). A number N gives "n<N>": uniform
        quantizers with N levels. "a<N>": N levels over the range with the least output distortion (ranges.py). "e<N>":
        entropy-constrained quantizers at the rate of "n<N>". "r<bits>": the uniform quantizers with the least output
        distortion at that number of bits per element (budget.py).
    default_op: name of the default operating point; None chooses by measurement (measure.py).
    coder: "predictive" needs the fewest bytes. Tensors for which it saves too little get "context", which is several
        times as fast (docs/codec.md).
    codec: "scalar" quantizes the features; `levels` and `coder` are of it. "transform" sends transform coefficients, at
        the operating points q1 … q8. "auto" makes both and keeps what needs fewer bits. None: as "auto", or as "scalar"
        where other options belong to it or no transform can be designed (codec_choice.py).
    refine: how long the transforms are trained. task_loss: what they are designed and trained for, a function of
        the outputs before and after (refinement/task_loss.py); None: by the outputs.
    front, back: the precision of the halves (precision.py). accept: called with the Comparison of each half that is not
        float32; if it returns False, this half is written in float32. None accepts.
    """

    levels: Levels | None = None
    default_op: str | None = None
    coder: Coder = "predictive"
    codec: CodecKind | None = None
    refine: RefineOptions = field(default_factory=RefineOptions)
    task_loss: LossFunction | None = None
    front: FrontPrecision = "float32"
    back: BackPrecision = "float32"
    accept: Accept | None = None


@dataclass(frozen=True, kw_only=True)
class PlanTarget:
    """The link and the device for an automatic cut; None takes the defaults of plan.py."""

    link: Link | None = None
    device: str | DeviceProfile | None = None
