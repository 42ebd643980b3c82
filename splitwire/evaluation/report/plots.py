"""The plots of the report, in the page's order: the curves, what they cost, the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from splitwire.evaluation.answer.compare import Comparison
from splitwire.evaluation.answer.results import Estimate, Evaluation, Point, Tensor
from splitwire.evaluation.answer.standings import families, is_level
from splitwire.evaluation.answer.wording import (
    SHARES,
    budget_words,
    count,
    figure_words,
    loss_words,
    milliseconds,
    named,
    title,
)
from splitwire.evaluation.contenders import SPLITWIRE

from .drawing import (
    FAMILY_COLOURS,
    INK,
    PAGE,
    Drawing,
    Plot,
    Sheet,
    bytes_axis,
    capital,
    dressed,
    family_style,
    figure_axis,
    log_ticks,
    plot,
)
from .feature_plots import design_of, draw_channels, draw_histogram, histogram_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_LOSS_SHOWN = 0.12
LEAST_LOSS_SHOWN = 0.03
NAME_SIZE = (0.6, 0.2)
"""Inches that the name of a setting needs, in a figure of which the axes are a good part."""

ROOM_RIGHT = 4.0
"""The close-up ends at this multiple of the bytes of splitwire's highest-rate setting."""


KINDS = {
    "n": "n (uniform)",
    "a": "a (uniform, over a range searched for)",
    "e": "e (entropy-constrained)",
    "r": "r (designed for their bits)",
}
"""Kinds of operating points, by the first letter of their names."""

BARS = (
    "Bars (of the cheapest setting of each within the budget, and of the default; the button shows all): 95 % intervals"
)


def draw(evaluation: Evaluation, comparison: Comparison) -> list[Plot]:
    """Every plot that the evaluation has the figures for, in the page's order."""
    e = evaluation
    second = second_figure(e)
    level = is_level(e) and second is not None
    plots = [] if level else [
        plot(
            "curve", f"{capital(title(e.figure))} against bytes", _curve_caption(e, comparison), _draw_curve,
            e, comparison, height=5.4,
        )
    ]  # fmt: skip
    if hidden(e, comparison) and not level:
        caption = "The same without limits: every setting of every contender."
        plots.append(plot("curve-all", "Every setting", caption, _draw_all, e, comparison, height=4.6))
    if second is not None:
        better = "Lower is better; it sees changes before an answer flips." if second == "kl" else "Higher is better."
        caption = f"{better} {BARS} over images."
        if level:
            value = figure_words(e.figure, e.whole[e.figure].value)
            caption = (
                f"Every setting of every contender has {value} {title(e.figure)} on these {e.data.images:,} images, as"
                f" the whole network has: that curve would be a level line, and this one stands in its place. {caption}"
            )
        name = f"{capital(title(second))} against bytes"
        plots.append(plot(second, name, caption, _draw_second, e, comparison, height=5.0))
    caption = (
        "One image on one core, medians. Left and down is better. Filled: the cheapest setting of each family within "
        f"a loss of {budget_words(e.figure, comparison.max_loss)}. For pictures the codec alone; features "
        "also need the front on the device."
    )
    plots.append(plot("encode", "Time to encode against bytes", caption, _draw_encode, e, comparison, height=5.0))
    if e.stages:
        caption = (
            f"At the default operating point, {e.default_op}: median milliseconds of one image on one core, and what "
            "one image's features take on their way through the codec."
        )
        plots.append(plot("stages", "Time and bytes per stage", caption, _draw_stages, e, comparison, height=3.0))
    for k, tensor in enumerate(e.tensors):
        suffix = f"-{k + 1}" if len(e.tensors) > 1 else ""
        of = f" of {tensor.name}" if len(e.tensors) > 1 else ""
        drawing = _bound(draw_histogram, tensor)
        quantizer = "" if design_of(e, tensor) is None else " and their quantizer"
        plots.append(
            plot(
                f"features{suffix}", f"The features{of}{quantizer}", histogram_caption(e, tensor), drawing,
                e, comparison, height=4.6,
            )
        )  # fmt: skip
        caption = "Mean and standard deviation of each channel over the images, the channels sorted by their mean."
        drawing = _bound(draw_channels, tensor)
        plots.append(plot(f"channels{suffix}", f"The channels{of}", caption, drawing, e, comparison, height=3.4))
    return plots


def _bound(drawing: Callable[[Sheet, Tensor], None], tensor: Tensor) -> Drawing:
    return lambda sheet: drawing(sheet, tensor)


def second_figure(evaluation: Evaluation) -> str | None:
    """The figure of the second curve: KL for classes, the strict mAP for detections, where the points have it."""
    names = {name for p in evaluation.points for name in p.figures} - {evaluation.figure}
    return next((name for name in ("kl", "map") if name in names), None)


# The curves


def paired(evaluation: Evaluation, point: Point) -> Estimate:
    """The main figure with the interval of its *difference* from the whole network, on the same images.

    The interval of the figure itself is mostly chance in the choice of images, which all contenders share.
    """
    whole, loss = evaluation.whole[evaluation.figure].value, point.loss
    return Estimate(value=whole - loss.value, low=whole - loss.high, high=whole - loss.low)


def floor(evaluation: Evaluation, comparison: Comparison) -> float:
    """The largest loss that the close-up shows: splitwire's largest, within limits."""
    ours = [p.loss.value for p in evaluation.points if p.family == SPLITWIRE]
    scale = 1.0 if evaluation.figure in SHARES else abs(evaluation.whole[evaluation.figure].value) or 1.0
    shown = max(1.25 * max(ours, default=0.0), 2.5 * comparison.max_loss, LEAST_LOSS_SHOWN * scale)
    return min(shown, max(LARGEST_LOSS_SHOWN * scale, 1.5 * comparison.max_loss))


def _right(evaluation: Evaluation) -> float:
    """Most bytes that the close-up shows."""
    ours = [p.bytes for p in evaluation.points if p.family == SPLITWIRE]
    sizes = [p.bytes for p in evaluation.points]
    return min(ROOM_RIGHT * max(ours), max(sizes)) if ours else max(sizes)


def hidden(evaluation: Evaluation, comparison: Comparison) -> list[Point]:
    """Points that the close-up leaves out."""
    most, right = floor(evaluation, comparison), _right(evaluation)
    return [p for p in evaluation.points if p.loss.value > most or p.bytes > right]


def _curve_caption(e: Evaluation, comparison: Comparison) -> str:
    text = (
        f"Up and left is better. {BARS} of the difference from the whole network on the same images "
        "(paired bootstrap). Dashed with open marks: the picture is sent, and the whole network runs in the cloud."
    )
    kinds = {p.setting[:1] for p in e.points if p.family == SPLITWIRE}
    named_kinds = [words for kind, words in KINDS.items() if kind in kinds]
    if len(named_kinds) > 1:
        text += f" Operating points {', '.join(named_kinds[:-1])} and {named_kinds[-1]} are a line each."
    left_out = len(hidden(e, comparison))
    if left_out:
        text += f" A close-up: {left_out} of {len(e.points)} settings lie outside, and are in the next plot."
    return text


def _draw_curve(sheet: Sheet) -> None:
    e, c = sheet.evaluation, sheet.comparison
    axes = sheet.axes()
    out = {id(p) for p in hidden(e, c)}
    seen = [p for p in e.points if id(p) not in out] or list(e.points)
    _whole_lines(sheet, axes)
    for family, points in families(e).items():
        if any(id(p) not in out for p in points):
            _family_curve(sheet, axes, family, points, lambda p: paired(e, p))
    whole, most = e.whole[e.figure].value, floor(e, c)
    top = max([whole, *(min(paired(e, p).high, paired(e, p).value + 0.5 * most) for p in seen)])
    axes.set_ylim(whole - 1.04 * most, top + 0.06 * most)
    axes.set_xlim(0.86 * min(p.bytes for p in seen), 1.16 * max(p.bytes for p in seen))
    figure_axis(axes, e.figure)
    bytes_axis(sheet, axes)
    _name_settings(sheet, axes, [p for p in seen if p.family == SPLITWIRE])
    sheet.legend(axes)


def _draw_all(sheet: Sheet) -> None:
    e = sheet.evaluation
    axes = sheet.axes()
    _whole_lines(sheet, axes)
    for family, points in families(e).items():
        _family_curve(sheet, axes, family, points, lambda p: paired(e, p))
    figure_axis(axes, e.figure)
    bytes_axis(sheet, axes)
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
        if usable and (len(usable) > 1 or family == SPLITWIRE):
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
        log_ticks(axes.yaxis, axes.get_ylim())
    figure_axis(axes, figure)
    bytes_axis(sheet, axes)
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
    """Draw lines, intervals and marks of one family; each mark has a text that the page shows under the pointer.

    Operating points of one kind (n, a, e, r) are a line each: between kinds there is nothing to interpolate.
    """
    for k, of_kind in enumerate(_kinds(points)):
        _line(sheet, axes, family, of_kind, of, label=family if k == 0 else None)


def _kinds(points: Sequence[Point]) -> list[list[Point]]:
    """Points by the kind of their setting: n, a, e, r; q; qp."""
    kinds: dict[str, list[Point]] = {}
    for p in points:
        kinds.setdefault(p.setting.rstrip("0123456789."), []).append(p)
    return list(kinds.values())


def _line(
    sheet: Sheet,
    axes: Axes,
    family: str,
    points: Sequence[Point],
    of: Callable[[Point], Estimate],
    label: str | None,
) -> None:
    e = sheet.evaluation
    colour, marker = family_style(e, family)
    ours, sends = family == SPLITWIRE, points[0].sends
    layer = 5 if ours else 3
    xs = [p.bytes for p in points]
    ys = [of(p) for p in points]
    chosen = {(c.family, c.setting) for c in sheet.comparison.standings} | {(SPLITWIRE, e.default_op)}
    mark: dict[str, Any] = {
        "marker": marker, "color": colour, "markeredgecolor": colour, "markersize": 5.5 if ours else 4,
        "markerfacecolor": PAGE if sends == "image" else colour,
    }  # fmt: skip
    line = "" if len(points) == 1 else "--" if sends == "image" else "-" if label else ":"
    width = 2.2 if ours and label else 1.2
    axes.plot(xs, [y.value for y in ys], line, linewidth=width, label=label, zorder=layer, **mark)
    for p, y in zip(points, ys, strict=True):
        bar: dict[str, Any] = {"alpha": 0.6, "zorder": layer - 1}
        if (p.family, p.setting) not in chosen:
            bar = {"alpha": 0.0, "zorder": 1, "gid": sheet.rest()}
        axes.plot([p.bytes] * 2, [y.low, y.high], color=colour, linewidth=1.8 if ours else 1.2, **bar)
        axes.plot([p.bytes], [y.value], zorder=layer + 0.1, gid=sheet.tip(_tip(e, p)), **mark)


def _tip(e: Evaluation, p: Point) -> str:
    values = ", ".join(f"{title(name)} {figure_words(name, x.value)}" for name, x in p.figures.items())
    return (
        f"{named(p)}: {count(p.bytes)} bytes, {p.bits_per_element:.3f} bits per element, encode "
        f"{milliseconds(p.encode_ms)} ms; {values}; loss {loss_words(e.figure, p.loss.value)} "
        f"({loss_words(e.figure, p.loss.low)} to {loss_words(e.figure, p.loss.high)})"
    )


def _name_settings(sheet: Sheet, axes: Axes, points: Sequence[Point]) -> None:
    """Names of splitwire's settings below their marks, where no name is already; the default first, and bold."""
    e = sheet.evaluation
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width, height = np.array(NAME_SIZE) / sheet.figure.get_size_inches()
    taken: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: (p.setting != e.default_op, p.bytes)):
        default = p.setting == e.default_op
        x = math.log(p.bytes / left) / math.log(right / left)
        y = (paired(e, p).value - low) / (high - low)
        if any(abs(x - across) < width and abs(y - up) < height for across, up in taken):
            continue
        taken.append((x, y))
        axes.annotate(
            p.setting, (p.bytes, paired(e, p).value), xytext=(0, -7), textcoords="offset points", ha="center",
            va="top", color=family_style(e, SPLITWIRE)[0], fontsize=8, fontweight="bold" if default else "normal",
            zorder=6, annotation_clip=True, bbox={"facecolor": PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
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
        for of_kind in _kinds(timed):
            xs, ys = [p.bytes for p in of_kind], [p.encode_ms for p in of_kind]
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
        log_ticks(axes.yaxis, axes.get_ylim())
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(p.bytes for p in drawn), 1.25 * max(p.bytes for p in drawn))
    axes.set_ylabel("encode, ms per image (log)")
    bytes_axis(sheet, axes)
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
    return next((p for p in e.points if p.family == SPLITWIRE and p.setting == e.default_op), None)


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
