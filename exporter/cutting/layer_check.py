"""Check that the tensor at the cut is the output of the torch module of that name.

torch's exporter merges nodes across modules: of two ReLUs in a row one remains, and a padding or a convolution is
merged into the operator after it. Then the values that leave the nodes of a module are not its output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import UsageError
from splitwire.exporter.network.dataflow import Kind
from splitwire.exporter.network.inference import Array, Float32Array, Graph, largest_difference
from splitwire.exporter.network.modules.passthrough import Call
from splitwire.exporter.network.source import Source, is_torchvision_detector

from .cuts import named
from .names import Names, Resolved, fits
from .torch_check import TORCH_TOLERANCE, arrays_of, run_module

CANDIDATES = 32
"""Largest number of tensors after the cut that are compared with the output of the module."""


def true_layer(
    module: torch.nn.Module, source: Source, names: Names, layer: str, inputs: Float32Array
) -> tuple[str, str | None]:
    """`layer`, or the tensors with its output in the form of `find_cut`; and a note if these differ.

    source: of the module; names: of its graph. inputs: of the network, (n, …).
    Raises UsageError if no tensor of the graph has the output of a named module, and the errors of `Names.resolve`.
    """
    resolved = [(name, r, _checkable(module, source, r)) for name, r in named(names, layer)]
    calls = {call for _, _, call in resolved if call is not None}
    if not calls:
        return layer, None
    x = np.resize(inputs, (source.batch or 1, *inputs.shape[1:]))
    returned = _returned(module, calls, x)
    ours = _computed(source, [v for _, r, call in resolved if call is not None for v in r.values], x)
    spec, notes = [], []
    for name, r, call in resolved:
        wanted = [] if call is None else returned.get(call, [])
        if _holds([ours[v] for v in r.values if v in ours], wanted):
            spec.append(name)
        elif moved := _elsewhere(source, names, r.values, wanted, x):
            spec += [str(v.name) for v in moved]
            at = ", ".join(names.label(v) for v in moved)
            notes.append(f"the ONNX export merged the end of {name!r} with what follows; what it returns is at {at}")
        elif call is not None and (after := _later(module, call, [ours[v] for v in r.values], x)):
            spec.append(name)
            notes.append(f"{name!r} was merged with {after!r} by the ONNX export; the cut is after {after!r}")
        else:
            tensors = ",".join(str(v.name) for v in r.values)
            raise UsageError(
                f"what layer {name!r} returns is not in the ONNX graph: its end was merged with what follows it; name"
                f" the layer before or after it, or cut before what was merged: --cut '{tensors}'"
            )
    return ",".join(spec) if notes else layer, "; ".join(notes) or None


def _checkable(module: torch.nn.Module, source: Source, resolved: Resolved) -> Call | None:
    """The call to compare with, or None.

    In a detector only calls in the backbone are compared: later values may depend on the last digit of a score.
    """
    call = resolved.call
    if call is None or call[0] not in source.modules or any(v.is_graph_input() for v in resolved.values):
        return None
    if is_torchvision_detector(module) and call[0].partition(".")[0] != "backbone":
        return None
    return call if all(isinstance(v.type, ir.TensorType) for v in resolved.values) else None


def _returned(module: torch.nn.Module, calls: Collection[Call], x: Float32Array) -> dict[Call, list[NDArray[Any]]]:
    """The outputs of the calls, copied before a later change in place."""
    outputs: dict[Call, list[NDArray[Any]]] = {}
    with ExitStack() as stack:
        for path in {path for path, _ in calls}:
            count = iter(range(1 << 31))

            def keep(_module: torch.nn.Module, _inputs: Any, output: Any, path: str = path, count: Any = count) -> None:
                call = (path, next(count))
                if call in calls:
                    outputs[call] = [np.array(a) for a in arrays_of(output)]

            stack.enter_context(module.get_submodule(path).register_forward_hook(keep))
        run_module(module, x)
    return outputs


def _computed(source: Source, values: Sequence[ir.Value], x: Float32Array) -> dict[ir.Value, Array]:
    """The values of the graph for a batch of inputs."""
    values = list(dict.fromkeys(values))
    model = source.model.clone()
    inside = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.clear()
    model.graph.outputs.extend(inside[str(v.name)] for v in values)
    RemoveUnusedNodesPass()(model)
    return dict(zip(values, Graph.of(model, what="network up to the cut", exact=True).run(x), strict=True))


def _holds(ours: Sequence[Array], wanted: Sequence[NDArray[Any]]) -> bool:
    """Whether each of our arrays is an output of the module, or each of its outputs is one of our arrays."""
    return all(any(_same(a, b) for b in wanted) for a in ours) or all(any(_same(a, b) for a in ours) for b in wanted)


def _same(ours: Array, wanted: NDArray[Any]) -> bool:
    """Whether the arrays are equal up to rounding and the shape of a row. (Exporters merge reshapes.)"""
    if len(np.atleast_1d(ours)) != len(np.atleast_1d(wanted)) or ours.size != wanted.size:
        return False
    a, b = (np.asarray(z, np.float64).reshape(-1) for z in (ours, wanted))
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) or 1.0
    return largest_difference([a / scale], [b / scale], by_output=True) <= TORCH_TOLERANCE


def _elsewhere(
    source: Source, names: Names, values: Sequence[ir.Value], wanted: Sequence[NDArray[Any]], x: Float32Array
) -> list[ir.Value]:
    """The values of the graph, after the first of `values`, that are equal to `wanted`; [] if one is missing."""
    flow = names.flow
    start = min((flow.made_at(v) for v in values), default=0)
    later = [
        value
        for value, kind in flow.kinds.items()
        if kind == Kind.ACTIVATION and value.name and not value.is_graph_input() and flow.made_at(value) >= start
        if value.dtype == ir.DataType.FLOAT and any(fits(value, a.shape[1:]) for a in wanted)
    ]
    later = sorted(later, key=flow.made_at)[:CANDIDATES]
    computed = _computed(source, later, x) if later else {}
    matches = [next((v for v in later if _same(computed[v], a)), None) for a in wanted]
    return [v for v in matches if v is not None] if None not in matches else []


def _later(module: torch.nn.Module, call: Call, ours: Sequence[Array], x: Float32Array) -> str | None:
    """The first module that returns our array after `call`."""
    if len(ours) != 1:
        return None
    ended, paths, count = False, list[str](), 0
    with ExitStack() as stack:
        for path, child in module.named_modules():

            def compare(_module: torch.nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
                nonlocal ended, count
                if ended and not paths and path and any(_same(ours[0], a) for a in arrays_of(output)):
                    paths.append(path)
                if path == call[0]:
                    ended, count = ended or count == call[1], count + 1

            stack.enter_context(child.register_forward_hook(compare))
        run_module(module, x)
    return paths[0] if paths else None
