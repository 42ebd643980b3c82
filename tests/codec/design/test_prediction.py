"""Taps, weights and tables of the predictive coder: what they gain, when they are taken, what is said of them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from codec_helpers import profile_of
from numpy.typing import NDArray
from reference import predictive_steps

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_operating_point, worthwhile_taps
from splitwire.codec.design.prediction import estimate_prediction
from splitwire.codec.design.taps import FEWEST_POSITIONS, POINT_BYTES, choose_taps
from splitwire.codec.profile import Quantizer
from splitwire.codec.tables import GROUP, PredictionTables
from splitwire.codec.wire.frame import SHORT_SIZE, parse_frame

Float32Array = NDArray[np.float32]
UNIFORM = Quantizer.uniform(0.0, 3.0, 4)


def mixed(images: int, channels: int = 40, sources: int = 6, seed: int = 0) -> Float32Array:
    """ReLU features (images, C, 6, 7) that are mixtures of a few hidden maps, and a little noise."""
    mixing = np.random.default_rng(99).normal(size=(channels, sources))
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(images, sources, 6, 7))
    x = np.einsum("cs,nshw->nchw", mixing, hidden) / 2 + 0.1 * rng.normal(size=(images, channels, 6, 7))
    features: Float32Array = np.maximum(x, 0).astype(np.float32)
    return features


def apart(images: int, channels: int = 40) -> Float32Array:
    """The same without anything in common."""
    return np.maximum(np.random.default_rng(1).normal(size=(images, channels, 6, 7)), 0).astype(np.float32)


def statistics_of(x: Float32Array) -> FeatureStatistics:
    statistics = FeatureStatistics(channels=x.shape[1])
    statistics.add(x)
    return statistics


@pytest.mark.slow
def test_what_channels_share_is_sent_once() -> None:
    """On images outside the calibration set: far fewer bytes than the context coder, and as many as predicted."""
    statistics = statistics_of(mixed(48))
    plain, _ = design_operating_point(levels=4, statistics=statistics)
    taps = worthwhile_taps(statistics)
    assert taps is not None
    point, bits = design_operating_point(levels=4, statistics=statistics, taps=taps)
    assert isinstance(point.prediction, PredictionTables) and point.tables is None
    assert point.quantizer == plain.quantizer
    x = mixed(32, seed=1)
    ours, others = (
        len(FeatureCodec(profile_of(x.shape[1:], p, used)).encode([x])) - SHORT_SIZE
        for p, used in ((point, taps), (plain, None))
    )
    assert ours < 0.75 * others
    assert 8 * ours / x.size == pytest.approx(bits, rel=0.06)


def test_nothing_in_common_keeps_the_context_coder() -> None:
    statistics = statistics_of(apart(48))
    assert choose_taps(statistics.sample, UNIFORM) is not None  # there is something to choose from
    assert worthwhile_taps(statistics) is None


@pytest.mark.parametrize("images", [6, 7, 12])
def test_few_images_are_not_believed(images: int) -> None:
    """A hundred weights fitted to noise seem to predict it; the reported rate must not follow them."""
    x = apart(images, channels=120)
    taps = choose_taps(x, UNIFORM)
    if images * 42 < FEWEST_POSITIONS:
        assert taps is None
        return
    assert taps is not None
    found = estimate_prediction(x, UNIFORM, taps)
    assert found is not None
    q = np.searchsorted(UNIFORM.thresholds, x, side="right")
    share = np.bincount(q.reshape(-1), minlength=4) / q.size
    assert found[1] > -(share * np.log2(share)).sum()  # not less than the order-0 entropy, which is all there is


@pytest.mark.slow
def test_taps_lie_in_earlier_groups_and_a_point_in_64_kb() -> None:
    for channels in (GROUP + 1, 100, 400):
        x = mixed(16, channels)
        taps = choose_taps(x, UNIFORM)
        assert taps is not None
        taps.check(channels)
        counts = taps.arrays()[0]
        assert (counts[:GROUP] == 0).all() and counts[GROUP:].max() > 0
        found = estimate_prediction(x, UNIFORM, taps)
        assert found is not None
        point = found[0]
        point.check(4, channels, taps)
        size = sum(len(v) for v in (point.weights, point.bias, point.channel_class, point.context_map))
        assert size + len(point.frequencies) + len(point.activity) <= POINT_BYTES


def test_nothing_to_predict_from() -> None:
    assert choose_taps(mixed(16, GROUP), UNIFORM) is None  # one group
    taps = choose_taps(mixed(16), UNIFORM)
    assert taps is not None
    assert estimate_prediction(mixed(16), Quantizer.uniform(0.0, 3.0, 65), taps) is None  # too many levels


def test_the_same_sample_gives_the_same_tables() -> None:
    """Whatever the threads do."""
    x = mixed(16, 60)
    taps = choose_taps(x, UNIFORM)
    assert taps is not None and taps == choose_taps(x, UNIFORM)
    assert estimate_prediction(x, UNIFORM, taps) == estimate_prediction(x, UNIFORM, taps)


def test_channels_that_never_change_have_no_taps() -> None:
    x = mixed(24)
    x[:, 20:30] = 0
    taps = choose_taps(x, UNIFORM)
    assert taps is not None
    counts, sources, _ = taps.arrays()
    assert (counts[20:30] == 0).all()
    assert not set(sources) & set(range(20, 30))
    assert estimate_prediction(x, UNIFORM, taps) is not None


def test_coded_size_is_near_the_ideal_of_its_tables() -> None:
    """Within 1 % of the code length that the tables promise for these very elements, and the states of the lanes."""
    statistics = statistics_of(mixed(24))
    taps = worthwhile_taps(statistics)
    assert taps is not None
    point, _ = design_operating_point(levels=4, statistics=statistics, taps=taps)
    x = mixed(8, seed=3)
    profile = profile_of(x.shape[1:], point, taps)
    frame = FeatureCodec(profile).encode([x])
    lanes = parse_frame(frame).chunks[0].lanes
    q = np.searchsorted(np.array(point.quantizer.thresholds, np.float32), x, side="right").reshape(-1, *x.shape[2:])
    spec, coded = (msgspec.to_builtins(part) for part in (profile.tensors[0], point))
    steps = predictive_steps(q.tolist(), coded, spec, 0, lanes)
    ideal = sum(12 - math.log2(frequency) for _, frequency, _ in steps) / 8
    assert ideal * 0.999 < len(frame) - SHORT_SIZE < ideal * 1.01 + 4 * lanes
