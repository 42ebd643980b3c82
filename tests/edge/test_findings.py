"""What outputs are read as: classes, boxes in the picture, segments, values; and how they are drawn."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from PIL import Image
from runtime_helpers import make_pair

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.runtime_edge.drawing import color_of, draw
from splitwire.runtime_edge.findings import Classes, Detections, Segments, Values, find

VIEW: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> CodecProfile:
    """Without labels and task."""
    profile = make_pair(tmp_path_factory.mktemp("pair")).profile
    return msgspec.structs.replace(profile, labels=None)


F = TypeVar("F", Classes, Detections, Segments, Values)


def found_as(kind: type[F], outputs: dict[str, np.ndarray], profile: CodecProfile, **options: Any) -> F:
    """What `find` returns, which must be of this kind."""
    found = find(outputs, profile, **options)
    assert isinstance(found, kind)
    return found


def having(profile: CodecProfile, **fields) -> CodecProfile:
    return msgspec.structs.replace(profile, **fields)


def detector(boxes, scores, labels=None) -> dict[str, np.ndarray]:
    labels = [1] * len(scores) if labels is None else labels
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int64),
    }


# ------------------------------------------------------------------ which task


LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def test_two_dimensions_alone_are_no_classes(plain):
    """A vector of features stays one, whatever softmax would make of it."""
    (value,) = found_as(Values, {"y": LOGITS}, plain).outputs
    assert (value.name, value.shape, value.dtype, value.low, value.high) == ("y", (1, 3), "float32", 1.0, 3.0)
    assert isinstance(find({"y": LOGITS}, having(plain, labels=("a", "b"))), Values)


@pytest.mark.parametrize(
    ("fields", "task"),
    [({"labels": ("a", "b", "c")}, None), ({"task": "classification"}, None), ({}, "classification")],
)
def test_classes(plain, fields, task):
    found = find({"best": np.array([1]), "y": LOGITS}, having(plain, **fields), task=task, top=2)
    assert isinstance(found, Classes)
    expected = np.exp([3, 2]) / np.exp([1, 2, 3]).sum()
    assert [c.index for c in found.top] == [1, 2]
    assert [c.probability for c in found.top] == pytest.approx(expected)
    assert found.top[0].label == ("b" if "labels" in fields else "class 1")


def test_the_output_with_as_many_scores_as_labels_is_the_one(plain):
    outputs = {"embedding": np.zeros((1, 7), np.float32), "y": LOGITS}
    assert found_as(Classes, outputs, having(plain, labels=("a", "b", "c"))).top[0].label == "b"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.25, 0.75], [0.75, 0.25]),  # probabilities
        (np.log([0.25, 0.75]), [0.75, 0.25]),  # their logarithms
        ([0.9, 0.8], [0.9, 0.8]),  # of a sigmoid per class
        ([1000.0, 0.0], [1.0, 0.0]),
    ],
)
def test_what_scores_mean(plain, scores, expected):
    found = found_as(Classes, {"y": np.array([scores], np.float32)}, plain, task="classification")
    assert [c.probability for c in found.top] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "outputs", "message"),
    [
        ("pose", {"y": LOGITS}, "a task is classification, detection, segmentation; got 'pose'"),
        (
            "detection",
            {"y": LOGITS},
            r"outputs y \(1, 3\) float32 are not those of a detection; expected boxes, scores",
        ),
        ("segmentation", {"y": LOGITS}, "are not those of a segmentation; expected scores"),
        (
            "classification",
            {"y": np.full((1, 3), np.nan, np.float32)},
            "not those of a classification; expected finite",
        ),
        ("classification", detector([[0, 0, 1, 1]], [1]), "are not those of a classification"),
        ("detection", detector([[0, 0, 1, 1]] * 2, [1]), "are not those of a detection"),
    ],
)
def test_a_task_that_does_not_fit(plain, task, outputs, message):
    with pytest.raises(UsageError, match=message):
        find(outputs, plain, task=task)


def test_values_that_are_not_finite(plain):
    outputs = {"y": np.array([[np.nan, 2, -np.inf]], np.float32), "none": np.zeros((0, 4), np.float32)}
    first, second = found_as(Values, outputs, having(plain, task="classification")).outputs
    assert (first.low, first.high) == (2.0, 2.0)
    assert (second.low, second.high, second.shape) == (None, None, (0, 4))


# ------------------------------------------------------------------ boxes


def test_padding_and_small_scores_are_not_shown(plain):
    found = found_as(
        Detections,
        detector([[0, 0, 4, 4], [1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 0, 0]], [0.4, 0.9, 0.5, 0.0], [2, 1, 0, 1]),
        having(plain, labels=("nothing", "cat")),
    )
    assert [(d.label, d.index, round(d.score, 3)) for d in found.boxes] == [("cat", 1, 0.9), ("nothing", 0, 0.5)]
    assert (found.below, found.min_score) == (1, 0.5)
    few = found_as(Detections, detector([[0, 0, 4, 4]], [0.4], [7]), plain, min_score=0.1)
    assert few.boxes[0].label == "class 7"
    assert find(detector([], []), plain) == Detections(boxes=(), below=0, min_score=0.5)


def test_a_detector_of_batches(plain):
    one = detector([[0, 0, 4, 4], [0, 0, 0, 0]], [0.9, 0.0])
    assert find({k: v[None] for k, v in one.items()}, plain) == find(one, plain)


@pytest.mark.parametrize(
    ("how", "size", "box"),
    [
        # the whole picture, stretched: x / 2, y / 4
        (Preprocessing(resize=(100, 100), crop=(100, 100), **VIEW), (200, 400), (20, 80, 100, 200)),
        # the shorter side to 100, the middle of the longer: 50 of the 100 pixels left over are on the left
        (Preprocessing(resize=100, crop=(100, 100), **VIEW), (400, 200), (120, 40, 200, 100)),
        # a letterbox: 25 rows above
        (Preprocessing(crop=(100, 100), pad=114, **VIEW), (400, 200), (40, 0, 200, 100)),
        (Preprocessing(crop=(100, 100), pad=114, pad_at="end", **VIEW), (400, 200), (40, 80, 200, 200)),
        # smaller than the crop: 40 black columns on each side
        (Preprocessing(crop=(100, 100), **VIEW), (20, 100), (0, 20, 10, 50)),
    ],
)
def test_boxes_are_in_the_picture(plain, how, size, box):
    """The box (10, 20, 50, 50) of the view, worked out by hand."""
    outputs = detector([[10, 20, 50, 50]], [1])
    profile = having(plain, preprocessing=how)
    assert found_as(Detections, outputs, profile, size=size).boxes[0].box == pytest.approx(box)
    assert found_as(Detections, outputs, profile).boxes[0].box == (10, 20, 50, 50)


def test_boxes_beside_the_picture_and_odd_ones(plain):
    how = Preprocessing(crop=(100, 100), pad=114, **VIEW)
    beside = detector([[0, 0, 50, 20], [0, 0, np.nan, 20], [-5, 30, 500, 90]], [0.9, 0.8, 0.7])
    (only,) = found_as(Detections, beside, having(plain, preprocessing=how), size=(400, 200)).boxes
    assert only.box == pytest.approx((0, 20, 400, 200))


# ------------------------------------------------------------------ segments


def scores(mask: np.ndarray, classes: int) -> np.ndarray:
    planes: np.ndarray = np.eye(classes, dtype=np.float32)[mask].transpose(2, 0, 1)[None]
    return planes


MASK = np.repeat([[0, 0, 0, 2], [0, 0, 2, 2]], 4, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize(
    ("output", "fields"),
    [
        (scores(MASK, 3), {}),
        (scores(MASK, 3).transpose(0, 2, 3, 1), {"labels": ("background", "cat", "dog")}),
        (MASK[None], {}),
        (MASK[None, None].astype(np.uint8), {}),
        (MASK[None, ..., None].astype(np.int32), {}),
    ],
)
def test_segments(plain, output, fields):
    profile = having(plain, preprocessing=None, task="segmentation", **fields)
    found = found_as(Segments, {"out": output}, profile)
    assert [(s.index, s.share) for s in found.classes] == [(0, 0.625), (2, 0.375)]
    assert (found.mask == MASK).all()
    assert found.classes[1].label == ("dog" if fields else "class 2")


@pytest.mark.parametrize("values", [(0.1, 0.9), (-2.0, 3.0)])
def test_one_plane_is_the_foreground(plain, values):
    output = np.where(MASK == 2, values[1], values[0]).astype(np.float32)[None, None]
    found = found_as(Segments, {"out": output}, having(plain, preprocessing=None), task="segmentation")
    assert [(s.index, s.share) for s in found.classes] == [(0, 0.625), (1, 0.375)]


def test_shares_are_of_the_picture_not_of_what_is_filled_up(plain):
    """A letterbox of 8×8 around a picture of 16×8: four rows in the middle; the mask has half the resolution."""
    how = Preprocessing(crop=(8, 8), pad=0, **VIEW)
    mask = np.array([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    profile = having(plain, preprocessing=how, task="segmentation")
    found = found_as(Segments, {"out": scores(mask, 2)}, profile, size=(16, 8))
    assert [(s.index, s.share) for s in found.classes] == [(1, 0.75), (0, 0.25)]
    assert found.mask.tolist() == [[1, 1, 1, 0]] * 2
    assert found.box == (0.0, 0.0, 16.0, 8.0)
    cropped = Preprocessing(resize=8, crop=(8, 8), **VIEW)
    profile = having(plain, preprocessing=cropped, task="segmentation")
    found = found_as(Segments, {"out": scores(mask, 2)}, profile, size=(16, 8))
    assert found.box == (4.0, 0.0, 12.0, 8.0)
    assert found.mask.shape == (4, 4)


# ------------------------------------------------------------------ drawn


def differing(a: Image.Image, b: Image.Image) -> np.ndarray:
    """(H, W): where two pictures of one size differ."""
    different: np.ndarray = (np.asarray(a) != np.asarray(b)).any(axis=2)
    return different


def test_a_box_is_drawn_where_it_is(plain):
    gray = Image.new("RGB", (400, 300), (128, 128, 128))
    found = find(detector([[100, 150, 200, 250]], [0.9]), having(plain, preprocessing=None, labels=("", "cat")))
    drawn = draw(gray, found)
    changed = differing(drawn, gray)
    assert drawn.getpixel((100, 200)) == drawn.getpixel((150, 250)) == color_of(1)
    assert not changed[160:240, 110:190].any()  # inside
    assert not changed[:, :99].any()
    assert not changed[252:].any()
    assert changed[130:150, 100:130].any()  # the name, above
    assert gray.getpixel((100, 200)) == (128, 128, 128)  # what is given stays


def test_names_do_not_cover_each_other(plain):
    gray = Image.new("RGB", (400, 300), (128, 128, 128))
    boxes = detector([[100, 150, 200, 250]] * 3, [0.9, 0.8, 0.7], [1, 2, 3])
    drawn = np.asarray(draw(gray, find(boxes, having(plain, preprocessing=None))))
    areas = [(drawn == color_of(i)).all(axis=2).sum() for i in (1, 2, 3)]
    assert min(areas) > 400


def test_segments_are_drawn_over_the_picture_and_not_the_background(plain):
    gray = Image.new("L", (400, 400), 128)
    profile = having(plain, preprocessing=None, task="segmentation", labels=("__background__", "cat", "dog"))
    found = found_as(Segments, {"out": scores(MASK, 3)}, profile)
    found = Segments(classes=found.classes, mask=found.mask, box=(0, 0, 400, 400))
    drawn = draw(gray, found)
    assert drawn.getpixel((50, 50)) == (128, 128, 128)
    mixed = np.array(drawn.getpixel((390, 390)))
    assert np.abs(mixed - (0.55 * np.array(color_of(2)) + 0.45 * 128)).max() <= 2
    assert drawn.height > 400  # the legend


def test_small_pictures_are_enlarged_and_captioned(plain):
    found = find({"y": LOGITS}, having(plain, labels=("Ångström", "貓 \udcff\n", "c")))
    drawn = draw(Image.new("RGB", (28, 28)), found)
    assert drawn.width == 28 * 13
    assert drawn.height > drawn.width
    values = draw(Image.new("RGBA", (500, 20)), find({"y": LOGITS, "z": LOGITS[0, 0]}, plain))
    assert values.size[0] == 500
