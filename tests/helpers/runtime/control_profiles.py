"""Small profiles for the tests of what controls and watches a running edge."""

from __future__ import annotations

import numpy as np
from runtime_helpers import flat_tables

from splitwire.codec.design.transform_tables import design_transform_tables
from splitwire.codec.profile import (
    Clipping,
    CodecProfile,
    OperatingPoint,
    Quantizer,
    TensorPoint,
    TensorSpec,
)

TENSOR = TensorPoint(
    quantizer=Quantizer.uniform(0, 1, 4), clipping=Clipping(method="histogram"), tables=flat_tables(4, 2)
)


def profile_of(spec: TensorSpec, points: tuple[OperatingPoint, ...], default: str) -> CodecProfile:
    return CodecProfile(
        model="model", cut="cut", tensors=(spec,), operating_points=points, default_op=default,
        front_sha256="", back_sha256="",
    )  # fmt: skip


def scalar_profile(
    default: str = "r3", shape: tuple[int, int, int] = (2, 250, 200), tensor: TensorPoint = TENSOR
) -> CodecProfile:
    """Six points of 1.25 to 40 kB; the one of 20 kB is worse than that of 10."""
    rates = {"r0": (0.1, 0.8), "r1": (0.2, 0.9), "r2": (0.4, 0.95), "r3": (0.8, 0.98), "bad": (1.6, 0.97)}
    rates["r4"] = (3.2, 1.0)
    points = tuple(
        OperatingPoint(name=name, tensors=(tensor,), bits_per_element=bits, agreement=agreement)
        for name, (bits, agreement) in reversed(rates.items())
    )
    return profile_of(TensorSpec(name="y", shape=shape), points, default)


def transform_profile() -> CodecProfile:
    """Points q1 to q3, three step indices apart, of 32 coefficients with falling magnitudes."""
    coefficients = coefficients_of(np.random.default_rng(0), 64)
    transform = design_transform_tables(
        np.abs(coefficients).mean(axis=(0, 1)),
        {step: np.round(coefficients / 2 ** ((step - 64) / 4)).astype(np.int32) for step in (60, 63, 66)},
        features="y",
        feature_shape=(32,),
    )
    points = tuple(
        OperatingPoint(name=f"q{i + 1}", tensors=(), bits_per_element=bits, steps=(60 + 3 * i,))
        for i, bits in enumerate((64.0, 16.0, 4.0))
    )
    spec = TensorSpec(name="y/coefficients", shape=(1, 32), mean=0.0, transform=transform)
    return profile_of(spec, points, "q2")


def coefficients_of(rng: np.random.Generator, images: int) -> np.ndarray:
    """(images, 1, 32) float32 as of pictures: each has a contrast of its own."""
    contrast = rng.lognormal(0, 0.3, (images, 1, 1))
    return (rng.laplace(size=(images, 1, 32)) * contrast * np.geomspace(8, 0.25, 32)).astype(np.float32)


def maps_of(rng: np.random.Generator, images: int) -> np.ndarray:
    """(images, 4, 8, 8) float32 as behind a ReLU: each image has a contrast of its own."""
    contrast = rng.lognormal(0, 0.3, (images, 1, 1, 1))
    return np.maximum(rng.normal(-0.2, 0.3, (images, 4, 8, 8)) * contrast, 0).astype(np.float32)
