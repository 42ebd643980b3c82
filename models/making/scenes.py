"""Compose scenes of garments from Fashion-MNIST, for detection; and write them as a COCO data set. Without torch.

    python -m splitwire.models.making.scenes OUT --count 1000 --seed 1

A scene is a picture of 160×160 pixels with a background (smooth noise, a gradient, stripes, checks, or a crop of a
photograph of scikit-image). It has one to six garments of various sizes and tints, cut out along their silhouettes,
that hardly overlap. Scene i of a seed is always the same, independent of the scenes before it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.models import demo, fashion
from splitwire.models.detector import LABELS, SIDE
from splitwire.models.fashion import UInt8Array
from splitwire.models.making import backgrounds
from splitwire.models.making.backgrounds import Draw, Float32Array

MAX_GARMENTS = 6
SIZES = (32, 80)
"""Smallest and largest side of a scaled garment image, in pixels; the distribution is log-uniform."""

MAX_COVERED = 0.15
"""Largest share of a garment's box that another box may overlap."""

SPLITS = ("train", "test", "samples")
OPAQUE = 128
BLACK = 10
"""Darker pixels do not belong to the garment: near a garment, the background of Fashion-MNIST is not exactly 0."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene.

    picture: (160, 160, 3) uint8 RGB. boxes: (n, 4) float32, x0 y0 x1 y1 in pixels, tight around each silhouette, also
    where another garment covers it. labels: (n,) int64 in 1…10. owners: (160, 160) uint8, the visible garment at each
    pixel, counted from 1 in the order of boxes; 0 for the background.
    """

    picture: UInt8Array
    boxes: Float32Array
    labels: NDArray[np.int64]
    owners: UInt8Array


class Composer:
    """Composes scenes from garments, photographs and a seed.

    images: (n, 28, 28) uint8; labels: (n,) uint8 in 0…9; photographs: (H, W, 3) uint8 each, at least one.
    """

    def __init__(
        self, images: UInt8Array, labels: UInt8Array, photographs: Sequence[UInt8Array], seed: tuple[int, ...]
    ) -> None:
        self._images, self._labels, self._seed = images, labels, seed
        self._photographs = tuple(photographs)

    def __call__(self, index: int) -> Scene:
        """Scene number `index`, ≥ 0, of this seed."""
        draw = np.random.default_rng((*self._seed, index))
        canvas = backgrounds.any_of(self._photographs, draw)
        owners = np.zeros((SIDE, SIDE), np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(draw.integers(1, MAX_GARMENTS + 1)):
            which = int(draw.integers(len(self._images)))
            tint, opacity = garment(self._images[which], draw)
            place = _place(opacity, boxes, draw)
            if place is None:  # no room left
                continue
            x, y = place
            window = slice(y, y + opacity.shape[0]), slice(x, x + opacity.shape[1])
            alpha = opacity[..., None].astype(np.float32) / 255
            canvas[window] += alpha * (tint - canvas[window])
            boxes.append((x, y, x + opacity.shape[1], y + opacity.shape[0]))
            labels.append(int(self._labels[which]) + 1)
            owners[window][opacity >= OPAQUE] = len(boxes)
        return Scene(
            picture=np.rint(canvas).astype(np.uint8),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            owners=owners,
        )


def composer(split: str, seed: int, folder: Path = fashion.DEFAULT_FOLDER) -> Composer:
    """Scenes of a split.

    "train" has 60,000 garments. "test" has 10,000 others, and other photographs. "samples" is like "test", but with the
    1,000 test images in the package, for a machine without the data set.

    Raises UsageError if Fashion-MNIST is not in `folder`, or scikit-image is not installed.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    images, labels = demo.test_set() if split == "samples" else fashion.read_split(folder, split)
    return Composer(images, labels, backgrounds.photographs(split), (SPLITS.index(split), seed))


def silhouette(image: UInt8Array) -> UInt8Array:
    """(28, 28) uint8 in and out; 255 inside the garment, 0 outside.

    Inside are all pixels that are not black, and black pixels with such pixels on both sides in their row and in their
    column (black parts of a garment, but not the gap between trouser legs).
    """
    bright = image >= BLACK
    if not bright.any():  # a very dark garment
        bright = image > 0
    between = [
        np.logical_or.accumulate(bright, axis) & np.flip(np.logical_or.accumulate(np.flip(bright, axis), axis), axis)
        for axis in (0, 1)
    ]
    return np.where(between[0] & between[1], np.uint8(255), np.uint8(0))


def garment(image: UInt8Array, draw: Draw) -> tuple[Float32Array, UInt8Array]:
    """A garment, flipped at random, scaled, cropped and tinted: (h, w, 3) float32 in [0, 255], (h, w) uint8 alpha."""
    if draw.random() < 0.5:
        image = image[:, ::-1]
    side = float(np.exp(draw.uniform(*np.log(SIZES))))
    stretch = float(np.exp(draw.uniform(-0.1, 0.1)))
    size = min(SIZES[1], round(side * stretch)), min(SIZES[1], round(side / stretch))
    both = Image.fromarray(np.stack([image, silhouette(image)], axis=-1), "LA")
    scaled = np.asarray(both.resize(size, Image.Resampling.BILINEAR))
    opaque = scaled[..., 1] >= OPAQUE
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    grey, alpha = np.moveaxis(scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], -1, 0)
    bright = draw.uniform(60, 255, 3)
    bright *= draw.uniform(170, 255) / bright.max()
    dark = draw.uniform(0, 50, 3)
    tint = dark + (bright - dark) * (grey[..., None].astype(np.float32) / 255)
    return tint.astype(np.float32), alpha


def _place(opacity: UInt8Array, boxes: list[tuple[int, int, int, int]], draw: Draw) -> tuple[int, int] | None:
    """(left, top) of a place in the picture where no two boxes overlap too much; None after 20 failed draws."""
    h, w = opacity.shape
    for _ in range(20):
        x, y = int(draw.integers(SIDE - w + 1)), int(draw.integers(SIDE - h + 1))
        for x0, y0, x1, y1 in boxes:
            common = max(0, min(x + w, x1) - max(x, x0)) * max(0, min(y + h, y1) - max(y, y0))
            if common > MAX_COVERED * min(w * h, (x1 - x0) * (y1 - y0)):
                break
        else:
            return x, y
    return None


def coco_document(scenes: Sequence[Scene], names: Sequence[str]) -> dict[str, Any]:
    """The COCO document of scenes. names: file names of their pictures. Category ids are the labels 1…10."""
    annotations: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        for (x0, y0, x1, y1), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    return {
        "images": [{"id": i + 1, "file_name": n, "width": SIDE, "height": SIDE} for i, n in enumerate(names)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS) if i],
    }


def write_coco(
    folder: Path,
    n: int,
    seed: int,
    split: str = "test",
    *,
    data: Path = fashion.DEFAULT_FOLDER,
    on_scene: Callable[[int], None] | None = None,
) -> Path:
    """Write scenes 0…n−1 of a seed: folder/000000.png …, and at the end folder/annotations.json. Returns its path.

    on_scene: called with the number of written scenes. Raises the errors of `composer`, and UsageError if n is below 1.
    """
    if n < 1:
        raise UsageError(f"the number of scenes must be at least 1; got {n}")
    compose = composer(split, seed, data)
    scenes, names = [], []
    for i in range(n):
        scene, name = compose(i), f"{i:06d}.png"
        buffer = io.BytesIO()
        Image.fromarray(scene.picture).save(buffer, "PNG")
        write_atomically(folder / name, buffer.getvalue())
        scenes.append(scene)
        names.append(name)
        if on_scene is not None:
            on_scene(i + 1)
    path = folder / "annotations.json"
    write_atomically(path, msgspec.json.encode(coco_document(scenes, names)) + b"\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from rich.console import Console
    from rich.progress import Progress

    parser = argparse.ArgumentParser(
        prog="python -m splitwire.models.making.scenes", description="Compose scenes of garments, as a COCO data set."
    )
    parser.add_argument("out", type=Path, help="folder for the pictures and annotations.json")
    parser.add_argument("--count", type=int, default=1000, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which garments and photographs [%(default)s]")
    parser.add_argument("--data", type=Path, default=fashion.DEFAULT_FOLDER, help="folder of the Fashion-MNIST files")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    o = parser.parse_args(arguments)
    err = Console(stderr=True, highlight=False)
    try:
        with Progress(console=err, disable=not err.is_terminal, transient=True) as bar:
            task = bar.add_task("composing", total=o.count)
            path = write_coco(
                o.out, o.count, o.seed, o.split, data=o.data, on_scene=lambda n: bar.update(task, completed=n)
            )
    except SplitwireError as e:
        err.print(f"error: {e}", markup=False, soft_wrap=True)
        return e.exit_status
    except OSError as e:
        err.print(f"error: {o.out}: {e.strerror or e}", markup=False, soft_wrap=True)
        return 1
    if o.json:
        result = {"annotations": str(path), "scenes": o.count, "seed": o.seed, "split": o.split}
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        print(f"{o.count:,} scenes of the {o.split} split, seed {o.seed}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
