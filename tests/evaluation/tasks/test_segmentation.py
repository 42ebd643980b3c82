"""mIoU of a segmentation: by hand, against plain scikit-learn, and through a whole evaluation with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from codec_helpers import make_profile
from msgspec.structs import replace
from PIL import Image
from runtime_helpers import CLASSES, make_pair
from sklearn.metrics import accuracy_score, jaccard_score

import splitwire
from splitwire.cli import main
from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.evaluation import run
from splitwire.evaluation.answer.results import read_results
from splitwire.evaluation.data import masks
from splitwire.evaluation.data.dataset import Dataset, Item
from splitwire.evaluation.data.opening import open_data
from splitwire.evaluation.measuring.pair import Pair
from splitwire.evaluation.tasks.bootstrap import intervals
from splitwire.evaluation.tasks.segmentation import SegmentationTask, mean_iou, resized, segmentation_task
from splitwire.evaluation.tasks.tasks import Outcome, Scored, Task, make_task


def scores(maps: Any, classes: int = 3) -> dict[str, np.ndarray]:
    """(B, K, H, W): the class of each pixel has the highest score."""
    return {"out": np.moveaxis(np.eye(classes, dtype=np.float32)[np.asarray(maps)], -1, 1)}


def items(truths: Sequence[Any]) -> list[Item]:
    return [Item(name=str(i), x=np.zeros((3, 1, 1), np.float32), picture=None, target=t) for i, t in enumerate(truths)]


def judged(task: Task, maps: Any, whole: Any, truths: Sequence[Any], classes: int = 3) -> tuple[list[Outcome], Scored]:
    outcomes = task.outcomes(scores(maps, classes), scores(whole, classes), items(truths))
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(outcomes), type=list[Outcome])  # as the store does
    return kept, task.scored(kept)


TRUTH = [np.array([[0, 0, 1], [255, 1, 1]], np.uint8), np.array([[0, 0, 0], [0, 0, 255]], np.uint8)]
WHOLE = [[[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]
SPLIT = [[[0, 1, 1], [2, 1, 0]], [[0, 0, 0], [0, 2, 0]]]


def test_figures_by_hand():
    task = SegmentationTask(3, labelled=True, labels=("wall", "floor", "door"))
    (one, _), split = judged(task, SPLIT, WHOLE, TRUTH)
    # class 0: 5 of 7 found, 1 more: 5 / 8; class 1: 2 of 3 found, 1 more: 2 / 4; class 2 is nowhere in the truth
    assert split.figures() == pytest.approx({"miou": (5 / 8 + 2 / 4) / 2, "pixels": 7 / 10, "agreement": 8 / 12})
    (whole, _), reference = judged(task, WHOLE, WHOLE, TRUTH)
    assert reference.figures() == {"miou": 1.0, "pixels": 1.0, "agreement": 1.0}
    # the first image twice, the second not
    assert split.figures(np.array([2, 0])) == pytest.approx(
        {"miou": (1 / 3 + 2 / 4) / 2, "pixels": 3 / 5, "agreement": 3 / 6}
    )
    assert (task.answer(one), task.target(items(TRUTH)[0])) == ("floor 60%, wall 40%", "floor 60%, wall 40%")
    assert task.disagreement(whole, one) == pytest.approx(3 / 6)
    assert task.disagreement(whole, whole) == 0


def test_without_masks_the_whole_network_is_the_truth():
    task = SegmentationTask(3, labelled=False)
    (one, _), split = judged(task, SPLIT, WHOLE, [None, None])
    # class 0: 6 of 8, 1 more: 6 / 9; class 1: 2 of 4, 1 more: 2 / 5
    assert split.figures() == pytest.approx({"miou": (6 / 9 + 2 / 5) / 2, "agreement": 8 / 12})
    assert task.answer(one) == "class 1 50%, class 0 33%, class 2 17%"
    assert task.target(items([None])[0]) is None


def test_figures_and_draws_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (9, 6, 7)).astype(np.uint8)  # class 5 is in no mask, but in the answers
    truth[rng.random(truth.shape) < 0.1] = 255
    maps = np.where(rng.random(truth.shape) < 0.6, truth % 6, rng.integers(0, 6, truth.shape))
    task = SegmentationTask(6, labelled=True)
    split = judged(task, maps, maps, list(truth), 6)[1]
    reference = judged(task, truth % 6, maps, list(truth), 6)[1]

    def plainly(drawn: Sequence[int]) -> dict[str, float]:
        t, a = (np.concatenate([z[i].ravel() for i in drawn]) for z in (truth, maps))
        t, a = t[t != 255], a[t != 255]
        iou = jaccard_score(t, a, labels=np.unique(t), average="macro")
        return {"miou": iou, "pixels": accuracy_score(t, a), "agreement": 1.0}

    assert split.figures() == pytest.approx(plainly(range(9)))
    for drawn in ([0, 0, 3, 8], [5], list(range(9)) * 2):
        assert split.figures(np.bincount(drawn, minlength=9)) == pytest.approx(plainly(drawn))
    estimates, loss = intervals(reference, split, "miou", replicates=50)
    assert loss.value == pytest.approx(1 - plainly(range(9))["miou"])
    assert estimates["miou"].low < estimates["miou"].value < estimates["miou"].high
    assert split.right("miou") is None


def test_one_pixel_of_a_class_that_is_not_there_costs_a_pixel():
    counts = np.array([[99, 1], [0, 0]])
    assert mean_iou(counts) == pytest.approx(0.99)


def test_an_answer_of_another_size_takes_the_nearest_pixel():
    answer = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(resized(answer, (4, 4)), np.kron(answer, np.ones((2, 2), int)))
    image = Image.fromarray(answer.astype(np.uint8)).resize((5, 3), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resized(answer, (3, 5)), np.array(image))


class Masked(Dataset):
    """Two images with masks of these classes."""

    def __init__(self, *highest: int) -> None:
        targets = [masks.Mask(name=f"{k}.png", source=Path(), highest=k, checksum=0) for k in highest]
        super().__init__("data", ["a"] * len(targets), targets or None, "digest")

    def item(self, i: int) -> Item:
        raise NotImplementedError

    def input_of(self, picture: Image.Image) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("shape", "highest", "message"),
    [
        ((1, 3, 4, 4), (1, 5), r"the mask 5\.png has a class 5, the network has classes 0 to 2 \(255: ignored\)"),
        ((1, 3, 4, 4), (0, -1), "the masks hold no class but 0; 255 means ignored, so write the classes as 0 to 2"),
        ((1, 300, 4, 4), (1,), "masks hold classes 0 to 254, the network has 300; give pictures alone"),
        ((1, 3, 4), (), r"'out' is \(1, 3, 4\) float32; a segmentation is judged by scores \(B, classes, H, W\)"),
        ((1, 1, 4, 4), (), r"'out' is \(1, 1, 4, 4\) float32; a segmentation is judged"),
    ],
)
def test_networks_and_masks_that_do_not_fit(shape, highest, message):
    outputs = {"out": np.zeros(shape, np.float32)}
    with pytest.raises(UsageError, match=message):
        segmentation_task(outputs, Masked(*highest), labels=None)


def test_maps_are_no_task_of_another_network():
    with pytest.raises(UsageError, match="export a segmentation with --task segmentation, or say with --metric"):
        make_task({"out": np.zeros((1, 3, 4, 4), np.float32)}, Masked(), batch=1)


def test_answers_that_are_not_finite_or_not_there_are_refused():
    task = SegmentationTask(3, labelled=True)
    bad = scores([[[0, 1]]])
    bad["out"][0, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="the network gives NaN or infinity"):
        task.outcomes(bad, scores([[[0, 1]]]), items([None]))
    with pytest.raises(UsageError, match="the masks ignore every pixel"):
        judged(task, [[[0, 1]]], [[[0, 1]]], [np.full((1, 2), 255, np.uint8)])


# ------------------------------------------------------------------ masks

HOW = Preprocessing(crop=(8, 10), resize=12)
SHAPE = (None, 3, 8, 10)
PROFILE = replace(make_profile(((1, 4, 4),), (2,)), preprocessing=HOW)


def opened(data: Path | Sequence[Path] | Mapping[str, Any], how: Preprocessing = HOW, **options: Any) -> Dataset:
    options = {"detections": False, "segments": True, **options}
    shape = (None, 3, *how.crop)
    return open_data(data, replace(PROFILE, preprocessing=how), shape, **options)


def folder(
    root: Path, names: tuple[str, str] = ("images", "masks"), n: int = 3, size: tuple[int, int] = (30, 20)
) -> Path:
    """Pictures of this size with masks of blocks, of classes 0 to 3 and ignored pixels."""
    rng = np.random.default_rng(0)
    for i in range(n):
        for name in names:
            (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / names[0] / f"{i}.jpg")
        blocks = rng.choice([0, 1, 2, 3, 255], (4, 5)).astype(np.uint8)
        mask = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
        mask.putpalette(bytes(range(256)) * 3)
        mask.save(root / names[1] / f"{i}.png")
    return root


@pytest.mark.parametrize("names", masks.FOLDERS)
def test_masks_beside_the_pictures_are_seen_as_the_network_sees_these(tmp_path, names):
    data = opened(folder(tmp_path, names))
    assert (data.labelled, data.names) == (True, ("0.jpg", "1.jpg", "2.jpg"))
    for i in range(3):
        mask = Image.open(tmp_path / names[1] / f"{i}.png")
        view = mask.resize((18, 12), Image.Resampling.NEAREST).crop((4, 2, 14, 10))  # shorter side 12, then 10×8
        np.testing.assert_array_equal(data.item(i).target, np.array(view))


def test_a_padded_view_is_ignored_where_there_is_no_picture(tmp_path):
    how = Preprocessing(crop=(10, 10), pad=114)
    data = opened(folder(tmp_path, size=(10, 6)), how)
    target = data.item(0).target
    assert (target[:2] == 255).all() and (target[8:] == 255).all()
    np.testing.assert_array_equal(target[2:8], np.array(Image.open(tmp_path / "masks" / "0.png")))


def test_masks_named_by_the_user(tmp_path):
    folder(tmp_path, ("pictures", "truth"))
    by_folder = opened(tmp_path / "pictures", annotations=tmp_path / "truth")
    (tmp_path / "val.txt").write_text("pictures/2.jpg\npictures/0.jpg\n")
    (tmp_path / "truth" / "1.png").unlink()  # not in the list
    by_list = opened(tmp_path / "val.txt", annotations=tmp_path / "truth")
    one_picture = opened([tmp_path / "pictures" / "0.jpg"], annotations=tmp_path / "truth")
    np.testing.assert_array_equal(by_list.item(0).target, by_folder.item(2).target)
    np.testing.assert_array_equal(one_picture.item(0).target, by_folder.item(0).target)
    assert not opened(tmp_path / "pictures").labelled


def spoil(root: Path, how: str) -> None:
    if how == "missing":
        (root / "masks" / "1.png").unlink()
    elif how == "colours":
        Image.new("RGB", (30, 20)).save(root / "masks" / "0.png")
    elif how == "damaged":
        (root / "masks" / "0.png").write_bytes(b"no picture")
    elif how == "alone":
        (root / "images").rename(root / "photos")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"1 of 3 pictures have no mask in .*masks, the first is 1\.jpg; add a PNG of the same name"),
        (
            "colours",
            r"0\.png: a mask is a PNG of class numbers with 255 for ignored pixels \(mode P or L\); this one is",
        ),
        ("damaged", r"0\.png: not an image file that Pillow can read"),
        ("alone", "holds masks and no images beside it; put the pictures there"),
    ],
)
def test_masks_that_are_not_there_or_no_masks(tmp_path, how, message):
    spoil(folder(tmp_path), how)
    with pytest.raises(UsageError, match=message) as e:
        opened(tmp_path)
    assert "\n" not in str(e.value)


def test_half_missing_masks_are_seen_beyond_the_limit_too(tmp_path):
    spoil(folder(tmp_path), "missing")
    with pytest.raises(UsageError, match="1 of 3 pictures have no mask"):
        opened(tmp_path, limit=1)


def test_annotations_that_are_no_folder(tmp_path):
    folder(tmp_path)
    (tmp_path / "boxes.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"boxes\.json is no folder; for a segmentation --annotations names the folder"
    ):
        opened(tmp_path / "images", annotations=tmp_path / "boxes.json")
    with pytest.raises(UsageError, match="holds boxes, and this network is no detector; its masks come as PNGs"):
        opened(tmp_path / "boxes.json")


def test_a_mask_of_another_size_is_named_and_its_picture_left_out(tmp_path):
    data = opened(folder(tmp_path))
    Image.new("L", (29, 20)).save(tmp_path / "masks" / "1.png")
    with pytest.raises(UsageError, match=r"1\.jpg: the picture is 30x20, its mask 1\.png is 29x20"):
        data.item(1)
    assert data.item(0).target.shape == (8, 10)


ARRAYS = {"images": np.zeros((2, 8, 10, 3), np.uint8), "masks": np.ones((2, 8, 10), np.int64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.ones((1, 8, 10), int)}, r"`masks` is \(1, 8, 10\) int64 for 2 images; expected \(2, H, W\)"),
        (
            {"masks": np.ones((2, 8, 10))},
            r"`masks` is \(2, 8, 10\) float64 for 2 images; expected \(2, H, W\) integers",
        ),
        ({"masks": np.ones((2, 9, 10), int)}, r"`masks` is \(2, 9, 10\), the images are \(2, 8, 10, 3\); a mask has"),
        ({"masks": np.full((2, 8, 10), -1)}, "`masks` go from -1 to -1; expected class numbers from 0 on, 255 for"),
        ({"masks": np.full((2, 8, 10), 256)}, "`masks` go from 256 to 256; expected class numbers from 0 on, 255 for"),
        ({"labels": np.zeros(2, int)}, r"`labels` are class numbers, and this network is a segmentation; give `masks`"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    with pytest.raises(UsageError, match=message):
        opened({**ARRAYS, **change})


def test_arrays_with_masks():
    rows = np.arange(160).reshape(2, 8, 10)
    how = Preprocessing(crop=(8, 10))
    by_pictures = opened({**ARRAYS, "masks": rows}, how)
    inputs = opened({"inputs": np.zeros((2, 3, 8, 10), np.float32), "masks": rows}, how)
    for data in (by_pictures, inputs):
        np.testing.assert_array_equal(data.item(1).target, rows[1])
    assert opened({**ARRAYS, "masks": rows + 1}, how).digest != by_pictures.digest
    with pytest.raises(UsageError, match="holds `masks`, and this network is no segmentation"):
        opened(ARRAYS, segments=False)


# ------------------------------------------------------------------ all of it


def test_an_evaluation_with_masks(tmp_path, capsys, monkeypatch):
    make_pair(tmp_path / "pair", segments=True)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (12, 9, 9, 3), np.uint8)
    pair = Pair(tmp_path / "pair")
    how = pair.profile.preprocessing
    assert how is not None and pair.segments
    fronts = pair.front([preprocessing.apply(Image.fromarray(p), how) for p in pictures])
    answers = pair.back([f.features for f in fronts], fronts)["out"].argmax(axis=1)
    truth = np.where(rng.random(answers.shape) < 0.8, answers, rng.integers(0, CLASSES, answers.shape))
    for i, (picture, mask) in enumerate(zip(pictures, truth, strict=True)):
        for name, array in (("images", picture), ("masks", mask.astype(np.uint8))):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(array).resize((9, 9), Image.Resampling.NEAREST)
            image.save(tmp_path / "data" / name / f"{i:02}.png")
    data = opened(tmp_path / "data", how)
    seen = np.stack([data.item(i).target for i in range(12)])
    expected = jaccard_score(seen.ravel(), answers.ravel(), labels=np.unique(seen), average="macro")

    monkeypatch.setattr(run, "write_report", lambda evaluation, out: None)  # takes seconds; has its own tests
    arguments = ["evaluate", str(tmp_path / "pair"), "--data", str(tmp_path / "data"), "--contenders", "raw"]
    monkeypatch.setattr("sys.argv", ["splitwire", *arguments])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 0
    printed = capsys.readouterr().out
    result = read_results(tmp_path / "pair" / "evaluation")
    assert (result.task, result.figure, result.data.labelled) == ("segments", "miou", True)
    assert result.whole["miou"].value == pytest.approx(expected)
    assert f"whole network: {100 * expected:.2f} % mIoU" in printed
    named = {p.name: p for p in result.points}
    assert named["float32"].loss.value == 0
    assert named["splitwire n2"].loss.value > 0

    unlabelled = splitwire.evaluate(tmp_path / "pair", tmp_path / "data" / "images", contenders=[])
    assert (unlabelled.figure, unlabelled.whole["miou"].value, "pixels" in unlabelled.whole) == ("miou", 1.0, False)
    assert unlabelled.points[0].figures["miou"].value < 1
