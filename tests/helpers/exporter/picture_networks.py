"""A small network that takes pictures: NCHW or NHWC, gray or of three colors, float32 or uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH, CLASSES = 12, 16, 5


def write_network(path: Path, *, layout: str, channels: int, dtype: int, features: bool = False) -> Path:
    """(Cast →) (Transpose →) Conv → Relu → mean → Gemm. features: an output, too."""
    rng = np.random.default_rng(7)
    sides = (HEIGHT, WIDTH)
    shape: list[str | int] = ["batch", *sides, channels] if layout == "nhwc" else ["batch", channels, *sides]
    spread = 1 / 128 if dtype == TensorProto.UINT8 else 1.0
    weights = {
        "w": rng.standard_normal((8, channels, 3, 3)) * spread,
        "bias": rng.standard_normal(8) * 0.1,
        "fc": rng.standard_normal((8, CLASSES)),
    }
    nodes, entry = [], "picture"
    if dtype == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [entry], ["cast"], to=TensorProto.FLOAT))
        entry = "cast"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [entry], ["nchw"], perm=[0, 3, 1, 2]))
        entry = "nchw"
    nodes += [
        helper.make_node("Conv", [entry, "w", "bias"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["scores"]),
    ]
    out: list[tuple[str, list[str | int]]] = [("scores", ["batch", CLASSES])]
    out += [("features", ["batch", 8, HEIGHT // 2, WIDTH // 2])] if features else []
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("picture", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in out],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
