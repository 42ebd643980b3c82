"""Tiles, DCT and bands: orthonormal, invertible, and as a plain sum of cosines says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splitwire.exporter.transform.bands.layout import EDGES, Layout, dct_matrix
from splitwire.exporter.transform.bands.statistics import BandStatistics, features_of, spectrum

SHAPES = [(6, 3, 3), (5, 28, 28), (3, 6, 80), (7, 7, 12), (24, 8), (17, 8), (16, 8), (9,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_is_orthonormal_and_invertible(shape):
    layout = Layout.of(shape)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    y = spectrum(layout, x)
    assert y.shape == (3, layout.tiles, layout.channels, layout.positions)
    assert float(y.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)
    torch.testing.assert_close(features_of(layout, y), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_basis_says_the_same_as_the_factors(shape):
    layout = Layout.of(shape)
    x = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    by_basis = layout.to_tiles(x) @ layout.basis.T
    np.testing.assert_allclose(spectrum(layout, torch.from_numpy(x)).numpy(), by_basis, atol=1e-5)
    np.testing.assert_array_equal(layout.from_tiles(layout.to_tiles(x)), x)


def test_dct_is_a_sum_of_cosines():
    x = np.random.default_rng(2).standard_normal(5)
    for k, y in enumerate(dct_matrix(5) @ x):
        scale = math.sqrt((1 if k == 0 else 2) / 5)
        assert y == pytest.approx(scale * sum(x[n] * math.cos(math.pi * (n + 0.5) * k / 5) for n in range(5)))


def test_a_tile_of_a_map_is_transformed_by_itself():
    layout = Layout.of((2, 28, 28))
    assert (layout.block, layout.tiles) == ((14, 14), 4)
    x = np.zeros((1, 2, 28, 28), np.float32)
    x[0, 1, 14:, :14] = 3.0  # the lower left tile of the second channel is flat
    y = spectrum(layout, torch.from_numpy(x)).numpy()
    expected = np.zeros_like(y)
    expected[0, 2, 1, 0] = 3.0 * 14
    np.testing.assert_allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "block"),
    [((8, 3, 3), (3, 3)), ((8, 20, 20), (20, 20)), ((8, 80, 80), (16, 16)), ((8, 53, 53), (53, 53)),
     ((8, 131, 21), (1, 7)), ((49, 8), (7, 7)), ((50, 8), (7, 7)), ((75, 8), (15, 1)), ((8,), (1, 1))],
)  # fmt: skip
def test_size_of_tiles(shape, block):
    assert Layout.of(shape).block == block


def test_a_class_token_is_a_band_of_its_own():
    layout = Layout.of((50, 8))
    assert layout.lead == 1
    assert layout.bands[0] == slice(0, 1)
    x = np.zeros((1, 50, 8), np.float32)
    x[0, 0, 3] = 2.0
    y = spectrum(layout, torch.from_numpy(x)).numpy()
    assert y[0, 0, 3, 0] == 2.0
    assert np.count_nonzero(y) == 1


def test_bands_hold_each_frequency_once_by_rising_radius():
    layout = Layout.of((96, 14, 14))
    assert len(layout.bands) == len(EDGES[10]) + 1
    assert sorted(layout.order) == list(range(196))
    radius = np.hypot(layout.order // 14, layout.order % 14)
    for lower, upper in zip(layout.bands, layout.bands[1:], strict=False):
        assert radius[lower].max() < radius[upper].min()
    assert [b.stop - b.start for b in Layout.of((384, 3, 3)).bands] == [1, 2, 6]


@pytest.mark.parametrize("shape", [(2, 2, 2, 2), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="axes"):
        Layout.of(shape)


def test_a_block_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tiles of 5×7 do not divide 14×14"):
        Layout.of((4, 14, 14), block=(5, 7))


def test_streamed_statistics_equal_those_of_all_at_once():
    layout = Layout.of((5, 4, 4))
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((50, 5, 4, 4)) * 3 + 100).astype(np.float32)  # far from zero: squares lose digits
    g = rng.standard_normal((50, 5, 4, 4)).astype(np.float32)
    statistics = BandStatistics(layout)
    for i in range(0, 50, 7):
        statistics.add(torch.from_numpy(x[i : i + 7]))
        statistics.add_gradients(torch.from_numpy(g[i : i + 7]))
    y, z = (layout.to_tiles(a.astype(np.float64)) @ layout.basis.T for a in (x, g))
    np.testing.assert_allclose(statistics.mean, y.mean((0, 1)), rtol=1e-5, atol=1e-4)
    for band, c, s in zip(layout.bands, statistics.covariances(), statistics.sensitivities(), strict=True):
        flat = (y - y.mean(0))[..., band].transpose(2, 0, 1, 3).reshape(5, -1)
        np.testing.assert_allclose(c, flat @ flat.T / flat.shape[1], rtol=1e-3, atol=1e-3)
        flat = z[..., band].transpose(2, 0, 1, 3).reshape(5, -1)
        np.testing.assert_allclose(s, flat @ flat.T / flat.shape[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "bounds"),
    [(torch.relu, (0.0, None)), (lambda x: (4 * x).clamp(0, 6), (0.0, 6.0)), (lambda x: x, (None, None)),
     (torch.nn.functional.hardswish, (None, None))],
)  # fmt: skip
def test_bounds_are_those_of_the_activation(function, bounds):
    statistics = BandStatistics(Layout.of((4, 5, 5)))
    for seed in range(3):
        statistics.add(function(torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(seed))))
    assert statistics.bounds() == bounds


def test_a_flat_tile_has_as_many_bands_as_its_longer_side_has_scales():
    assert len(Layout.of((8, 2, 96)).bands) == len(Layout.of((8, 16, 16)).bands) == 10
    assert len(Layout.of((8, 2, 4)).bands) < 5
