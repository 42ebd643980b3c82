"""What follows the synthesis of clipped features, chosen by the damage on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.klt import BandTransform
from splitwire.exporter.transform.bands.layout import Layout
from splitwire.exporter.transform.bands.statistics import spectrum
from splitwire.exporter.transform.refinement.clip import SHARES, with_clips

LAYOUT = Layout.of((3, 4, 4))


@dataclass
class Found:
    total: float


class Judge:
    """Takes the place of held-out inputs: a figure of the coding is the damage."""

    def __init__(self, figure: Callable[[Coding], float]) -> None:
        self.figure = figure
        self.asked = 0

    def damage(self, codings: Sequence[Coding], step: float) -> Found:
        self.asked += 1
        return Found(self.figure(codings[0]))


class Training:
    """Spectra of features behind a ReLU."""

    def __init__(self) -> None:
        chance = torch.Generator().manual_seed(0)
        self.spectra = [spectrum(LAYOUT, torch.randn(16, 3, 4, 4, generator=chance).clamp_min(0))]


def coding(bounds: tuple[float | None, float | None]) -> Coding:
    same = [BandTransform(analysis=np.eye(3), synthesis=np.eye(3), variances=np.ones(3)) for _ in LAYOUT.bands]
    return Coding(LAYOUT, np.zeros((3, LAYOUT.positions)), same, bounds)


def chosen(figure: Callable[[Coding], float], bounds: tuple[float | None, float | None] = (0.0, 6.0)) -> Coding:
    (found,) = with_clips([coding(bounds)], cast("Any", Training()), cast("Any", Judge(figure)), [0, 8])
    return found


def test_no_clip_where_it_costs_most():
    found = chosen(lambda c: 2.0 if c.bounds[0] == 0 else 1.0)
    assert found.bounds == (None, None)
    assert not found.threshold.any()


def test_a_clip_where_it_is_best():
    found = chosen(lambda c: 2.0 if c.bounds[0] is None else 1.0 + float(c.threshold.sum()))
    assert found.bounds == (0.0, 6.0)
    assert not found.threshold.any()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_a_clip_and_the_threshold_that_is_best(share: float):
    whole = chosen(lambda c: 9.0 if c.bounds[0] is None else 2.0 - float(c.threshold.sum())).threshold
    found = chosen(lambda c: 9.0 if c.bounds[0] is None else 1 + float((c.threshold - share * whole).abs().sum()))
    assert whole.min() > 0
    assert share in SHARES
    torch.testing.assert_close(found.threshold, share * whole)


def test_what_was_not_clipped_is_not_judged():
    judge = Judge(lambda c: 1.0)
    plain = coding((None, None))
    assert with_clips([plain], cast("Any", Training()), cast("Any", judge), [0, 8]) == [plain]
    assert judge.asked == 0
