"""Features that an edge has captured (runtime_edge/control/capture.py) as calibration inputs, without a front half.

A file NAME.npz holds one image's tensors at the cut: arrays "0", "1", … of shape (1, *shape), float32. All tensors of
an image become one vector, so that it can take the place of a network's input. `split_graph` turns vectors into
tensors.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import TensorSpec
from splitwire.codec.shared.pictures import spread

from .inputs import CalibrationInputs, IsWanted, Skipped
from .items import Named

SUFFIX = ".npz"
OPSET, IR_VERSION = 17, 8
"""Versions that every supported ONNX Runtime takes."""


def feature_files(folder: Path) -> list[Path]:
    """The files with captured features in a folder, in the order of their names; [] if it holds none."""
    return sorted(p for p in folder.glob(f"*{SUFFIX}") if p.is_file()) if folder.is_dir() else []


def open_captured(files: Sequence[Path], specs: Sequence[TensorSpec], limit: int) -> CalibrationInputs:
    """One pass over the files: vectors of all elements, at most `limit`, evenly spread. Files that cannot be read, or
    hold other tensors, are skipped."""
    chosen = [files[i] for i in spread(len(files), limit)]

    def items(is_wanted: IsWanted) -> Iterator[Named | Skipped | None]:
        for at, path in enumerate(chosen):
            yield _read(path, specs) if is_wanted(at) else None

    return CalibrationInputs(items, total=len(chosen), digest=partial(",".join, map(str, chosen)))


def _read(path: Path, specs: Sequence[TensorSpec]) -> Named | Skipped:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[str(i)] for i in range(len(specs))]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        return Skipped(path=str(path), reason=f"{path}: no captured features: {e}")
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype != np.float32 or array.shape != (1, *spec.shape):
            found = f"{array.dtype} of shape {array.shape}"
            return Skipped(
                path=str(path), reason=f"{path}: {spec.name!r} must be float32 of shape {(1, *spec.shape)}, is {found}"
            )
        if not np.isfinite(array).all():
            return Skipped(path=str(path), reason=f"{path}: {spec.name!r} holds NaN or infinity")
    return str(path), np.concatenate([array.reshape(-1) for array in arrays])


def split_graph(specs: Sequence[TensorSpec]) -> ir.Model:
    """A graph from (B, elements of all tensors) to the tensors, by their names. Raises UsageError for no tensor."""
    if not specs:
        raise UsageError("there are no tensors at the cut")
    widths = [math.prod(spec.shape) for spec in specs]
    entry = _value("features", [sum(widths)])
    graph = ir.Graph([entry], [], nodes=[], opset_imports={"": OPSET}, name="captured")
    parts = [entry]
    if len(specs) > 1:
        split = ir.Node("", "Split", [entry, _constant(graph, "widths", widths)], [ir.AttrInt64("axis", 1)],
                        num_outputs=len(specs), name="split")  # fmt: skip
        parts = list(split.outputs)
        for i, (part, width) in enumerate(zip(parts, widths, strict=True)):
            _describe(part, f"part{i}", [width])
        graph.append(split)
    for i, (spec, part) in enumerate(zip(specs, parts, strict=True)):
        shape = _constant(graph, f"shape{i}", [0, *spec.shape])
        node = ir.Node("", "Reshape", [part, shape], name=f"reshape{i}")
        _describe(node.outputs[0], spec.name, spec.shape)
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="splitwire")


def _value(name: str, shape: Sequence[int]) -> ir.Value:
    value = ir.Value(name=name)
    _describe(value, name, shape)
    return value


def _describe(value: ir.Value, name: str, shape: Sequence[int]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", *shape])


def _constant(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(values, np.int64), name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(values)])
    graph.register_initializer(value)
    return value
