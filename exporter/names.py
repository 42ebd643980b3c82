"""From what the user calls a layer to the ONNX value, and back.

A layer is a module path (`layer2`, `features.13`), a call of a module that runs several times (`layer1.0.relu[1]`), or
an ONNX tensor or node name. Module paths are read off the graph: torch's dynamo exporter writes the scopes of each node
into its metadata, its TorchScript exporter into the node names; so they work for most ONNX files too.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import UsageError

from .dataflow import Flow, Kind
from .passing import Place, Seen

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Node metadata of the dynamo exporter: e.g. "['', 'layer2', 'layer2.3', 'layer2.3.relu', 'relu_21']"."""

_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export writes in place of the scopes of a node that it makes itself."""

NEAREST = 5
"""How many nearby names an error message shows."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """values: what leaves the layer, one or more activations. note: what the user should know about the name."""

    values: tuple[ir.Value, ...]
    note: str | None = None


class Names:
    """The names of one graph. Reads the graph once; the graph must not change afterwards."""

    def __init__(self, graph: ir.Graph, modules: Mapping[str, str] | None = None, seen: Seen | None = None) -> None:
        """modules: module path → class name of the torch module, where there is one. seen: how its modules ran; finds
        those that leave no node in the graph (passing.py)."""
        self._seen = seen or Seen()
        self.flow = Flow(graph)
        self._modules = modules or {}
        self._nodes = list(self.flow.nodes)
        self._scopes = _scopes(self._nodes)
        self._calls = _calls(self._nodes, self._scopes)
        self._values = {v.name: v for v, kind in self.flow.kinds.items() if kind == Kind.ACTIVATION and v.name}
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node, values in zip(self.flow.nodes, self.flow.used, strict=True):
            for value in values:
                self._readers.setdefault(value, []).append(node)
        self._labels: dict[frozenset[ir.Value], str] = self._make_labels()

    def resolve(self, layer: str) -> Resolved:
        """The values that leave `layer`.

        Raises UsageError: unknown (the nearest names are shown), runs several times and no call is named, or leaves no
        node in the graph.
        """
        if layer in self._calls and len(self._calls[layer]) > 1:
            raise UsageError(_several(layer, len(self._calls[layer])))
        if layer in self._calls:
            return Resolved(values=self._outputs(self._calls[layer][0]))
        if layer in self._values:
            return Resolved(values=(self._values[layer],))
        match = re.fullmatch(r"(.+)\[(-?\d+)\]", layer)
        path, k = (match[1], int(match[2])) if match else (layer, None)
        if match and path in self._calls:
            runs = self._calls[path]
            return Resolved(values=self._outputs(runs[_call(path, len(runs), k)]))
        for node in self._nodes:
            if node.name == layer and self.flow.kind(node.outputs[0]) == Kind.ACTIVATION:
                return Resolved(values=(node.outputs[0],))
        return (
            self._by_weights(path) or self._passed(path, k) or self._give_up(path if path in self._modules else layer)
        )

    def label(self, value: ir.Value) -> str:
        """How to name `value` to the user: the module path that gives exactly it, else the tensor name and where."""
        if self.has_path(value):
            return self._labels[frozenset([value])]
        name, node = value.name or "?", value.producer()
        scope = self._scopes.get(node, ()) if node is not None else ()
        if value.is_graph_input():
            return f"the input {name}"
        return f"{name} (in {scope[-1]})" if scope else name

    def has_path(self, value: ir.Value) -> bool:
        """Whether a module path gives exactly this value."""
        return frozenset([value]) in self._labels

    def has_tensor(self, name: str) -> bool:
        """Whether a tensor of the graph has this name."""
        return name in self._values

    def spec(self, values: Sequence[ir.Value]) -> str:
        """What `--cut` takes to cut at `values`: the module path that gives exactly these, else their names with commas
        between them, module paths where there are."""
        whole = self._labels.get(frozenset(values))
        return whole or ",".join(self._labels.get(frozenset([v]), str(v.name)) for v in values)

    @property
    def knows_modules(self) -> bool:
        """Whether the graph carries module paths at all."""
        return bool(self._labels)

    def nearest(self, layer: str) -> list[str]:
        """At most NEAREST names that look like `layer`, the likeliest first."""
        paths = [*self._calls, *self._modules]
        words = list(dict.fromkeys([*paths, *self._values]))
        close = difflib.get_close_matches(layer, words, n=NEAREST, cutoff=0.6)
        inside = [w for w in words if w.split(".")[-1] == layer or w.startswith(layer)]
        return list(dict.fromkeys([*close, *inside]))[:NEAREST]

    def _outputs(self, nodes: list[ir.Node]) -> tuple[ir.Value, ...]:
        """Activations made by `nodes` that are read outside of them, by value and not just for their size."""
        members = set(nodes)

        def leaves(value: ir.Value) -> bool:
            return value.is_graph_output() or any(n not in members for n in self._readers.get(value, ()))

        values = [v for n in nodes for v in n.outputs if self.flow.kind(v) == Kind.ACTIVATION]
        return tuple(v for v in values if leaves(v))

    def _by_weights(self, layer: str) -> Resolved | None:
        """A layer whose weights are used outside its scope: a convolution that was folded into the batch norm after it
        (the fused node carries the batch norm's scope), or a linear layer that its parent does not call (attention)."""
        parent = layer.rpartition(".")[0]
        for node, values in zip(self.flow.nodes, self.flow.reads, strict=True):
            scope = self._scopes[node][-1] if self._scopes[node] else ""
            if scope != parent and scope.rpartition(".")[0] != parent:
                continue
            if not any(v.is_initializer() and v.name in (f"{layer}.weight", f"{layer}.bias") for v in values):
                continue
            value = node.outputs[0]
            readers = self._readers.get(value, [])
            biased = node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add"
            if biased and any(v is not None and v.is_initializer() for v in readers[0].inputs):
                value = readers[0].outputs[0]
            if not scope or scope == parent:
                note = f"{layer!r} is not called: {parent or 'the network'!r} uses its weights; the cut is after that"
            else:
                note = f"{layer!r} was folded into {scope!r} by the ONNX export; the cut is after {scope!r}"
            return Resolved(values=(value,), note=note)
        return None

    def _passed(self, path: str, k: int | None) -> Resolved | None:
        """A module that returns what it is given: the tensor, found by the modules around it."""
        count = self._seen.runs.get(path, 0)
        if not any((path, n) in self._seen.passed for n in range(count)):
            return None
        if k is None and count > 1:
            raise UsageError(_several(path, count))
        call = _call(path, count, k or 0) % count
        for place in self._seen.passed.get((path, call), ()):
            values = [v for v in self._at(place) if _fits(v, place.shape)]
            if len(values) == 1:
                name = f"{path!r} ({self._modules.get(path, 'module')})"
                note = f"{name} returns what it is given; the cut is at that tensor, {self.label(values[0])}"
                return Resolved(values=tuple(values), note=note)
        return None

    def _at(self, place: Place) -> Sequence[ir.Value]:
        """The activations that may be the one at `place`."""
        runs = self._calls.get(place.path, [])
        if not runs:
            folded = self._by_weights(place.path) if place.how == "leaves" else None
            return folded.values if folded else ()
        if len(runs) > 1 and place.call >= len(runs):
            return ()
        nodes = runs[place.call if len(runs) > 1 else 0]
        if place.how == "leaves":
            return self._outputs(nodes)
        made = [v for node in nodes for v in node.outputs]
        if place.how == "enters":
            read = (v for node in nodes for v in self.flow.used[self.flow.position[node]])
            return list(dict.fromkeys(v for v in read if v not in set(made)))
        outputs = set(self._outputs(nodes))
        own = [v for node in nodes if self._scopes[node][-1] == place.path for v in node.outputs]
        return [v for v in own if v not in outputs and self.flow.kind(v) == Kind.ACTIVATION]

    def _give_up(self, layer: str) -> Resolved:
        if layer in self._modules:
            parent = layer.rpartition(".")[0]
            if self._seen.runs.get(layer, 1) == 0:
                raise UsageError(
                    f"layer {layer!r} ({self._modules[layer]}) is never called in evaluation mode: it serves training"
                    f" alone, or code outside it uses its weights; name {parent or 'another layer'!r}"
                )
            raise UsageError(
                f"layer {layer!r} ({self._modules[layer]}) leaves no trace in the ONNX graph: dropped in evaluation"
                " mode or merged into its neighbour; name the layer before or after it"
            )
        if any(v.name == layer for v in (*self.flow.kinds, *self.flow.graph.initializers.values())):
            raise UsageError(
                f"{layer!r} holds a constant or a size, which do not cross: the back half makes them again"
            )
        nearest = self.nearest(layer)
        hint = "nearest: " + ", ".join(nearest) if nearest else "it has: " + ", ".join(self._top_level())
        raise UsageError(f"layer {layer!r} is not in the network; {hint}")

    def _top_level(self) -> list[str]:
        tops = [p for p in self._calls if "." not in p] or list(self._values)
        return [*tops[: 2 * NEAREST], *(["…"] if len(tops) > 2 * NEAREST else [])]

    def _make_labels(self) -> dict[frozenset[ir.Value], str]:
        """The shortest module path that gives exactly these values."""
        labels: dict[frozenset[ir.Value], str] = {}
        for path, runs in self._calls.items():
            for k, nodes in enumerate(runs):
                outputs = frozenset(self._outputs(nodes))
                label = path if len(runs) == 1 else f"{path}[{k}]"
                if outputs and len(label) < len(labels.get(outputs, label + " ")):
                    labels[outputs] = label
        return labels


def _several(path: str, count: int) -> str:
    return f"layer {path!r} runs {count} times; say which call: {path}[0] … {path}[{count - 1}]"


def _call(path: str, count: int, k: int | None) -> int:
    """The call `k`, which may count from the end; the first where none is said. Raises UsageError."""
    if k is not None and not -count <= k < count:
        raise UsageError(f"layer {path!r} runs {count} time(s); there is no call {k}")
    return k or 0


def _fits(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether the value may have this shape after its first axis, as far as its own is known."""
    if value.shape is None:
        return True
    own = list(value.shape)[1:]
    return len(own) == len(shape) and all(d in (None, n) for d, n in zip(own, shape, strict=True) if isinstance(d, int))


def _scopes(nodes: list[ir.Node]) -> dict[ir.Node, tuple[str, ...]]:
    """The module paths around each node, outermost first.

    Nodes made by the optimiser have no metadata: they take what all their consumers have in common.
    """
    scopes: dict[ir.Node, tuple[str, ...]] = {}
    for node in reversed(nodes):
        own = _dynamo_scopes(node)
        if own is None:
            own = _torchscript_scopes(node)
        if own is None:
            users = [scopes[n] for v in node.outputs for n, _ in v.uses() if n in scopes]
            columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*users, strict=False))
            own = tuple(column[0] for column in columns)
        scopes[node] = own
    return scopes


def _dynamo_scopes(node: ir.Node) -> tuple[str, ...] | None:
    text = node.metadata_props.get(SCOPES_KEY)
    if text is None:
        return None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return tuple(str(n) for n in names[:-1] if n and n != _NO_SCOPE) if isinstance(names, list) else None


def _torchscript_scopes(node: ir.Node) -> tuple[str, ...] | None:
    """`/layer1/layer1.0/relu/Relu` → ('layer1', 'layer1.0', 'layer1.0.relu'): a child of a Sequential repeats its
    parent's name, other children carry their own alone."""
    name = node.name or ""
    if not name.startswith("/"):
        return None
    paths: list[str] = []
    parent = ""
    for part in name.split("/")[1:-1]:
        child = part[len(parent) + 1 :] if parent and part.startswith(parent + ".") else part
        paths.append(f"{paths[-1]}.{child}" if paths else part)
        parent = part
    return tuple(paths)


def _calls(nodes: list[ir.Node], scopes: dict[ir.Node, tuple[str, ...]]) -> dict[str, list[list[ir.Node]]]:
    """Module path → the nodes of each call. A new call starts where execution order has left the scope in between."""
    calls: dict[str, list[list[ir.Node]]] = {}
    running: dict[str, list[ir.Node]] = {}
    for node in nodes:
        running = {path: run for path, run in running.items() if path in scopes[node]}
        for path in scopes[node]:
            if path not in running:
                running[path] = []
                calls.setdefault(path, []).append(running[path])
            running[path].append(node)
    return calls
