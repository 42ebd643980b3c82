"""`splitwire plan`: all cuts of a network in a table and a plot, and a recommendation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.codec.errors import UsageError
from splitwire.commands.export.pictures import with_pictures
from splitwire.commands.options import Constants, ImageSize, OutputNames, Weights
from splitwire.console import err, out, print_json, print_wide, progress_bar
from splitwire.network import parse_constants, parse_size

if TYPE_CHECKING:
    from rich.table import Table

    from splitwire.exporter.planning.plan import Placement, PlannedCut
    from splitwire.planning import PlanResult

WIDTH = 100
"""Width of the table in a file or a pipe."""

GO_FIRST = ("par", "mJ", "MAC", "back", "front", "link", "tensor")
"""Columns that a narrow terminal leaves out first."""

LONGEST_LABEL = 26
PLOT_SUFFIXES = (".png", ".svg")


@with_pictures
def plan(
    model: Annotated[str, typer.Argument(help="A torchvision name (resnet50, ...) or an ONNX file.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of images to measure bytes on.", show_default="synthetic pictures")
    ] = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    constant: Constants = None,
    link: Annotated[
        str | None, typer.Option(help="Bandwidth each way: 250kbit, 5mbit, 1gbit.", show_default="none")
    ] = None,
    rtt: Annotated[str | None, typer.Option(help="Round trip of the link.", show_default="20ms")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="A built-in device, or FILE.json of `splitwire edge profile`.", show_default="raspberry-pi-5"
        ),
    ] = None,
    cloud: Annotated[str | None, typer.Option(help="The same for the server.", show_default="server-cpu")] = None,
    max_tensors: Annotated[int, typer.Option(min=1, help="Most tensors that a cut may send.")] = 1,
    images: Annotated[int, typer.Option(min=1, help="Images to measure bytes on.")] = 32,
    outputs: OutputNames = None,
    plot: Annotated[Path | None, typer.Option(help="The plot, .png or .svg.", show_default="MODEL-plan.png")] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw no plot.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the table; a plot only with --plot.")
    ] = False,
    pictures: Any = None,
) -> None:
    """Show where a network can be cut, and what each cut costs on a device and a link; recommend one by latency."""
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot writes {' or '.join(PLOT_SUFFIXES)}, not {plot.name!r}")
    if plot is not None and not plot.parent.is_dir():
        raise UsageError(f"--plot: there is no folder {plot.parent}")
    if plot is not None:
        import matplotlib  # noqa: F401 - if it is missing, the command fails before the work
    size = parse_size(image_size)
    constants = parse_constants(constant)
    from splitwire.planning import plan as plan_network

    with progress_bar(not as_json) as progress:
        result = plan_network(
            model,
            data=data,
            weights=weights,
            image_size=size,
            constants=constants,
            preprocessing=pictures,
            device=device,
            cloud=cloud,
            link=link,
            rtt=rtt,
            max_tensors=max_tensors,
            images=images,
            outputs=outputs,
            progress=progress,
        )
    if as_json:
        print_json(document(result))
    else:
        _show(result)
    if not no_plot and (plot is not None or not as_json):
        _plot(result, plot)


def document(result: PlanResult) -> dict[str, Any]:
    """The document that `--json` prints: milliseconds, bytes and joules for one image."""
    from splitwire.exporter.planning.dropped import grouped

    p = result.plan
    return {
        "model": result.model,
        "input_shape": result.input_shape,
        "weights": result.weights,
        "pictures": result.pictures,
        "synthetic_pictures": result.synthetic,
        "macs": p.macs,
        "parameters": p.parameters,
        "device": p.device,
        "cloud": p.cloud,
        "link": None if p.link is None else dataclasses.asdict(p.link),
        "criterion": criterion(result),
        "recommended": _option(p.recommended),
        "advice": p.advice,
        "on_device": _option(p.on_device),
        "jpeg": _option(p.jpeg),
        "jpeg_bytes": p.jpeg_bytes,
        "best_cut": None if p.best_cut is None else p.best_cut.cut.label,
        "cuts": [
            {
                "label": c.cut.label,
                "tensors": c.cut.tensors,
                "shapes": c.cut.shapes,
                "elements": c.cut.elements,
                "macs_share": c.macs_share,
                "parameters_share": c.parameters_share,
                "front_ms": c.front_ms,
                "front_measured": c.measured,
                "back_ms": c.back_ms,
                "down_bytes": c.down,
                "rates": [dataclasses.asdict(r) for r in c.rates],
                "end_to_end": _option(c.option),
                "reason": c.reason,
            }
            for c in p.cuts
        ],
        "dropped": [
            {"reason": kind, "cuts": [{"label": d.label, "reason": d.reason} for d in members]}
            for kind, members in grouped(p.dropped).items()
        ],
        "outputs": [
            {"name": o.name, "dtype": o.dtype, "shape": o.shape if o.bytes is not None else None, "bytes": o.bytes}
            for o in p.outputs
        ],
        "notes": result.notes,
    }


def _option(option: Placement | None) -> dict[str, Any] | None:
    if option is None:
        return None
    latency = {f"{stage}_ms": ms for stage, ms in dataclasses.asdict(option.latency).items()}
    return {
        "kind": option.kind,
        "label": option.label,
        "bytes": option.bytes,
        "sent_bytes": option.sent,
        "down_bytes": option.down,
        "joules": option.joules,
        **latency,
        "total_ms": option.latency.total,
    }


def criterion(result: PlanResult) -> str:
    """The criterion of the recommendation, in words."""
    return f"least time end to end for one image; cuts at N = {result.plan.ranked_by} levels"


def _show(result: PlanResult) -> None:
    p = result.plan
    size = "×".join(map(str, result.input_shape[1:]))
    _say(f"{result.model}, input {size}: {p.macs / 1e9:.2f} GMAC, {p.parameters / 1e6:.2f} M parameters")
    for end, profile in (("device", p.device), ("cloud", p.cloud)):
        kind = "an estimate" if profile.source == "estimate" else "measured"
        _say(f"{end}: {profile.name}, {kind}{f' ({profile.note})' if profile.note else ''}")
    _say(f"link: {p.link or 'none'}")
    _say(f"bytes: quick calibration on {result.pictures}; weights: {result.weights}")
    _say(f"down the link: {_down(result)}")
    print_wide(table(result), WIDTH, GO_FIRST)
    _say(f"advice: {p.advice}")
    _say(f"by {criterion(result)}")
    for note in result.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)


def table(result: PlanResult) -> Table:
    """All cuts in execution order, then the alternatives. The recommended row has a star. It fits WIDTH columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    p = result.plan
    levels = next(([r.levels for r in c.rates] for c in p.cuts if c.rates), [])
    energy = any(o.joules is not None for o in _options(result))
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    grid.caption = (
        "* recommended. MAC, par: share of the multiply–accumulates and of the parameters on the device. front, back:"
        f" estimated ms; link, total: ms at N = {p.ranked_by} levels. N=…: KB (1,000 bytes) of the frame of one image"
        " at N levels; the HTTP head is counted in the link's time; –: not among the cuts that were calibrated. down:"
        " KB of the outputs that come back."
    )
    if measured := [c.cut.label for c in p.cuts if c.measured]:
        grid.caption += f" The front to {', '.join(measured)} is measured; the others are scaled by the same ratio."
    grid.caption += " mJ: of the device, without waiting." if energy else ""
    grid.add_column("cut", no_wrap=True)
    up = [f"N={n}" for n in levels] or ["up"]  # no cut was calibrated: the column has only the JPEG's bytes
    columns = ["tensor", "MAC", "par", "front", *up, "down", "link", "back", "total"]
    for name in [*columns, *(["mJ"] if energy else [])]:
        grid.add_column(name, justify="right", no_wrap=True)

    def row(label: str, cells: list[str], sizes: list[str], down: str, option: Placement | None, back: str) -> None:
        best = option is not None and option == p.recommended
        link, total = ("–", "–") if option is None else (_ms(option.latency.link), _ms(option.latency.total))
        cells = [escape(_shortened(label, best)), *cells, *sizes, down, link, back, total]
        if energy:
            cells.append("–" if option is None or option.joules is None else f"{1e3 * option.joules:,.0f}")
        grid.add_row(*cells, style="bold" if best else None)

    for c in p.cuts:
        sizes = [_kilobytes(r.bytes) for r in c.rates] or ["–"] * len(up)
        cells = [_shapes(c), f"{c.macs_share:.0%}", f"{c.parameters_share:.0%}", _ms(c.front_ms)]
        row(c.cut.label, cells, sizes, _kilobytes(c.down), c.option, _ms(c.back_ms))
    grid.add_section()
    blank = [""] * len(up)
    row("all on the device", ["", "100%", "100%", _ms(p.on_device.latency.front)], blank, "", p.on_device, "")
    if p.jpeg is not None:
        cells = ["", "0%", "0%", _ms(p.jpeg.latency.front)]
        sizes = [_kilobytes(p.jpeg.bytes), *blank[1:]]
        row("JPEG, quality 90", cells, sizes, _kilobytes(p.jpeg.down), p.jpeg, _ms(p.jpeg.latency.back))
    return grid


def _down(result: PlanResult) -> str:
    """The bytes that come back for one image, and the output with the most bytes."""
    outputs = result.plan.outputs
    sized = [o for o in outputs if o.bytes is not None]
    loose = ", ".join(repr(o.name) for o in outputs if o.bytes is None)
    text = f"{_kilobytes(sum(o.bytes or 0 for o in sized))} KB per image where the back makes all outputs"
    if sized:
        most = max(sized, key=lambda o: o.bytes or 0)
        text += f"; output {most} costs most, {_kilobytes(most.bytes or 0)} KB" if len(outputs) > 1 else f", {most}"
    return text + (f"; the size of {loose} depends on the picture and is not counted" if loose else "")


def _shortened(label: str, best: bool) -> str:
    """The last LONGEST_LABEL characters of a label, since a path's end says the most; with a star for the best."""
    limit = LONGEST_LABEL - 2 * best
    return ("…" + label[1 - limit :] if len(label) > limit else label) + (" *" if best else "")


def _options(result: PlanResult) -> list[Placement]:
    p = result.plan
    return [o for o in (p.on_device, p.jpeg, *(c.option for c in p.cuts)) if o is not None]


def _shapes(cut: PlannedCut) -> str:
    """The shape of one tensor, such as 256×56×56, or the number of tensors."""
    shapes = cut.cut.shapes
    return "×".join(map(str, shapes[0])) if len(shapes) == 1 else f"{len(shapes)} tensors"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 999.95 else f"{value:,.0f}"


def _kilobytes(value: float) -> str:
    return f"{value / 1e3:.1f}" if value < 99_950 else f"{value / 1e3:,.0f}"


def _plot(result: PlanResult, wanted: Path | None) -> None:
    path = wanted or Path(re.sub(r"[^\w.-]+", "_", f"{result.model}-plan") + ".png")
    try:
        from .plot import write_plot
    except ModuleNotFoundError as e:
        if wanted is not None or (e.name or "").partition(".")[0] != "matplotlib":
            raise
        err.print("no plot: matplotlib is not installed; pip install 'splitwire[demo]', or --no-plot", markup=False)
        return
    try:
        write_plot(result, path)
    except OSError as e:
        raise UsageError(f"{path}: the plot cannot be written: {e.strerror}") from e
    err.print(f"plot: {path}", markup=False, soft_wrap=True)


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
