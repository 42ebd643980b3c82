"""Translate the user's name of a layer to ONNX values, and back.

A layer is a module path (`layer2`, `features.13`), a call of a module that runs several times (`layer1.0.relu[1]`), or
the name of an ONNX tensor or node. The module paths come from the graph: torch's dynamo exporter writes the scopes of
each node into its metadata, and its TorchScript exporter writes them into the node names. So they work for most ONNX
files too. network/modules/calls.py finds the call that a node belongs to.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import UsageError
from splitwire.exporter.network.dataflow import Flow, Kind
from splitwire.exporter.network.modules.calls import Stack, stacks
from splitwire.exporter.network.modules.passthrough import Call, CallRecord, Place
from splitwire.exporter.network.source import Source

EMPTY_NAME = (
    "the cut (--cut, cut=) holds an empty name; it takes a layer, a tensor, or several with commas between them"
)

NEAREST = 5
"""Number of similar names in an error message."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The meaning of a name.

    values: the activations that leave the layer, at least one. note: what the user should know about the name. call:
    the module call whose output the values should be (layer_check.py); None if the name is not that of a module.
    """

    values: tuple[ir.Value, ...]
    note: str | None = None
    call: Call | None = None


class Names:
    """The names in one graph. Reads the graph once; it must not change afterwards."""

    def __init__(
        self,
        graph: ir.Graph,
        modules: Mapping[str, str] | None = None,
        record: CallRecord | None = None,
        stamped: Mapping[ir.Node, Stack] | None = None,
    ) -> None:
        """modules: module path → class name, if the graph comes from a torch module. record: how these modules ran
        (network/modules/passthrough.py): it numbers their calls, and finds modules that leave no node. stamped: the
        calls around nodes, if the exporter knew them (network/modules/calls.py)."""
        self._record = record or CallRecord()
        self.flow = Flow(graph)
        self._modules = modules or {}
        self._nodes = list(self.flow.nodes)
        self._stacks = stacks(self.flow, self._record, stamped or {})
        self._calls: dict[str, dict[int, list[ir.Node]]] = {}
        for node in self._nodes:
            for path, k in self._stacks[node]:
                self._calls.setdefault(path, {}).setdefault(k, []).append(node)
        self._values = {v.name: v for v, kind in self.flow.kinds.items() if kind == Kind.ACTIVATION and v.name}
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node, values in zip(self.flow.nodes, self.flow.used, strict=True):
            for value in values:
                self._readers.setdefault(value, []).append(node)
        self._labels: dict[frozenset[ir.Value], str] = self._make_labels()

    @classmethod
    def of(cls, source: Source) -> Names:
        """The names in a network's graph."""
        return cls(source.graph, source.modules, source.record, source.stamped)

    def resolve(self, layer: str) -> Resolved:
        """The values that leave `layer`.

        Raises UsageError if the name is empty or unknown (the message shows similar names), if the layer runs several
        times and the name does not say which call, or if it leaves no node in the graph.
        """
        if not layer.strip():
            raise UsageError(EMPTY_NAME)
        if layer in self._calls:
            return self._call_of(layer, None)
        if layer in self._values:
            return Resolved(values=(self._values[layer],))
        match = re.fullmatch(r"(.+)\[(-?\d+)\]", layer)
        path, k = (match[1], int(match[2])) if match else (layer, None)
        if path in self._record.aliases or path in self._calls:
            return self._call_of(path, k)
        for node in self._nodes:
            if node.name == layer and self.flow.kind(node.outputs[0]) == Kind.ACTIVATION:
                return Resolved(values=(node.outputs[0],))
        if again := re.fullmatch(r"(.+)_(\d+)", layer):  # the form of a call in TorchScript's node names
            path, k = again[1], int(again[2])
            if len(self._calls.get(path, ())) > 1 and k in self._calls[path]:
                return self._call_of(path, k)
        return self._by_weights(path, k) or self._give_up(layer, k)

    def _call_of(self, name: str, k: int | None) -> Resolved:
        """The values that leave call `k` of a module. k is None if the user names no call: then there must be only
        one."""
        path = self._record.aliases.get(name, name)
        count = self._count(path)  # 0 if it is never called; but another module may use its weights
        if k is None and count > 1:
            raise UsageError(_several(name, path, count))
        call = _call(name, count, k) % count if count else 0
        nodes = self._calls.get(path, {}).get(call)
        if nodes is not None:
            return Resolved(values=self._outputs(nodes), call=(path, call))
        return self._by_weights(path, k) or self._passed(path, call) or self._give_up(path, call if count > 1 else None)

    def _count(self, path: str) -> int:
        """How often the module runs: from the record, or for a file from the graph."""
        return self._record.runs.get(path, len(self._calls.get(path, ())))

    def label(self, value: ir.Value) -> str:
        """The name of `value` for the user: the module path for exactly this value, else its tensor name and scope."""
        if self.has_path(value):
            return self._labels[frozenset([value])]
        name, node = value.name or "?", value.producer()
        scope = self._scope(node) if node is not None else ""
        if value.is_graph_input():
            return f"the input {name}"
        return f"{name} (in {scope})" if scope else name

    def has_path(self, value: ir.Value) -> bool:
        """Whether there is a module path for exactly this value."""
        return frozenset([value]) in self._labels

    def has_tensor(self, name: str) -> bool:
        """Whether an activation of the graph, or a node, has this name."""
        return name in self._values or any(node.name == name for node in self._nodes)

    def spec(self, values: Sequence[ir.Value]) -> str:
        """The argument of `--cut` for `values`: the module path for exactly these, or else one name per value, with
        commas between them."""
        whole = self._labels.get(frozenset(values))
        return whole or ",".join(self._labels.get(frozenset([v]), str(v.name)) for v in values)

    @property
    def knows_modules(self) -> bool:
        """Whether the graph has module paths."""
        return bool(self._labels)

    def nearest(self, layer: str) -> list[str]:
        """At most NEAREST names that are similar to `layer`, the most similar first."""
        paths = [*self._calls, *self._modules]
        words = list(dict.fromkeys([*paths, *self._values]))
        close = difflib.get_close_matches(layer, words, n=NEAREST, cutoff=0.6)
        inside = [w for w in words if w.split(".")[-1] == layer or w.startswith(layer)]
        return list(dict.fromkeys([*close, *inside]))[:NEAREST]

    def _outputs(self, nodes: list[ir.Node]) -> tuple[ir.Value, ...]:
        """The activations of `nodes` whose values (not only sizes) other nodes read, or that leave the graph."""
        members = set(nodes)

        def leaves(value: ir.Value) -> bool:
            return value.is_graph_output() or any(n not in members for n in self._readers.get(value, ()))

        values = [v for n in nodes for v in n.outputs if self.flow.kind(v) == Kind.ACTIVATION]
        return tuple(v for v in values if leaves(v))

    def _scope(self, node: ir.Node) -> str:
        """Path of the innermost module around the node; "" for the forward() of the network itself."""
        stack = self._stacks.get(node)
        return stack[-1][0] if stack else ""

    def _uses(self, layer: str) -> list[ir.Node]:
        """The nodes outside the scope of a layer, in its parent or a sibling, that use the weights of the layer."""
        parent = layer.rpartition(".")[0]
        users = []
        for node, values in zip(self.flow.nodes, self.flow.reads, strict=True):
            scope = self._scope(node)
            if (scope == parent or scope.rpartition(".")[0] == parent) and any(
                v.is_initializer() and v.name in (f"{layer}.weight", f"{layer}.bias") for v in values
            ):
                users.append(node)
        return users

    def _by_weights(self, layer: str, k: int | None) -> Resolved | None:
        """The output of a layer whose weights are used outside its scope.

        This is a convolution that was folded into the batch norm after it (the fused node has the scope of the batch
        norm), or a linear layer that its parent does not call (attention). k: the call, or None. The layer runs as
        often as its parent.
        """
        parent = layer.rpartition(".")[0]
        uses, count = self._uses(layer), self._record.runs.get(layer, 0)
        if count != len(uses):  # one node per call: a call may use weight and bias in two nodes
            first: dict[Call | None, ir.Node] = {}
            for node in uses:
                first.setdefault(next((c for c in self._stacks[node] if c[0] == parent), None), node)
            uses = list(first.values())
        if not uses or (count > 1 and len(uses) != count):
            return None
        if k is None and len(uses) > 1:
            raise UsageError(_several(layer, layer, len(uses)))
        node = uses[_call(layer, len(uses), k)]
        scope, value = self._scope(node), node.outputs[0]
        readers = self._readers.get(value, [])
        biased = node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add"
        if biased and any(v is not None and v.is_initializer() for v in readers[0].inputs):
            value = readers[0].outputs[0]
        if not scope or scope == parent:
            note = f"{layer!r} is not called: {parent or 'the network'!r} uses its weights; the cut is after that"
        else:
            note = f"{layer!r} was folded into {scope!r} by the ONNX export; the cut is after {scope!r}"
        return Resolved(values=(value,), note=note)

    def _passed(self, path: str, call: int) -> Resolved | None:
        """The tensor of a call that returns its argument unchanged, found through the modules around it."""
        for place in self._record.passed.get((path, call), ()):
            values = [v for v in self._at(place) if fits(v, place.shape)]
            if len(values) == 1:
                name = f"{path!r} ({self._modules.get(path, 'module')})"
                note = f"{name} returns what it is given; the cut is at that tensor, {self.label(values[0])}"
                return Resolved(values=tuple(values), note=note, call=(path, call))
        return None

    def _at(self, place: Place) -> Sequence[ir.Value]:
        """The activations that can be the tensor at `place`."""
        nodes = self._calls.get(place.path, {}).get(place.call)
        if nodes is None:
            folded = self._by_weights(place.path, place.call) if place.how == "leaves" else None
            return folded.values if folded else ()
        if place.how == "leaves":
            return self._outputs(nodes)
        outputs_of_nodes = [v for node in nodes for v in node.outputs]
        if place.how == "enters":
            inputs_of_nodes = (v for node in nodes for v in self.flow.used[self.flow.position[node]])
            return list(dict.fromkeys(v for v in inputs_of_nodes if v not in set(outputs_of_nodes)))
        outputs = set(self._outputs(nodes))
        direct = [v for node in nodes if self._scope(node) == place.path for v in node.outputs]
        return [v for v in direct if v not in outputs and self.flow.kind(v) == Kind.ACTIVATION]

    def _give_up(self, layer: str, k: int | None) -> Resolved:
        if layer in self._calls:
            raise UsageError(
                f"call {k} of layer {layer!r} leaves no node of its own in the ONNX graph, or none that can be told"
                " from its other calls; name the layer before or after it"
            )
        if layer in self._modules:
            parent = layer.rpartition(".")[0]
            if self._record.runs.get(layer, 1) == 0:
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
        """Values → the shortest module path for exactly these values."""
        labels: dict[frozenset[ir.Value], str] = {}
        for path, runs in self._calls.items():
            for k, nodes in runs.items():
                outputs = frozenset(self._outputs(nodes))
                label = path if self._count(path) <= 1 else f"{path}[{k}]"
                if outputs and k >= 0 and len(label) < len(labels.get(outputs, label + " ")):
                    labels[outputs] = label
        return labels


def _several(name: str, path: str, count: int) -> str:
    same = "" if name == path else f" (it is the module {path!r})"
    return f"layer {name!r}{same} runs {count} times; say which call: {name}[0] … {name}[{count - 1}]"


def _call(path: str, count: int, k: int | None) -> int:
    """The call `k`; negative k counts from the end, and None means the first. Raises UsageError."""
    if k is not None and not -count <= k < count:
        raise UsageError(f"layer {path!r} runs {count} time(s); there is no call {k}")
    return k or 0


def fits(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether the value can have this shape after its first axis; unknown axes fit."""
    if value.shape is None:
        return True
    dims = list(value.shape)[1:]
    return len(dims) == len(shape) and all(
        d in (None, n) for d, n in zip(dims, shape, strict=True) if isinstance(d, int)
    )
