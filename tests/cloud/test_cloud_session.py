"""CloudSession: frames in, outputs out; and for every damaged frame an error of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from runtime_helpers import CLASSES, Pair, make_pair, reheaded, with_chunk_length

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import (
    BitstreamError,
    DeviceError,
    FingerprintMismatch,
    LimitExceeded,
    ProfileError,
    SplitwireError,
    Truncated,
    UnsupportedVersion,
    UsageError,
)
from splitwire.codec.profile import METADATA_KEY
from splitwire.codec.wire.reply import decode_reply
from splitwire.runtime_cloud.repository.models import Models, describe, load_models
from splitwire.runtime_cloud.session import CloudSession


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), two_tensors=True)


@pytest.fixture(scope="module")
def session(pair: Pair) -> CloudSession:
    return CloudSession(pair.back)


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def frame_of(pair: Pair, batch: int = 2, frame_id: int = 5) -> bytes:
    rng = np.random.default_rng(0)
    tensors = [rng.random((batch, *t.shape), dtype=np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, op="n2", frame_id=frame_id)


def test_outputs_in_graph_order_with_times(session: CloudSession, frame: bytes):
    result = session.infer(frame)
    assert list(result.outputs) == ["logits", "best"]
    assert result.outputs["logits"].shape == (2, CLASSES)
    assert result.outputs["best"].dtype == np.int64
    np.testing.assert_array_equal(result.outputs["best"], result.outputs["logits"].argmax(axis=1))
    assert (result.op, result.frame_id, result.batch) == ("n2", 5, 2)
    assert result.decode_ms > 0
    assert result.back_ms > 0


def test_stages_are_of_use_alone(session: CloudSession, frame: bytes):
    decoded = session.decode(frame)
    assert [t.shape for t in decoded.tensors] == [(2, 4, 8, 8), (2, 6)]
    outputs = session.run_back(decoded.tensors)
    np.testing.assert_array_equal(outputs["logits"], session.infer(frame).outputs["logits"])


def test_handle_gives_the_reply(session: CloudSession, frame: bytes):
    reply = decode_reply(session.handle(frame))
    assert reply.frame_id == 5
    np.testing.assert_array_equal(reply.outputs["logits"], session.infer(frame).outputs["logits"])


def test_warm_up(session: CloudSession):
    session.warm_up()


def test_frame_of_another_pair_names_both(session: CloudSession, tmp_path: Path):
    other = make_pair(tmp_path, seed=1, two_tensors=True)
    with pytest.raises(FingerprintMismatch) as caught:
        session.infer(frame_of(other))
    assert session.fingerprint.hex() in str(caught.value)
    assert other.profile.fingerprint.hex() in str(caught.value)


def test_every_prefix_is_truncated(session: CloudSession, frame: bytes):
    for n in range(len(frame)):
        with pytest.raises(Truncated):
            session.infer(frame[:n])


def test_every_flipped_byte_is_found(session: CloudSession, frame: bytes):
    for at in range(len(frame)):
        damaged = bytearray(frame)
        damaged[at] ^= 0x40
        with pytest.raises((BitstreamError, FingerprintMismatch)):
            session.infer(bytes(damaged))


def test_newer_version_and_impossible_lengths(session: CloudSession, frame: bytes):
    with pytest.raises(UnsupportedVersion):
        session.infer(reheaded(frame, major=2))
    with pytest.raises(LimitExceeded):
        session.infer(with_chunk_length(frame, 2_000_000_000))
    with pytest.raises(BitstreamError):
        session.infer(reheaded(frame, batch=65535))


# ------------------------------------------------------------------ wrong files


def resaved(pair: Pair, path: Path, profile: str | None, output_type: int | None = None) -> Path:
    model = onnx.load(str(pair.back))
    del model.metadata_props[:]
    if profile is not None:
        helper.set_model_props(model, {METADATA_KEY: profile})
    if output_type is not None:
        model.graph.node.append(helper.make_node("Cast", ["logits"], ["cast"], to=output_type))
        model.graph.output.append(helper.make_tensor_value_info("cast", output_type, ("batch", CLASSES)))
    onnx.save(model, str(path))
    return path


def test_files_that_are_no_back(pair: Pair, tmp_path: Path):
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    profile = pair.profile.to_json()
    other = profile.replace('"name":"side"', '"name":"elsewhere"')
    string = onnx.TensorProto.STRING
    cases: list[tuple[Path, type[SplitwireError], str]] = [
        (tmp_path / "none.onnx", UsageError, "no such file; make it with `splitwire export`"),
        (text, ProfileError, "is not a graph that ONNX Runtime can open"),
        (pair.front, UsageError, "is the front half, for `splitwire edge run`; the cloud runs its back.onnx"),
        (resaved(pair, tmp_path / "bare.onnx", None), ProfileError, "carries no splitwire profile"),
        (resaved(pair, tmp_path / "damaged.onnx", "[]"), ProfileError, "codec profile is damaged"),
        (resaved(pair, tmp_path / "other.onnx", other), ProfileError, "its own profile makes elsewhere, feature"),
        (resaved(pair, tmp_path / "string.onnx", profile, string), ProfileError, "is tensor(string), which no reply"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind) as caught:
            CloudSession(path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_provider_and_bad_threads(pair: Pair):
    with pytest.raises(DeviceError, match="'NoSuchProvider' is not here"):
        CloudSession(pair.back, providers=["NoSuchProvider"])
    with pytest.raises(UsageError, match="threads must be from 1 to"):
        CloudSession(pair.back, threads=-1)


# ------------------------------------------------------------------ a directory of models


def test_directory_with_one_model_and_with_folders(tmp_path: Path):
    make_pair(tmp_path / "one")
    assert [s.profile.model for s in load_models(tmp_path / "one")] == ["tiny-0"]
    make_pair(tmp_path / "many/a", seed=1)
    make_pair(tmp_path / "many/b", seed=2)
    make_pair(tmp_path / "many/too/deep", seed=3)
    (tmp_path / "many/empty").mkdir()
    models = load_models(tmp_path / "many", threads=1)
    assert [s.profile.model for s in models] == ["tiny-1", "tiny-2"]
    assert len(models) == 2
    for s in models:
        assert models.find(s.fingerprint) is s
        assert models.of_frame(s.fingerprint) is s


def test_a_file_is_served_alone(tmp_path: Path):
    make_pair(tmp_path)
    assert [s.path for s in load_models(tmp_path / "back.onnx")] == [tmp_path / "back.onnx"]
    with pytest.raises(SplitwireError, match=r"front\.onnx"):
        load_models(tmp_path / "front.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(SplitwireError, match=r"text\.onnx"):
        load_models(tmp_path / "text.onnx")


def test_directories_that_cannot_be_served(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    make_pair(tmp_path / "twice/a")
    make_pair(tmp_path / "twice/b")
    for folder, words in {
        "none": "no such directory",
        "empty": "holds no back.onnx, nor does a folder in it",
        "twice": "are the same pair",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_models(tmp_path / folder)
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="no model to serve"):
        Models([])


def test_frame_for_no_model_names_all(tmp_path: Path):
    make_pair(tmp_path / "a", seed=1)
    make_pair(tmp_path / "b", seed=2)
    models = load_models(tmp_path)
    with pytest.raises(FingerprintMismatch) as caught:
        models.of_frame(bytes(8))
    for s in models:
        assert f"{s.fingerprint.hex()} ({s.profile.model})" in str(caught.value)
    assert "00" * 8 in str(caught.value)


def test_description(session: CloudSession):
    assert describe(session) == {
        "name": "tiny-0",
        "cut": "relu",
        "fingerprint": session.fingerprint.hex(),
        "default_op": "n4",
        "operating_points": [
            {"name": "n2", "levels": [2, 2], "bits_per_element": 1.0},
            {"name": "n4", "levels": [4, 4], "bits_per_element": 2.0},
        ],
        "tensors": [
            {"name": "feature", "shape": [4, 8, 8], "dtype": "float32"},
            {"name": "side", "shape": [6], "dtype": "float32"},
        ],
        "outputs": ["logits", "best"],
        "provider": "CPU",
    }


def test_the_cloud_needs_neither_torch_nor_onnx_nor_the_edge():
    code = (
        "import sys, splitwire.runtime_cloud.engines.process, splitwire.commands.cloud.serve\n"
        "heavy = {'torch', 'onnx', 'httpx', 'httpcore', 'PIL', 'splitwire.runtime_edge'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
