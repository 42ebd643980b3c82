"""Small ONNX files as people have them, built node by node, and the pair that comes of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

import splitwire

N = h.make_node
SHAPE = (3, 16, 16)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    """Random, and the same for the same name."""
    rng = np.random.default_rng(list(name.encode()))
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)


def value(name: str, shape: Sequence[int | str] | None, kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, kind, shape)


def body() -> list[onnx.NodeProto]:
    """X → conv a → r (ReLU) → conv b → pooled → y (n, 6)."""
    return [
        N("Conv", ["x", "a"], ["c"]),
        N("Relu", ["c"], ["r"]),
        N("Conv", ["r", "b"], ["d"]),
        N("GlobalAveragePool", ["d"], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]


def weights() -> list[onnx.TensorProto]:
    return [weight("a", 6, 3, 3, 3), weight("b", 6, 6, 3, 3)]


def network(
    extra: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    batch: int | str = "n",
    opset: int = 17,
    **parts: Any,
) -> onnx.ModelProto:
    """`body`, with more nodes behind it. parts: of the graph, or `domains` and `functions` of the model."""
    domains = [h.make_opsetid(d, v) for d, v in parts.pop("domains", {"com.microsoft": 1}).items()]
    functions = parts.pop("functions", [])
    graph = h.make_graph(
        [*body(), *extra],
        "g",
        [value("x", [batch, *SHAPE])],
        [value("y", [batch, 6])] if outputs is None else outputs,
        [*weights(), *initializers],
        **parts,
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset), *domains], ir_version=8, functions=functions)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, *SHAPE)).astype(np.float32)


def export(path: Path, cut: str = "r", **options: Any) -> Path:
    """The pair, calibrated on noise with 64 levels: its answers are close to the network's."""
    folder = path.parent / "pairs" / f"{path.stem}-{cut}"
    splitwire.export(path, cut=cut, calibration=pictures(8), out=folder, levels=(64,), **options)
    return folder


def answers(pair: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of edge and cloud for a batch."""
    cloud = splitwire.CloudSession(pair / "back.onnx")
    transport = splitwire.LoopbackTransport(cloud.handle)
    with splitwire.EdgeSession(pair / "front.onnx", transport=transport) as session:
        return session.infer(x).outputs


def in_runtime(path: Path, x: np.ndarray) -> dict[str, Any]:
    """The outputs of the whole file in ONNX Runtime for a batch."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def check_pair(path: Path, cut: str = "r", batches: Sequence[int] = (1, 3), **options: Any) -> dict[str, np.ndarray]:
    """Export, run at each batch, and compare every output with ONNX Runtime's own; the last answers."""
    pair = export(path, cut, **options)
    ours: dict[str, np.ndarray] = {}
    for n in batches:
        x = pictures(n)
        ours, whole = answers(pair, x), in_runtime(path, x)
        for name, y in ours.items():
            assert y.dtype == whole[name].dtype, name
            assert y.shape == whole[name].shape, name
            np.testing.assert_allclose(y.astype(float), np.asarray(whole[name], float), atol=0.1)
    return ours
