"""Does the tensor at the cut hold what the torch module of that name returns?

torch's exporter merges nodes across modules: of a ReLU behind a ReLU one is left, a padding goes into the convolution
after it, a convolution into the batch norm after it. What then leaves the nodes of a module is not what it returns.
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
from splitwire.exporter.network.passthrough import Call
from splitwire.exporter.network.source import Source, is_torchvision_detector

from .cuts import named
from .names import Names, Resolved, fits
from .torch_check import TORCH_TOLERANCE, arrays_of, run_module

CANDIDATES = 32
"""Tensors after the cut that are compared with what the module returns."""


def true_layer(
    module: torch.nn.Module, source: Source, names: Names, layer: str, inputs: Float32Array
) -> tuple[str, str | None]:
    """`layer`, or the tensors that hold what it returns, as `find_cut` takes them; and a note where that is not plain.

    source: of the module; names: of its graph. inputs: of the network, (n, …).
    Raises UsageError where no tensor of the graph holds what a named module returns, and what `Names.resolve` raises.
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
    """The call to compare with; None where there is none. Of a detector that is its backbone: what comes later may hang
    on the last digit of a score."""
    call = resolved.call
    if call is None or call[0] not in source.modules or any(v.is_graph_input() for v in resolved.values):
        return None
    if is_torchvision_detector(module) and call[0].partition(".")[0] != "backbone":
        return None
    return call if all(isinstance(v.type, ir.TensorType) for v in resolved.values) else None


def _returned(module: torch.nn.Module, calls: Collection[Call], x: Float32Array) -> dict[Call, list[NDArray[Any]]]:
    """What the calls return, before anything changes it in place."""
    found: dict[Call, list[NDArray[Any]]] = {}
    with ExitStack() as stack:
        for path in {path for path, _ in calls}:
            count = iter(range(1 << 31))

            def keep(_module: torch.nn.Module, _inputs: Any, output: Any, path: str = path, count: Any = count) -> None:
                call = (path, next(count))
                if call in calls:
                    found[call] = [np.array(a) for a in arrays_of(output)]

            stack.enter_context(module.get_submodule(path).register_forward_hook(keep))
        run_module(module, x)
    return found


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
    """Whether the module returns each of our arrays, or they hold all that it returns."""
    return all(any(_same(a, b) for b in wanted) for a in ours) or all(any(_same(a, b) for a in ours) for b in wanted)


def _same(ours: Array, wanted: NDArray[Any]) -> bool:
    """Up to rounding, and to the shape of a row: exporters merge what only reshapes."""
    if len(np.atleast_1d(ours)) != len(np.atleast_1d(wanted)) or ours.size != wanted.size:
        return False
    a, b = (np.asarray(z, np.float64).reshape(-1) for z in (ours, wanted))
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) or 1.0
    return largest_difference([a / scale], [b / scale], by_output=True) <= TORCH_TOLERANCE


def _elsewhere(
    source: Source, names: Names, values: Sequence[ir.Value], wanted: Sequence[NDArray[Any]], x: Float32Array
) -> list[ir.Value]:
    """Where the graph computes each of `wanted` after all, behind the first of `values`; [] if not all are there."""
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
    found = [next((v for v in later if _same(computed[v], a)), None) for a in wanted]
    return [v for v in found if v is not None] if None not in found else []


def _later(module: torch.nn.Module, call: Call, ours: Sequence[Array], x: Float32Array) -> str | None:
    """The first module to return our array after `call` has returned."""
    if len(ours) != 1:
        return None
    ended, found, count = False, list[str](), 0
    with ExitStack() as stack:
        for path, child in module.named_modules():

            def compare(_module: torch.nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
                nonlocal ended, count
                if ended and not found and path and any(_same(ours[0], a) for a in arrays_of(output)):
                    found.append(path)
                if path == call[0]:
                    ended, count = ended or count == call[1], count + 1

            stack.enter_context(child.register_forward_hook(compare))
        run_module(module, x)
    return found[0] if found else None
