"""Find the network that the user names: in the catalogue, as a torch module, or as an ONNX file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.text import printable

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.codec.shared.tasks import Task
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.options import Network


@dataclass(frozen=True, kw_only=True)
class FoundNetwork:
    """A network with its metadata.

    model: a module, or the path of an ONNX file. weights: a description. preprocessing, input_shape, labels: from the
    caller, or else from the catalogue; None if unknown. task: from the catalogue. warning: what the user should know.
    """

    model: Network
    name: str
    weights: str
    preprocessing: Preprocessing | PictureOptions | None
    input_shape: tuple[int, ...] | None
    labels: Sequence[str] | None
    task: Task | None = None
    warning: str | None = None


def find_network(
    model: Network,
    weights: str | os.PathLike[str] | None,
    *,
    preprocessing: Preprocessing | PictureOptions | None,
    input_shape: tuple[int, ...] | None,
    image_size: tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
) -> FoundNetwork:
    """Look up a name in the catalogue, or take a module or a file as it is.

    The image size of a network in the catalogue is that of `input_shape`, of `image_size` or of the crop, in this
    order. Raises UsageError (unknown name or weights; weights for a module or a file), ExportError (download).
    """
    if isinstance(model, str) and not _is_file(model):
        from splitwire.exporter.network.pictures import PictureOptions, overlaid
        from splitwire.models.catalogue import load

        size = input_shape[2:] if input_shape is not None and len(input_shape) == 4 else image_size
        options = preprocessing if isinstance(preprocessing, PictureOptions) else None
        loaded = load(model, weights, size=options.size() if size is None and options is not None else size)
        return FoundNetwork(
            model=loaded.module,
            name=loaded.name,
            weights=loaded.weights,
            preprocessing=overlaid(options, loaded.preprocessing) if options else preprocessing or loaded.preprocessing,
            input_shape=input_shape or loaded.input_shape,
            labels=loaded.labels if labels is None else labels,
            task=loaded.task,
            warning=loaded.warning,
        )
    if weights is not None:
        raise UsageError("weights go with a network's name; a module or an ONNX file brings its own")
    file = isinstance(model, (str, os.PathLike))
    return FoundNetwork(
        model=model,
        name=printable(Path(model).stem) if isinstance(model, (str, os.PathLike)) else type(model).__name__,
        weights="as in the file" if file else "as in the module",
        preprocessing=preprocessing,
        input_shape=input_shape,
        labels=labels,
    )


def _is_file(model: str) -> bool:
    """Whether the text is a path: it ends in ".onnx", or has a separator."""
    return model.lower().endswith(".onnx") or os.sep in model or "/" in model


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from "224" or "384x512"; None from None. Raises UsageError."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(s.isdecimal() and int(s) for s in sides):
        raise UsageError(f"--image-size takes one side or HEIGHTxWIDTH, as in 224 or 384x512; got {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_constants(texts: Sequence[str] | None) -> dict[str, Any]:
    """Input → value, from ["threshold=0.5", "im_shape=640,640", "scale=[[1, 1]]"]. Raises UsageError."""
    constants: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        numbers = value.strip().lower() if value.strip().lower() in ("true", "false") else value
        try:
            constant = json.loads(numbers)
        except ValueError:
            try:
                constant = json.loads(f"[{numbers}]")
            except ValueError:
                constant = None
        if not (name and equals and value.strip()) or name in constants or not isinstance(constant, int | float | list):
            again = f"; {name!r} is given twice" if name in constants else ""
            raise UsageError(
                f"--constant takes NAME=VALUE, with a number, numbers with commas, or a JSON list, as in threshold=0.5,"
                f" im_shape=640,640 or scale=[[1,1]]; got {text!r}{again}"
            )
        constants[name] = constant
    return constants
