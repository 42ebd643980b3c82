"""Scenes of garments and the detector for them: what is composed, what is shipped, what it finds, how it is trained."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import CodecOptions, NetworkOptions
from splitwire.exporter.points.damage import Damage
from splitwire.models import detector, fashion
from splitwire.models.making import backgrounds, card, detector_card, detector_training, scenes, train_detector

pytestmark = pytest.mark.slow

FASHION = pytest.mark.skipif(
    not (fashion.DEFAULT_FOLDER / "train-labels-idx1-ubyte.gz").is_file(),
    reason="Debian package dataset-fashion-mnist is not installed",
)
SETTINGS = detector_training.Settings(steps=4, batch=2, warmup=1, threads=1)


@pytest.fixture(scope="module")
def compose() -> scenes.Composer:
    return scenes.composer("samples", 11)


@pytest.fixture(scope="module")
def network() -> detector.Detector:
    return detector.load_detector()


@pytest.fixture(scope="module")
def results() -> detector_card.Results:
    return card.read(detector.RESULTS, detector_card.Results)


@pytest.fixture(scope="module")
def x(compose) -> np.ndarray:
    return detector_training.inputs_of(np.stack([compose(i).picture for i in range(12)])).numpy()


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Scenes


def arrays(scene: scenes.Scene) -> list[bytes]:
    return [a.tobytes() for a in (scene.picture, scene.boxes, scene.labels, scene.owners)]


def test_a_scene_is_its_seed_and_number(compose):
    again = scenes.composer("samples", 11)
    ahead = [arrays(again(i)) for i in (5, 2, 0)]
    assert ahead == [arrays(compose(i)) for i in (5, 2, 0)]
    other = scenes.composer("samples", 12)
    assert (
        len({compose(i).picture.tobytes() for i in range(20)} | {other(i).picture.tobytes() for i in range(20)}) == 40
    )


def test_the_annotations_stay_what_they_are(compose):
    """The figures on the card are of these scenes."""
    parts = (part for i in range(8) for part in (compose(i).boxes.tobytes(), compose(i).labels.tobytes()))
    assert hashlib.sha256(b"".join(parts)).hexdigest()[:16] == "3c2fd485744dd3e2"


def test_boxes_are_tight_around_the_garments(compose):
    seen, photographs = set(), backgrounds.photographs("samples")
    for i in range(150):
        scene = compose(i)
        n = len(scene.boxes)
        assert 1 <= n <= scenes.MAX_GARMENTS
        assert scene.picture.shape == (160, 160, 3)
        assert (scene.boxes >= 0).all() and (scene.boxes <= detector.SIDE).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        covered = np.zeros((detector.SIDE, detector.SIDE), bool)
        for k, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int), start=1):
            covered[y0:y1, x0:x1] = True
            rows, columns = np.nonzero(scene.owners == k)
            assert len(rows), "a garment that nobody sees"
            assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1
            if k == n:  # the last one lies on top, so all of it is seen
                assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        ground = np.rint(backgrounds.any_of(photographs, np.random.default_rng((2, 11, i))))
        np.testing.assert_array_equal(scene.picture[~covered], ground[~covered])
        changed = (scene.picture != ground).any(axis=2) & (scene.owners > 0)
        assert changed.sum() > 0.9 * (scene.owners > 0).sum()
        seen |= set(scene.labels.tolist())
    assert seen == set(range(1, 11))


def test_garments_hardly_overlap(compose):
    for i in range(100):
        boxes = compose(i).boxes
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        common = np.clip(high - low, 0, None).prod(axis=2)
        np.fill_diagonal(common, 0)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        assert (common <= scenes.MAX_COVERED * np.minimum(areas[:, None], areas[None])).all()


def test_a_silhouette_has_the_gap_between_the_legs_and_no_holes():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 8:20] = 200
    image[10:24, 12:16] = 0  # between the legs
    image[6:8, 10:12] = 0  # a black pattern
    image[0, 0] = 5  # the ground is not quite black
    inside = scenes.silhouette(image)
    assert inside[7, 11] == inside[23, 8] == 255
    assert inside[20, 13] == inside[0, 0] == inside[2, 10] == 0


@FASHION
def test_held_out_scenes_share_nothing_with_those_of_the_training():
    assert not set(backgrounds.TRAINING) & set(backgrounds.HELD_OUT)
    train, test = (scenes.composer(split, 1) for split in ("train", "test"))
    assert len({c(i).picture.tobytes() for c in (train, test) for i in range(10)}) == 20


def test_coco_folder(tmp_path, compose, capsys):
    from pycocotools.coco import COCO

    assert scenes.main([str(tmp_path / "a"), "--count", "5", "--seed", "11", "--split", "samples", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {
        "annotations": str(tmp_path / "a" / "annotations.json"), "scenes": 5, "seed": 11, "split": "samples",
    }  # fmt: skip
    scenes.write_coco(tmp_path / "b", 5, 11, "samples")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(5)), "annotations.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    coco = COCO(tmp_path / "a" / "annotations.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(enumerate(fashion.CLASSES, start=1))
    for i, image in enumerate(coco.loadImgs(coco.getImgIds())):
        scene = compose(i)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / image["file_name"])), scene.picture)
        own = coco.loadAnns(coco.getAnnIds(image["id"]))
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        np.testing.assert_array_equal(np.array(boxes), scene.boxes)
        assert [a["category_id"] for a in own] == scene.labels.tolist()


def test_what_cannot_be_composed_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["--count", "0"], "the number of scenes must be at least 1; got 0"),
        (["--data", str(tmp_path / "none")], "apt-get install dataset-fashion-mnist"),
    ):
        assert scenes.main([str(tmp_path / "out"), *arguments]) == 2
        found = capsys.readouterr().err
        assert said in found and found.count("\n") == 1
    assert scenes.main([str(tmp_path / "file"), "--count", "1", "--split", "samples"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(UsageError, match="split must be one of train, test, samples; got 'val'"):
        scenes.composer("val", 1)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UsageError, match=r"scikit-image; `pip install splitwire\[demo\]`"):
        scenes.composer("samples", 1)
    assert not (tmp_path / "out").exists()


# The network


def test_outputs(network, x):
    with torch.inference_mode():
        found = network(torch.from_numpy(x))
        (one,) = [network(torch.from_numpy(x[3:4]))]
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert list(found) == ["boxes", "scores", "labels"]
    assert (boxes.shape, scores.shape, labels.shape) == ((12, 50, 4), (12, 50), (12, 50))
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert boxes.min() >= 0 and boxes.max() <= detector.SIDE and (boxes[..., 2:] >= boxes[..., :2]).all()
    assert scores.min() >= 0 and scores.max() <= 1 and (scores.diff(dim=1) <= 0).all()
    assert labels.min() >= 1 and labels.max() <= 10
    unused = scores == 0
    assert unused.any() and (scores[~unused] >= detector.MIN_SCORE).all()
    assert (boxes[unused] == 0).all() and (labels[unused] == 1).all()
    for name, value in one.items():
        torch.testing.assert_close(found[name][3:4], value, rtol=0, atol=1e-3)


def raw_with(*garments: tuple[int, int, float, int, tuple[float, float, float, float]]) -> torch.Tensor:
    """Of one picture: (row, column) of a cell, logit of a centre there, class 0…9, distances to the sides in pixels."""
    raw = torch.full((1, 15, 20, 20), -12.0)
    raw[:, 11:] = 0
    for row, column, logit, kind, sides in garments:
        raw[0, 0, row, column] = logit
        raw[0, 1 + kind, row, column] = 12.0
        raw[0, 11:, row, column] = torch.tensor(sides).div(8).log()
    return raw


def test_one_garment_is_found_once():
    found = detector.detections(
        raw_with(
            (5, 5, 3.0, 4, (20, 20, 20, 20)),
            (5, 6, 2.0, 4, (28, 20, 12, 20)),  # the cell beside it, less sure: no peak
            (5, 7, 1.0, 6, (36, 20, 4, 20)),  # a peak, but the same box
            (5, 12, 0.0, 6, (20, 20, 20, 20)),  # another garment
        )
    )
    used = found["scores"][0] > 0
    assert found["labels"][0][used].tolist() == [5, 7]
    torch.testing.assert_close(found["scores"][0][used], torch.tensor([3.0, 0.0]).sigmoid(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["boxes"][0][used], torch.tensor([[24.0, 24, 64, 64], [80, 24, 120, 64]]))


def test_training_sees_what_the_edge_will_see(compose, x):
    edge = np.stack(
        [preprocessing.apply(Image.fromarray(compose(i).picture), detector.PREPROCESSING) for i in range(3)]
    )
    np.testing.assert_allclose(x[:3], edge, rtol=0, atol=1e-6)


def test_the_pair(network, x, tmp_path):
    """Cut, calibrated and run by ONNX Runtime, at batches of 1 and 5; the leaky-ReLU model fits its features."""
    made = export_pair(
        network, cut=detector.CUT, calibration=x, out=tmp_path, codec=CodecOptions(levels=(2, 4)),
        network=NetworkOptions(
            preprocessing=detector.PREPROCESSING, labels=detector.LABELS, name=detector.NAME
        ),
    )  # fmt: skip
    assert made.torch_difference is not None and made.torch_difference < 1e-3
    (spec,) = made.profile.tensors
    assert spec.shape == (64, 10, 10)
    assert made.profile.labels == detector.LABELS
    assert [p.tensors[0].clipping.method for p in made.profile.operating_points] == ["leaky_relu_model"] * 2
    assert [m.task for m in made.measures] == ["detections"] * 2
    coarse, fine = (m.agreement for m in made.measures)
    assert coarse is not None and fine is not None
    assert coarse < fine <= 1
    front, back = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (made.front, made.back))
    for part in (x[:1], x[2:7]):
        (features,) = front.run([spec.name], {front.get_inputs()[0].name: part})
        assert (features < 0).any()
        answer = dict(zip(detector_outputs(back), back.run(None, {spec.name: features}), strict=True))
        with torch.inference_mode():
            expected = network(torch.from_numpy(part))
        for name, value in expected.items():
            np.testing.assert_allclose(answer[name], value.numpy(), rtol=0, atol=1e-2)


def detector_outputs(session: ort.InferenceSession) -> list[str]:
    return [o.name for o in session.get_outputs()]


def test_damage_of_a_batch_is_that_of_its_images(network, x):
    with torch.inference_mode():
        before = {k: v.numpy() for k, v in network(torch.from_numpy(x)).items()}
        after = {k: v.numpy() for k, v in network(torch.from_numpy(x + 0.3)).items()}
    together, apart, filled = Damage(list(before)), Damage(list(before)), Damage(list(before))
    together.add(list(before.values()), list(after.values()), len(x))
    filled.add([np.resize(v, (20, *v.shape[1:])) for v in before.values()],
               [np.resize(v, (20, *v.shape[1:])) for v in after.values()], len(x))  # fmt: skip
    for i in range(len(x)):
        apart.add([v[i] for v in before.values()], [v[i] for v in after.values()], 1)
    assert together.task == "detections"
    assert together.agreement is not None and 0.1 < together.agreement < 1
    for other in (apart, filled):
        assert other.agreement == pytest.approx(together.agreement, abs=1e-12)
        assert other.total == pytest.approx(together.total, abs=1e-12)
    mixed = Damage(list(before))
    mixed.add([v[:1] for v in before.values()], [v[1:2] for v in before.values()], 1)
    assert mixed.agreement is not None and mixed.agreement < 0.5, "the boxes of one picture were found in another"


# What is shipped


def test_precision_on_the_shipped_garments(network):
    found = train_detector.precision(network, scenes.composer("samples", 1), 60, split="samples", seed=1)
    assert found.map50 >= 0.8, found
    assert found.garments > 150


def test_precision_counts(compose):
    """Of an oracle it is 1; of one that never finds anything 0."""
    truth = [compose(i) for i in range(4)]

    class Oracle(torch.nn.Module):
        score = 0.0

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            boxes, scores, labels = torch.zeros(4, 50, 4), torch.zeros(4, 50), torch.ones(4, 50, dtype=torch.int64)
            for i, scene in enumerate(truth):
                n = len(scene.labels)
                boxes[i, :n], labels[i, :n] = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
                scores[i, :n] = self.score
            return {"boxes": boxes, "scores": scores, "labels": labels}

    oracle = Oracle()
    for oracle.score in (0.9, 0.0):
        found = train_detector.precision(oracle, compose, 4, split="samples", seed=11)
        present = {label - 1 for scene in truth for label in scene.labels.tolist()}
        expected = pytest.approx(1.0 if oracle.score else 0.0)
        assert found.map50 == found.map == expected
        assert all(found.map50_per_class[c] == expected for c in present)


def test_figures_and_card_are_those_of_the_shipped_weights(network, results):
    content = detector.WEIGHTS.read_bytes()
    assert results.weights_bytes == len(content) <= 5_000_000
    assert results.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert results.parameters == sum(p.numel() for p in network.parameters())
    assert (results.held_out.scenes, results.held_out.split) == (1000, "test")
    assert results.held_out.map50 >= 0.80
    assert train_detector.SHIPPED.card.read_text(encoding="utf-8") == detector_card.render(results)


def test_damaged_weights_are_one_line(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(detector.WEIGHTS.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be read") as e:
        detector.load_detector(path)
    assert "\n" not in str(e.value)


# Training


def test_a_stopped_run_ends_with_the_same_weights(compose, tmp_path):
    losses: dict[str, list[float]] = {"whole": [], "parts": []}

    def train(name: str, path: Path, stop: int | None = None) -> detector.Detector | None:
        def on_step(step: int, loss: float) -> None:
            losses[name].append(loss)

        def on_keep(step: int, network: detector.Detector) -> None:
            if step == stop:
                raise KeyboardInterrupt

        return detector_training.train(
            compose, SETTINGS, path, keep_every=2, workers=0, on_step=on_step, on_keep=on_keep
        )[0]

    whole = train("whole", tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train("parts", tmp_path / "parts.pt", stop=2)
    parts = train("parts", tmp_path / "parts.pt")
    assert whole is not None and parts is not None
    assert losses["whole"] == losses["parts"]
    assert len(losses["whole"]) == 4
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"made with other settings \(batch\)"):
        detector_training.train(compose, detector_training.Settings(steps=4, batch=3, warmup=1, threads=1),
                                tmp_path / "whole.pt", workers=0)  # fmt: skip
    (tmp_path / "whole.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="cannot be read"):
        detector_training.train(compose, SETTINGS, tmp_path / "whole.pt", workers=0)


def test_the_loss_is_least_where_the_answer_is_right(compose):
    pictures, boxes, labels = detector_training.Batches(compose, 4)[0]
    assert pictures.shape == (4, 160, 160, 3)
    centres = detector_training.centres_of(boxes, labels)
    assert ((centres == 1).sum((2, 3)) == (labels > 0)).all(), "each garment has one centre"
    raw = torch.zeros(4, 15, 20, 20)
    raw[:, 0] = -8
    for b, g, y, column in (centres == 1).nonzero().tolist():
        x0, y0, x1, y1 = boxes[b, g].tolist()
        at = (8 * column + 4, 8 * y + 4)
        raw[b, 0, y, column] = 8
        raw[b, labels[b, g], y, column] = 20
        raw[b, 11:, y, column] = torch.tensor([at[0] - x0, at[1] - y0, x1 - at[0], y1 - at[1]]).div(8).log()
    found = detector.detections(raw)
    for b in range(4):
        n = int((labels[b] > 0).sum())
        assert sorted(found["labels"][b][found["scores"][b] > 0.9].tolist()) == sorted(labels[b, :n].tolist())
    right = float(detector_training.loss_of(raw, boxes, labels, SETTINGS))
    for wrong in (
        raw.roll(3, dims=3),
        raw.index_fill(1, torch.tensor([0]), -8),
        raw + 0.5 * torch.eye(15)[12].view(1, 15, 1, 1),
    ):
        assert float(detector_training.loss_of(wrong, boxes, labels, SETTINGS)) > right + 0.01


def test_giou():
    a = torch.tensor([0.0, 0, 10, 10])
    assert float(detector_training.giou(a, a)) == pytest.approx(1)
    assert float(detector_training.giou(a, a + torch.tensor([5.0, 0, 5, 0]))) == pytest.approx(1 / 3)
    assert float(detector_training.giou(a, a + torch.tensor([30.0, 0, 30, 0]))) == pytest.approx(-0.5)


def test_settings_that_make_no_sense():
    for wrong, said in (({"steps": 0}, "steps must be at least 1"), ({"precision": "int8"}, "bfloat16 or float32")):
        with pytest.raises(UsageError, match=said):
            detector_training.Settings(**wrong)
