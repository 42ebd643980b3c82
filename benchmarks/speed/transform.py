"""Coder 5 beside the predictive and the context coder: elements per second (`python -m benchmarks.speed.transform`).

The tensor is MobileNetV2's linear 96×14×14 bottleneck. The other coders code its features with 4 levels. Coder 5 gets
synthetic Laplace coefficients of that tensor, so that the benchmark needs no transform: 18,000 per image, with mean
magnitudes spread evenly over eight octaves, in random order, at steps from fine to coarse. Whole paths on one core,
checks and checksums included; rates count elements of the features. Writes build/bench/transform.json and prints a
table.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.features import CUTS, Floats, Tensor, activations, mobilenet_inputs, tensor
from benchmarks.speed.codec import CALL_REPEATS, OUT, Contender, Splitwire, bind
from benchmarks.speed.measure import medians
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design.transform_tables import design_transform_tables
from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorSpec
from splitwire.codec.shared.files import write_json
from splitwire.codec.transform import step_size
from splitwire.demo import photos
from splitwire.evaluation.measuring.stages import machine
from splitwire.models.catalogue import load

NAME = "linear bottleneck, 96×14×14"
SHAPE = (96, 14, 14)
COEFFICIENTS, OCTAVES = 18_000, 8
STEPS = (68, 72, 76, 80, 84)
"""Step indices; the largest mean magnitude is 8 at the step of index 64."""
LARGEST = 8.0
CALIBRATION = 64
POINT = "n4"


class Row(Struct, frozen=True, kw_only=True):
    """One coder. non_zero: share of the coefficients, None of level indices. bytes: of one image in the batch.

    encode_melem_s, decode_melem_s: millions of feature elements per second. encode_us, decode_us: of a frame of one
    image, µs.
    """

    coder: str
    non_zero: float | None
    bytes: float
    encode_melem_s: float
    decode_melem_s: float
    encode_us: float
    decode_us: float


def coefficients(images: int) -> tuple[FeatureCodec, Floats]:
    """A codec with an operating point for each of STEPS, and (images, 1, N) coefficients."""
    rng = np.random.default_rng(0)
    scale = LARGEST * np.exp2(-np.linspace(0, OCTAVES, COEFFICIENTS))
    rng.shuffle(scale)
    x = (rng.laplace(size=(CALIBRATION + images, 1, COEFFICIENTS)) * scale).astype(np.float32)
    calibration = x[:CALIBRATION]
    transform = design_transform_tables(
        np.abs(calibration).mean(axis=(0, 1)), {j: quantize(calibration, j) for j in STEPS},
        features=NAME, feature_shape=SHAPE,
    )  # fmt: skip
    points = [OperatingPoint(name=f"s{j}", tensors=(), steps=(j,), bits_per_element=0.0) for j in STEPS]
    profile = CodecProfile(
        model="benchmark", cut=NAME, front_sha256="", back_sha256="", default_op=points[0].name,
        tensors=(TensorSpec(name="x", shape=(1, COEFFICIENTS), transform=transform),),
        operating_points=tuple(points),
    )  # fmt: skip
    return FeatureCodec(profile), np.ascontiguousarray(x[CALIBRATION:])


def quantize(x: Floats, step: int) -> np.ndarray:
    """Integers at a step index."""
    return (np.sign(x) * np.floor(np.abs(x) / step_size(step) + np.float32(0.42))).astype(np.int64)


def bottleneck() -> Tensor:
    """The features that the other coders code, with their profiles."""
    loaded = load(photos.MODEL, "DEFAULT")
    inputs = mobilenet_inputs(loaded.preprocessing)
    (calibration,) = activations(loaded.module, inputs[0::2], [CUTS[NAME]])
    (features,) = activations(loaded.module, inputs[1::4], [CUTS[NAME]])
    return tensor(NAME, CUTS[NAME], calibration, features)


def measure() -> list[Row]:
    """All coders in one run."""
    other = bottleneck()
    images, elements = len(other.features), math.prod(SHAPE)
    codec, x = coefficients(images)
    coded: dict[str, tuple[Contender, Floats, float | None]] = {
        "predictive": (Splitwire(FeatureCodec(other.profile), POINT), other.features, None),
        "context": (Splitwire(FeatureCodec(other.context), POINT), other.features, None),
    }
    for j in STEPS:
        share = np.count_nonzero(quantize(x, j)) / (images * COEFFICIENTS)
        coded[f"coefficients, step index {j}"] = (Splitwire(codec, f"s{j}"), x, float(share))
    data = {name: c.encode(values) for name, (c, values, _) in coded.items()}
    single = {name: c.encode(values[:1]) for name, (c, values, _) in coded.items()}
    times = [
        medians({n: bind(c.encode, values) for n, (c, values, _) in coded.items()}),
        medians({n: bind(c.decode, data[n]) for n, (c, *_) in coded.items()}),
        medians({n: bind(c.encode, values[:1]) for n, (c, values, _) in coded.items()}, CALL_REPEATS),
        medians({n: bind(c.decode, single[n]) for n, (c, *_) in coded.items()}, CALL_REPEATS),
    ]
    rates = [{n: images * elements / t / 1e6 for n, t in found.items()} for found in times[:2]]
    return [
        Row(
            coder=n, non_zero=share, bytes=len(data[n]) / images, encode_melem_s=rates[0][n],
            decode_melem_s=rates[1][n], encode_us=1e6 * times[2][n], decode_us=1e6 * times[3][n],
        )
        for n, (_, _, share) in coded.items()
    ]  # fmt: skip


def table(rows: list[Row]) -> Table:
    """One line per row."""
    out = Table(caption=f"{NAME}; whole paths on one core, per element of the features", caption_justify="left")
    out.add_column("coder")
    for name in ("non-zero", "bytes", "encode Mel/s", "decode Mel/s", "encode one µs", "decode one µs"):
        out.add_column(name, justify="right")
    for r in rows:
        share = "" if r.non_zero is None else f"{r.non_zero:.1%}"
        rates = f"{r.encode_melem_s:,.0f}", f"{r.decode_melem_s:,.0f}", f"{r.encode_us:.0f}", f"{r.decode_us:.0f}"
        out.add_row(r.coder, share, f"{r.bytes:,.0f}", *rates)
    return out


def main() -> None:
    """Measure, print, write build/bench/transform.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = measure()
    write_json(OUT / "transform.json", msgspec.to_builtins({"machine": machine(), "rows": rows}))
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
