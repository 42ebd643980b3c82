"""Design of one operating point of one tensor: quantizer and tables, from the feature statistics."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitwire.codec.entropy.cabac import AdaptiveBinary
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import Clipping, Quantizer, TensorPoint
from splitwire.codec.quantizer import quantize
from splitwire.codec.tables import Taps

from .clipping import choose_range, float32_quantizer, known_slope
from .ecsq import design_ecsq
from .prediction import estimate_prediction
from .statistics import FeatureStatistics, Histogram
from .tables import estimate_tables
from .taps import choose_taps

PILOT_LEVELS = (8, 4)
"""Number of levels at which the taps are chosen, and at which the coders are compared."""
WORTHWHILE = 0.03
"""The least share of the bits that the predictive coder must save; it is slower than the context coder."""

Coder = Literal["rans", "cabac"]


def design_operating_point(
    *,
    levels: int,
    statistics: FeatureStatistics,
    slope: float | None = None,
    rate_weight: float | None = None,
    coder: Coder = "rans",
    taps: Taps | None = None,
) -> tuple[TensorPoint, float]:
    """Design the quantizer and the tables for N = `levels`.

    slope: of the (leaky) ReLU whose output the tensor is. None derives it from the features: 0 if there are exact zeros
    and no negative value; otherwise it is unknown and the histogram decides.
    rate_weight: λ_R of the entropy-constrained quantizer (ecsq.py), squared feature units per bit; levels may be
        removed. None leaves the quantizer uniform.
    coder: rANS with tables made here; or the paper's adaptive binary coder, which needs no tables.
    taps: of the predictive coder, from `worthwhile_taps`; None selects the context coder.
    Returns the point and its rate on the sample, bits per element.
    Raises ExportError if the features are constant.
    """
    histogram = varying(statistics)
    (c_min, c_max), clipping = choose_range(levels, statistics, known_slope(histogram, slope))
    quantizer = float32_quantizer(c_min, c_max, levels)
    if rate_weight is not None:
        quantizer = design_ecsq(histogram, quantizer, rate_weight=rate_weight).quantizer
    return make_point(quantizer, clipping, statistics, coder, taps)


def varying(statistics: FeatureStatistics) -> Histogram:
    """The histogram of features that vary. Raises ExportError if all features have the same value."""
    histogram = statistics.histogram
    if histogram.minimum == histogram.maximum:
        raise ExportError(
            f"every feature at this cut is {histogram.minimum}: there is nothing to send; "
            "cut elsewhere or check the data"
        )
    return histogram


def make_point(
    quantizer: Quantizer,
    clipping: Clipping,
    statistics: FeatureStatistics,
    coder: Coder = "rans",
    taps: Taps | None = None,
) -> tuple[TensorPoint, float]:
    """The point of this quantizer with the tables of its coder, and its rate on the sample, bits per element."""
    plain = TensorPoint(quantizer=quantizer, clipping=clipping, tables=None)
    sample = statistics.sample
    if coder == "cabac":
        return plain, adaptive_rate(sample, quantizer)
    predicted = None if taps is None else estimate_prediction(sample, quantizer, taps)
    if predicted is not None:
        prediction, bits = predicted
        return msgspec.structs.replace(plain, prediction=prediction), bits
    tables, bits = estimate_tables(sample, quantizer)
    return msgspec.structs.replace(plain, tables=tables), bits


def worthwhile_taps(statistics: FeatureStatistics, slope: float | None = None) -> Taps | None:
    """The taps for the predictive coder, if it needs clearly fewer bits than the context coder; else None.

    The context coder's bits are counted on the sample that its tables were made from. The predictive coder's bits are
    counted on images that were not used for fitting (prediction.py). With few images this favours the context coder.
    slope: as `design_operating_point` takes it. Raises ExportError if the features are constant.
    """
    histogram = varying(statistics)
    slope = known_slope(histogram, slope)
    sample = statistics.sample
    fine, coarse = (float32_quantizer(*choose_range(n, statistics, slope)[0], n) for n in PILOT_LEVELS)
    taps = choose_taps(sample, fine)
    predicted = None if taps is None else estimate_prediction(sample, coarse, taps)
    if predicted is None or predicted[1] > (1 - WORTHWHILE) * estimate_tables(sample, coarse)[1]:
        return None
    return taps


def adaptive_rate(sample: NDArray[np.float32], quantizer: Quantizer) -> float:
    """Bits per element of the adaptive binary coder on (n, C, H, W) features, each image coded on its own."""
    q = quantize(sample, quantizer)
    entropy = AdaptiveBinary(len(quantizer.levels))
    return sum(8 * len(entropy.encode(image.reshape(-1), *image.shape[1:])[0]) for image in q) / q.size
