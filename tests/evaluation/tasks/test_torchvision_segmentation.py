"""mIoU of a segmentation network of torchvision, exported and evaluated with masks, against torch's own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import splitwire
from splitwire.codec import preprocessing
from splitwire.evaluation import run

CLASSES = 3
SIZE = 64
HOW = splitwire.Preprocessing(resize=SIZE, crop=(SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def scenes(folder: Path, count: int) -> None:
    """Pictures of coloured blocks, wider than the crop, with a palette mask of the blocks' classes each."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    colours = rng.integers(0, 256, (CLASSES, 3))
    for i in range(count):
        classes = np.kron(rng.integers(0, CLASSES, (4, 5)), np.ones((SIZE // 4, SIZE // 4), np.int64))
        pixels = np.clip(colours[classes] + rng.normal(0, 20, (*classes.shape, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        classes[:, :20] = 255
        mask = Image.fromarray(classes.astype(np.uint8)).convert("P")
        mask.save(folder / "masks" / f"{i}.png")


@pytest.mark.slow
def test_miou_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "write_report", lambda evaluation, out: None)
    scenes(tmp_path / "data", 6)
    pictures = sorted((tmp_path / "data" / "images").iterdir())
    inputs = torch.from_numpy(np.stack([preprocessing.load(path, HOW) for path in pictures]))
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of these pictures: without them every pixel has the same class
    with torch.no_grad():
        network(inputs)
        answers = network.eval()(inputs)["out"].argmax(1).numpy()
    assert len(np.unique(answers)) == CLASSES

    splitwire.export(
        network, cut="backbone.4", calibration=tmp_path / "data" / "images", out=tmp_path / "pair", task="segmentation",
        preprocessing=HOW, input_shape=(1, 3, SIZE, SIZE), levels=(16,),
    )  # fmt: skip
    evaluation = splitwire.evaluate(tmp_path / "pair", tmp_path / "data", contenders=["raw"])

    counts = np.zeros((CLASSES, CLASSES))
    for path, answer in zip(pictures, answers, strict=True):
        truth = np.array(Image.open(tmp_path / "data" / "masks" / path.name))[:, 8:72]  # the centre crop
        counted = truth != 255
        np.add.at(counts, (truth[counted], answer[counted]), 1)
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    assert evaluation.figure == "miou"
    assert evaluation.whole["miou"].value == pytest.approx(iou.mean(), abs=0.002)
    assert evaluation.whole["pixels"].value == pytest.approx(right.sum() / counts.sum(), abs=0.002)
    points = {p.name: p.figures["agreement"].value for p in evaluation.points}
    assert points["float32"] == 1.0
    assert points["splitwire n16"] > 0.8
