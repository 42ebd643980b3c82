"""`splitwire evaluate`: accuracy against bytes of an exported pair, beside what a user would send instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.console import err, interruptible, out, print_json, print_wide, progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from splitwire.evaluation.answer.results import Estimate, Evaluation

WIDTH = 110
"""Columns that the table fits in."""

KEPT = "the same command goes on after the last finished batch"
"""What is printed at Ctrl-C."""

SHOWN_SKIPPED = 5
NOTHING_WITHIN = 3
"""Exit status where no operating point is within --max-loss."""

OMITTED = ("tensors", "designs", "disagreements")
"""Parts of results.json that `--json` leaves out: they are long, and for the report."""


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with front.onnx and back.onnx.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with one folder per class, with images and masks, or of pictures; COCO .json; .npz; .txt list."
        ),
    ],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO .json, or folder of masks, where --data is the pictures.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report.", show_default="DIR/evaluation")
    ] = None,
    max_loss: Annotated[
        str | None, typer.Option(help="1% or 0.01 of the main figure: choose the default operating point by it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most images to use, evenly spread.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="module:function of yours in place of Top-1, mAP or mIoU; higher is better.")
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            help="With commas between: paper, zstd, raw, hevc, jpeg, webp, avif, hevc-image.", show_default="all"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Measure accuracy against bytes on your images, for this pair and for what you would send instead.

    Ends with status 3 where no operating point is within --max-loss."""
    from splitwire.evaluation.answer.results import FOLDER
    from splitwire.evaluation.answer.wording import parse_loss

    budget = None if max_loss is None else parse_loss(max_loss)
    keys = None if contenders is None else [key.strip() for key in contenders.split(",") if key.strip()]
    from splitwire.evaluation.run import evaluate as run

    with interruptible(KEPT), progress_bar(not as_json) as progress:
        evaluation = run(
            directory,
            data,
            annotations=annotations,
            out=to,
            max_loss=budget,
            limit=limit,
            metric=metric,
            contenders=keys,
            progress=progress,
        )
    folder = directory / FOLDER if to is None else to
    if as_json:
        print_json(_document(evaluation, folder))
    else:
        _show(evaluation, folder)
    if evaluation.max_loss is not None and evaluation.chosen is None:
        raise typer.Exit(NOTHING_WITHIN)


def _document(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The document that `--json` prints."""
    import msgspec

    from splitwire.evaluation.answer.results import FILE
    from splitwire.evaluation.report.page import FILE as REPORT

    document = msgspec.to_builtins(evaluation)
    for part in OMITTED:
        del document[part]
    return {"results": str(folder / FILE), "report": str(folder / REPORT), **document}


def _show(e: Evaluation, folder: Path) -> None:
    from splitwire.evaluation.answer.wording import figure_words, milliseconds, title
    from splitwire.evaluation.report.page import FILE as REPORT

    _say(f"{e.model} cut after {e.cut}: {e.data.images:,} images, {e.elements:,} elements at the cut")
    whole = e.whole[e.figure]
    low, high = (figure_words(e.figure, v) for v in (whole.low, whole.high))
    _say(f"whole network: {figure_words(e.figure, whole.value)} {title(e.figure)} ({low} … {high})")
    print_wide(_points(e), WIDTH, ("encode ms", "bits/el"))
    _say("bytes, bits per element at the cut and encode ms of one image, on one core; of a picture the codec alone.")
    _say(f"{title(e.figure)}, and what is lost of it against the whole network, with 95 % intervals; * default")
    if e.over_budget:
        _say("! over the budget of bits that it is named after; never chosen beside others")
    stages = ", ".join(f"{name} {milliseconds(ms)}" for name, ms in e.stages.items())
    _say(f"ms per image at {e.default_op}, each stage on one core: {stages}")
    for _, reason in e.data.skipped[:SHOWN_SKIPPED]:
        err.print(f"skipped: {reason}", markup=False, soft_wrap=True)
    if len(e.data.skipped) > SHOWN_SKIPPED:
        err.print(f"skipped: {len(e.data.skipped) - SHOWN_SKIPPED} more, all of them in the report")
    for note in e.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    if e.max_loss is not None:
        _say(_choice(e, e.max_loss))
    _say(f"report: {folder / REPORT}")


def _choice(e: Evaluation, max_loss: float) -> str:
    """The sentence about --max-loss."""
    from splitwire.evaluation.answer.choose import choose
    from splitwire.evaluation.answer.wording import budget_words, count, loss_words

    choice = choose(e.points, max_loss, e.over_budget)
    budget = budget_words(e.figure, max_loss)
    if choice.chosen is None:
        near = choice.nearest
        return (
            f"no operating point loses at most {budget} for sure; nearest: {near.setting}, up to"
            f" {loss_words(e.figure, near.loss.high)}; the default stays {e.default_op}. More images make the interval"
            " narrower, more levels (splitwire export --levels) lose less"
        )
    p = choice.chosen
    return (
        f"chosen for a loss of at most {budget}: {p.setting}, {count(p.bytes)} bytes an image, which loses"
        f" {loss_words(e.figure, p.loss.value)}, and up to {loss_words(e.figure, p.loss.high)}; now the default in both"
        " graphs"
    )


def _points(e: Evaluation) -> Table:
    """One row per contender and setting. Fits WIDTH columns; in fewer, names are wrapped."""
    from rich.markup import escape
    from rich.table import Table

    from splitwire.evaluation.answer.wording import SHARES, count, figure_words, heading, loss_words, milliseconds
    from splitwire.evaluation.contenders import SPLITWIRE

    unit = ", %" if e.figure in SHARES else ""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("point")
    for head in ("bytes", "bits/el", "encode ms", f"{heading(e.figure)}{unit}", f"loss{unit}"):
        table.add_column(head, justify="right", no_wrap=True)
    for p in e.points:
        default = p.family == SPLITWIRE and p.setting == e.default_op
        table.add_row(
            escape(p.name)
            + (" !" if p.family == SPLITWIRE and p.setting in e.over_budget else "")
            + (" *" if default else ""),
            count(p.bytes),
            f"{p.bits_per_element:.3f}",
            milliseconds(p.encode_ms),
            _interval(p.figures[e.figure], figure_words, e.figure),
            _interval(p.loss, loss_words, e.figure),
            style="bold" if default else None,
        )
    return table


def _interval(x: Estimate, words: Callable[[str, float], str], figure: str) -> str:
    """Such as 94.00 (93.00 … 95.00); the unit is in the heading."""
    value, low, high = (words(figure, v).removesuffix(" %") for v in (x.value, x.low, x.high))
    return f"{value} ({low} … {high})"


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
