"""`splitwire.evaluate` of a pair with a transform: the same contenders as of one without, on the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exporter_helpers import SHAPE, write_images

import splitwire
from splitwire import CloudSession, EdgeSession, LoopbackTransport, Preprocessing
from splitwire.evaluation import run
from splitwire.evaluation.answer.results import Evaluation, Point
from splitwire.evaluation.contenders import PAPER_UNIFORM, SPLITWIRE
from splitwire.runtime_cloud.graph import open_back
from splitwire.runtime_edge.graph import open_front

N = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("images"), N)


@pytest.fixture(scope="module")
def pairs(model, pictures, tmp_path_factory) -> dict[str, Path]:
    """One cut of one network, as a scalar pair and as a transform pair."""
    folder = tmp_path_factory.mktemp("pairs")
    for codec in ("scalar", "transform"):
        splitwire.export(
            model, cut="layer1", calibration=pictures, out=folder / codec, codec=codec, refine=0,
            preprocessing=Preprocessing(crop=SHAPE[1:], resize=16),
        )  # fmt: skip
    return {codec: folder / codec for codec in ("scalar", "transform")}


@pytest.fixture(scope="module")
def results(pairs, pictures) -> dict[str, Evaluation]:
    """The report has its own tests, and one below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda evaluation, out: None)
        return {codec: splitwire.evaluate(pair, pictures) for codec, pair in pairs.items()}


def rows(evaluation: Evaluation) -> dict[str, Point]:
    return {point.name: point for point in evaluation.points}


def families(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(point.family for point in evaluation.points))


@pytest.mark.slow
def test_every_row_of_a_scalar_pair_is_there(results):
    """But for the points r, whose ranges are splitwire's for scalar points."""
    scalar, transform = results["scalar"], results["transform"]
    assert families(transform) == [f for f in families(scalar) if f != "paper's coder, our ranges"]
    others = {name for name in rows(scalar) if not name.startswith(SPLITWIRE) and "r0." not in name}
    usual = {name for name in others if "q" not in name}  # a ladder goes as far as the losses ask for
    assert usual <= set(rows(transform))
    assert {f"{PAPER_UNIFORM} n{n}" for n in (2, 3, 4, 6, 8)} <= usual
    assert [p.setting for p in transform.points if p.family == SPLITWIRE] == [f"q{i}" for i in range(1, 9)]


@pytest.mark.slow
def test_rows_of_the_features_are_those_of_the_scalar_pair(results):
    """Both pairs have the same features and the same whole network; only the sample that fixes ranges differs: here it
    is the calibration images themselves."""
    scalar, transform = rows(results["scalar"]), rows(results["transform"])
    assert results["scalar"].whole == results["transform"].whole
    assert results["scalar"].elements == results["transform"].elements == 8 * 8 * 8
    for name in ("float32", "float16", "int8", "HEVC of features qp 30", "JPEG q 50"):
        assert (transform[name].bytes, transform[name].loss) == (scalar[name].bytes, scalar[name].loss), name
    for name in (f"{PAPER_UNIFORM} n4", "zstd 3 of packed symbols n4"):
        assert transform[name].bytes == pytest.approx(scalar[name].bytes, rel=0.01), name
    assert transform["float32"].loss.value == 0
    for one, other in zip(results["transform"].tensors, results["scalar"].tensors, strict=True):
        assert (one.name, one.shape, one.channel_means) == (other.name, other.shape, other.channel_means)
    designs = {codec: {d.op: d for d in e.designs} for codec, e in results.items()}
    assert list(designs["transform"]) == ["n2", "n3", "n4", "n6", "n8"]
    for op, design in designs["transform"].items():
        expected = designs["scalar"][op].quantizer.levels
        np.testing.assert_allclose(design.quantizer.levels, expected, atol=1e-3 * expected[-1])


@pytest.mark.slow
def test_splitwire_is_what_the_runtimes_send(results, pairs, pictures):
    cloud = CloudSession(pairs["transform"] / "back.onnx")
    with EdgeSession(pairs["transform"] / "front.onnx", transport=LoopbackTransport(cloud.handle)) as edge:
        sent = [edge.infer_image(path, op="q3").frame_bytes for path in pictures]
    assert rows(results["transform"])["splitwire q3"].bytes == pytest.approx(np.mean(sent))
    assert all(ms > 0 for ms in results["transform"].stages.values())


@pytest.mark.slow
def test_the_notes_say_what_was_calibrated_on_these_images(results):
    scalar, transform = (results[codec].notes[-1] for codec in ("scalar", "transform"))
    assert scalar.startswith("ranges of int8 and of HEVC of features, and the histograms, are of 12 of these images")
    assert scalar.endswith("splitwire and the paper's codec know the calibration images only")
    assert transform.startswith("ranges of the paper's codec, of the symbols for zstd, of int8 and of HEVC of features")
    assert transform.endswith("are of 12 of these images; splitwire knows the calibration images only")


@pytest.mark.slow
def test_contenders_of_the_features_and_the_report(pairs, pictures, tmp_path):
    result = splitwire.evaluate(
        pairs["transform"], pictures, contenders=["paper"], max_loss=0.9, out=tmp_path / "report"
    )
    assert families(result) == [SPLITWIRE, PAPER_UNIFORM]
    assert result.chosen == result.default_op
    assert open_front(pairs["transform"] / "front.onnx").profile.default_op == result.chosen
    assert open_back(pairs["transform"] / "back.onnx").profile.default_op == result.chosen
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "paper, uniform" in page
    assert "The features" in page
    assert "and their quantizer" not in page
