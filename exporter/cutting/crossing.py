"""What crosses the cut: the shapes of the tensors, and the ReLUs that compute them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from splitwire.codec.profile import SizeSpec, TensorSpec
from splitwire.exporter.network.inference import Float32Array, Graph


def what_crosses(
    front: Graph, inputs: Float32Array, tensors: Sequence[str], sizes: Sequence[str]
) -> tuple[list[TensorSpec], tuple[SizeSpec, ...]]:
    """The tensors and the sizes that cross the cut, from a run of the front half: inference may not know the shapes."""
    outputs = front.run(np.resize(inputs, (front.batch or 1, *inputs.shape[1:])))
    specs = [TensorSpec(name=n, shape=y.shape[1:]) for n, y in zip(tensors, outputs, strict=False)]
    size_vectors = outputs[len(tensors) : len(tensors) + len(sizes)]
    return specs, tuple(SizeSpec(name=n, length=y.size) for n, y in zip(sizes, size_vectors, strict=True))


def relu_slopes(front: ir.Model, tensors: Sequence[str]) -> list[float | None]:
    """Per tensor: the negative slope of the (leaky) ReLU that computes it; None if another operator computes it."""
    slopes: list[float | None] = []
    for value in front.graph.outputs[: len(tensors)]:
        node = value.producer()
        kind = node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""
        leak = node.attributes.get_float("alpha", 0.01) if node is not None else 0.0
        slopes.append({"Relu": 0.0, "LeakyRelu": leak}.get(kind))
    return slopes
