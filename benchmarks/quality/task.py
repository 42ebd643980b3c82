"""Measures how the squared error affects the task, with uniform and entropy-constrained quantizers of the same rate.

It writes build/bench/task.json (machine, rows) and prints the same as a table. The decoded features replace the
features at the cut. The demo network runs on 1,000 test images, calibrated on the calibration set. MobileNetV2 with
ImageNet weights runs on random crops of photographs, of which every second one is for calibration; it has no labels,
but features of both signs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.features import Floats, activations, mobilenet_inputs, profile
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_entropy_constrained, design_operating_point
from splitwire.codec.profile import OperatingPoint, TensorPoint
from splitwire.codec.shared.files import write_json
from splitwire.demo import photos
from splitwire.demo.fashion import batches, to_inputs
from splitwire.evaluation.measuring.stages import machine
from splitwire.models import demo
from splitwire.models.catalogue import load

OUT = Path("build/bench")
CUTS = {
    demo.NAME: {demo.CUT: "ReLU", "features.5": "ReLU", "features.2": "ReLU"},
    photos.MODEL: {"features.14.conv.0": "ReLU6", "features.13": "linear", photos.CUT: "linear"},
}
"""Network → layer → the operator that makes its features."""
TASK_LEVELS = (2, 4, 8)


class Subject(NamedTuple):
    """A network in evaluation mode, inputs to calibrate with, others to measure on, and their classes if known."""

    network: torch.nn.Module
    calibration: Floats
    inputs: Floats
    labels: NDArray[np.uint8] | None


class Row(Struct, frozen=True, kw_only=True):
    """One quantizer at one cut.

    kind: of the features. levels: N. like: N of the uniform quantizer with the same rate. bits_per_element: of whole
    frames. error: mean squared error divided by the variance. agreement: share of images with the class of the whole
    network. accuracy: share of right answers; None without labels. divergence: Kullback–Leibler divergence of the class
    probabilities from the whole network's, nats.
    """

    network: str
    cut: str
    kind: str
    like: int
    quantizer: str
    levels: int
    bits_per_element: float
    error: float
    agreement: float
    accuracy: float | None
    divergence: float


def subject(name: str) -> Subject:
    """The network of this name with its images."""
    if name == demo.NAME:
        images, labels = demo.test_set()
        return Subject(demo.load_network(), to_inputs(demo.calibration_set()), to_inputs(images), labels)
    loaded = load(name, "DEFAULT")
    inputs = mobilenet_inputs(loaded.preprocessing)
    return Subject(loaded.module, inputs[0::2], inputs[1::2], None)


def rows_for(name: str, subject: Subject, cut: str) -> list[Row]:
    """Both quantizers at each of TASK_LEVELS."""
    network, inputs, labels = subject.network, subject.inputs, subject.labels
    calibration = activations(network, subject.calibration, [cut])[0]
    features = activations(network, inputs, [cut])[0]
    statistics = FeatureStatistics(channels=calibration.shape[1])
    statistics.add(calibration)
    whole = log_softmax(back(network, cut, inputs, features))
    rows = []
    for like in TASK_LEVELS:
        uniform, bits = design_operating_point(levels=like, statistics=statistics)
        constrained, _ = design_entropy_constrained(bits=bits, statistics=statistics)
        for quantizer, point in (("uniform", uniform), ("entropy-constrained", constrained)):
            decoded, size = through_codec(point, features, statistics)
            answer = log_softmax(back(network, cut, inputs, decoded))
            rows.append(
                Row(
                    network=name,
                    cut=cut,
                    kind=CUTS[name][cut],
                    like=like,
                    quantizer=quantizer,
                    levels=len(point.quantizer.levels),
                    bits_per_element=8 * size / features.size,
                    error=float(np.square(decoded - features, dtype=np.float64).mean() / features.var()),
                    agreement=float((answer.argmax(axis=1) == whole.argmax(axis=1)).mean()),
                    accuracy=None if labels is None else float((answer.argmax(axis=1) == labels).mean()),
                    divergence=float((np.exp(whole) * (whole - answer)).sum(axis=1).mean()),
                )
            )
    return rows


def through_codec(point: TensorPoint, features: Floats, statistics: FeatureStatistics) -> tuple[Floats, int]:
    """The features as decoded, and the bytes of their frames."""
    points = [OperatingPoint(name="op", tensors=(point,), bits_per_element=0.0)]
    codec = FeatureCodec(profile("cut", features.shape[1:], points, "op", statistics))
    frames = [codec.encode([x]) for x in batches(features)]
    return np.concatenate([codec.decode(frame).tensors[0] for frame in frames]), sum(map(len, frames))


def back(network: torch.nn.Module, cut: str, inputs: Floats, features: Floats) -> Floats:
    """(n, K) outputs of the network with these features in place of the layer's output."""
    out = []
    for x, y in zip(batches(inputs), batches(features), strict=True):
        put = torch.from_numpy(y)
        hook = network.get_submodule(cut).register_forward_hook(lambda _m, _i, _o, put=put: put)
        with torch.inference_mode():
            out.append(network(torch.from_numpy(x)).numpy())
        hook.remove()
    return np.concatenate(out)


def log_softmax(scores: Floats) -> NDArray[np.float64]:
    """The logarithm of the softmax of each row."""
    z = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    out: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def table(rows: list[Row]) -> Table:
    """One line per quantizer."""
    out = Table(title="Equal rate, less squared error, and the task", title_justify="left")
    for name in ("cut", "features", "rate of N", "quantizer"):
        out.add_column(name)
    for name in ("levels", "bits/el", "error/variance", "agreement", "accuracy", "KL, nats"):
        out.add_column(name, justify="right")
    for r in rows:
        right = "–" if r.accuracy is None else f"{r.accuracy:.1%}"
        shares = (f"{r.agreement:.1%}", right, f"{r.divergence:.4f}")
        figures = (str(r.levels), f"{r.bits_per_element:.3f}", f"{r.error:.3f}", *shares)
        out.add_row(r.cut, r.kind, str(r.like), r.quantizer, *figures)
    return out


def main() -> None:
    """Measure, print, write build/bench/task.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, cuts in CUTS.items():
        measured = subject(name)
        for cut in cuts:
            print(f"{name}, {cut}: less error against more right answers")
            rows += rows_for(name, measured, cut)
            write_json(OUT / "task.json", {"machine": machine(), "rows": rows})
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
