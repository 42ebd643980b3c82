"""Which graphs the runtimes can run: operator sets, IR version, operators.

The halves run wherever ONNX Runtime 1.20 or later does. Newer graphs are restamped where that changes nothing, and
refused with the runtime that they need where it would.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from splitwire.codec.errors import UnsupportedModel

OLDEST_RUNTIME = "1.20"
"""The oldest ONNX Runtime that the runtimes support (pyproject.toml)."""

MAX_OPSET, MAX_ML_OPSET, MAX_IR = 21, 5, 10
"""What that release runs; it refuses anything newer, whether the network needs it or not (tried, as the next line)."""

RUNTIME_OF_OPSET = {22: "1.21", 23: "1.23"}
"""The first ONNX Runtime release that runs an operator set; later ones need a later release than these."""

OPTIMISED = "com.microsoft.nchwc"
ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
_KNOWN_DOMAINS = ("", ML, MICROSOFT)

_NEW_TYPES = ("FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2")
"""Element types that came after IR version 10."""


def make_compatible(model: ir.Model) -> str | None:
    """Lower the model's operator set and IR version, in place, to what ONNX Runtime 1.20 runs; a note if it was needed.

    model: functions inlined. Raises UnsupportedModel if an operator is of another domain, or of a version that
    older runtimes do not have.
    """
    for node in model.graph.all_nodes():
        if node.domain == OPTIMISED:
            raise UnsupportedModel(
                f"the file was saved by ONNX Runtime in the memory layout of one CPU (operator {node.op_type} of"
                f" {OPTIMISED}); export the file it was made from, or one saved at ORT_ENABLE_EXTENDED or below"
            )
        if node.domain not in _KNOWN_DOMAINS:
            raise UnsupportedModel(
                f"operator {node.op_type} of the domain {node.domain!r} (node {node.name!r}) is not of standard ONNX;"
                " ONNX Runtime has no such operator: export the network without it"
            )
    opset = int(model.opset_imports.get("", 0))
    if opset > MAX_OPSET:
        _check_operators(model, opset)
        model.opset_imports[""] = MAX_OPSET
    ml = int(model.opset_imports.get(ML, 0))
    if ml > MAX_ML_OPSET:
        raise UnsupportedModel(
            f"the network needs {ML} opset {ml}; ONNX Runtime {OLDEST_RUNTIME}, the oldest that the edge supports, has"
            f" {MAX_ML_OPSET}"
        )
    for domain in [d for d in model.opset_imports if d not in _KNOWN_DOMAINS]:
        del model.opset_imports[domain]  # of functions that are inlined now
    if model.ir_version > MAX_IR:
        new = _types(model.graph) & set(_NEW_TYPES)
        if new:
            raise UnsupportedModel(
                f"the network holds {', '.join(sorted(new))} values; ONNX Runtime {OLDEST_RUNTIME}, the oldest that the"
                " edge supports, does not know them"
            )
        model.ir_version = MAX_IR
    if opset > MAX_OPSET:
        return (
            f"written for opset {opset}; all its operators are as in opset {MAX_OPSET}, which the halves are made for"
        )
    return None


def _check_operators(model: ir.Model, opset: int) -> None:
    """Raise UnsupportedModel unless every operator is, as it is used, the same in MAX_OPSET."""
    for node in model.graph.all_nodes():
        if node.domain == "" and not _unchanged(node, opset):
            runtime = RUNTIME_OF_OPSET.get(opset)
            needs = f"ONNX Runtime {runtime}" if runtime else f"an ONNX Runtime later than {RUNTIME_OF_OPSET[23]}"
            raise UnsupportedModel(
                f"the network uses {node.op_type} as of opset {opset}, which needs {needs}; the edge supports"
                f" {OLDEST_RUNTIME} and later, so export it with opset {MAX_OPSET} or lower"
            )


def _unchanged(node: ir.Node, opset: int) -> bool:
    """Later versions of an operator mostly add element types, or attributes whose default is how it was."""
    try:
        new, old = (onnx.defs.get_schema(node.op_type, v) for v in (opset, MAX_OPSET))
    except onnx.defs.SchemaError:
        return False
    if new.since_version == old.since_version:
        return True
    defaults = [{n: a.default_value.SerializeToString() for n, a in s.attributes.items()} for s in (new, old)]
    return (
        _slots(new) == _slots(old)
        and set(node.attributes) <= set(old.attributes)
        and all(defaults[0][n] == defaults[1][n] for n in defaults[0].keys() & defaults[1].keys())
        and all(_takes(old.inputs, node.inputs) + _takes(old.outputs, node.outputs))
    )


def _slots(schema: onnx.defs.OpSchema) -> list[tuple[str, object]]:
    return [(p.name, p.option) for p in (*schema.inputs, *schema.outputs)]


def _takes(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]) -> list[bool]:
    """Whether each value's element type is allowed. Types that are not known pass: the checker sees them next."""
    variadic = [parameters[min(i, len(parameters) - 1)] for i in range(len(values))]
    return [
        v is None or v.dtype is None or not p.types or any(t.endswith(f"tensor({_name(v.dtype)})") for t in p.types)
        for p, v in zip(variadic, values, strict=True)
    ]


def _name(kind: ir.DataType) -> str:
    """As operator definitions write it."""
    return {"FLOAT": "float", "DOUBLE": "double"}.get(kind.name, kind.name.lower())


def _types(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph.all_nodes() for v in n.outputs)]
    return {v.dtype.name for v in values if v.dtype is not None}
