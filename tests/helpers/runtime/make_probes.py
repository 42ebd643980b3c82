"""Write runtime_edge/data/*.onnx, the graphs that `splitwire edge profile` times.

    python tests/helpers/runtime/make_probes.py

The edge has no onnx, so they are committed; tests/edge/test_device.py compares them with what this script makes.
Weights come from ConstantOfShape, which ONNX Runtime folds when it loads the graph, so that each file is about a
kilobyte. Opset 17 and IR version 8, which every ONNX Runtime that we support runs.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import onnx
from onnx import TensorProto, helper

FOLDER = Path(__file__).parents[3] / "runtime_edge" / "data"
CHAIN = 3
"""Convolutions in a row, so that the change of the memory layout at both ends weighs as little as in a network."""
TINY_NODES = 200


def constant(name: str, shape: tuple[int, ...], value: float) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    node = helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=fill)
    return [node], [helper.make_tensor(f"{name}_shape", TensorProto.INT64, [len(shape)], shape)]


def model(
    name: str, shapes: list[tuple[int, ...]], nodes: list[onnx.NodeProto], initialisers: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """Inputs x0, x1, … of these shapes; output y."""
    entries = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    graph = helper.make_graph(
        nodes, name, entries, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], initialisers
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="splitwire")
    made.ir_version = 8
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
    del made.graph.value_info[:]
    onnx.checker.check_model(made)
    return made


def convolutions(name: str, channels: int, side: int, kernel: int, groups: int = 1) -> onnx.ModelProto:
    fan_in = channels // groups * kernel * kernel
    nodes, initialisers = constant("w", (channels, channels // groups, kernel, kernel), 1 / fan_in)
    names = ["x0", *(f"h{i}" for i in range(1, CHAIN)), "y"]
    nodes += [
        helper.make_node("Conv", [a, "w"], [b], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=groups)
        for a, b in pairwise(names)
    ]
    return model(name, [(1, channels, side, side)], nodes, initialisers)


def matmul(name: str, rows: int, width: int) -> onnx.ModelProto:
    nodes, initialisers = constant("w", (width, width), 1 / width)
    nodes.append(helper.make_node("MatMul", ["x0", "w"], ["y"]))
    return model(name, [(1, rows, width)], nodes, initialisers)


def elementwise(name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    return model(name, [shape, shape], [helper.make_node("Add", ["x0", "x1"], ["y"])], [])


def tiny_nodes(name: str) -> onnx.ModelProto:
    names = ["x0", *(f"h{i}" for i in range(1, TINY_NODES)), "y"]
    nodes = [helper.make_node("Tanh", [a], [b]) for a, b in pairwise(names)]
    return model(name, [(1, 16)], nodes, [])


def probes() -> dict[str, onnx.ModelProto]:
    """File name → model."""
    made = [
        convolutions("conv_3x3_large_maps", 64, 56, 3),
        convolutions("conv_3x3_small_maps", 256, 14, 3),
        convolutions("conv_1x1", 256, 28, 1),
        convolutions("conv_depthwise", 192, 56, 3, groups=192),
        matmul("matmul", 197, 768),
        matmul("matvec", 1, 4096),
        elementwise("add", (1, 64, 112, 112)),
        tiny_nodes("tiny_nodes"),
    ]
    return {f"{m.graph.name}.onnx": m for m in made}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, made in probes().items():
        (FOLDER / file).write_bytes(made.SerializeToString(deterministic=True))
