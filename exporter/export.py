"""From a network to front.onnx and back.onnx: the steps of this room in their order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from msgspec import UNSET

from splitwire.codec.device import DeviceProfile
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing, SizeSpec, TensorSpec
from splitwire.codec.progress import ProgressFn
from splitwire.codec.tables import MAX_LEVELS
from splitwire.codec.tasks import Task
from splitwire.codec.text import printable
from splitwire.exporter.calibration.checkpoint import Checkpoint
from splitwire.exporter.calibration.inputs import (
    LIMIT,
    Calibration,
    CalibrationInputs,
    Skipped,
    are_images,
    open_inputs,
)
from splitwire.exporter.cutting import verify
from splitwire.exporter.cutting.cuts import Cut, find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.cutting.torch_check import check_torch
from splitwire.exporter.network.adapting.constants import Constants, check_none
from splitwire.exporter.network.adapting.outputs import check_arrays
from splitwire.exporter.network.adapting.widen import in_float32
from splitwire.exporter.network.inference import Float32Array, Graph, InputType
from splitwire.exporter.network.pictures import PictureOptions, WantedShape, completed, wanted_shape
from splitwire.exporter.network.purpose import check_labels, check_task, task_of
from splitwire.exporter.network.source import Source, from_file, from_module
from splitwire.exporter.pair import bake, overwrite
from splitwire.exporter.pair.precision_choice import (
    Accept,
    BackPrecision,
    CodecMaker,
    Coder,
    Comparison,
    FrontPrecision,
    Half,
    check_coder,
    check_precisions,
    choose,
)
from splitwire.exporter.planning.links import Link
from splitwire.exporter.planning.plan import AUTO_LINK, DEFAULT_DEVICE, recommend_cut
from splitwire.exporter.points.design import Kind, QuantizedTensor
from splitwire.exporter.points.measure import PointMeasure

LEVELS = (2, 3, 4, 6, 8, "r0.1", "r0.2", "r0.3", "r0.4", "r0.6", "r0.8")
"""The operating points made unless the caller says otherwise: what Cohen et al. 2021 tabulate, and six budgets."""

AUTO = "auto"
AUTO_IMAGES = 32
"""Calibration inputs that the automatic choice of the cut looks at."""

Levels = Sequence[int | str]
"""What `levels` takes: N for a uniform quantizer, "a<N>" for the one over the range that serves the task best, "e<N>"
for the entropy-constrained one of the rate of N, "r<bits>" for the uniform one that serves the task best at so many
bits per element."""

MAX_RATE = 4
"""Most bits per element of "r<bits>"."""

Network = torch.nn.Module | str | os.PathLike[str]
"""What can be exported: a module, or the path of an ONNX file."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What `splitwire.export` wrote and measured.

    front, back: the two files. profile: what was baked into both.
    measures: one per operating point, in the profile's order. options: per tensor, the quantizers that the
    operating points were chosen from. settled: after how many calibration images the clipping ranges stayed within 2 %
    and the code lengths within 1 % of where they ended; None if they still moved. torch_difference: largest relative
    difference between the ONNX graph and the torch module, None for ONNX files (the difference of the halves from the
    whole is `profile.max_difference`). origin, opset: how the graph was made. skipped: images that could not be read.
    notes: what the user should know, one sentence each. comparisons: of an int8 front or a float16 back with float32,
    one for each that was asked for.
    """

    front: Path
    back: Path
    profile: CodecProfile
    measures: tuple[PointMeasure, ...]
    options: tuple[tuple[QuantizedTensor, ...], ...]
    settled: int | None
    torch_difference: float | None
    origin: str
    opset: int
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    def __str__(self) -> str:
        """A summary: what was cut where, a line per operating point, the notes, the folder."""
        p = self.profile
        elements = sum(t.elements for t in p.tensors)
        lines = [f"{p.model} cut after {p.cut}: {elements:,} elements, calibrated on {p.calibration_images} images"]
        for point, m in zip(p.operating_points, self.measures, strict=True):
            kept = f"error {m.relative_error:.3f}" if m.agreement is None else f"{m.agreement:.1%} of the answers kept"
            size = f"{point.bits_per_element:.3f} bits per element, {point.bits_per_element * elements / 8:,.0f} bytes"
            lines.append(f"  {point.name:<5} {size}, {kept}{' (default)' if point.name == p.default_op else ''}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"{self.front.name}, {self.back.name} in {self.front.parent}"])

    def __repr__(self) -> str:
        """One line."""
        p = self.profile
        points = ", ".join(point.name for point in p.operating_points)
        return f"<ExportResult {p.model} after {p.cut}: {points}; default {p.default_op}; in {self.front.parent}>"


def export_pair(
    model: Network,
    *,
    cut: str,
    calibration: Calibration,
    out: str | os.PathLike[str],
    preprocessing: Preprocessing | PictureOptions | None = None,
    input_shape: tuple[int, ...] | None = None,
    image_size: tuple[int, int] | None = None,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    task: Task | None = None,
    levels: Levels = LEVELS,
    default_op: str | None = None,
    images: int = LIMIT,
    outputs: Sequence[str] | None = None,
    front: FrontPrecision = "float32",
    back: BackPrecision = "float32",
    coder: Coder = "predictive",
    accept: Accept | None = None,
    link: Link | None = None,
    device: str | DeviceProfile | None = None,
    replace: bool = False,
    constants: Constants | None = None,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Cut `model` at the layer `cut`, calibrate the codec there, and write front.onnx and back.onnx to `out`.

    model: a module with one tensor in, or the path of an ONNX file; half precision becomes float32, with a note.
    cut: module path (`layer2`, `layer1.0.relu[1]`) or ONNX tensor name; several with commas between them; or
        AUTO, which takes what plan.py recommends for `link` and `device` (None: what plan.py assumes).
    calibration: folder of images, list of image files, video, array of network inputs (N, C, H, W) float32, torch
        Dataset, or an iterable of inputs; at most `images` of them are used.
    preprocessing: of image files; baked into the pair, the edge uses it too. Where a part of it is said, or nothing,
        the rest follows from the network's input (pictures.py) and is as for ImageNet, with a note.
    input_shape: (1, C, H, W); for a module, and for an ONNX file that leaves the image size open. None reads it off
        an array of inputs, `image_size` (height, width), or the crop of the preprocessing.
    labels: class names, baked into the pair. task: what the outputs are; None: what they say (purpose.py).
    levels: one operating point each: a number of quantizer levels N makes "n<N>", with uniform quantizers; "a<N>" the
        one over the range that does the least damage (ranges.py); "e<N>" the one with entropy-constrained quantizers
        that has the rate of "n<N>"; "r<bits>" the one with uniform quantizers that does the least damage at so many
        bits per element (budget.py).
    default_op: name of the default operating point; None chooses by measurement (measure.py).
    outputs: names of the outputs that the pair gives; None: all of them.
    coder: "predictive" makes the fewest bytes; each tensor that it does not serve well enough gets "context", which is
        several times as fast (docs/codec.md).
    front, back: what the halves compute in (precision.py). accept: asked for each one that is not float32, with its
        Comparison; a half that it refuses is written in float32. None accepts.
    replace: write over a pair of another network in `out` (overwrite.py); without it, that is a UsageError.
    constants: values of the other inputs of an ONNX file, by name; they are baked in (constants.py).
    progress: called as progress(stage, done, total).

    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError. Whatever fails, no half-written
    file remains, and a pair that was in `out` before stays. If a long calibration is interrupted, the same call goes on
    with it (checkpoint.py).
    """
    report = progress or _no_progress
    kinds = _check_levels(levels, default_op)
    check_precisions(front, back)
    check_coder(coder)
    if task is not None:
        check_task(task)
    if cut != AUTO and (link is not None or device is not None):
        raise UsageError(f"a link or a device goes with cut='auto'; the cut is {cut!r}")
    folder = Path(out)
    bake.check_folder(folder)
    label = name or _name(model)
    if cut != AUTO and not replace:
        overwrite.check_names(folder, label, cut)
    wanted = _wanted_shape(input_shape, calibration, preprocessing, image_size)
    how: Preprocessing | None = None
    notes: list[str] = []

    def start(shape: tuple[int, ...], dtype: InputType) -> tuple[CalibrationInputs, Float32Array]:
        nonlocal how
        if preprocessing is not None or are_images(calibration):
            how, said = completed(preprocessing, shape, dtype)
            notes.extend(said)
        stream = open_inputs(calibration, shape=shape, dtype=dtype, preprocessing=how, limit=images)
        return stream, verify.fill_up(stream.peek(max(verify.BATCHES)), shape, dtype)

    if isinstance(model, torch.nn.Module):
        check_none(constants)
        model, widened = in_float32(model)
        notes += [widened] if widened else []
        shape = wanted((None, None, None)) if callable(wanted) else wanted
        if shape is None:
            raise UsageError("a torch module does not say what it takes; pass input_shape=(1, C, H, W)")
        dtype = _dtype(calibration, preprocessing)
        # before the export, which takes seconds to minutes: most mistakes are here
        stream, first = start(shape[1:], dtype)
        report("Export to ONNX", 0, None)
        source = from_module(model, shape, dtype, outputs)
        report("Export to ONNX", 1, 1)
    else:
        source = from_file(Path(model), wanted, constants, outputs)
        stream, first = start(source.input_shape[1:], source.input_dtype)
    names = Names.of(source)
    purpose = task_of(source.graph, labels, task)
    if labels is not None:
        check_labels(source.graph, labels, task)
    found: Cut
    note: str | None
    if cut == AUTO:
        found, note = _choose_cut(source, names, stream, how, link, device, report)
        cut = found.label
        if not replace:
            overwrite.check_names(folder, label, cut)
    else:
        found, note = find_cut(source, names, cut)
    notes += [*source.notes, *([note] if note else [])]

    def reopen() -> CalibrationInputs | None:
        if stream.digest() is None:  # it came only once
            return None
        return open_inputs(
            calibration, shape=first.shape[1:], dtype=source.input_dtype, preprocessing=how, limit=images
        )

    report("Split and verify", 0, None)
    halves = split(source.model, found.tensors)
    difference, torch_difference = _verify(model, source, halves, first)
    whole = Half.of(halves.front, "front half"), Half.of(halves.back, "back half")
    if not replace:
        overwrite.check_halves(folder, whole[0].digest, whole[1].digest)
    specs, sizes = _what_crosses(whole[0].graph, first, found.tensors, halves.sizes)
    slopes = _slopes(halves.front, found.tensors)
    report("Split and verify", 1, 1)

    maker = CodecMaker(specs=specs, slopes=slopes, kinds=kinds, default_op=default_op, coder=coder, progress=report)
    with _checkpoint(folder, whole[0].digest, stream, how, images, kinds) as checkpoint:
        float32 = maker.make(*whole, stream, checkpoint=checkpoint)
        chosen, comparisons = choose(float32, maker, reopen, front=front, back=back, accept=accept)
        calibrated, measures = chosen.calibrated, chosen.measures
        profile = CodecProfile(
            model=label,
            cut=cut,
            tensors=tuple(
                msgspec.structs.replace(t.spec, mean=t.statistics.mean, taps=t.taps or msgspec.UNSET)
                for t in chosen.tensors
            ),
            sizes=sizes or msgspec.UNSET,
            outputs=_order_of_outputs(source, chosen.back.graph),
            operating_points=tuple(
                msgspec.structs.replace(p, agreement=m.agreement) for p, m in zip(chosen.points, measures, strict=True)
            ),
            default_op=chosen.default,
            front_sha256=chosen.front.digest,
            back_sha256=chosen.back.digest,
            preprocessing=how,
            labels=tuple(labels) if labels is not None else None,
            calibration_images=calibrated.statistics[0].count,
            max_difference=difference,
            front_precision="int8" if chosen.front.precision == "int8" else msgspec.UNSET,
            back_precision="float16" if chosen.back.precision == "float16" else msgspec.UNSET,
            task=purpose or msgspec.UNSET,
        )
        paths = bake.write_pair(chosen.front.model, chosen.back.model, profile, folder)
    if float32.calibrated.resumed:
        done = float32.calibrated.resumed
        notes.append(f"the calibration went on where an interrupted run had left it, after {done} inputs")
    notes += [f"the {c.option.precision} {c.half} was refused, and is float32" for c in comparisons if not c.kept]
    return ExportResult(
        front=paths[0],
        back=paths[1],
        profile=profile,
        measures=tuple(measures),
        options=tuple(tuple(own) for own in chosen.options),
        settled=calibrated.settled,
        torch_difference=torch_difference,
        origin=source.origin,
        opset=source.opset,
        skipped=tuple(stream.skipped),
        notes=(*notes, *_remarks(stream.skipped, measures, profile)),
        comparisons=comparisons,
    )


def _choose_cut(
    source: Source,
    names: Names,
    stream: CalibrationInputs,
    preprocessing: Preprocessing | None,
    link: Link | None,
    device: str | DeviceProfile | None,
    report: ProgressFn,
) -> tuple[Cut, str]:
    """The cut that plan.py recommends, and on what assumptions."""
    return recommend_cut(
        source,
        names,
        stream.peek(AUTO_IMAGES),
        preprocessing=preprocessing,
        link=link or AUTO_LINK,
        device=device or DEFAULT_DEVICE,
        progress=report,
    )


def _wanted_shape(
    given: tuple[int, ...] | None,
    calibration: Calibration,
    preprocessing: Preprocessing | PictureOptions | None,
    image_size: tuple[int, int] | None,
) -> WantedShape:
    """(1, C, H, W) as far as the caller says it: outright, by arrays of inputs, or by the size of the pictures."""
    if given is not None:
        return tuple(given)
    array_shape: tuple[int, ...] = tuple(getattr(calibration, "shape", ()))
    if len(array_shape) > 1:
        return (1, *array_shape[1:])
    return wanted_shape(preprocessing, image_size)


def _dtype(calibration: Calibration, preprocessing: Preprocessing | PictureOptions | None) -> InputType:
    """What a torch module takes: it does not say so itself."""
    asked = preprocessing.dtype if preprocessing is not None else UNSET
    held = str(getattr(calibration, "dtype", ""))
    return "uint8" if asked == "uint8" or held in ("uint8", "torch.uint8") else "float32"


def _check_levels(levels: Levels, default_op: str | None) -> list[Kind]:
    """The operating points to make, in their order. Raises UsageError."""
    kinds = sorted(filter(None, map(_kind, levels)), key=_order)
    if not kinds or len(set(kinds)) != len(levels):
        raise UsageError(
            f"levels must be different numbers from 2 to {MAX_LEVELS}, a2 to a{MAX_LEVELS} for ranges chosen by the"
            f" answers, e2 to e{MAX_LEVELS} for entropy-constrained quantizers, or r0.001 to r{MAX_RATE} for so many"
            f" bits per element; are {list(levels)}"
        )
    names = [kind.name for kind in kinds]
    if default_op is not None and default_op not in names:
        raise UsageError(f"default operating point {default_op!r} is not among {', '.join(names)}")
    return kinds


def _order(kind: Kind) -> tuple[bool, float, int]:
    """n2, a2, e2, n3, …, then the budgets."""
    return kind.family == "r", kind.value, "naer".index(kind.family)


def _kind(level: int | str) -> Kind | None:
    """4, "a4", "e4" or "r0.4"; None for anything else."""
    if not isinstance(level, str):
        return Kind(value=int(level)) if 2 <= level <= MAX_LEVELS else None
    if re.fullmatch("[ae][0-9]{1,3}", level) and 2 <= int(level[1:]) <= MAX_LEVELS:
        return Kind(value=int(level[1:]), family="a" if level[0] == "a" else "e")
    if re.fullmatch(r"r[0-9]{1,2}(\.[0-9]{1,3})?", level) and 0 < float(level[1:]) <= MAX_RATE:
        return Kind(value=float(level[1:]), family="r")
    return None


def _verify(model: Network, source: Source, halves: Halves, inputs: Float32Array) -> tuple[float, float | None]:
    """(halves against the whole, ONNX against torch)."""
    whole = Graph.of(source.model, what="whole network", exact=True)
    against_torch = check_torch(model, source, whole, inputs) if isinstance(model, torch.nn.Module) else None
    expected = verify.answers(whole, inputs)
    check_arrays(expected[0])
    del whole  # one graph at a time in ONNX Runtime: the weights may be large
    return verify.check_halves(expected, halves, inputs), against_torch


def _what_crosses(
    front: Graph, inputs: Float32Array, tensors: Sequence[str], sizes: Sequence[str]
) -> tuple[list[TensorSpec], tuple[SizeSpec, ...]]:
    """Shapes as the front half makes them: shape inference may not know them."""
    outputs = front.run(np.resize(inputs, (front.batch or 1, *inputs.shape[1:])))
    specs = [TensorSpec(name=n, shape=y.shape[1:]) for n, y in zip(tensors, outputs, strict=False)]
    behind = outputs[len(tensors) : len(tensors) + len(sizes)]
    return specs, tuple(SizeSpec(name=n, length=y.size) for n, y in zip(sizes, behind, strict=True))


def _slopes(front: ir.Model, tensors: Sequence[str]) -> list[float | None]:
    """Per tensor the negative slope of the (leaky) ReLU that makes it; None where something else does."""
    slopes: list[float | None] = []
    for value in front.graph.outputs[: len(tensors)]:
        node = value.producer()
        kind = node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""
        leak = node.attributes.get_float("alpha", 0.01) if node is not None else 0.0
        slopes.append({"Relu": 0.0, "LeakyRelu": leak}.get(kind))
    return slopes


def _checkpoint(
    folder: Path,
    front_sha256: str,
    inputs: CalibrationInputs,
    preprocessing: Preprocessing | None,
    images: int,
    kinds: Sequence[Kind],
) -> AbstractContextManager[Checkpoint | None]:
    """None for inputs that cannot be told to be the same the next time."""
    digest = inputs.digest()
    if digest is None:
        return nullcontext()
    key = (version("splitwire"), msgspec.json.encode([preprocessing, images, [kind.name for kind in kinds]]), digest)
    return Checkpoint(folder, front_sha256, *key)


def _order_of_outputs(source: Source, back: Graph) -> tuple[str, ...] | msgspec.UnsetType:
    """The whole network's outputs; unset if all of them come from the back half, in this order."""
    outputs = tuple(str(v.name) for v in source.graph.outputs)
    return msgspec.UNSET if outputs == back.outputs else outputs


def _name(model: Network) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else printable(Path(model).stem)


def _remarks(skipped: Sequence[Skipped], measures: Sequence[PointMeasure], profile: CodecProfile) -> list[str]:
    remarks = []
    if skipped:
        used = profile.calibration_images
        remarks.append(f"{len(skipped)} calibration image(s) could not be read and were skipped; {used} were used")
    chosen = next(m for m in measures if m.op == profile.default_op)
    if not chosen.good:
        figure = f"{chosen.agreement:.1%} agreement" if chosen.agreement is not None else f"error {chosen.loss:.3f}"
        remarks.append(
            f"the default {chosen.op} has only {figure} with the whole network on {chosen.inputs} calibration inputs;"
            " try more levels, or cut elsewhere"
        )
    return remarks


def _no_progress(stage: str, done: int, total: int | None) -> None:
    """Nobody is watching."""
