"""Operating points: entropy-constrained ones, and bake.write_default, another default for a pair that is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import DISK_FAULTS, disk_full, inputs

import splitwire
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import FingerprintMismatch, ProfileError, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.tables import Taps
from splitwire.exporter.pair import bake


def export(model, out, **options):
    options = {"cut": "layer1", "calibration": inputs(4), "levels": (2, 4)} | options
    return splitwire.export(model, out=out, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.slow
def test_entropy_constrained_points_have_the_rate_and_less_error(model, tmp_path):
    result = export(model, tmp_path, calibration=inputs(64), levels=("e4", 2, 4, "e2"))
    profile = result.profile
    assert [p.name for p in profile.operating_points] == ["n2", "e2", "n4", "e4"]
    assert [[o.kind.name for o in own] for own in result.options] == [["n2", "n4", "e2", "e4"]]
    front = ort.InferenceSession(result.front, providers=["CPUExecutionProvider"])
    features = front.run([t.name for t in profile.tensors], {front.get_inputs()[0].name: inputs(64)})
    codec = FeatureCodec(profile)
    figures = {}
    for point in profile.operating_points:
        frame = codec.encode(features, op=point.name)
        error = np.square(codec.decode(frame).tensors[0] - features[0]).mean()
        figures[point.name] = len(frame), error
        assert 8 * len(frame) / features[0].size == pytest.approx(point.bits_per_element, rel=0.05)  # with heads
    for uniform, constrained in (("n2", "e2"), ("n4", "e4")):
        assert figures[constrained][0] <= 1.02 * figures[uniform][0]
        assert figures[constrained][1] < 0.9 * figures[uniform][1]
    # the uniform points are those that an export without the others makes
    alone = export(model, tmp_path / "alone", calibration=inputs(64)).profile
    assert [p.tensors for p in profile.operating_points[0:3:2]] == [p.tensors for p in alone.operating_points]


# Which coder


class Mixing(torch.nn.Module):
    """24 channels that are mixtures of three."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 1), torch.nn.ReLU())
        self.head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(24, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.mix(x))
        return y


@pytest.mark.slow
def test_the_predictive_coder_where_channels_share_something(tmp_path):
    """Its points need clearly fewer bits and decode to the same; `coder="context"` does without, and needs no taps."""
    torch.manual_seed(0)
    network, x = Mixing(), inputs(48)
    pairs = {
        coder: splitwire.export(
            network, cut="mix", calibration=x, out=tmp_path / coder, levels=(4, "r0.5"), coder=coder
        )
        for coder in ("predictive", "context")
    }
    frames, decoded = {}, {}
    for coder, pair in pairs.items():
        assert {t.coder for p in pair.profile.operating_points for t in p.tensors} == {coder}
        assert isinstance(pair.profile.tensors[0].taps, Taps) == (coder == "predictive")
        session = ort.InferenceSession(pair.front, providers=["CPUExecutionProvider"])
        features = session.run(None, {session.get_inputs()[0].name: x})
        codec = FeatureCodec(pair.profile)
        frames[coder] = codec.encode(features, op="n4")
        decoded[coder] = codec.decode(frames[coder]).tensors[0]
        assert 8 * len(frames[coder]) / features[0].size == pytest.approx(
            pair.profile.operating_points[0].bits_per_element, rel=0.08
        )
    np.testing.assert_array_equal(decoded["predictive"], decoded["context"])
    assert len(frames["predictive"]) < 0.8 * len(frames["context"])


def test_no_such_coder(model, tmp_path):
    with pytest.raises(UsageError, match="the coder can be predictive or context, not 'zip'"):
        export(model, tmp_path, coder="zip")
    assert not list(tmp_path.iterdir())


# Another default


def profile_of(path: Path) -> CodecProfile:
    return CodecProfile.from_metadata(
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map, path.name
    )


def test_another_default_changes_nothing_else(model, tmp_path):
    result = export(model, tmp_path, default_op="n2")
    for path in (result.front, result.back):  # metadata of other tools, before and behind the profile
        proto = onnx.load(path)
        ours = proto.metadata_props.pop()
        proto.metadata_props.extend([onnx.StringStringEntryProto(key="a", value="b"), ours])
        proto.metadata_props.add(key="c", value="d" * 1000)
        onnx.save(proto, path)
    before = {path: onnx.load(path) for path in (result.front, result.back)}
    for op in ("n4", "n4", "n2"):  # the last is shorter by nothing, the second is the default already
        bake.write_default(tmp_path, op)
        for path, proto in before.items():
            changed = onnx.load(path)
            profile = profile_of(path)
            assert profile == CodecProfile.from_json(changed.metadata_props[1].value)
            assert profile.default_op == op
            assert profile.fingerprint == result.profile.fingerprint
            assert (profile.front_sha256, profile.back_sha256) == (
                result.profile.front_sha256, result.profile.back_sha256
            )  # fmt: skip
            changed.metadata_props[1].CopyFrom(proto.metadata_props[1])
            assert changed.SerializeToString() == proto.SerializeToString()
    assert sorted(files(tmp_path)) == ["back.onnx", "front.onnx"]


def test_a_new_default_leaves_the_digest_and_the_weights_beside(model, tmp_path):
    result = export(model, tmp_path / "small", default_op="n2")
    front, back = ir.load(result.front), ir.load(result.back)
    out = tmp_path / "large"
    bake.write_pair(front, back, result.profile, out, limit=100)
    beside = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("*.data")}
    assert len(beside) == 2
    bake.write_default(out, "n4")
    bake.write_default(tmp_path / "small", "n4")
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("*.data")} == beside
    assert profile_of(out / "front.onnx").default_op == profile_of(out / "back.onnx").default_op == "n4"
    for path, expected in ((result.front, result.profile.front_sha256), (result.back, result.profile.back_sha256)):
        assert bake.digest(ir.load(path)) == expected


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_fault_leaves_the_old_default(model, tmp_path, monkeypatch, fault):
    export(model, tmp_path, default_op="n2")
    old = files(tmp_path)
    disk_full(monkeypatch, fault)
    with pytest.raises(UsageError, match=r"cannot write the default to .*: No space left on device; nothing was"):
        bake.write_default(tmp_path, "n4")
    assert files(tmp_path) == old
    monkeypatch.undo()
    bake.write_default(tmp_path, "n4")
    assert profile_of(tmp_path / "front.onnx").default_op == profile_of(tmp_path / "back.onnx").default_op == "n4"


def test_two_defaults_of_one_pair_are_repaired(model, tmp_path):
    """What a crash between the two renames leaves."""
    export(model, tmp_path, default_op="n2")
    front = (tmp_path / "front.onnx").read_bytes()
    bake.write_default(tmp_path, "n4")
    (tmp_path / "front.onnx").write_bytes(front)
    bake.write_default(tmp_path, "n4")
    assert profile_of(tmp_path / "front.onnx").default_op == profile_of(tmp_path / "back.onnx").default_op == "n4"


def test_what_cannot_get_a_default(model, tmp_path):
    out, other = tmp_path / "a", tmp_path / "b"
    with pytest.raises(UsageError, match=r"a holds no front\.onnx; name the folder"):
        bake.write_default(out, "n4")
    export(model, out)
    export(model, other, cut="layer2")
    old = files(out)
    with pytest.raises(ProfileError, match=r"operating point 'n3' is not in this profile; it has n2, n4"):
        bake.write_default(out, "n3")
    assert files(out) == old
    (out / "back.onnx").write_bytes(files(other)["back.onnx"])
    with pytest.raises(FingerprintMismatch, match=r"are of two pairs \([0-9a-f]{16} and [0-9a-f]{16}\)"):
        bake.write_default(out, "n4")
    proto = onnx.load(out / "front.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, out / "back.onnx")
    with pytest.raises(ProfileError, match=r"back\.onnx carries no splitwire profile"):
        bake.write_default(out, "n4")
    for damaged in (old["back.onnx"][:-50], b"\xff" * 40, b"not an ONNX file"):
        (out / "back.onnx").write_bytes(damaged)
        with pytest.raises(ProfileError, match=r"back\.onnx is damaged, or no ONNX file"):
            bake.write_default(out, "n4")
    assert files(out)["front.onnx"] == old["front.onnx"]
