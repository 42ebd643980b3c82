"""The task KLT: against its definition, on covariances whose best transform is known."""

from __future__ import annotations

import numpy as np
import pytest

from splitwire.exporter.transform.bands.klt import design_bands, task_klt, unit_step
from splitwire.exporter.transform.bands.layout import Layout


def random_covariance(seed: int, n: int = 6) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a @ a.T


def test_analysis_and_synthesis_are_inverse():
    made = task_klt(random_covariance(0), random_covariance(1), unit=0.3, finest=1e-9)
    np.testing.assert_allclose(made.synthesis @ made.analysis, np.eye(6), atol=1e-9)


def test_coefficients_are_uncorrelated_and_an_error_of_one_step_costs_the_same_in_each():
    covariance, task = random_covariance(0), random_covariance(1)
    made = task_klt(covariance, task, unit=0.3, finest=1e-9, shrink=0.0)
    np.testing.assert_allclose(made.analysis @ covariance @ made.analysis.T, np.diag(made.variances), atol=1e-6)
    assert (np.diff(made.variances) <= 0).all()
    # ½ δᵀ G δ of a coefficient that is off by e units of `unit` is ½ (0.3 e)²
    np.testing.assert_allclose(made.synthesis.T @ task @ made.synthesis, 0.09 * np.eye(6), atol=1e-9)


def test_shrinking_moves_the_sensitivity_towards_its_mean():
    covariance, task = random_covariance(0), random_covariance(1)
    made = task_klt(covariance, task, unit=1.0, finest=1e-9, shrink=0.25)
    expected = 0.75 * task + 0.25 * np.trace(task) / 6 * np.eye(6)
    inverse = np.linalg.inv(made.synthesis)
    np.testing.assert_allclose(inverse.T @ inverse, expected, atol=1e-9)


def test_components_that_no_step_codes_are_dropped():
    made = task_klt(np.diag([4.0, 1.0, 1e-6]), np.eye(3), unit=1.0, finest=0.25)
    assert made.analysis.shape == (2, 3)
    np.testing.assert_allclose(made.variances, [4, 1])
    assert task_klt(np.zeros((3, 3)), np.eye(3), unit=1.0, finest=0.25).analysis.shape == (1, 3)


def test_a_task_that_does_not_look_is_refused():
    with pytest.raises(ValueError, match="does not depend"):
        task_klt(np.eye(3), np.zeros((3, 3)), unit=1.0, finest=0.25)


def test_unit_step_costs_the_damage_it_is_made_for():
    rng = np.random.default_rng(5)
    step = unit_step(50_000, 0.02)
    errors = rng.uniform(-step / 2, step / 2, 50_000)
    assert 0.5 * np.square(errors).sum() == pytest.approx(0.02, rel=0.02)


def test_a_covariance_of_few_samples_keeps_directions_that_it_did_not_see():
    layout = Layout.of((4, 1, 1))
    seen = np.diag([4.0, 1.0, 1.0, 1.0])
    v = np.array([1.0, 1.0, 0.0, 0.0]) / np.sqrt(2)
    flat = seen - np.outer(v, v) * (v @ seen @ v)  # nothing along v
    flat = flat - np.diag(np.minimum(np.linalg.eigvalsh(flat).min(), 0) * np.ones(4))
    bands = [design_bands(layout, [flat], [np.eye(4)], [n], unit=1.0, finest=1e-9)[0] for n in (2, 10**9)]
    assert bands[0].variances[-1] > 100 * max(bands[1].variances[-1], 1e-12)


@pytest.mark.parametrize(("gradients", "share"), [(1, 0.5), (4, 0.5), (12, 0.25), (10**6, 0.1)])
def test_a_sensitivity_of_few_gradients_is_drawn_to_its_mean(gradients: int, share: float):
    layout, task = Layout.of((4, 1, 1)), random_covariance(2)[:4, :4]
    (band,) = design_bands(layout, [np.eye(4)], [task], [10**9], unit=1.0, finest=1e-9, gradients=[gradients])
    inverse = np.linalg.inv(band.synthesis)
    expected = (1 - share) * task + share * np.trace(task) / 4 * np.eye(4)
    np.testing.assert_allclose(inverse.T @ inverse, expected, rtol=1e-4, atol=1e-6)
