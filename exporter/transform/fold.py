"""The analysis at the end of the front graph, and the synthesis at the start of the back graph, as ordinary operators.

Requires the halves of a cut (cutting/split.py), whose features have the shape of the design's layout. Ensures that the
front gives the coefficients in the features' place, that the back takes them there, and that both keep the features as
a value of their old name. Batches stay as they are, dynamic or fixed.

Between the two, features lie as *rows*: (B, positions, C), each position's channels side by side. So tiles, frequencies
and bands are put into their places by copying whole rows, and the matrices of the bands stand on the right of their
products, where ONNX Runtime packs them once, when it opens the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import ExportError
from splitwire.exporter.network.inference import check_graph
from splitwire.exporter.transform.bands.layout import Float64Array, Layout

from .tensor import TransformDesign

SUFFIX = "coefficients"
LARGEST_BASIS = 16
"""Up to this number of positions, the DCT of a tile is one matrix; above, one down and one across."""


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


def with_outputs(front: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of a folded front half with these values as further outputs: features that are outputs of the network."""
    model = front.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.extend(values[name] for name in names)
    return _checked(model, "front")


def without_synthesis(back: ir.Model, features: Sequence[str]) -> ir.Model:
    """A copy of a folded back half that begins at the features again. features: their names, in the order of the
    inputs. Raises ExportError if the graph does not hold them."""
    model = back.clone()
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    for i, name in enumerate(features):
        if name not in values:
            raise ExportError(f"the back half does not hold the features {name!r} of its own profile")
        computed = values[name]
        entry = ir.Value(name=name, type=computed.type or graph.inputs[i].type, shape=computed.shape)
        ir.convenience.replace_all_uses_with(computed, entry, replace_graph_outputs=True)
        computed.name = f"{name}/unused"
        graph.inputs[i] = entry
    RemoveUnusedNodesPass()(model)
    return _checked(model, "back")


class _Builder:
    """Nodes and initialisers of one graph, with names below `prefix`."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self._opset = graph.opset_imports.get("", 0)
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

    def reshape(self, name: str, x: ir.Value, *shape: int) -> ir.Value:
        """(B, …) → (B, *shape)."""
        return self.one("Reshape", x, self.numbers(name, (0, *shape)))

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """The parts, one behind the other."""
        return parts[0] if len(parts) == 1 else self.one("Concat", *parts, axis=axis)

    def split(self, name: str, x: ir.Value, widths: Sequence[int], axis: int) -> list[ir.Value]:
        """Parts of these widths."""
        if len(widths) == 1:
            return [x]
        if self._opset < 13:  # the widths are an attribute there
            return self.node("Split", x, outputs=len(widths), axis=axis, split=tuple(widths))
        return self.node("Split", x, self.numbers(name, widths), outputs=len(widths), axis=axis)

    def rows(self, name: str, x: ir.Value, places: NDArray[np.int64], channels: int) -> ir.Value:
        """(B, …, C) → (B, *places.shape, C): the rows at these places."""
        if np.array_equal(places.reshape(-1), np.arange(places.size)):
            return self.reshape(name, x, *places.shape, channels)
        x = self.reshape(name, x, places.size, channels)
        return self.one("Gather", x, self.constant(f"{name}_places", places), axis=1)


def _analysis(build: _Builder, features: ir.Value, design: TransformDesign) -> ir.Value:
    """(B, *feature_shape) → (B, tiles, N)."""
    y = _spectrum(build, features, design.layout)
    products = [
        build.one("MatMul", part, build.constant(f"band{i}", matrix.T))
        for i, (part, matrix) in enumerate(
            zip(build.split("bands", y, [n for n, _ in design.bands], axis=2), design.analysis, strict=True)
        )
    ]
    flat = []
    for i, (run, size) in enumerate(_runs(design)):
        joined = build.concat([products[b] for b in run], axis=2)
        flat.append(build.reshape(f"flat{i}", joined, design.layout.tiles, size))
    return build.one("Sub", build.concat(flat, axis=2), build.constant("bias", design.bias))


def _synthesis(build: _Builder, coefficients: ir.Value, design: TransformDesign) -> ir.Value:
    """(B, tiles, N) → (B, *feature_shape)."""
    layout, products = design.layout, []
    runs = _runs(design)
    flat = build.split("runs", coefficients, [size for _, size in runs], axis=2)
    for i, (part, (run, size)) in enumerate(zip(flat, runs, strict=True)):
        k = design.bands[run[0]][1]
        joined = build.reshape(f"rows{i}", part, layout.tiles, size // k, k)
        for band, rows in zip(run, build.split(f"bands{i}", joined, [design.bands[b][0] for b in run], 2), strict=True):
            products.append(build.one("MatMul", rows, build.constant(f"band{band}", design.synthesis[band].T)))
    offset = _single(layout.basis @ design.offset.T)  # of the spectrum: it is the same in every tile
    y = build.one("Add", build.concat(products, axis=2), build.constant("offset", offset))
    x = _features(build, y, layout)
    if design.threshold.any():
        twice = build.constant("threshold", layout.by_channel(2 * design.threshold))
        x = build.one("Min", x, build.one("Add", x, build.one("Sub", x, twice)))
    if design.low == 0 and design.high is None:
        return build.one("Relu", x)
    if design.low is not None and design.high is not None:
        bounds = [build.constant(n, np.array(v, np.float32)) for n, v in (("low", design.low), ("high", design.high))]
        return build.one("Min", build.one("Max", x, bounds[0]), bounds[1])  # Clip takes no inputs before opset 11
    return x


def _runs(design: TransformDesign) -> list[tuple[list[int], int]]:
    """Neighbouring bands of as many components, whose coefficients are one array, and the number of these."""
    runs: list[tuple[list[int], int]] = []
    for b, (n, k) in enumerate(design.bands):
        if b and k == design.bands[b - 1][1]:
            run, size = runs.pop()
            runs.append(([*run, b], size + n * k))
        else:
            runs.append(([b], n * k))
    return runs


def _spectrum(build: _Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """(B, *feature_shape) → (B, tiles, P, C), frequencies in the layout's order."""
    (h, w), (a, b), c = layout.grid, layout.block, layout.channels
    places, first = _places(layout), _channels_first(layout)
    if layout.factors is None or layout.positions <= LARGEST_BASIS:
        x = build.one("Transpose", x, perm=(0, 2, 3, 1)) if first else x
        y = build.rows("tiles", x, places, c)
        return y if layout.positions == 1 else build.one("MatMul", build.constant("basis", _single(layout.basis)), y)
    down, across = (_single(f) for f in layout.factors)
    if first:
        if w > b > 1:
            x = build.reshape("strips", x, c, h, w // b, b)
        if b > 1:  # one product, where there would be one for each tile's row behind the transpose
            x = build.one("MatMul", x, build.constant("across", across.T))
        x = build.one("Transpose", x, perm=(0, 2, 3, 4, 1) if w > b > 1 else (0, 2, 3, 1))
    elif b > 1:
        x = build.one("MatMul", build.constant("across", across), build.reshape("strips", x, h * w // b, b, c))
    if a > 1:
        x = build.one("MatMul", build.constant("down", down), build.reshape("columns", x, h // a, a, w * c))
    return build.rows("frequencies", x, places[:, layout.order], c)


def _features(build: _Builder, y: ir.Value, layout: Layout) -> ir.Value:
    """The inverse of _spectrum."""
    (h, w), (a, b), c = layout.grid, layout.block, layout.channels
    places, first = _places(layout), _channels_first(layout)
    if layout.factors is None or layout.positions <= LARGEST_BASIS:
        if layout.positions > 1:
            y = build.one("MatMul", build.constant("basis", _single(layout.basis.T)), y)
        x = build.rows("tiles", y, np.argsort(places.reshape(-1)), c)
        if first:
            return build.one("Transpose", build.reshape("map", x, h, w, c), perm=(0, 3, 1, 2))
        return x if len(layout.feature_shape) == 2 else build.reshape("features", x, *layout.feature_shape)
    down, across = (_single(f) for f in layout.factors)
    x = build.rows("frequencies", y, np.argsort(places[:, layout.order].reshape(-1)), c)
    if a > 1:
        x = build.one("MatMul", build.constant("down", down.T), build.reshape("columns", x, h // a, a, w * c))
    if not first:
        if b > 1:
            x = build.one("MatMul", build.constant("across", across.T), build.reshape("strips", x, h * w // b, b, c))
        return build.reshape("features", x, *layout.feature_shape)
    if w > b > 1:
        x = build.one("Transpose", build.reshape("strips", x, h, w // b, b, c), perm=(0, 4, 1, 2, 3))
    else:
        x = build.one("Transpose", build.reshape("map", x, h, w, c), perm=(0, 3, 1, 2))
    if b > 1:
        x = build.one("MatMul", x, build.constant("across", across))
    return build.reshape("features", x, *layout.feature_shape) if w > b > 1 else x


def _places(layout: Layout) -> NDArray[np.int64]:
    """(tiles, P) the row of each position of a tile."""
    if layout.lead:
        return np.arange(layout.positions)[None]
    (h, w), (a, b) = layout.grid, layout.block
    rows = np.arange(h * w).reshape(h // a, a, w // b, b).transpose(0, 2, 1, 3)
    return rows.reshape(layout.tiles, layout.positions).astype(np.int64)


def _channels_first(layout: Layout) -> bool:
    return len(layout.feature_shape) == 3 and not layout.last


def _single(matrix: Float64Array) -> NDArray[np.float32]:
    return matrix.astype(np.float32)


def _shape(features: ir.Value, inner: tuple[int, int]) -> ir.Shape:
    batch = features.shape[0] if features.shape is not None else None
    return ir.Shape([batch, *inner])


def _checked(model: ir.Model, side: str) -> ir.Model:
    if reason := check_graph(model):
        raise ExportError(f"the {side} half with its transform does not pass the ONNX checker: {reason}")
    return model
