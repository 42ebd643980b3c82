"""The demo's results for people: the table, the plot, the JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.table import Table

from splitwire.demo.fashion import STAGES, Point, Summary

ALLOWED_LOSS = 0.01
"""One point of accuracy, the line drawn in the plot."""


def table(summary: Summary) -> Table:
    """Whole network and every operating point, one row each."""
    count = f"{summary.images:,} images"
    grid = Table(
        title=f"{summary.model}, cut after {summary.cut}: {count} over HTTP on this machine",
        title_justify="left",
        caption=caption(summary),
        caption_justify="left",
    )
    grid.add_column("network")
    for name in ("accuracy", "bits/element", "bytes/image", "packed+zstd", *(f"{s} ms" for s in STAGES)):
        grid.add_column(name, justify="right")
    grid.add_row("whole, one process", f"{summary.whole.accuracy:.1%}", "", "", "", f"{summary.whole.ms:.2f}")
    grid.add_row(
        "split, codec off", agreement(summary), "32", f"{summary.baselines.float32_bytes:,.0f}", "", end_section=True
    )
    for p in summary.points:
        grid.add_row(*row(p), style="bold" if p.op == summary.default_op else None)
    return grid


def row(p: Point) -> list[str]:
    """Cells of one operating point."""
    cells = [f"split, {p.op} ({p.levels} levels)", f"{p.accuracy:.1%}", f"{p.bits_per_element:.3f}"]
    cells += [f"{p.bytes_per_image:,.0f}", f"{p.packed_zstd_bytes_per_image:,.0f}"]
    return cells + [f"{p.ms[stage]:.2f}" for stage in STAGES]


def agreement(summary: Summary) -> str:
    """How often back(front(x)) without the codec gives the whole network's class."""
    return f"{summary.float_agreement}/{summary.images} alike"


def caption(summary: Summary) -> str:
    """What the columns mean, and the other alternatives."""
    b = summary.baselines
    shape = "×".join(map(str, summary.feature_shape))
    return (
        f"Features {shape}. Bytes are those that crossed the socket, HTTP and frame headers included; packed+zstd is "
        " the same symbols bit-packed, then zstd 3, with no header at all.\n"
        f"Sending the picture instead: JPEG quality 90, {b.jpeg_bytes:,.0f} bytes, accuracy {b.jpeg_accuracy:.1%}, and "
        f"the whole network in the cloud. Bold: the default operating point. Times are medians per image."
    )


def write_json(value: object, path: Path) -> None:
    """Write `value` as JSON, whole or not at all."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    scratch.replace(path)


def write_plot(summary: Summary, path: Path) -> None:
    """Accuracy against rate, with the same symbols as packed + zstd beside ours."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    elements = summary.baselines.float32_bytes / 4
    accuracy = [100 * p.accuracy for p in summary.points]
    ours = [p.bits_per_element for p in summary.points]
    zstd = [8 * p.packed_zstd_bytes_per_image / elements for p in summary.points]
    whole = 100 * summary.whole.accuracy
    axes.axhline(whole, color="0.2", linewidth=1.2, label=f"whole network, {whole:.1f} %")
    axes.axhline(
        whole - 100 * ALLOWED_LOSS, color="0.5", linewidth=1, linestyle="--", label="one point of accuracy less"
    )
    axes.plot(zstd, accuracy, "s-", color="tab:orange", label="same symbols, bit-packed + zstd 3 (no headers)")
    axes.plot(ours, accuracy, "o-", color="tab:blue", label="splitwire (all headers, HTTP included)")
    for p, x, y in zip(summary.points, ours, accuracy, strict=True):
        default = p.op == summary.default_op
        axes.annotate(
            f"N = {p.levels}" + (" (default)" if default else ""),
            (x, y), xytext=(0, -15), textcoords="offset points", ha="center", color="tab:blue",
            fontweight="bold" if default else "normal",
        )  # fmt: skip
    low = min(*accuracy, whole - 100 * ALLOWED_LOSS)
    margin = 0.15 * max(whole - low, 1.0)
    axes.set_ylim(low - 2 * margin, max(*accuracy, whole) + margin)
    axes.set_xlim(0, 1.08 * max(zstd + ours))
    axes.set_xlabel("bits per element of the feature tensor")
    axes.set_ylabel(f"accuracy on {summary.images:,} test images, %")
    axes.set_title(f"{summary.model} cut after {summary.cut}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    scratch = path.with_name(path.name + ".part")
    figure.savefig(scratch, format="png")
    scratch.replace(path)
