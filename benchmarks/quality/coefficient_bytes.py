"""Where the payload bytes of transform coefficients go (`python -m benchmarks.quality.coefficient_bytes`).

Arguments: keys of SUBJECTS (points/subjects.py); eight by default. At a middle and a low point of each cut, in bytes of
single test inputs:

coder 5, coder 6   real payloads
ideal              code length of coder 6 by the tables of the profile, which calibration inputs made
signs              of it, one bit for each coefficient that is not zero
own tables         the same with tables counted on the test inputs themselves: no static tables do better
no groups          code length by calibrated tables of single coefficients, without flags of groups
activity           the same, each class moved by the magnitudes that were coded before, beside what was expected

The last two have tables of the same making, so that they may be compared. Writes build/bench/coefficient_bytes.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET, Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter

from benchmarks.quality.points.equal import geometric_mean
from benchmarks.quality.points.measure import Cut, designed_transform
from benchmarks.quality.points.subjects import SUBJECTS
from splitwire.codec.design.transform_tables import design_transform_tables, ideal_bits
from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.shared.files import write_json
from splitwire.codec.transform import SYMBOLS, Transform
from splitwire.exporter.transform.rate import quantized
from splitwire.exporter.transform.tensor import TransformDesign

CUTS = ("demo", "vit", "convnext", "mobilenet_v3", "efficientnet", "features.18", "features.13", "recogniser")
POINTS = (3, 6)
"""Of the ladder: q4 and q7."""
MOST_NUMBERS = 4_000_000
"""Coefficients that are looked at, of calibration and of test inputs each."""
JSON = Path("build/bench/coefficient_bytes.json")
TABLES = 128
LOWEST = -90
"""Class minus step index of the first of TABLES tables."""
UNSEEN = 0.02
"""Added to each count, so that every symbol has a length."""
ESCAPE_BITS = 16
DECAY, SURE, SHARE = 0.95, 2.0, 0.5
"""Of the activity: how much of it is left one coefficient later; magnitude of the prior; exponent of the ratio of what
was seen to what was expected."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


class Row(Struct, frozen=True, kw_only=True):
    """Bytes of one point, as above."""

    cut: str
    point: str
    coder5: float
    coder6: float
    ideal: float
    signs: float
    own_tables: float
    no_groups: float
    activity: float


def rows_of(key: str) -> list[Row]:
    """The rows of a cut."""
    cut = Cut.of(key, SUBJECTS[key])
    designed = designed_transform(cut, None)
    (design,) = designed.designs
    calibration, test = (_coefficients(cut, design, x) for x in (cut.material.calibration, cut.material.test))
    ladder = [p.step for p in designed.points]
    return [_row(key, designed.points[i].name, design.transform, calibration, test, i, ladder) for i in POINTS]


def _coefficients(cut: Cut, design: TransformDesign, inputs: Floats) -> Floats:
    """(n, tiles, N) of the first inputs."""
    count = max(8, MOST_NUMBERS // design.layout.elements)
    size = cut.front.batch or 20
    parts = [cut.front.run(inputs[i : i + size])[0] for i in range(0, min(len(inputs), count), size)]
    return np.concatenate([design.analyse(np.asarray(x, np.float32)) for x in parts])


def _row(
    key: str, point: str, transform: Transform, calibration: Floats, test: Floats, index: int, ladder: Sequence[int]
) -> Row:
    step, shape = ladder[index], test.shape[1:]
    q = quantized(test, step)
    near = {j: quantized(calibration, j) for j in ladder if abs(j - step) <= 4}
    means = np.abs(test).mean(axis=(0, 1), dtype=np.float64)
    own = design_transform_tables(means, {step: q}, features="", feature_shape=(1,))
    classes = np.frombuffer(transform.classes, np.uint8)[transform.order()].astype(int)
    order = transform.order()
    kept = {j: x[:, :, order] for j, x in near.items()}
    plain, moved = (_length(kept, q[:, :, order], step, classes, activity=on) for on in (False, True))
    return Row(
        cut=key, point=point, coder5=_payload(msgspec.structs.replace(transform, coder=UNSET), test, step, shape),
        coder6=_payload(transform, test, step, shape), ideal=float(ideal_bits(transform, q, step).mean() / 8),
        signs=float((q[:, :, order] != 0).sum() / 8 / len(q)), own_tables=float(ideal_bits(own, q, step).mean() / 8),
        no_groups=plain, activity=moved,
    )  # fmt: skip


def _payload(transform: Transform, test: Floats, step: int, shape: tuple[int, ...]) -> float:
    coder = TransformRans(transform, shape)
    return float(np.mean([len(coder.encode(x[None], step, step)[0]) for x in test]))


def _length(
    calibration: Mapping[int, Integers], test: Integers, step: int, classes: NDArray[np.int_], *, activity: bool
) -> float:
    """Bytes of a test input by tables of single coefficients, counted on calibration inputs at near steps."""
    expected = {j: np.abs(q).mean(axis=(0, 1)) for j, q in calibration.items()}
    counts = np.full((TABLES, SYMBOLS), UNSEEN)
    for j, q in calibration.items():
        np.add.at(counts, (_tables(q, classes - j, expected[j], activity=activity), _symbols(q)), 1)
    counts[:, 1:-1:2] = counts[:, 2:-1:2] = (counts[:, 1:-1:2] + counts[:, 2:-1:2]) / 2
    lengths = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    lengths[:, -1] += ESCAPE_BITS
    of = _tables(test, classes - step, expected[step], activity=activity)
    return float(lengths[of, _symbols(test)].sum() / 8 / len(test))


def _tables(q: Integers, ratios: NDArray[np.int_], expected: NDArray[np.float64], *, activity: bool) -> Integers:
    """The table of each coefficient of (n, tiles, K)."""
    moved = np.zeros(q.shape)
    if activity:
        seen, usual = (_running(np.asarray(x, np.float64)) for x in (np.minimum(np.abs(q), 15), expected))
        moved = np.round(4 * SHARE * np.log2((seen + SURE) / (usual + SURE)))
    found: Integers = np.clip(ratios + moved - LOWEST, 0, TABLES - 1).astype(np.int32)
    return found


def _running(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The decaying sum of what lies before each element of the last axis."""
    found: NDArray[np.float64] = lfilter([0.0, 1.0], [1.0, -DECAY], x, axis=-1)
    return found


def _symbols(q: Integers) -> Integers:
    found: Integers = np.minimum(2 * np.abs(q) - (q > 0), SYMBOLS - 1)
    return found


def table(rows: Sequence[Row]) -> Table:
    """One line per row; below, ratios to coder 5 as geometric means."""
    out = Table(caption="bytes of one input's payload", caption_justify="left")
    names = [f.name for f in msgspec.structs.fields(Row)]
    for name in names:
        out.add_column(name.replace("_", " "), justify="left" if name in ("cut", "point") else "right")
    for row in rows:
        out.add_row(row.cut, row.point, *(f"{getattr(row, name):,.1f}" for name in names[2:]))
    mean = geometric_mean(row.coder6 / row.coder5 for row in rows)
    out.add_row("geometric mean, of coder 5", "", "1", f"{mean:.3f}", *[""] * 5)
    return out


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.coefficient_bytes")
    parser.add_argument(
        "cuts", nargs="*", metavar="CUT", help=f"of {', '.join(SUBJECTS)}; {', '.join(CUTS)} by default"
    )
    rows: list[Row] = []
    for key in parser.parse_args().cuts or CUTS:
        rows += rows_of(key)
        JSON.parent.mkdir(parents=True, exist_ok=True)
        write_json(JSON, msgspec.to_builtins(rows))
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
