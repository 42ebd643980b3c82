"""Which call of which module each node of an ONNX graph belongs to.

A call is (module path, k), k from 0 in execution order, whether calls follow each other directly or not; a node's stack
holds the calls around it, outermost first. What is known of the calls differs:

* torch's dynamo exporter knows them, and `stamp` writes them to the nodes before its own record of them is gone.
* Its TorchScript exporter counts the calls of the innermost module in the node's name: `/blk/blk.0_2/Conv`. The calls
  around that one are known where the module was seen to run (passing.py).
* A file has what its nodes' names and metadata say. There a new call starts where execution leaves the scope, and where
  what happens in it repeats as a whole.

A module that the network reaches under several paths is one module: its first path, in the order of named_modules(),
stands for all of them.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from .dataflow import Flow, Kind
from .passthrough import Call, Seen

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Node metadata of the dynamo exporter: e.g. "['', 'layer2', 'layer2.3', 'layer2.3.relu', 'relu_21']"."""

CALLS_KEY = "splitwire.calls"
"""Node metadata that `stamp` writes: JSON, [[path, call], …]. In no file: `unstamp` takes them off again."""

_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export writes in place of the scopes of a node that it makes itself."""

Stack = tuple[Call, ...]

_Raw = tuple[tuple[str, int | None], ...]
"""Path as the exporter writes it and its count of the calls under this path, None where it does not say."""


def stamp(model: ir.Model, program: Any) -> None:
    """Write to each node which calls it belongs to. program: the torch.export.ExportedProgram of the model, whose keys
    count calls: `L__self__blk@2` is the third."""
    stacks = {node.name: node.meta.get("nn_module_stack") or {} for node in program.graph.nodes}
    for node in model.graph.all_nodes():
        names = _name_scopes(node)
        if names and names[-1] in stacks:
            known = [[path, _count(key)] for key, (path, _) in stacks[names[-1]].items()]
            if [path for path, _ in known if path] == [n for n in names[:-1] if n]:
                node.metadata_props[CALLS_KEY] = json.dumps([call for call in known if call[0]])


def _count(key: str) -> int:
    match = re.search(r"@(\d+)$", key)
    return int(match[1]) if match else 0


def unstamp(model: ir.Model) -> dict[ir.Node, Stack]:
    """What `stamp` wrote, which is gone from the model afterwards."""
    stamped = {}
    for node in model.graph.all_nodes():
        text = node.metadata_props.pop(CALLS_KEY, None)
        if text is not None:
            stamped[node] = tuple((str(path), int(k)) for path, k in json.loads(text))
    return stamped


def stacks(flow: Flow, seen: Seen, stamped: Mapping[ir.Node, Stack]) -> dict[ir.Node, Stack]:
    """The calls around each of the graph's nodes; () for those that make constants: they may stand anywhere.

    seen: how the modules ran, empty for a file. stamped: what `unstamp` gave.
    Nodes made by an optimiser have no scopes: they take what all their consumers have in common.
    """
    made = _by_scopes([n for n in flow.nodes if any(flow.kind(v) != Kind.CONSTANT for v in n.outputs)], seen, stamped)
    return {node: made.get(node, ()) for node in flow.nodes}


def _by_scopes(nodes: Sequence[ir.Node], seen: Seen, stamped: Mapping[ir.Node, Stack]) -> dict[ir.Node, Stack]:
    once = all(n <= 1 for n in seen.runs.values())
    raw: dict[ir.Node, _Raw] = {}
    for node in reversed(nodes):
        own: _Raw | None = stamped.get(node)
        if own is None and (once or not stamped):
            own = _of_metadata(node)
        if own is None:
            own = _of_name(node, seen)
        if own is None:
            users = [raw[n] for v in node.outputs for n, _ in v.uses() if n in raw]
            columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*users, strict=False))
            own = tuple(column[0] for column in columns)
        raw[node] = own
    if stamped:
        numbers = _numbers([raw[node] for node in nodes], seen)
        return {node: tuple(numbers[path, k or 0] for path, k in raw[node]) for node in nodes}
    ordered = _told_apart([(node, raw[node]) for node in nodes], seen)
    return _by_the_innermost(ordered, seen) or _checked(dict(_by_repetition(ordered)), seen)


def _numbers(raws: Sequence[_Raw], seen: Seen) -> dict[tuple[str, int], Call]:
    """(path, count under this path) → the call. A module under several paths is counted through, in execution order."""
    found = list(dict.fromkeys((path, k or 0) for raw in raws for path, k in raw))
    paths: dict[str, set[str]] = {}
    for path, _ in found:
        paths.setdefault(seen.aliases.get(path, path), set()).add(path)
    numbers: dict[tuple[str, int], Call] = {}
    for own, under in paths.items():
        calls = [call for call in found if call[0] in under]
        numbers.update({(path, k): (own, k) for path, k in calls} if len(under) == 1 else _line_up(own, calls, seen))
    return numbers


def _line_up(own: str, calls: list[tuple[str, int]], seen: Seen) -> dict[tuple[str, int], Call]:
    """The calls of the module `own` as the graph has them against those that were seen; those that return what they are
    given leave no node. Where the numbers differ nothing is said: the calls keep their paths."""
    left = _leaving_nodes(own, seen)
    return dict(zip(calls, left, strict=True)) if len(left) == len(calls) else {call: call for call in calls}


def _leaving_nodes(path: str, seen: Seen) -> list[Call]:
    return [(path, k) for k in range(seen.runs.get(path, 0)) if (path, k) not in seen.passed]


def _by_the_innermost(ordered: Sequence[tuple[ir.Node, _Raw]], seen: Seen) -> dict[ir.Node, Stack] | None:
    """The stacks where the innermost call is known and the modules were seen to run; None if that does not fit."""
    if not seen.runs:
        return None
    inner: dict[str, dict[tuple[str, int | None], None]] = {}
    for _, raw in ordered:
        if raw:
            inner.setdefault(seen.aliases.get(raw[-1][0], raw[-1][0]), {}).setdefault(raw[-1])
    numbers: dict[tuple[str, int | None], Call] = {}
    for own, calls in inner.items():
        left = _leaving_nodes(own, seen)
        if len(left) != len(calls):
            return None
        counted = len({path for path, _ in calls}) == 1
        numbers.update(zip(sorted(calls, key=lambda call: call[1] or 0) if counted else calls, left, strict=True))
    return {node: tuple(_around(numbers[raw[-1]], seen)) if raw else () for node, raw in ordered}


def _around(call: Call, seen: Seen) -> Iterator[Call]:
    """The calls around `call`, outermost first, and itself."""
    outer = seen.parents.get(call)
    if outer is not None:
        yield from _around(outer, seen)
    yield call


def _checked(found: dict[ir.Node, Stack], seen: Seen) -> dict[ir.Node, Stack]:
    """The stacks of `_by_repetition`, with a negative number for each call that cannot be told from the module's others
    because more or fewer of them were seen to run."""
    counts: dict[str, int] = {}
    for path, k in itertools.chain.from_iterable(found.values()):
        counts[path] = max(counts.get(path, 0), k + 1)
    numbers: dict[Call, Call] = {}
    for path, count in counts.items():
        left = _leaving_nodes(path, seen)
        loose = seen.runs.get(path, 0) > 1 and len(left) != count
        numbers.update({(path, k): (path, -1 - k) if loose else left[k] for k in range(count)} if left else {})
    return {node: tuple(numbers.get(call, call) for call in stack) for node, stack in found.items()}


def _by_repetition(ordered: Sequence[tuple[ir.Node, _Raw]]) -> Iterator[tuple[ir.Node, Stack]]:
    """The stacks where nothing but scopes is known."""
    containers = {path for _, raw in ordered for path, _ in raw[:-1]}
    counts: dict[str, int] = {}

    def within(members: Sequence[tuple[ir.Node, _Raw]], outer: Stack) -> Iterator[tuple[ir.Node, Stack]]:
        depth = len(outer)

        def scope(member: tuple[ir.Node, _Raw]) -> tuple[str, int | None] | None:
            at = member[1][depth : depth + 1]
            return None if not at else at[0] if at[0][0] not in containers else (at[0][0], None)

        for own, group in itertools.groupby(members, scope):
            run = list(group)
            if own is None:
                yield from ((node, outer) for node, _ in run)
                continue
            for call in [run] if own[1] is not None else _repeated(run):
                k = counts[own[0]] = counts.get(own[0], -1) + 1
                yield from within(call, (*outer, (own[0], k)))

    yield from within(ordered, ())


def _repeated(run: list[tuple[ir.Node, _Raw]]) -> list[list[tuple[ir.Node, _Raw]]]:
    """The run in as many pieces as possible that have the same operators in the same scopes; mostly one."""
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


def _of_name(node: ir.Node, seen: Seen) -> _Raw | None:
    """`/layer1/layer1.0/relu/Relu` → layer1, layer1.0, layer1.0.relu: a child of a Sequential repeats its parent's
    name, other children carry their own alone."""
    name = node.name or ""
    if not name.startswith("/"):
        return None
    paths: list[str] = []
    parent = ""
    for part in name.split("/")[1:-1]:
        child = part[len(parent) + 1 :] if parent and part.startswith(parent + ".") else part
        path = f"{paths[-1]}.{child}" if paths else part
        if _is_module(part, seen) and not _is_module(path, seen):  # it was given its name elsewhere
            path = part
        paths.append(path)
        parent = part
    return (*((path, None) for path in paths[:-1]), (paths[-1], 0)) if paths else ()


def _is_module(path: str, seen: Seen) -> bool:
    return path in seen.aliases or re.sub(r"_\d+$", "", path) in seen.aliases


def _told_apart(ordered: Sequence[tuple[ir.Node, _Raw]], seen: Seen) -> list[tuple[ir.Node, _Raw]]:
    """Innermost `relu_1` that is the second call of `relu`, and not a module of this name, becomes just that."""
    paths = {raw[-1][0] for _, raw in ordered if raw and raw[-1][1] is not None}
    weights = {v.name or "" for node, _ in ordered for v in node.inputs if v is not None and v.is_initializer()}

    def apart(path: str) -> tuple[str, int]:
        match = re.fullmatch(r"(.+)_(\d+)", path)
        if not match or path in seen.aliases:
            return path, 0
        if seen.aliases:
            return (match[1], int(match[2])) if match[1] in seen.aliases else (path, 0)
        before = [match[1], *(f"{match[1]}_{j}" for j in range(1, int(match[2])))]
        own = any(name.startswith(f"{path}.") for name in weights)
        return (match[1], int(match[2])) if paths.issuperset(before) and not own else (path, 0)

    told = {path: apart(path) for path in paths}
    return [(node, (*raw[:-1], told[raw[-1][0]]) if raw and raw[-1][1] is not None else raw) for node, raw in ordered]
