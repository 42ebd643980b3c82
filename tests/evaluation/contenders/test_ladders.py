"""Ladders of picture codecs go on until they fail the budget or end; nothing that was not tried is called smallest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from evaluations import evaluation, point
from runtime_helpers import make_pair

import splitwire
from splitwire.evaluation import run
from splitwire.evaluation.answer.compare import compare
from splitwire.evaluation.answer.results import Evaluation, Point
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.contenders.ladders import (
    AVIF,
    HEVC,
    HEVC_IMAGE,
    JPEG,
    LADDERS,
    WEBP,
    following,
    untried_below,
)
from splitwire.evaluation.measuring.store import FOLDER, Store
from splitwire.evaluation.report.page import headline


def climbed(family: str, loss: Callable[[int], float], budget: float = 0.01) -> list[int]:
    """The values that are measured after the usual ones."""
    ladder = LADDERS[family]
    losses = {ladder.setting(v): loss(v) for v in ladder.usual}
    further = []
    while (value := following(family, losses, budget)) is not None:
        assert value not in further
        further.append(value)
        losses[ladder.setting(value)] = loss(value)
    return further


@pytest.mark.parametrize("family", LADDERS)
def test_where_nothing_is_lost_the_ladder_ends_with_the_scale(family: str) -> None:
    further = climbed(family, lambda value: 0.0)
    assert further == list(LADDERS[family].lower)
    assert further[-1] == {"JPEG": 1, "WebP": 0, "AVIF": 0}.get(family, 51)


@pytest.mark.parametrize("family", LADDERS)
def test_where_nothing_is_within_the_budget_it_ends_at_the_best_quality(family: str) -> None:
    further = climbed(family, lambda value: 0.5)
    assert further == list(LADDERS[family].higher)
    assert further[-1] == (100 if family in (JPEG, WEBP, AVIF) else 0)


def test_the_first_setting_that_fails_is_the_last() -> None:
    assert climbed(WEBP, lambda q: 0.0 if q >= 10 else 0.05) == [10, 5]
    assert climbed(AVIF, lambda q: 0.0 if q >= 45 else 0.05) == []
    assert climbed(HEVC_IMAGE, lambda qp: 0.0 if qp <= 43 else 0.05) == [43, 46]
    assert climbed(HEVC, lambda qp: 0.0 if qp <= 12 else 0.05) == [15, 10]
    assert climbed(JPEG, lambda q: float("nan")) == [100]


def test_what_has_not_been_tried() -> None:
    assert untried_below(WEBP, ["q 20", "q 40"]) == "q 20"
    assert untried_below(JPEG, ["q 1", "q 40"]) is None
    assert untried_below(HEVC_IMAGE, ["qp 20", "QP 45"]) == "qp 45"
    assert untried_below(HEVC_IMAGE, ["qp 20", "qp 51"]) is None
    assert untried_below("zstd 3", ["n2"]) is None


# The ten-class network of the report: 628 bytes of features, pictures that go on getting smaller

OURS_POINT = point(SPLITWIRE, "n4", 628, 0.004)


def pictures(family: str, *sizes: tuple[int, float, float]) -> list[Point]:
    return [point(family, f"q {q}", size, loss, sends="image") for q, size, loss in sizes]


AS_IT_WAS = (*pictures(AVIF, (30, 654, 0.004), (45, 900, 0.0)), *pictures(WEBP, (20, 700, 0.002), (40, 820, 0.0)))
FURTHER = (
    *pictures(AVIF, (10, 470, 0.03), (20, 549, 0.008), (30, 654, 0.004)),
    *pictures(WEBP, (5, 470, 0.06), (10, 532, 0.006), (20, 700, 0.002)),
)


def of(*points: Point) -> Evaluation:
    return evaluation(points=points)


def test_the_lowest_that_was_measured_is_not_called_the_smallest() -> None:
    e = of(OURS_POINT, *AS_IT_WAS)
    c = compare(e)
    assert [(s.family, s.setting, s.most) for s in c.standings] == [
        (SPLITWIRE, "n4", "628"), (AVIF, "q 30", "≤ 654"), (WEBP, "q 20", "≤ 700"),
    ]  # fmt: skip
    words = " ".join(c.verdict)
    assert "the smallest picture within" not in words
    assert "the smallest picture measured within the same loss is 1.04× as large (AVIF q 30, 654 bytes)" in words
    assert "Not tried: AVIF below q 30, WebP below q 20." in words
    assert "the best alternative measured (AVIF q 30, the picture) needs 654 bytes" in headline(e, c)


def test_where_pictures_win_the_smallest_is_named() -> None:
    c = compare(of(OURS_POINT, *FURTHER))
    assert [(s.family, s.setting, s.most) for s in c.standings] == [
        (WEBP, "q 10", "532"), (AVIF, "q 20", "549"), (SPLITWIRE, "n4", "628"),
    ]  # fmt: skip
    words = " ".join(c.verdict)
    assert (
        "Sending the picture is the better choice here: WebP q 10 needs 532 bytes where splitwire n4 needs 628" in words
    )
    assert "Not tried" not in words


def test_a_winner_at_its_lowest_setting_needs_at_most_so_much() -> None:
    (first, *_) = compare(of(OURS_POINT, *FURTHER[4:])).verdict
    assert "WebP q 10 needs at most 532 bytes where" in first
    c = compare(of(OURS_POINT, *FURTHER), 0.1)
    assert c.verdict[0].startswith("Sending the picture is the better choice here: AVIF q 10 needs at most 470 bytes")
    assert c.verdict[-1].startswith("Not tried: AVIF below q 10, WebP below q 5.")


# All of it, on a pair


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda evaluation, out: None)
    make_pair(tmp_path / "pair")
    return tmp_path / "pair"


def data(images: int = 20) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(3).integers(0, 256, (images, 12, 10, 3), dtype=np.uint8)}


def settings(e: Evaluation, family: str) -> list[str]:
    return [p.setting for p in e.points if p.family == family]


def test_an_evaluation_goes_on_to_the_end_of_the_scale(pair) -> None:
    e = splitwire.evaluate(pair, data(), contenders=["jpeg", "webp", "hevc-image"], max_loss=0.99)
    assert settings(e, JPEG) == [f"q {q}" for q in (1, 5, 10, 20, 30, 50, 70, 85, 95)]
    assert settings(e, WEBP) == [f"q {q}" for q in (0, 5, 10, 20, 40, 60, 80, 95)]
    assert settings(e, HEVC_IMAGE) == [f"qp {q}" for q in (20, 25, 30, 35, 40, 43, 46, 49, 51)]
    assert not any(s.untried for s in compare(e).standings)
    assert [p.family for p in e.points] == sorted(
        (p.family for p in e.points), key=[SPLITWIRE, JPEG, WEBP, HEVC_IMAGE].index
    )
    assert not (pair / "evaluation" / FOLDER).exists()


def test_interrupted_on_the_way_down_it_goes_on_from_there(pair, monkeypatch) -> None:
    def interrupt(self, index, batch):
        save(self, index, batch)
        saved.append([*batch.sendings])
        if "JPEG q 10" in batch.sendings and len(saved) < 8:
            raise KeyboardInterrupt

    save = Store.save
    saved: list[list[str]] = []
    monkeypatch.setattr(Store, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        splitwire.evaluate(pair, data(), contenders=["jpeg"], max_loss=0.99)
    assert saved[-1] == ["JPEG q 10"]
    before = len(saved)  # two batches of the usual settings, two of q 20, one of q 10
    assert before == 5
    saved += [[]] * 8  # no more interruptions
    e = splitwire.evaluate(pair, data(), contenders=["jpeg"], max_loss=0.99)
    assert saved[before + 8 :] == [["JPEG q 10"], ["JPEG q 5"], ["JPEG q 5"], ["JPEG q 1"], ["JPEG q 1"]]
    assert settings(e, JPEG)[:5] == ["q 1", "q 5", "q 10", "q 20", "q 30"]
    assert not (pair / "evaluation" / FOLDER).exists()
