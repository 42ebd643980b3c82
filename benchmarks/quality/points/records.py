"""What was measured at one cut of one scheme, and the files that keep it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_json
from splitwire.exporter.points.damage import Task

OUT = Path("build/bench/points")
TODAY, PAPER, TRANSFORM = "today", "paper", "transform"
"""Schemes: the scalar codec's points, the paper's codec with the paper's quantizers, transform coefficients."""


class Row(Struct, frozen=True, kw_only=True):
    """One operating point. bytes: mean over single inputs, with all headers and side information. damage: of the
    outputs, exporter/points/damage.py. agreement: share of answers as the whole network's, in [0, 1]. score: accuracy
    or mAP, in [0, 1]; None without labels.
    """

    op: str
    bytes: float
    damage: float
    agreement: float
    score: float | None


class Cost(Struct, frozen=True, kw_only=True):
    """What a transform costs.

    coefficients: of one input that are sent. design_s: processor seconds of the design. gain: log damage by refinement
    at equal bytes, 0 where it was not kept. front_ms, back_ms: median milliseconds of the halves for one input, on all
    cores, without and with the transform; None where they were not measured, as on a busy machine.
    """

    coefficients: int
    design_s: float
    gain: float
    front_ms: tuple[float, float] | None = None
    back_ms: tuple[float, float] | None = None


class Record(Struct, frozen=True, kw_only=True):
    """One scheme at one cut.

    cut: key of SUBJECTS. shape: of the tensor, without the batch. task: whose damage it is. calibration, test: numbers
    of inputs. score_name: what `whole` and the rows' score are; None without labels. whole: the score of the whole
    network. seconds: wall time of the design and the measurement.
    """

    cut: str
    scheme: str
    shape: tuple[int, ...]
    task: Task
    calibration: int
    test: int
    score_name: str | None
    whole: float | None
    rows: tuple[Row, ...]
    seconds: float
    machine: dict[str, str]
    cost: Cost | None = None


def path_of(cut: str, scheme: str) -> Path:
    """The file of a record."""
    return OUT / cut / f"{re.sub('[^a-z0-9]+', '-', scheme)}.json"


def keep(record: Record) -> None:
    """Write the file of a record."""
    path = path_of(record.cut, record.scheme)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def kept(cut: str, scheme: str) -> Record | None:
    """The record in the file; None where nothing was measured. Raises UsageError for a damaged file."""
    path = path_of(cut, scheme)
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as e:
        raise UsageError(f"{path} is no record of this benchmark ({e}); measure it again with --again") from e
