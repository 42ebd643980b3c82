"""Limits beyond which live frames have drifted from the calibration, from a bootstrap by frame.

Elements of one image depend on each other, so images are drawn, not elements. For each number of images the calibration
is divided at random: means of one half, drawn again with replacement, are compared with means of the other half. So the
limits hold with the error of the calibration itself, and for images that it does not contain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.drift import DriftReference, Float32Array, Float64Array, FrameLength, Limits, Meter
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.pictures import spread
from splitwire.exporter.calibration.calibrate import BATCH, padded
from splitwire.exporter.network.inference import Graph

FEWEST = 32
"""Images. With fewer, no limits can be given."""
MOST = 256
FIXED_BATCHES = 64
WINDOW = 64
RATE = 1e-5
"""Largest chance of a false alarm per frame, of all signals together."""
NORMAL_QUANTILE = 4.56
"""Of the normal distribution at a chance of RATE/4: there are four limits."""
REPLICATES = 1000
MARGIN = 1.1
"""A limit is at least this multiple of the largest value of all replicates."""
UNSEEN = 3.0
"""Events that may be behind none that were seen in the whole calibration (the rule of three)."""
UNSEEN_SHARE = 0.01
"""Share of an image's elements that such an event may put outside."""
ENCODED_ELEMENTS = 1 << 26
"""Elements that are encoded to find the lengths of frames, at least FEWEST images at each operating point."""


def measure_reference(profile: CodecProfile, front: Graph, inputs: Sequence[Float32Array]) -> DriftReference | None:
    """As `make_reference`, from inputs of the front. If its batch is fixed, at most FIXED_BATCHES batches run: such
    networks are mostly detectors, which are slow."""
    most = MOST if front.batch is None else min(MOST, FIXED_BATCHES * front.batch)
    return make_reference(profile, _outputs(profile, front, [inputs[i] for i in spread(len(inputs), most)]))


def _outputs(profile: CodecProfile, front: Graph, inputs: Sequence[Float32Array]) -> Iterator[list[Float32Array]]:
    size = front.batch or BATCH
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        outputs = front.run(padded(front, batch))[: len(profile.tensors)]
        yield [np.asarray(y[: len(batch)], np.float32) for y in outputs]


def make_reference(profile: CodecProfile, batches: Iterable[Sequence[Float32Array]]) -> DriftReference | None:
    """The reference of a pair from the outputs of its front for calibration images; None if there are fewer than
    FEWEST.

    batches: (B, *shape) float32 of each tensor, in the profile's order. At most MOST images are used.
    """
    meter = Meter(profile, profile.default_op)
    histograms, outside = [np.zeros((0, meter.cells))], [np.zeros(0)]
    images: list[list[Float32Array]] = []
    encoded = max(FEWEST, min(MOST, ENCODED_ELEMENTS // sum(t.elements for t in profile.tensors)))
    for batch in batches:
        h, o = meter.measure(batch)
        histograms.append(h)
        outside.append(o)
        images += [[y[i : i + 1].copy() for y in batch] for i in range(min(len(batch[0]), encoded - len(images)))]
        if sum(map(len, outside)) >= MOST:
            break
    shares, beyond = np.concatenate(histograms)[:MOST], np.concatenate(outside)[:MOST]
    if len(beyond) < FEWEST or not shares.var(axis=0).sum() > 0:
        return None
    lengths, deviations = _lengths(profile, images)
    return DriftReference(
        op=profile.default_op,
        images=len(beyond),
        rate=RATE,
        histogram=tuple(shares.mean(axis=0).tolist()),
        variance=float(shares.var(axis=0, ddof=1).sum()),
        outside=float(beyond.mean()),
        limits=_limits(meter, shares, beyond, deviations),
        lengths=tuple(lengths),
    )


def _lengths(profile: CodecProfile, images: Sequence[Sequence[Float32Array]]) -> tuple[list[FrameLength], Float64Array]:
    """The lengths of frames at each operating point, and (images,) of the default one in standard deviations."""
    codec = FeatureCodec(profile)
    sizes = [np.zeros(spec.length, np.int64) for spec in profile.size_specs]
    lengths, default = [], np.zeros(0)
    for point in profile.operating_points:
        logs = np.log([len(codec.encode(image, op=point.name, sizes=sizes)) for image in images])
        deviation = max(float(logs.std(ddof=1)), 1 / 256)
        lengths.append(FrameLength(op=point.name, log_mean=float(logs.mean()), log_deviation=deviation))
        if point.name == profile.default_op:
            default = (logs - logs.mean()) / deviation
    return lengths, default


def _limits(meter: Meter, shares: Float64Array, outside: Float64Array, deviations: Float64Array) -> Limits:
    rng = np.random.default_rng(0)
    columns: dict[str, list[float]] = {"outside": [], "divergence": [], "shorter": [], "longer": []}
    count = 1
    while count <= WINDOW:
        live, reference = _drawn(rng, len(shares), count)
        divergence = meter.divergence(live @ shares, reference @ shares)
        columns["divergence"].append(float(np.exp(_quantile(np.log(np.maximum(divergence, 1e-12))))))
        limit = float(outside.mean()) + _quantile((live - reference) @ outside)
        columns["outside"].append(max(limit, UNSEEN_SHARE * _most(count * UNSEEN / len(outside)) / count))
        live, reference = _drawn(rng, len(deviations), count)
        difference = (live - reference) @ deviations
        columns["longer"].append(max(0.0, _quantile(difference)))
        columns["shorter"].append(max(0.0, _quantile(-difference)))
        count *= 2
    return Limits(**{name: tuple(column) for name, column in columns.items()})


def _drawn(rng: np.random.Generator, images: int, count: int) -> tuple[Float64Array, Float64Array]:
    """Two times (REPLICATES, images) weights: of `count` images of one half, and of as many as there are of the other
    half."""
    order = np.argsort(rng.random((REPLICATES, images)), axis=1)
    half = images // 2
    live = _weights(rng, order[:, :half], count, images)
    return live, _weights(rng, order[:, half:], images, images)


def _weights(rng: np.random.Generator, of: NDArray[np.intp], count: int, images: int) -> Float64Array:
    chosen = np.take_along_axis(of, rng.integers(of.shape[1], size=(len(of), count)), axis=1)
    flat = chosen + images * np.arange(len(of))[:, None]
    counts = np.bincount(flat.reshape(-1), minlength=images * len(of)).reshape(len(of), images)
    weights: Float64Array = counts / count
    return weights


def _most(expected: float) -> int:
    """The number of rare events that is exceeded with a chance of RATE/4 at most: of a Poisson distribution."""
    probability = math.exp(-expected)
    tail, number = 1 - probability, 0
    while tail > RATE / 4:
        number += 1
        probability *= expected / number
        tail -= probability
    return number


def _quantile(values: Float64Array) -> float:
    """The value that is exceeded with a chance of RATE/4, by mean, deviation and skewness of the replicates.

    Source: E. A. Cornish and R. A. Fisher, "Moments and Cumulants in the Specification of Distributions" (1937).
    """
    mean, deviation = float(values.mean()), float(values.std())
    if deviation == 0:
        return mean
    skewness = float((((values - mean) / deviation) ** 3).mean())
    z = NORMAL_QUANTILE + (NORMAL_QUANTILE**2 - 1) * max(skewness, 0.0) / 6
    highest = float(values.max())
    return max(mean + z * deviation, highest + (MARGIN - 1) * abs(highest))
