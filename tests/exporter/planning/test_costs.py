"""Multiply–accumulates, parameters and bytes against figures counted by hand and those that torchvision publishes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torchvision
from exporter_helpers import SHAPE, network
from onnx import TensorProto, helper

from splitwire.exporter.cutting.cuts import find_cuts
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.source import Source, from_file, from_module
from splitwire.exporter.planning.costs import Costs, measure_costs
from splitwire.exporter.planning.devices import ESTIMATES, find_device


def costs_of(folder: Path, shape: tuple[int, ...], nodes: list[onnx.NodeProto], **weights: tuple[int, ...]) -> Costs:
    """Of a graph x → y with weights of these shapes."""
    made = [helper.make_tensor(n, TensorProto.FLOAT, s, np.zeros(math.prod(s))) for n, s in weights.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    leaving = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [entry], [leaving], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    path = folder / "g.onnx"
    path.write_bytes(model.SerializeToString())
    return measure_costs(from_file(path))


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["x", *inputs], ["y"], **attributes)


@pytest.mark.parametrize(
    ("shape", "made", "weights", "work", "macs"),
    [
        # every one of 5·4·4 outputs: 3 channels × 3 × 3
        ((3, 6, 6), node("Conv", "w"), {"w": (5, 3, 3, 3)}, "conv", 5 * 4 * 4 * 27),
        ((3, 6, 6), node("Conv", "w", strides=[2, 2], pads=[1] * 4), {"w": (5, 3, 3, 3)}, "conv", 5 * 3 * 3 * 27),
        ((6, 6, 6), node("Conv", "w", group=6), {"w": (6, 1, 3, 3)}, "depthwise", 6 * 4 * 4 * 9),
        ((64, 6, 6), node("Conv", "w", group=2), {"w": (8, 32, 1, 1)}, "conv", 8 * 6 * 6 * 32),
        # every one of 3·6·6 inputs is spread over 5 channels × 2 × 2
        ((3, 6, 6), node("ConvTranspose", "w"), {"w": (3, 5, 2, 2)}, "conv", 3 * 6 * 6 * 5 * 4),
        ((7,), node("Gemm", "w", transB=1), {"w": (11, 7)}, "matmul", 77),
        ((4, 7), node("MatMul", "w"), {"w": (7, 11)}, "matmul", 4 * 77),
        ((4, 7), node("Einsum", "w", equation="btd,de->bte"), {"w": (7, 11)}, "matmul", 4 * 77),
        ((4, 7), node("Einsum", "w", equation="...d,de->...e"), {"w": (7, 11)}, "matmul", 4 * 77),
        ((4, 7), node("Softmax"), {}, "other", 0),
    ],
)  # fmt: skip
def test_macs_by_hand(tmp_path, shape, made, weights, work, macs):
    (cost,) = costs_of(tmp_path, shape, [made], **weights).nodes
    assert (cost.work, cost.macs) == (work, macs)
    assert cost.parameters == sum(map(math.prod, weights.values()))
    assert cost.weight_bytes == 4 * cost.parameters


def constant(name: str, kind: int, shape: tuple[int, ...]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, [1] * math.prod(shape)))


def test_weights_in_constant_nodes_count_and_single_numbers_do_not(tmp_path):
    """As Paddle writes files: the same convolution, and a factor behind it."""
    nodes = [
        constant("w", TensorProto.FLOAT, (5, 3, 3, 3)), constant("half", TensorProto.FLOAT, ()),
        helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "half"], ["y"]),
    ]  # fmt: skip
    inside = costs_of(tmp_path, (3, 6, 6), nodes)
    beside = costs_of(tmp_path, (3, 6, 6), [node("Conv", "w")], w=(5, 3, 3, 3))
    assert inside.parameters == beside.parameters == 5 * 27
    assert inside.nodes[2] == beside.nodes[0]


def test_quantized_weights_count(tmp_path):
    nodes = [
        constant("q", TensorProto.INT8, (5, 3, 3, 3)), constant("s", TensorProto.FLOAT, ()),
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", "w"),
    ]  # fmt: skip
    assert costs_of(tmp_path, (3, 6, 6), nodes).parameters == 5 * 27


def test_attention_by_hand(tmp_path):
    """Two products of activations, behind a reshape that hides the batch."""
    made = [
        helper.make_node("Reshape", ["x", "split"], ["q"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "t"], ["s"]),
        helper.make_node("MatMul", ["s", "q"], ["y"]),
    ]
    split = helper.make_node("Constant", [], ["split"], value_ints=[-1, 3, 10, 8])
    counted = costs_of(tmp_path, (3, 10, 8), [split, *made])
    assert counted.macs == 2 * 3 * 10 * 10 * 8


def test_what_is_free(tmp_path):
    """A ReLU after a convolution costs nothing, one after anything else is paid by the byte; constants are folded."""
    made = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Exp", ["b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    conv, fused, exp, relu = costs_of(tmp_path, (3, 6, 6), made, w=(5, 3, 1, 1)).nodes
    assert [n.free for n in (conv, fused, exp, relu)] == [False, True, False, False]
    assert exp.bytes == relu.bytes == 2 * 4 * 5 * 36
    device = ESTIMATES["x86-core"]
    assert fused.seconds(device) == 0
    assert relu.seconds(device) == pytest.approx(relu.bytes / device.elementwise_bytes + 1e-6)
    assert conv.seconds(device) == pytest.approx(
        max(conv.macs / device.conv_macs, conv.bytes / device.elementwise_bytes) + 1e-6
    )


@pytest.fixture(scope="module")
def whole() -> Source:
    return from_module(network(), (1, *SHAPE))


def test_a_fixed_batch_is_divided_out(whole):
    model = whole.model.clone()
    model.graph.inputs[0].shape = ir.Shape([4, *SHAPE])
    fixed = Source(model=model, origin="onnx", input_shape=whole.input_shape, batch=4)
    assert measure_costs(fixed).macs == measure_costs(whole).macs


def test_prefixes(whole):
    costs = measure_costs(whole)
    cuts = find_cuts(whole.graph, Names.of(whole))
    device = find_device("raspberry-pi-4")
    for measure in (lambda p: costs.macs_before(p), lambda p: costs.seconds_before(p, device)):
        assert (np.diff([measure(c.position) for c in cuts]) >= 0).all()
    for cut in cuts:
        both = costs.seconds_before(cut.position, device) + costs.seconds_after(cut.position, device)
        assert both == pytest.approx(costs.seconds(device))
    # stem 3→8 at 8×8, three blocks of two 8→8 convolutions, fc 8→10
    assert costs.macs == 8 * 64 * 27 + 3 * 2 * 8 * 64 * 72 + 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_macs_are_those_that_torchvision_publishes(name):
    """And the parameters, but for batch norms folded into their convolutions, and equal ones that the export shares."""
    source = from_module(torchvision.models.get_model(name, weights=None), (1, 3, 224, 224))
    costs = measure_costs(source)
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    assert costs.macs / 1e9 == pytest.approx(published["_ops"], rel=0.005)
    assert costs.parameters == pytest.approx(published["num_params"], rel=0.02)
