"""The plots of the report: each once for a wide page, once for a narrow one, as SVG for the page, and as files.

matplotlib writes concrete colours. They are chosen so that none stands for two things; in the page each becomes a
variable of its style sheet (`themed`), so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure  # no pyplot: nothing global, no display
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from .compare import (
    OURS,
    SHARES,
    Comparison,
    budget_words,
    count,
    families,
    figure_words,
    loss_words,
    milliseconds,
    named,
    title,
)
from .contenders import FAMILIES
from .results import Estimate, Evaluation, Point, Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from splitwire.codec.design.density import FeatureDensity
    from splitwire.codec.profile import Clipping

INK, MUTED, GRID, PAGE = "#1c2430", "#5b6675", "#dde2e8", "#fefefe"
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAGE: "--card"}

FAMILY_COLOURS = (
    ("#2456e6", "#84a9ff"),
    ("#d9541e", "#ff8f61"),
    ("#0f8a6a", "#3ecf9f"),
    ("#8b3fc7", "#c493ff"),
    ("#b07d06", "#e6bd4f"),
    ("#c2185b", "#ff7fae"),
    ("#007f9e", "#51c8e4"),
    ("#687a1d", "#b7cd5d"),
    ("#7a4b2b", "#d09c78"),
    ("#59636f", "#a9b4c2"),
    ("#3b409f", "#9fa5f2"),
    ("#a3312f", "#f28f8a"),
    ("#2e7d32", "#83d287"),
    ("#99487d", "#e09ac8"),
)
"""On light, on dark: in the order of FAMILIES, splitwire's first."""

MARKERS = "oshDv^<>pPX*d8"

TIP = "tip-"
WIDE, NARROW = 9.4, 3.9
"""Widths, inches of 72 pt: what the column of a desktop and of a phone give, at a readable size of the letters."""

CANDIDATE_SLOPES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
LARGEST_LOSS_SHOWN = 0.12
LEAST_LOSS_SHOWN = 0.03
ROOM_RIGHT = 4.0
"""The close-up ends at so many times the bytes of splitwire's dearest setting."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot. wide, narrow: SVG elements for the page. svg, png: the wide one as files, on white."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str
    svg: str
    png: bytes


@dataclass(kw_only=True)
class Sheet:
    """What a drawing function draws on."""

    figure: Figure
    evaluation: Evaluation
    comparison: Comparison
    narrow: bool
    tips: list[str] = field(default_factory=list)

    def tip(self, text: str) -> str:
        """Id of an element that shows `text` under the pointer."""
        self.tips.append(text)
        return f"{TIP}{len(self.tips) - 1}"

    def axes(self) -> Axes:
        """The only axes of a plot, styled."""
        return dressed(self.figure.add_subplot())

    def legend(self, axes: Axes | None = None) -> None:
        """Beside the axes where there is room, else below them."""
        source = self.figure.axes if axes is None else [axes]
        found: dict[str, object] = {}
        for a in source:
            for handle, label in zip(*a.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        if self.narrow:
            where = {"loc": "outside lower center", "ncols": 2, "fontsize": 7, "columnspacing": 1, "handlelength": 1.8}
        else:
            where = {"loc": "outside right upper"}
        self.figure.legend(list(found.values()), list(found), frameon=False, **where)


Drawing = Callable[[Sheet], None]


def draw(evaluation: Evaluation, comparison: Comparison) -> list[Plot]:
    """Every plot that the evaluation has the figures for, in the page's order."""
    e = evaluation
    second = second_figure(e)
    plots = [
        _plot(
            "curve", f"{_capital(title(e.figure))} against bytes", _curve_caption(e, comparison), _draw_curve,
            e, comparison, height=5.4,
        )
    ]  # fmt: skip
    if hidden(e, comparison):
        caption = "The same without limits: every setting of every contender."
        plots.append(_plot("curve-all", "Every setting", caption, _draw_all, e, comparison, height=4.6))
    if second is not None:
        better = "Lower is better; it sees changes before an answer flips." if second == "kl" else "Higher is better."
        caption = f"{better} Bands: 95 % intervals over images."
        name = f"{_capital(title(second))} against bytes"
        plots.append(_plot(second, name, caption, _draw_second, e, comparison, height=5.0))
    caption = (
        "One image on one core, medians. Left and down is better. Filled: the cheapest setting of each family within "
        f"a loss of {budget_words(e.figure, comparison.max_loss)}. For pictures the codec alone; features "
        "also need the front on the device."
    )
    plots.append(_plot("encode", "Time to encode against bytes", caption, _draw_encode, e, comparison, height=5.0))
    if e.stages:
        caption = (
            f"At the default operating point, {e.default_op}: median milliseconds of one image on one core, and what "
            "one image's features take on their way through the codec."
        )
        plots.append(_plot("stages", "Time and bytes per stage", caption, _draw_stages, e, comparison, height=3.0))
    for k, tensor in enumerate(e.tensors):
        suffix = f"-{k + 1}" if len(e.tensors) > 1 else ""
        of = f" of {tensor.name}" if len(e.tensors) > 1 else ""
        drawing = _bound(_draw_histogram, tensor)
        plots.append(
            _plot(
                f"features{suffix}", f"The features{of} and their quantizer", _histogram_caption(e, tensor), drawing,
                e, comparison, height=4.6,
            )
        )  # fmt: skip
        caption = "Mean and standard deviation of each channel over the images, the channels sorted by their mean."
        drawing = _bound(_draw_channels, tensor)
        plots.append(_plot(f"channels{suffix}", f"The channels{of}", caption, drawing, e, comparison, height=3.4))
    return plots


def _bound(drawing: Callable[[Sheet, Tensor], None], tensor: Tensor) -> Drawing:
    return lambda sheet: drawing(sheet, tensor)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def second_figure(evaluation: Evaluation) -> str | None:
    """The figure of the second curve: KL for classes, the strict mAP for detections, where the points have it."""
    names = {name for p in evaluation.points for name in p.figures} - {evaluation.figure}
    return next((name for name in ("kl", "map") if name in names), None)


# How a drawing becomes text and files


def _plot(
    name: str, heading: str, caption: str, drawing: Drawing, e: Evaluation, comparison: Comparison, *, height: float
) -> Plot:
    wide, tips = _drawn(drawing, e, comparison, narrow=False, height=height)
    small, small_tips = _drawn(drawing, e, comparison, narrow=True, height=height)
    svg, page, png = _svg(wide, name), _svg(small, f"{name}-narrow"), io.BytesIO()
    with _style():
        wide.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Plot(
        name=name,
        title=heading,
        caption=caption,
        wide=themed(svg, f"{name}-w-", tips, heading),
        narrow=themed(page, f"{name}-n-", small_tips, heading),
        svg=svg,
        png=png.getvalue(),
    )


def _style() -> mpl.rc_context:
    """Letters stay text, dollars in a user's names stay dollars."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5, "axes.labelsize": 8.5,
            "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.unicode_minus": True,
            "text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
            "axes.edgecolor": MUTED, "axes.facecolor": "none", "axes.linewidth": 0.7, "grid.color": GRID,
            "grid.linewidth": 0.7, "legend.labelcolor": INK,
        }
    )  # fmt: skip


def _drawn(
    drawing: Drawing, e: Evaluation, comparison: Comparison, *, narrow: bool, height: float
) -> tuple[Figure, list[str]]:
    with _style(), warnings.catch_warnings():
        figure = Figure(figsize=(NARROW, 0.66 * height + 1.2) if narrow else (WIDE, height), layout="constrained")
        sheet = Sheet(figure=figure, evaluation=e, comparison=comparison, narrow=narrow)
        drawing(sheet)
    return figure, sheet.tips


def _svg(figure: Figure, salt: str) -> str:
    file = io.StringIO()
    with _style(), mpl.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of names; a browser has more letters than one font
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def themed(svg: str, prefix: str, tips: Sequence[str], label: str) -> str:
    """The `svg` element for the page: ids of its own, colours as variables, no background, tips as <title>."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    box = view.group(1) if view else "0 0 1 1"
    body = text[text.index(">") + 1 :]
    body = re.sub(r'<g id="patch_1">.*?</g>\s*', "", body, count=1, flags=re.DOTALL)  # the white ground
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = body.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for k, tip in enumerate(tips):
        body = body.replace(
            f'id="{prefix}{TIP}{k}">', f'id="{prefix}{TIP}{k}" class="tip"><title>{escape(tip)}</title>', 1
        )
    for colour, variable in (*THEME.items(), *((c, f"--f{k}") for k, (c, _) in enumerate(FAMILY_COLOURS))):
        body = body.replace(colour, f"var({variable})")
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{body}'


def family_style(evaluation: Evaluation, family: str) -> tuple[str, str]:
    """(colour, marker) of a family: the same in every report, also where some contenders are missing."""
    order = [*FAMILIES, *(f for f in families(evaluation) if f not in FAMILIES)]
    k = order.index(family)
    if k >= len(FAMILY_COLOURS):
        k = 1 + k % (len(FAMILY_COLOURS) - 1)  # never splitwire's own
    return FAMILY_COLOURS[k][0], MARKERS[k]


def dressed(axes: Axes) -> Axes:
    """The common look: two spines, a grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return axes


def _bytes_axis(sheet: Sheet, axes: Axes) -> None:
    """Log bytes below, bits per element at the cut above."""
    elements = sheet.evaluation.elements
    axes.set_xscale("log")
    axes.set_xlabel("bytes per image (log)")
    above = axes.secondary_xaxis("top", functions=(lambda b: 8 * b / elements, lambda r: r * elements / 8))
    above.set_xlabel("bits per element at the cut")
    above.spines["top"].set_visible(False)
    for axis in (axes.xaxis, above.xaxis):
        _log_ticks(axis, axes.get_xlim())


def _log_ticks(axis: object, limits: tuple[float, float]) -> None:
    """Plain numbers, at 1, 2 and 5 where the axis is short."""
    decades = math.log10(limits[1] / limits[0])
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def _figure_axis(axes: Axes, figure: str) -> None:
    unit = ", %" if figure in SHARES else ", nats" if figure == "kl" else ""
    axes.set_ylabel(_capital(title(figure)) + unit)
    if figure in SHARES:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.10g}"))


# The curves


def paired(evaluation: Evaluation, point: Point) -> Estimate:
    """The main figure with the interval of its *difference* from the whole network, on the same images.

    The interval of the figure itself is mostly the luck of the images, which all contenders share."""
    whole, loss = evaluation.whole[evaluation.figure].value, point.loss
    return Estimate(value=whole - loss.value, low=whole - loss.high, high=whole - loss.low)


def floor(evaluation: Evaluation, comparison: Comparison) -> float:
    """The largest loss that the close-up shows: splitwire's own, within reason."""
    ours = [p.loss.value for p in evaluation.points if p.family == OURS]
    scale = 1.0 if evaluation.figure in SHARES else abs(evaluation.whole[evaluation.figure].value) or 1.0
    shown = max(1.25 * max(ours, default=0.0), 2.5 * comparison.max_loss, LEAST_LOSS_SHOWN * scale)
    return min(shown, max(LARGEST_LOSS_SHOWN * scale, 1.5 * comparison.max_loss))


def _right(evaluation: Evaluation) -> float:
    """Most bytes that the close-up shows."""
    ours = [p.bytes for p in evaluation.points if p.family == OURS]
    every = [p.bytes for p in evaluation.points]
    return min(ROOM_RIGHT * max(ours), max(every)) if ours else max(every)


def hidden(evaluation: Evaluation, comparison: Comparison) -> list[Point]:
    """Points that the close-up leaves out."""
    most, right = floor(evaluation, comparison), _right(evaluation)
    return [p for p in evaluation.points if p.loss.value > most or p.bytes > right]


def _curve_caption(e: Evaluation, comparison: Comparison) -> str:
    text = (
        "Up and left is better. Bands: 95 % intervals of the difference from the whole network on the same images "
        "(paired bootstrap). Dashed with open marks: the picture is sent, and the whole network runs in the cloud."
    )
    left_out = len(hidden(e, comparison))
    if left_out:
        text += f" A close-up: {left_out} of {len(e.points)} settings lie outside, and are in the next plot."
    return text


def _draw_curve(sheet: Sheet) -> None:
    e, c = sheet.evaluation, sheet.comparison
    axes = sheet.axes()
    out = {id(p) for p in hidden(e, c)}
    seen = [p for p in e.points if id(p) not in out]
    _whole_lines(sheet, axes)
    for family, points in families(e).items():
        if any(id(p) not in out for p in points):
            _family_curve(sheet, axes, family, points, lambda p: paired(e, p))
    whole, most = e.whole[e.figure].value, floor(e, c)
    top = max([whole, *(min(paired(e, p).high, paired(e, p).value + 0.5 * most) for p in seen)])
    axes.set_ylim(whole - 1.04 * most, top + 0.06 * most)
    axes.set_xlim(0.86 * min(p.bytes for p in seen), 1.16 * max(p.bytes for p in seen))
    _figure_axis(axes, e.figure)
    _bytes_axis(sheet, axes)
    _name_settings(e, axes, [p for p in seen if p.family == OURS])
    sheet.legend(axes)


def _draw_all(sheet: Sheet) -> None:
    e = sheet.evaluation
    axes = sheet.axes()
    _whole_lines(sheet, axes)
    for family, points in families(e).items():
        _family_curve(sheet, axes, family, points, lambda p: paired(e, p))
    _figure_axis(axes, e.figure)
    _bytes_axis(sheet, axes)
    sheet.legend(axes)


def _draw_second(sheet: Sheet) -> None:
    e = sheet.evaluation
    figure = second_figure(e)
    assert figure is not None  # noqa: S101 - draw() asks first
    axes = sheet.axes()
    if figure in e.whole and figure != "kl":
        axes.axhline(e.whole[figure].value, color=INK, linewidth=1, label="whole network")
    shown: list[Point] = []
    for family, points in families(e).items():
        usable = [p for p in points if figure in p.figures and (figure != "kl" or p.figures[figure].value > 0)]
        if usable and (len(usable) > 1 or family == OURS):
            shown += usable
            _family_curve(sheet, axes, family, usable, lambda p: p.figures[figure])
    right = _right(e)
    seen = [p for p in shown if p.bytes <= right] or shown
    if not seen:
        seen = list(e.points)
    axes.set_xlim(0.86 * min(p.bytes for p in seen), 1.16 * max(p.bytes for p in seen))
    if figure == "kl" and shown:
        axes.set_yscale("log")
        values = [p.figures[figure].value for p in seen]
        axes.set_ylim(max(min(values) / 1.6, 1e-7), 1.6 * max(values))
        _log_ticks(axes.yaxis, axes.get_ylim())
    _figure_axis(axes, figure)
    _bytes_axis(sheet, axes)
    sheet.legend(axes)


def _whole_lines(sheet: Sheet, axes: Axes) -> None:
    e, c = sheet.evaluation, sheet.comparison
    whole = e.whole[e.figure].value
    axes.axhline(whole, color=INK, linewidth=1, label=f"whole network, {figure_words(e.figure, whole)}")
    budget = f"{budget_words(e.figure, c.max_loss)} lost"
    axes.axhline(whole - c.max_loss, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label=budget)


def _family_curve(
    sheet: Sheet, axes: Axes, family: str, points: Sequence[Point], of: Callable[[Point], Estimate]
) -> None:
    """Line, band and marks of one family; each mark says what it is under the pointer."""
    e = sheet.evaluation
    colour, marker = family_style(e, family)
    ours, sends = family == OURS, points[0].sends
    layer = 5 if ours else 3
    xs = [p.bytes for p in points]
    ys = [of(p) for p in points]
    if len(points) > 1:
        low, high = [y.low for y in ys], [y.high for y in ys]
        axes.fill_between(xs, low, high, color=colour, alpha=0.2 if ours else 0.08, linewidth=0, zorder=layer - 2)
    mark = {
        "marker": marker, "color": colour, "markeredgecolor": colour, "markersize": 5.5 if ours else 4,
        "markerfacecolor": PAGE if sends == "image" else colour,
    }  # fmt: skip
    line = "" if len(points) == 1 else "--" if sends == "image" else "-"
    axes.plot(
        xs, [y.value for y in ys], line, linewidth=2.2 if ours else 1.2, label=family, zorder=layer, **mark
    )  # fmt: skip
    for p, y in zip(points, ys, strict=True):
        axes.plot([p.bytes], [y.value], zorder=layer + 0.1, gid=sheet.tip(_tip(e, p)), **mark)


def _tip(e: Evaluation, p: Point) -> str:
    values = ", ".join(f"{name} {figure_words(name, x.value)}" for name, x in p.figures.items())
    return (
        f"{named(p)}: {count(p.bytes)} bytes, {p.bits_per_element:.3f} bits per element, encode "
        f"{milliseconds(p.encode_ms)} ms; {values}; loss {loss_words(e.figure, p.loss.value)} "
        f"({loss_words(e.figure, p.loss.low)} to {loss_words(e.figure, p.loss.high)})"
    )


def _name_settings(e: Evaluation, axes: Axes, points: Sequence[Point]) -> None:
    """Names of splitwire's settings below their marks, as far apart as letters need; the default is bold."""
    last = 0.0
    for p in points:
        default = p.setting == e.default_op
        if not default and last and p.bytes < 1.09 * last:
            continue
        last = p.bytes
        axes.annotate(
            p.setting, (p.bytes, paired(e, p).value), xytext=(0, -7), textcoords="offset points", ha="center",
            va="top", color=family_style(e, OURS)[0], fontsize=8, fontweight="bold" if default else "normal", zorder=6,
            annotation_clip=True, bbox={"facecolor": PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )  # fmt: skip


# Time and bytes


def _draw_encode(sheet: Sheet) -> None:
    e = sheet.evaluation
    axes = sheet.axes()
    chosen = {(s.family, s.setting) for s in sheet.comparison.standings}
    drawn: list[Point] = []
    for family, points in families(e).items():
        colour, marker = family_style(e, family)
        timed = [p for p in points if p.encode_ms > 0]
        if not timed:
            continue
        drawn += timed
        line = "--" if timed[0].sends == "image" else "-"
        xs, ys = [p.bytes for p in timed], [p.encode_ms for p in timed]
        axes.plot(xs, ys, line, color=colour, linewidth=1, alpha=0.55)
        axes.plot([], [], marker + line, color=colour, label=family, markersize=5)
        for p in timed:
            best = (p.family, p.setting) in chosen
            axes.plot(
                [p.bytes], [p.encode_ms], marker=marker, color=colour, markersize=8 if best else 4,
                markerfacecolor=colour if best else PAGE, gid=sheet.tip(_tip(e, p)), zorder=5 if best else 3,
            )  # fmt: skip
    if drawn:
        axes.set_yscale("log")
        times = [p.encode_ms for p in drawn]
        axes.set_ylim(min(times) / 1.6, 1.6 * max(times))
        _log_ticks(axes.yaxis, axes.get_ylim())
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(p.bytes for p in drawn), 1.25 * max(p.bytes for p in drawn))
    axes.set_ylabel("encode, ms per image (log)")
    _bytes_axis(sheet, axes)
    sheet.legend(axes)


ON_DEVICE = ("front", "encode")


def _draw_stages(sheet: Sheet) -> None:
    e = sheet.evaluation
    grid = (2, 1) if sheet.narrow else (1, 2)
    times, sizes = (dressed(a) for a in sheet.figure.subplots(*grid))
    device, cloud = FAMILY_COLOURS[0][0], FAMILY_COLOURS[2][0]
    ends = (("on the device", device, True), ("in the cloud", cloud, False))
    stages = list(e.stages.items())
    for label, colour, here in ends:
        rows = [(k, ms) for k, (name, ms) in enumerate(stages) if (name in ON_DEVICE) == here]
        times.barh([k for k, _ in rows], [ms for _, ms in rows], color=colour, height=0.62, label=label)
    _bar_ends(times, [name for name, _ in stages], [ms for _, ms in stages], lambda v: f"{milliseconds(v)} ms")
    times.set_xlabel("milliseconds per image")
    steps = stage_bytes(e, sheet.comparison)
    for label, colour, sent in (("never sent", FAMILY_COLOURS[9][0], False), ("sent", FAMILY_COLOURS[1][0], True)):
        rows = [(k, b) for k, (_, b, crosses) in enumerate(steps) if crosses == sent]
        sizes.barh([k for k, _ in rows], [b for _, b in rows], color=colour, height=0.62, label=label)
    _bar_ends(sizes, [name for name, _, _ in steps], [b for _, b, _ in steps], count)
    sizes.set_xlabel("bytes per image")
    for axes in (times, sizes):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def stage_bytes(e: Evaluation, comparison: Comparison) -> list[tuple[str, float, bool]]:
    """(what, bytes of one image, whether it crosses): the features on their way, and the best picture beside them."""
    steps = [("float32 features", 4.0 * e.elements, False)]
    levels = {d.tensor: len(d.quantizer.levels) for d in e.designs if d.op == e.default_op}
    if e.tensors and all(t.name in levels for t in e.tensors):
        bits = sum(math.prod(t.shape) * math.ceil(math.log2(levels[t.name])) for t in e.tensors)
        steps.append(("symbols, bit-packed", bits / 8, False))
    default = default_point(e)
    if default is not None:
        steps.append((named(default), default.bytes, True))
    picture = next((s for s in comparison.standings if s.sends == "image"), None)
    if picture is not None:
        steps.append((f"picture, {named(picture)}", picture.bytes, True))
    return steps


def default_point(e: Evaluation) -> Point | None:
    """Splitwire's point at the default operating point."""
    return next((p for p in e.points if p.family == OURS and p.setting == e.default_op), None)


def _bar_ends(axes: Axes, names: Sequence[str], values: Sequence[float], words: Callable[[float], str]) -> None:
    """Names at the bars' feet, values at their ends; the first bar on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max([*values, 1e-9]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.grid(visible=False, axis="y")
    for k, value in enumerate(values):
        axes.annotate(words(value), (value, k), xytext=(4, 0), textcoords="offset points", va="center", color=INK)


# The features


def fitted(tensor: Tensor, clipping: Clipping) -> FeatureDensity | None:
    """The density that the clipping range was found with; None where the histogram decided.

    A profile does not keep the slope of a leaky ReLU; of the usual ones it is the one nearest to what was measured.
    """
    from splitwire.codec.design.density import FeatureDensity

    if clipping.method == "histogram" or clipping.rate is None or clipping.location is None:
        return None
    slopes: Iterable[float] = (0.0,) if clipping.method == "relu_model" else CANDIDATE_SLOPES
    edges = np.array(tensor.edges)
    measured = np.cumsum(tensor.densities)[:-1]

    def distance(density: FeatureDensity) -> float:
        return float(np.abs(density.cdf(edges[1:-1]) - measured).max(initial=0.0))

    return min((FeatureDensity(rate=clipping.rate, location=clipping.location, slope=s) for s in slopes), key=distance)


def expected_shares(density: FeatureDensity, edges: Sequence[float]) -> NDArray[np.float64]:
    """(B,) probability of each bin [low, high); a point mass at an edge belongs to the bin on its right."""
    return np.diff(density.cdf(np.nextafter(np.array(edges), -np.inf)))


def _histogram_caption(e: Evaluation, tensor: Tensor) -> str:
    shape = "×".join(map(str, tensor.shape))
    text = (
        f"Tensor {tensor.name}, {shape}: mean {tensor.mean:.4g}, standard deviation {tensor.deviation:.4g}, range "
        f"{tensor.minimum:.4g} to {tensor.maximum:.4g}, {100 * tensor.zeros:.1f} % exact zeros."
    )
    found = next((d for d in e.designs if d.op == e.default_op and d.tensor == tensor.name), None)
    if found is None:
        return text
    low, high = found.quantizer.clipping_range
    text += f" At {found.op} it is clipped to [{low:.4g}, {high:.4g}]."
    clipping = found.clipping
    if clipping.method == "histogram":
        return text + f" The range was chosen on the histogram: {clipping.reason or 'no density was fitted'}."
    kind = "ReLU" if clipping.method == "relu_model" else "leaky-ReLU"
    if clipping.ks_distance is not None:
        kind += f" density, Kolmogorov–Smirnov distance {clipping.ks_distance:.3f} when calibrated"
    return text + f" The range was chosen by the fitted {kind}."


def _draw_histogram(sheet: Sheet, tensor: Tensor) -> None:
    e = sheet.evaluation
    axes = sheet.axes()
    edges, shares = np.array(tensor.edges), np.array(tensor.densities)
    blue, orange, green = FAMILY_COLOURS[0][0], FAMILY_COLOURS[1][0], FAMILY_COLOURS[2][0]
    positive = shares[shares > 0]
    least = float(positive.min(initial=1.0)) / 2
    axes.stairs(np.maximum(shares, least / 10), edges, baseline=least / 10, fill=True, color=blue, alpha=0.35)
    axes.stairs(np.maximum(shares, least / 10), edges, baseline=least / 10, color=blue, linewidth=0.9,
                label="measured")  # fmt: skip
    found = next((d for d in e.designs if d.op == e.default_op and d.tensor == tensor.name), None)
    if found is not None:
        density = fitted(tensor, found.clipping)
        if density is not None:
            expected = expected_shares(density, tensor.edges)
            slope = f", slope {density.slope:g}" if density.slope else ""
            label = f"fitted density (λ {density.rate:.3g}, μ {density.location:.3g}{slope})"
            centres = (edges[1:] + edges[:-1]) / 2
            axes.plot(centres, np.where(expected > 0, expected, np.nan), color=orange, linewidth=1.6, label=label)
        low, high = found.quantizer.clipping_range
        for k, (a, b) in enumerate(((min(edges[0], low) - 1e9, low), (high, max(edges[-1], high) + 1e9))):
            axes.axvspan(a, b, color=MUTED, alpha=0.13, linewidth=0, label="clipped" if k == 0 else None)
        for k, level in enumerate(found.quantizer.levels):
            label = f"levels of {found.op}" if k == 0 else None
            axes.axvline(level, color=green, linewidth=1.3, label=label)
        for k, threshold in enumerate(found.quantizer.thresholds):
            label = "thresholds" if k == 0 else None
            axes.axvline(threshold, color=green, linewidth=0.9, linestyle=(0, (1, 2)), label=label)
        span = max(edges[-1], high) - min(edges[0], low)
        axes.set_xlim(min(edges[0], low) - 0.02 * span, max(edges[-1], high) + 0.02 * span)
    axes.set_yscale("log")
    axes.set_ylim(least, 2 * float(shares.max(initial=least)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("value of a feature")
    axes.set_ylabel("share of the elements per bin, % (log)")
    sheet.legend(axes)


def _draw_channels(sheet: Sheet, tensor: Tensor) -> None:
    axes = sheet.axes()
    means, deviations = np.array(tensor.channel_means), np.array(tensor.channel_deviations)
    order = np.argsort(means, kind="stable")
    means, deviations = means[order], deviations[order]
    xs = np.arange(1, means.size + 1)
    colour = FAMILY_COLOURS[0][0]
    mark = "o" if means.size <= 64 else ""
    axes.fill_between(
        xs, means - deviations, means + deviations, step="mid", color=colour, alpha=0.2, linewidth=0,
        label="± one standard deviation",
    )  # fmt: skip
    axes.plot(xs, means, mark + "-", color=colour, linewidth=1.4, markersize=2.5, label="mean of the channel")
    axes.axhline(tensor.mean, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="mean of the tensor")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlim(0.5, max(means.size, 1) + 0.5)
    axes.set_xlabel(f"channel, sorted by mean (of {means.size})")
    axes.set_ylabel("value of a feature")
    sheet.legend(axes)
