"""Graphs in torch: each operator against ONNX Runtime, gradients against differences, raw heads before what selects."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import SHAPE, inputs, network
from onnx import TensorProto, helper, numpy_helper

from splitwire.exporter.network.differentiable.graph import TorchGraph, open_in_torch
from splitwire.exporter.network.differentiable.operators import OPERATORS, NotInTorch
from splitwire.exporter.network.source import from_module

CPU = torch.device("cpu")
MAP = (2, 4, 6, 6)
ROWS = (2, 5, 8)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def graph(nodes: list[Any], shape: tuple[int, ...], constants: dict[str, np.ndarray], opset: int) -> ir.Model:
    """X → y; shape: of x."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(model)


def one(kind: str, shape: tuple[int, ...], *constants: np.ndarray | None, opset: int = 17, **attributes: Any) -> Any:
    """One operator on x and constants."""
    names = ["x", *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    given = {f"c{i}": c for i, c in enumerate(constants) if c is not None}
    return graph([helper.make_node(kind, names, ["y"], **attributes)], shape, given, opset), shape


CASES = {
    "Conv": one("Conv", MAP, floats(8, 2, 3, 3), floats(8), group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
    "Conv, padded below": one("Conv", MAP, floats(8, 4, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2]),
    "Conv, SAME_LOWER": one("Conv", MAP, floats(8, 4, 4, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv, one axis": one("Conv", ROWS, floats(3, 5, 3), dilations=[2]),
    "ConvTranspose": one(
        "ConvTranspose", MAP, floats(4, 3, 3, 3), floats(3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    "BatchNormalization": one(
        "BatchNormalization", MAP, floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.1, epsilon=1e-3
    ),
    "MaxPool": one("MaxPool", MAP, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, ceil": one("MaxPool", MAP, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool, padded below": one("MaxPool", MAP, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "AveragePool": one("AveragePool", MAP, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
    "AveragePool, with padding": one(
        "AveragePool", MAP, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "Gemm": one("Gemm", (3, 8), floats(5, 8), floats(5), transB=1, alpha=0.5, beta=2.0),
    "MatMul": one("MatMul", ROWS, floats(8, 3)),
    "Clip": one("Clip", MAP, np.array(-0.5, np.float32), np.array(0.5, np.float32)),
    "Clip, above": one("Clip", MAP, None, np.array(0.5, np.float32)),
    "Clip, older": one("Clip", MAP, opset=6, min=-0.5, max=0.5),
    "Gelu": one("Gelu", MAP, opset=20),
    "Gelu, tanh": one("Gelu", MAP, opset=20, approximate="tanh"),
    "Softmax": one("Softmax", ROWS, axis=1),
    "Softmax, older": one("Softmax", ROWS, opset=11, axis=1),
    "LogSoftmax": one("LogSoftmax", ROWS),
    "LayerNormalization": one("LayerNormalization", ROWS, floats(8), floats(8), axis=-1, epsilon=1e-3),
    "GroupNormalization": one("GroupNormalization", MAP, floats(4), floats(4), opset=21, num_groups=2),
    "InstanceNormalization": one("InstanceNormalization", MAP, floats(4), floats(4)),
    "LRN": one("LRN", MAP, size=3, alpha=0.1),
    "PRelu": one("PRelu", MAP, floats(4, 1, 1)),
    "LeakyRelu": one("LeakyRelu", MAP, alpha=0.2),
    "Elu": one("Elu", MAP, alpha=0.7),
    "HardSigmoid": one("HardSigmoid", MAP, alpha=1 / 6, beta=0.5),
    "ReduceMean": one("ReduceMean", MAP, axes=[2, 3], keepdims=0),
    "ReduceMean, 18": one("ReduceMean", MAP, ints(-1), opset=18),
    "ReduceSum": one("ReduceSum", MAP, ints(1), keepdims=0),
    "ReduceL2": one("ReduceL2", MAP, axes=[1]),
    "ReduceMax": one("ReduceMax", MAP, axes=[1, 2]),
    "ReduceMin, all": one("ReduceMin", MAP),
    "ReduceSumSquare": one("ReduceSumSquare", MAP, axes=[1]),
    "Reshape": one("Reshape", MAP, ints(0, 2, -1)),
    "Flatten": one("Flatten", MAP, axis=2),
    "Transpose": one("Transpose", MAP, perm=[0, 2, 3, 1]),
    "Transpose, reversed": one("Transpose", ROWS),
    "Squeeze": one("Squeeze", (2, 1, 4, 1), ints(1)),
    "Unsqueeze": one("Unsqueeze", ROWS, ints(-1, 1)),
    "Slice": one("Slice", MAP, ints(1, -1), ints(3, -100), ints(1, 3), ints(1, -2)),
    "Slice, beyond": one("Slice", MAP, ints(2), ints(2**62), ints(2)),
    "Gather": one("Gather", MAP, np.array([[0, -1], [2, 1]]), axis=1),
    "Gather, one": one("Gather", MAP, np.array(2), axis=-1),
    "Pad": one("Pad", MAP, ints(0, 0, 1, 2, 0, 0, 3, 0), np.array(1.5, np.float32)),
    "Pad, reflect": one("Pad", MAP, ints(0, 0, 1, 2, 0, 0, 3, 0), mode="reflect"),
    "Expand": one("Expand", (2, 1, 3), ints(2, 4, 1)),
    "Tile": one("Tile", ROWS, ints(1, 2, 3)),
    "Resize, nearest": one(
        "Resize", MAP, None, np.array([1, 1, 2, 2], np.float32), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "Resize, linear": one("Resize", MAP, None, None, ints(2, 4, 9, 15), mode="linear"),
    "Resize, corners": one(
        "Resize", MAP, None, None, ints(2, 4, 9, 15), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "DepthToSpace": one("DepthToSpace", MAP, blocksize=2),
    "DepthToSpace, CRD": one("DepthToSpace", MAP, blocksize=2, mode="CRD"),
    "GlobalAveragePool": one("GlobalAveragePool", MAP),
    "GlobalMaxPool": one("GlobalMaxPool", MAP),
    "Einsum": one("Einsum", ROWS, floats(8, 3), equation="bij,jk->bik"),
    "Concat": one("Concat", ROWS, floats(2, 1, 8), axis=1),
    "Pow": one("Pow", MAP, np.array(2, np.float32)),
    "Max": one("Max", MAP, floats(4, 1, 1), floats(6)),
    "Sum": one("Sum", MAP, floats(4, 1, 1), floats(6)),
    **{k: one(k, MAP, floats(4, 1, 1)) for k in ("Add", "Sub", "Mul", "Div")},
    **{
        k: one(k, MAP)
        for k in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "HardSwish", "Softplus", "Selu", "Sin", "Cos")
    },
    "Mish": one("Mish", MAP, opset=18),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_equal_onnx_runtime(case):
    model, shape = CASES[case]
    x = floats(*shape)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    with torch.no_grad():
        (ours,) = TorchGraph(model, CPU)(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_split_and_what_is_computed_of_shapes():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"], axis=0),
        helper.make_node("Concat", ["b", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["r"]),
        helper.make_node("Split", ["r", "sizes"], ["p", "q"], axis=1),
        helper.make_node("Mul", ["p", "q"], ["y"]),
    ]
    model = graph(nodes, (2, 12), {"first": ints(0), "rest": ints(2, -1), "sizes": ints(1, 1)}, 17)
    x = floats(2, 12)
    (y,) = TorchGraph(model, CPU)(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), x.reshape(2, 2, 6)[:, :1] * x.reshape(2, 2, 6)[:, 1:], rtol=1e-6)


@pytest.mark.slow
def test_a_module_gives_the_same_gradients_as_its_graph():
    module = network().eval()
    model = from_module(module, (1, *SHAPE)).model
    x = torch.from_numpy(inputs(3))
    made = open_in_torch(model, [x.numpy()])
    assert made.whole
    gradients = []
    for run in (module, lambda z: made(z)[0]):
        z = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(run(z).log_softmax(1)[:, 2].sum(), z)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_what_selects_boxes_leaves_the_raw_heads():
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["heads"]),
        helper.make_node("Sigmoid", ["heads"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["best", "places"], axis=1),
        helper.make_node("Mul", ["best", "two"], ["y"]),
    ]
    made = TorchGraph(graph(nodes, (3, 9), {"two": np.array(2, np.float32), "k": ints(4)}, 17), CPU)
    assert made.names == ("scores",)
    assert not made.whole
    x = floats(3, 9)
    np.testing.assert_allclose(made(torch.from_numpy(x))[0].numpy(), 1 / (1 + np.exp(-2 * x)), rtol=1e-5)


def test_a_selection_of_scores_is_no_head_of_its_own():
    """Centres, and the largest of each centre's neighbours; scores of proposals, level by level."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["scores"]),
        helper.make_node("MaxPool", ["scores"], ["near"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("GreaterOrEqual", ["scores", "near"], ["surest"]),
        helper.make_node("Split", ["scores"], ["low", "high"], axis=2),
        helper.make_node("TopK", ["low", "k"], ["best", "places"], axis=2),
        helper.make_node("Cast", ["surest"], ["numbers"], to=1),
        helper.make_node("Add", ["numbers", "high_twice"], ["sums"]),
        helper.make_node("Concat", ["high", "high"], ["high_twice"], axis=2),
        helper.make_node("Concat", ["sums", "best"], ["y"], axis=2),
    ]
    nodes[6], nodes[7] = nodes[7], nodes[6]
    made = TorchGraph(graph(nodes, (2, 1, 8), {"k": ints(2)}, 17), CPU)
    assert "near" not in made.names
    assert "low" not in made.names
    assert made.ranked[made.names.index("scores")]


def test_features_that_are_pooled_within_boxes_are_heads():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["best", "places"], axis=1),
        helper.make_node("Reshape", ["best", "four"], ["boxes"]),
        helper.make_node("RoiAlign", ["x", "boxes", "first"], ["pooled"], output_height=2, output_width=2),
        helper.make_node("Relu", ["pooled"], ["y"]),
    ]
    constants = {"w": floats(4, 3, 1, 1), "k": ints(1), "four": ints(-1, 4), "first": ints(0)}
    model = graph(nodes, (1, 3, 4, 1), constants, 17)
    model.graph.inputs[0].shape = ir.Shape([1, 3, 4, 1])
    x = floats(1, 3, 4, 1)
    made = open_in_torch(model, [x])
    assert made.names == ("scores", "x")
    assert made.ranked == (True, False)
    np.testing.assert_array_equal(made(torch.from_numpy(x))[1].numpy(), x)


def test_what_torch_does_not_have_is_named():
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Relu", ["d"], ["y"])]
    with pytest.raises(NotInTorch, match="no gradients reach"):
        TorchGraph(graph(nodes, (2, 3, 3), {}, 17), CPU)
    assert "Det" not in OPERATORS


def test_a_graph_that_disagrees_is_refused(monkeypatch):
    monkeypatch.setitem(OPERATORS, "Relu", lambda c: c[0])
    model = graph([helper.make_node("Relu", ["x"], ["y"])], (2, 8), {}, 17)
    with pytest.raises(NotInTorch, match="disagree"):
        open_in_torch(model, [floats(2, 8)])


def test_a_fixed_batch_runs_one_by_one():
    model = graph([helper.make_node("Reshape", ["x", "s"], ["y"])], (1, 6), {"s": ints(1, 3, 2)}, 17)
    model.graph.inputs[0].shape = ir.Shape([1, 6])
    x = floats(5, 6)
    np.testing.assert_array_equal(TorchGraph(model, CPU)(torch.from_numpy(x))[0].numpy(), x.reshape(5, 3, 2))


def test_a_fixed_batch_is_filled_up():
    model = graph([helper.make_node("Mul", ["x", "two"], ["y"])], (4, 6), {"two": np.array(2, np.float32)}, 17)
    model.graph.inputs[0].shape = ir.Shape([4, 6])
    x = floats(6, 6)
    np.testing.assert_array_equal(TorchGraph(model, CPU)(torch.from_numpy(x))[0].numpy(), 2 * x)


def test_heads_of_one_image_get_an_axis_for_the_batch():
    """A torchvision detector's scores are (boxes, classes)."""
    model = graph([helper.make_node("Reshape", ["x", "s"], ["y"])], (1, 6), {"s": ints(3, 2)}, 17)
    model.graph.inputs[0].shape = ir.Shape([1, 6])
    x = floats(5, 6)
    made = open_in_torch(model, [x[:1]])
    np.testing.assert_array_equal(made(torch.from_numpy(x))[0].numpy(), x.reshape(5, 3, 2))
    made.check_rows([torch.from_numpy(x)])


def test_outputs_without_a_row_for_each_image_are_named():
    made = TorchGraph(graph([helper.make_node("Reshape", ["x", "s"], ["y"])], (2, 6), {"s": ints(-1, 3)}, 17), CPU)
    with pytest.raises(NotInTorch, match="the first axis of 'y' is not the batch"):
        made.check_rows([torch.from_numpy(floats(2, 6))])
