"""The ladder's steps: from the damage at its fine end to that at its coarse end."""

from __future__ import annotations

import numpy as np
import pytest

from splitwire.exporter.transform.ladder import FINEST, MOST, choose_steps, find_range


def quadratic(index: int) -> float:
    """Damage that grows with the square of the step: by a factor of 4 in 4 indices."""
    return float(0.06 * 2 ** ((index - 64) / 2))


def test_steps_lie_evenly_between_the_two_damages():
    steps = choose_steps(find_range(quadratic, 0.004, 0.5), 0.004, 0.5)
    assert len(steps) == 8
    assert quadratic(steps[0]) == pytest.approx(0.004, rel=0.2)
    assert quadratic(steps[-1]) == pytest.approx(0.5, rel=0.2)
    assert set(np.diff(steps)) <= {1, 2, 3}


def test_damage_that_stays_is_not_chased():
    measured = find_range(lambda j: quadratic(j) + 0.1, 0.004, 0.5)
    assert min(measured) == FINEST
    assert choose_steps(measured, 0.004, 0.5)[0] == FINEST


def test_a_ladder_ends_before_all_is_lost():
    measured = find_range(lambda j: min(quadratic(j), 0.2), 0.004, 0.5)
    steps = choose_steps(measured, 0.004, 0.5)
    assert quadratic(steps[-1]) == pytest.approx(MOST * 0.2, rel=0.25)


def test_eight_points_differ_even_where_the_damage_jumps():
    steps = choose_steps(find_range(lambda j: 0.0 if j < 66 else 1.0, 0.004, 0.5), 0.004, 0.5)
    assert len(set(steps)) == 8
    assert steps == sorted(steps)
    assert max(choose_steps({124: 0.0, 127: 0.5}, 0.004, 0.5)) <= 127
