"""`make reports`: the evaluations under docs/results/, from weights and pictures in packages.

It exports three pairs with operating points of every kind, and evaluates them on pictures that were not used for the
calibration: the demo classifier (with labels), MobileNetV2 on photographs from ImageNet (agreement with the whole
network, because only twenty labels are available offline), and the detector of garments (COCO annotations). The files
stay in build/reports/NAME, and an interrupted evaluation continues. `make reports ARGS=detector` makes one report. The
report "transform" is that of quality/transform_points.py, on the networks that networks/small.py trains and others.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.inputs.photographs import imagenet, natural, write_crops
from benchmarks.networks import small
from benchmarks.quality import transform_points
from splitwire.codec.profile import Preprocessing
from splitwire.console import progress_bar
from splitwire.demo import photos
from splitwire.demo.fashion import to_inputs
from splitwire.evaluation.answer.compare import compare
from splitwire.evaluation.run import evaluate
from splitwire.exporter.calibration.items import Calibration
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import CodecOptions, Network, NetworkOptions
from splitwire.models import demo, detector
from splitwire.models.catalogue import load
from splitwire.models.making import scenes

OUT = Path("build/reports")
PAGES = Path("docs/results")

NUMBERS = (2, 3, 4, 5, 6, 8)
REPORT_LEVELS: tuple[int | str, ...] = (*NUMBERS, *(f"a{n}" for n in NUMBERS), *(f"e{n}" for n in NUMBERS))
BUDGETS = ("r0.1", "r0.15", "r0.2", "r0.25", "r0.3", "r0.35", "r0.4", "r0.5", "r0.6", "r0.7", "r0.8")
MAX_LOSS = 0.01

CALIBRATION_SCENES = 256
TEST_SCENES = 1000
CALIBRATION_SEED, TEST_SEED = 2, 1

CALIBRATION_CROPS, TEST_CROPS = 24, 40
"""Crops of each photograph."""
PHOTO_CUT = "features.18"
"""The last ReLU6, 1280×7×7: nearly all of the work and 63 % of the weights are before it. Without labels every changed
answer counts, also between two classes with nearly equal scores."""


class Task(NamedTuple):
    """A network to export, and the data to evaluate it on. data: the file or folder of the pictures."""

    module: Network
    cut: str
    calibration: Calibration
    preprocessing: Preprocessing
    input_shape: tuple[int, ...]
    name: str
    labels: tuple[str, ...]
    data: Path


def demo_task(folder: Path) -> Task:
    """SqueezeNet on 1,000 labelled garments."""
    images, labels = demo.test_set()
    data = folder / "garments.npz"
    np.savez_compressed(data, images=images, labels=labels)
    return Task(
        demo.load_network(), demo.CUT, to_inputs(demo.calibration_set()), demo.PREPROCESSING,
        (1, 3, *demo.PREPROCESSING.crop), demo.NAME, demo.CLASSES, data,
    )  # fmt: skip


def photographs_task(folder: Path) -> Task:
    """MobileNetV2 on crops of photographs that are not used for the calibration."""
    loaded = load(photos.MODEL, "DEFAULT")
    data = folder / "photographs"
    write_crops(imagenet(), data, count=TEST_CROPS)
    pictures = folder / "calibration"
    write_crops(natural(), pictures, count=CALIBRATION_CROPS)
    return Task(
        loaded.module, PHOTO_CUT, pictures, loaded.preprocessing,
        loaded.input_shape, loaded.name, tuple(loaded.labels or ()), data,
    )  # fmt: skip


def detector_task(folder: Path) -> Task:
    """The leaky-ReLU detector on scenes."""
    data = folder / "scenes"
    scenes.write_coco(data, TEST_SCENES, TEST_SEED, "test")
    pictures = folder / "calibration"
    scenes.write_coco(pictures, CALIBRATION_SCENES, CALIBRATION_SEED, "train")
    return Task(
        detector.load_detector(), detector.CUT, pictures, detector.PREPROCESSING,
        (1, 3, detector.SIDE, detector.SIDE), detector.NAME, detector.LABELS, data / "annotations.json",
    )  # fmt: skip


TASKS: dict[str, Callable[[Path], Task]] = {
    "demo": demo_task,
    "mobilenet_v2": photographs_task,
    "detector": detector_task,
}
TRANSFORM = "transform"
REPORTS = (*TASKS, TRANSFORM)


def main(arguments: Sequence[str]) -> int:
    """Make the named reports, or all."""
    console = Console(stderr=True)
    unknown = set(arguments) - set(REPORTS)
    if unknown:
        console.print(f"there is no report {', '.join(sorted(unknown))}; there are {', '.join(REPORTS)}")
        return 2
    for name in arguments or REPORTS:
        if name == TRANSFORM:
            if status := small.main([]) or transform_points.main(["--page"]):
                return status
            continue
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        task = TASKS[name](folder)
        pair = folder / "pair"
        with progress_bar() as progress:
            export_pair(
                task.module, cut=task.cut, calibration=task.calibration, out=pair,
                network=NetworkOptions(
                    preprocessing=task.preprocessing, input_shape=task.input_shape, name=task.name, labels=task.labels,
                ),
                codec=CodecOptions(levels=(*REPORT_LEVELS, *BUDGETS)), replace=True, progress=progress,
            )  # fmt: skip
            evaluation = evaluate(pair, task.data, out=folder / "evaluation", max_loss=MAX_LOSS, progress=progress)
        shutil.rmtree(PAGES / name, ignore_errors=True)
        shutil.copytree(folder / "evaluation", PAGES / name)
        console.print(*compare(evaluation, MAX_LOSS).verdict, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
