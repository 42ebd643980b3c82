"""The size of a reply: the bytes of each output of the network for one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.exporter.cutting.cuts import Cut
from splitwire.exporter.network.source import Source


@dataclass(frozen=True, kw_only=True)
class OutputBytes:
    """The size of one output.

    bytes: for one image, without headers; None if the size depends on the picture. shape: without the batch; () if
    unknown. position: of the node that makes the output; the cloud does not send outputs of the front half.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int | None
    position: int

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape)) or "a scalar"
        return f"{self.name!r} ({size if self.bytes is not None else 'size by picture'}, {self.dtype})"


def output_bytes(source: Source) -> list[OutputBytes]:
    """The size of every output that a node makes, in the order of the network."""
    position = {value: i for i, node in enumerate(source.graph) for value in node.outputs}
    entry = source.graph.inputs[0].shape
    batch = None if entry is None or not len(entry) else entry[0]
    return [_output(v, position[v], batch) for v in source.graph.outputs if v in position]


DTYPES = {"float": "float32", "double": "float64"}
"""Types with different names in ONNX and NumPy."""


def _output(value: ir.Value, position: int, batch: object) -> OutputBytes:
    dtype = value.dtype
    kind = "unknown type" if dtype is None else DTYPES.get(dtype.name.lower(), dtype.name.lower())
    sizes: list[object] | None = None if value.shape is None else list(value.shape)
    if sizes and (sizes[0] == batch or getattr(sizes[0], "value", 0) is None):
        sizes = sizes[1:]  # the batch; it may be unknown
    elif sizes and batch is not None and not all(isinstance(d, int) for d in sizes):
        sizes = None
    fixed = tuple(d for d in sizes or () if isinstance(d, int))
    known = dtype is not None and sizes is not None and len(fixed) == len(sizes)
    count = math.ceil(math.prod(fixed) * dtype.itemsize) if known and dtype is not None else None
    return OutputBytes(
        name=str(value.name), dtype=kind,
        shape=fixed if known else (), bytes=count, position=position,
    )  # fmt: skip


def come_down(outputs: Sequence[OutputBytes], cut: Cut | None = None) -> list[OutputBytes]:
    """The outputs that the back half makes; all outputs if the cloud runs the whole network (no cut)."""
    if cut is None:
        return list(outputs)
    return [o for o in outputs if o.position > cut.position and o.position not in cut.extra]


def total(outputs: Sequence[OutputBytes]) -> int:
    """Sum of the known sizes in bytes."""
    return sum(o.bytes or 0 for o in outputs)
