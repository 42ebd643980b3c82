"""Rate of coefficients on held-out images: the ideal length of coder 6 with tables counted on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.design.transform_tables import design_transform_tables, ideal_bits
from splitwire.codec.transform import DEAD_ZONE, Transform, step_reciprocal
from splitwire.exporter.transform.bands.layout import Float64Array

Coefficients = NDArray[np.float32]

OVERHEAD_BITS = 4
"""A payload is whole bytes; large ones have several lanes."""


def quantized(coefficients: Coefficients, step: int) -> NDArray[np.int32]:
    """Integers of coefficients at a step index, as the encoder rounds them."""
    scaled = coefficients * step_reciprocal(step)
    whole = np.floor(np.abs(scaled) + np.float32(DEAD_ZONE)).astype(np.int32)
    out: NDArray[np.int32] = np.where(scaled < 0, -whole, whole)
    return out


def count_tables(
    coefficients: Coefficients,
    steps: Sequence[int],
    *,
    features: str = "",
    feature_shape: tuple[int, ...] = (1,),
    outward: tuple[float, float] = (0.0, 0.0),
) -> Transform:
    """Tables counted on (n, tiles, N) calibration coefficients at some step indices."""
    return design_transform_tables(
        np.abs(coefficients).mean(axis=(0, 1), dtype=np.float64),
        {step: quantized(coefficients, step) for step in steps},
        features=features,
        feature_shape=feature_shape,
        outward=outward,
    )


def image_bits(tables: Transform, coefficients: Coefficients, step: int) -> Float64Array:
    """(n,) bits of each image's (n, tiles, N) coefficients."""
    return ideal_bits(tables, quantized(coefficients, step), step) + OVERHEAD_BITS
