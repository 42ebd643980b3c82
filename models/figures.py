"""Measurements at the cuts of the recipes, from `data/cuts.json`. A command writes this file, never a person."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from splitwire.codec.errors import UsageError

CUTS = Path(__file__).parent / "data" / "cuts.json"


class CutFigures(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cut of one network, at the input shape of its recipe.

    cut: the layer in the form of --cut. tensors: names in the graph, in execution order. shapes: of one image's
    tensors, without the batch axis, in the same order. elements: in all tensors together. edge_macs_share,
    edge_parameters_share: the share of the front in the network's multiply-accumulates and parameters, in [0, 1].
    bits_per_element: of the default operating point, on calibrated features; None if no frame was coded.
    """

    cut: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    elements: int
    edge_macs_share: float
    edge_parameters_share: float
    bits_per_element: float | None = None

    def __post_init__(self) -> None:
        if not self.tensors or len(self.tensors) != len(self.shapes):
            raise ValueError(f"{self.cut!r} has {len(self.tensors)} tensors and {len(self.shapes)} shapes")


@cache
def read() -> dict[str, tuple[CutFigures, ...]]:
    """The shipped figures: network → its measured cuts. The file is read once. Raises the errors of read_file."""
    return read_file(CUTS)


def read_file(path: Path) -> dict[str, tuple[CutFigures, ...]]:
    """Network → its measured cuts; empty if the file does not exist. Raises UsageError if it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[CutFigures, ...]])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(f"{path} holds no figures of cuts: {e}; reinstall splitwire") from e


def encode(cuts: dict[str, tuple[CutFigures, ...]]) -> bytes:
    """The JSON for `read`, indented, with a final newline; the networks are in the order of their names."""
    return msgspec.json.format(msgspec.json.encode(dict(sorted(cuts.items()))), indent=1) + b"\n"
