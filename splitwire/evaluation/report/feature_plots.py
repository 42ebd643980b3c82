"""The plots of the features at the cut: their histogram with the quantizer drawn in, and their channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from splitwire.evaluation.answer.results import Design, Evaluation, Tensor

from .drawing import FAMILY_COLOURS, INK, MUTED, Sheet

if TYPE_CHECKING:
    from splitwire.codec.design.density import FeatureDensity
    from splitwire.codec.profile import Clipping

CANDIDATE_SLOPES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Of leaky ReLUs as people write them."""


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
    """(B,) probability of each bin [low, high); the outer ones take what is beyond, as the measured ones do."""
    inner = np.nextafter(np.array(edges[1:-1]), -np.inf)  # a point mass at an edge belongs to the bin on its right
    return np.diff(np.concatenate([[0.0], density.cdf(inner), [1.0]]))


def design_of(e: Evaluation, tensor: Tensor) -> Design | None:
    """The quantizer of a tensor at the default operating point; None if that quantizes coefficients."""
    return next((d for d in e.designs if d.op == e.default_op and d.tensor == tensor.name), None)


def histogram_caption(e: Evaluation, tensor: Tensor) -> str:
    """The tensor in figures, its clipping range, and how that was design."""
    shape = "×".join(map(str, tensor.shape))
    text = (
        f"Tensor {tensor.name}, {shape}: mean {tensor.mean:.4g}, standard deviation {tensor.deviation:.4g}, range "
        f"{tensor.minimum:.4g} to {tensor.maximum:.4g}, {100 * tensor.zeros:.1f} % exact zeros."
        " The outermost bins hold everything beyond."
    )
    design = design_of(e, tensor)
    if design is None:
        return text
    low, high = design.quantizer.clipping_range
    text += f" At {design.op} it is clipped to [{low:.4g}, {high:.4g}]."
    clipping = design.clipping
    if clipping.widening != 1:
        times = f"{clipping.widening:.2f} times as wide as the one with the least squared error"
        levels = f"{len(design.quantizer.levels)} levels over it"
        means = ", the mean of each plane preserved," if design.quantizer.preserves_mean else ""
        return text + f" The range is {times}: with {levels}{means} the answers stay best."
    if clipping.method == "histogram":
        return text + f" The range was chosen on the histogram: {clipping.reason or 'no density was fitted'}."
    kind = "ReLU" if clipping.method == "relu_model" else "leaky-ReLU"
    if clipping.ks_distance is not None:
        kind += f" density, Kolmogorov–Smirnov distance {clipping.ks_distance:.3f} when calibrated"
    return text + f" The range was chosen by the fitted {kind}."


def draw_histogram(sheet: Sheet, tensor: Tensor) -> None:
    """Measured shares, the fitted density's, and the quantizer of the default operating point."""
    e = sheet.evaluation
    axes = sheet.axes()
    edges, shares = np.array(tensor.edges), np.array(tensor.densities)
    blue, orange, green = FAMILY_COLOURS[0][0], FAMILY_COLOURS[1][0], FAMILY_COLOURS[2][0]
    positive = shares[shares > 0]
    least = float(positive.min(initial=1.0)) / 2
    axes.stairs(np.maximum(shares, least / 10), edges, baseline=least / 10, fill=True, color=blue, alpha=0.35)
    axes.stairs(np.maximum(shares, least / 10), edges, baseline=least / 10, color=blue, linewidth=0.9,
                label="measured")  # fmt: skip
    design = design_of(e, tensor)
    if design is not None:
        density = fitted(tensor, design.clipping)
        if density is not None:
            expected = expected_shares(density, tensor.edges)
            slope = f", slope {density.slope:g}" if density.slope else ""
            label = f"fitted density (λ {density.rate:.3g}, μ {density.location:.3g}{slope})"
            centres = (edges[1:] + edges[:-1]) / 2
            axes.plot(centres, np.where(expected > 0, expected, np.nan), color=orange, linewidth=1.6, label=label)
        low, high = design.quantizer.clipping_range
        for k, (a, b) in enumerate(((min(edges[0], low) - 1e9, low), (high, max(edges[-1], high) + 1e9))):
            axes.axvspan(a, b, color=MUTED, alpha=0.13, linewidth=0, label="clipped" if k == 0 else None)
        for k, level in enumerate(design.quantizer.levels):
            axes.axvline(level, color=green, linewidth=1.3, label=f"levels of {design.op}" if k == 0 else None)
        # A mean-preserving quantizer has no thresholds: the level of an element depends on its plane.
        for k, threshold in enumerate(() if design.quantizer.preserves_mean else design.quantizer.thresholds):
            dotted = (0, (1, 2))
            axes.axvline(
                threshold, color=green, linewidth=0.9, linestyle=dotted, label="thresholds" if k == 0 else None
            )
        taken = np.flatnonzero(shares)
        first, last = min(edges[taken[0]], low), max(edges[taken[-1] + 1], high)
        axes.set_xlim(first - 0.02 * (last - first), last + 0.02 * (last - first))
    axes.set_yscale("log")
    axes.set_ylim(least, 2 * float(shares.max(initial=least)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("value of a feature")
    axes.set_ylabel("share of the elements per bin, % (log)")
    sheet.legend(axes)


def draw_channels(sheet: Sheet, tensor: Tensor) -> None:
    """Mean ± standard deviation of each channel."""
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
