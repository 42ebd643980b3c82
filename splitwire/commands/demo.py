"""`splitwire demo`: the whole pipeline on the package's data, with accuracy, bytes and times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, interruptible, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from splitwire.codec.shared.progress import ProgressFn
    from splitwire.demo.photos import PhotosSummary

KEPT = "no summary was written; run it again"
"""The message at Ctrl-C."""


def demo(
    photos: Annotated[bool, typer.Option("--photos", help="MobileNetV2 on photographs instead.")] = False,
    output: Annotated[Path, typer.Option("--out", help="Folder for graphs, summary.json and the plot.")] = Path(
        "build/demo"
    ),
    weights: Annotated[str | None, typer.Option(help="Weights of MobileNetV2: a file or a torchvision name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pair of another network in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of the table.")] = False,
) -> None:
    """Export a network, serve its back half on this machine, stream images through the split network and measure."""
    if weights is not None and not photos:
        raise UsageError("--weights goes with --photos; the other demo has its weights in the package")
    with interruptible(KEPT), progress_bar(not as_json) as progress:
        if photos:
            _photos(output / "photos", weights, as_json, progress, force)
        else:
            _fashion(output, as_json, progress, force)


def _fashion(folder: Path, as_json: bool, progress: ProgressFn, force: bool) -> None:
    from splitwire.codec.shared.files import write_json
    from splitwire.demo import report
    from splitwire.demo.fashion import run

    summary = run(folder, progress, force=force)
    write_json(folder / "summary.json", summary)
    report.write_plot(summary, folder / "accuracy_vs_rate.png")
    if as_json:
        print_json(summary)
        return
    print_table(report.table(summary), ("enc ms", "dec ms"))
    seconds = ", ".join(f"{part} {s:.0f} s" for part, s in summary.seconds.items())
    files = "front.onnx, back.onnx, summary.json, accuracy_vs_rate.png and some of the images"
    err.print(f"Wrote {files} to {folder} ({seconds}).", markup=False)


def _photos(folder: Path, weights: str | None, as_json: bool, progress: ProgressFn, force: bool) -> None:
    from splitwire.codec.shared.files import write_json
    from splitwire.demo.photos import run

    summary = run(folder, weights, progress, force=force)
    write_json(folder / "summary.json", summary)
    if as_json:
        print_json(summary)
        return
    _print_photos(summary)
    err.print(f"Wrote front.onnx, back.onnx and summary.json to {folder}.", markup=False)


def _print_photos(summary: PhotosSummary) -> None:
    from rich.table import Table

    shape = "×".join(map(str, summary.feature_shape))
    table = Table(
        title=f"{summary.model}, {summary.weights}",
        title_justify="left",
        caption=(
            f"Cut after {summary.cut} ({shape}), operating point {summary.op}. Bytes: as sent, HTTP head included, and "
            "bits per element of the features. JPEG: the network's view of the picture, quality 90. "
            "Calibrated on random crops of these and of other pictures."
        ),
        caption_justify="left",
    )
    for name in ("picture", "whole network", "split network"):
        table.add_column(name)
    for name in ("bytes", "bits/el", "JPEG bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for photo in summary.photos:
        whole, split = ("\n".join(f"{label} {p:.0%}" for label, p in side) for side in (photo.whole, photo.split))
        sizes = (f"{photo.bytes_sent:,}", f"{photo.bits_per_element:.2f}", f"{photo.jpeg_bytes:,}")
        table.add_row(photo.name, whole, split, *sizes, end_section=True)
    print_table(table, ("bits/el", "JPEG bytes"))
