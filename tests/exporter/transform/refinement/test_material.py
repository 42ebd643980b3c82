"""Which calibration inputs are held out."""

from __future__ import annotations

import itertools

import pytest

from splitwire.exporter.transform.refinement.material import MOST_HELD, RUNS, held_out


@pytest.mark.parametrize("count", [8, 9, 31, 50, 256, 1000])
def test_a_fifth_is_held_out_in_runs_over_all_inputs(count):
    apart = held_out(count)
    assert len(apart) == min(max(count // 5, 4), MOST_HELD) and apart == sorted(set(apart))
    assert apart[-1] == count - 1 and apart[0] >= 0
    runs = 1 + sum(b != a + 1 for a, b in itertools.pairwise(apart))
    assert runs == min(RUNS, len(apart))
    thirds = [sum(i * count // 3 <= j < (i + 1) * count // 3 for j in apart) for i in range(3)]
    assert min(thirds) > 0
