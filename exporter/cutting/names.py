"""From what the user calls a layer to the ONNX value, and back.

A layer is a module path (`layer2`, `features.13`), a call of a module that runs several times (`layer1.0.relu[1]`), or
an ONNX tensor or node name. Module paths are read off the graph: torch's dynamo exporter writes the scopes of each node
into its metadata, its TorchScript exporter into the node names; so they work for most ONNX files too. Which call a
node belongs to is calls.py's part.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import UsageError
from splitwire.exporter.network.calls import Stack, stacks
from splitwire.exporter.network.dataflow import Flow, Kind
from splitwire.exporter.network.passthrough import Call, Place, Seen
from splitwire.exporter.network.source import Source

EMPTY_NAME = (
    "the cut (--cut, cut=) holds an empty name; it takes a layer, a tensor, or several with commas between them"
)

NEAREST = 5
"""How many nearby names an error message shows."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """values: what leaves the layer, one or more activations. note: what the user should know about the name.

    call: of the module whose output the values should be (layer_check.py); None where the name is no module's.
    """

    values: tuple[ir.Value, ...]
    note: str | None = None
    call: Call | None = None


class Names:
    """The names of one graph. Reads the graph once; the graph must not change afterwards."""

    def __init__(
        self,
        graph: ir.Graph,
        modules: Mapping[str, str] | None = None,
        seen: Seen | None = None,
        stamped: Mapping[ir.Node, Stack] | None = None,
    ) -> None:
        """modules: module path → class name of the torch module, where there is one. seen: how its modules ran; tells
        their calls apart, and finds those that leave no node in the graph (passing.py). stamped: the calls around
        nodes, as far as the exporter knew them (calls.py)."""
        self._seen = seen or Seen()
        self.flow = Flow(graph)
        self._modules = modules or {}
        self._nodes = list(self.flow.nodes)
        self._stacks = stacks(self.flow, self._seen, stamped or {})
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
        """The names of a network."""
        return cls(source.graph, source.modules, source.seen, source.stamped)

    def resolve(self, layer: str) -> Resolved:
        """The values that leave `layer`.

        Raises UsageError: empty, unknown (the nearest names are shown), runs several times and no call is named, or
        leaves no node in the graph.
        """
        if not layer.strip():
            raise UsageError(EMPTY_NAME)
        if layer in self._calls:
            return self._call_of(layer, None)
        if layer in self._values:
            return Resolved(values=(self._values[layer],))
        match = re.fullmatch(r"(.+)\[(-?\d+)\]", layer)
        path, k = (match[1], int(match[2])) if match else (layer, None)
        if path in self._seen.aliases or path in self._calls:
            return self._call_of(path, k)
        for node in self._nodes:
            if node.name == layer and self.flow.kind(node.outputs[0]) == Kind.ACTIVATION:
                return Resolved(values=(node.outputs[0],))
        if again := re.fullmatch(r"(.+)_(\d+)", layer):  # how TorchScript's node names write a call
            path, k = again[1], int(again[2])
            if len(self._calls.get(path, ())) > 1 and k in self._calls[path]:
                return self._call_of(path, k)
        return self._by_weights(path, k) or self._give_up(layer, k)

    def _call_of(self, given: str, k: int | None) -> Resolved:
        """What leaves call `k` of a module; None where the user names none: then it must be the only one."""
        path = self._seen.aliases.get(given, given)
        count = self._count(path)  # 0 where nobody calls it; but its weights may be used
        if k is None and count > 1:
            raise UsageError(_several(given, path, count))
        call = _call(given, count, k) % count if count else 0
        nodes = self._calls.get(path, {}).get(call)
        if nodes is not None:
            return Resolved(values=self._outputs(nodes), call=(path, call))
        return self._by_weights(path, k) or self._passed(path, call) or self._give_up(path, call if count > 1 else None)

    def _count(self, path: str) -> int:
        """How often the module runs: as it was seen, or, in a file, as the graph has it."""
        return self._seen.runs.get(path, len(self._calls.get(path, ())))

    def label(self, value: ir.Value) -> str:
        """How to name `value` to the user: the module path that gives exactly it, else the tensor name and where."""
        if self.has_path(value):
            return self._labels[frozenset([value])]
        name, node = value.name or "?", value.producer()
        scope = self._scope(node) if node is not None else ""
        if value.is_graph_input():
            return f"the input {name}"
        return f"{name} (in {scope})" if scope else name

    def has_path(self, value: ir.Value) -> bool:
        """Whether a module path gives exactly this value."""
        return frozenset([value]) in self._labels

    def has_tensor(self, name: str) -> bool:
        """Whether a tensor of the graph, or the node that makes it, has this name."""
        return name in self._values or any(node.name == name for node in self._nodes)

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

    def _scope(self, node: ir.Node) -> str:
        """Path of the innermost module around the node; "" for what the network's own forward() does."""
        stack = self._stacks.get(node)
        return stack[-1][0] if stack else ""

    def _uses(self, layer: str) -> list[ir.Node]:
        """The nodes that use the weights of a layer outside its scope, in its parent or in a neighbour."""
        parent = layer.rpartition(".")[0]
        found = []
        for node, values in zip(self.flow.nodes, self.flow.reads, strict=True):
            scope = self._scope(node)
            if (scope == parent or scope.rpartition(".")[0] == parent) and any(
                v.is_initializer() and v.name in (f"{layer}.weight", f"{layer}.bias") for v in values
            ):
                found.append(node)
        return found

    def _by_weights(self, layer: str, k: int | None) -> Resolved | None:
        """A layer whose weights are used outside its scope: a convolution that was folded into the batch norm after it
        (the fused node carries the batch norm's scope), or a linear layer that its parent does not call (attention).
        k: the call, or None; where the parent runs several times, so does this."""
        parent = layer.rpartition(".")[0]
        uses, count = self._uses(layer), self._seen.runs.get(layer, 0)
        if count != len(uses):  # several of one call count as one: weight and bias, or parts of the weight
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
        """A call that returns what it is given: the tensor, found by the modules around it."""
        for place in self._seen.passed.get((path, call), ()):
            values = [v for v in self._at(place) if fits(v, place.shape)]
            if len(values) == 1:
                name = f"{path!r} ({self._modules.get(path, 'module')})"
                note = f"{name} returns what it is given; the cut is at that tensor, {self.label(values[0])}"
                return Resolved(values=tuple(values), note=note, call=(path, call))
        return None

    def _at(self, place: Place) -> Sequence[ir.Value]:
        """The activations that may be the one at `place`."""
        nodes = self._calls.get(place.path, {}).get(place.call)
        if nodes is None:
            folded = self._by_weights(place.path, place.call) if place.how == "leaves" else None
            return folded.values if folded else ()
        if place.how == "leaves":
            return self._outputs(nodes)
        made = [v for node in nodes for v in node.outputs]
        if place.how == "enters":
            read = (v for node in nodes for v in self.flow.used[self.flow.position[node]])
            return list(dict.fromkeys(v for v in read if v not in set(made)))
        outputs = set(self._outputs(nodes))
        own = [v for node in nodes if self._scope(node) == place.path for v in node.outputs]
        return [v for v in own if v not in outputs and self.flow.kind(v) == Kind.ACTIVATION]

    def _give_up(self, layer: str, k: int | None) -> Resolved:
        if layer in self._calls:
            raise UsageError(
                f"call {k} of layer {layer!r} leaves no node of its own in the ONNX graph, or none that can be told"
                " from its other calls; name the layer before or after it"
            )
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
            for k, nodes in runs.items():
                outputs = frozenset(self._outputs(nodes))
                label = path if self._count(path) <= 1 else f"{path}[{k}]"
                if outputs and k >= 0 and len(label) < len(labels.get(outputs, label + " ")):
                    labels[outputs] = label
        return labels


def _several(given: str, path: str, count: int) -> str:
    same = "" if given == path else f" (it is the module {path!r})"
    return f"layer {given!r}{same} runs {count} times; say which call: {given}[0] … {given}[{count - 1}]"


def _call(path: str, count: int, k: int | None) -> int:
    """The call `k`, which may count from the end; the first where none is said. Raises UsageError."""
    if k is not None and not -count <= k < count:
        raise UsageError(f"layer {path!r} runs {count} time(s); there is no call {k}")
    return k or 0


def fits(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether the value may have this shape after its first axis, as far as its own is known."""
    if value.shape is None:
        return True
    own = list(value.shape)[1:]
    return len(own) == len(shape) and all(d in (None, n) for d, n in zip(own, shape, strict=True) if isinstance(d, int))
