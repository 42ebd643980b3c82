"""The result of an export: the two files, the measurements, and notes for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.profile import CodecProfile
from splitwire.exporter.calibration.inputs import Skipped
from splitwire.exporter.points.design import QuantizedTensor
from splitwire.exporter.points.measure import PointMeasure

from .precision_choice import Comparison


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The files and the measurements of `splitwire.export`.

    front, back: the two files. profile: the profile in both files.
    measures: one per operating point, in the order of the profile. options: per tensor, the quantizers that the
    operating points were chosen from. settled: the number of calibration images after which the clipping ranges stayed
    within 2 %, and the code lengths within 1 %, of their final values; None if they still changed. torch_difference:
    largest relative difference between the ONNX graph and the torch module; None for ONNX files. (The difference
    between the halves and the whole is `profile.max_difference`.) origin, opset: how the graph was made. skipped:
    images that could not be read. notes: what the user should know, one sentence each. comparisons: one for an int8
    front and one for a float16 back, if requested.
    """

    front: Path
    back: Path
    profile: CodecProfile
    measures: tuple[PointMeasure, ...]
    options: tuple[tuple[QuantizedTensor, ...], ...]
    settled: int | None
    torch_difference: float | None
    origin: str
    opset: int
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    def __str__(self) -> str:
        """A summary: the network and the cut, a line per operating point, the notes, the folder."""
        p = self.profile
        elements = sum(t.feature_elements for t in p.tensors)
        lines = [f"{p.model} cut after {p.cut}: {elements:,} elements, calibrated on {p.calibration_images} images"]
        for point, m in zip(p.operating_points, self.measures, strict=True):
            kept = f"error {m.relative_error:.3f}" if m.agreement is None else f"{m.agreement:.1%} of the answers kept"
            size = f"{point.bits_per_element:.3f} bits per element, {point.bits_per_element * elements / 8:,.0f} bytes"
            lines.append(f"  {point.name:<5} {size}, {kept}{' (default)' if point.name == p.default_op else ''}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"{self.front.name}, {self.back.name} in {self.front.parent}"])

    def __repr__(self) -> str:
        """One line."""
        p = self.profile
        points = ", ".join(point.name for point in p.operating_points)
        return f"<ExportResult {p.model} after {p.cut}: {points}; default {p.default_op}; in {self.front.parent}>"


def remarks(skipped: Sequence[Skipped], measures: Sequence[PointMeasure], profile: CodecProfile) -> list[str]:
    """Notes on skipped images, on outputs of unknown meaning, and on a default point that is not good enough."""
    sentences = []
    if skipped:
        used = profile.calibration_images
        sentences.append(f"{len(skipped)} calibration image(s) could not be read and were skipped; {used} were used")
    chosen = next(m for m in measures if m.op == profile.default_op)
    if chosen.task == "values" and not profile.task:
        sentences.append(
            "what the outputs say is not known (they may be the raw outputs of a detector): the operating points are"
            " judged by the error of their numbers alone; `splitwire evaluate --metric` measures how much of the"
            " answers a point keeps (docs/evaluate.md)"
        )
    if not chosen.good:
        figure = f"{chosen.agreement:.1%} agreement" if chosen.agreement is not None else f"error {chosen.loss:.3f}"
        more = "calibration inputs" if profile.is_transform else "levels"
        sentences.append(
            f"the default {chosen.op} has only {figure} with the whole network on {chosen.inputs} calibration inputs;"
            f" try more {more}, or cut elsewhere"
        )
    return sentences
