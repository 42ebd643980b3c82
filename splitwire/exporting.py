"""`splitwire.export`: a torchvision name, a module or an ONNX file → front.onnx and back.onnx."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitwire.network import find_network

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.codec.shared.device import DeviceProfile
    from splitwire.codec.shared.progress import ProgressFn
    from splitwire.codec.shared.tasks import Task
    from splitwire.exporter.calibration.items import Calibration
    from splitwire.exporter.network.adapting.constants import Constants
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.options import Network
    from splitwire.exporter.pair.codec_choice import CodecKind
    from splitwire.exporter.pair.precision_choice import Accept, BackPrecision, Coder, FrontPrecision
    from splitwire.exporter.pair.result import ExportResult
    from splitwire.exporter.points.levels import Levels
    from splitwire.exporter.transform.refinement.task_loss import LossFunction

__all__ = ["export"]

MAX_FOLDER_BYTES = 100
"""Longest default name of a folder. File systems take 255 bytes, some only 143."""


def export(
    model: Network,
    *,
    cut: str,
    calibration: Calibration,
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | PictureOptions | None = None,
    input_shape: tuple[int, ...] | None = None,
    image_size: tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    task: Task | None = None,
    levels: Levels | None = None,
    default_op: str | None = None,
    images: int | None = None,
    outputs: Sequence[str] | None = None,
    front: FrontPrecision = "float32",
    back: BackPrecision = "float32",
    coder: Coder = "predictive",
    codec: CodecKind | None = None,
    refine: int | None = None,
    refine_seconds: float | None = None,
    task_loss: LossFunction | str | None = None,
    accept: Accept | None = None,
    link: str | None = None,
    rtt: str | None = None,
    device: str | DeviceProfile | None = None,
    overwrite: bool = False,
    constants: Constants | None = None,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Cut a trained network in two at the layer `cut`, and calibrate the feature codec there.

    model: the name of a torchvision network ("resnet18"), a torch.nn.Module (float32, one tensor in), or the path of an
        ONNX file.
    cut: a module path ("layer2", "features.7", "layer1.0.relu[1]") or an ONNX tensor name; "a,b" for several tensors;
        "auto" for the tensor with the least estimated end-to-end latency, as `splitwire.plan` finds it.
    calibration: a folder of images (searched recursively), a list of image files, a video (needs splitwire[video]), a
        float32 array of network inputs (N, C, H, W), a torch Dataset of tensors or PIL images, or an iterable of inputs
        (a DataLoader). 100 typical inputs are enough; at most `images` (512) are used, evenly spread.
    out: the folder for front.onnx and back.onnx. None: "<model>-<cut>" in the working folder, shortened if it is long.
    weights: for a torchvision name: a file, or a name of weights in the catalogue (docs/models.md).
    preprocessing: from image file to network input; stored in the pair, because the edge needs it too. Missing parts
        come from the catalogue. For a module or a file they come from the network's input, or have the values of
        ImageNet networks, with a note (docs/exporter.md).
    input_shape: (1, C, H, W), or another shape that the module takes. None: the shape in the catalogue, or that of the
        array, of `image_size` (height, width) or of the preprocessing.
    labels: class names, stored in the pair.
    task: "classification", "detection" or "segmentation", stored in the pair. It decides how the edge shows results.
        None: the task in the catalogue, or the one that labels and outputs show.
    levels: of scalar points, one entry per operating point: a number of quantizer levels; "a4" for 4 levels over the
        range with the least output distortion; "e4" for the entropy-constrained quantizer at the rate of 4 uniform
        levels; "r0.4" for the uniform quantizer with the least output distortion at 0.4 bits per element
        (docs/codec.md). None: (2, 3, 4, 6, 8, "r0.1", "r0.2", "r0.3", "r0.4", "r0.6", "r0.8").
    default_op: the name of an operating point, such as "q5" or "n4". None chooses the cheapest one that keeps the
        answers.
    outputs: names of the outputs that the pair gives, all others are left out with what only they need; None: all.
    front: "int8" quantizes the front half, with the same calibration. back: "float16" is for a back half on a GPU.
    coder: "predictive" needs the fewest bytes. It is used for tensors where it needs clearly fewer than "context",
        which is several times as fast (docs/codec.md).
    codec: "scalar" quantizes the features as they are; `levels` and `coder` are for it. "transform" appends a transform
        to the front half and its inverse to the back half, and codes its coefficients; operating points "q1" (finest)
        to "q8". "auto" makes both, and keeps what needs fewer bits at equal output distortion (docs/transform.md).
        None: as "auto", where nothing asks for scalar points: `levels`, the coder "context", a half that is not
        float32, or a `default_op` such as "n4". Where no transform can be designed, a note says why.
    refine: training steps of the transforms, on the calibration inputs and through the frozen back half; 0 for none.
        None: about half a minute. refine_seconds: training ends after this time; the result then depends on the
        machine's speed.
    task_loss: what the transforms are designed and trained for: a function, or its name as "module:function". It takes
        the outputs before and after for one input, two lists of tensors (1, …) in the order of the network's outputs
        (for detectors, of the raw heads), and returns a tensor of one number, least where they are equal. None: by the
        outputs (docs/transform.md).
    accept: called as accept(comparison) for each half that is not float32, with its gains and costs. If it returns
        False, this half is written in float32. None accepts. The result has all `comparisons`.
    link, rtt, device: for "auto", as in `splitwire.plan`. Without a link: 10 Mbit/s, round trip 30 ms.
    overwrite: replace a pair of another network in `out`. Otherwise such a folder is an error (docs/exporter.md).
    constants: for an ONNX file with several inputs: name → value of the inputs that never change in deployment, as in
        {"im_shape": [[640, 640]], "threshold": 0.5}. They become part of the pair.
    progress: called as progress(stage, done, total); total is None while it is unknown.

    Returns an ExportResult: the paths, the profile, agreement per operating point, notes, skipped images. After an
    interrupt, the same call resumes a long calibration.
    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError. After an error, no half-written
    file remains, and a pair that was in `out` before is unchanged.
    """
    from splitwire.exporter.calibration.inputs import LIMIT
    from splitwire.exporter.export import export_pair
    from splitwire.exporter.options import CodecOptions, NetworkOptions, PlanTarget
    from splitwire.exporter.planning.links import parse_link
    from splitwire.exporter.transform.design import RefineOptions
    from splitwire.exporter.transform.refinement.task_loss import load_loss

    wire = parse_link(link, rtt)
    loss = load_loss(task_loss) if isinstance(task_loss, str) else task_loss
    network = find_network(
        model, weights, preprocessing=preprocessing, input_shape=input_shape, image_size=image_size, labels=labels
    )
    result = export_pair(
        network.model,
        cut=cut,
        calibration=calibration,
        out=_default_folder(network.name, cut) if out is None else out,
        network=NetworkOptions(
            preprocessing=network.preprocessing,
            input_shape=network.input_shape,
            image_size=image_size,
            images=LIMIT if images is None else images,
            name=network.name,
            labels=network.labels,
            task=task or network.task,
            outputs=outputs,
            constants=constants,
        ),
        codec=CodecOptions(
            levels=levels,
            default_op=default_op,
            coder=coder,
            codec=codec,
            refine=RefineOptions(steps=refine, seconds=refine_seconds),
            task_loss=loss,
            front=front,
            back=back,
            accept=accept,
        ),
        target=PlanTarget(link=wire, device=device),
        replace=overwrite,
        progress=progress,
    )
    return dataclasses.replace(result, notes=(network.warning, *result.notes)) if network.warning else result


def _default_folder(name: str, cut: str) -> str:
    """A folder name from the names of the network and the cut.

    A long name is shortened. It ends with a hash of the whole name, so that names with equal beginnings differ.
    """
    whole = f"{name}-{cut}"
    folder = re.sub(r"[^\w.-]+", "_", whole).strip("_")
    if len(folder.encode()) <= MAX_FOLDER_BYTES:
        return folder
    mark = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    start = folder.encode()[: MAX_FOLDER_BYTES - len(mark) - 1].decode(errors="ignore").rstrip("_.-")
    return f"{start}-{mark}"
