"""Non-maximum suppression that stops where the rest would be dropped.

torchvision keeps the best N boxes of all that survive; ONNX Runtime's operator would look for all of them, which takes
a time that grows with (boxes × survivors). Told N, it stops there. What is detected does not change: it takes the boxes
best score first, and the first N that survive are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LIMIT = 2
"""Which input of NonMaxSuppression is the largest number of boxes per class."""
LAST_INPUT = 4


def limit_suppression(graph: ir.Graph) -> int:
    """Give each NonMaxSuppression of one image and one class the number of boxes that a slice behind it keeps.

    Returns how many were given one. Those whose result anything else reads stay as they are.
    """
    found = 0
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
        found += 1
    return found


def _one_class(node: ir.Node) -> bool:
    """Whether the scores are those of one image and one class, (1, 1, boxes), and there is a limit to replace."""
    scores = node.inputs[1] if len(node.inputs) > LAST_INPUT - 1 else None
    return scores is not None and scores.shape is not None and list(scores.shape[:2]) == [1, 1]


def _kept(rows: ir.Value) -> int | None:
    """The number k of first rows of (boxes, 3) that are used; None if the pattern does not match.

    The pattern: the only reader takes the column of box indices, makes it a vector, and takes its first k elements.
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
    """Whether it takes the third of the columns image, class, box."""
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) == 1 and _arguments(node)[1] in ([2], 2)
    return _arguments(node) in (["Slice", [2], [3], [1]], ["Slice", [2], [3], [1], [1]])


def _arguments(node: ir.Node) -> list[object]:
    """The operator and what constants it reads behind its first input; None for what is not constant."""
    return [node.op_type, *(_constant(v) for v in node.inputs[1:])]


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, which does not leave the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _constant(value: ir.Value | None) -> object:
    """The numbers of a constant, in lists."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().tolist()
