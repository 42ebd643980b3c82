"""EdgeSession over a loopback: results, states, and one clear error for each wrong thing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from PIL import Image
from runtime_helpers import CLASSES, Pair, images, make_pair

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import (
    BadResponse,
    DeviceError,
    NonFiniteFeatures,
    ProfileError,
    ShapeMismatch,
    SplitwireError,
    UsageError,
)
from splitwire.codec.profile import METADATA_KEY
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge import session as session_module
from splitwire.runtime_edge.session import EdgeSession, State
from splitwire.runtime_edge.transport import Key, LoopbackTransport, Reply


@pytest.fixture(autouse=True)
def _ids_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "first_frame_id", lambda: 0)


def looped(pair: Pair, **options) -> EdgeSession:
    return EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle), **options)


class Recorder:
    """A transport that answers anything with a reply to frame `frame_id`, and remembers."""

    def __init__(self, frame_id: int = 0) -> None:
        self.frame_id = frame_id
        self.frames: list[bytes] = []
        self.closed = 0

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        self.frames.append(frame)
        return Reply(
            outputs={}, frame_id=self.frame_id, decode_ms=0, back_ms=0, bytes_sent=len(frame), bytes_received=0
        )

    def close(self) -> None:
        self.closed += 1


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("two_tensors", [False, True])
@pytest.mark.parametrize("op", [None, "n2", "n4"])
def test_split_gives_the_back_of_the_coded_features(tmp_path: Path, two_tensors: bool, op: str | None):
    pair = make_pair(tmp_path, two_tensors=two_tensors)
    x = images(3)
    names = [t.name for t in pair.profile.tensors]
    features = ort.InferenceSession(str(pair.front)).run(names, {"x": x})
    codec = FeatureCodec(pair.profile)
    frame = codec.encode(features, op=op, frame_id=0)
    feeds = dict(zip(names, codec.decode(frame).tensors, strict=True))
    expected = ort.InferenceSession(str(pair.back)).run(None, feeds)

    with looped(pair) as session:
        result = session.infer(x, op=op)

    assert list(result.outputs) == ["logits", "best"]  # in graph order
    for got, wanted in zip(result.outputs.values(), expected, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    assert result.op == (op or "n4")
    assert result.frame_bytes == result.bytes_sent == len(frame)
    elements = 3 * sum(t.elements for t in pair.profile.tensors)
    assert result.bits_per_element == 8 * len(frame) / elements
    t = result.timings
    assert min(t.front, t.encode, t.network, t.decode, t.back) >= 0
    assert t.total == pytest.approx(t.front + t.encode + t.network + t.decode + t.back)
    assert result.attempts == 1


def test_the_operating_point_is_the_sessions_unless_a_frame_names_one(pair: Pair):
    with looped(pair, op="n2") as session:
        assert session.infer(images()).op == "n2"
        assert session.infer(images(), op="n4").op == "n4"
        assert session.infer(images()).op == "n2"


def test_stages_are_of_use_alone(pair: Pair):
    with looped(pair) as session:
        features = session.run_front(images(2)).features
        assert [f.shape for f in features] == [(2, 4, 8, 8)]
        frame = session.encode(features, op="n2", frame_id=7)
        reply = session.send(frame, frame_id=7)
        assert reply.outputs["logits"].shape == (2, CLASSES)


def test_outputs_belong_to_the_caller(pair: Pair):
    with looped(pair) as session:
        logits = session.infer(images()).outputs["logits"]
    logits += 1  # writable, and alive after the session


def test_frame_ids_count_up(pair: Pair):
    recorder = Recorder()
    session = EdgeSession(pair.front, transport=recorder)
    for i in range(3):
        recorder.frame_id = i
        session.infer(images())
    codec = FeatureCodec(pair.profile)
    assert [codec.decode(f).frame_id for f in recorder.frames] == [0, 1, 2]


def test_threads_may_share_a_session(pair: Pair):
    with looped(pair) as session, ThreadPoolExecutor(4) as pool:
        alone = [session.infer(images(seed=i)).outputs["logits"] for i in range(24)]
        shared = list(pool.map(lambda i: session.infer(images(seed=i)).outputs["logits"], range(24)))
    np.testing.assert_array_equal(alone, shared)


def test_pictures_go_through_the_profiles_preprocessing(pair: Pair, tmp_path: Path):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    with looped(pair) as session:
        x = session.preprocess(picture)
        assert x.shape == (1, 3, 8, 8)
        expected = session.infer(x).outputs["logits"]
        np.testing.assert_array_equal(session.infer_image(picture).outputs["logits"], expected)
        np.testing.assert_array_equal(session.infer_image(tmp_path / "a.png").outputs["logits"], expected)
        np.testing.assert_array_equal(session.infer_image(str(tmp_path / "a.png")).outputs["logits"], expected)
        with pytest.raises(UsageError, match="no such file"):
            session.infer_image(tmp_path / "b.png")


def test_networks_that_fix_the_batch(tmp_path: Path):
    pair = make_pair(tmp_path, batch=2)
    cloud = CloudSession(pair.back)
    cloud.warm_up()
    with EdgeSession(pair.front, transport=LoopbackTransport(cloud.handle)) as session:
        session.warm_up()
        assert session.input_shape == (2, 3, 8, 8)
        assert session.infer(images(2)).outputs["logits"].shape == (2, CLASSES)
        with pytest.raises(ShapeMismatch, match=r"takes a \(2, 3, 8, 8\) float32 array; got \(3, 3, 8, 8\)"):
            session.infer(images(3))
        one = images(1)
        filled = session.infer(one).outputs["logits"]  # with a copy of itself
        np.testing.assert_array_equal(filled, session.infer(np.concatenate([one, one])).outputs["logits"][:1])
    frame = FeatureCodec(pair.profile).encode([np.zeros((3, 4, 8, 8), np.float32)])
    with pytest.raises(ShapeMismatch, match="'tiny-0' takes a batch of 2 and no other; the frame holds 3"):
        cloud.infer(frame)


def test_warm_up_sends_nothing(pair: Pair):
    recorder = Recorder()
    EdgeSession(pair.front, transport=recorder).warm_up()
    assert recorder.frames == []


# ------------------------------------------------------------------ states


def test_states(pair: Pair):
    recorder = Recorder()
    session = EdgeSession(pair.front, transport=recorder)
    seen = [session.state]
    with session:
        seen.append(session.state)
        session.infer(images())
    assert [*seen, session.state] == [State.NEW, State.OPEN, State.CLOSED]
    session.close()
    session.close()
    assert recorder.closed == 1
    for use in (
        lambda: session.infer(images()),
        lambda: session.run_front(images()),
        lambda: session.encode([]),
        lambda: session.send(b"", frame_id=0),
        session.warm_up,
        session.__enter__,
    ):
        with pytest.raises(UsageError, match="this EdgeSession is closed; make a new one"):
            use()


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("x", "given"),
    [
        (np.zeros((1, 3, 8, 9), np.float32), "(1, 3, 8, 9) float32"),
        (np.zeros((3, 8, 8), np.float32), "(3, 8, 8) float32"),
        (np.zeros((1, 1, 3, 8, 8), np.float32), "(1, 1, 3, 8, 8) float32"),
        (np.zeros((1, 8, 8, 3), np.float32), "(1, 8, 8, 3) float32"),
        (np.zeros((0, 3, 8, 8), np.float32), "(0, 3, 8, 8) float32"),
        (np.zeros((1, 3, 8, 8), np.float64), "(1, 3, 8, 8) float64"),
        (np.zeros((1, 3, 8, 8), np.uint8), "(1, 3, 8, 8) uint8"),
        ([[1.0]], "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_input_says_what_was_expected_and_what_came(pair: Pair, x: object, given: str):
    recorder = Recorder()
    with EdgeSession(pair.front, transport=recorder) as session, pytest.raises(ShapeMismatch) as caught:
        session.infer(x)  # type: ignore[arg-type]  # a wrong type on purpose
    assert str(caught.value) == f"the front takes a (B, 3, 8, 8) float32 array; got {given}"
    assert recorder.frames == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_not_sent(pair: Pair, value: float):
    x = images()
    x[0, 0, 0, 0] = value
    recorder = Recorder()
    with EdgeSession(pair.front, transport=recorder) as session, pytest.raises(NonFiniteFeatures):
        session.infer(x)
    assert recorder.frames == []


def test_a_reply_to_another_frame_is_refused(pair: Pair):
    with (
        EdgeSession(pair.front, transport=Recorder(frame_id=99)) as session,
        pytest.raises(BadResponse, match="answered frame 99, this was frame 0"),
    ):
        session.infer(images())


def test_unknown_operating_point(pair: Pair):
    with pytest.raises(ProfileError, match=r"'n9' is not in this profile; it has n2, n4"):
        looped(pair, op="n9")
    with looped(pair) as session, pytest.raises(ProfileError, match="n9"):
        session.infer(images(), op="n9")


def test_no_preprocessing(tmp_path: Path):
    pair = make_pair(tmp_path, pictures=False)
    with looped(pair) as session, pytest.raises(UsageError, match="exported without preprocessing"):
        session.infer_image("a.png")


# ------------------------------------------------------------------ wrong files


def resaved(pair: Pair, path: Path, profile: str | None) -> Path:
    model = onnx.load(str(pair.front))
    del model.metadata_props[:]
    if profile is not None:
        helper.set_model_props(model, {METADATA_KEY: profile})
    onnx.save(model, str(path))
    return path


def test_files_that_are_no_front(pair: Pair, tmp_path: Path):
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    cut_short = tmp_path / "short.onnx"
    cut_short.write_bytes(pair.front.read_bytes()[:-100])
    other = pair.profile.to_json().replace('"name":"feature"', '"name":"elsewhere"')
    cases: list[tuple[Path, type[SplitwireError], str]] = [
        (tmp_path / "none.onnx", UsageError, "no such file; make it with `splitwire export`"),
        (tmp_path, UsageError, "is a folder; name the file in it, front.onnx for the edge"),
        (text, ProfileError, "is not a graph that ONNX Runtime can open"),
        (cut_short, ProfileError, "is not a graph that ONNX Runtime can open"),
        (pair.back, UsageError, "is the back half, for `splitwire cloud serve`; the edge runs its front.onnx"),
        (resaved(pair, tmp_path / "bare.onnx", None), ProfileError, "carries no splitwire profile"),
        (resaved(pair, tmp_path / "damaged.onnx", "{"), ProfileError, "codec profile is damaged"),
        (resaved(pair, tmp_path / "other.onnx", other), ProfileError, "does not make the tensor 'elsewhere'"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind) as caught:
            EdgeSession(path, transport=Recorder())
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_provider_and_bad_threads(pair: Pair):
    with pytest.raises(
        DeviceError, match=r"'NoSuchProvider' is not here; this ONNX Runtime has .*CPUExecutionProvider"
    ):
        EdgeSession(pair.front, transport=Recorder(), providers=["NoSuchProvider"])
    with pytest.raises(UsageError, match=r"threads must be from 1 to \d+, is 0; this machine has \d+ cores"):
        EdgeSession(pair.front, transport=Recorder(), threads=0)


# ------------------------------------------------------------------ what it must not need


def test_the_edge_needs_neither_torch_nor_onnx_nor_the_cloud():
    """(Numba imports scipy by itself where it is installed.)"""
    code = (
        "import sys, splitwire.runtime_edge.session, splitwire.runtime_edge.transport\n"
        "import splitwire.commands.edge.command\n"
        "heavy = {'torch', 'onnx', 'starlette', 'uvicorn', 'PIL', 'splitwire.runtime_cloud'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
