"""Non-maximum suppression that stops where the rest would be dropped: on graphs written by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from splitwire.exporter.network.adapting.suppression import limit_suppression

BOXES = 400
ALL = 1 << 62


def model(column: str = "Slice", start: int = 0, end: int = 7, *, counted: bool = False, images: int = 1) -> ir.Model:
    """boxes, scores → the indices kept. counted: their number is asked for as well."""
    constants = {
        "most": [ALL], "iou": np.array([0.5], np.float32), "two": [2], "three": [3], "one": [1], "flat": [-1],
        "start": [start], "end": [end], "zero": [0],
    }  # fmt: skip
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["rows"]),
        helper.make_node("Slice", ["rows", "two", "three", "one"], ["column"])
        if column == "Slice"
        else helper.make_node("Gather", ["rows", "two"], ["column"], axis=1),
        helper.make_node("Reshape", ["column", "flat"], ["kept"]),
        helper.make_node("Slice", ["kept", "start", "end", "zero"], ["first"]),
    ]
    outputs = [helper.make_tensor_value_info("first", TensorProto.INT64, [None])]
    if counted:
        nodes.append(helper.make_node("Shape", ["kept"], ["count"]))
        outputs.append(helper.make_tensor_value_info("count", TensorProto.INT64, [1]))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [images, BOXES, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [images, 1, BOXES]),
        ],
        outputs,
        [onnx.numpy_helper.from_array(np.array(v), n) for n, v in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def answers(model: ir.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    corners = rng.random((1, BOXES, 2), np.float32) * 30
    boxes = np.concatenate([corners, corners + 1 + 10 * rng.random((1, BOXES, 2), np.float32)], axis=2)
    scores = rng.integers(1, 50, (1, 1, BOXES)).astype(np.float32)  # some are equal
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"boxes": boxes, "scores": scores})
    return outputs


def limit(model: ir.Model) -> int:
    node = next(n for n in model.graph if n.op_type == "NonMaxSuppression")
    assert node.inputs[2] is not None
    value = ir.convenience.get_const_tensor(node.inputs[2])
    assert value is not None
    return int(value.numpy().item())


@pytest.mark.parametrize("column", ["Slice", "Gather"])
@pytest.mark.parametrize("end", [1, 7, 1000])
def test_the_same_boxes(column, end):
    limited = model(column, end=end)
    assert limit_suppression(limited.graph) == 1
    assert limit(limited) == end
    (expected,), (found,) = answers(model(column, end=end)), answers(limited)
    assert 0 < len(found) <= end
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "other", [{"counted": True}, {"start": 1}, {"end": -1}, {"images": 2}], ids=lambda o: next(iter(o))
)
def test_what_more_is_read_of_stays(other):
    whole = model(**other)
    assert limit_suppression(whole.graph) == 0
    assert limit(whole) == ALL
