"""Transform points beside today's at the same cuts, by real frames (`python -m benchmarks.quality.transform_points`).

Writes build/bench/transform_points.json (machine, rows) and prints the same as a table, with the bytes of both
interpolated at equal damage. The pictures are held out. The demo network: 1,000 labelled test pictures, calibrated on
the 256 that ship. MobileNetV2 with ImageNet weights: random crops of photographs, every other photograph calibrates,
the others are measured on; no labels, but divergence and agreement. Arguments: keys of SUBJECTS, for some of the cuts;
--refine N: training steps; --alone: without today's points.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.inputs import photographs
from splitwire.codec import preprocessing
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile, OperatingPoint, Preprocessing, TensorSpec
from splitwire.codec.shared.files import write_json
from splitwire.demo import photos
from splitwire.demo.fashion import to_inputs
from splitwire.evaluation.measuring.stages import machine
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.export import export_pair
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_module
from splitwire.exporter.options import CodecOptions, NetworkOptions
from splitwire.exporter.pair.precision_choice import milliseconds
from splitwire.exporter.points.damage import Damage
from splitwire.exporter.transform.design import DesignedTransforms, RefineOptions, design_transform
from splitwire.exporter.transform.fold import coefficients_name, fold_back, fold_front
from splitwire.models import demo
from splitwire.models.catalogue import load

OUT = Path("build/bench")
SUBJECTS = {
    "demo": (demo.NAME, demo.CUT),
    "features.3": (photos.MODEL, "features.3"),
    "features.6": (photos.MODEL, "features.6"),
    "features.10": (photos.MODEL, "features.10"),
    "features.13": (photos.MODEL, "features.13"),
    "features.14.conv.0": (photos.MODEL, "features.14.conv.0"),
    "features.18": (photos.MODEL, "features.18"),
}
"""Key → network and layer."""
LEVELS = ("n2", "n4", "n8", "a2", "a4", "r0.1", "r0.2", "r0.4", "r0.6", "r0.8", "r1.2")
CALIBRATION_CROPS, TEST_CROPS = 16, 8
"""Of each photograph."""
DAMAGES = (0.02, 0.05, 0.12)
BATCH = 20

Floats = NDArray[np.float32]


class Subject(NamedTuple):
    """A network, inputs to calibrate with, others to measure on, and the labels of these if they have any."""

    network: torch.nn.Module
    calibration: Floats
    test: Floats
    labels: NDArray[np.uint8] | None


class Row(Struct, frozen=True, kw_only=True):
    """One operating point of one scheme. bytes: mean of the frames of single pictures, with their headers. divergence:
    Kullback–Leibler from the whole network, nats. agreement: share of pictures with its class. accuracy: share of right
    answers, None without labels.
    """

    cut: str
    scheme: str
    op: str
    bytes: float
    divergence: float
    agreement: float
    accuracy: float | None


class Cost(Struct, frozen=True, kw_only=True):
    """Median milliseconds of the halves for one picture, on all cores, without and with the transform, and its size.

    design_s: processor seconds of the design. gain: log damage by refinement at equal bytes, 0 where it was not kept.
    """

    cut: str
    front_ms: tuple[float, float]
    back_ms: tuple[float, float]
    coefficients: int
    elements: int
    design_s: float
    gain: float


def subject(network: str) -> Subject:
    """The network of this name with its pictures."""
    if network == demo.NAME:
        pictures, labels = demo.test_set()
        return Subject(demo.load_network(), to_inputs(demo.calibration_set()), to_inputs(pictures), labels)
    loaded = load(network, "DEFAULT")
    files = [*photographs.natural(), *photographs.imagenet()]
    calibration = crops(files[0::2], CALIBRATION_CROPS, loaded.preprocessing)
    return Subject(loaded.module, calibration, crops(files[1::2], TEST_CROPS, loaded.preprocessing), None)


def crops(files: Sequence[Path], count: int, how: Preprocessing) -> Floats:
    """(n, 3, H, W): `count` seeded random crops of each photograph."""
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_crops(files, Path(folder), count=count)
        written = sorted(Path(folder).iterdir())
        return np.stack([preprocessing.apply(Image.open(file).convert("RGB"), how) for file in written])


def today(measured: Subject, halves: Halves, key: str, layer: str) -> list[Row]:
    """The points of an export as it is without transforms."""
    with tempfile.TemporaryDirectory() as out:
        profile = export_pair(
            measured.network, cut=layer, calibration=measured.calibration, out=out,
            network=NetworkOptions(input_shape=(1, *measured.test.shape[1:])),
            codec=CodecOptions(levels=[int(x[1:]) if x[0] == "n" else x for x in LEVELS]),
        ).profile  # fmt: skip
    return rows(measured, halves.front, halves.back, profile, key, "today")


def transformed(measured: Subject, halves: Halves, key: str, steps: int | None) -> tuple[list[Row], Cost]:
    """The ladder of a transform."""
    front, back = Graph.of(halves.front, what="front half"), Graph.of(halves.back, what="back half")
    tensor = halves.back.graph.inputs[0].name or ""
    shape = front.run(measured.test[:1])[0].shape[1:]
    began = time.process_time()
    designed = design_transform(
        front, back, halves.back, [TensorSpec(name=tensor, shape=shape)], list(measured.calibration),
        RefineOptions(steps=steps), lambda *_: None,
    )  # fmt: skip
    (design,) = designed.designs
    seconds = time.process_time() - began
    name = coefficients_name(tensor)
    spec = TensorSpec(name=name, shape=design.shape, mean=0.0, transform=design.transform)
    profile = CodecProfile(
        model=key, cut=key, tensors=(spec,), default_op="q4", front_sha256="", back_sha256="",
        operating_points=tuple(
            OperatingPoint(
                name=p.name, tensors=(), steps=(p.step,), bits_per_element=p.bits / design.layout.elements
            ) for p in designed.points
        ),
    )  # fmt: skip
    folded = fold_front(halves.front, designed.designs), fold_back(halves.back, designed.designs)
    scheme = "transform" if steps is None else f"transform, {steps} steps"
    return rows(measured, *folded, profile, key, scheme), cost(measured, (front, back), folded, key, designed, seconds)


def cost(
    measured: Subject,
    plain: tuple[Graph, Graph],
    folded: tuple[ir.Model, ir.Model],
    key: str,
    designed: DesignedTransforms,
    seconds: float,
) -> Cost:
    """What the transform costs both halves."""
    front, back = Graph.of(folded[0], what="front half"), Graph.of(folded[1], what="back half")
    x = measured.test[:1]
    fronts = milliseconds([plain[0], front], [x])
    backs = [milliseconds([graph], sender.run(x))[0] for graph, sender in ((plain[1], plain[0]), (back, front))]
    (design,) = designed.designs
    return Cost(
        cut=key,
        front_ms=(fronts[0], fronts[1]),
        back_ms=(backs[0], backs[1]),
        coefficients=design.shape[0] * design.shape[1],
        elements=design.layout.elements,
        design_s=seconds,
        gain=designed.refined.gain if designed.refined else 0.0,
    )


def rows(
    measured: Subject, front_model: ir.Model, back_model: ir.Model, profile: CodecProfile, key: str, scheme: str
) -> list[Row]:
    """Every operating point of a pair on the test pictures, by real frames."""
    front, back = Graph.of(front_model, what="front half"), Graph.of(back_model, what="back half")
    codec = FeatureCodec(profile)
    whole = Graph.of(from_module(measured.network, (1, *measured.test.shape[1:])).model, what="network")
    made = []
    batches = [measured.test[i : i + BATCH] for i in range(0, len(measured.test), BATCH)]
    sent = [front.run(x)[0] for x in batches]
    expected = [whole.run(x)[0] for x in batches]
    for point in profile.operating_points:
        damage, size, right = Damage(back.outputs), 0, 0
        for i, (x, y) in enumerate(zip(sent, expected, strict=True)):
            frames = [codec.encode([z[None]], op=point.name) for z in x]
            size += sum(map(len, frames))
            decoded = np.concatenate([codec.decode(frame).tensors[0] for frame in frames])
            answers = back.run(decoded)[0]
            damage.add([y], [answers], len(y))
            if measured.labels is not None:
                right += int((answers.argmax(axis=1) == measured.labels[i * BATCH : (i + 1) * BATCH]).sum())
        count = len(measured.test)
        made.append(
            Row(
                cut=key,
                scheme=scheme,
                op=point.name,
                bytes=size / count,
                divergence=damage.total,
                agreement=damage.agreement or 0.0,
                accuracy=None if measured.labels is None else right / count,
            )
        )
    return made


def bytes_at(found: Sequence[Row], divergence: float) -> float | None:
    """Bytes at a divergence, on the lower hull of the points; None beyond them."""
    best: list[Row] = []
    for row in sorted(found, key=lambda r: (r.bytes, r.divergence)):
        if not best or row.divergence < best[-1].divergence:
            best.append(row)
    x = np.log([max(r.divergence, 1e-9) for r in reversed(best)])
    if not x[0] <= np.log(divergence) <= x[-1]:
        return None
    return float(np.exp(np.interp(np.log(divergence), x, np.log([r.bytes for r in reversed(best)]))))


def table(found: Sequence[Row]) -> Table:
    """One line per point."""
    out = Table(title="Operating points on held-out pictures, real frames", title_justify="left")
    for name in ("cut", "scheme", "point"):
        out.add_column(name)
    for name in ("bytes", "KL, nats", "agreement", "accuracy"):
        out.add_column(name, justify="right")
    for r in found:
        right = "–" if r.accuracy is None else f"{r.accuracy:.1%}"
        out.add_row(r.cut, r.scheme, r.op, f"{r.bytes:,.0f}", f"{r.divergence:.4f}", f"{r.agreement:.1%}", right)
    return out


def equal_damage(found: Sequence[Row]) -> Table:
    """Bytes of each scheme at DAMAGES."""
    out = Table(title="Bytes at equal divergence", title_justify="left")
    for name in ("cut", "scheme", *(f"KL {d}" for d in DAMAGES)):
        out.add_column(name, justify="right" if name.startswith("KL") else "left")
    for cut, scheme in dict.fromkeys((r.cut, r.scheme) for r in found):
        sizes = [bytes_at([r for r in found if (r.cut, r.scheme) == (cut, scheme)], d) for d in DAMAGES]
        out.add_row(cut, scheme, *("–" if s is None else f"{s:,.0f}" for s in sizes))
    return out


def price_list(costs: Sequence[Cost]) -> Table:
    """One line per cut."""
    out = Table(title="Cost of the transform", title_justify="left")
    for name in (
        "cut",
        "elements",
        "coefficients",
        "front, ms",
        "with it",
        "back, ms",
        "with it",
        "design, CPU s",
        "gain",
    ):
        out.add_column(name, justify="left" if name == "cut" else "right")
    for c in costs:
        out.add_row(
            c.cut, f"{c.elements:,}", f"{c.coefficients:,}", f"{c.front_ms[0]:.2f}",
            f"{c.front_ms[1] / c.front_ms[0] - 1:+.1%}", f"{c.back_ms[0]:.2f}",
            f"{c.back_ms[1] / c.back_ms[0] - 1:+.1%}", f"{c.design_s:.0f}", f"{c.gain:+.2f}",
        )  # fmt: skip
    return out


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write build/bench/transform_points.json."""
    arguments = list(arguments)
    steps: int | None = None
    if "--refine" in arguments:
        at = arguments.index("--refine")
        steps = int(arguments.pop(at + 1))
        arguments.pop(at)
    alone = "--alone" in arguments
    if alone:
        arguments.remove("--alone")
    OUT.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    costs: list[Cost] = []
    for key in arguments or SUBJECTS:
        network, layer = SUBJECTS[key]
        print(key)
        measured = subject(network)
        source = from_module(measured.network, (1, *measured.test.shape[1:]))
        cut, _ = find_cut(Names.of(source), layer)
        halves = split(source.model, cut.tensors)
        found += [] if alone else today(measured, halves, key, layer)
        ladder, price = transformed(measured, halves, key, steps)
        found += ladder
        costs.append(price)
        write_json(OUT / "transform_points.json", {"machine": machine(), "rows": found, "costs": costs})
    console = Console(width=120)
    console.print(table(found))
    console.print(equal_damage(found))
    console.print(price_list(costs))


if __name__ == "__main__":
    main(sys.argv[1:])
