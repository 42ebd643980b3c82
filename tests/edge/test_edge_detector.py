"""`splitwire edge run` on the shipped detector: the boxes that the whole network gives in torch, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runtime_helpers import Pair, serving
from torchvision.transforms import functional as F

import splitwire
from splitwire.commands.edge.command import run
from splitwire.models import detector
from splitwire.models.making import detector_training, scenes
from splitwire.runtime_edge.drawing import color_of

SIZES = {"scene-0.png": (160, 160), "scene-1.png": (320, 240), "scene-2.png": (400, 600)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    compose = scenes.composer("samples", 11)
    x = detector_training.inputs_of(np.stack([compose(i).picture for i in range(100, 108)])).numpy()
    result = splitwire.export(
        detector.load_detector(),
        cut=detector.CUT,
        calibration=x,
        out=tmp_path_factory.mktemp("detector"),
        preprocessing=detector.PREPROCESSING,
        labels=detector.LABELS,
        levels=(16,),
        coder="context",
    )
    return Pair(front=result.front, back=result.back, profile=result.profile)


def torch_boxes(file: Path) -> list[tuple[str, float, np.ndarray]]:
    """Of the whole network in float32, on what torchvision makes of the picture, in pixels of the picture."""
    with Image.open(file) as image:
        width, height = image.size
        x = F.pil_to_tensor(F.resize(image.convert("RGB"), [160, 160])) / 255
    with torch.no_grad():
        found = detector.load_detector()(F.normalize(x, [0.5] * 3, [0.25] * 3)[None])
    scale = np.array([width, height, width, height]) / 160
    return [
        (detector.LABELS[int(label)], float(score), box.numpy() * scale)
        for box, score, label in zip(*(found[k][0] for k in ("boxes", "scores", "labels")), strict=True)
    ]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def test_boxes_are_those_of_torch(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert pair.profile.task == "detection"
    compose = scenes.composer("samples", 11)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(compose(i).picture).resize(size).save(pictures / name)
    with serving(pair) as served:
        run([pictures], front=pair.front, url=served.url, save=tmp_path / "drawn", as_json=True)
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["summary"]["images"] == 3
    seen = 0
    for row in rows:
        wanted = torch_boxes(Path(row["image"]))
        for d in row["detections"]:
            same = [overlap(np.array(d["box"]), box) for label, _, box in wanted if label == d["label"]]
            assert max(same) >= 0.9, d
        for label, score, box in wanted:
            if score > 0.6:  # and nothing that torch is sure of is missing
                seen += 1
                assert max(overlap(np.array(d["box"]), box) for d in row["detections"] if d["label"] == label) >= 0.9
        with Image.open(row["saved"]) as drawn, Image.open(row["image"]) as source:
            factor = drawn.width // source.width
            assert drawn.size == (source.width * factor, source.height * factor)
            best = row["detections"][0]
            left, top, right, bottom = (round(v * factor) for v in best["box"])
            edges = [((left + right) // 2, bottom), (right, (top + bottom) // 2), (left, (top + bottom) // 2)]
            assert color_of(best["index"]) in [drawn.getpixel(p) for p in edges]
    assert seen >= 8
