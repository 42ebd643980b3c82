"""`splitwire compare`: what each contender needs at a given loss, and whether sending features is worth it at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.console import out, print_json, print_wide

if TYPE_CHECKING:
    from rich.table import Table

    from splitwire.evaluation.answer.compare import Comparison

WIDTH = 100
"""Columns that the table fits in."""


def compare(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of an evaluation, or of an evaluated pair.")],
    max_loss: Annotated[
        str | None,
        typer.Option(help="Of the main figure: 1% or 0.01.", show_default="the evaluation's, or 1%"),
    ] = None,
    upper: Annotated[
        bool, typer.Option("--upper", help="Count the upper bound of each loss, as evaluate --max-loss does.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Show, from an evaluation, what every contender needs to stay within a loss; say when a picture is better."""
    from splitwire.evaluation.answer.compare import compare as compared
    from splitwire.evaluation.answer.results import evaluation_folder, read_results
    from splitwire.evaluation.answer.wording import parse_loss

    budget = None if max_loss is None else parse_loss(max_loss)
    comparison = compared(read_results(evaluation_folder(path)), budget, upper=upper)
    if as_json:
        print_json(comparison)
    else:
        _show(comparison)


def _show(c: Comparison) -> None:
    from splitwire.evaluation.answer.standings import counted
    from splitwire.evaluation.answer.wording import budget_words, figure_words, loss_words, title
    from splitwire.evaluation.contenders import SPLITWIRE

    whole = figure_words(c.figure, c.whole.value)
    _say(f"{c.model} cut after {c.cut}: whole network {whole} {title(c.figure)}, {c.images:,} images")
    budget = budget_words(c.figure, c.max_loss)
    if c.standings:
        print_wide(table(c), WIDTH, ("encode ms", "bits/el", "up to", f"× {SPLITWIRE}"))
    for m in c.missed:
        least = loss_words(c.figure, counted(m.loss, c.upper))
        _say(f"not within {budget}: {m.family}; loses least at {m.setting or 'its one setting'}, {least}")
    for sentence in c.verdict:
        _say(sentence)


def table(c: Comparison) -> Table:
    """The standings, fewest bytes first; splitwire's is bold. Fits WIDTH columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from splitwire.evaluation.answer.wording import budget_words, loss_words, milliseconds, times, title
    from splitwire.evaluation.contenders import SPLITWIRE

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    grid.caption = (
        f"the cheapest setting of each that loses at most {budget_words(c.figure, c.max_loss)}"
        f"{', up to the upper bound' if c.upper else ''}; bytes, bits per element"
        " at the cut and encode ms of one image, on one core; of a picture the codec alone. loss, up to: of the"
        f" {title(c.figure)}, measured, and its upper 95 % bound; ! beyond the budget."
    )
    if any(s.untried for s in c.standings):
        grid.caption += " ≤: the lowest setting that was measured; lower ones were not tried."
    for name in ("what is sent", "setting"):
        grid.add_column(name, no_wrap=True)
    for name in ("bytes", "bits/el", f"× {SPLITWIRE}", "encode ms", "loss", "up to"):
        grid.add_column(name, justify="right", no_wrap=True)
    for s in c.standings:
        grid.add_row(
            escape(s.family + (" (picture)" if s.sends == "image" else "")),
            escape(s.setting),
            s.most,
            f"{s.bits_per_element:.3f}",
            "–" if s.ratio is None else times(s.ratio),
            milliseconds(s.encode_ms),
            loss_words(c.figure, s.loss.value),
            loss_words(c.figure, s.loss.high) + ("" if s.certain else " !"),
            style="bold" if s.family == SPLITWIRE else None,
        )
    return grid


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
