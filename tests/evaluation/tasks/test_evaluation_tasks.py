"""The figures of each task: against brute force and plain pycocotools; the bootstrap against the true loss."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from splitwire.codec.errors import UsageError
from splitwire.evaluation.data.coco import Truth
from splitwire.evaluation.data.dataset import Dataset, Item
from splitwire.evaluation.tasks.bootstrap import intervals
from splitwire.evaluation.tasks.tasks import Outcome, Scored, Task, make_task

Answers = dict[str, np.ndarray]


class Targets(Dataset):
    """Images of which only the targets matter."""

    def __init__(self, n: int, targets: Sequence[Any] | None) -> None:
        super().__init__("data", [f"image {i}" for i in range(n)], targets, "digest")

    def item(self, i: int) -> Item:
        target = None if self.targets is None else self.targets[i]
        return Item(name=self.names[i], x=np.zeros((3, 1, 1), np.float32), picture=None, target=target)

    def input_of(self, picture: Image.Image) -> np.ndarray:
        raise NotImplementedError


def judge(task: Task, data: Dataset, outputs: Answers, reference: Answers | None = None) -> list[Outcome]:
    items = [data.item(i) for i in range(len(data))]
    outcomes = task.outcomes(outputs, outputs if reference is None else reference, items)
    return msgspec.json.decode(msgspec.json.encode(outcomes), type=list[Outcome])  # as the store does


def scored(outputs: Answers, data: Dataset, reference: Answers | None = None, **how: Any) -> Scored:
    task = make_task(outputs, data, batch=len(data), **how)
    return task.scored(judge(task, data, outputs, reference))


def logits(n: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, classes)).astype(np.float32)


# Classes


def test_class_figures_are_those_of_brute_force():
    rng = np.random.default_rng(3)
    whole, split = logits(200, 12), logits(200, 12, seed=1) + logits(200, 12)
    split[:20, 3] = split[:20, 7]  # ties go to the smaller number
    targets = rng.integers(12, size=200).tolist()
    right = top5 = agreed = divergence = 0.0
    for a, b, target in zip(whole.astype(np.float64), split.astype(np.float64), targets, strict=True):
        order = sorted(range(12), key=lambda k: (-b[k], k))
        right += order[0] == target
        top5 += target in order[:5]
        agreed += order[0] == max(range(12), key=lambda k: (a[k], -k))
        p, q = (np.exp(z) / np.exp(z).sum() for z in (a, b))
        divergence += float((p * np.log(p / q)).sum())
    expected = {"top1": right, "top5": top5, "agreement": agreed, "kl": divergence}
    figures = scored({"y": split}, Targets(200, targets), {"y": whole}).figures()
    assert figures == pytest.approx({name: total / 200 for name, total in expected.items()})
    assert list(figures) == list(expected)


def test_without_labels_the_figure_is_agreement():
    y, data = {"y": logits(30, 4)}, Targets(30, None)
    task = make_task(y, data, batch=30)
    assert task.main == "agreement"
    assert task.scored(judge(task, data, y)).figures() == pytest.approx({"agreement": 1.0, "kl": 0.0}, abs=1e-12)


def test_top5_needs_more_than_five_classes():
    assert "top5" not in scored({"y": logits(9, 5)}, Targets(9, [0] * 9)).figures()
    assert "top5" in scored({"y": logits(9, 6)}, Targets(9, [0] * 9)).figures()


def test_probabilities_and_logits_give_the_same_figures():
    whole, split = logits(50, 7), logits(50, 7, seed=1)
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (whole, split))
    data = Targets(50, [0] * 50)
    by_logits = scored({"y": split}, data, {"y": whole}).figures()
    assert scored({"y": q}, data, {"y": p}).figures() == pytest.approx(by_logits, rel=1e-4)


def test_class_answers_in_words():
    y, data = {"y": np.array([[0, 9, 0], [9, 0, 0]], np.float32)}, Targets(2, [1, 2])
    task = make_task(y, data, batch=2, labels=("Bag", "Coat", "Shirt"))
    one, two = judge(task, data, y)
    assert (task.answer(one), task.target(data.item(1))) == ("Coat (100%)", "Shirt")
    assert task.disagreement(one, two) > 0 and task.disagreement(one, one) == 0


@pytest.mark.parametrize(
    ("outputs", "targets", "labels", "message"),
    [
        ({"y": np.zeros((2, 3), np.float32)}, [0, 3], None, "data has a class 3, the network has classes 0 to 2"),
        ({"y": np.zeros((2, 3), np.float32)}, [0, 1], ["a", "b"], "2 labels, the network tells 3 classes apart"),
        ({"mask": np.zeros((2, 3, 4), np.float32)}, None, None, "output 'mask' is .* neither classes nor detections"),
    ],
)
def test_outputs_that_do_not_fit(outputs, targets, labels, message):
    with pytest.raises(UsageError, match=message):
        make_task(outputs, Targets(2, targets), batch=2, labels=labels)


def test_answers_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="the network gives NaN"):
        scored({"y": np.full((2, 3), np.nan, np.float32)}, Targets(2, None))


# A user's metric


METRICS = """
import numpy as np
def height(outputs, target):
    return -abs(float(outputs["y"].argmax()) - target)
def first(outputs, target):
    assert outputs["y"].shape == (4,), outputs["y"].shape
    return outputs["y"][0]
def raises(outputs, target):
    raise ValueError("no\\nway")
def word(outputs, target):
    return "good"
def infinite(outputs, target):
    return np.inf
number = 3
"""


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_metrics.py").write_text(METRICS)
    (tmp_path / "broken_metrics.py").write_text("import nowhere_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return tmp_path


def test_a_users_metric_is_averaged(metrics):
    y = {"y": logits(6, 4)}
    before = list(sys.path)
    assert scored(y, Targets(6, [0] * 6), metric="own_metrics:first").figures() == pytest.approx(
        {"first": float(y["y"][:, 0].mean())}
    )
    targets = [3, 1, 0, 2, 2, 1]
    expected = -np.abs(y["y"].argmax(axis=1) - targets).mean()
    assert scored(y, Targets(6, targets), metric="own_metrics:height").figures() == pytest.approx({"height": expected})
    assert sys.path == before


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("own_metrics", "takes module:function.*got 'own_metrics'"),
        ("nowhere_metrics:f", "nowhere_metrics:f cannot be imported: ModuleNotFoundError"),
        ("broken_metrics:f", "broken_metrics:f cannot be imported: .*nowhere_at_all"),
        ("own_metrics:f", "own_metrics:f cannot be imported: AttributeError"),
        ("own_metrics:number", "own_metrics:number is int, not a function"),
        ("own_metrics:raises", "own_metrics:raises raises on image 0: ValueError: no way"),
        ("own_metrics:word", "gives str 'good' on image 0; expected a finite number"),
        ("own_metrics:infinite", "gives float inf on image 0; expected a finite number"),
    ],
)
def test_a_metric_that_fails(metrics, metric, message):
    with pytest.raises(UsageError, match=message) as e:
        scored({"y": logits(2, 4)}, Targets(2, [0, 0]), metric=metric)
    assert "\n" not in str(e.value)


# Detections


def truths(n: int, rng: np.random.Generator) -> list[Truth]:
    targets = []
    for i in range(n):
        k = int(rng.integers(0, 5)) if i else 3
        corner = rng.uniform(0, 80, (k, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (k, 2))], axis=1).astype(np.float32)
        targets.append(Truth(boxes=boxes, labels=rng.integers(1, 4, k), ignored=rng.random(k) < 0.15))
    return targets


def detections(targets: Sequence[Truth], rng: np.random.Generator, rows: int = 12, noise: float = 3.0) -> Answers:
    """Batched: the true boxes with noise, wrong ones among them, unused rows of score 0. All scores differ."""
    n = len(targets)
    boxes = np.zeros((n, rows, 4), np.float32)
    corner = rng.uniform(0, 80, (n, rows, 2))
    boxes[:] = np.concatenate([corner, corner + rng.uniform(10, 40, (n, rows, 2))], axis=2)
    labels = rng.integers(1, 5, (n, rows))  # class 4 is in no image
    scores = (rng.permutation(n * rows).reshape(n, rows) + 1).astype(np.float32) / (2 * n * rows)
    for i, truth in enumerate(targets):
        k = len(truth.labels)
        boxes[i, :k] = truth.boxes + rng.normal(scale=noise, size=(k, 4))
        labels[i, :k] = truth.labels
        scores[i, :k] += np.float32(0.3)
    scores[:, rows - 3 :] = 0
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    return {"boxes": boxes, "scores": scores, "labels": labels}


def plain_coco(targets: Sequence[Truth], answers: Answers, times: Sequence[int]) -> dict[str, float]:
    """Pycocotools' figures, each image repeated as often as it is drawn."""
    images: list[dict[str, int]] = []
    truth: list[dict[str, Any]] = []
    detected: list[dict[str, Any]] = []
    for i, target in enumerate(targets):
        for _ in range(times[i]):
            number = len(images) + 1
            images.append({"id": number})
            for box, label, ignored in zip(target.boxes.tolist(), target.labels, target.ignored, strict=True):
                size = [box[2] - box[0], box[3] - box[1]]
                truth.append({"id": len(truth) + 1, "image_id": number, "category_id": int(label),
                              "bbox": box[:2] + size, "area": size[0] * size[1], "iscrowd": int(ignored)})  # fmt: skip
            for box, score, label in zip(*(answers[n][i].tolist() for n in ("boxes", "scores", "labels")), strict=True):
                if score > 0:
                    detected.append({"image_id": number, "category_id": label, "score": score,
                                     "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {
            "info": {},
            "images": images,
            "annotations": truth,
            "categories": [{"id": c} for c in range(1, 5)],
        }
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(detected), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map50": evaluation.stats[1], "map": evaluation.stats[0]}


def test_precision_is_that_of_pycocotools_run_plainly(capsys):
    rng = np.random.default_rng(0)
    targets = truths(25, rng)
    answers = detections(targets, rng)
    ours = scored(answers, Targets(25, targets))
    expected = plain_coco(targets, answers, [1] * 25)
    assert ours.figures() == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected["map50"] < 0.95 and expected["map"] < expected["map50"]
    assert not capsys.readouterr().out


def test_a_draw_is_that_of_images_repeated():
    rng = np.random.default_rng(1)
    targets = truths(20, rng)
    answers = detections(targets, rng)
    ours = scored(answers, Targets(20, targets))
    counts = np.array([np.bincount(rng.integers(20, size=20), minlength=20) for _ in range(4)])
    drawn = ours.draws(counts)
    for row, times in enumerate(counts.tolist()):
        expected = plain_coco(targets, answers, times)
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(expected, abs=1e-12)


def test_both_layouts_of_detections_are_understood():
    rng = np.random.default_rng(2)
    targets = truths(4, rng)
    answers = detections(targets, rng)
    data = Targets(4, targets)
    task = make_task(answers, data, batch=4)
    single = []
    for i in range(4):
        used = np.flatnonzero(answers["scores"][i] > 0)[::-1]  # in any order, without unused rows
        one = {name: y[i][used] for name, y in answers.items()}
        single += task.outcomes(one, one, [data.item(i)])
    assert single == judge(task, data, answers)


def test_detections_of_another_layout_are_refused():
    answers = {"boxes": np.zeros((2, 5, 4)), "scores": np.zeros((2, 6)), "labels": np.zeros((2, 5))}
    with pytest.raises(UsageError, match=r"boxes \(2, 5, 4\), scores \(2, 6\) .* for 2 images; expected"):
        scored(answers, Targets(2, None))


def test_without_labels_a_detector_is_measured_against_itself():
    rng = np.random.default_rng(4)
    answers = detections(truths(15, rng), rng)
    answers["scores"] *= 1.4  # enough of them confident
    data = Targets(15, None)
    assert scored(answers, data).figures() == pytest.approx({"map50": 1.0, "map": 1.0})
    moved = dict(answers, boxes=answers["boxes"] + rng.normal(scale=4, size=answers["boxes"].shape).astype(np.float32))
    figures = scored(moved, data, answers).figures()
    assert 0 < figures["map"] < figures["map50"] <= 1 and figures["map"] < 0.9


def test_nothing_to_find_anywhere():
    answers = {"boxes": np.zeros((2, 0, 4)), "scores": np.zeros((2, 0)), "labels": np.zeros((2, 0), np.int64)}
    with pytest.raises(UsageError, match="nothing to find in any"):
        scored(answers, Targets(2, None))


def test_nothing_found_is_precision_zero():
    targets = truths(6, np.random.default_rng(5))
    answers = {"boxes": np.zeros((6, 0, 4)), "scores": np.zeros((6, 0)), "labels": np.zeros((6, 0), np.int64)}
    ours = scored(answers, Targets(6, targets))
    assert ours.figures() == ours.figures(np.full(6, 2)) == {"map50": 0.0, "map": 0.0}


def test_detections_in_words():
    box = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    one = {"boxes": box, "scores": np.array([0.9, 0.8, 0.7], np.float32), "labels": np.array([1, 1, 2])}
    two = dict(one, scores=np.array([0.9, 0.8, 0.3], np.float32))
    truth = Truth(boxes=box, labels=np.array([2, 1, 1]), ignored=np.array([True, False, False]))
    data = Targets(1, [truth])
    task = make_task(one, data, batch=1, labels=("nothing", "Bag", "Coat"))
    (a,), (b,) = (judge(task, data, y) for y in (one, two))
    assert (task.answer(a), task.answer(b), task.target(data.item(0))) == ("2 × Bag, Coat", "2 × Bag", "2 × Bag")
    assert task.disagreement(a, b) == task.disagreement(b, a) == 1 and task.disagreement(a, a) == 0


# Bootstrap


def experiment(n: int, seed: int) -> tuple[Scored, Scored]:
    """Two classifiers of two classes, the second with a true loss of 0.04.

    The first is right on 90 % of the images. Each answer of the second differs with a probability of 5 %.
    """
    rng = np.random.default_rng(seed)
    right = rng.random(n) < 0.9
    turned = rng.random(n) < 0.05
    answers = (
        np.where(r, [0.0, 1.0], [1.0, 0.0]).astype(np.float32) for r in (right[:, None], (right ^ turned)[:, None])
    )
    whole, split = (scored({"y": y}, Targets(n, [1] * n)) for y in answers)
    return whole, split


def test_the_paired_interval_covers_the_true_loss_and_is_narrow():
    covered, paired, unpaired = 0, [], []
    for seed in range(40):
        whole, split = experiment(300, seed)
        figures, loss = intervals(whole, split, "top1", replicates=200)
        covered += loss.low <= 0.04 <= loss.high
        assert loss.low <= loss.value <= loss.high
        paired.append(loss.high - loss.low)
        single, _ = intervals(whole, whole, "top1", replicates=200)
        unpaired.append(np.hypot(single["top1"].high - single["top1"].low, figures["top1"].high - figures["top1"].low))
    assert covered >= 34  # of 40; with 95 % intervals there are fewer once in 300 runs
    assert np.mean(paired) < 0.7 * np.mean(unpaired)


def test_the_interval_is_that_of_the_binomial():
    whole, split = experiment(1000, 7)
    figures, _ = intervals(whole, split, "top1")
    p = figures["top1"].value
    assert figures["top1"].high - figures["top1"].low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 1000), rel=0.1)


def test_intervals_are_the_same_every_time():
    whole, split = experiment(100, 1)
    assert intervals(whole, split, "top1") == intervals(*experiment(100, 1), "top1")
    assert intervals(whole, split, "top1") != intervals(whole, split, "top1", seed=1)


def test_where_no_image_is_lost_some_of_others_may_be():
    """The true loss is 1 %. Of 50 images mostly none is lost, and then no draw loses any."""
    held = []
    for seed in range(60):
        lost = np.random.default_rng(seed).random(50) < 0.01
        answers = np.where(lost[:, None], [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
        right = np.tile(np.array([0.0, 1.0], np.float32), (50, 1))
        whole, split = (scored({"y": y}, Targets(50, [1] * 50)) for y in (right, answers))
        _, loss = intervals(whole, split, "top1", replicates=200)
        held.append(loss.high >= 0.01)
        if not lost.any():
            assert (loss.low, loss.value, loss.high) == (0.0, 0.0, 0.06)
    assert sum(held) == 60
    wrong = scored({"y": -right}, Targets(50, [1] * 50))
    _, loss = intervals(wrong, whole, "top1")
    assert (loss.low, loss.value, loss.high) == (-1.0, -1.0, -0.94)
    one = scored({"y": right[:1]}, Targets(1, [1]))
    _, loss = intervals(one, one, "top1")
    assert (loss.low, loss.value, loss.high) == (0.0, 0.0, 1.0)  # never more than all images
    _, loss = intervals(whole, whole, "kl")  # no share of the images: no rule of three
    assert (loss.low, loss.value, loss.high) == (0.0, 0.0, 0.0)


def test_draws_without_anything_to_find_are_left_out():
    rng = np.random.default_rng(8)
    empty = Truth(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), ignored=np.zeros(0, np.bool_))
    targets = [*truths(1, rng), empty, empty]  # a draw misses the first image 8 times in 27
    answers = detections(targets, rng)
    whole = scored(answers, Targets(3, targets))
    assert np.isnan(whole.figures(np.array([0, 1, 2]))["map50"])
    figures, _ = intervals(whole, whole, "map50", replicates=50)
    assert 0 <= figures["map50"].low <= figures["map50"].value <= figures["map50"].high <= 1
