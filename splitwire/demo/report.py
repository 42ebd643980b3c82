"""The demo's results for people: the table, the plot, the JSON."""

from __future__ import annotations

import io
from pathlib import Path

from rich import box
from rich.table import Table

from splitwire.codec.shared.files import write_atomically
from splitwire.demo.fashion import STAGES, Summary

ALLOWED_LOSS = 0.01
"""One point of accuracy, the line drawn in the plot."""

MEANINGS = {"q": "transform", "n": "the paper's ranges", "r": "ranges by the answers"}
"""First letter of a point's name → what its kind is."""


def table(summary: Summary) -> Table:
    """Whole network and every operating point, one row each; fits 80 columns."""
    grid = Table(
        title=f"{summary.model} cut after {summary.cut}, {summary.images:,} images over HTTP",
        title_justify="left",
        caption=caption(summary),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    grid.add_column("network")
    for name in ("Top-1", "bits/el", "bytes", "sent", *("link" if s == "network" else s for s in STAGES)):
        grid.add_column(name, justify="right")
    b = summary.baselines
    grid.add_row("whole", f"{summary.whole.accuracy:.1%}")
    grid.add_row("JPEG", f"{b.jpeg_accuracy:.1%}", "", f"{b.jpeg_bytes:,.0f}")
    grid.add_row("float32", f"{b.float32_accuracy:.1%}", "32", f"{b.float32_bytes:,.0f}", end_section=True)
    for p in summary.points:
        default = p.op == summary.default_op
        cells = [p.op + (" *" if default else ""), f"{p.accuracy:.1%}", f"{p.bits_per_element:.3f}"]
        cells += [f"{p.bytes_per_image:,.0f}", f"{p.sent_bytes_per_image:,.0f}"]
        cells += [f"{p.ms[stage]:.2f}" for stage in STAGES]
        grid.add_row(*cells, style="bold" if default else None)
    return grid


def caption(summary: Summary) -> str:
    """What the rows and columns mean."""
    shape = "×".join(map(str, summary.feature_shape))
    return (
        f"* the default operating point. Features {shape}; bytes: the frame of one image, header included, and the same"
        " in bits per element. sent: what crossed the socket, with the HTTP head (a lean one: no User-Agent, no "
        "Content-Type). JPEG: the picture itself at quality 90, the whole network in the cloud. float32: the features"
        " themselves, not coded; "
        f"{summary.float_agreement:,} of {summary.images:,} answers are those of the whole network. The last five "
        "columns are milliseconds per stage, medians."
    )


def write_plot(summary: Summary, path: Path) -> None:
    """Accuracy against the bytes of a frame, a curve for each kind of operating points."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    accuracy = [100 * p.accuracy for p in summary.points]
    sizes = [p.bytes_per_image for p in summary.points]
    whole = 100 * summary.whole.accuracy
    axes.axhline(whole, color="0.2", linewidth=1.2, label=f"whole network, {whole:.1f} %")
    axes.axhline(
        whole - 100 * ALLOWED_LOSS, color="0.5", linewidth=1, linestyle="--", label="one point of accuracy less"
    )
    for kind, line in zip(dict.fromkeys(p.op[0] for p in summary.points), ("-", ":", "--", "-."), strict=False):
        ours = [i for i, p in enumerate(summary.points) if p.op.startswith(kind)]
        xs, ys = [sizes[i] for i in ours], [accuracy[i] for i in ours]
        axes.plot(xs, ys, "o" + line, color="tab:blue", label=f"splitwire {kind}: {MEANINGS[kind]} (whole frames)")
    for i, (p, x, y) in enumerate(zip(summary.points, sizes, accuracy, strict=True)):
        default = p.op == summary.default_op
        axes.annotate(
            p.op + (" (default)" if default else ""),
            (x, y), xytext=(0, -15 if i % 2 else 8), textcoords="offset points", ha="center",
            color="tab:blue", fontsize=8, fontweight="bold" if default else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    low = min(*accuracy, whole - 100 * ALLOWED_LOSS)
    margin = 0.15 * max(whole - low, 1.0)
    axes.set_ylim(low - 2 * margin, max(*accuracy, whole) + margin)
    axes.set_xlim(0, 1.08 * max(sizes))
    axes.set_xlabel("bytes per image")
    axes.set_ylabel(f"accuracy on {summary.images:,} test images, %")
    axes.set_title(f"{summary.model} cut after {summary.cut}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_atomically(path, drawn.getvalue())
