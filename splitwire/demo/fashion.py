"""The demo: SqueezeNet on Fashion-MNIST, split over HTTP, 1,000 labelled images at every operating point."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.shared.progress import ProgressFn
from splitwire.demo.baselines import jpeg
from splitwire.demo.server import cloud_process
from splitwire.evaluation.measuring.pair import Pair
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import NetworkOptions
from splitwire.exporter.pair import bake, overwrite
from splitwire.models import demo as catalogue
from splitwire.models.inference import scores
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import HttpTransport

STAGES = ("front", "encode", "network", "decode", "back")
BATCH = 100
"""Images at once where no network is involved. Over HTTP they go one by one, as a camera would send them."""
PICTURES = 32
"""How many of the images are left as PNG files."""

Inputs = NDArray[np.float32]
Labels = NDArray[np.uint8]


class Point(Struct, frozen=True, kw_only=True):
    """One operating point, measured over all images.

    accuracy: share of right answers. bytes_per_image: of the frames, with their headers; bits_per_element is the same
    over the elements of the feature tensor. sent_bytes_per_image: what crossed the socket upwards, HTTP heads included.
    ms: medians.
    """

    op: str
    accuracy: float
    bits_per_element: float
    bytes_per_image: float
    sent_bytes_per_image: float
    ms: dict[str, float]


class Whole(Struct, frozen=True, kw_only=True):
    """The whole network in one process, by PyTorch."""

    accuracy: float


class Baselines(Struct, frozen=True, kw_only=True):
    """Bytes per image of the alternatives. jpeg_accuracy: of the whole network on the decoded JPEG images.

    float32_bytes, float32_accuracy: the features as they are, the codec off.
    """

    float32_bytes: float
    float32_accuracy: float
    jpeg_bytes: float
    jpeg_accuracy: float


class Summary(Struct, frozen=True, kw_only=True):
    """What `build/demo/summary.json` holds.

    float_agreement: images on which the features themselves, not coded, give the class of the whole network. ms: of the
    default operating point. seconds: wall time of each part.
    """

    model: str
    cut: str
    feature_shape: tuple[int, ...]
    images: int
    whole: Whole
    float_agreement: int
    default_op: str
    points: list[Point]
    ms: dict[str, float]
    baselines: Baselines
    seconds: dict[str, float]


def run(out: Path, progress: ProgressFn, *, force: bool = False) -> Summary:
    """Export, serve, stream, measure. Leaves front.onnx, back.onnx and a few of the images in `out`.

    An earlier demo in `out`, of whatever version, is replaced. Raises UsageError where `out` holds another pair,
    without `force`.
    """
    bake.check_folder(out)
    if not force:
        overwrite.check_names(out, catalogue.NAME, catalogue.CUT)
    started = time.perf_counter()
    network = catalogue.load_network()
    images, labels = catalogue.test_set()
    calibration = to_inputs(catalogue.calibration_set())
    result = export_pair(
        network,
        cut=catalogue.CUT,
        calibration=calibration,
        out=out,
        network=NetworkOptions(preprocessing=catalogue.PREPROCESSING, labels=catalogue.CLASSES, name=catalogue.NAME),
        replace=True,
        progress=progress,
    )
    write_pictures(out / "images", images, labels)
    exported = time.perf_counter()

    inputs = to_inputs(images)
    jpegs = [jpeg(Image.fromarray(image)) for image in images]
    decoded = to_inputs(np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in jpegs]))
    whole = classes([scores(network, x) for x in batches(inputs)])
    from_jpeg = classes([scores(network, x) for x in batches(decoded)])

    profile = result.profile
    progress("Start the cloud server", 0, 1)
    with cloud_process(out) as url, EdgeSession(result.front, transport=HttpTransport(url, lean=True)) as session:
        progress("Start the cloud server", 1, 1)
        session.warm_up()
        points = [stream(session, p.name, inputs, labels, progress) for p in profile.operating_points]
    float_classes = uncoded(out, inputs)
    spec = profile.tensors[0]
    default = next(p for p in points if p.op == profile.default_op)
    return Summary(
        model=profile.model,
        cut=profile.cut,
        feature_shape=spec.feature_shape,
        images=len(images),
        whole=Whole(accuracy=float((whole == labels).mean())),
        float_agreement=int((float_classes == whole).sum()),
        default_op=profile.default_op,
        points=points,
        ms=default.ms,
        baselines=Baselines(
            float32_bytes=4.0 * spec.feature_elements,
            float32_accuracy=float((float_classes == labels).mean()),
            jpeg_bytes=float(np.mean([len(data) for data in jpegs])),
            jpeg_accuracy=float((from_jpeg == labels).mean()),
        ),
        seconds={"export": exported - started, "measure": time.perf_counter() - exported},
    )


def stream(session: EdgeSession, op: str, inputs: Inputs, labels: Labels, progress: ProgressFn) -> Point:
    """Send every image through the split network at one operating point."""
    results = []
    for i, x in enumerate(inputs):
        results.append(session.infer(x[None], op=op))
        progress(f"Stream {op}", i + 1, len(inputs))
    answers = classes([next(iter(r.outputs.values())) for r in results])
    frames = np.array([r.frame_bytes for r in results])
    elements = len(inputs) * sum(spec.feature_elements for spec in session.profile.tensors)
    return Point(
        op=op,
        accuracy=float((answers == labels).mean()),
        bits_per_element=float(8 * frames.sum() / elements),
        bytes_per_image=float(frames.mean()),
        sent_bytes_per_image=float(np.mean([r.bytes_sent for r in results])),
        ms={stage: float(np.median([getattr(r.timings, stage) for r in results])) for stage in STAGES},
    )


def uncoded(folder: Path, inputs: Inputs) -> NDArray[np.intp]:
    """Classes by the features themselves, without a transform and without a codec."""
    pair = Pair(folder)
    answers = []
    for x in batches(inputs, pair.batch):
        images = pair.front(list(x))
        answers.append(next(iter(pair.back([i.features for i in images], images).values())))
    return classes(answers)


def write_pictures(folder: Path, images: NDArray[np.uint8], labels: Labels) -> None:
    """The first PICTURES images as PNG, to try `splitwire edge run` on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, label) in enumerate(zip(images[:PICTURES], labels, strict=False)):
        name = re.sub(r"\W+", "-", catalogue.CLASSES[label].lower())
        Image.fromarray(image).save(folder / f"{i:02}-{name}.png")


def to_inputs(images: NDArray[np.uint8]) -> Inputs:
    """(n, 28, 28) grey → (n, 3, H, W) network inputs, by the preprocessing that is baked into the pair."""
    return np.stack([preprocessing.apply(Image.fromarray(image), catalogue.PREPROCESSING) for image in images])


def batches(x: Inputs, size: int = BATCH) -> list[Inputs]:
    """Cut into pieces of `size`."""
    return [x[i : i + size] for i in range(0, len(x), size)]


def classes(scores: Sequence[NDArray[np.float32]]) -> NDArray[np.intp]:
    """Index of the highest score of each image."""
    answers: NDArray[np.intp] = np.concatenate(list(scores)).argmax(axis=1)
    return answers
