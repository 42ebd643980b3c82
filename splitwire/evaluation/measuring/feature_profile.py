"""The profile of the features of a transform pair, for the contenders that code the features themselves.

Such a pair's own profile has steps for coefficients and no quantizers. Those of the paper are designed here: uniform
with pinned ends, over the range with the least squared error on a sample of the images, and with as many levels in
every tensor. The exporter does the same on the calibration images for a pair without a transform.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorPoint, TensorSpec
from splitwire.codec.transform import Transform
from splitwire.evaluation.contenders.protocol import Features, Float32Array

LEVELS = (2, 3, 4, 6, 8)
"""Numbers of levels in the tables of Cohen et al. 2021."""
FINE = (16, 32, 64, 128)
"""Further ones where the outputs are neither classes nor detections, as the exporter adds them."""


def feature_profile(profile: CodecProfile, sample: Sequence[Features], *, fine: bool) -> CodecProfile:
    """A profile whose tensors are the features, with the points n2, n3, n4, n6 and n8, and no tables.

    profile: of a transform pair. sample: the features of some images. fine: whether FINE are added.
    Raises NonFiniteFeatures.
    """
    specs = [
        TensorSpec(name=spec.transform.features, shape=spec.feature_shape)
        for spec in profile.tensors
        if isinstance(spec.transform, Transform)
    ]
    levels = (*LEVELS, *FINE) if fine else LEVELS
    rows = [_points(tensors, levels) for tensors in zip(*sample, strict=True)]
    elements = sum(spec.elements for spec in specs)
    points = [
        OperatingPoint(
            name=f"n{n}",
            tensors=tuple(point for point, _ in row),
            bits_per_element=sum(s.elements * bits for s, (_, bits) in zip(specs, row, strict=True)) / elements,
        )
        for n, row in zip(levels, zip(*rows, strict=True), strict=True)
    ]
    return msgspec.structs.replace(
        profile, tensors=tuple(specs), operating_points=tuple(points), default_op=points[0].name
    )


def _points(tensors: Sequence[Float32Array], levels: Sequence[int]) -> list[tuple[TensorPoint, float]]:
    """One tensor's quantizer for each number of levels, and the entropy of its symbols in bits per element."""
    from splitwire.codec.design.clipping import choose_range, float32_quantizer, known_slope
    from splitwire.codec.design.statistics import Distribution

    measured = Distribution()
    for x in tensors:
        measured.add(x)
    histogram = measured.histogram
    points = []
    for n in levels:
        (low, high), clipping = choose_range(n, measured, known_slope(histogram, None))
        quantizer = float32_quantizer(low, high, n)
        point = TensorPoint(quantizer=quantizer, clipping=clipping, tables=None)
        points.append((point, histogram.entropy(quantizer.thresholds)))
    return points
