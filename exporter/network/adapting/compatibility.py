"""Check that the runtimes can run a graph: operator sets, IR version, operators.

The halves must run in ONNX Runtime 1.20 and later. A newer graph gets a lower version number if all its operators are
unchanged since then. Otherwise it is refused, and the message names the runtime that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from splitwire.codec.errors import UnsupportedModel

OLDEST_RUNTIME = "1.20"
"""The oldest ONNX Runtime that the runtimes support (pyproject.toml)."""

MAX_OPSET, MAX_ML_OPSET, MAX_IR = 21, 5, 10
"""The latest versions that this release runs. It refuses newer ones, even where no operator needs them (tested)."""

RUNTIME_OF_OPSET = {22: "1.21", 23: "1.23"}
"""Operator set → the first ONNX Runtime release that runs it (tested). Later sets need a later release."""

OPTIMISED = "com.microsoft.nchwc"
ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
_KNOWN_DOMAINS = ("", ML, MICROSOFT)

_NEW_TYPES = ("FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2")
"""Element types that are newer than IR version 10."""


def make_compatible(model: ir.Model) -> str | None:
    """Lower the model's operator set and IR version, in place, to those of ONNX Runtime 1.20. Returns a note if it did.

    model: with inlined functions. Raises UnsupportedModel for an operator of another domain, or of a version that older
    runtimes do not have.
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
        del model.opset_imports[domain]  # only the inlined functions used it
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
    """Raise UnsupportedModel unless every operator, as the model uses it, is the same in MAX_OPSET."""
    for node in model.graph.all_nodes():
        if node.domain == "" and not _unchanged(node, opset):
            runtime = RUNTIME_OF_OPSET.get(opset)
            needs = f"ONNX Runtime {runtime}" if runtime else f"an ONNX Runtime later than {RUNTIME_OF_OPSET[23]}"
            raise UnsupportedModel(
                f"the network uses {node.op_type} as of opset {opset}, which needs {needs}; the edge supports"
                f" {OLDEST_RUNTIME} and later, so export it with opset {MAX_OPSET} or lower"
            )


def _unchanged(node: ir.Node, opset: int) -> bool:
    """Whether the node is valid in both versions. New versions mostly add types, or attributes with defaults."""
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
    """Per value: whether its element type is allowed. Unknown types pass: the checker tests them next."""
    variadic = [parameters[min(i, len(parameters) - 1)] for i in range(len(values))]
    return [
        v is None or v.dtype is None or not p.types or any(t.endswith(f"tensor({_name(v.dtype)})") for t in p.types)
        for p, v in zip(variadic, values, strict=True)
    ]


def _name(kind: ir.DataType) -> str:
    """The name of the type in operator definitions."""
    return {"FLOAT": "float", "DOUBLE": "double"}.get(kind.name, kind.name.lower())


def _types(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph.all_nodes() for v in n.outputs)]
    return {v.dtype.name for v in values if v.dtype is not None}
