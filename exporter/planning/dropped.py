"""Tensors that separate the network and are no cuts all the same, since the codec cannot carry them; and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.exporter.cutting.cuts import why_not_carried
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.separation import single_cuts
from splitwire.exporter.network.dataflow import Flow

NAMED = 3
"""Labels of each group that a sentence shows."""


@dataclass(frozen=True, kw_only=True)
class DroppedCut:
    """label: the tensor, as `--cut` would take it. reason: of this tensor, with its type or shape. kind: the same
    without them, to group by."""

    label: str
    reason: str
    kind: str


def dropped_cuts(graph: ir.Graph, names: Names) -> list[DroppedCut]:
    """The single tensors that separate the network and that the codec cannot carry, in execution order."""
    flow = names.flow if names.flow.graph is graph else Flow(graph)
    found = []
    for value, _ in single_cuts(flow):
        reason = why_not_carried(value)
        if reason is not None:
            found.append(DroppedCut(label=names.spec([value]), reason=reason, kind=_kind(reason)))
    return found


def _kind(reason: str) -> str:
    """The reason without the shape of the one tensor."""
    if not reason.startswith("has the shape "):
        return reason
    kind = reason.rpartition("; ")[2]
    return "a size depends on the data, and the codec carries fixed shapes" if kind.startswith("the size ") else kind


def grouped(dropped: Sequence[DroppedCut]) -> dict[str, list[DroppedCut]]:
    """By kind of reason, the largest group first."""
    groups: dict[str, list[DroppedCut]] = {}
    for one in dropped:
        groups.setdefault(one.kind, []).append(one)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def in_words(dropped: Sequence[DroppedCut]) -> list[str]:
    """One line for each kind of reason: how many, why, and the first of them."""
    lines = []
    for kind, members in grouped(dropped).items():
        first = ", ".join(m.label for m in members[:NAMED])
        rest = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        why = members[0].reason if len(members) == 1 else kind
        lines.append(f"{len(members)} cut{'s' * (len(members) > 1)} not looked at ({first}{rest}): {why}")
    return lines
