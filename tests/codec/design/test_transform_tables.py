"""Classes and tables of transform coefficients, designed by counting: code length, order, symmetry, limits."""

from __future__ import annotations

import numpy as np
import pytest
from coefficients import integers, transform_profile
from numpy.typing import NDArray

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design.transform_tables import design_transform_tables, ideal_bits
from splitwire.codec.transform import NOT_SENT, Transform

K, LADDER = 700, (56, 60, 64, 68, 72)
SCALE = np.exp2(np.linspace(1, -6, K))
"""Mean magnitude of each coefficient, in descending order."""


def draw(images: int, seed: int, order: NDArray[np.intp]) -> NDArray[np.float32]:
    """(images, 2, K) Laplace coefficients."""
    noise = np.random.default_rng(seed).laplace(size=(images, 2, K))
    found: NDArray[np.float32] = (noise * SCALE[order]).astype(np.float32)
    return found


def quantize(x: NDArray[np.float32], step: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (np.sign(x) * np.floor(abs(x) / 2 ** ((step - 64) / 4) + 0.42)).astype(np.int64)
    return found


@pytest.fixture(scope="module")
def designed() -> tuple[NDArray[np.intp], Transform]:
    """A shuffled order of the coefficients, and what is designed for them."""
    order = np.random.default_rng(3).permutation(K)
    x = draw(120, 0, order)
    found = design_transform_tables(
        abs(x).mean(axis=(0, 1)), {j: quantize(x, j) for j in LADDER}, features="f", feature_shape=(7, 10, 20),
        outward=(0.2, 0.125),
    )  # fmt: skip
    return order, found


def laplace_entropy(step: int) -> float:
    """Bits of one tile, if every coefficient were coded by its own distribution."""
    ratio = SCALE / 2 ** ((step - 64) / 4)
    edges = np.append(0, np.arange(1, 400) - 0.42)
    p = -np.diff(np.append(np.exp(-edges[:, None] / ratio), np.zeros((1, K)), axis=0), axis=0)
    signs = p[1:].sum()
    return float(-(p * np.log2(np.maximum(p, 1e-300))).sum() + signs)


def test_classes_follow_the_magnitude_and_what_is_always_zero_is_not_sent(
    designed: tuple[NDArray[np.intp], Transform],
) -> None:
    order, transform = designed
    classes = np.frombuffer(transform.classes, np.uint8).astype(int)
    assert classes.size == K
    x = draw(120, 0, order)
    ever = (quantize(x, min(LADDER)) != 0).any(axis=(0, 1))
    np.testing.assert_array_equal(classes != NOT_SENT, ever)
    assert not ever.all()
    np.testing.assert_allclose(classes[ever], 64 + 4 * np.log2(SCALE[order[ever]]), atol=2.5)
    assert (transform.features, transform.feature_shape, transform.outward) == (
        "f",
        (7, 10, 20),
        (float(np.float32(0.2)), 0.125),
    )


def test_tables_are_symmetric_and_flatten_with_the_magnitude(
    designed: tuple[NDArray[np.intp], Transform],
) -> None:
    transform = designed[1]
    transform.check((2, len(transform.classes)))
    rows = transform.frequency_rows()
    np.testing.assert_array_equal(rows[:, 1:-1:2], rows[:, 2:-1:2])
    zero = transform.zero_frequencies().astype(int)
    assert (np.diff(zero) <= 0).all() and zero[0] > 4000 and zero[-1] < 40


@pytest.mark.parametrize("step", [56, 58, 62, 64, 69, 72, 77])
def test_other_pictures_cost_little_more_than_their_entropy(
    step: int, designed: tuple[NDArray[np.intp], Transform]
) -> None:
    """At the ladder's steps, between and beyond them: 7 % and 12 bits for the flags of groups, for escapes, and for
    classes of a quarter of an octave. Real payloads add half a byte, with two lanes 4, and less than 0.5 %."""
    order, transform = designed
    x = draw(40, 1, order)
    bits = ideal_bits(transform, quantize(x, step), step)
    assert bits.shape == (40,)
    assert 0.97 < bits.mean() / (2 * laplace_entropy(step)) < 1.07 + 12 / bits.mean()
    codec = FeatureCodec(transform_profile([(2, K)], [transform], {"q": (step,)}))
    payloads = np.array([len(codec.encode([image[None]])) - 28 for image in x])
    exact = ideal_bits(transform, integers(x, transform, step), step) / 8
    assert (payloads > exact - 4).all()  # zeros at the end are free
    assert -1 < (payloads - exact).mean() < (1 if exact.mean() < 2000 else 5) + 0.005 * exact.mean()


def test_ideal_bits_of_escapes_and_groups_by_hand() -> None:
    rows = np.zeros((1, 32), "<u2")
    rows[0, :2], rows[0, 31] = 2048, 0
    rows[0, :2], rows[0, 31] = (2048, 1024), 1024
    transform = Transform(
        features="f", feature_shape=(1,), classes=bytes(18), frequencies=rows.tobytes(),
        zero_groups=np.array([1024], "<u2").tobytes(), first=0,
    )  # fmt: skip
    q = np.zeros((3, 1, 18), np.int64)
    q[1, 0, 3] = 1
    q[2, 0, 16], q[2, 0, 17] = -1, 300  # neither is in the table
    zero, coded = 2.0, np.log2(4 / 3)
    assert ideal_bits(transform, q, 64) == pytest.approx(
        [2 * zero, coded + 15 * 1 + 2 + zero, zero + coded + 2 * (2 + 16)]
    )


def test_ideal_bits_are_of_the_order_of_coding() -> None:
    """Two values in one group of the order of coding, though far apart; a third that is not sent."""
    rows = np.zeros((1, 32), "<u2")
    rows[0, 0], rows[0, 1] = 3072, 512
    classes = np.where(np.arange(64) % 4 == 3, 40, 10).astype(np.uint8)  # the 16 first ones
    classes[1] = NOT_SENT
    transform = Transform(
        features="f", feature_shape=(1,), classes=classes.tobytes(), frequencies=rows.tobytes(),
        zero_groups=np.array([2048], "<u2").tobytes(), first=-64,
    )  # fmt: skip
    q = np.zeros((1, 1, 64), np.int64)
    q[0, 0, [1, 3, 63]] = 1
    assert ideal_bits(transform, q, 64) == pytest.approx(1 + 2 * 3 + 14 * np.log2(4 / 3) + 3 * 1)


def test_coefficients_that_are_zero_everywhere_keep_one() -> None:
    q = np.zeros((900, 1, 40), np.int64)
    transform = design_transform_tables(np.arange(40) * 0.01, {64: q, 70: q}, features="f", feature_shape=(40,))
    assert transform.order().tolist() == [39]
    transform.check((1, 40))
    assert ideal_bits(transform, q, 64).max() < 0.1


@pytest.mark.parametrize("magnitude", [1e-9, 1e-3, 0.3, 7.0, 3000.0, 1e9])
def test_any_magnitude_has_valid_tables(magnitude: float) -> None:
    x = np.random.default_rng(0).laplace(size=(30, 1, 20)) * magnitude
    q = {j: np.clip(quantize(x.astype(np.float32), j), -32767, 32767) for j in (0, 64, 127)}
    transform = design_transform_tables(abs(x).mean(axis=(0, 1)), q, features="f", feature_shape=(20,))
    transform.check((1, 20))
    for j, values in q.items():
        assert np.isfinite(ideal_bits(transform, values, j)).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((9, 2, 16), 1), "largest is a pair of signs"),
        (np.full((9, 2, 16), 32767), "all are escapes"),
        (np.arange(288).reshape(9, 2, 16) - 144, "flat"),
    ],
)
def test_frequencies_sum_whatever_is_counted(values: NDArray[np.int64], says: str) -> None:
    transform = design_transform_tables(np.ones(16), {64: values}, features="f", feature_shape=(4,))
    transform.check((2, 16))
    of = transform.tables_at(64)[0]
    share = transform.frequency_rows()[of] / 4096
    if says == "largest is a pair of signs":
        assert share[1] == share[2] > 0.4
    elif says == "all are escapes":
        assert share[31] > 0.9
    else:
        assert share[1:31].max() < 0.05


@pytest.mark.parametrize(
    ("magnitudes", "quantized", "message"),
    [
        ([1.0, np.nan], {64: np.zeros((1, 1, 2), int)}, "magnitudes must be"),
        ([-1.0, 1.0], {64: np.zeros((1, 1, 2), int)}, "magnitudes must be"),
        ([[1.0]], {64: np.zeros((1, 1, 1), int)}, "magnitudes must be"),
        ([1.0, 1.0], {}, "quantized needs step indices of 0..127"),
        ([1.0, 1.0], {128: np.zeros((1, 1, 2), int)}, "quantized needs step indices of 0..127"),
        ([1.0, 1.0], {64: np.zeros((1, 2), int)}, "coefficients at step 64 must be integers"),
        ([1.0, 1.0], {64: np.zeros((1, 1, 3), int)}, "coefficients at step 64 must be integers"),
        ([1.0, 1.0], {64: np.zeros((1, 1, 2))}, "coefficients at step 64 must be integers"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    magnitudes: list[float], quantized: dict[int, NDArray[np.int64]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        design_transform_tables(np.array(magnitudes), quantized, features="f", feature_shape=(2,))
