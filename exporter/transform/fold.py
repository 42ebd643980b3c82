"""The analysis at the end of the front graph, and the synthesis at the start of the back graph, as ordinary operators.

Requires the halves of a cut (cutting/split.py), whose features have the shape of the design's layout. Ensures that the
front gives the coefficients in the features' place, that the back takes them there, and that both keep the features as
a value of their old name. Batches stay as they are, dynamic or fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from splitwire.codec.errors import ExportError
from splitwire.exporter.network.inference import check_graph
from splitwire.exporter.transform.bands.layout import Layout

from .tensor import TransformDesign

SUFFIX = "coefficients"
LARGEST_BASIS = 64
"""Up to this number of positions, the DCT of a tile is one matrix; above, one down and one across."""


WORTH_A_PRODUCT = 500_000
"""Multiplications that take ONNX Runtime as long as beginning another matrix product, with what is around it."""


def coefficients_name(features: str) -> str:
    """The name of the coefficients of the feature tensor `features` in both graphs."""
    return f"{features}/{SUFFIX}"


def fold_front(model: ir.Model, designs: Sequence[TransformDesign | None]) -> ir.Model:
    """A copy of the front half that ends in the analysis of its first outputs; None leaves a tensor as it is."""
    model = model.clone()
    graph = model.graph
    for i, design in enumerate(designs):
        if design is not None:
            build = _Builder(graph, f"{graph.outputs[i].name}/analysis")
            result = _analysis(build, graph.outputs[i], design)
            result.name = coefficients_name(str(graph.outputs[i].name))
            result.type, result.shape = graph.outputs[i].type, _shape(graph.outputs[i], design.shape)
            graph.extend(build.nodes)
            graph.outputs[i] = result
    return _checked(model, "front")


def fold_back(model: ir.Model, designs: Sequence[TransformDesign | None]) -> ir.Model:
    """A copy of the back half that begins with the synthesis of its first inputs; None leaves a tensor as it is."""
    model = model.clone()
    graph = model.graph
    first = next(iter(graph))
    for i, design in enumerate(designs):
        if design is not None:
            features = graph.inputs[i]
            name = str(features.name)
            coefficients = ir.Value(
                name=coefficients_name(name), type=features.type, shape=_shape(features, design.shape)
            )
            build = _Builder(graph, f"{name}/synthesis")
            result = _synthesis(build, coefficients, design)
            result.type, result.shape = features.type, features.shape
            ir.convenience.replace_all_uses_with(features, result)
            graph.inputs[i] = coefficients
            features.name = f"{name}/unused"
            result.name = name
            graph.insert_before(first, build.nodes)
    return _checked(model, "back")


class _Builder:
    """Nodes and initialisers of one graph, with names below `prefix`."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self.nodes: list[ir.Node] = []

    def node(self, kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        """All outputs of a new node."""
        made = [ir.AttrInt64(k, v) if isinstance(v, int) else ir.AttrInt64s(k, v) for k, v in attributes.items()]
        node = ir.Node("", kind, list(inputs), made, num_outputs=outputs, name=f"{self._prefix}/{len(self.nodes)}")
        for k, value in enumerate(node.outputs):
            value.name = f"{self._prefix}/{len(self.nodes)}/{k}"
            value.type = ir.TensorType(ir.DataType.FLOAT)
        self.nodes.append(node)
        return list(node.outputs)

    def one(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The output of a new node that has one."""
        return self.node(kind, *inputs, **attributes)[0]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initialiser."""
        full = f"{self._prefix}/{name}"
        value = ir.Value(name=full, const_value=ir.tensor(np.ascontiguousarray(array), name=full))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)  # type: ignore[union-attr]  # set above
        self._graph.register_initializer(value)
        return value

    def numbers(self, name: str, values: Sequence[int]) -> ir.Value:
        """An initialiser of int64."""
        return self.constant(name, np.array(values, np.int64))

    def pick(self, name: str, x: ir.Value, places: NDArray[np.int64], *outer: int) -> ir.Value:
        """(B, *outer, n) → (B, *outer, len(places)): what lies at `places` of the last axis.

        (ONNX Runtime's Gather copies each element by itself on the last axis: eight times as slow.)
        """
        inner = [1] * len(outer)
        index = self.constant(name, places.astype(np.int32).reshape(1, *inner, -1))
        batch = self.one("Shape", x, start=0, end=1)
        shape = self.one("Concat", batch, self.numbers(f"{name}_shape", (*outer, len(places))), axis=0)
        batch.type = shape.type = ir.TensorType(ir.DataType.INT64)
        every = self.one("Expand", index, shape)
        every.type = ir.TensorType(ir.DataType.INT32)
        return self.one("GatherElements", x, every, axis=len(outer) + 1)

    def reshape(self, name: str, x: ir.Value, *shape: int) -> ir.Value:
        """(B, …) → (B, *shape)."""
        return self.one("Reshape", x, self.numbers(name, (0, *shape)))


def _analysis(build: _Builder, features: ir.Value, design: TransformDesign) -> ir.Value:
    """(B, *feature_shape) → (B, tiles, K).

    Small bands share a matrix product: all their matrices are applied to all their frequencies, and what belongs
    together is picked out in the end, with the permutation.
    """
    layout = design.layout
    y = _spectrum(build, _to_tiles(build, features, layout), layout)
    groups = _groups(design)
    parts = _split(build, y, [sum(_width(layout.bands[b]) for b in group) for group in groups])
    products, places, start = [], [], 0
    for g, (part, group) in enumerate(zip(parts, groups, strict=True)):
        stack = np.concatenate([design.analysis[b] for b in group])
        low, high = layout.bands[group[0]].start, layout.bands[group[-1]].stop
        product = build.one("MatMul", build.constant(f"bands{g}", stack), part)
        products.append(build.reshape(f"flat{g}", product, layout.tiles, len(stack) * (high - low)))
        row = 0
        for b in group:
            rows, band = len(design.analysis[b]), layout.bands[b]
            component, frequency = np.meshgrid(np.arange(rows) + row, np.arange(band.start, band.stop), indexing="ij")
            places.append((start + component * (high - low) + frequency - low).reshape(-1))
            row += rows
        start += len(stack) * (high - low)
    whole = products[0] if len(products) == 1 else build.one("Concat", *products, axis=2)
    sent = build.pick("permutation", whole, np.concatenate(places)[design.permutation], layout.tiles)
    return build.one("Sub", sent, build.constant("bias", design.bias))


def _groups(design: TransformDesign) -> list[list[int]]:
    """Neighbouring bands that share a matrix product, as long as that costs no more than a product of its own."""
    layout = design.layout
    groups: list[list[int]] = []
    for b in range(len(layout.bands)):
        if groups:
            together = [*groups[-1], b]
            rows = [len(design.analysis[i]) for i in together]
            widths = [_width(layout.bands[i]) for i in together]
            before = sum(rows[:-1]) * sum(widths[:-1]) + rows[-1] * widths[-1]
            if layout.tiles * layout.channels * (sum(rows) * sum(widths) - before) <= WORTH_A_PRODUCT:
                groups[-1] = together
                continue
        groups.append([b])
    return groups


def _width(band: slice) -> int:
    width: int = band.stop - band.start
    return width


def _synthesis(build: _Builder, coefficients: ir.Value, design: TransformDesign) -> ir.Value:
    """(B, tiles, K) → (B, *feature_shape)."""
    layout = design.layout
    rows = max(s.shape[1] for s in design.synthesis)
    sent = len(design.permutation)
    place = np.full(rows * layout.positions, sent, np.int64)
    place[_joined(design, rows)[design.permutation]] = np.arange(sent)
    x = build.one("Pad", coefficients, build.numbers("pads", (0, 0, 0, 0, 0, 1)))  # a zero for what is not sent
    x = build.reshape("plane", build.pick("places", x, place, layout.tiles), layout.tiles, rows, layout.positions)
    spectra = []
    for b, (part, matrix) in enumerate(
        zip(_split(build, x, [_width(b) for b in layout.bands]), design.synthesis, strict=True)
    ):
        wide = np.pad(matrix, ((0, 0), (0, rows - matrix.shape[1])))
        spectra.append(build.one("MatMul", build.constant(f"band{b}", wide), part))
    y = spectra[0] if len(spectra) == 1 else build.one("Concat", *spectra, axis=3)
    x = _tile_positions(build, y, layout)
    x = build.one("Add", x, build.constant("offset", design.offset))
    x = _from_tiles(build, x, layout)
    if design.low == 0 and design.high is None:
        return build.one("Relu", x)
    if design.low is not None and design.high is not None:
        bounds = [build.constant(n, np.array(v, np.float32)) for n, v in (("low", design.low), ("high", design.high))]
        return build.one("Clip", x, *bounds)
    return x


def _joined(design: TransformDesign, rows: int) -> NDArray[np.int64]:
    """(N,) where each coefficient lies when every band has `rows` components: component by component, in each the
    frequencies of all bands."""
    layout = design.layout
    parts = []
    for a, band in zip(design.analysis, layout.bands, strict=True):
        component, frequency = np.meshgrid(np.arange(len(a)), np.arange(band.start, band.stop), indexing="ij")
        parts.append((component * layout.positions + frequency).reshape(-1))
    return np.concatenate(parts).astype(np.int64)


def _spectrum(build: _Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """(B, tiles, C, P) positions → frequencies in the layout's order."""
    if layout.positions == 1:
        return x
    if layout.factors is None or layout.positions <= LARGEST_BASIS:
        return build.one("MatMul", x, build.constant("basis", layout.basis.T.astype(np.float32)))
    down, across = layout.factors
    x = build.reshape("block", x, layout.tiles, layout.channels, *layout.block)
    x = build.one("MatMul", x, build.constant("across", across.T.astype(np.float32)))
    x = build.one("MatMul", build.constant("down", down.astype(np.float32)), x)
    x = build.reshape("frequencies", x, layout.tiles, layout.channels, layout.positions)
    return build.pick("order", x, layout.order.astype(np.int64), layout.tiles, layout.channels)


def _tile_positions(build: _Builder, y: ir.Value, layout: Layout) -> ir.Value:
    """The inverse of _spectrum."""
    if layout.positions == 1:
        return y
    if layout.factors is None or layout.positions <= LARGEST_BASIS:
        return build.one("MatMul", y, build.constant("basis", layout.basis.astype(np.float32)))
    down, across = layout.factors
    y = build.pick("order", y, np.argsort(layout.order).astype(np.int64), layout.tiles, layout.channels)
    y = build.reshape("block", y, layout.tiles, layout.channels, *layout.block)
    y = build.one("MatMul", y, build.constant("across", across.astype(np.float32)))
    y = build.one("MatMul", build.constant("down", down.T.astype(np.float32)), y)
    return build.reshape("positions", y, layout.tiles, layout.channels, layout.positions)


def _to_tiles(build: _Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """(B, *feature_shape) → (B, tiles, C, P)."""
    (h, w), (a, b), c = layout.grid, layout.block, layout.channels
    if layout.lead or len(layout.feature_shape) == 2:
        x = build.one("Transpose", x, perm=(0, 2, 1))
    elif layout.last:
        x = build.one("Transpose", x, perm=(0, 3, 1, 2))
    if layout.tiles > 1:
        x = build.reshape("cut", x, c, h // a, a, w // b, b)
        x = build.one("Transpose", x, perm=(0, 2, 4, 1, 3, 5))
    return build.reshape("tiles", x, layout.tiles, c, layout.positions)


def _from_tiles(build: _Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """The inverse of _to_tiles."""
    (h, w), (a, b), c = layout.grid, layout.block, layout.channels
    if layout.tiles > 1:
        x = build.reshape("cut", x, h // a, w // b, c, a, b)
        x = build.one("Transpose", x, perm=(0, 3, 1, 4, 2, 5))
    if layout.lead or len(layout.feature_shape) == 2:
        return build.one("Transpose", build.reshape("tokens", x, c, layout.feature_shape[0]), perm=(0, 2, 1))
    if layout.last:
        return build.one("Transpose", build.reshape("map", x, c, h, w), perm=(0, 2, 3, 1))
    return build.reshape("map", x, *layout.feature_shape)


def _split(build: _Builder, y: ir.Value, widths: Sequence[int]) -> list[ir.Value]:
    """(B, tiles, n, P) cut into parts of these widths along the last axis."""
    if len(widths) == 1:
        return [y]
    return build.node("Split", y, build.numbers("widths", widths), outputs=len(widths), axis=3)


def _shape(features: ir.Value, inner: tuple[int, int]) -> ir.Shape:
    batch = features.shape[0] if features.shape is not None else None
    return ir.Shape([batch, *inner])


def _checked(model: ir.Model, side: str) -> ir.Model:
    if reason := check_graph(model):
        raise ExportError(f"the {side} half with its transform does not pass the ONNX checker: {reason}")
    return model
