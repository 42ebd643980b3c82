"""`splitwire export`: a network and a folder of images → front.onnx and back.onnx."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from splitwire.codec.errors import UsageError
from splitwire.commands.export.report import document, show, show_comparison
from splitwire.commands.options import Constants, ImageSize, OutputNames, Weights, seconds
from splitwire.console import Bar, err, interruptible, print_json, progress_bar
from splitwire.exporter.pair.labels import read_labels
from splitwire.network import parse_constants, parse_size

from .pictures import with_pictures

if TYPE_CHECKING:
    from splitwire.codec.shared.tasks import Task
    from splitwire.exporter.pair.codec_choice import CodecKind
    from splitwire.exporter.pair.precision_choice import Accept, BackPrecision, Coder, Comparison, FrontPrecision


KEPT = "nothing of it was written; run it again"
"""The message at Ctrl-C before the calibration is saved."""


@with_pictures
def export(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder of images to calibrate on, searched recursively; or a video.")],
    model: Annotated[
        str | None, typer.Argument(help="A torchvision name (resnet18, ...) or an ONNX file.", show_default=False)
    ] = None,
    recalibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="PAIR",
            help="Instead of MODEL: the folder of an exported pair whose codec is calibrated again on --data, pictures"
            " or captured features. The graphs stay. Without --out it replaces the pair.",
        ),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layer to cut after: module path (layer2) or ONNX tensor name; several as a,b,c, or repeated; auto.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for front.onnx and back.onnx.", show_default="MODEL-LAYER")
    ] = None,
    weights: Weights = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Scalar operating points: 4 for 4 uniform levels; a4: over the range with the least output distortion;"
            " e4: entropy-constrained, at the rate of 4; "
            "r0.4: the levels and range with the least output distortion at 0.4 bits per element.",
            show_default="2,3,4,6,8,r0.1,r0.2,r0.3,r0.4,r0.6,r0.8",
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Most images to use.", show_default="512")] = None,
    image_size: ImageSize = None,
    constant: Constants = None,
    outputs: OutputNames = None,
    front: Annotated[
        str, typer.Option(help="Precision of the front half: float32, or int8, calibrated on the same images.")
    ] = "float32",
    back: Annotated[str, typer.Option(help="Precision of the back half: float32, or float16 for a GPU.")] = "float32",
    coder: Annotated[
        str,
        typer.Option(help="predictive: the fewest bytes, where it saves at least 3 %; context: several times as fast."),
    ] = "predictive",
    codec: Annotated[
        str | None,
        typer.Option(
            help="scalar: quantized features, as with --levels; transform: coefficients, at the points q1 to q8; "
            "auto: what needs fewer bits.",
            show_default="by measurement",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(help="Training of a transform: steps, or a time as 10min; 0 for none.", show_default="about 30s"),
    ] = None,
    task_loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="What a transform is designed for: a torch function of the outputs before and after.",
            show_default="by outputs",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task of the network: classification, detection or segmentation; the edge shows results by it.",
            show_default="by outputs and labels",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pair of another network in --out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Keep the int8 or float16 half without a question.")] = False,
    link: Annotated[
        str | None, typer.Option(help="For --cut auto: bandwidth, as 5mbit.", show_default="10mbit, 30ms")
    ] = None,
    rtt: Annotated[str | None, typer.Option(help="For --cut auto: the link's round trip.", show_default="20ms")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="For --cut auto: as `splitwire plan` takes it.", show_default="raspberry-pi-5"),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File of class names: one per line, or JSON.", show_default="the catalogue's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
    pictures: Any = None,
) -> None:
    """Cut a network in two after a layer, and calibrate the feature codec there."""
    if recalibrate is not None:
        _recalibrate(context, recalibrate, data, to, images, as_json)
        return
    if model is None:
        raise UsageError("MODEL is missing: a torchvision name or an ONNX file; or --recalibrate PAIR")
    if not cut:  # required; click's message would not say which values there are
        raise UsageError(
            "--cut is missing: it takes the layer to cut after, or auto for the fastest on a link; "
            f"`splitwire plan {model}` shows them"
        )
    steps = None if levels is None else _parse_levels(levels)
    size = parse_size(image_size)
    constants = parse_constants(constant)
    names = None if labels is None else read_labels(labels)
    asking = not (yes or as_json) and asks()
    from splitwire.exporting import export as export_network

    with interruptible(KEPT), progress_bar(not as_json) as progress:
        result = export_network(
            model,
            cut=",".join(cut),
            calibration=data,
            out=to,
            weights=weights,
            image_size=size,
            constants=constants,
            preprocessing=pictures,
            labels=names,
            task=cast("Task | None", task),
            levels=steps,
            images=images,
            front=cast("FrontPrecision", front),
            back=cast("BackPrecision", back),
            coder=cast("Coder", coder),
            codec=cast("CodecKind | None", codec),
            **_refinement(refine),
            task_loss=task_loss,
            accept=_asker(progress) if asking else None,
            link=link,
            rtt=rtt,
            device=device,
            overwrite=force,
            outputs=outputs,
            progress=progress,
        )
    if as_json:
        print_json(document(result))
    else:
        show(result, compared=asking)


RECALIBRATION = {"recalibrate", "data", "to", "images", "as_json"}
"""The parameters of the command that go with --recalibrate."""


def _recalibrate(
    context: typer.Context, pair: Path, data: Path, to: Path | None, images: int | None, as_json: bool
) -> None:
    """Calibrate an exported pair again. Raises UsageError for an option that would have no effect."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    given -= RECALIBRATION
    if given:
        names = {p.name: p.opts[0] if p.param_type_name == "option" else "MODEL" for p in context.command.params}
        wrong = ", ".join(sorted(names[p] for p in given))
        raise UsageError(f"{wrong}: the pair says that; with --recalibrate go --data, --out, --images and --json")
    from splitwire.recalibrating import recalibrate as recalibrate_pair

    with interruptible(KEPT), progress_bar(not as_json) as progress:
        result = recalibrate_pair(pair, calibration=data, out=to, images=images, progress=progress)
    if as_json:
        print_json(document(result))
    else:
        show(result, compared=False)


def _refinement(text: str | None) -> dict[str, Any]:
    """`refine` or `refine_seconds` of splitwire.export. Raises UsageError."""
    if text is None or text.strip().isdecimal():
        return {"refine": None if text is None else int(text)}
    return {"refine_seconds": seconds("--refine", text)}


def asks() -> bool:
    """Whether a person at a terminal can answer a question."""
    return sys.stdin.isatty() and err.is_terminal


def _asker(progress: Bar) -> Accept:
    """A function that shows what a half at reduced precision gains and costs, and asks whether to keep it."""

    def ask(comparison: Comparison) -> bool:
        with progress.paused():
            show_comparison(comparison, err)
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
