"""`splitwire.evaluate`: its parts, and the whole on a tiny pair, uninterrupted and killed half-way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from evaluations import interval_point
from msgspec import Raw
from PIL import Image
from runtime_helpers import CLASSES, images, make_pair, until

import splitwire
from splitwire.codec import preprocessing
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import FingerprintMismatch, UsageError
from splitwire.evaluation import run
from splitwire.evaluation.answer.choose import choose
from splitwire.evaluation.answer.results import FILE, Estimate, Evaluation, read_results
from splitwire.evaluation.answer.standings import check_budget
from splitwire.evaluation.data.opening import open_data
from splitwire.evaluation.measuring.features import BINS, SAMPLE, describe, designs, sample_size
from splitwire.evaluation.measuring.figures import SHOWN_DISAGREEMENTS
from splitwire.evaluation.measuring.measure import Measurement
from splitwire.evaluation.measuring.pair import Pair
from splitwire.evaluation.measuring.store import FOLDER, Batch, Sending, Store
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.graph import open_front

# ------------------------------------------------------------------ the pair


def whole(folder, x):
    """back(front(x)), by the runtimes themselves."""
    computed = open_front(folder / "front.onnx").run(x)
    return CloudSession(folder / "back.onnx").run_back(computed.features, computed.sizes)


def test_pair_answers_as_the_runtimes_do(tmp_path):
    make_pair(tmp_path, two_tensors=True)
    pair, x = Pair(tmp_path), images(5)
    fronts = pair.front(list(x))
    assert [tuple(t.shape for t in f.features) for f in fronts] == [((1, 4, 8, 8), (1, 6))] * 5
    outputs = pair.back([f.features for f in fronts], fronts)
    expected = whole(tmp_path, x)
    assert list(outputs) == ["logits", "best"]
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-5)
    np.testing.assert_array_equal(outputs["best"], expected["best"])
    assert pair.elements == 4 * 8 * 8 + 6


def test_pair_of_a_fixed_batch_is_filled_up(tmp_path):
    make_pair(tmp_path, batch=4)
    pair, x = Pair(tmp_path), images(4)
    assert pair.batch == pair.smallest == 4
    fronts = pair.front(list(x[:3]))
    outputs = pair.back([f.features for f in fronts], fronts)
    assert len(fronts) == len(outputs["best"]) == 3
    np.testing.assert_allclose(outputs["logits"], whole(tmp_path, x)["logits"][:3], rtol=1e-5)


def test_pair_in_a_folder_below(tmp_path):
    make_pair(tmp_path / "a")
    assert Pair(tmp_path).folder == tmp_path / "a"
    make_pair(tmp_path / "b", seed=1)
    with pytest.raises(UsageError, match=r"holds 2 pairs; name one of them: .*a, .*b"):
        Pair(tmp_path)
    (tmp_path / "b" / "back.onnx").replace(tmp_path / "a" / "back.onnx")
    with pytest.raises(FingerprintMismatch, match=r"are of two pairs \([0-9a-f]{16} and [0-9a-f]{16}\)"):
        Pair(tmp_path / "a")
    with pytest.raises(UsageError, match=r"back\.onnx: no such file"):
        Pair(tmp_path / "b")
    with pytest.raises(UsageError, match=r"nothing: no such folder"):
        Pair(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no front\.onnx"):
        Pair(tmp_path / "empty")


# ------------------------------------------------------------------ what is kept


def batch(n: int) -> Batch:
    return Batch(
        images=(n, n + 1),
        skipped=(("x.png", "x.png: damaged"),),
        sendings={"splitwire n4": Sending(sent=(10, 11), ns=(1_000, 2_000))},
        outcomes={"whole": Raw(msgspec.msgpack.encode([0.1 + 0.2, n]))},
    )


def test_store_gives_back_what_it_was_given(tmp_path):
    store = Store(tmp_path / "out", "pair", b"data")
    assert store.load(0) is None
    assert store.empty
    store.save(0, batch(0))
    store.save(1, batch(7))
    again = Store(tmp_path / "out", "pair", b"data")
    assert not again.empty
    loaded = again.load(1)
    assert loaded is not None
    assert (loaded.images, loaded.skipped, loaded.sendings) == ((7, 8), batch(7).skipped, batch(7).sendings)
    assert msgspec.msgpack.decode(loaded.outcomes["whole"]) == [0.1 + 0.2, 7]


def test_store_of_another_evaluation_is_apart(tmp_path):
    store, other = Store(tmp_path, "pair", "data"), Store(tmp_path, "pairdata", "")
    store.save(0, batch(0))
    assert other.load(0) is None
    other.abandon()
    assert store.load(0) is not None
    store.remove()
    assert not (tmp_path / FOLDER).exists()
    assert tmp_path.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"\xff" + data])
def test_a_damaged_batch_is_measured_again(tmp_path, damage):
    store = Store(tmp_path, "key")
    store.save(3, batch(3))
    (path,) = store.folder.glob("*3.msgpack")
    path.write_bytes(damage(path.read_bytes()))
    assert store.load(3) is None


def test_abandoning_leaves_no_folder_that_was_not_there(tmp_path):
    Store(tmp_path / "new" / "out", "key").abandon()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    Store(tmp_path / "old", "key").abandon()
    assert (tmp_path / "old").is_dir()


def test_a_folder_that_takes_nothing_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file.*name another folder with --out"):
        Store(tmp_path / "file", "key")


# ------------------------------------------------------------------ the choice


def test_the_cheapest_within_the_budget_for_sure():
    points = [
        interval_point("n8", 400, -0.002, 0.001),
        interval_point("n4", 200, 0.001, 0.008),
        interval_point("n3", 150, 0.000, 0.012),  # 0.006 on these images, but it may be more
        interval_point("n2", 100, 0.020, 0.040),
        interval_point("q 30", 10, 0.0, 0.0, family="JPEG"),  # no operating point of splitwire
    ]

    def chosen(max_loss: float) -> str | None:
        point = choose(points, max_loss).chosen
        return None if point is None else point.setting

    assert chosen(0.01) == "n4"
    assert chosen(0.02) == "n3"
    assert chosen(0.5) == "n2"
    assert chosen(0.001 - 1e-12) == "n8"  # binary fractions do not decide
    nothing = choose(points, 0.0)
    assert nothing.chosen is None
    assert nothing.nearest.setting == "n8"


@pytest.mark.parametrize(("value", "figure"), [(-0.1, "top1"), (1.0, "map50"), (float("nan"), "custom")])
def test_what_cannot_be_a_loss(value, figure):
    with pytest.raises(UsageError, match=f"out of range for {figure}; write it as 1% or 0.01"):
        check_budget(value, figure)


def test_a_loss_in_the_unit_of_ones_own_metric():
    check_budget(1.5, "psnr")


# ------------------------------------------------------------------ the features


def test_statistics_of_the_features(tmp_path):
    profile = make_pair(tmp_path, two_tensors=True).profile
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.normal(0, 1, (9, 4, 8, 8)), 0).astype(np.float32)
    maps[0, 0, 0, 0] = 50.0  # outside the bins; it counts in the last one
    flat = rng.normal(3, 2, (9, 6)).astype(np.float32)
    first, second = describe([(maps[i : i + 1], flat[i : i + 1]) for i in range(9)], profile)
    assert (first.name, first.shape, second.name, second.shape) == ("feature", (4, 8, 8), "side", (6,))
    assert first.maximum == 50.0
    assert first.zeros == pytest.approx((maps == 0).mean())
    assert first.edges[0] <= 0.0  # both ends of the clipping range 0 … 2 are shown
    assert 2.0 <= first.edges[-1] < 50.0
    np.testing.assert_allclose(first.channel_means, maps.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(second.channel_deviations, flat.astype(np.float64).std(axis=0), rtol=1e-6)
    for tensor, x in ((first, maps), (second, flat)):
        assert len(tensor.edges) == BINS + 1
        assert sum(tensor.densities) == pytest.approx(1)
        low, high = tensor.edges[100], tensor.edges[140]
        inside = ((x >= low) & (x < high)).mean()
        assert sum(tensor.densities[100:140]) == pytest.approx(inside, abs=2 / x.size)
        assert tensor.mean == pytest.approx(float(x.mean()), rel=1e-5)
    all_designs = list(designs(profile))
    assert [(d.op, d.tensor) for d in all_designs] == [
        ("n2", "feature"), ("n2", "side"), ("n4", "feature"), ("n4", "side"),
    ]  # fmt: skip
    assert all_designs[2].quantizer == profile.operating_points[1].tensors[0].quantizer


def test_the_sample_fits_into_memory():
    assert sample_size(100) == SAMPLE
    assert 4 <= sample_size(15_000_000) < 8
    assert sample_size(1 << 30) == 4


# ------------------------------------------------------------------ all of it

N = 100
"""Seven batches."""


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (N, 12, 10, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, pictures: np.ndarray) -> Path:
    """An .npz whose labels are the whole network's answers for nine of ten images."""
    folder = tmp_path_factory.mktemp("data")
    profile = make_pair(folder).profile
    assert profile.preprocessing is not None
    best = whole(folder, np.stack([preprocessing.apply(Image.fromarray(p), profile.preprocessing) for p in pictures]))
    labels = best["best"].copy()
    labels[::10] = (labels[::10] + 1) % CLASSES
    np.savez(folder / "images.npz", images=pictures, labels=labels)
    return folder / "images.npz"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair. The report is left out: it takes seconds and has its own tests."""
    monkeypatch.setattr(run, "write_report", lambda evaluation, out: (out / "report.html").write_text(evaluation.model))
    make_pair(tmp_path / "pair")
    return tmp_path / "pair"


def test_figures_and_bytes_are_those_of_the_runtimes(pair, data, pictures):
    evaluation = splitwire.evaluate(pair, data, contenders=["zstd", "raw", "jpeg"])
    front, back = open_front(pair / "front.onnx"), CloudSession(pair / "back.onnx")
    codec = FeatureCodec(back.profile)
    assert back.profile.preprocessing is not None
    labels = np.load(data)["labels"]
    sizes, right = [], 0
    for picture, label in zip(pictures, labels, strict=True):
        x = preprocessing.apply(Image.fromarray(picture), back.profile.preprocessing)[None]
        frame = codec.encode(front.run(x).features, op="n2")
        sizes.append(len(frame))
        right += int(back.infer(frame).outputs["best"][0]) == label
    named = {p.name: p for p in evaluation.points}
    ours = named["splitwire n2"]
    assert [p.name for p in evaluation.points[:2]] == ["splitwire n2", "splitwire n4"]
    assert ours.bytes == pytest.approx(np.mean(sizes))
    assert ours.bits_per_element == pytest.approx(8 * np.mean(sizes) / 256)
    assert ours.figures["top1"].value == pytest.approx(right / N)
    assert evaluation.whole["top1"].value == pytest.approx(0.9)
    assert ours.loss.value == pytest.approx(0.9 - right / N)
    assert ours.loss.low <= ours.loss.value <= ours.loss.high
    assert ours.loss.high > ours.loss.low
    # the same symbols in another coder: the same answers, other bytes
    packed = named["zstd 3 of packed symbols n2"]
    assert (packed.figures, packed.loss) == (ours.figures, ours.loss)
    assert packed.bytes != ours.bytes
    assert named["float32"].bytes == 4 * 256
    assert named["float32"].loss == Estimate(value=0.0, low=0.0, high=3 / N)
    assert {p.sends for p in evaluation.points if p.family == "JPEG"} == {"image"}
    assert all(p.encode_ms > 0 for p in evaluation.points)
    assert (evaluation.task, evaluation.figure, evaluation.data.images) == ("classes", "top1", N)
    assert list(evaluation.stages) == ["front", "encode", "decode", "back"]
    assert all(ms > 0 for ms in evaluation.stages.values())
    assert read_results(pair / "evaluation") == evaluation
    assert (pair / "evaluation" / "report.html").read_text() == "tiny-0"
    assert not (pair / "evaluation" / FOLDER).exists()
    assert (evaluation.max_loss, evaluation.chosen, evaluation.default_op) == (None, None, "n4")


def test_images_where_the_answers_differ(pair, data):
    evaluation = splitwire.evaluate(pair, data, contenders=[], limit=60)
    assert evaluation.notes == ("the histograms are of 60 of these images",)
    disagreements = evaluation.disagreements
    share = next(p for p in evaluation.points if p.setting == "n4").figures["agreement"].value
    assert disagreements
    assert len(disagreements) == min(SHOWN_DISAGREEMENTS, round(60 * (1 - share)))
    for differing in disagreements:
        assert differing.whole.rpartition(" (")[0] != differing.split.rpartition(" (")[0]
        assert differing.whole.startswith("label ")
        assert differing.picture is not None and differing.picture.startswith(b"\x89PNG")


def defaults(folder: Path) -> set[str]:
    return {open_front(folder / "front.onnx").profile.default_op, CloudSession(folder / "back.onnx").profile.default_op}


def test_the_chosen_point_becomes_the_default_of_both_graphs(pair, data):
    before = Pair(pair).fingerprint
    evaluation = splitwire.evaluate(pair, data, contenders=[], max_loss=0.9)
    assert evaluation.chosen == evaluation.default_op == "n2"
    assert defaults(pair) == {"n2"}
    assert Pair(pair).fingerprint == before
    files = {name: (pair / name).read_bytes() for name in ("front.onnx", "back.onnx")}
    none = splitwire.evaluate(pair, data, contenders=[], max_loss=0.0)
    assert (none.chosen, none.default_op) == (None, "n2")
    assert files == {name: (pair / name).read_bytes() for name in files}


def test_data_as_arrays_and_open_already(pair, data):
    with np.load(data) as file:
        arrays = dict(file)
    opened = open_data(data, Pair(pair).profile, (None, 3, 8, 8), limit=20, detections=False)
    from_file = splitwire.evaluate(pair, data, contenders=[], limit=20)
    assert figures(splitwire.evaluate(pair, opened, contenders=[])) == figures(from_file)
    from_arrays = splitwire.evaluate(pair, arrays, contenders=[], limit=20)
    assert (from_arrays.points[0].figures, from_arrays.whole) == (from_file.points[0].figures, from_file.whole)
    assert (from_arrays.data.source, from_arrays.data.digest) == ("arrays", from_file.data.digest)


def test_inputs_without_labels_or_pictures(pair, tmp_path):
    np.savez(tmp_path / "inputs.npz", inputs=images(20))
    evaluation = splitwire.evaluate(pair, tmp_path / "inputs.npz", contenders=["raw", "jpeg"])
    assert (evaluation.figure, evaluation.whole["agreement"].value) == ("agreement", 1.0)
    assert {p.family for p in evaluation.points} == {"splitwire", "float32", "float16", "int8"}
    assert [n.split(":")[0] for n in evaluation.notes[:2]] == ["no labels", "the data are arrays of inputs"]
    assert evaluation.notes[-1].startswith("ranges of int8 and of HEVC of features, and the histograms, are of 20 of")
    assert all(d.picture is None and d.target is None for d in evaluation.disagreements)


# ------------------------------------------------------------------ interrupted


def figures(evaluation: Evaluation) -> object:
    """All that must not depend on when it was measured."""
    document = msgspec.to_builtins(evaluation)
    for name in ("created", "command", "stages"):
        del document[name]
    for one in document["points"]:
        del one["encode_ms"]
    return document


SLOW = """
import time
from splitwire.evaluation.measuring.store import Store
save = Store.save
def slow(*batch):
    save(*batch)
    time.sleep(0.5)
Store.save = slow
from splitwire.cli import main
main()
"""


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on_to_the_same_figures(pair, data, tmp_path, monkeypatch):
    out = tmp_path / "killed"
    arguments = ["evaluate", str(pair), "--data", str(data), "--out", str(out), "--contenders", "raw,jpeg"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE)
    with process:
        until(lambda: process.poll() is not None or len([*out.glob(f"{FOLDER}/*/0*.msgpack")]) >= 3, 120)
        assert process.stderr is not None
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
    kept = sorted(int(p.stem) for p in out.glob(f"{FOLDER}/*/0*.msgpack"))
    assert kept == list(range(len(kept)))
    assert 3 <= len(kept) < 7
    assert not (out / FILE).exists()

    measured = []
    batch = Measurement.batch

    def counted(self, p, tick):
        measured.append(p)
        return batch(self, p, tick)

    monkeypatch.setattr(Measurement, "batch", counted)
    told = []
    resumed = splitwire.evaluate(
        pair, data, out=out, contenders=["raw", "jpeg"], progress=lambda *call: told.append(call)
    )
    ticks = [(done, total) for stage, done, total in told if stage == "Images × contenders"]
    passes = ticks[0][1] // resumed.data.images
    assert ticks[0] == (
        16 * (len(kept) * passes + 1),
        resumed.data.images * passes,
    )  # the first pass after the kept batches
    assert ticks[-1][0] == ticks[-1][1]
    # the others stay, their timings too; then all of them with further settings of JPEG
    assert [p.start // 16 for p in measured[: 7 - len(kept)]] == list(range(len(kept), 7))
    further = len(measured) - (7 - len(kept))
    assert further % 7 == 0
    assert not (out / FOLDER).exists()

    through = splitwire.evaluate(pair, data, out=tmp_path / "through", contenders=["raw", "jpeg"])
    assert len(measured) == 7 - len(kept) + 7 + 2 * further
    assert figures(resumed) == figures(through)


def test_other_settings_begin_anew(pair, data, tmp_path, monkeypatch):
    def interrupt(self, index, batch):
        save(self, index, batch)
        if index == 2:
            raise KeyboardInterrupt

    save = Store.save
    monkeypatch.setattr(Store, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        splitwire.evaluate(pair, data, contenders=["raw"])
    monkeypatch.setattr(Store, "save", save)
    assert len([*pair.glob(f"evaluation/{FOLDER}/*/0*.msgpack")]) == 3
    other = splitwire.evaluate(pair, data, contenders=[])
    assert {p.family for p in other.points} == {"splitwire"}
    assert len([*pair.glob(f"evaluation/{FOLDER}/*/0*.msgpack")]) == 3  # the first evaluation's are still there
    same = splitwire.evaluate(pair, data, contenders=["raw"])
    assert not (pair / "evaluation" / FOLDER).exists()
    assert figures(same) == figures(splitwire.evaluate(pair, data, contenders=["raw"]))


def test_a_report_that_cannot_be_written_loses_no_measurement(pair, data, monkeypatch):
    def full(evaluation, out):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", full)
        with pytest.raises(
            UsageError, match=r"cannot write the report to .*: No space left on device; fix it and rerun"
        ):
            splitwire.evaluate(pair, data, contenders=[])
    assert not (pair / "evaluation" / FILE).exists()
    monkeypatch.setattr(Measurement, "batch", None)  # nothing is measured again
    assert splitwire.evaluate(pair, data, contenders=[]).data.images == N
