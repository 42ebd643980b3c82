"""A pair is calibrated again from its two files alone: the codec fits the new data, the graphs stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporter_helpers import inputs, network, write_images
from typer.testing import CliRunner

import splitwire
from splitwire.cli import app
from splitwire.codec.drift import reference_in
from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.errors import ExportError, FingerprintMismatch, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.transform import Transform
from splitwire.exporter.pair import bake
from splitwire.exporter.recalibrate import open_pair
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.control import Capture
from splitwire.runtime_edge.graph import open_front
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

DARK = np.float32(0.2)
pytestmark = pytest.mark.slow
PICTURES = splitwire.Preprocessing(crop=(16, 16), resize=16)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scalar and a transform pair of one network and one layer."""
    folder = tmp_path_factory.mktemp("pairs")
    common = {"cut": "layer1", "calibration": inputs(40), "preprocessing": PICTURES}
    splitwire.export(network(), out=folder / "scalar", levels=(2, 4, "a4"), **common)  # type: ignore[arg-type]  # names
    splitwire.export(network(), out=folder / "transform", codec="transform", refine=0, **common)  # type: ignore[arg-type]  # names
    return {kind: folder / kind for kind in ("scalar", "transform")}


KINDS = ["scalar", "transform"]


def graph_of(path: Path) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def metadata_of(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def profile_of(folder: Path) -> CodecProfile:
    return CodecProfile.from_metadata(metadata_of(folder / "front.onnx"), "front.onnx")


def answers(folder: Path, x: np.ndarray, op: str | None = None) -> np.ndarray:
    """The first output of the pair."""
    transport = LoopbackTransport(CloudSession(folder / "back.onnx").handle)
    with EdgeSession(folder / "front.onnx", transport=transport) as session:
        return next(iter(session.infer(x, op=op).outputs.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_graphs_stay_and_the_pair_works(pairs: dict[str, Path], tmp_path: Path, kind: str):
    old = pairs[kind]
    result = splitwire.recalibrate(old, calibration=DARK * inputs(40), out=tmp_path)
    for file in ("front.onnx", "back.onnx"):
        assert graph_of(tmp_path / file) == graph_of(old / file)
    before, after = profile_of(old), profile_of(tmp_path)
    assert after == result.profile
    assert after.fingerprint != before.fingerprint
    assert (after.front_sha256, after.back_sha256) == (before.front_sha256, before.back_sha256)
    assert after.front_sha256 == bake.digest(open_pair(tmp_path).front)
    assert [p.name for p in after.operating_points] == [p.name for p in before.operating_points]
    assert (after.preprocessing, after.max_difference) == (before.preprocessing, before.max_difference)
    assert after.calibration_images == 40
    assert after.frames == before.frames
    if kind == "transform":
        ours, theirs = (p.tensors[0].transform for p in (after, before))
        assert isinstance(ours, Transform)
        assert isinstance(theirs, Transform)
        assert (ours.coder, ours.outward) == (theirs.coder, theirs.outward)
    assert len(result.measures) == len(after.operating_points)
    reference = reference_in(metadata_of(tmp_path / "front.onnx"), "front.onnx")
    assert reference is not None
    assert reference.images == 40
    assert reference_in(metadata_of(tmp_path / "back.onnx"), "back.onnx") is None
    assert np.isfinite(answers(tmp_path, inputs(4))).all()


def test_quantizers_fit_the_new_data(pairs: dict[str, Path], tmp_path: Path):
    """On inputs of a fifth of the contrast, the old clipping range is too wide."""
    splitwire.recalibrate(pairs["scalar"], calibration=DARK * inputs(40), out=tmp_path)
    live = DARK * np.random.default_rng(9).standard_normal((64, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        exact = network().eval()(torch.from_numpy(live)).numpy()
    errors = [float(np.abs(answers(folder, live, "n4") - exact).mean()) for folder in (pairs["scalar"], tmp_path)]
    assert errors[1] < 0.7 * errors[0]


def test_tables_fit_the_new_data(pairs: dict[str, Path], tmp_path: Path):
    """At equal steps, new inputs need fewer bytes by the new tables."""
    result = splitwire.recalibrate(pairs["transform"], calibration=DARK * inputs(40), out=tmp_path)
    live = DARK * np.random.default_rng(9).standard_normal((64, 3, 16, 16)).astype(np.float32)
    coefficients = open_front(tmp_path / "front.onnx").run(live).features[0]
    sizes = []
    for profile in (profile_of(pairs["transform"]), result.profile):
        transform = profile.tensors[0].transform
        assert isinstance(transform, Transform)
        payload, _ = TransformRans(transform, profile.tensors[0].shape).encode(coefficients, 52, 52)
        sizes.append(len(payload))
    assert sizes[1] < 0.95 * sizes[0]


def test_the_same_data_gives_the_same_quantizers(pairs: dict[str, Path], tmp_path: Path):
    result = splitwire.recalibrate(pairs["scalar"], calibration=inputs(40), out=tmp_path)
    assert result.profile.operating_points == profile_of(pairs["scalar"]).operating_points


@pytest.mark.parametrize("kind", KINDS)
def test_from_captured_features(pairs: dict[str, Path], tmp_path: Path, kind: str):
    capture = Capture(tmp_path / "sample", max_bytes=10_000_000)
    transport = LoopbackTransport(CloudSession(pairs[kind] / "back.onnx").handle)
    with EdgeSession(pairs[kind] / "front.onnx", transport=transport) as session:
        for x in DARK * inputs(40):
            capture.features(session.run_front(x[None]).features)
    (tmp_path / "sample" / "damaged.npz").write_bytes(b"PK")
    result = splitwire.recalibrate(pairs[kind], calibration=tmp_path / "sample", out=tmp_path / "pair")
    assert result.profile.calibration_images == 40
    assert [s.path for s in result.skipped] == [str(tmp_path / "sample" / "damaged.npz")]
    if kind == "scalar":
        again = splitwire.recalibrate(pairs[kind], calibration=DARK * inputs(40), out=tmp_path / "again")
        assert result.profile == again.profile


def test_in_place_by_the_command_with_pictures(pairs: dict[str, Path], tmp_path: Path):
    """What `edge capture` has collected goes into `export --recalibrate`."""
    shutil.copytree(pairs["transform"], tmp_path / "pair")
    write_images(tmp_path / "pictures", 40)
    before = profile_of(tmp_path / "pair").fingerprint
    front = str(tmp_path / "pair" / "front.onnx")
    sample = str(tmp_path / "sample")
    run = CliRunner().invoke(
        app, ["edge", "capture", str(tmp_path / "pictures"), "--front", front, "--out", sample, "--json"]
    )
    assert run.exit_code == 0, run.output
    captured = json.loads(run.stdout)
    assert len(captured["files"]) == 40
    assert captured["bytes"] == sum(f["bytes"] for f in captured["files"])
    assert max(f["score"] for f in captured["files"]) > 0
    run = CliRunner().invoke(app, ["export", "--recalibrate", str(tmp_path / "pair"), "--data", sample, "--json"])
    assert run.exit_code == 0, run.output
    document = json.loads(run.stdout)
    assert document["exporter"] == "recalibration"
    assert document["calibration_images"] == 40
    assert bytes.fromhex(document["fingerprint"]) == profile_of(tmp_path / "pair").fingerprint != before


# ------------------------------------------------------------------ errors


def said(*arguments: str) -> str:
    run = CliRunner().invoke(app, ["export", *arguments])
    assert isinstance(run.exception, UsageError), run.output
    return str(run.exception)


def test_options_that_the_pair_decides_are_refused(tmp_path: Path):
    common = ["--recalibrate", str(tmp_path), "--data", str(tmp_path)]
    assert said(*common, "--cut", "layer1", "--levels", "4").startswith("--cut, --levels: the pair says that")
    assert said("net.onnx", *common).startswith("MODEL: the pair says that")
    assert said("--data", str(tmp_path)).startswith("MODEL is missing")


def test_wrong_pairs_and_data(pairs: dict[str, Path], tmp_path: Path):
    with pytest.raises(UsageError, match=r"holds no front\.onnx"):
        splitwire.recalibrate(tmp_path, calibration=inputs(8))
    mixed = tmp_path / "mixed"
    shutil.copytree(pairs["scalar"], mixed)
    shutil.copy(pairs["transform"] / "back.onnx", mixed)
    with pytest.raises(FingerprintMismatch, match="are of two pairs"):
        splitwire.recalibrate(mixed, calibration=inputs(8))
    with pytest.raises(UsageError, match="has shape"):
        splitwire.recalibrate(pairs["scalar"], calibration=inputs(8, (3, 8, 8)), out=tmp_path / "x")
    with pytest.raises(ExportError, match="8 or more inputs; there are 4"):
        splitwire.recalibrate(pairs["transform"], calibration=inputs(4), out=tmp_path / "x")
    with pytest.raises(UsageError, match="no images in"):
        (tmp_path / "empty").mkdir()
        splitwire.recalibrate(pairs["scalar"], calibration=tmp_path / "empty", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
