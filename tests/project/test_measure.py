"""What a choice of quantizers does to the answers: order, bounds, progress. The graphs are functions."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from splitwire.codec.design import FeatureStatistics
from splitwire.codec.profile import Quantizer, TensorSpec
from splitwire.exporter.points import budget, measure
from splitwire.exporter.points import design as sensitivity
from splitwire.exporter.points.tensors import CalibratedTensor

INPUTS = [np.full((1, 2, 2), i + 1, np.float32) for i in range(5)]


def quantizer(top: float) -> Quantizer:
    return Quantizer(levels=(0.0, top), thresholds=(top / 2,))


def halves(batch: int | None):
    """A front of two tensors and a back that adds them up; the first is what is slow."""
    front = SimpleNamespace(batch=batch, run=lambda x: [x, 10 * x])

    def run(a, b):
        time.sleep(0.002 * (a.max() == 1))
        return [a + b]

    return front, SimpleNamespace(inputs=("a", "b"), outputs=("y",), run=run)


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_each_choice_has_its_own_damage_and_a_tick(batch):
    front, back = halves(batch)
    tops: list[list[float | None]] = [[1.0, None], [5.0, None], [None, 30.0], [None, None]]
    choices = [[None if top is None else quantizer(top) for top in row] for row in tops]
    ticks: list[int] = []
    damages = measure.measure_damage(front, back, choices, INPUTS, ticks.append)
    assert ticks[-1] == len(INPUTS) * len(choices)
    assert ticks == sorted(ticks)
    assert len(ticks) == len(choices) * (1 if batch is None else -(-len(INPUTS) // batch))

    def error(row):
        """Each value lies at the nearer of 0 and its top."""
        x = np.arange(1, 6)
        values = [x, 10 * x]
        near = [v if t is None else np.where(v < t / 2, 0, t) for v, t in zip(values, row, strict=True)]
        return ((sum(near) - 11 * x) ** 2).sum() / ((11 * x) ** 2).sum()

    assert [d.total for d in damages] == pytest.approx([error(row) for row in tops])
    assert damages[3].total == 0


def test_answers_come_in_order_and_few_at_a_time():
    alive, most, lock = 0, 0, threading.Lock()

    def answer(choice):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        time.sleep(0.003 * (choice % 2))
        return [choice]

    found = []
    choices: list[Any] = list(range(20))  # numbers in place of quantizers: they are only handed on
    with ThreadPoolExecutor(4) as pool:
        for outputs in measure._in_order(pool, answer, choices):
            found += outputs
            with lock:
                alive -= 1
    assert found == list(range(20))
    assert most == measure.AT_ONCE


def test_of_each_budget_the_first_few_are_tried_again():
    rows: list[list[Any]] = [[k] for k in range(7)]  # numbers in place of widenings
    ranked = [budget._Tried(budget._Candidates(b, [], []), row) for row in rows for b in (1, 0)]
    assert [(t.candidates.budget, t.row) for t in budget._promising(ranked)] == [
        (b, row) for b in (1, 0) for row in rows[: budget.PROMISING]
    ]


@pytest.mark.parametrize(
    ("shapes", "large"),
    [
        ([(256, 160, 160)], False),  # a single tensor: most often of a classifier
        ([(672, 20, 20), (480, 10, 10)], False),
        ([(256, 80, 80), (256, 40, 40)], True),
    ],
)
def test_a_pyramid_is_large(shapes, large):
    assert measure.is_large([TensorSpec(name=f"t{i}", shape=s) for i, s in enumerate(shapes)]) is large


@pytest.mark.parametrize(("large", "used"), [(False, {16, 4}), (True, {4, 2})])
def test_large_pyramids_are_measured_on_fewer_inputs(large, used, monkeypatch):
    """What is asked for, and what reaches the back half, with two tensors of random features."""
    rng = np.random.default_rng(0)
    specs = [TensorSpec(name=n, shape=(4, 8, 8)) for n in "ab"]
    tensors = [CalibratedTensor(spec=s, statistics=FeatureStatistics(channels=4), slope=0.0) for s in specs]
    for tensor in tensors:
        tensor.statistics.add(np.maximum(rng.laplace(size=(20, 4, 8, 8)), 0).astype(np.float32))
    kept = list(np.maximum(rng.laplace(size=(20, 4, 8, 8)), 0).astype(np.float32))
    front, back = halves(1)
    seen: dict[str, int] = {}
    totals: dict[str, set[int | None]] = {}

    def measured(front, back, choices, kept, progress):
        seen[f"{len(seen)}"] = len(kept)
        return measure.measure_damage(front, back, choices, kept, progress)

    def report(stage, done, total):
        totals.setdefault(stage, set()).add(total)
        last[stage] = done

    last: dict[str, int] = {}
    monkeypatch.setattr(sensitivity, "measure_damage", measured)
    monkeypatch.setattr(sensitivity, "is_large", lambda specs: large)
    kinds = [sensitivity.Kind(value=4), sensitivity.Kind(value=0.5, family="r")]
    points, _ = sensitivity.design_points(front, back, tensors, kept, kinds, report)
    assert [p.name for p in points] == ["n4", "r0.5"]
    assert set(seen.values()) == used
    for stage, sizes in totals.items():  # one total each, and it is reached
        assert sizes == {last[stage]}, stage
