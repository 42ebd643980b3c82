"""`splitwire demo --photos`: MobileNetV2 with ImageNet weights on the photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.progress import ProgressFn
from splitwire.demo.baselines import jpeg
from splitwire.demo.fashion import STAGES, Inputs
from splitwire.demo.server import cloud_process
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import NetworkOptions
from splitwire.exporter.pair import bake, overwrite
from splitwire.models.catalogue import load
from splitwire.models.inference import scores
from splitwire.runtime_edge.findings import classes
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import HttpTransport

MODEL = "mobilenet_v2"
CUT = "features.14"
"""The linear output of block 14, 160×7×7: the smallest tensor with most of the network still behind it."""
TOP = 3


class Source(NamedTuple):
    """A photograph that scikit-image ships, and a name to show for it."""

    name: str
    file: str


TEST = (
    Source("cat", "chelsea.png"),
    Source("coffee", "coffee.png"),
    Source("rocket", "rocket.jpg"),
    Source("astronaut", "astronaut.png"),
    Source("motorcycle", "motorcycle_left.png"),
)
OTHERS = ("hubble_deep_field.jpg", "ihc.png", "retina.jpg", "grass.png", "gravel.png", "brick.png", "coins.png")
CALIBRATION = (*(source.file for source in TEST), *OTHERS)
"""Calibration wants images like those of the task, and scikit-image has few photographs: random crops of the ones
shown are among them. The table says so."""
CROPS = 16
"""Random crops of each calibration picture."""
SHARE = (0.35, 1.0)
"""Their sides, in shorter sides of the picture."""


class Photo(Struct, frozen=True, kw_only=True):
    """One photograph. whole, split: the three likeliest labels with their probabilities. Bytes include HTTP heads.

    The fields look like those of fashion.Point, but are of one picture, not means over a test set.
    """

    name: str
    whole: list[tuple[str, float]]
    split: list[tuple[str, float]]
    bytes_sent: int
    bits_per_element: float
    jpeg_bytes: int
    ms: dict[str, float]


class PhotosSummary(Struct, frozen=True, kw_only=True):
    """What `build/demo/photos/summary.json` holds."""

    model: str
    weights: str
    cut: str
    feature_shape: tuple[int, ...]
    op: str
    photos: list[Photo]


def run(out: Path, weights: str | None, progress: ProgressFn, *, force: bool = False) -> PhotosSummary:
    """Export, serve, send each photograph once the kernels are warm.

    An earlier demo in `out`, of whatever version, is replaced. Raises UsageError where `out` holds another pair,
    without `force`.
    """
    bake.check_folder(out)
    if not force:
        overwrite.check_names(out, MODEL, CUT)
    loaded = load(MODEL, weights or "DEFAULT")
    how = loaded.preprocessing
    result = export_pair(
        loaded.module,
        cut=CUT,
        calibration=calibration_inputs(how),
        out=out,
        network=NetworkOptions(
            preprocessing=how, input_shape=loaded.input_shape, name=loaded.name, labels=loaded.labels
        ),
        replace=True,
        progress=progress,
    )
    photos = []
    progress("Start the cloud server", 0, 1)
    with cloud_process(out) as url, EdgeSession(result.front, transport=HttpTransport(url, lean=True)) as session:
        progress("Start the cloud server", 1, 1)
        session.warm_up()
        point = session.profile.operating_points[session.profile.point_index()]
        for i, source in enumerate(TEST):
            image = open_photo(source.file)
            x = preprocessing.apply(image, how)[None]
            session.infer(x)  # the first frame pays for connecting
            answer = session.infer(x)
            photos.append(
                Photo(
                    name=source.name,
                    whole=guesses({"scores": scores(loaded.module, x)}, loaded.labels),
                    split=guesses(answer.outputs, loaded.labels),
                    bytes_sent=answer.bytes_sent,
                    bits_per_element=answer.bits_per_element,
                    jpeg_bytes=len(jpeg(preprocessing.view(image, how))),
                    ms={stage: getattr(answer.timings, stage) for stage in STAGES},
                )
            )
            progress("Photographs", i + 1, len(TEST))
    spec = result.profile.tensors[0]
    return PhotosSummary(
        model=loaded.name,
        weights=loaded.weights,
        cut=CUT,
        feature_shape=spec.feature_shape,
        op=point.name,
        photos=photos,
    )


def guesses(outputs: dict[str, NDArray[np.float32]], labels: Sequence[str] | None) -> list[tuple[str, float]]:
    """The likeliest labels with their probabilities."""
    found = classes(outputs, labels, TOP)
    return [(c.label, c.probability) for c in found.top] if found else []


def open_photo(file: str) -> Image.Image:
    """A picture out of scikit-image's own data folder, RGB."""
    import skimage

    return Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")


def calibration_inputs(how: Preprocessing) -> Inputs:
    """(n, 3, H, W): crops of the calibration pictures."""
    return crops(CALIBRATION, CROPS, how)


def crops(files: Iterable[str], each: int, how: Preprocessing) -> Inputs:
    """(n, 3, H, W): seeded random crops of pictures of scikit-image, `each` of every one."""
    rng = np.random.default_rng(0)
    squares = (random_square(image, rng, SHARE) for image in map(open_photo, files) for _ in range(each))
    return np.stack([preprocessing.apply(square, how) for square in squares])


def random_square(image: Image.Image, rng: np.random.Generator, share: tuple[float, float]) -> Image.Image:
    """A random crop. share: of its side, in shorter sides of the picture, at least and at most."""
    side = int(rng.uniform(*share) * min(image.size))
    x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return image.crop((x, y, x + side, y + side))
