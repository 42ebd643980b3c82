"""The output of `splitwire export`: its tables, and the document of `--json`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec

from splitwire.console import err, out, print_table, print_wide

if TYPE_CHECKING:
    from rich.table import Table

    from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorPoint
    from splitwire.console import Console
    from splitwire.exporter.pair.precision_choice import Comparison
    from splitwire.exporter.pair.result import ExportResult

METHODS = {"leaky_relu_model": "leaky ReLU", "relu_model": "ReLU", "histogram": "histogram"}
"""How the clipping range was chosen: by a density of Cohen et al., or by the measured histogram."""

RANGE = ("clipping range", "chosen by", "KS")
RATE = ("bits/el", "bytes")
LEFT = ("op", "shape", "chosen by", "half", "computes in")
HEADING = {"classes": "Top-1", "detections": "found", "values": "error"}
MEANING = {
    "classes": "Top-1: inputs whose class stays",
    "detections": "found: detections, by score, that are found again",
    "values": "error: of the output, relative",
}

GO_FIRST = ("KS", "chosen by", "clipping range", "bits/el")
"""Columns that a narrow terminal leaves out first."""

SHOWN_SKIPPED = 5
WIDTH = 100


def document(result: ExportResult) -> dict[str, Any]:
    """The document that `--json` prints."""
    from splitwire.codec.overspent import is_overspent

    profile = result.profile
    return {
        "front": str(result.front),
        "back": str(result.back),
        "model": profile.model,
        "cut": profile.cut,
        "purpose": profile.task or None,
        "preprocessing": msgspec.to_builtins(profile.preprocessing),
        "fingerprint": profile.fingerprint.hex(),
        "tensors": [{"name": t.name, "shape": t.shape, "feature_shape": t.feature_shape} for t in profile.tensors],
        "sizes": [{"name": t.name, "length": t.length} for t in profile.size_specs],
        "opset": result.opset,
        "exporter": result.origin,
        "max_difference": profile.max_difference,
        "torch_difference": result.torch_difference,
        "calibration_images": profile.calibration_images,
        "settled_after": result.settled,
        "default_op": profile.default_op,
        "points": [
            {
                "op": point.name,
                "bits_per_element": point.bits_per_element,
                "over_budget": is_overspent(point),
                "bytes_per_image": _bytes_per_image(point, profile),
                "agreement": measure.agreement,
                "relative_error": measure.relative_error,
                "measured_on": measure.inputs,
                "steps": list(point.steps) if isinstance(point.steps, tuple) else None,
                "tensors": [
                    {
                        "levels": len(tensor.quantizer.levels),
                        "coder": tensor.coder,
                        "clipping_range": tensor.quantizer.clipping_range,
                        "method": tensor.clipping.method,
                        "scale": tensor.clipping.widening,
                        "mean_preserving": tensor.quantizer.preserves_mean,
                        "ks_distance": tensor.clipping.ks_distance,
                        "reason": tensor.clipping.reason,
                        "bits_per_element": bits,
                    }
                    for tensor, bits in zip(point.tensors, _bits(result, point), strict=True)
                ],
            }
            for point, measure in zip(profile.operating_points, result.measures, strict=True)
        ],
        "task": result.measures[0].task,
        "sensitivity": [
            [
                {
                    "quantizer": o.kind.name,
                    "levels": len(o.point.quantizer.levels),
                    "bits_per_image": o.bits,
                    "damage": o.damage,
                }
                for o in options
            ]
            for options in result.options
        ],
        "comparisons": [dataclasses.asdict(c) for c in result.comparisons],
        "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
        "notes": result.notes,
    }


def _bits(result: ExportResult, point: OperatingPoint) -> list[float]:
    """Bits per element of each tensor at a point of a scalar pair; [] of a transform pair."""
    if result.profile.is_transform:
        return []
    return [
        next(o.bits for o in options if o.point is tensor) / spec.elements
        for spec, tensor, options in zip(result.profile.tensors, point.tensors, result.options, strict=True)
    ]


def _bytes_per_image(point: OperatingPoint, profile: CodecProfile) -> float:
    return point.bits_per_element * sum(t.feature_elements for t in profile.tensors) / 8


def show(result: ExportResult, compared: bool) -> None:
    """Print the report. compared: whether the comparisons were shown before, with the question."""
    profile = result.profile
    several = len(profile.tensors) > 1
    names = ", ".join(t.name for t in profile.tensors)
    shapes = " + ".join("×".join(map(str, t.feature_shape)) for t in profile.tensors)
    size = sum(t.feature_elements for t in profile.tensors) * 4
    _say(f"{profile.model} cut after {profile.cut}: {shapes} features, {size:,} bytes as float32")
    _say(f"tensor{'s' if several else ''} in the graph: {names}")
    print_wide(_points(result), WIDTH, GO_FIRST)
    if profile.is_transform:
        _say(
            f"* default: {profile.default_op}; step: of the coefficients; bits/el, bytes: payload per feature and image"
        )
    else:
        _explain_quantizers(result)
    measured = result.measures[0]
    _say(f"{MEANING[measured.task]}, of {measured.inputs} measured; calibrated on {profile.calibration_images} images")
    _say(f"largest difference between the joined halves and the whole network: {_difference(profile.max_difference)}")
    if result.torch_difference is not None:
        _say(f"largest difference between the ONNX graph and the torch module: {_difference(result.torch_difference)}")
    for comparison in () if compared else result.comparisons:
        show_comparison(comparison, out)
    for skipped in result.skipped[:SHOWN_SKIPPED]:
        err.print(f"skipped: {skipped.reason}", markup=False, soft_wrap=True)
    if len(result.skipped) > SHOWN_SKIPPED:
        err.print(f"skipped: {len(result.skipped) - SHOWN_SKIPPED} more, all of them with --json")
    for note in result.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for path in (result.front, result.back):
        _say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _explain_quantizers(result: ExportResult) -> None:
    """What the table of a scalar pair means, its tensors, and how the calibration settled."""
    from splitwire.codec.overspent import overspent_note

    profile = result.profile
    if len(profile.tensors) > 1:
        _say(f"the tensors at {profile.default_op}:")
        print_wide(_tensors(result), WIDTH, GO_FIRST)
    _say(
        f"* default: {profile.default_op}; bits/el: per element of the features; bytes: per image;"
        " KS: distance of the fitted density from the measured distribution"
    )
    overspent = overspent_note(profile.operating_points)
    if overspent is not None:
        _say(f"! {overspent}")
    if any(t.clipping.widening != 1 for p in profile.operating_points for t in p.tensors):
        _say("×: a multiple of the range with the least squared error, for less output distortion")
    if any(t.quantizer.preserves_mean for p in profile.operating_points for t in p.tensors):
        _say("~: preserves the mean of each plane")
    coders = [t.coder for t in profile.operating_points[profile.point_index()].tensors]
    _say(f"entropy coder: {' · '.join(coders if len(set(coders)) > 1 else coders[:1])}")
    settled = f"were there after {result.settled} images" if result.settled else "still moved; more images would help"
    _say(f"final clipping ranges (within 2 %) and code lengths (within 1 %) {settled}")


def _points(result: ExportResult) -> Table:
    """One row per operating point: levels and, of a single tensor, clipping range; or the step of a transform."""
    from splitwire.codec.overspent import is_overspent
    from splitwire.codec.transform import step_size

    profile = result.profile
    ranged = len(profile.tensors) == 1 and not profile.is_transform
    columns = ("step",) if profile.is_transform else ("N", *(RANGE if ranged else ()))
    table = _table("op", *columns, *RATE, HEADING[result.measures[0].task])
    for point, measure in zip(profile.operating_points, result.measures, strict=True):
        if isinstance(point.steps, tuple):
            cells = ["·".join(f"{step_size(step):.3g}" for step in dict.fromkeys(point.steps))]
        else:
            cells = ["·".join(str(len(t.quantizer.levels)) for t in point.tensors)]
            cells += _range(point.tensors[0]) if ranged else ()
        table.add_row(
            f"{point.name}{' !' if is_overspent(point) else ''}{' *' if point.name == profile.default_op else ''}",
            *cells,
            f"{point.bits_per_element:.3f}",
            f"{_bytes_per_image(point, profile):,.0f}",
            f"{measure.agreement:.1%}" if measure.agreement is not None else f"{measure.relative_error:.3f}",
            style="bold" if point.name == profile.default_op else None,
        )
    return table


def show_comparison(comparison: Comparison, where: Console) -> None:
    """Compare float32 with reduced precision: agreement, bits per element, and the time and size of the half."""
    table = _table(
        "half", "computes in", "op", HEADING[comparison.task], "bits/element", f"ms, batch {comparison.batch}", "MB"
    )
    for figures in (comparison.float32, comparison.option):
        exact = figures.agreement
        table.add_row(
            comparison.half,
            figures.precision,
            figures.op,
            f"{exact:.1%}" if exact is not None else f"{figures.relative_error or 0.0:.3f}",
            f"{figures.bits_per_element:.3f}",
            f"{figures.milliseconds:.2f}",
            f"{figures.megabytes:.2f}",
        )
    print_table(table, ("MB", "bits/element", "half"), on=where)
    gpu = "; float16 is meant for GPUs, a CPU gains nothing" if comparison.option.precision == "float16" else ""
    text = (
        f"{MEANING[comparison.task]}; on {comparison.inputs} calibration inputs, against the float32 network; time of"
        f" the half alone on this machine's CPU{gpu}"
    )
    where.print(text, markup=False, soft_wrap=True)


def _tensors(result: ExportResult) -> Table:
    """One row per tensor, at the default operating point."""
    profile = result.profile
    point = profile.operating_points[profile.point_index()]
    table = _table("shape", "N", *RANGE, *RATE)
    for spec, tensor, bits in zip(profile.tensors, point.tensors, _bits(result, point), strict=True):
        shape, levels = "×".join(map(str, spec.shape)), str(len(tensor.quantizer.levels))
        table.add_row(shape, levels, *_range(tensor), f"{bits:.3f}", f"{bits * spec.elements / 8:,.0f}")
    return table


def _range(tensor: TensorPoint) -> tuple[str, str, str]:
    low, high = tensor.quantizer.clipping_range
    clipping = tensor.clipping
    method = METHODS[clipping.method] + (f" ×{clipping.widening:.2f}" if clipping.widening != 1 else "")
    method += " ~" if tensor.quantizer.preserves_mean else ""
    return f"{low:.3g} … {high:.3g}", method, "–" if clipping.ks_distance is None else f"{clipping.ks_distance:.3f}"


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    return table


def _difference(value: float | None) -> str:
    return "not measured" if value is None else "none" if value == 0 else f"{value:.1e} relative"


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
