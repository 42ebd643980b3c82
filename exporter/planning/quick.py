"""Quick calibration for planning: bits per element at the likely cuts, from one pass of the whole network.

The graph is not split: the tensors become additional outputs (taps).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.errors import ExportError, NonFiniteFeatures
from splitwire.codec.preprocessing import picture
from splitwire.codec.profile import Preprocessing, TensorSpec
from splitwire.codec.shared.pictures import spread
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.calibration.calibrate import padded
from splitwire.exporter.cutting.cuts import Cut
from splitwire.exporter.network.inference import Float32Array, Graph
from splitwire.exporter.network.source import Source

BATCH = 8
TAPPED_BYTES = 256 << 20
"""Largest size of the tapped tensors of one run, and of all samples together."""

JPEG_QUALITY = 90
MAX_CHANNELS = 128
"""Largest number of channels (evenly spread) for the estimate of a rate: the design of tables takes time per channel.
On tensors of 192 and 576 channels of MobileNetV2, the estimate was 1 to 4 % below that on all channels."""

SAMPLE_BYTES = 16 << 20


def shortlist(cuts: Sequence[Cut], seconds: Sequence[float], macs: Sequence[int], limit: int) -> list[int]:
    """Indices of at most `limit` promising cuts, in execution order.

    seconds, macs: front time and multiply–accumulates before each cut. The Pareto front of (time, elements) comes
    first, then the Pareto front of the remaining cuts, and so on: a larger tensor may still need fewer bytes. If a
    front is too long, every k-th cut is taken. Of cuts of equal size with only an activation or a view between them,
    the candidates are those with the most axes, which the coder uses; the last of these is taken, because it is
    sparser. Cuts before the first convolution or matrix product are excluded: they would send the picture itself.
    """
    best: dict[tuple[int, int], int] = {}
    for i, cut in enumerate(cuts):
        if not macs[i]:
            continue
        rival = best.get((macs[i], cut.elements))
        if rival is None or _axes(cut) >= _axes(cuts[rival]):
            best[macs[i], cut.elements] = i
    remaining = sorted(best.values(), key=lambda i: (seconds[i], cuts[i].elements))
    chosen: list[int] = []
    while remaining and len(chosen) < limit:
        front: list[int] = []
        for i in remaining:
            if not front or cuts[i].elements < cuts[front[-1]].elements:
                front.append(i)
        remaining = [i for i in remaining if i not in front]
        chosen += [front[k] for k in spread(len(front), limit - len(chosen))]
    return sorted(chosen)


def _axes(cut: Cut) -> int:
    return sum(map(len, cut.shapes))


def quick_bits(
    source: Source, cuts: Sequence[Cut], inputs: Sequence[Float32Array], levels: Sequence[int], progress: ProgressFn
) -> dict[str, tuple[float, ...] | str]:
    """Tensor name → bits per element for each N in `levels`, or a reason why there are none.

    inputs: (C, H, W) float32 each. The tables are designed on the same images, so the rates are slightly too low;
    tests/exporter/planning/test_plan.py compares them with coded frames.
    """
    shapes = {name: shape for cut in cuts for name, shape in zip(cut.tensors, cut.shapes, strict=True)}
    if not shapes:
        return {}
    taps = _tapped(source, list(shapes))
    planes = {name: TensorSpec(name=name, shape=shape).planes for name, shape in shapes.items()}
    channels = {name: spread(planes[name][0], MAX_CHANNELS) for name in shapes}
    room = min(SAMPLE_BYTES, TAPPED_BYTES // len(shapes))
    statistics = {name: FeatureStatistics(channels=len(channels[name]), sample_bytes=room) for name in shapes}
    wrong: dict[str, str] = {}
    one_image = 4 * sum(math.prod(shape) for shape in shapes.values())
    step = taps.batch or max(1, min(BATCH, TAPPED_BYTES // one_image))
    for start in range(0, len(inputs), step):
        batch = inputs[start : start + step]
        n = len(batch)
        for name, features in zip(taps.outputs, taps.run(padded(taps, batch)), strict=True):
            try:
                x = np.asarray(features[:n], np.float32).reshape(-1, *planes[name])
                statistics[name].add(x[:, channels[name]])
            except NonFiniteFeatures:
                wrong[name] = "its features are NaN or infinite on some image"
        progress("Quick calibration", start + n, len(inputs))
    bits: dict[str, tuple[float, ...] | str] = {}
    for done, name in enumerate(shapes):
        bits[name] = wrong.get(name) or _design(statistics[name], levels)
        progress("Design quantizers", done + 1, len(shapes))
    return bits


def _tapped(source: Source, names: Sequence[str]) -> Graph:
    """The network with the named values as its only outputs."""
    model = source.model.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    outputs = model.graph.outputs
    outputs.clear()
    for name in names:
        outputs.append(values[name])
    return Graph.of(model, what="network with taps")


def _design(statistics: FeatureStatistics, levels: Sequence[int]) -> tuple[float, ...] | str:
    try:
        return tuple(design_operating_point(levels=n, statistics=statistics)[1] for n in levels)
    except (ExportError, ValueError) as e:
        return str(e)


def cut_bits(cut: Cut, bits: Mapping[str, tuple[float, ...] | str]) -> tuple[float, ...] | str | None:
    """Bits of one image's frame at each N, without headers; or the reason why not; or None if not calibrated."""
    per_tensor = [bits.get(name) for name in cut.tensors]
    reason = next((b for b in per_tensor if isinstance(b, str)), None)
    rates = [b for b in per_tensor if isinstance(b, tuple)]
    if reason is not None or len(rates) < len(per_tensor):
        return reason
    sizes = [math.prod(shape) for shape in cut.shapes]
    return tuple(sum(n * r for n, r in zip(sizes, column, strict=True)) for column in zip(*rates, strict=True))


def mean_jpeg_bytes(inputs: Sequence[Float32Array], p: Preprocessing) -> float:
    """Mean size of the network's inputs as JPEG pictures of quality 90 with optimised tables."""
    total = 0
    for x in inputs:
        buffer = io.BytesIO()
        picture(x, p).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        total += buffer.tell()
    return total / len(inputs)
