"""Error at equal rate: compares the entropy-constrained quantizer with the uniform one.

It writes build/bench/ecsq.json (machine, rows, coded) and prints the same as tables. `rows` use the measured
distribution of the calibration features, on which both quantizers are optimal, and the rate of the cost model. `coded`
has bytes of whole frames, for other features than those of the design. A smaller squared error at the same rate does
not always mean more right answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.features import Floats, Tensor, profile, tensors
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import design_entropy_constrained, design_operating_point
from splitwire.codec.design.clipping import choose_range, known_slope
from splitwire.codec.design.ecsq import Cost, ecsq_at_rate, error_at_rate
from splitwire.codec.profile import OperatingPoint, Quantizer
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine

OUT = Path("build/bench")
FINE = (16, 32)
"""Levels of the finer starts; the third start is the uniform quantizer that is compared with."""
CODED_LEVELS = 4


class Row(Struct, frozen=True, kw_only=True):
    """The uniform quantizer with `levels` levels and the best clipping range, against the entropy-constrained one.

    rate: of the uniform one, bits per element by `cost`. uniform_error: its mean squared error over the variance.
    ratio_same, ratio_16, ratio_32: error of the entropy-constrained one at exactly this rate, over the uniform one's,
    from the three starts; between two results the chord counts. ratio: the least of them.
    """

    tensor: str
    levels: int
    cost: Cost
    rate: float
    uniform_error: float
    ratio_same: float
    ratio_16: float
    ratio_32: float
    ratio: float


class Coded(Struct, frozen=True, kw_only=True):
    """Whole frames of the real coder: bytes, and mean squared error over the variance of the features coded."""

    tensor: str
    levels: int
    uniform_bytes: int
    uniform_error: float
    ecsq_levels: int
    ecsq_bytes: int
    ecsq_error: float


def rows_for(tensor: Tensor) -> list[Row]:
    """Both cost models at each N."""
    histogram = tensor.statistics.histogram
    slope = known_slope(histogram, None)

    def uniform(n: int) -> Quantizer:
        return Quantizer.uniform(*choose_range(n, tensor.statistics, slope)[0], n)

    fine = [uniform(n) for n in FINE]
    rows = []
    for point in tensor.profile.operating_points:
        start = point.tensors[0].quantizer
        n = len(start.levels)
        error = histogram.quantization_error(start.levels, start.thresholds)
        words = np.minimum(np.arange(1, n + 1), n - 1)
        unary = float(histogram.cells(start.thresholds)[0] @ words)
        rates: dict[Cost, float] = {"ideal": histogram.entropy(start.thresholds), "unary": unary}
        for cost, rate in rates.items():
            designs = [ecsq_at_rate(histogram, s, rate, cost=cost) for s in (start, *fine)]
            ratios = [error_at_rate(*pair, rate) / error for pair in designs]
            rows.append(
                Row(
                    tensor=tensor.name, levels=n, cost=cost, rate=rate,
                    uniform_error=error / tensor.statistics.variance,
                    ratio_same=ratios[0], ratio_16=ratios[1], ratio_32=ratios[2], ratio=min(ratios),
                )
            )  # fmt: skip
    return rows


def coded(tensor: Tensor) -> Coded:
    """Run both quantizers in FeatureCodec. The second is designed for the rate of the first."""
    statistics, taps = tensor.statistics, tensor.taps
    uniform, bits = design_operating_point(levels=CODED_LEVELS, statistics=statistics, taps=taps)
    constrained, less = design_entropy_constrained(bits=bits, statistics=statistics, taps=taps)
    points = [
        OperatingPoint(name="uniform", tensors=(uniform,), bits_per_element=bits),
        OperatingPoint(name="ecsq", tensors=(constrained,), bits_per_element=less),
    ]
    codec = FeatureCodec(profile(tensor.name, tensor.features.shape[1:], points, "ecsq", statistics, taps))

    def error(quantizer: Quantizer) -> float:
        x: Floats = tensor.features
        return float(np.square(x - dequantize(quantize(x, quantizer), quantizer), dtype=np.float64).mean() / x.var())

    return Coded(
        tensor=tensor.name,
        levels=CODED_LEVELS,
        uniform_bytes=len(codec.encode([tensor.features], op="uniform")),
        uniform_error=error(uniform.quantizer),
        ecsq_levels=len(constrained.quantizer.levels),
        ecsq_bytes=len(codec.encode([tensor.features], op="ecsq")),
        ecsq_error=error(constrained.quantizer),
    )


def tables(rows: list[Row], frames: list[Coded]) -> list[Table]:
    """The results as tables."""
    first = grid("Squared error at equal rate, uniform = 1", "tensor", "N", "cost")
    for name in ("bits/el", "uniform, error/variance", "start N", "start 16", "start 32", "best"):
        first.add_column(name, justify="right")
    for r in rows:
        ratios = (f"{x:.3f}" for x in (r.uniform_error, r.ratio_same, r.ratio_16, r.ratio_32, r.ratio))
        first.add_row(r.tensor, str(r.levels), r.cost, f"{r.rate:.3f}", *ratios)
    second = grid("The same through the codec, other features than those of the design", "tensor", "N", "ECSQ's N")
    for name in ("bytes", "ECSQ's bytes", "error/variance", "ECSQ's", "error, uniform = 1"):
        second.add_column(name, justify="right")
    for f in frames:
        errors = (f"{x:.4f}" for x in (f.uniform_error, f.ecsq_error))
        size = (f"{f.uniform_bytes:,}", f"{f.ecsq_bytes:,}")
        ratio = f"{f.ecsq_error / f.uniform_error:.3f}"
        second.add_row(f.tensor, str(f.levels), str(f.ecsq_levels), *size, *errors, ratio)
    return [first, second]


def grid(title: str, *columns: str) -> Table:
    """A table with these columns on the left."""
    out = Table(title=title, title_justify="left")
    for name in columns:
        out.add_column(name)
    return out


def main() -> None:
    """Measure, print, write build/bench/ecsq.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    frames: list[Coded] = []
    for tensor in tensors():
        print(f"{tensor.name}: error at equal rate")
        rows += rows_for(tensor)
        frames.append(coded(tensor))
        result = {"machine": machine(), "rows": rows, "coded": frames}
        write_json(OUT / "ecsq.json", result)
    for table in tables(rows, frames):
        Console(width=140).print(table)
    worst = max(rows, key=lambda r: r.ratio)
    print(
        f"Largest ratio of all {len(rows)} cases: {worst.ratio:.6f} ({worst.tensor}, N = {worst.levels}, {worst.cost})"
    )


if __name__ == "__main__":
    main()
