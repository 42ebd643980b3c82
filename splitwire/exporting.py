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
    from splitwire.codec.device import DeviceProfile
    from splitwire.codec.profile import Preprocessing
    from splitwire.codec.progress import ProgressFn
    from splitwire.codec.tasks import Task
    from splitwire.exporter.calibration.inputs import Calibration
    from splitwire.exporter.network.adapting.constants import Constants
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.options import Network
    from splitwire.exporter.pair.precision_choice import Accept, BackPrecision, Coder, FrontPrecision
    from splitwire.exporter.pair.result import ExportResult
    from splitwire.exporter.points.levels import Levels

__all__ = ["export"]

MAX_FOLDER_BYTES = 100
"""Longest name of a folder that nobody chose: file systems take 255 bytes, and some 143."""


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
    accept: Accept | None = None,
    link: str | None = None,
    rtt: str | None = None,
    device: str | DeviceProfile | None = None,
    overwrite: bool = False,
    constants: Constants | None = None,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Cut a trained network in two at the layer `cut` and calibrate the feature codec there.

    model: the name of a torchvision network ("resnet18"), a torch.nn.Module (float32, one tensor in), or the path of an
        ONNX file.
    cut: module path ("layer2", "features.7", "layer1.0.relu[1]") or ONNX tensor name; "a,b" for several tensors;
        "auto" for the one tensor with the least estimated latency end to end, as `splitwire.plan` finds it.
    calibration: folder of images (searched recursively), list of image files, a video (needs splitwire[video]),
        float32 array of network inputs (N, C, H, W), torch Dataset of tensors or PIL images, or an iterable of inputs
        (a DataLoader). 100 inputs like those of the task are plenty; at most `images` (512) are used, spread evenly.
    out: folder of front.onnx and back.onnx; "<model>-<cut>" in the working folder if None,
        shortened where that is long.
    weights: for a torchvision name: a file, or what the catalogue takes (docs/models.md).
    preprocessing: from image file to network input; baked into the pair, since the edge needs the same. What is not
        said is as in the catalogue; for a module or a file it follows from the network's input, and is else as for
        ImageNet, with a note (docs/exporter.md).
    input_shape: (1, C, H, W), or whatever a module takes. None: the catalogue's, else what the array, `image_size`
        (height, width) or the preprocessing gives.
    labels: class names, baked into the pair.
    task: "classification", "detection" or "segmentation", baked into the pair: by it the edge shows what was found.
        None: the catalogue's, else what labels and outputs say.
    levels: one operating point each: a number of quantizer levels, or "a4" for 4 of them over the range that serves
        the task best, or "e4" for the entropy-constrained quantizer with the rate of 4 uniform levels, or "r0.4" for
        the uniform quantizer that serves the task best at 0.4 bits per element (docs/codec.md); (2, 3, 4, 6, 8, "r0.1",
        "r0.2", "r0.3", "r0.4", "r0.6", "r0.8") if None.
    default_op: "n4", say; None chooses the cheapest that keeps the answers.
    outputs: names of the outputs that the pair gives, all others are left out with what only they need; None: all.
    front: "int8" quantizes the front half, on the same calibration. back: "float16" is for a back half on a GPU.
    coder: "predictive" sends the fewest bytes, and is used where it needs clearly fewer than "context", which is
        several times as fast (docs/codec.md).
    accept: called as accept(comparison) for each half that is not float32, with what it gains and costs; where it
        returns False, that half is written in float32. None accepts. All of them are in the result's `comparisons`.
    link, rtt, device: for "auto", as `splitwire.plan` takes them; without a link 10 Mbit/s, round trip 30 ms.
    overwrite: replace a pair of another network in `out`. Without it such a folder is refused (docs/exporter.md).
    constants: of an ONNX file with several inputs, the values of those that are the same in deployment, by name:
        {"im_shape": [[640, 640]], "threshold": 0.5}. They are baked into the pair.
    progress: called as progress(stage, done, total), total None while unknown.

    Returns an ExportResult: the paths, the profile, agreement per operating point, notes, skipped images. If a long
    calibration is interrupted, the same call goes on with it.
    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError; no half-written file is left,
    and a pair that was in `out` before stays.
    """
    from splitwire.exporter.calibration.inputs import LIMIT
    from splitwire.exporter.export import export_pair
    from splitwire.exporter.options import CodecOptions, NetworkOptions, PlanTarget
    from splitwire.exporter.planning.links import parse_link
    from splitwire.exporter.points.levels import LEVELS

    wire = parse_link(link, rtt)
    given = find_network(
        model, weights, preprocessing=preprocessing, input_shape=input_shape, image_size=image_size, labels=labels
    )
    result = export_pair(
        given.model,
        cut=cut,
        calibration=calibration,
        out=_default_folder(given.name, cut) if out is None else out,
        network=NetworkOptions(
            preprocessing=given.preprocessing,
            input_shape=given.input_shape,
            image_size=image_size,
            images=LIMIT if images is None else images,
            name=given.name,
            labels=given.labels,
            task=task or given.task,
            outputs=outputs,
            constants=constants,
        ),
        codec=CodecOptions(
            levels=LEVELS if levels is None else levels,
            default_op=default_op,
            coder=coder,
            front=front,
            back=back,
            accept=accept,
        ),
        target=PlanTarget(link=wire, device=device),
        replace=overwrite,
        progress=progress,
    )
    return dataclasses.replace(result, notes=(given.warning, *result.notes)) if given.warning else result


def _default_folder(name: str, cut: str) -> str:
    """A folder's name made of the network's and the cut's; a long one is shortened, and ends with a hash of the whole
    that tells it from others with the same beginning."""
    whole = f"{name}-{cut}"
    folder = re.sub(r"[^\w.-]+", "_", whole).strip("_")
    if len(folder.encode()) <= MAX_FOLDER_BYTES:
        return folder
    mark = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    start = folder.encode()[: MAX_FOLDER_BYTES - len(mark) - 1].decode(errors="ignore").rstrip("_.-")
    return f"{start}-{mark}"
