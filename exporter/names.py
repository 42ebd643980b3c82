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

from .dataflow import Flow, Kind, reads

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Node metadata of the dynamo exporter: e.g. "['', 'layer2', 'layer2.3', 'layer2.3.relu', 'relu_21']"."""

NEAREST = 5
"""How many nearby names an error message shows."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """values: what leaves the layer, one or more activations. note: what the user should know about the name."""

    values: tuple[ir.Value, ...]
    note: str | None = None


class Names:
    """The names of one graph. Reads the graph once; the graph must not change afterwards."""

    def __init__(self, graph: ir.Graph, modules: Mapping[str, str] | None = None) -> None:
        """modules: module path → class name of the torch module, where there is one (layers may leave no node)."""
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
            last = len(self._calls[layer]) - 1
            raise UsageError(f"layer {layer!r} runs {last + 1} times; say which call: {layer}[0] … {layer}[{last}]")
        if layer in self._calls:
            return Resolved(values=self._outputs(self._calls[layer][0]))
        if layer in self._values:
            return Resolved(values=(self._values[layer],))
        match = re.fullmatch(r"(.+)\[(-?\d+)\]", layer)
        if match and match[1] in self._calls:
            runs, k = self._calls[match[1]], int(match[2])
            if not -len(runs) <= k < len(runs):
                raise UsageError(f"layer {match[1]!r} runs {len(runs)} time(s); there is no call {k}")
            return Resolved(values=self._outputs(runs[k]))
        for node in self._nodes:
            if node.name == layer and self.flow.kind(node.outputs[0]) == Kind.ACTIVATION:
                return Resolved(values=(node.outputs[0],))
        return self._folded(layer) or self._give_up(layer)

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

    def _folded(self, layer: str) -> Resolved | None:
        """A convolution that was folded into the batch norm after it: the fused node carries the batch norm's scope."""
        for node in self._nodes:
            if any(v.name == f"{layer}.weight" for v in reads(node) if v.is_initializer()):
                into = self._scopes[node][-1] if self._scopes[node] else node.outputs[0].name
                note = f"{layer!r} was folded into {into!r} by the ONNX export; the cut is after {into!r}"
                return Resolved(values=(node.outputs[0],), note=note)
        return None

    def _give_up(self, layer: str) -> Resolved:
        if layer in self._modules:
            raise UsageError(
                f"layer {layer!r} ({self._modules[layer]}) leaves no trace in the ONNX graph: dropped in evaluation"
                " mode or merged into its neighbour; name the layer before or after it"
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
    return tuple(str(n) for n in names[:-1] if n) if isinstance(names, list) else None


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
