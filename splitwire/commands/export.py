"""`splitwire export`: a network and a folder of images → front.onnx and back.onnx."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import Bar, err, out, print_json, print_wide, progress_bar
from splitwire.network import parse_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorPoint
    from splitwire.exporter.export import ExportResult
    from splitwire.exporter.options import Accept, BackPrecision, Coder, Comparison, FrontPrecision

METHODS = {"leaky_relu_model": "leaky ReLU", "relu_model": "ReLU", "histogram": "histogram"}
"""How the clipping range was chosen: by a density of Cohen et al., or on the measured histogram."""

RANGE = ("clipping range", "chosen by", "KS")
RATE = ("bits/el", "bytes")
LEFT = ("op", "shape", "chosen by", "half", "computes in")
HEADING = {"classes": "Top-1", "detections": "found", "values": "error"}
MEANING = {
    "classes": "Top-1: inputs whose class stays",
    "detections": "found: detections, by score, that are found again",
    "values": "error: of the output, relative",
}

SHOWN_SKIPPED = 5
WIDTH = 100


def export(
    model: Annotated[str, typer.Argument(help="A torchvision name (resnet18, …) or an ONNX file.")],
    data: Annotated[Path, typer.Option(help="Folder of images to calibrate on, searched recursively; or a video.")],
    cut: Annotated[
        str | None,
        typer.Option(help="Layer to cut after: module path (layer2) or ONNX tensor name; several as a,b,c; auto."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for front.onnx and back.onnx.", show_default="MODEL-LAYER")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the named network: a file, or torchvision's.")] = None,
    levels: Annotated[
        str,
        typer.Option(
            help="Operating points: 4 for so many uniform levels; a4: over the range that harms the answers least; "
            "e4: entropy-constrained, at the rate of 4; "
            "r0.4: the levels and range that harm the answers least at 0.4 bits per element."
        ),
    ] = "2,3,4,6,8,r0.1,r0.2,r0.3,r0.4,r0.6,r0.8",
    images: Annotated[int | None, typer.Option(min=1, help="Most images to use.", show_default="512")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Of the input, pixels: 224, or HEIGHTxWIDTH.", show_default="the network's")
    ] = None,
    front: Annotated[str, typer.Option(help="Front half in float32 or int8, on the same images.")] = "float32",
    back: Annotated[str, typer.Option(help="Back half in float32, or in float16 for a GPU.")] = "float32",
    coder: Annotated[
        str,
        typer.Option(help="predictive: fewest bytes, where it is worth its time; context: several times as fast."),
    ] = "predictive",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Keep the int8 or float16 half without asking.")] = False,
    link: Annotated[
        str | None, typer.Option(help="For --cut auto: bandwidth, as 5mbit.", show_default="10mbit, 30ms")
    ] = None,
    rtt: Annotated[str | None, typer.Option(help="For --cut auto: the link's round trip.", show_default="20ms")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="For --cut auto: as `splitwire plan` takes it.", show_default="raspberry-pi-5"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Cut a network in two after a layer, and calibrate the feature codec there."""
    if cut is None:  # required, but click's own line would not say what there is to choose from
        raise UsageError(
            "--cut is missing: it takes the layer to cut after, or auto for the fastest on a link; "
            f"`splitwire plan {model}` shows them"
        )
    steps = _parse_levels(levels)
    shape = parse_size(image_size)
    asking = not (yes or as_json) and asks()
    from splitwire.exporting import export as export_network

    with progress_bar(not as_json) as progress:
        result = export_network(
            model,
            cut=cut,
            calibration=data,
            out=to,
            weights=weights,
            input_shape=shape,
            levels=steps,
            images=images,
            front=cast("FrontPrecision", front),
            back=cast("BackPrecision", back),
            coder=cast("Coder", coder),
            accept=_asker(progress) if asking else None,
            link=link,
            rtt=rtt,
            device=device,
            progress=progress,
        )
    if as_json:
        print_json(_document(result))
    else:
        _show(result, compared=asking)


def asks() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and err.is_terminal


def _asker(progress: Bar) -> Accept:
    """Shows what a half in other arithmetic gains and costs, and asks."""

    def ask(comparison: Comparison) -> bool:
        with progress.paused():
            _show_comparison(comparison, err)
            return typer.confirm(f"Keep the {comparison.option.precision} {comparison.half}?", default=True, err=True)

    return ask


def _parse_levels(text: str) -> tuple[int | str, ...]:
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(part if part[:1] in ("a", "e", "r") else int(part) for part in parts)
    except ValueError:
        raise UsageError(
            f"--levels takes numbers, some with a, e or r in front, with commas between, as in 2,a4,e4,r0.4;"
            f" got {text!r}"
        ) from None


def _document(result: ExportResult) -> dict[str, Any]:
    """What `--json` prints."""
    profile = result.profile
    return {
        "front": str(result.front),
        "back": str(result.back),
        "model": profile.model,
        "cut": profile.cut,
        "fingerprint": profile.fingerprint.hex(),
        "tensors": [{"name": t.name, "shape": t.shape} for t in profile.tensors],
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
                "bytes_per_image": _bytes_per_image(point, profile),
                "agreement": measure.agreement,
                "relative_error": measure.relative_error,
                "measured_on": measure.inputs,
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
                for o in own
            ]
            for own in result.options
        ],
        "comparisons": [dataclasses.asdict(c) for c in result.comparisons],
        "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
        "notes": result.notes,
    }


def _bits(result: ExportResult, point: OperatingPoint) -> list[float]:
    """Bits per element of each tensor at a point."""
    found = []
    for spec, tensor, own in zip(result.profile.tensors, point.tensors, result.options, strict=True):
        found.append(next(o.bits for o in own if o.point is tensor) / spec.elements)
    return found


def _bytes_per_image(point: OperatingPoint, profile: CodecProfile) -> float:
    return point.bits_per_element * sum(t.elements for t in profile.tensors) / 8


def _show(result: ExportResult, compared: bool) -> None:
    """The report. compared: whether the comparisons were shown before, with the question."""
    profile = result.profile
    several = len(profile.tensors) > 1
    names = ", ".join(t.name for t in profile.tensors)
    shapes = " + ".join("×".join(map(str, t.shape)) for t in profile.tensors)
    size = sum(t.elements for t in profile.tensors) * 4
    _say(f"{profile.model} cut after {profile.cut}: {shapes} features, {size:,} bytes as float32")
    _say(f"tensor{'s' if several else ''} in the graph: {names}")
    print_wide(_points(result), WIDTH)
    if several:
        _say(f"the tensors at {profile.default_op}:")
        print_wide(_tensors(result), WIDTH)
    _say(
        f"* default: {profile.default_op}; bits/el: per element of the features; bytes: per image;"
        " KS: distance of the fitted density from the measured distribution"
    )
    if any(t.clipping.widening != 1 for p in profile.operating_points for t in p.tensors):
        _say("×: so many times the range with the least squared error, for the sake of the answers")
    if any(t.quantizer.preserves_mean for p in profile.operating_points for t in p.tensors):
        _say("~: preserves the mean of each plane")
    coders = [t.coder for t in profile.operating_points[profile.point_index()].tensors]
    _say(f"entropy coder: {' · '.join(coders if len(set(coders)) > 1 else coders[:1])}")
    measured = result.measures[0]
    _say(f"{MEANING[measured.task]}, of {measured.inputs} measured; calibrated on {profile.calibration_images} images")
    settled = f"were there after {result.settled} images" if result.settled else "still moved; more images would help"
    _say(f"final clipping ranges (within 2 %) and code lengths (within 1 %) {settled}")
    _say(f"largest difference between the joined halves and the whole network: {_difference(profile.max_difference)}")
    if result.torch_difference is not None:
        _say(f"largest difference between the ONNX graph and the torch module: {_difference(result.torch_difference)}")
    for comparison in () if compared else result.comparisons:
        _show_comparison(comparison, out)
    for skipped in result.skipped[:SHOWN_SKIPPED]:
        err.print(f"skipped: {skipped.reason}", markup=False, soft_wrap=True)
    if len(result.skipped) > SHOWN_SKIPPED:
        err.print(f"skipped: {len(result.skipped) - SHOWN_SKIPPED} more, all of them with --json")
    for note in result.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for path in (result.front, result.back):
        _say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _points(result: ExportResult) -> Table:
    """One row per operating point; the clipping range only where there is one."""
    profile = result.profile
    several = len(profile.tensors) > 1
    table = _table("op", "N", *([] if several else RANGE), *RATE, HEADING[result.measures[0].task])
    for point, measure in zip(profile.operating_points, result.measures, strict=True):
        table.add_row(
            f"{point.name} *" if point.name == profile.default_op else point.name,
            "·".join(str(len(t.quantizer.levels)) for t in point.tensors),
            *([] if several else _range(point.tensors[0])),
            f"{point.bits_per_element:.3f}",
            f"{_bytes_per_image(point, profile):,.0f}",
            f"{measure.agreement:.1%}" if measure.agreement is not None else f"{measure.relative_error:.3f}",
            style="bold" if point.name == profile.default_op else None,
        )
    return table


def _show_comparison(comparison: Comparison, where: Console) -> None:
    """float32 against the option: what is kept of the answers, what is sent, time and size of the half."""
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
    where.print(table)
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
