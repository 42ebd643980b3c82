"""What a network is for, as far as its graph, its labels and its caller say it; nothing is guessed.

The edge shows classes, boxes or segments by it (runtime_edge/findings.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from splitwire.codec.errors import UsageError
from splitwire.codec.tasks import DETECTION, TASKS, Task, is_detector

_PASSED_THROUGH = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")
"""Nodes behind which a softmax is still one over the classes."""


def task_of(graph: ir.Graph, labels: Sequence[str] | None, given: str | None = None) -> Task | None:
    """The task of a network: the one `given`, else what its outputs say.

    detection: outputs boxes, scores and labels. classification: the first output is (B, classes) with a softmax at its
    end or as many classes as there are labels. segmentation: the first output is (B, classes, H, W) with as many
    classes as there are labels. None: neither. Raises UsageError for a task that the outputs cannot be of.
    """
    names = [str(v.name) for v in graph.outputs]
    if given is not None:
        return _checked(given, graph, names)
    if is_detector(names):
        return "detection"
    if not graph.outputs:
        return None
    first = graph.outputs[0]
    shape = _shape(first)
    if shape is None or not _is_float(first):
        return None
    named = labels is not None and len(shape) > 1 and shape[1] == len(labels) and len(labels) > 1
    if len(shape) == 2 and shape[1] != 1 and (named or _ends_in_softmax(first)):
        return "classification"
    return "segmentation" if len(shape) == 4 and named else None


def check_task(given: str) -> Task:
    """`given` as a task. Raises UsageError."""
    for task in TASKS:
        if task == given:
            return task
    raise UsageError(f"a task is {', '.join(TASKS)}; got {given!r}")


def check_labels(graph: ir.Graph, labels: Sequence[str], given: str | None) -> None:
    """Raise UsageError where the network has another number of classes than there are labels.

    It is known where the one output is (B, classes), and where a task is `given` that has classes."""
    ranks = {"segmentation": (4,), "detection": ()}.get(given or "", (2,))
    outputs = [v for v in graph.outputs if _is_float(v)]
    fitting = [(v, s) for v in outputs if (s := _shape(v)) is not None and len(s) in ranks]
    if len(fitting) != 1 or (given is None and len(graph.outputs) > 1):
        return
    (value, shape), count = fitting[0], len(labels)
    classes = shape[1]
    if classes is not None and classes > 1 and classes != count:
        more = "; is one of them for the background?" if abs(classes - count) == 1 else ""
        raise UsageError(
            f"there are {count} labels, and the network's output {value.name!r} has {classes} classes{more}"
        )


def _checked(given: str, graph: ir.Graph, names: Sequence[str]) -> Task:
    """`given`, if any output can be what it needs."""
    task = check_task(given)
    shown = ", ".join(f"{v.name} {_shown(_shape(v))}" for v in graph.outputs)
    if task == "detection":
        if not is_detector(names):
            raise UsageError(f"task detection needs the outputs {', '.join(DETECTION)}; the network has {shown}")
        return task
    ranks = (2,) if task == "classification" else (3, 4)
    shapes = [_shape(v) for v in graph.outputs]
    if all(s is not None and len(s) not in ranks for s in shapes):
        wanted = "(batch, classes)" if task == "classification" else "(batch, classes, height, width)"
        raise UsageError(f"task {task} needs an output {wanted}; the network has {shown}")
    return task


def _ends_in_softmax(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _PASSED_THROUGH:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node is not None and node.op_type in ("Softmax", "LogSoftmax")


def _shape(value: ir.Value) -> tuple[int | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(n if isinstance(n, int) else None for n in value.shape)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _shown(shape: tuple[int | None, ...] | None) -> str:
    return "of any shape" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"
