"""The images of an evaluation: every layout gives the right items, every mistake one clear line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_helpers import make_profile
from msgspec.structs import replace
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.evaluation.data.coco import Truth
from splitwire.evaluation.data.dataset import Dataset
from splitwire.evaluation.data.opening import open_data

HOW = Preprocessing(crop=(32, 24), resize=40)
SHAPE = (None, 3, 32, 24)
PROFILE = make_profile(((1, 4, 4),), (2,))
LABELS = ("T-shirt/top", "Bag", "Ankle boot")


def profile(labels: Sequence[str] | None = LABELS, how: Preprocessing | None = HOW) -> CodecProfile:
    return replace(PROFILE, labels=None if labels is None else tuple(labels), preprocessing=how)


def picture(path: Path, size: tuple[int, int] = (60, 50), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def opened(path: Path | Sequence[Path], labels: Sequence[str] | None = LABELS, **how: Any) -> Dataset:
    how = {"detections": False, "classes": 3, **how}
    return open_data(path, profile(labels), SHAPE, **how)


def class_folders(root: Path, *names: str, pictures: int = 2) -> Path:
    for name in names:
        for i in range(pictures):
            picture(root / name / f"{i}.png", seed=i)
    return root


# Class folders


def test_folders_named_after_labels_go_by_name(tmp_path):
    data = opened(class_folders(tmp_path, "ankle_boot", "T-Shirt top"))
    assert dict(zip(data.names, data.targets or (), strict=True)) == {
        "T-Shirt top/0.png": 0, "T-Shirt top/1.png": 0, "ankle_boot/0.png": 2, "ankle_boot/1.png": 2
    }  # fmt: skip
    assert data.labelled and data.item(0).target == 0


def test_folders_named_by_number_go_by_number(tmp_path):
    data = opened(class_folders(tmp_path, "10", "9", "0", pictures=1), labels=None, classes=11)
    assert data.targets == [0, 10, 9]


def test_other_folders_go_in_sorted_order_if_there_are_as_many_as_classes(tmp_path):
    assert opened(class_folders(tmp_path, "n03", "n01", "n02", pictures=1)).targets == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b"), "2 class folders, the network tells 3 classes apart"),
        (("Bag", "Ankle boots"), "'Ankle boots' is none of the network's 3 labels.*nearest: 'Ankle boot'"),
        (("0", "3"), "class folders go up to 3, the network has classes 0 to 2"),
        (("00", "0"), "two class folders have the same number"),
        (("train", "val"), "splits train, val; give one of them"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, names, message):
    with pytest.raises(UsageError, match=message):
        opened(class_folders(tmp_path, *names))


def test_folders_without_a_number_of_classes_need_numbers(tmp_path):
    with pytest.raises(UsageError, match="must be named by class number"):
        opened(class_folders(tmp_path, "a", "b"), labels=None, classes=None)


def test_labels_and_network_that_differ(tmp_path):
    with pytest.raises(UsageError, match="profile has 3 labels, the network tells 5 classes apart"):
        opened(class_folders(tmp_path, "Bag"), classes=5)


def test_half_labelled(tmp_path):
    class_folders(tmp_path, "Bag", "Ankle boot")
    (tmp_path / "T-shirt top").mkdir()
    with pytest.raises(UsageError, match="half labelled: no pictures in 'T-shirt top'"):
        opened(tmp_path)
    (tmp_path / "T-shirt top").rmdir()
    picture(tmp_path / "stray.png")
    with pytest.raises(UsageError, match="half labelled: 1 pictures lie beside its 2 folders"):
        opened(tmp_path)


# Pictures without labels


def test_pictures_without_labels(tmp_path):
    files = [picture(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    (tmp_path / "list.txt").write_text("2.png\n\n0.png\n")
    by_list = opened(tmp_path / "list.txt")
    assert [opened(p).labelled for p in (tmp_path, files, tmp_path / "list.txt", files[0])] == [False] * 4
    assert [len(opened(p)) for p in (tmp_path, files, tmp_path / "list.txt", files[0])] == [3, 3, 2, 1]
    np.testing.assert_array_equal(by_list.item(0).x, preprocessing.load(files[2], HOW))
    assert opened(tmp_path).item(1).target is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "no such file or folder"),
        (lambda p: p, "no images in"),
        (lambda p: p / "notes.md", "is no folder, picture, list"),
        (lambda p: p / "list.txt", "x.png: no such picture"),
        (lambda p: [], "the list of pictures is empty"),
    ],
)
def test_nothing_there(tmp_path, make, message):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "list.txt").write_text("x.png")
    with pytest.raises(UsageError, match=message):
        opened(make(tmp_path))


def test_a_damaged_picture_is_told_when_it_is_read(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    (tmp_path / "c.png").write_text("not a picture")
    data = opened(tmp_path)
    assert data.item(0).x.shape == SHAPE[1:]
    for i, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(UsageError, match=name):
            data.item(i)


def test_without_preprocessing_pictures_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="exported without preprocessing"):
        open_data(tmp_path, profile(how=None), SHAPE, detections=False)
    with pytest.raises(UsageError, match=r"makes \(3, 32, 24\) of a picture, the network takes \(n, 3, 9, 9\)"):
        open_data(tmp_path, profile(), (None, 3, 9, 9), detections=False)


def test_limit_is_spread_over_the_classes(tmp_path):
    data = opened(class_folders(tmp_path, *(n.replace("/", " ") for n in LABELS), pictures=4), limit=3)
    assert sorted(data.targets or ()) == [0, 1, 2]
    with pytest.raises(UsageError, match="at least 1"):
        opened(tmp_path, limit=0)


def test_digest_is_of_names_and_targets_not_of_the_place(tmp_path):
    one, two = (class_folders(tmp_path / n, "Bag", "Ankle boot") for n in ("one", "two"))
    assert opened(one).digest == opened(two).digest
    (two / "Bag").rename(two / "T-shirt top")
    assert opened(one).digest != opened(two).digest
    assert opened(one).digest != opened(one, limit=3).digest


# The picture for an image codec


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(60, 50), (500, 33), (20, 16), (24, 32), (200, 3)])
def test_a_picture_that_is_sent_unchanged_makes_the_same_input(tmp_path, mode, size):
    data = opened(picture(tmp_path / "a.png", size, mode))
    item = data.item(0)
    assert item.picture is not None and item.picture.mode == mode
    assert item.picture.size == (size if size[0] * size[1] < 24 * 32 else (24, 32))
    np.testing.assert_array_equal(data.input_of(item.picture), item.x)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(item.x, preprocessing.apply(image, HOW))


# Arrays


def arrays(path: Path, **content: Any) -> Path:
    np.savez(path, **content)
    return path


def test_arrays_of_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    data = opened(arrays(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 1, 0], np.uint8)), limit=2)
    assert data.names == ("a.npz[1]", "a.npz[3]") and data.targets == [1, 1]
    item = data.item(1)
    assert item.picture is not None and item.picture.mode == "L"
    np.testing.assert_array_equal(item.x, preprocessing.apply(Image.fromarray(images[3]), HOW))
    colour = opened(arrays(tmp_path / "b.npz", images=np.stack([images] * 3, axis=3)))
    np.testing.assert_array_equal(colour.item(3).x, item.x)
    assert not colour.labelled


def test_arrays_of_inputs(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 24)).astype(np.float32)
    data = opened(arrays(tmp_path / "a.npz", inputs=x, labels=np.arange(4) % 3))
    np.testing.assert_array_equal(data.item(2).x, x[2])
    assert data.item(2).picture is None and not data.pictures and data.item(2).target == 2
    with pytest.raises(UsageError, match="no image codec"):
        data.input_of(Image.new("RGB", (24, 32)))
    x[0] += 1
    assert opened(arrays(tmp_path / "b.npz", inputs=x, labels=np.arange(4) % 3)).digest != data.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pixels": np.zeros(3)}, "holds pixels; expected `images`"),
        ({"images": np.zeros((0, 9, 9), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 9, 9), np.float32)}, r"`images` is \(2, 9, 9\) float32; expected"),
        ({"images": np.zeros((2, 9, 9, 4), np.uint8)}, "expected .n, H, W. or"),
        ({"images": np.array([{}, {}])}, "not a readable .npz of plain arrays"),
        ({"inputs": np.zeros((2, 3, 32, 24))}, r"float64; the network takes \(n, 3, 32, 24\) float32"),
        ({"inputs": np.zeros((2, 3, 24, 32), np.float32)}, r"the network takes \(n, 3, 32, 24\)"),
        ({"inputs": np.full((2, 3, 32, 24), np.nan, np.float32)}, "NaN"),
        ({"images": np.zeros((2, 9, 9), np.uint8), "labels": np.zeros(3, int)}, r"`labels` is \(3,\) int64; expected"),
        ({"images": np.zeros((2, 9, 9), np.uint8), "labels": np.zeros(2)}, r"float64; expected \(2,\) integers"),
        ({"images": np.zeros((2, 9, 9), np.uint8), "labels": np.array([0, 3])}, "from 0 to 3; .* classes 0 to 2"),
    ],
)
def test_arrays_that_are_wrong(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        opened(arrays(tmp_path / "a.npz", **content))


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UsageError, match="not a readable"):
        opened(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="no such file"):
        opened(tmp_path / "b.npz")


def test_labels_of_a_users_metric_may_be_anything(tmp_path):
    masks = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    data = opened(arrays(tmp_path / "a.npz", images=np.zeros((2, 9, 9), np.uint8), labels=masks), custom=True)
    np.testing.assert_array_equal(data.item(1).target, masks[1])


# COCO


def coco(path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 50}, {"id": 3, "file_name": "deep/b.png"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "bbox": [10, 30, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [20, 10, 9.5, 4], "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 2, "bbox": [10, 5, 0, 10]},
        ],
        "categories": [{"id": 1, "name": "Bag"}, {"id": 2, "name": "Ankle boot", "supercategory": "shoe"}],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    picture(tmp_path / "pictures" / "a.png", (60, 50))
    picture(tmp_path / "pictures" / "deep" / "b.png", (48, 80))
    return tmp_path / "pictures"


def boxes_of(data: Dataset, i: int) -> Truth:
    target = data.item(i).target
    assert isinstance(target, Truth)
    return target


def test_coco(scenes, tmp_path):
    beside = opened(coco(scenes / "boxes.json"), detections=True)
    by_folder = opened(scenes, detections=True)  # the one .json in the folder
    apart = opened(scenes, annotations=coco(tmp_path / "apart.json"), detections=True)
    assert beside.digest == by_folder.digest == apart.digest and beside.labelled
    assert beside.names == ("a.png", "deep/b.png")
    first, second = (boxes_of(beside, i) for i in (0, 1))
    assert first.labels.tolist() == [1] and first.ignored.tolist() == [True]
    # 48×80 → 40×66 (int(40·80/48)), cropped to 24×32 from (8, 17); the box without width is left out
    assert second.labels.tolist() == [2] and not second.ignored.any()
    scale = np.array([40 / 48, 66 / 80] * 2)
    np.testing.assert_allclose(second.boxes, [np.clip(np.array([10, 30, 30, 50]) * scale - [8, 17, 8, 17], 0, 99)])


def test_coco_of_a_folder_without_annotations_is_unlabelled(scenes):
    data = opened(scenes, detections=True)
    assert len(data) == 2 and not data.labelled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "names no images"),
        ({"annotations": []}, "holds no boxes"),
        ({"images": [{"id": 1}]}, "not a COCO file.*file_name"),
        ({"images": [{"id": 3, "file_name": "a.png"}] * 2}, "two images have the id 3"),
        ({"images": [{"id": i, "file_name": "../a.png"} for i in (3, 7)]}, "not a path below"),
        ({"images": [{"id": 3, "file_name": "a.png"}]}, "annotation 1 is of image 7"),
        ({"categories": [{"id": 1, "name": "Bag"}]}, "annotation 0 is of category 2"),
        ({"categories": [{"id": 1, "name": "Bag"}, {"id": 3, "name": "Hat"}]}, "'Hat' has the id 3.*labels 0 to 2"),
        ({"categories": [{"id": 0, "name": "Bag"}]}, "'Bag' has the id 0, but .* 0 is 'T-shirt/top' and 'Bag' is 1"),
        ({"annotations": [{"image_id": 3, "category_id": 2, "bbox": [1, 2, 3]}]}, "not a COCO file.*length 4"),
        ({"annotations": [{"image_id": 3, "category_id": 2, "bbox": [1, 2, -3, 4]}]}, "expected x, y, width, height"),
        ({"annotations": [{"image_id": 3, "category_id": 2, "bbox": [1e60, 2, 3, 4]}]}, "expected x, y, width, height"),
    ],
)
def test_coco_files_that_are_wrong(scenes, changes, message):
    with pytest.raises(UsageError, match=message) as e:
        opened(coco(scenes / "boxes.json", **changes), detections=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 5000])
def test_files_that_are_no_coco(scenes, content):
    (scenes / "boxes.json").write_bytes(content)
    with pytest.raises(UsageError, match="not a COCO file"):
        opened(scenes / "boxes.json", detections=True)


def test_coco_that_does_not_fit_its_pictures(scenes, tmp_path):
    with pytest.raises(UsageError, match=r"2 of 2 images are not in .*, the first is 'a.png'"):
        opened(coco(tmp_path / "boxes.json"), detections=True)
    with pytest.raises(UsageError, match="this network is no detector"):
        opened(coco(scenes / "boxes.json"))
    picture(scenes / "a.png", (50, 60))
    with pytest.raises(UsageError, match=r"a\.png: the picture is 50x60, its annotations are for 60x50"):
        opened(scenes / "boxes.json", detections=True).item(0)
    coco(scenes / "more.json")
    with pytest.raises(UsageError, match=r"2 \.json files; say with --annotations"):
        opened(scenes, detections=True)


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        Preprocessing(crop=(32, 24), resize=(32, 24)),
        Preprocessing(crop=(32, 24)),
        Preprocessing(crop=(70, 90), resize=None),
        Preprocessing(crop=(33, 91), resize=64),
        Preprocessing(crop=(48, 64), pad=0),
        Preprocessing(crop=(65, 48), pad=0, pad_at="end"),
    ],
)
@pytest.mark.parametrize("size", [(60, 50), (41, 97), (150, 80)])
def test_a_box_lies_where_its_pixels_lie(how, size):
    """A white rectangle goes through the preprocessing; its mapped box encloses the white pixels exactly."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        left, top = (int(rng.integers(0, n - 20)) for n in size)
        right, bottom = left + int(rng.integers(8, 20)), top + int(rng.integers(8, 20))
        image = Image.new("RGB", size)
        image.paste((255, 255, 255), (left, top, right, bottom))
        seen = np.asarray(preprocessing.view(image, how))[:, :, 0] > 127
        scale_x, scale_y, shift_x, shift_y = preprocessing.placement(size, how)
        box = np.array([left * scale_x + shift_x, top * scale_y + shift_y,
                        right * scale_x + shift_x, bottom * scale_y + shift_y])  # fmt: skip
        rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
        clipped = np.clip(box, 0, [how.crop[1], how.crop[0]] * 2)
        if not len(rows):
            assert (clipped[2:] - clipped[:2]).min() < 1
            continue
        light = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(light - clipped).max() <= 0.75
        back = (box - [shift_x, shift_y] * 2) / [scale_x, scale_y, scale_x, scale_y]
        np.testing.assert_allclose(back, [left, top, right, bottom], atol=1e-9)


def test_what_the_crop_cuts_off_is_ignored_or_gone(tmp_path):
    """A centre crop of 24×32 of a 60×50 picture without resizing leaves 18 to 42 across, 9 to 41 down."""
    picture(tmp_path / "a.png", (60, 50))
    annotations = [
        {"image_id": 7, "category_id": 1, "bbox": box} for box in ([20, 12, 10, 10], [0, 12, 22, 10], [0, 0, 9, 9])
    ]
    coco(tmp_path / "boxes.json", images=[{"id": 7, "file_name": "a.png"}], annotations=annotations)
    how = Preprocessing(crop=(32, 24))
    truth = open_data(tmp_path, profile(how=how), SHAPE, detections=True).item(0).target
    np.testing.assert_array_equal(truth.boxes, [[2, 3, 12, 13], [0, 3, 4, 13]])
    assert truth.ignored.tolist() == [False, True]


def test_a_photograph_that_is_turned_is_turned_for_everybody(tmp_path):
    """Boxes are those of the turned picture; an image codec gets a picture that is turned once."""
    exif = Image.Exif()
    exif[0x0112] = 6  # row 0 is at the right: 60×50 as stored, 50×60 as seen
    stored = Image.open(picture(tmp_path / "plain.png", (60, 50)))
    stored.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "plain.png").unlink()
    turned = np.rot90(np.asarray(stored), -1)
    boxes = [{"image_id": 7, "category_id": 1, "bbox": [20, 12, 10, 8]}]
    coco(
        tmp_path / "boxes.json", images=[{"id": 7, "file_name": "a.png", "width": 50, "height": 60}], annotations=boxes
    )
    how = Preprocessing(crop=(60, 50), exif=True, dtype="uint8", layout="nhwc")
    data = open_data(tmp_path, profile(how=how), (None, 60, 50, 3), dtype="uint8", detections=True)
    item = data.item(0)
    np.testing.assert_array_equal(item.x, turned)
    np.testing.assert_array_equal(item.target.boxes, [[20, 12, 30, 20]])
    np.testing.assert_array_equal(np.asarray(item.picture), turned)
    assert item.picture is not None
    np.testing.assert_array_equal(data.input_of(item.picture), turned)
