"""`splitwire.export`: a torchvision name, a module or an ONNX file → front.onnx and back.onnx."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitwire.codec.errors import UsageError

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.console import ProgressFn
    from splitwire.exporter.export import ExportResult, Network
    from splitwire.exporter.inputs import Calibration

__all__ = ["export"]


def export(
    model: Network,
    *,
    cut: str,
    calibration: Calibration,
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, ...] | None = None,
    labels: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    default_op: str | None = None,
    images: int | None = None,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Cut a trained network in two at the layer `cut` and calibrate the feature codec there.

    model: the name of a torchvision network ("resnet18"), a torch.nn.Module (float32, one tensor in), or the path of an
        ONNX file.
    cut: module path ("layer2", "features.7", "layer1.0.relu[1]") or ONNX tensor name; "a,b" for several tensors.
    calibration: folder of images (searched recursively), list of image files, a video (needs splitwire[video]),
        float32 array of network inputs (N, C, H, W), torch Dataset of tensors or PIL images, or an iterable of inputs
        (a DataLoader). 100 inputs like those of the task are plenty; at most `images` (512) are used, spread evenly.
    out: folder of front.onnx and back.onnx; "<model>-<cut>" in the working folder if None.
    weights: for a torchvision name: a file, or what the catalogue takes (docs/models.md).
    preprocessing: from image file to network input; baked into the pair, since the edge needs the same. None: what the
        catalogue says for this network; for a module or a file as for ImageNet, with a note.
    input_shape: (1, C, H, W). None: the catalogue's, else what the array or the preprocessing gives.
    labels: class names, baked into the pair.
    levels: numbers of quantizer levels, one operating point each; (2, 3, 4, 6, 8) if None.
    default_op: "n4", say; None chooses the cheapest that keeps the answers.
    progress: called as progress(stage, done, total), total None while unknown.

    Returns an ExportResult: the paths, the profile, agreement per operating point, notes, skipped images. If a long
    calibration is interrupted, the same call goes on with it.
    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError; no half-written file is left,
    and a pair that was in `out` before stays.
    """
    from splitwire.exporter.export import LEVELS, export_pair
    from splitwire.exporter.inputs import LIMIT

    name: str | None = None
    warning: str | None = None
    if isinstance(model, str) and not _is_onnx(model):
        from splitwire.models.catalogue import load

        size = input_shape[2:] if input_shape is not None and len(input_shape) == 4 else None
        loaded = load(model, weights, size=size)
        name, warning = loaded.name, loaded.warning
        if preprocessing is None:
            preprocessing = loaded.preprocessing
        model, input_shape = loaded.module, input_shape or loaded.input_shape
        labels = loaded.labels if labels is None else labels
    elif weights is not None:
        raise UsageError("weights go with a network's name; a module or an ONNX file brings its own")
    result = export_pair(
        model,
        cut=cut,
        calibration=calibration,
        out=_default_folder(name or _stem(model), cut) if out is None else out,
        preprocessing=preprocessing,
        input_shape=input_shape,
        name=name,
        labels=labels,
        levels=LEVELS if levels is None else levels,
        default_op=default_op,
        images=LIMIT if images is None else images,
        progress=progress,
    )
    return dataclasses.replace(result, notes=(warning, *result.notes)) if warning else result


def _is_onnx(model: str) -> bool:
    """Whether a string means a file: nobody names a network "x.onnx", and a path has a separator."""
    return model.lower().endswith(".onnx") or os.sep in model or "/" in model


def _stem(model: Network) -> str:
    return Path(model).stem if isinstance(model, (str, os.PathLike)) else type(model).__name__


def _default_folder(name: str, cut: str) -> str:
    return re.sub(r"[^\w.-]+", "_", f"{name}-{cut}").strip("_")
