"""What lies before and after a tensor or a set of tensors: graph theory, no names and no messages.

A node lies after a set of tensors if it needs the values of one of them, or anything, be it only a size, of another
node that lies after. Sizes of the tensors themselves are known on both sides. Outputs that are made no later than the
last tensor of the set, and not from the set alone, leave from the front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.exporter.network.dataflow import Flow, Kind


@dataclass(frozen=True, kw_only=True)
class Separation:
    """What a set of tensors separates.

    late: outputs of the graph that follow from it. after: nodes that follow from it and that these outputs need, in
    execution order. read: the tensors of the set whose values these nodes read. crossing: other activations whose
    values they read: empty if the set is a cut.
    """

    late: tuple[ir.Value, ...]
    after: tuple[ir.Node, ...]
    read: frozenset[ir.Value]
    crossing: tuple[ir.Value, ...]


def separation(flow: Flow, tensors: Collection[ir.Value]) -> Separation:
    """What lies after `tensors`, and what would have to cross beside them. O(graph)."""
    members = frozenset(tensors)
    last = max(flow.made_at(v) for v in members)
    made: set[ir.Value] = set()
    mixed: set[ir.Value] = set()  # of these, what does not follow from the members alone
    follows = []
    for t, node in enumerate(flow.nodes):
        if members.isdisjoint(node.outputs) and (
            not members.isdisjoint(flow.used[t]) or not made.isdisjoint(flow.reads[t])
        ):
            follows.append(t)
            made.update(node.outputs)
            beside = any(v not in members and v not in made for v in flow.used[t])
            if beside or not mixed.isdisjoint(flow.reads[t]):
                mixed.update(node.outputs)
    late = [v for v in flow.graph.outputs if v in made and (flow.made_at(v) > last or v not in mixed)]
    needed = set(late)
    after: list[ir.Node] = []
    read: set[ir.Value] = set()
    crossing: set[ir.Value] = set()
    for t in reversed(follows):
        node = flow.nodes[t]
        if needed.isdisjoint(node.outputs):
            continue
        after.append(node)
        needed.update(v for v in flow.reads[t] if v in made)
        outside = [v for v in flow.used[t] if v not in made]
        read.update(v for v in outside if v in members)
        crossing.update(v for v in outside if v not in members)
    return Separation(
        late=tuple(late),
        after=tuple(reversed(after)),
        read=frozenset(read),
        crossing=tuple(flow.in_order(crossing)),
    )


def single_cuts(flow: Flow) -> Iterator[tuple[ir.Value, frozenset[int]]]:
    """Every tensor that separates the graph, and the positions of the nodes after it; in execution order.

    One sweep from the outputs to the input carries three sets of every value: what lies after it, what is made there,
    and what is read there. The tensor separates exactly if all that is read there is itself or made there. The sets are
    bits of Python integers: 6,000 nodes take a fraction of a second.
    """
    number = {v: i for i, v in enumerate(flow.kinds)}
    after, made, read = ([0] * len(number) for _ in range(3))
    behind, made_behind, read_behind = ([0] * len(number) for _ in range(3))  # also what reads the value's size
    for t in reversed(range(len(flow.nodes))):
        if not flow.needed[t]:
            continue
        nodes, makes, takes = 1 << t, 0, 0
        for value in flow.nodes[t].outputs:
            i = number[value]
            nodes, makes, takes = nodes | behind[i], makes | made_behind[i] | 1 << i, takes | read_behind[i]
        for value in flow.used[t]:
            takes |= 1 << number[value]
        for value in flow.used[t]:
            i = number[value]
            after[i], made[i], read[i] = after[i] | nodes, made[i] | makes, read[i] | takes
        for value in flow.reads[t]:
            if flow.kind(value) != Kind.CONSTANT:
                i = number[value]
                behind[i], made_behind[i] = behind[i] | nodes, made_behind[i] | makes
                read_behind[i] |= takes
    outputs = sum(1 << number[v] for v in set(flow.graph.outputs) if v in number)
    for value, i in number.items():
        if value.producer() is None or flow.kinds[value] != Kind.ACTIVATION or not value.name:
            continue
        if made[i] & outputs and not read[i] & ~made[i] & ~(1 << i):
            yield value, frozenset(_bits(after[i]))


def _bits(number: int) -> Iterator[int]:
    """Positions of the ones."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def alive_sets(flow: Flow, most: int) -> Iterator[list[ir.Value]]:
    """The tensors that are alive between two nodes, wherever they are at most `most` and the input is not among them.

    Each set once. An activation is alive from the node that makes it to the last node that reads its values. What all
    nodes after the boundary read is made there or alive, so each set is a cut; unless an output is made between the
    last tensor of the set and the boundary: then `separation` decides.
    """
    made = [flow.made_at(v) for v in flow.graph.outputs]
    last_use: dict[ir.Value, int] = {}
    for t, values in enumerate(flow.used):
        if flow.needed[t]:
            last_use.update(dict.fromkeys(values, t))
    dying: dict[int, list[ir.Value]] = {}
    for value, t in last_use.items():
        dying.setdefault(t, []).append(value)
    alive = {v: None for v in flow.graph.inputs if v in last_use}
    seen = set()
    for t, node in enumerate(flow.nodes):
        alive.update((v, None) for v in node.outputs if v in last_use)
        for value in dying.get(t, ()):
            del alive[value]
        if 0 < len(alive) <= most and not any(v.is_graph_input() for v in alive):
            key = frozenset(alive)
            last = max(flow.made_at(v) for v in key)
            if key not in seen and (not any(last < p <= t for p in made) or _separates(flow, key)):
                seen.add(key)
                yield list(alive)


def alive_after(flow: Flow, position: int) -> list[ir.Value]:
    """The tensors that nodes after `position` read by value and nodes up to it, or the input, make."""
    later = range(position + 1, len(flow.nodes))
    read = {v for t in later if flow.needed[t] for v in flow.used[t]}
    return flow.in_order(v for v in read if flow.made_at(v) <= position)


def closed(flow: Flow, tensors: Collection[ir.Value]) -> Iterator[list[ir.Value]]:
    """Cuts that `tensors` become with others: with all that crosses beside them, and with all that is alive when the
    last of them is made."""
    members, parts = flow.in_order(tensors), separation(flow, tensors)
    while parts.crossing:
        members = flow.in_order([*members, *parts.crossing])
        parts = separation(flow, members)
    if parts.late:
        yield [v for v in members if v in parts.read]
    beside = alive_after(flow, max(flow.made_at(v) for v in tensors))
    if set(tensors) <= set(beside) and _separates(flow, beside):
        yield beside


def _separates(flow: Flow, tensors: Collection[ir.Value]) -> bool:
    parts = separation(flow, tensors)
    return bool(parts.late) and not parts.crossing
