"""`splitwire export`: a network and a folder of images → front.onnx and back.onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from splitwire.exporter.export import ExportResult

METHODS = {"leaky_relu_model": "leaky ReLU", "relu_model": "ReLU", "histogram": "histogram"}
"""How the clipping range was chosen: by a density of Cohen et al., or on the measured histogram."""

SHOWN_SKIPPED = 5


def export(
    model: Annotated[str, typer.Argument(help="A torchvision name (resnet18, …) or an ONNX file.")],
    cut: Annotated[str, typer.Option(help="Layer to cut after: module path (layer2) or ONNX tensor name.")],
    data: Annotated[Path, typer.Option(help="Folder of images to calibrate on; searched recursively.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for front.onnx and back.onnx.", show_default="MODEL-LAYER")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the named network: a file, or torchvision's.")] = None,
    levels: Annotated[
        str, typer.Option(help="Quantizer levels, one operating point each: 2 is the coarsest.")
    ] = "2,3,4,6,8",
    images: Annotated[int | None, typer.Option(min=1, help="Most images to use.", show_default="512")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the square input, pixels.", show_default="the network's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Cut a network in two after a layer, and calibrate the feature codec there."""
    steps = _parse_levels(levels)
    from splitwire.exporting import export as export_network

    with progress_bar(not as_json) as progress:
        result = export_network(
            model,
            cut=cut,
            calibration=data,
            out=to,
            weights=weights,
            input_shape=None if image_size is None else (1, 3, image_size, image_size),
            levels=steps,
            images=images,
            progress=progress,
        )
    if as_json:
        print_json(_document(result))
    else:
        _show(result)


def _parse_levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"--levels takes numbers with commas between them, as in 2,3,4; got {text!r}") from None


def _document(result: ExportResult) -> dict[str, Any]:
    """What `--json` prints."""
    profile = result.profile
    return {
        "front": str(result.front),
        "back": str(result.back),
        "model": profile.model,
        "cut": profile.cut,
        "fingerprint": profile.fingerprint.hex(),
        "tensor": {"name": profile.tensors[0].name, "shape": profile.tensors[0].shape},
        "opset": result.opset,
        "exporter": result.origin,
        "max_difference": profile.max_difference,
        "torch_difference": result.torch_difference,
        "calibration_images": profile.calibration_images,
        "default_op": profile.default_op,
        "points": [
            {
                "op": point.name,
                "levels": len(point.tensors[0].quantizer.levels),
                "clipping_range": point.tensors[0].quantizer.clipping_range,
                "method": point.tensors[0].clipping.method,
                "ks_distance": point.tensors[0].clipping.ks_distance,
                "reason": point.tensors[0].clipping.reason,
                "bits_per_element": point.bits_per_element,
                "agreement": measure.agreement,
                "relative_error": measure.relative_error,
                "measured_on": measure.inputs,
            }
            for point, measure in zip(profile.operating_points, result.measures, strict=True)
        ],
        "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
        "notes": result.notes,
    }


def _show(result: ExportResult) -> None:
    from rich.table import Table

    profile = result.profile
    spec = profile.tensors[0]
    by_class = result.measures[0].agreement is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("op", "N", "clipping range", "chosen by", "KS", "bits/element", "bytes/image"):
        table.add_column(heading, justify="left" if heading in ("op", "chosen by") else "right", no_wrap=True)
    table.add_column("Top-1" if by_class else "error", justify="right", no_wrap=True)
    for point, measure in zip(profile.operating_points, result.measures, strict=True):
        tensor = point.tensors[0]
        low, high = tensor.quantizer.clipping_range
        table.add_row(
            f"{point.name} *" if point.name == profile.default_op else point.name,
            str(len(tensor.quantizer.levels)),
            f"{low:.3g} … {high:.3g}",
            METHODS[tensor.clipping.method],
            "–" if tensor.clipping.ks_distance is None else f"{tensor.clipping.ks_distance:.3f}",
            f"{point.bits_per_element:.3f}",
            f"{point.bits_per_element * spec.elements / 8:,.0f}",
            f"{measure.agreement:.1%}" if measure.agreement is not None else f"{measure.relative_error:.3f}",
            style="bold" if point.name == profile.default_op else None,
        )
    shape = "×".join(map(str, spec.shape))
    _say(f"{profile.model} cut after {profile.cut}: {shape} features, {spec.elements * 4:,} bytes as float32")
    out.print(table)
    _say(f"* default: {profile.default_op}; KS: distance of the fitted density from the measured distribution")
    meaning = "Top-1: inputs whose class stays" if by_class else "error: of the output, relative"
    _say(f"{meaning}, of {result.measures[0].inputs} measured; calibrated on {profile.calibration_images} images")
    _say(f"largest difference between the joined halves and the whole network: {_difference(profile.max_difference)}")
    if result.torch_difference is not None:
        _say(f"largest difference between the ONNX graph and the torch module: {_difference(result.torch_difference)}")
    for skipped in result.skipped[:SHOWN_SKIPPED]:
        err.print(f"skipped: {skipped.reason}", markup=False, soft_wrap=True)
    if len(result.skipped) > SHOWN_SKIPPED:
        err.print(f"skipped: {len(result.skipped) - SHOWN_SKIPPED} more, all of them with --json")
    for note in result.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for path in (result.front, result.back):
        _say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _difference(value: float | None) -> str:
    return "not measured" if value is None else "none" if value == 0 else f"{value:.1e} relative"


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
