"""The demo network and its data: SqueezeNet 1.1 on Fashion-MNIST. The package contains both, so nothing is downloaded.

Only the network needs torch. The images are NumPy arrays, for installations on the edge.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models.fashion import CLASSES, UInt8Array

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CLASSES", "CUT", "NAME", "PREPROCESSING", "calibration_set", "load_network", "test_set"]

NAME = "fashion_squeezenet1_1"
ARCHITECTURE = "squeezenet1_1"
"""torchvision's builder of the demo network."""
CUT = "features.10"
"""The layer to cut after: a late fire module, 384×3×3 after its ReLUs. It needs few bytes, without loss of accuracy."""

PREPROCESSING = Preprocessing(
    resize=56, crop=(56, 56), interpolation="bilinear", mean=(0.286, 0.286, 0.286), std=(0.353, 0.353, 0.353)
)
"""Grey → RGB with three equal channels → 56×56 → normalised with the training set's mean and deviation."""

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / f"{NAME}.safetensors"
SAMPLES = DATA / "fashion_mnist_samples.npz"
RESULTS = DATA / f"{NAME}.json"


def build_network(dropout: float = 0.5) -> nn.Module:
    """Stock torchvision SqueezeNet 1.1 for ten classes, randomly initialised from torch's global generator."""
    import torchvision

    network: nn.Module = torchvision.models.get_model(ARCHITECTURE, num_classes=len(CLASSES), dropout=dropout)
    return network


def load_network(path: Path = WEIGHTS) -> nn.Module:
    """The trained network, in eval mode, float32: (n, 3, 56, 56) in, (n, 10) class scores ≥ 0 out.

    Raises UsageError if the file is missing, damaged, or not of this network.
    """
    import torch

    from splitwire.models.weights import load_state, read_state

    with torch.device("meta"):  # all values come from the file
        network = build_network()
    load_state(network, read_state(path), str(path))
    return network.eval()


def test_set() -> tuple[UInt8Array, UInt8Array]:
    """The first 1,000 Fashion-MNIST test images: (1000, 28, 28) uint8, and their labels: (1000,) uint8 in 0…9."""
    return _sample("test_images"), _sample("test_labels")


def calibration_set() -> UInt8Array:
    """256 Fashion-MNIST training images, (256, 28, 28) uint8, without labels: for calibration, not for measurements."""
    return _sample("calibration_images")


def _sample(name: str) -> UInt8Array:
    try:
        with SAMPLES.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            array: UInt8Array = archive[name]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise UsageError(f"{SAMPLES} is missing or damaged ({e}); reinstall splitwire") from e
    return array
