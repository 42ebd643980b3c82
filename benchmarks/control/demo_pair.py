"""The demo's pair and data for the benchmarks of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import FRONT
from splitwire.codec.shared.progress import ProgressFn
from splitwire.demo.fashion import to_inputs
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import NetworkOptions
from splitwire.models import demo, fashion
from splitwire.runtime_edge.graph import open_front

FOLDER = Path("build/control/demo")
BATCH = 100

Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]


def demo_pair(progress: ProgressFn) -> Path:
    """The folder of the demo's pair with the default codec; exported on the first call."""
    if not (FOLDER / FRONT).is_file():
        export_pair(
            demo.load_network(),
            cut=demo.CUT,
            calibration=to_inputs(demo.calibration_set()),
            out=FOLDER,
            network=NetworkOptions(preprocessing=demo.PREPROCESSING, labels=demo.CLASSES, name=demo.NAME),
            replace=True,
            progress=progress,
        )
    return FOLDER


def test_images() -> tuple[UInt8Array, UInt8Array, str]:
    """Test images (n, 28, 28) uint8, their labels, and where they are from: all 10,000 if the data set is installed,
    else the 1,000 of the package."""
    try:
        images, labels = fashion.read_split(fashion.DEFAULT_FOLDER, "test")
        return images, labels, "the 10,000 test images of Fashion-MNIST"
    except UsageError:
        return *demo.test_set(), "the first 1,000 test images of Fashion-MNIST, which the package holds"


def front_outputs(folder: Path, images: UInt8Array) -> Float32Array:
    """What the front sends of some images, (n, *shape)."""
    graph = open_front(folder / FRONT)
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([graph.run(to_inputs(part)).features[0] for part in parts])
