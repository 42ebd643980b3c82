"""The modified entropy-constrained quantizer: J, its optimality conditions, and what it gains at equal rate."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from codec_helpers import Float32Array, expected, relu_features
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, Histogram, design_entropy_constrained, design_operating_point
from splitwire.codec.design.ecsq import Cost, Ecsq, design_ecsq, ecsq_at_rate, error_at_rate
from splitwire.codec.design.point import Coder
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import CodecProfile, OperatingPoint, Quantizer, TensorSpec


def measured(x: Float32Array) -> Histogram:
    statistics = FeatureStatistics(channels=1)
    statistics.add(x.reshape(1, 1, 1, -1))
    return statistics.histogram


def entropy(histogram: Histogram, quantizer: Quantizer) -> float:
    cell = np.searchsorted(quantizer.thresholds, histogram.centres, side="right")
    p = np.bincount(cell, histogram.weights)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    """Many shapes: with and without a mass at zero, one-sided, multimodal, and a handful of points."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([2, 3, 10, 300, 4000]))
    kind = draw(st.sampled_from(["laplace", "normal", "uniform", "lognormal", "bimodal"]))
    x = {
        "laplace": lambda: rng.laplace(size=n),
        "normal": lambda: rng.normal(size=n),
        "uniform": lambda: rng.uniform(-1, 1, n),
        "lognormal": lambda: rng.lognormal(sigma=1.5, size=n),
        "bimodal": lambda: rng.choice([-3.0, 3.0], n) + rng.normal(size=n) / 4,
    }[kind]()
    if draw(st.booleans()):
        x = np.maximum(x, 0)
    return measured((x * 10 ** draw(st.floats(-3, 3))).astype(np.float32))


@pytest.mark.slow
@settings(max_examples=400)
@given(
    histogram=histograms(),
    levels=st.integers(2, 40),
    weight=st.just(0.0) | st.floats(-6, 3).map(lambda e: 10**e),
    shift=st.floats(-0.5, 0.5),
    reach=st.floats(0.05, 1.5),
    cost=st.sampled_from(["ideal", "unary"]),
)
def test_j_never_rises_and_the_ends_stay(
    histogram: Histogram, levels: int, weight: float, shift: float, reach: float, cost: Cost
) -> None:
    scale = max(abs(histogram.minimum), abs(histogram.maximum)) or 1.0
    start = Quantizer.uniform(shift * scale, (shift + reach) * scale, levels)
    found = design_ecsq(histogram, start, rate_weight=weight * scale**2, cost=cost)
    assert found.converged
    falls = -np.diff(found.objective)
    assert (falls >= -1e-12 * found.objective[0]).all()
    assert found.quantizer.clipping_range == start.clipping_range
    assert len(found.quantizer.levels) == levels - found.removed
    # what is reported is what the float32 quantizer does
    check_report(histogram, found, weight * scale**2, cost, tolerance=1e-5 * scale)


def check_report(histogram: Histogram, found: Ecsq, weight: float, cost: Cost, tolerance: float) -> None:
    q = found.quantizer
    assert math.sqrt(found.distortion) == pytest.approx(
        math.sqrt(histogram.quantization_error(q.levels, q.thresholds)), rel=1e-4, abs=tolerance
    )
    assert found.objective[-1] == pytest.approx(found.distortion + weight * found.rate, rel=1e-12)
    if cost == "ideal":
        assert found.rate == pytest.approx(entropy(histogram, q), rel=1e-3, abs=1e-4)


def test_no_bin_changes_sides_as_thresholds_are_rounded() -> None:
    """A threshold just above the centre of a bin, nearer to it than float32 tells: the bin is of the lower level."""
    histogram = Histogram(
        centres=np.array([0.25, 16.25, 119.75]), weights=np.array([0.5, 0.25, 0.25]), width=0.5, zero_mass=0.0,
        minimum=0.0, maximum=120.0,
    )  # fmt: skip
    # halfway between the outermost levels, which stay
    start = Quantizer(levels=(2.0**-20, 32.5), thresholds=(16.0,))
    assert sum(start.levels) / 2 > 16.25 == np.float32(sum(start.levels) / 2)
    found = design_ecsq(histogram, start, rate_weight=0.0)
    assert found.quantizer.thresholds == (float(np.nextafter(np.float32(16.25), np.float32(17))),)
    check_report(histogram, found, 0.0, "ideal", tolerance=0.0)


def features(seed: int = 0) -> Histogram:
    return measured(relu_features((8, 16, 14, 14), seed))


@pytest.mark.parametrize("cost", ["ideal", "unary"])
@pytest.mark.parametrize("weight", [0.0, 0.02, 0.3])
def test_fixed_point_is_the_one_of_the_formulas(weight: float, cost: Cost) -> None:
    """Thresholds, costs and centroids of the result, computed one by one from the definition, in plain Python."""
    histogram = features()
    found = design_ecsq(histogram, Quantizer.uniform(0.0, 6.0, 6), rate_weight=weight, cost=cost)
    y, t = found.quantizer.levels, found.quantizer.thresholds
    n = len(y)
    cells: list[list[tuple[float, float]]] = [[] for _ in y]
    for centre, share in zip(histogram.centres.tolist(), histogram.weights.tolist(), strict=True):
        cells[sum(a <= centre for a in t)].append((centre, share))
    p = [sum(share for _, share in cell) for cell in cells]
    bits = [-math.log2(v) for v in p] if cost == "ideal" else [min(i + 1, n - 1) for i in range(n)]
    for i in range(n - 1):
        meet = (y[i] + y[i + 1]) / 2 + weight * (bits[i + 1] - bits[i]) / (2 * (y[i + 1] - y[i]))
        assert t[i] == pytest.approx(meet, abs=2 * histogram.width)
    for i in range(1, n - 1):
        assert y[i] == pytest.approx(sum(c * share for c, share in cells[i]) / p[i], abs=1e-5)
    assert (y[0], y[-1]) == (0.0, 6.0)
    # no value would be cheaper anywhere else: the partition is the best, not only between neighbours
    for i, cell in enumerate(cells):
        for centre, _ in cell:
            costs = [(centre - v) ** 2 + weight * b for v, b in zip(y, bits, strict=True)]
            assert costs[i] <= min(costs) + 4 * histogram.width * (y[-1] - y[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("location", [-0.6, 2.0])
def test_at_equal_rate_the_error_is_never_above_the_uniform_quantizers(levels: int, seed: int, location: float) -> None:
    """Where the rate jumps over the uniform one's (a local minimum vanishes), the chord of the two sides counts."""
    statistics = FeatureStatistics(channels=16)
    statistics.add(relu_features((8, 16, 14, 14), seed, location))
    histogram = statistics.histogram
    uniform = design_operating_point(levels=levels, statistics=statistics, coder="cabac")[0].quantizer
    rate = entropy(histogram, uniform)
    error = histogram.quantization_error(uniform.levels, uniform.thresholds)
    above, below = ecsq_at_rate(histogram, uniform, rate)
    assert below.rate <= rate and error_at_rate(above, below, rate) <= error * (1 + 1e-9)


@pytest.mark.parametrize("levels", [2, 3, 4, 8])
def test_starting_from_more_levels_gains_much_more(levels: int) -> None:
    histogram = features()
    statistics = FeatureStatistics(channels=16)
    statistics.add(relu_features((8, 16, 14, 14)))
    uniform, rich = (
        design_operating_point(levels=n, statistics=statistics, coder="cabac")[0].quantizer for n in (levels, 16)
    )
    _, below = ecsq_at_rate(histogram, rich, entropy(histogram, uniform))
    error = histogram.quantization_error(uniform.levels, uniform.thresholds)
    assert below.rate <= entropy(histogram, uniform) and below.distortion < 0.85 * error


@pytest.mark.parametrize("cost", ["ideal", "unary"])
def test_results_on_either_side_of_a_rate(cost: Cost) -> None:
    histogram = features()
    start = Quantizer.uniform(0.0, 6.0, 16)
    most = design_ecsq(histogram, start, rate_weight=0.0, cost=cost)
    for share in (0.9, 0.5, 0.2, 0.05):
        rate = share * most.rate
        if cost == "unary" and rate < 1:
            continue  # a word has at least one bit
        above, below = ecsq_at_rate(histogram, start, rate, cost=cost)
        assert below.rate <= rate < above.rate and below.distortion >= above.distortion
        assert below.distortion >= error_at_rate(above, below, rate) >= above.distortion
        assert error_at_rate(above, below, below.rate) == pytest.approx(below.distortion)
        assert error_at_rate(above, below, above.rate) == pytest.approx(above.distortion)
    # more than it can use, and less than there is
    assert ecsq_at_rate(histogram, start, 2 * most.rate, cost=cost)[0].rate == most.rate
    above, below = ecsq_at_rate(histogram, start, 1e-9 if cost == "ideal" else 0.5, cost=cost)
    assert below.quantizer.levels == (0.0, 6.0)


def test_the_weight_trades_rate_for_error_down_to_nothing() -> None:
    histogram = features()
    start = Quantizer.uniform(0.0, 6.0, 16)
    results = [design_ecsq(histogram, start, rate_weight=w) for w in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 1e6)]
    assert all(a.rate > b.rate and a.distortion < b.distortion for a, b in pairwise(results))
    assert results[0].removed == 0 and results[-2].removed > 4
    assert results[-1].rate == 0 and results[-1].quantizer.levels == (0.0, 6.0)
    assert all(r.iterations == len(r.objective) - 1 >= 1 for r in results)


def test_an_end_that_nothing_reaches_stays_for_what_was_not_measured() -> None:
    histogram = features()
    found = design_ecsq(histogram, Quantizer.uniform(-50.0, 1000.0, 60), rate_weight=0.1)
    low, *_, high = found.quantizer.thresholds
    assert found.quantizer.clipping_range == (-50.0, 1000.0)
    assert low <= histogram.minimum and histogram.maximum <= high <= histogram.maximum + 2 * histogram.width


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_bad_weights_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and finite"):
        design_ecsq(features(), Quantizer.uniform(0.0, 6.0, 4), rate_weight=bad)


@pytest.mark.parametrize("coder", ["rans", "cabac"])
def test_goes_through_the_codec_like_any_quantizer(coder: str) -> None:
    statistics = FeatureStatistics(channels=6)
    statistics.add(relu_features((8, 6, 12, 12)))
    point, bits = design_operating_point(levels=12, statistics=statistics, rate_weight=0.1, coder=coder)  # type: ignore[arg-type]  # a str
    levels = np.array(point.quantizer.levels)
    assert 3 < levels.size < 12 and np.ptp(np.diff(levels)) > 0.05 * np.ptp(levels)
    profile = CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op="e",
        tensors=(TensorSpec(name="t", shape=(6, 12, 12)),),
        operating_points=(OperatingPoint(name="e", tensors=(point,), bits_per_element=bits),),
    )  # fmt: skip
    codec = FeatureCodec(CodecProfile.from_json(profile.to_json()))
    x = relu_features((2, 6, 12, 12), seed=9)
    np.testing.assert_array_equal(codec.decode(codec.encode([x])).tensors[0], expected(codec, "e", 0, x))


@pytest.mark.slow
@pytest.mark.parametrize("coder", ["rans", "cabac"])
@pytest.mark.parametrize("levels", [2, 4])
def test_a_point_of_the_same_rate_has_less_error(levels: int, coder: Coder) -> None:
    """By the bytes of the codec, on features that the design has not seen."""
    statistics = FeatureStatistics(channels=16)
    statistics.add(relu_features((24, 16, 14, 14)))
    uniform, bits = design_operating_point(levels=levels, statistics=statistics, coder=coder)
    constrained, less = design_entropy_constrained(bits=bits, statistics=statistics, coder=coder)
    assert 0.9 * bits <= less <= bits
    assert levels < len(constrained.quantizer.levels) <= 16
    assert (constrained.tables is None) == (coder == "cabac")
    points = {"u": uniform, "e": constrained}
    codec = FeatureCodec(
        CodecProfile(
            model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op="e",
            tensors=(TensorSpec(name="t", shape=(16, 14, 14)),),
            operating_points=tuple(
                OperatingPoint(name=name, tensors=(point,), bits_per_element=1.0) for name, point in points.items()
            ),
        )
    )  # fmt: skip
    # the channels' offsets are drawn with the features, so another seed would be another network
    x = np.roll(relu_features((24, 16, 14, 14)), 5, axis=2)
    size, error = {}, {}
    for name in points:
        frame = codec.encode([x], op=name)
        size[name] = len(frame)
        error[name] = float(np.square(codec.decode(frame).tensors[0] - x).mean())
    assert size["e"] <= 1.06 * size["u"]
    assert error["e"] < 0.85 * error["u"]


def test_a_bound_on_the_levels_is_kept() -> None:
    statistics = FeatureStatistics(channels=16)
    statistics.add(relu_features((8, 16, 14, 14)))
    wide, _ = design_entropy_constrained(bits=1.2, statistics=statistics, coder="cabac")
    narrow, bits = design_entropy_constrained(bits=1.2, statistics=statistics, coder="cabac", max_levels=5)
    assert len(narrow.quantizer.levels) <= 5 < len(wide.quantizer.levels) and bits <= 1.2
    # more bits than so few levels can use
    most, bits = design_entropy_constrained(bits=9.0, statistics=statistics, coder="cabac", max_levels=5)
    assert len(most.quantizer.levels) == 5 and bits < math.log2(5)


def test_impossible_targets_are_refused() -> None:
    statistics = FeatureStatistics(channels=2)
    statistics.add(np.full((2, 2, 4, 4), 3.0, np.float32))
    with pytest.raises(ExportError, match=r"every feature at this cut is 3\.0"):
        design_entropy_constrained(bits=1.0, statistics=statistics)
    for bits, levels in ((0.0, 16), (-1.0, 16), (math.nan, 16), (1.0, 1)):
        with pytest.raises(ValueError, match="bits > 0 and at least 2 levels"):
            design_entropy_constrained(bits=bits, statistics=statistics, max_levels=levels)
