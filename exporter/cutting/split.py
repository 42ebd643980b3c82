"""Split one graph into two at the tensors that separate it.

Requires a cut (cuts.find_cut). Ensures that both halves pass the ONNX checker, that the front goes from the network's
input to the cut, and that the back goes from the cut to the outputs. An initialiser is in both halves only if both read
it. Names, doc strings, metadata and the dynamic batch stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import ExportError, UnsupportedModel
from splitwire.exporter.network.dataflow import Flow, reads
from splitwire.exporter.network.inference import check_graph

from .separation import separation
from .sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Halves:
    """front: input → tensors at the cut, then `sizes`, then `early`. back: tensors at the cut, then `sizes` → the other
    outputs.

    early: names of the outputs that the front computes. sizes: names of int64 vectors that the front makes and the back
    reads: sizes of the front's tensors that are neither constant nor known from the shapes at the cut; mostly ().
    """

    front: ir.Model
    back: ir.Model
    early: tuple[str, ...]
    sizes: tuple[str, ...] = ()


def split(model: ir.Model, tensors: Sequence[str]) -> Halves:
    """Split `model` at the values named `tensors`. The model does not change; the halves share its weights.

    Raises UnsupportedModel if the rank of a tensor is not known, ExportError if a half does not pass the ONNX checker,
    ValueError if the tensors are not a cut (find_cut).
    """
    model = model.clone()
    graph = model.graph
    flow = Flow(graph)
    values = {v.name: v for v in flow.kinds}
    cut = [values[name] for name in tensors]
    parts = separation(flow, cut)
    if not parts.late or parts.crossing:
        raise ValueError(f"{', '.join(tensors)}: not a cut; find_cut was not asked")
    for value in cut:
        if value.shape is None:
            raise UnsupportedModel(f"how many axes {value.name!r} has cannot be inferred from the graph; cut elsewhere")
    early = [v for v in graph.outputs if v not in parts.late and v not in cut]
    sizes = Sizes(flow, cut, parts)
    front = _extract(graph, list(graph.inputs), [*cut, *sizes.sent, *early])
    sizes.redirect()
    back = _extract(graph, [*cut, *sizes.sent], list(parts.late))
    halves = Halves(
        front=_model(model, front),
        back=_model(model, back),
        early=tuple(str(v.name) for v in early),
        sizes=tuple(str(v.name) for v in sizes.sent),
    )
    _ensure(halves, tensors)
    return halves


def _extract(graph: ir.Graph, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Graph:
    """The part of `graph` between the values, as a new graph. The initialisers keep the order of the whole graph.

    (The extract() of onnx_ir misses values that the body of an If, Loop or Scan only returns from outside.)
    """
    boundary, nodes = set(inputs), set()
    stack = [v for v in outputs if v not in boundary]
    while stack:
        node = stack.pop().producer()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        stack += [v for v in reads(node) if v not in boundary]
    read = {v for node in nodes for v in reads(node)} | set(outputs)
    initialisers = [v for v in graph.initializers.values() if v in read and v not in boundary]
    computed = {v for node in nodes for v in node.outputs}
    loose = [v for v in graph.inputs if v in read and v not in boundary and v not in initialisers]
    if loose or any(v not in computed and v not in boundary and v not in initialisers for v in outputs):
        raise ExportError("internal: a half is not closed; please report this network")
    return ir.GraphView(
        inputs,
        outputs,
        nodes=[node for node in graph if node in nodes],
        initializers=initialisers,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name,
        metadata_props=graph.metadata_props,
    ).clone()


def _model(whole: ir.Model, graph: ir.Graph) -> ir.Model:
    return ir.Model(
        graph,
        ir_version=whole.ir_version,
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
        domain=whole.domain,
        model_version=whole.model_version,
        doc_string=whole.doc_string,
        functions=list(whole.functions.values()),
        metadata_props=dict(whole.metadata_props),
    )


def _ensure(halves: Halves, tensors: Sequence[str]) -> None:
    """Check the postconditions that need no run; verify.py compares the numbers."""
    front, back = halves.front.graph, halves.back.graph
    meeting = [*tensors, *halves.sizes]
    if [v.name for v in front.outputs][: len(meeting)] != meeting or [v.name for v in back.inputs] != meeting:
        raise ExportError(f"internal: the halves do not meet at {', '.join(tensors)}; please report this network")
    for side, half in (("front", halves.front), ("back", halves.back)):
        if reason := check_graph(half):
            raise ExportError(f"the {side} half does not pass the ONNX checker: {reason}")
