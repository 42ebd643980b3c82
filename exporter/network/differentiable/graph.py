"""An ONNX graph run by torch, so that gradients flow from its outputs to its inputs; its weights stay as they are.

Requires a graph of operators.py's operators between its inputs and what it gives. What it gives are the graph's
outputs, or, where what selects boxes stands before them, the last values through which gradients flow: the raw heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from splitwire.exporter.network.dataflow import Flow, Kind, is_size_op, reads
from splitwire.exporter.network.inference import Array, Graph

from .operators import DIFFERENTIABLE, OPERATORS, Call, NotInTorch

TOLERANCE = 1e-3
"""Largest difference from ONNX Runtime, relative to the largest value of an output, at which a graph counts as the
same network: kernels differ by 1e-5."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class _Step:
    """One node, ready to run."""

    node: ir.Node
    attributes: Mapping[str, Any]


class TorchGraph:
    """A graph in torch. names: of the values that it gives. whole: whether these are all outputs of the graph. ranked:
    of each value, whether a node orders what it reads by it: scores. device: where its weights are."""

    def __init__(self, model: ir.Model, device: torch.device) -> None:
        """Raises NotInTorch, with the operator's name, for a graph that cannot be run here."""
        graph = model.graph
        self.device, self._opset = device, int(model.opset_imports.get("", 0))
        self._inputs = list(graph.inputs)
        flow = Flow(graph)
        self._targets = _targets(flow)
        if not self._targets:
            raise NotInTorch("no gradients reach the inputs")
        self.names = tuple(str(v.name) for v in self._targets)
        self.whole = set(self._targets) >= set(graph.outputs)
        self.ranked = tuple(_is_ranked(v) for v in self._targets)
        entry = graph.inputs[0].shape
        self._batch = entry[0] if entry is not None and isinstance(entry[0], int) else None
        self._constants: dict[ir.Value, Tensor] = {}
        for value in graph.initializers.values():
            if value.const_value is not None:
                self._constants[value] = self._tensor(value.const_value.numpy())
        needed = _needed(self._targets)
        self._steps: list[_Step] = []
        with torch.no_grad():
            for node in flow.nodes:
                if node not in needed:
                    continue
                step = self._step(node)
                if all(flow.kind(v) == Kind.CONSTANT for v in node.outputs):
                    self._run(step, self._constants)
                else:
                    self._steps.append(step)
        used = {v for step in self._steps for v in reads(step.node)}
        self._constants = {v: t for v, t in self._constants.items() if v in used}

    def __call__(self, *features: Tensor) -> list[Tensor]:
        """The values `names`, (B, …), for one batch of inputs, (B, …) float32 on the device."""
        if self._batch is not None and len(features[0]) != self._batch:
            count = len(features[0])
            filled = [torch.cat([f, f[-1:].expand(-count % self._batch, *f.shape[1:])]) for f in features]
            parts = [self(*piece) for piece in zip(*(torch.split(f, self._batch) for f in filled), strict=True)]
            return [torch.cat(each)[:count] for each in zip(*parts, strict=True)]
        values = dict(self._constants)
        values.update(zip(self._inputs, features, strict=True))
        for step in self._steps:
            self._run(step, values)
        outputs = [values[v] for v in self._targets]
        # a detector for one image gives its heads without an axis for the batch
        return [y if y.dim() and len(y) == 1 else y[None] for y in outputs] if self._batch == 1 else outputs

    @property
    def constants(self) -> list[Tensor]:
        """The weights and other constants that a run reads."""
        return list(self._constants.values())

    def check_rows(self, features: Sequence[Tensor]) -> None:
        """Raise NotInTorch where what it gives has not one row for each of these inputs."""
        with torch.no_grad():
            outputs = self(*(f.to(self.device) for f in features))
        for name, y in zip(self.names, outputs, strict=True):
            if y.dim() == 0 or len(y) != len(features[0]):
                raise NotInTorch(f"the first axis of {name!r} is not the batch")

    def agrees(self, features: Sequence[Array], reference: Mapping[str, Array]) -> bool:
        """Whether it gives, for these inputs, what ONNX Runtime gives."""
        with torch.no_grad():
            try:
                outputs = self(*(self._tensor(np.asarray(f)) for f in features))
            except (RuntimeError, ValueError, IndexError, TypeError):
                return False
        for name, y in zip(self.names, outputs, strict=True):
            wanted = reference[name]
            if tuple(y.shape) not in (wanted.shape, (1, *wanted.shape)):
                return False
            scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
            if not float(np.abs(y.cpu().numpy() - wanted).max(initial=0.0)) <= TOLERANCE * scale:
                return False
        return True

    def _tensor(self, array: Array) -> Tensor:
        made = torch.from_numpy(np.array(array))
        return made.to(self.device) if made.is_floating_point() else made

    def _step(self, node: ir.Node) -> _Step:
        if node.domain not in ("", "ai.onnx") or node.op_type not in (*OPERATORS, "Constant"):
            raise NotInTorch(f"{node.domain or 'ONNX'}'s {node.op_type}")
        attributes: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            value = attribute.value
            if attribute.type == ir.AttributeType.TENSOR:
                value = self._tensor(value.numpy())
            attributes[name] = value
        return _Step(node, attributes)

    def _run(self, step: _Step, values: dict[ir.Value, Tensor]) -> None:
        node = step.node
        if node.op_type == "Constant":
            values[node.outputs[0]] = _constant(step.attributes, self.device)
            return
        inputs = [values[v] if v is not None else None for v in node.inputs]
        call = Call(inputs, step.attributes, sum(bool(v.name) for v in node.outputs), self._opset)
        try:
            result = OPERATORS[node.op_type](call)
        except NotInTorch as e:
            raise NotInTorch(f"{node.op_type}: {e}") from e
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip(node.outputs, results, strict=False))


def open_in_torch(model: ir.Model, features: Sequence[Array], device: torch.device | None = None) -> TorchGraph:
    """The graph in torch, on a GPU where torch has one, checked against ONNX Runtime on these inputs.

    Raises NotInTorch where it cannot be run, or does not agree.
    """
    graph = TorchGraph(model, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    probe = model.clone()
    values = ir.convenience.create_value_mapping(probe.graph, include_subgraphs=False)
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(values[name] for name in graph.names)
    session = Graph.of(probe, what="back half", brief=True)
    reference = dict(zip(session.outputs, session.run(*features), strict=True))
    if not graph.agrees(features, reference):
        raise NotInTorch("torch and ONNX Runtime disagree")
    return graph


def _constant(attributes: Mapping[str, Any], device: torch.device) -> Tensor:
    if "value" in attributes:
        value: Tensor = attributes["value"]
        return value
    for name, kind in (("float", torch.float32), ("int", torch.long)):
        for given in (attributes.get(f"value_{name}"), attributes.get(f"value_{name}s")):
            if given is not None:
                made = torch.tensor(given, dtype=kind)
                return made.to(device) if kind == torch.float32 else made
    raise NotInTorch("a constant of another type")


def _targets(flow: Flow) -> list[ir.Value]:
    """The graph's outputs to which gradients flow, and the last such values before what stops them."""
    smooth = set(flow.graph.inputs)
    ends: dict[ir.Value, None] = {}
    for node, needed in zip(flow.nodes, flow.needed, strict=True):
        if not needed:
            continue
        active = [v for v in reads(node) if flow.kind(v) == Kind.ACTIVATION]
        passes = node.domain in ("", "ai.onnx") and node.op_type in DIFFERENTIABLE
        if passes and active and all(v in smooth for v in active) and not is_size_op(node):
            smooth.update(v for v in node.outputs if v.dtype in (*_FLOATS, None))
        elif not is_size_op(node):
            ends.update(dict.fromkeys(v for v in active if v in smooth and v not in flow.graph.inputs))
    ends.update(dict.fromkeys(v for v in flow.graph.outputs if v in smooth and v not in flow.graph.inputs))
    if ends:  # what is pooled within boxes matters beside the heads that make the boxes
        ends.update(dict.fromkeys(v for v in flow.graph.inputs if any(u.node.op_type == "RoiAlign" for u in v.uses())))
    return [v for v in ends if v.is_graph_output() or not _selected_from(v, ends)]


_RANKING = frozenset({"TopK", "NonMaxSuppression", "ArgMax"})
"""Operators that order what they read: scores."""

_SAME_VALUES = frozenset({
    "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that give a selection of the values that they read."""


def _is_ranked(value: ir.Value) -> bool:
    """Whether a node orders the values, or a selection of them."""
    readers = [u.node for u in value.uses()]
    selections = [n for n in readers if n.op_type in _SAME_VALUES and n.inputs[0] is value]
    return any(n.op_type in _RANKING for n in readers) or any(_is_ranked(v) for n in selections for v in n.outputs)


def _selected_from(value: ir.Value, others: Collection[ir.Value]) -> bool:
    """Whether a value has only values of one of the others, in another form."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_VALUES and node.inputs[0] is not None:
        if node.inputs[0] in others:
            return True
        node = node.inputs[0].producer()
    return False


def _needed(targets: Sequence[ir.Value]) -> set[ir.Node]:
    nodes: set[ir.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += reads(node)
    return nodes
