"""Fashion-MNIST: read the original files, and make the sample file of the package. This module does not use torch.

The data set: 70,000 grey images of 28×28 pixels in ten classes; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel
Image Dataset for Benchmarking Machine Learning Algorithms", 2017 (MIT licence, data/LICENSE-fashion-mnist).
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError

UInt8Array = NDArray[np.uint8]

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the Debian package dataset-fashion-mnist."""

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Class names, in the order of the labels 0…9."""

SIDE = 28
TEST_SAMPLES = 1000
CALIBRATION_SAMPLES = 256
CALIBRATION_SEED = 20210513


def read_split(folder: Path, split: str) -> tuple[UInt8Array, UInt8Array]:
    """Read one split of the original files.

    folder: has the files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. split: "train" (60,000) or "test" (10,000).
    Returns (n, 28, 28) uint8 images, 0 = background, and (n,) uint8 labels in 0…9.
    Raises UsageError, in one line, if a file is missing or has another content.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (SIDE, SIDE))
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels) or not len(labels) or labels.max() >= len(CLASSES):
        raise UsageError(f"{folder}: {len(images)} {split} images and {len(labels)} labels do not belong together")
    return images, labels


def _read_idx(path: Path, item: tuple[int, ...]) -> UInt8Array:
    """Read a gzip-compressed IDX file of uint8: 0, 0, 8, number of axes; the axes as big-endian uint32; the data."""
    if not path.is_file():
        raise UsageError(
            f"{path} not found; `apt-get install dataset-fashion-mnist` brings it, or name its folder with --data"
        )
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError(f"{path} is not a readable gzip file: {e}") from e
    axes = 1 + len(item)
    head = 4 + 4 * axes
    if len(raw) < head or raw[:4] != bytes((0, 0, 8, axes)):
        raise UsageError(f"{path} is not an IDX file of uint8 with {axes} axes")
    shape = struct.unpack(f">{axes}I", raw[4:head])
    if shape[1:] != item or len(raw) - head != int(np.prod(shape, dtype=np.int64)):
        raise UsageError(f"{path} holds {len(raw) - head} bytes of shape {shape}; expected items of shape {item}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def sample_bytes(folder: Path = DEFAULT_FOLDER) -> bytes:
    """The sample file as bytes: the first 1,000 test images with labels, and 256 training images for calibration.

    An .npz of uint8 arrays: `test_images` (1000, 28, 28), `test_labels` (1000,), `calibration_images` (256, 28, 28).
    The calibration images are a seeded sample of the training split, so a demo never measures on calibration images.
    The arrays are always the same; the bytes are the same for the same zlib. Raises UsageError like `read_split`.
    """
    images, labels = read_split(folder, "test")
    training, _ = read_split(folder, "train")
    chosen = np.random.default_rng(CALIBRATION_SEED).choice(len(training), CALIBRATION_SAMPLES, replace=False)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        test_images=images[:TEST_SAMPLES],
        test_labels=labels[:TEST_SAMPLES],
        calibration_images=training[np.sort(chosen)],
    )
    return buffer.getvalue()
