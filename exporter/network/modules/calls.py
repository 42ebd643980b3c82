"""Which call of which module each node of an ONNX graph belongs to.

A call is (module path, k): k counts the calls of the module from 0, in execution order. The stack of a node holds the
calls around it, outermost first. How the calls become known depends on where the graph comes from:

* torch's dynamo exporter knows them. `stamp` writes them to the nodes before the exporter's record of them is lost.
* torch's TorchScript exporter writes the call of the innermost module into the node's name: `/blk/blk.0_2/Conv`. The
  calls around that one are known if the module was recorded while it ran (passthrough.py).
* In a file, only the names and the metadata of the nodes are available. A new call starts where execution leaves the
  scope, and where the sequence of operators in the scope repeats.

If the network reaches a module under several paths, its first path in the order of named_modules() stands for all.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from splitwire.exporter.network.dataflow import Flow, Kind

from .passthrough import Call, CallRecord

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Node metadata of the dynamo exporter: e.g. "['', 'layer2', 'layer2.3', 'layer2.3.relu', 'relu_21']"."""

CALLS_KEY = "splitwire.calls"
"""Node metadata that `stamp` writes: JSON, [[path, call], …]. `unstamp` removes it: no file contains it."""

_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""torch.export writes this in place of the scopes for nodes that it adds itself."""

Stack = tuple[Call, ...]

_Raw = tuple[tuple[str, int | None], ...]
"""(path, count) per call: both as the exporter writes them; the count is None where the exporter gives none."""


def stamp(model: ir.Model, program: Any) -> None:
    """Write the calls around each node into its metadata.

    program: the torch.export.ExportedProgram of the model. Its keys count calls: `L__self__blk@2` is the third one.
    """
    stacks = {node.name: node.meta.get("nn_module_stack") or {} for node in program.graph.nodes}
    for node in model.graph.all_nodes():
        names = _name_scopes(node)
        if names and names[-1] in stacks:
            calls = [[path, _count(key)] for key, (path, _) in stacks[names[-1]].items()]
            if [path for path, _ in calls if path] == [n for n in names[:-1] if n]:
                node.metadata_props[CALLS_KEY] = json.dumps([call for call in calls if call[0]])


def _count(key: str) -> int:
    match = re.search(r"@(\d+)$", key)
    return int(match[1]) if match else 0


def unstamp(model: ir.Model) -> dict[ir.Node, Stack]:
    """Remove from the model what `stamp` wrote, and return it."""
    stamped = {}
    for node in model.graph.all_nodes():
        text = node.metadata_props.pop(CALLS_KEY, None)
        if text is not None:
            stamped[node] = tuple((str(path), int(k)) for path, k in json.loads(text))
    return stamped


def stacks(flow: Flow, record: CallRecord, stamped: Mapping[ir.Node, Stack]) -> dict[ir.Node, Stack]:
    """The calls around each node of the graph; () for nodes that make constants, since their place has no meaning.

    record: how the modules ran; empty for a file. stamped: the result of `unstamp`.
    A node that an optimiser added has no scope. It gets the calls that all its consumers have in common.
    """
    computing = [n for n in flow.nodes if any(flow.kind(v) != Kind.CONSTANT for v in n.outputs)]
    known_stacks = _by_scopes(computing, record, stamped)
    return {node: known_stacks.get(node, ()) for node in flow.nodes}


def _by_scopes(nodes: Sequence[ir.Node], record: CallRecord, stamped: Mapping[ir.Node, Stack]) -> dict[ir.Node, Stack]:
    once = all(n <= 1 for n in record.runs.values())
    raw: dict[ir.Node, _Raw] = {}
    for node in reversed(nodes):
        stack: _Raw | None = stamped.get(node)
        if stack is None and (once or not stamped):
            stack = _of_metadata(node)
        if stack is None:
            stack = _of_name(node, record)
        if stack is None:
            users = [raw[n] for v in node.outputs for n, _ in v.uses() if n in raw]
            columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*users, strict=False))
            stack = tuple(column[0] for column in columns)
        raw[node] = stack
    if stamped:
        numbers = _numbers([raw[node] for node in nodes], record)
        return {node: tuple(numbers[path, k or 0] for path, k in raw[node]) for node in nodes}
    ordered = _told_apart([(node, raw[node]) for node in nodes], record)
    return _by_the_innermost(ordered, record) or _checked(dict(_by_repetition(ordered)), record)


def _numbers(raws: Sequence[_Raw], record: CallRecord) -> dict[tuple[str, int], Call]:
    """(path, count under this path) → the call. Calls of one module under several paths are counted together."""
    calls_in_order = list(dict.fromkeys((path, k or 0) for raw in raws for path, k in raw))
    paths: dict[str, set[str]] = {}
    for path, _ in calls_in_order:
        paths.setdefault(record.aliases.get(path, path), set()).add(path)
    numbers: dict[tuple[str, int], Call] = {}
    for module, under in paths.items():
        calls = [call for call in calls_in_order if call[0] in under]
        numbers.update(
            {(path, k): (module, k) for path, k in calls} if len(under) == 1 else _line_up(module, calls, record)
        )
    return numbers


def _line_up(module: str, calls: list[tuple[str, int]], record: CallRecord) -> dict[tuple[str, int], Call]:
    """Match the module's calls in the graph with its recorded calls that left a node.

    If their numbers differ, no match is possible, and the calls keep their paths.
    """
    with_nodes = _leaving_nodes(module, record)
    return (
        dict(zip(calls, with_nodes, strict=True)) if len(with_nodes) == len(calls) else {call: call for call in calls}
    )


def _leaving_nodes(path: str, record: CallRecord) -> list[Call]:
    """The recorded calls that left a node. (A call that returns its argument unchanged leaves none.)"""
    return [(path, k) for k in range(record.runs.get(path, 0)) if (path, k) not in record.passed]


def _by_the_innermost(ordered: Sequence[tuple[ir.Node, _Raw]], record: CallRecord) -> dict[ir.Node, Stack] | None:
    """The stacks from the innermost calls and the record of the run; None if these do not match."""
    if not record.runs:
        return None
    inner: dict[str, dict[tuple[str, int | None], None]] = {}
    for _, raw in ordered:
        if raw:
            inner.setdefault(record.aliases.get(raw[-1][0], raw[-1][0]), {}).setdefault(raw[-1])
    numbers: dict[tuple[str, int | None], Call] = {}
    for module, calls in inner.items():
        with_nodes = _leaving_nodes(module, record)
        if len(with_nodes) != len(calls):
            return None
        counted = len({path for path, _ in calls}) == 1
        numbers.update(zip(sorted(calls, key=lambda call: call[1] or 0) if counted else calls, with_nodes, strict=True))
    return {node: tuple(_around(numbers[raw[-1]], record)) if raw else () for node, raw in ordered}


def _around(call: Call, record: CallRecord) -> Iterator[Call]:
    """The calls around `call`, outermost first, then `call`."""
    outer = record.parents.get(call)
    if outer is not None:
        yield from _around(outer, record)
    yield call


def _checked(stacks_found: dict[ir.Node, Stack], record: CallRecord) -> dict[ir.Node, Stack]:
    """The stacks of `_by_repetition`, with numbers from the record.

    A call gets a negative number if the record has another number of calls of this module: then it is not known which
    one it is.
    """
    counts: dict[str, int] = {}
    for path, k in itertools.chain.from_iterable(stacks_found.values()):
        counts[path] = max(counts.get(path, 0), k + 1)
    numbers: dict[Call, Call] = {}
    for path, count in counts.items():
        with_nodes = _leaving_nodes(path, record)
        loose = record.runs.get(path, 0) > 1 and len(with_nodes) != count
        numbers.update(
            {(path, k): (path, -1 - k) if loose else with_nodes[k] for k in range(count)} if with_nodes else {}
        )
    return {node: tuple(numbers.get(call, call) for call in stack) for node, stack in stacks_found.items()}


def _by_repetition(ordered: Sequence[tuple[ir.Node, _Raw]]) -> Iterator[tuple[ir.Node, Stack]]:
    """The stacks from the scopes alone."""
    containers = {path for _, raw in ordered for path, _ in raw[:-1]}
    counts: dict[str, int] = {}

    def within(members: Sequence[tuple[ir.Node, _Raw]], outer: Stack) -> Iterator[tuple[ir.Node, Stack]]:
        depth = len(outer)

        def scope(member: tuple[ir.Node, _Raw]) -> tuple[str, int | None] | None:
            at = member[1][depth : depth + 1]
            return None if not at else at[0] if at[0][0] not in containers else (at[0][0], None)

        for scope_key, group in itertools.groupby(members, scope):
            run = list(group)
            if scope_key is None:
                yield from ((node, outer) for node, _ in run)
                continue
            for call in [run] if scope_key[1] is not None else _repeated(run):
                k = counts[scope_key[0]] = counts.get(scope_key[0], -1) + 1
                yield from within(call, (*outer, (scope_key[0], k)))

    yield from within(ordered, ())


def _repeated(run: list[tuple[ir.Node, _Raw]]) -> list[list[tuple[ir.Node, _Raw]]]:
    """Split the run into the largest number of pieces with the same operators in the same scopes; often only one."""
    signs = [(node.domain, node.op_type, tuple(path for path, _ in raw)) for node, raw in run]
    for period in range(1, len(run) // 2 + 1):
        if len(run) % period == 0 and signs == signs[:period] * (len(run) // period):
            return [run[i : i + period] for i in range(0, len(run), period)]
    return [run]


def _name_scopes(node: ir.Node) -> list[str] | None:
    text = node.metadata_props.get(SCOPES_KEY)
    if text is None:
        return None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return [str(n) for n in names] if isinstance(names, list) else None


def _of_metadata(node: ir.Node) -> _Raw | None:
    names = _name_scopes(node)
    return None if names is None else tuple((n, None) for n in names[:-1] if n and n != _NO_SCOPE)


def _of_name(node: ir.Node, record: CallRecord) -> _Raw | None:
    """`/layer1/layer1.0/relu/Relu` → layer1, layer1.0, layer1.0.relu.

    In such a name, a child of a Sequential repeats the name of its parent; other children do not.
    """
    name = node.name or ""
    if not name.startswith("/"):
        return None
    paths: list[str] = []
    parent = ""
    for part in name.split("/")[1:-1]:
        child = part[len(parent) + 1 :] if parent and part.startswith(parent + ".") else part
        path = f"{paths[-1]}.{child}" if paths else part
        if _is_module(part, record) and not _is_module(
            path, record
        ):  # the module was named after another place in the tree
            path = part
        paths.append(path)
        parent = part
    return (*((path, None) for path in paths[:-1]), (paths[-1], 0)) if paths else ()


def _is_module(path: str, record: CallRecord) -> bool:
    return path in record.aliases or re.sub(r"_\d+$", "", path) in record.aliases


def _told_apart(ordered: Sequence[tuple[ir.Node, _Raw]], record: CallRecord) -> list[tuple[ir.Node, _Raw]]:
    """Replace an innermost `relu_1` by (`relu`, call 1), unless there is a module named `relu_1`."""
    paths = {raw[-1][0] for _, raw in ordered if raw and raw[-1][1] is not None}
    weights = {v.name or "" for node, _ in ordered for v in node.inputs if v is not None and v.is_initializer()}

    def apart(path: str) -> tuple[str, int]:
        match = re.fullmatch(r"(.+)_(\d+)", path)
        if not match or path in record.aliases:
            return path, 0
        if record.aliases:
            return (match[1], int(match[2])) if match[1] in record.aliases else (path, 0)
        before = [match[1], *(f"{match[1]}_{j}" for j in range(1, int(match[2])))]
        has_weights = any(name.startswith(f"{path}.") for name in weights)
        return (match[1], int(match[2])) if paths.issuperset(before) and not has_weights else (path, 0)

    calls = {path: apart(path) for path in paths}
    return [(node, (*raw[:-1], calls[raw[-1][0]]) if raw and raw[-1][1] is not None else raw) for node, raw in ordered]
