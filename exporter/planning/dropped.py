"""Find tensors that separate the network but are no cuts, because the codec cannot carry them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.exporter.cutting.cuts import why_not_carried
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.separation import single_cuts
from splitwire.exporter.network.dataflow import Flow

NAMED = 3
"""Number of labels per group in a sentence."""


@dataclass(frozen=True, kw_only=True)
class DroppedCut:
    """A tensor that separates the network, and that the codec cannot carry.

    label: the tensor, in the form of `--cut`. reason: why, with its type or shape. kind: the reason without these, to
    group the tensors.
    """

    label: str
    reason: str
    kind: str


def dropped_cuts(graph: ir.Graph, names: Names) -> list[DroppedCut]:
    """The single tensors that separate the network and that the codec cannot carry, in execution order."""
    flow = names.flow if names.flow.graph is graph else Flow(graph)
    dropped = []
    for value, _ in single_cuts(flow):
        reason = why_not_carried(value)
        if reason is not None:
            dropped.append(DroppedCut(label=names.spec([value]), reason=reason, kind=_kind(reason)))
    return dropped


def _kind(reason: str) -> str:
    """The reason without the shape of the tensor."""
    if not reason.startswith("has the shape "):
        return reason
    kind = reason.rpartition("; ")[2]
    return "a size depends on the data, and the codec carries fixed shapes" if kind.startswith("the size ") else kind


def grouped(dropped: Sequence[DroppedCut]) -> dict[str, list[DroppedCut]]:
    """Kind of reason → its tensors, the largest group first."""
    groups: dict[str, list[DroppedCut]] = {}
    for cut in dropped:
        groups.setdefault(cut.kind, []).append(cut)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def in_words(dropped: Sequence[DroppedCut]) -> list[str]:
    """One line per kind of reason: the number of tensors, the first ones, and the reason."""
    lines = []
    for kind, members in grouped(dropped).items():
        first = ", ".join(m.label for m in members[:NAMED])
        rest = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        why = members[0].reason if len(members) == 1 else kind
        lines.append(f"{len(members)} cut{'s' * (len(members) > 1)} not looked at ({first}{rest}): {why}")
    return lines
