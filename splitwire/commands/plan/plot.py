"""The plot of `splitwire plan`: the bytes that each cut sends, and the time of each alternative."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure  # no pyplot: nothing global, no display

from splitwire.codec.shared.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from splitwire.planning import PlanResult

STAGES = {
    "front": ("front, on the device", "tab:blue"),
    "encode": ("encode", "tab:cyan"),
    "link": ("link, there and back", "tab:orange"),
    "decode": ("decode", "tab:olive"),
    "back": ("back, in the cloud", "tab:green"),
}
"""Stage of a Latency → (legend, colour)."""

LONGEST_LABEL = 34


def write_plot(result: PlanResult, path: Path) -> None:
    """Write the plot as PNG or SVG, by the suffix. The file appears whole or not at all. Raises OSError."""
    p = result.plan
    bars = _bars(result)
    figure = Figure(figsize=(10, 4.6 + 0.3 * len(bars)), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3.6, 0.6 + 0.3 * len(bars)])
    _draw_sizes(upper, result)
    _draw_times(lower, bars, cuts=sum(c.option is not None for c in p.cuts))
    lower.set_xlabel(f"estimated time of one image, end to end, ms; cuts at N = {p.ranked_by}")
    link = f", {p.link}" if p.link else ", no link"
    title = f"{result.model}: {p.device.name} ({p.device.source}) and {p.cloud.name} ({p.cloud.source}){link}"
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(f"bytes measured on {result.pictures}; weights: {result.weights}", fontsize=8, color="0.3")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower()[1:])
    write_atomically(path, drawn.getvalue())


def _bars(result: PlanResult) -> list[tuple[str, dict[str, float], bool]]:
    """(label, ms per stage, recommended) of every alternative with a total; cuts come first, in execution order."""
    p = result.plan
    options = [c.option for c in p.cuts if c.option is not None]
    options += [o for o in (p.on_device, p.jpeg) if o is not None]
    names = {"device": "whole network on the device", "jpeg": "JPEG to the cloud"}
    bars = []
    for o in options:
        label = names.get(o.kind, o.label)
        label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        bars.append((label, {stage: getattr(o.latency, stage) for stage in STAGES}, o == p.recommended))
    return bars


def _draw_sizes(axes: Axes, result: PlanResult) -> None:
    """Plot bytes against the share of the work on the device: all cuts as float32, the calibrated ones as coded."""
    p = result.plan
    axes.plot(
        [100 * c.macs_share for c in p.cuts], [4e-3 * c.cut.elements for c in p.cuts],
        ".", color="0.6", label="every cut, as float32",
    )  # fmt: skip
    calibrated = [c for c in p.cuts if c.rates]
    levels = [r.levels for r in calibrated[0].rates] if calibrated else []
    for k, (n, colour) in enumerate(zip(levels, ("tab:purple", "tab:red", "tab:pink", "tab:brown"), strict=False)):
        axes.plot(
            [100 * c.macs_share for c in calibrated], [c.rates[k].bytes / 1e3 for c in calibrated],
            "o", color=colour, markersize=4, label=f"coded, N = {n}",
        )  # fmt: skip
    if p.jpeg_bytes is not None:
        axes.axhline(p.jpeg_bytes / 1e3, color="0.2", linestyle="--", linewidth=1, label="JPEG of the picture")
    axes.set_yscale("log")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("multiply–accumulates on the device, % of the network's")
    axes.set_ylabel("sent per image, KB")
    axes.grid(alpha=0.3)
    _legend(axes)


def _draw_times(axes: Axes, bars: list[tuple[str, dict[str, float], bool]], cuts: int) -> None:
    """Draw a stacked bar for each of the `cuts`, then for the alternatives; the recommended bar has a frame."""
    rows = range(len(bars))
    start = [0.0] * len(bars)
    for stage, (legend, colour) in STAGES.items():
        widths = [ms[stage] for _, ms, _ in bars]
        axes.barh(rows, widths, left=start, height=0.7, color=colour, label=legend)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    longest = max(start)
    for row, (total, (_, _, best)) in enumerate(zip(start, bars, strict=True)):
        axes.annotate(
            f"{total:,.0f} ms" + (" recommended" if best else ""), (total, row), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8, fontweight="bold" if best else "normal",
        )  # fmt: skip
        if best:
            axes.barh(row, total, height=0.7, fill=False, edgecolor="black", linewidth=1.5)
    axes.set_yticks(rows, [label for label, _, _ in bars], fontsize=8)
    for tick, (_, _, best) in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_fontweight("bold" if best else "normal")
    axes.axhline(cuts - 0.5, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * longest)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Place the legend above the axes, where nothing is drawn."""
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)
