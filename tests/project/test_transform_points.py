"""benchmarks/quality/points: bytes at equal damage, ratios and means, the kept records, the page, the lines of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs.lines import texts
from benchmarks.quality.points import equal, records
from benchmarks.quality.points.equal import Comparison, bytes_at, bytes_within, geometric_mean
from benchmarks.quality.points.judges import Classes, Text
from benchmarks.quality.points.page import page
from benchmarks.quality.points.records import PAPER, TODAY, TRANSFORM, Cost, Record, Row
from splitwire.codec.errors import UsageError


def row(size: float, damage: float, *, agreement: float = 1.0, score: float | None = None) -> Row:
    return Row(op=f"p{size:g}", bytes=size, damage=damage, agreement=agreement, score=score)


def record(scheme: str, *rows: Row, whole: float | None = None, cut: str = "demo") -> Record:
    return Record(
        cut=cut, scheme=scheme, shape=(2, 3, 4), task="classes", calibration=8, test=10,
        score_name=None if whole is None else "accuracy", whole=whole, rows=rows, seconds=1.0,
        machine={"processor": "one", "cores": "1"},
        cost=Cost(front_ms=(2.0, 2.5), back_ms=(1.0, 1.0), coefficients=7, design_s=3.0, gain=-0.5)
        if scheme == TRANSFORM else None,
    )  # fmt: skip


POINTS = (row(100, 0.08), row(400, 0.02), row(200, 0.5), row(800, 0.03))
"""Of these the third and the last need more bytes than another one with less damage."""


def test_bytes_between_points_are_interpolated_in_logarithms() -> None:
    assert bytes_at(POINTS, 0.04) == pytest.approx(200)
    assert bytes_at(POINTS, 0.02) == pytest.approx(400)


def test_beyond_the_points_there_is_the_smallest_or_nothing() -> None:
    assert bytes_at(POINTS, 0.3) == pytest.approx(100)
    assert bytes_at(POINTS, 0.019) is None
    assert bytes_at([], 0.1) is None


def test_the_loss_is_of_the_score_or_else_of_the_agreement() -> None:
    labelled = record(TODAY, row(10, 1, score=0.88), row(20, 1, score=0.90), row(30, 1, score=0.95), whole=0.91)
    assert bytes_within(labelled) == 20
    assert bytes_within(labelled, 0.0) == 30
    unlabelled = record(TODAY, row(10, 1, agreement=0.98), row(20, 1, agreement=0.99))
    assert bytes_within(unlabelled) == 20
    assert bytes_within(unlabelled, 0.001) is None


def test_geometric_means_leave_out_what_is_missing() -> None:
    assert geometric_mean([0.5, None, 2.0, 8.0]) == pytest.approx(2.0)
    assert geometric_mean([None]) is None


def test_ratios_are_means_over_the_damages_that_both_reach() -> None:
    ours, theirs = record(TRANSFORM, row(10, 0.1), row(40, 0.025)), record(TODAY, row(100, 0.1), row(200, 0.05))
    comparison = Comparison.of([ours, theirs], (0.025, 0.05, 0.1))
    assert comparison.ratios(TRANSFORM, TODAY) == pytest.approx((None, 0.1, 0.1))
    assert comparison.ratio(TRANSFORM, TODAY) == pytest.approx(0.1)
    assert comparison.ratio_within(TRANSFORM, TODAY) == pytest.approx(0.1)
    assert comparison.ratio(TRANSFORM, PAPER) is None


def test_records_are_kept_by_cut_and_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "OUT", tmp_path)
    assert records.kept("demo", TODAY) is None
    written = record(TODAY, *POINTS, whole=0.9)
    records.keep(written)
    assert records.kept("demo", TODAY) == written
    assert records.kept("demo", "transform, 0 steps") is None
    records.path_of("demo", TODAY).write_text('{"cut": "demo"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"today\.json is no record of this benchmark .* --again"):
        records.kept("demo", TODAY)


def test_the_page_compares_all_three_at_each_damage() -> None:
    found = [
        record(scheme, *(row(factor * p.bytes, p.damage, score=0.9) for p in POINTS), whole=0.91, cut=cut)
        for cut in ("demo", "vit")
        for scheme, factor in ((TRANSFORM, 1), (TODAY, 4), (PAPER, 10))
    ]
    text = page(found)
    assert "| 0.02: 400 / 1,600 / 4,000 | 0.05: 160 / 640 / 1,600 |" in text
    assert "| 100 / 400 / 1,000 | 0.25 | 0.10 |\n" in text
    assert "| **0.250 / 0.100** | **0.250** | **0.100** |\n" in text
    assert "| demo | 24 | 7 | 3 | -0.50 | 2.00, +25.0% | 1.00, +0.0% |\n" in text
    assert text.count("| p8000 |") == 2
    assert equal.MAX_LOSS == 0.01
    assert "1%: the smallest measured point" in text


def test_the_text_of_a_line_has_no_blanks_and_no_repetitions() -> None:
    steps = np.array([[3, 3, 0, 3, 5, 0, 0], [0, 0, 0, 0, 0, 0, 0], [3, 0, 3, 0, 5, 5, 5]])
    scores = np.eye(6, dtype=np.float32)[steps]
    answers = Text().answers({"scores": scores})
    assert [[ord(c) - 0x4E00 for c in text] for text in answers] == [[3, 3, 5], [], [3, 3, 5]]
    assert Text().agreement(answers, [answers[0], answers[0], answers[2]]) == pytest.approx(2 / 3)


def test_classes_are_scored_against_the_labels() -> None:
    judge = Classes(np.array([1, 0, 2], np.uint8))
    assert judge.score(judge.answers({"y": np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)})) == 2 / 3
    assert Classes().score([0, 1]) is None


def test_lines_to_calibrate_and_to_test_have_no_word_in_common() -> None:
    words = {split: {text.rstrip("0123456789 ") for text in texts(split, 300, 16)} for split in ("calibration", "test")}
    assert len(words["calibration"]) > 100
    assert not words["calibration"] & words["test"]
