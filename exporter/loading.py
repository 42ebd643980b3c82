"""The first step of an export and of a plan: a network becomes one checked graph, and its data is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from msgspec import UNSET

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.calibration.inputs import CalibrationInputs, open_inputs
from splitwire.exporter.calibration.items import Calibration, are_images
from splitwire.exporter.cutting import verify
from splitwire.exporter.network.adapting.constants import check_none
from splitwire.exporter.network.adapting.widen import in_float32
from splitwire.exporter.network.inference import Float32Array, InputType
from splitwire.exporter.network.pictures import WantedShape, completed, wanted_shape
from splitwire.exporter.network.source import Source, from_file, from_module
from splitwire.exporter.options import Network, NetworkOptions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A calibration, opened for one network.

    first: (3, *shape), the first inputs; noise stands in where there are fewer (verify.py). preprocessing: how the
    images become network inputs; None where the calibration holds arrays. notes: what the user should know.
    """

    stream: CalibrationInputs
    first: Float32Array
    preprocessing: Preprocessing | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """A network as one checked graph, and its data.

    model: what the caller passed; a module in half precision is replaced by its float32 copy. data: what `open_data`
    returned. notes: what the user should know about the copy.
    """

    model: Network
    source: Source
    data: T
    notes: list[str]


def load(
    model: Network,
    calibration: Calibration | None,
    options: NetworkOptions,
    open_data: Callable[[tuple[int, ...], InputType], T],
    report: ProgressFn,
) -> Loaded[T]:
    """Read the network, and open its data.

    open_data: opens the calibration for inputs of a shape (without the batch) and a type. Most mistakes are in the
    data, and the export of a module to ONNX takes seconds to minutes, so for a module this comes first.

    Raises UsageError, UnsupportedModel, and what `open_data` raises.
    """
    shape = _wanted_shape(calibration, options)
    if not isinstance(model, torch.nn.Module):
        source = from_file(Path(model), shape, options.constants, options.outputs)
        data = open_data(source.input_shape[1:], source.input_dtype)
        return Loaded(model=model, source=source, data=data, notes=[])
    check_none(options.constants)
    module, note = in_float32(model)
    shape = shape((None, None, None)) if callable(shape) else shape
    if shape is None:
        raise UsageError("a torch module does not say what it takes; pass input_shape=(1, C, H, W)")
    dtype = _dtype(calibration, options)
    data = open_data(shape[1:], dtype)
    report("Export to ONNX", 0, None)
    source = from_module(module, shape, dtype, options.outputs)
    report("Export to ONNX", 1, 1)
    return Loaded(model=module, source=source, data=data, notes=[note] if note else [])


def open_calibration(
    calibration: Calibration, options: NetworkOptions, shape: tuple[int, ...], dtype: InputType
) -> Opened:
    """Open the calibration for inputs of this shape (without the batch) and type. Raises UsageError."""
    how: Preprocessing | None = None
    notes: list[str] = []
    if options.preprocessing is not None or are_images(calibration):
        how, notes = completed(options.preprocessing, shape, dtype)
    stream = open_inputs(calibration, shape=shape, dtype=dtype, preprocessing=how, limit=options.images)
    first = verify.fill_up(stream.peek(max(verify.BATCHES)), shape, dtype)
    return Opened(stream=stream, first=first, preprocessing=how, notes=notes)


def _wanted_shape(calibration: Calibration | None, options: NetworkOptions) -> WantedShape:
    """The input shape as far as the caller gives it: by `input_shape`, by an array of inputs, or by an image size."""
    if options.input_shape is not None:
        return tuple(options.input_shape)
    array_shape: tuple[int, ...] = tuple(getattr(calibration, "shape", ()))
    if len(array_shape) > 1:
        return (1, *array_shape[1:])
    return wanted_shape(options.preprocessing, options.image_size)


def _dtype(calibration: Calibration | None, options: NetworkOptions) -> InputType:
    """The type of a torch module's input: the module does not declare it, so the preprocessing or an array decides."""
    requested = options.preprocessing.dtype if options.preprocessing is not None else UNSET
    array_type = str(getattr(calibration, "dtype", ""))
    return "uint8" if requested == "uint8" or array_type in ("uint8", "torch.uint8") else "float32"
