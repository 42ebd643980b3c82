"""The report of an evaluation: report.html, which needs nothing beside it, the plots as files, and results.csv.

Any folder with a results.json can be drawn again: `write_report(read_results(folder), folder)`.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwire.codec.shared.files import write_atomically
from splitwire.codec.shared.text import printable
from splitwire.evaluation.answer.bd_rate import MIN_OVERLAP, MIN_POINTS, BdRate, bd_rate
from splitwire.evaluation.answer.compare import Comparison, compare
from splitwire.evaluation.answer.results import Estimate, Evaluation, Point
from splitwire.evaluation.answer.standings import families
from splitwire.evaluation.answer.wording import (
    budget_words,
    count,
    figure_words,
    heading,
    loss_words,
    milliseconds,
    named,
    times,
    title,
)
from splitwire.evaluation.contenders import SPLITWIRE

if TYPE_CHECKING:
    from .drawing import Plot

FILE = "report.html"
TABLE = "results.csv"
PLOTS = "plots"

OF_ITSELF = frozenset({"agreement", "kl"})
"""Figures that are measured against the whole network, and so say nothing about it."""

LONGEST_BAR = 8.0
"""In multiples of the shortest bar. Longer bars of the ranking end here, and fade out."""


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Write `out`/report.html, plots/*.svg and *.png, results.csv; each whole or not at all. Returns the page's path.

    The page is written last. Raises OSError.
    """
    from .plots import draw

    comparison = compare(evaluation)
    plots = draw(evaluation, comparison)
    for plot in plots:
        write_atomically(out / PLOTS / f"{plot.name}.svg", plot.svg.encode())
        write_atomically(out / PLOTS / f"{plot.name}.png", plot.png)
    write_atomically(out / TABLE, printable(table_csv(evaluation)).encode())
    page = out / FILE
    write_atomically(page, printable(render(evaluation, comparison, plots)).encode())
    return page


def table_csv(evaluation: Evaluation) -> str:
    """Every point with every figure and its interval, after the whole network's; losses in the figure's own unit."""
    names = figure_names(evaluation)
    columns = ["family", "setting", "sends", "bytes", "bits_per_element", "encode_ms"]
    for name in (*names, "loss"):
        columns += [name, f"{name}_low", f"{name}_high"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)

    def cells(estimates: list[Estimate | None]) -> list[object]:
        return [x for e in estimates for x in (("", "", "") if e is None else (e.value, e.low, e.high))]

    whole = [evaluation.whole.get(name) for name in names]
    writer.writerow(["whole network", "", "", "", "", "", *cells([*whole, None])])
    for p in evaluation.points:
        head = [p.family, p.setting, p.sends, p.bytes, p.bits_per_element, p.encode_ms]
        writer.writerow([*head, *cells([*(p.figures.get(name) for name in names), p.loss])])
    return file.getvalue()


def figure_names(evaluation: Evaluation) -> list[str]:
    """Names of the figures in the points, the main one first."""
    names = dict.fromkeys([evaluation.figure, *evaluation.whole])
    return list(names | dict.fromkeys(name for p in evaluation.points for name in p.figures))


def render(evaluation: Evaluation, comparison: Comparison, plots: list[Plot]) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from .drawing import FAMILY_COLOURS, THEME

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    e = evaluation
    # The drawings escape what they are given; everything else is escaped by the template.
    drawn = [
        {"name": p.name, "title": p.title, "caption": p.caption, "wide": Markup(p.wide), "narrow": Markup(p.narrow)}  # noqa: S704 - see above
        for p in plots
    ]
    groups = {"curves": ("curve", "curve-all", "kl", "map"), "costs": ("encode", "stages")}
    return environment.from_string(source).render(
        e=e,
        c=comparison,
        colours=[(f"--f{k}", light, dark) for k, (light, dark) in enumerate(FAMILY_COLOURS)],
        theme=THEME,
        headline=headline(e, comparison),
        tiles=_tiles(e, comparison),
        ranking=_ranking(e, comparison),
        missed=[(named(m), loss_words(e.figure, m.loss.value)) for m in comparison.missed],
        choice=_choice(e),
        untried=any(s.untried for s in comparison.standings),
        curves=[p for p in drawn if p["name"] in groups["curves"]],
        costs=[p for p in drawn if p["name"] in groups["costs"]],
        features=[p for p in drawn if p["name"] not in groups["curves"] + groups["costs"]],
        columns=_columns(e),
        rows=_rows(e, comparison),
        bd=_bd_rows(e),
        min_points=MIN_POINTS,
        min_overlap=f"{100 * MIN_OVERLAP:.0f} %",
        disagreements=[
            {
                "name": d.name, "whole": d.whole, "split": d.split, "target": d.target,
                "picture": None if d.picture is None else base64.b64encode(d.picture).decode(),
            }
            for d in e.disagreements
        ],
        whole=[(title(n), _estimate(n, x)) for n, x in e.whole.items() if n not in OF_ITSELF],
        budget=budget_words(e.figure, comparison.max_loss),
        figure=title(e.figure),
    )  # fmt: skip


def headline(e: Evaluation, c: Comparison) -> str:
    """The answer in one sentence."""
    budget = f"at most {budget_words(e.figure, c.max_loss)} of {title(e.figure)} lost"
    ours = c.of(SPLITWIRE)
    best = next((s for s in c.standings if s.family != SPLITWIRE), None)
    if ours is None:
        other = "" if best is None else f"; {named(best)} does it in {count(best.bytes)} bytes"
        return f"With {budget}, no setting of splitwire qualifies{other}."
    text = (
        f"With {budget}, splitwire sends {count(ours.bytes)} bytes per image and encodes them in "
        f"{milliseconds(ours.encode_ms)} ms"
    )
    if best is None:
        return f"{text}; nothing else qualifies."
    kind = ", the picture" if best.sends == "image" else ""
    measured = " measured" if any(s.untried for s in c.standings if s.family != SPLITWIRE) else ""
    return (
        f"{text}; the best alternative{measured} ({named(best)}{kind}) needs {count(best.bytes)} bytes "
        f"and {milliseconds(best.encode_ms)} ms."
    )


def _choice(e: Evaluation) -> str:
    """Why the default operating point is what it is."""
    if e.max_loss is None:
        return f"The default operating point is {e.default_op}; no budget was given to choose another by."
    budget = budget_words(e.figure, e.max_loss)
    if e.chosen is None:
        return (
            f"No operating point's loss has its upper 95 % bound within {budget}, so the default stays {e.default_op}."
        )
    return (
        f"The default operating point is {e.chosen}: the cheapest one whose loss has its upper 95 % bound within "
        f"{budget}."
    )


def _tiles(e: Evaluation, c: Comparison) -> list[tuple[str, str, str]]:
    """(value, unit, what) of the figures at the head of the page."""
    ours = c.of(SPLITWIRE)
    tiles = []
    if ours is not None:
        tiles = [
            (count(ours.bytes), "bytes", f"per image, {named(ours)}"),
            (f"{ours.bits_per_element:.3f}", "bits", "per element at the cut"),
            (milliseconds(ours.encode_ms), "ms", "to encode, one core"),
            (times(4 * e.elements / ours.bytes), "", "smaller than float32"),
        ]
    if e.figure in OF_ITSELF or not e.data.labelled:
        return [*tiles, (f"{e.data.images:,}", "images", "without labels, judged by the whole network's answers")]
    whole = figure_words(e.figure, e.whole[e.figure].value)
    return [*tiles, (whole.removesuffix(" %"), "%" if whole.endswith("%") else "", f"{title(e.figure)}, whole network")]


def _colour(e: Evaluation, family: str) -> str:
    """The family's variable in the style sheet."""
    from .drawing import FAMILY_COLOURS, family_style

    colours = [light for light, _ in FAMILY_COLOURS]
    return f"--f{colours.index(family_style(e, family)[0])}"


def _ranking(e: Evaluation, c: Comparison) -> list[dict[str, Any]]:
    """The standings as bars, fewest bytes first."""
    least = min((s.bytes for s in c.standings), default=1.0)
    longest = min(max((s.bytes for s in c.standings), default=1.0), LONGEST_BAR * least)
    return [
        {
            "name": s.family,
            "setting": s.setting,
            "sends": s.sends,
            "ours": s.family == SPLITWIRE,
            "bytes": s.most,
            "ratio": "" if s.ratio is None else times(s.ratio),
            "ms": milliseconds(s.encode_ms),
            "loss": loss_words(e.figure, s.loss.value),
            "high": loss_words(e.figure, s.loss.high),
            "certain": s.certain,
            "width": f"{100 * min(s.bytes / longest, 1):.1f}",
            "longer": s.bytes > longest,
            "colour": _colour(e, s.family),
        }
        for s in c.standings
    ]


def _estimate(name: str, x: Estimate) -> str:
    """Such as 91.50 % (90.20 to 92.70 %)."""
    low, high = figure_words(name, x.low), figure_words(name, x.high)
    return f"{figure_words(name, x.value)} ({low.removesuffix(' %')} to {high})"


def _columns(e: Evaluation) -> list[tuple[str, bool]]:
    """(heading, numeric) of the table of all points; the two axes of the curve first, a phone shows no more at once."""
    heads = [("family", False), ("setting", False), ("bytes", True), ("loss", True), ("95 % interval of it", True)]
    heads += [("bits per element", True), ("encode, ms", True)]
    return [*heads, *((heading(n), True) for n in figure_names(e)), ("sends", False)]


def _rows(e: Evaluation, c: Comparison) -> list[dict[str, Any]]:
    """Every point: (text, value to sort by) of each cell, grouped by family."""
    names = figure_names(e)
    cheapest = {(s.family, s.setting) for s in c.standings}
    rows = []
    for family, points in families(e).items():
        for k, p in enumerate(points):
            rows.append(
                {
                    "cells": _cells(e, p, names),
                    "first": k == 0,
                    "ours": family == SPLITWIRE,
                    "default": family == SPLITWIRE and p.setting == e.default_op,
                    "cheapest": (family, p.setting) in cheapest,
                    "colour": _colour(e, family),
                }
            )
    return rows


def _cells(e: Evaluation, p: Point, names: list[str]) -> list[tuple[str, str | float]]:
    loss = p.loss
    cells: list[tuple[str, str | float]] = [
        (p.family, p.family),
        (p.setting, p.setting),
        (count(p.bytes), p.bytes),
        (loss_words(e.figure, loss.value), loss.value),
        (f"{loss_words(e.figure, loss.low).removesuffix(' %')} to {loss_words(e.figure, loss.high)}", loss.high),
        (f"{p.bits_per_element:.3f}", p.bits_per_element),
        (milliseconds(p.encode_ms), p.encode_ms),
    ]
    for name in names:
        x = p.figures.get(name)
        cells.append(("–", -math.inf) if x is None else (figure_words(name, x.value), x.value))
    return [*cells, ({"features": "features", "image": "picture"}[p.sends], p.sends)]


def _bd_rows(e: Evaluation) -> dict[str, Any]:
    """BD-rates of every family but splitwire's, by the main and the second figure."""
    from .plots import second_figure

    second = second_figure(e)
    figures = [e.figure, *([] if second is None else [second])]
    grouped = families(e)
    reference = grouped.pop(SPLITWIRE, [])
    rows = [
        {"family": family, "colour": _colour(e, family),
         "cells": [_bd_cell(bd_rate(reference, points, figure)) for figure in figures]}
        for family, points in grouped.items()
    ]  # fmt: skip
    return {"figures": [title(figure) for figure in figures], "rows": rows}


def _bd_cell(result: BdRate) -> dict[str, str]:
    if result.rate is None:
        return {"rate": "–", "why": result.reason or "", "kind": "none"}
    why = f"over {100 * result.overlap:.0f} % of splitwire's range, {result.points} settings"
    return {"rate": f"{100 * result.rate:+.1f} %", "why": why, "kind": "more" if result.rate > 0 else "less"}
