"""Give each non-maximum suppression a limit, so that it stops early.

torchvision keeps the best N of the boxes that survive. ONNX Runtime's operator computes all survivors, in a time that
grows with boxes × survivors. With the limit N it stops after N. The detections do not change: the operator takes boxes
in the order of their scores, so the first N survivors are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LIMIT = 2
"""Index of the input of NonMaxSuppression that limits the number of boxes per class."""
LAST_INPUT = 4


def limit_suppression(graph: ir.Graph) -> int:
    """Limit each NonMaxSuppression of one image and one class to the number of boxes that a later slice keeps.

    Returns how many operators got a limit. An operator stays unchanged if other nodes read its result too.
    """
    limited = 0
    for node in list(graph):
        if node.op_type != "NonMaxSuppression" or node.domain not in ("", "ai.onnx") or not _one_class(node):
            continue
        kept = _kept(node.outputs[0])
        if kept is None:
            continue
        name = f"{node.outputs[0].name}_limit"
        value = ir.Value(
            name=name,
            shape=ir.Shape([1]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(np.array([kept], np.int64), name=name),
        )
        graph.register_initializer(value)
        node.replace_input_with(LIMIT, value)
        limited += 1
    return limited


def _one_class(node: ir.Node) -> bool:
    """Whether the scores have the shape (1, 1, boxes), one image and one class, and there is a limit to replace."""
    scores = node.inputs[1] if len(node.inputs) > LAST_INPUT - 1 else None
    return scores is not None and scores.shape is not None and list(scores.shape[:2]) == [1, 1]


def _kept(rows: ir.Value) -> int | None:
    """The number k if only the first k rows of (boxes, 3) are used; None if the pattern does not match.

    The pattern: the only reader takes the column of box indices, reshapes it to a vector, and takes its first k
    elements.
    """
    column = _only_reader(rows)
    if column is None or not _takes_boxes(column):
        return None
    reader = _only_reader(column.outputs[0])
    while reader is not None and (reader.op_type == "Squeeze" or _arguments(reader) == ["Reshape", [-1]]):
        reader = _only_reader(reader.outputs[0])
    match [] if reader is None else _arguments(reader):
        case ["Slice", [0], [int(end)], [0]] | ["Slice", [0], [int(end)], [0], [1]] if end > 0:
            return end
    return None


def _takes_boxes(node: ir.Node) -> bool:
    """Whether the node takes the third of the columns (image, class, box)."""
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) == 1 and _arguments(node)[1] in ([2], 2)
    return _arguments(node) in (["Slice", [2], [3], [1]], ["Slice", [2], [3], [1], [1]])


def _arguments(node: ir.Node) -> list[object]:
    """The operator and its inputs after the first: the numbers of a constant, None for all others."""
    return [node.op_type, *(_constant(v) for v in node.inputs[1:])]


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads the value, if there is only one and the value is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _constant(value: ir.Value | None) -> object:
    """The numbers of a constant, in nested lists; None if the value is no constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().tolist()
