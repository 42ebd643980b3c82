"""The task of a network, from its graph, its labels and its caller. Nothing is guessed.

It decides whether the edge shows classes, boxes or segments (runtime_edge/findings.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.tasks import DETECTION, TASKS, Task, is_detector

_PASSED_THROUGH = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")
"""Nodes that may follow a softmax over the classes without changing that it is one."""


def task_of(graph: ir.Graph, labels: Sequence[str] | None, task: str | None = None) -> Task | None:
    """The task of a network: `task` if the caller gives one, otherwise the one that the outputs show.

    detection: there are outputs boxes, scores and labels. classification: the first output is (B, classes), and it ends
    in a softmax or has one class per label. segmentation: the first output is (B, classes, H, W) with one class per
    label. None: none of these. Raises UsageError for a task that does not fit the outputs.
    """
    names = [str(v.name) for v in graph.outputs]
    if task is not None:
        return _checked(task, graph, names)
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


def check_task(name: str) -> Task:
    """The task of this name. Raises UsageError if there is none."""
    for task in TASKS:
        if task == name:
            return task
    raise UsageError(f"a task is {', '.join(TASKS)}; got {name!r}")


def check_labels(graph: ir.Graph, labels: Sequence[str], task: str | None) -> None:
    """Raise UsageError if the number of classes of the network is known, and differs from the number of labels.

    It is known if the only output is (B, classes), or if the caller gives a task with classes.
    """
    ranks = {"segmentation": (4,), "detection": ()}.get(task or "", (2,))
    outputs = [v for v in graph.outputs if _is_float(v)]
    fitting = [(v, s) for v in outputs if (s := _shape(v)) is not None and len(s) in ranks]
    if len(fitting) != 1 or (task is None and len(graph.outputs) > 1):
        return
    (value, shape), count = fitting[0], len(labels)
    classes = shape[1]
    if classes is not None and classes > 1 and classes != count:
        more = "; is one of them for the background?" if abs(classes - count) == 1 else ""
        raise UsageError(
            f"there are {count} labels, and the network's output {value.name!r} has {classes} classes{more}"
        )


def _checked(name: str, graph: ir.Graph, names: Sequence[str]) -> Task:
    """The task of this name, if an output has the form that it needs. Raises UsageError."""
    task = check_task(name)
    shown = ", ".join(f"{v.name} {_shown(_shape(v))}" for v in graph.outputs)
    if task == "detection":
        if not is_detector(names):
            raise UsageError(f"task detection needs the outputs {', '.join(DETECTION)}; the network has {shown}")
        return task
    ranks = (2,) if task == "classification" else (3, 4)
    shapes = [_shape(v) for v in graph.outputs]
    if all(s is not None and len(s) not in ranks for s in shapes):
        form = "(batch, classes)" if task == "classification" else "(batch, classes, height, width)"
        raise UsageError(f"task {task} needs an output {form}; the network has {shown}")
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
