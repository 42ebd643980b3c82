"""Decide what lies before and after a set of tensors: graph theory, without names and messages.

A node lies after the set if it reads the values of one of the tensors, or reads anything (even only a size) from
another node that lies after the set. The sizes of the tensors themselves are known on both sides. An output belongs to
the front half if it is computed no later than the last tensor of the set, and does not depend on the set alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.exporter.network.dataflow import Flow, Kind


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How a set of tensors divides the graph.

    late: outputs of the graph that depend on the set. after: nodes that depend on the set and lead to these outputs, in
    execution order. read: tensors of the set whose values these nodes read. crossing: other activations whose values
    they read; empty if the set is a cut.
    """

    late: tuple[ir.Value, ...]
    after: tuple[ir.Node, ...]
    read: frozenset[ir.Value]
    crossing: tuple[ir.Value, ...]


def separation(flow: Flow, tensors: Collection[ir.Value]) -> Separation:
    """What lies after `tensors`, and which other activations cross. Takes time linear in the graph."""
    members = frozenset(tensors)
    last = max(flow.made_at(v) for v in members)
    following: set[ir.Value] = set()
    mixed: set[ir.Value] = set()  # those of `following` that also depend on other activations
    follows = []
    for t, node in enumerate(flow.nodes):
        if members.isdisjoint(node.outputs) and (
            not members.isdisjoint(flow.used[t]) or not following.isdisjoint(flow.reads[t])
        ):
            follows.append(t)
            following.update(node.outputs)
            beside = any(v not in members and v not in following for v in flow.used[t])
            if beside or not mixed.isdisjoint(flow.reads[t]):
                mixed.update(node.outputs)
    late = [v for v in flow.graph.outputs if v in following and (flow.made_at(v) > last or v not in mixed)]
    needed = set(late)
    after: list[ir.Node] = []
    read: set[ir.Value] = set()
    crossing: set[ir.Value] = set()
    for t in reversed(follows):
        node = flow.nodes[t]
        if needed.isdisjoint(node.outputs):
            continue
        after.append(node)
        needed.update(v for v in flow.reads[t] if v in following)
        outside = [v for v in flow.used[t] if v not in following]
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

    One sweep from the outputs to the input computes three sets for every value: the nodes after it, the values that
    they make, and the values that they read. A tensor separates the graph if and only if these nodes read nothing but
    the tensor and what they make. The sets are bits of Python integers: 6,000 nodes take a fraction of a second.
    """
    number = {v: i for i, v in enumerate(flow.kinds)}
    after, produced, consumed = ([0] * len(number) for _ in range(3))
    # the same three sets, but also for nodes that read only the size of the value
    behind, produced_behind, consumed_behind = ([0] * len(number) for _ in range(3))
    for t in reversed(range(len(flow.nodes))):
        if not flow.needed[t]:
            continue
        nodes, makes, takes = 1 << t, 0, 0
        for value in flow.nodes[t].outputs:
            i = number[value]
            nodes, makes, takes = nodes | behind[i], makes | produced_behind[i] | 1 << i, takes | consumed_behind[i]
        for value in flow.used[t]:
            takes |= 1 << number[value]
        for value in flow.used[t]:
            i = number[value]
            after[i], produced[i], consumed[i] = after[i] | nodes, produced[i] | makes, consumed[i] | takes
        for value in flow.reads[t]:
            if flow.kind(value) != Kind.CONSTANT:
                i = number[value]
                behind[i], produced_behind[i] = behind[i] | nodes, produced_behind[i] | makes
                consumed_behind[i] |= takes
    outputs = sum(1 << number[v] for v in set(flow.graph.outputs) if v in number)
    for value, i in number.items():
        if value.producer() is None or flow.kinds[value] != Kind.ACTIVATION or not value.name:
            continue
        if produced[i] & outputs and not consumed[i] & ~produced[i] & ~(1 << i):
            yield value, frozenset(_bits(after[i]))


def _bits(number: int) -> Iterator[int]:
    """Positions of the bits that are set."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def alive_sets(flow: Flow, most: int) -> Iterator[list[ir.Value]]:
    """The sets of at most `most` tensors that are alive between two nodes, each set once; without the graph's input.

    An activation is alive from the node that makes it to the last node that reads its values. The nodes after the
    boundary read only living tensors and what they make themselves, so each set is a cut. The exception: if an output
    is made between the last tensor of the set and the boundary, `separation` decides.
    """
    output_positions = [flow.made_at(v) for v in flow.graph.outputs]
    last_use: dict[ir.Value, int] = {}
    for t, values in enumerate(flow.used):
        if flow.needed[t]:
            last_use.update(dict.fromkeys(values, t))
    dying: dict[int, list[ir.Value]] = {}
    for value, t in last_use.items():
        dying.setdefault(t, []).append(value)
    alive = {v: None for v in flow.graph.inputs if v in last_use}
    yielded = set()
    for t, node in enumerate(flow.nodes):
        alive.update((v, None) for v in node.outputs if v in last_use)
        for value in dying.get(t, ()):
            del alive[value]
        if 0 < len(alive) <= most and not any(v.is_graph_input() for v in alive):
            key = frozenset(alive)
            last = max(flow.made_at(v) for v in key)
            if key not in yielded and (not any(last < p <= t for p in output_positions) or _separates(flow, key)):
                yielded.add(key)
                yield list(alive)


def alive_after(flow: Flow, position: int) -> list[ir.Value]:
    """The graph inputs and tensors made up to `position` whose values later nodes read."""
    later = range(position + 1, len(flow.nodes))
    read = {v for t in later if flow.needed[t] for v in flow.used[t]}
    return flow.in_order(v for v in read if flow.made_at(v) <= position)


def closed(flow: Flow, tensors: Collection[ir.Value]) -> Iterator[list[ir.Value]]:
    """The cuts that contain `tensors`: with all other tensors that cross, and with all that are alive when the last of
    `tensors` is made."""
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
