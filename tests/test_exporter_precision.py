"""An int8 front and a float16 back: what they compute, what they keep, and how they are chosen."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exporter_helpers import SHAPE, inputs
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.exporter import graph
from splitwire.exporter.cuts import find_cut
from splitwire.exporter.inference import Graph, serialise, weight_bytes
from splitwire.exporter.names import Names
from splitwire.exporter.precision import float16_back, int8_front
from splitwire.exporter.split import Halves, split


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x


class Small(nn.Module):
    """What mobile networks are made of: ReLU6, a depthwise convolution, hard swish, a fire module, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.residual = Residual(16)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def fire(self, x: torch.Tensor) -> torch.Tensor:
        y = self.squeeze(x)
        return torch.cat([self.left(y), self.right(y)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.residual(self.fire(self.depth(self.stem(x))))))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> graph.Source:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    path.write_bytes(serialise(graph.from_module(Small(), (1, *SHAPE)).model))
    return graph.from_file(path, None)


def cut(source: graph.Source, layer: str) -> Halves:
    found, _ = find_cut(source, Names(source.graph, source.modules, source.seen), layer)
    return split(source.model, found.tensors)


def run(model: ir.Model, *arrays) -> list[np.ndarray]:
    return Graph.of(model, what="half").run(*arrays)


def decibels(exact: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise."""
    return float(10 * np.log10(np.square(exact).mean() / np.square(exact - other).mean()))


def operators(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def ends(model: ir.Model) -> list[tuple]:
    return [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]


@pytest.mark.parametrize("layer", ["depth", "squeeze", "left,right", "residual"])
def test_int8_front(source, layer):
    halves = cut(source, layer)
    front, before = halves.front, serialise(halves.front)
    x = inputs(24)
    made = int8_front(front, list(x[:16]))
    assert serialise(front) == before
    assert ends(made) == ends(front)
    assert made.graph.name == front.graph.name
    assert dict(made.graph.metadata_props) == dict(front.graph.metadata_props)
    assert made.opset_imports == front.opset_imports
    quantized = {v.dtype for v in made.graph.initializers.values()}
    assert ir.DataType.INT8 in quantized
    for exact, coarse in zip(run(front, x), run(made, x), strict=True):
        assert coarse.dtype == np.float32
        assert 25 < decibels(exact, coarse) < 60  # int8, and not float32 in disguise; the last 8 inputs are new to it
        assert len(np.unique(coarse)) > 2 * 256  # what crosses is not on an 8-bit grid


def test_weights_have_a_scale_per_channel(source):
    made = int8_front(cut(source, "squeeze").front, list(inputs(4)))
    scales = [
        node.inputs[1].const_value.shape
        for node in made.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].const_value is not None
        and node.inputs[0].const_value.dtype == ir.DataType.INT8
    ]  # fmt: skip
    assert [tuple(s) for s in scales] == [(16,), (16,)]  # stem and depth; squeeze makes the output and stays float32


def test_the_same_front_twice_is_the_same_bytes(source):
    front = cut(source, "left,right").front
    assert serialise(int8_front(front, list(inputs(9)))) == serialise(int8_front(front, list(inputs(9))))


def test_a_cut_tensor_that_the_front_reads_itself_is_put_out_unrounded():
    """From x a convolution makes y, an output, and from y others make z, an output: these read y
    in int8, the output y stays exact."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 4 if i else 3, 1, 1)).astype(np.float32), f"w{i}") for i in range(3)
    ]
    nodes = [helper.make_node("Conv", [a, f"w{i}"], [b]) for i, (a, b) in enumerate(["xy", "yt", "tz"])]  # no names
    values = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 8, 8])
        for n, c in (("x", 3), ("y", 4), ("z", 4))
    }
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    front = ir.from_proto(proto)
    x = inputs(8, (3, 8, 8))
    made = int8_front(front, list(x))
    (y, z), (y8, z8) = run(front, x), run(made, x)
    assert [v.name for v in made.graph.outputs] == ["y", "z"]
    assert np.allclose(y8, y, atol=1e-6)
    assert 25 < decibels(z, z8) < 60


def test_a_fixed_batch_is_filled_up(source):
    proto = ir.to_proto(cut(source, "squeeze").front)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    made = int8_front(ir.from_proto(proto), list(inputs(6)))
    assert run(made, inputs(4))[0].shape[0] == 4


def test_a_batch_norm_is_folded_first():
    """As a graph from elsewhere has it: convolution and batch norm apart."""
    rng = np.random.default_rng(0)
    numbers = {
        "w": rng.normal(size=(6, 3, 3, 3)), "v": rng.normal(size=(4, 6, 1, 1)), "scale": rng.uniform(0.01, 3, 6),
        "bias": rng.normal(size=6), "mean": rng.normal(size=6), "var": rng.uniform(0.1, 9, 6),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "act"),
        helper.make_node("Conv", ["c", "v"], ["y"], "last"),
    ]
    graph_ = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    front = ir.from_proto(model)
    x = inputs(8, (3, 8, 8))
    made = int8_front(front, list(x))
    assert "BatchNormalization" not in operators(made)
    assert set(made.opset_imports) == {""}
    assert decibels(run(front, x)[0], run(made, x)[0]) > 25


@pytest.mark.parametrize("layer", ["stem", "depth"])
def test_float16_back(source, layer):
    halves = cut(source, layer)
    made = float16_back(halves.back)
    features = run(halves.front, inputs(16))[:1]
    exact, half = run(halves.back, *features)[0], run(made, *features)[0]
    assert ends(made) == ends(halves.back)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 5e-3 * np.abs(exact).max()
    assert (half.argmax(1) == exact.argmax(1)).mean() > 0.9
    assert weight_bytes(made) < 0.52 * weight_bytes(halves.back)  # shapes are int64 in both
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_normalisations_stay_float32():
    """In float16 ONNX Runtime 1.32 crashes on them, or gives garbage from the second run on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(8 * 36), nn.Linear(8 * 36, 10))
    source = graph.from_module(net, (1, 3, 8, 8))
    halves = cut(source, "1")
    made = float16_back(halves.back)
    (norm,) = [n for n in made.graph if n.op_type == "LayerNormalization"]
    assert norm.inputs[0].producer().op_type == "Cast", [str(v) for v in norm.inputs]
    assert {v.dtype for v in norm.inputs} == {ir.DataType.FLOAT}
    features = run(halves.front, inputs(4, (3, 8, 8)))
    half = Graph.of(made, what="half")
    first, second = half.run(*features)[0], half.run(*features)[0]
    assert np.array_equal(first, second)
    assert np.abs(first - run(halves.back, *features)[0]).max() < 5e-3


def test_the_tools_leave_logging_alone(source):
    before = list(logging.getLogger().handlers)
    halves = cut(source, "squeeze")
    int8_front(halves.front, list(inputs(2)))
    float16_back(halves.back)
    assert logging.getLogger().handlers == before


def test_refusals(source, tmp_path: Path, monkeypatch):
    halves = cut(source, "stem")
    with pytest.raises(UnsupportedModel, match=r"nothing in the front can be int8: .* cut later"):
        int8_front(halves.front, list(inputs(2)))
    with pytest.raises(UsageError, match="needs calibration inputs"):
        int8_front(cut(source, "squeeze").front, [])

    def broken(*_, **__):
        raise KeyError("no\nsuch tensor")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", broken)
    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", broken)
    with pytest.raises(UnsupportedModel, match=r"quantizer does not take the front half: KeyError: [^\n]*such tensor"):
        int8_front(cut(source, "squeeze").front, list(inputs(2)))
    with pytest.raises(UnsupportedModel, match=r"converter does not take the back half: KeyError: [^\n]*such tensor"):
        float16_back(halves.back)
