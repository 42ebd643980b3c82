"""The pipeline, from a network to front.onnx and back.onnx: prepare → cut → calibrate → write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from msgspec import UNSET

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing, SizeSpec, TensorSpec
from splitwire.codec.progress import ProgressFn
from splitwire.codec.tasks import Task
from splitwire.codec.text import printable
from splitwire.exporter.calibration.checkpoint import Checkpoint
from splitwire.exporter.calibration.inputs import Calibration, CalibrationInputs, are_images, open_inputs
from splitwire.exporter.cutting import verify
from splitwire.exporter.cutting.crossing import relu_slopes, what_crosses
from splitwire.exporter.cutting.cuts import Cut, find_cut
from splitwire.exporter.cutting.layer_check import true_layer
from splitwire.exporter.cutting.names import EMPTY_NAME, Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.cutting.torch_check import check_torch
from splitwire.exporter.network.adapting.constants import check_none
from splitwire.exporter.network.adapting.outputs import check_arrays
from splitwire.exporter.network.adapting.widen import in_float32
from splitwire.exporter.network.inference import Array, Float32Array, Graph, InputType
from splitwire.exporter.network.pictures import WantedShape, completed, wanted_shape
from splitwire.exporter.network.purpose import check_labels, check_task, task_of
from splitwire.exporter.network.source import Source, from_file, from_module
from splitwire.exporter.options import CodecOptions, Network, NetworkOptions, PlanTarget
from splitwire.exporter.pair import bake, overwrite
from splitwire.exporter.pair.precision_choice import (
    Candidate,
    CodecMaker,
    Comparison,
    Half,
    check_coder,
    check_precisions,
    choose,
)
from splitwire.exporter.pair.result import ExportResult, remarks
from splitwire.exporter.planning.plan import AUTO_LINK, DEFAULT_DEVICE, recommend_cut
from splitwire.exporter.points import damage
from splitwire.exporter.points.design import Kind
from splitwire.exporter.points.levels import FINE, LEVELS, check_levels

AUTO = "auto"
AUTO_IMAGES = 32
"""Calibration inputs that the automatic choice of the cut looks at."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The calibration, opened for a network. first: the inputs that the halves are verified on.

    preprocessing: of its image files; None where there are none. notes: what the user should know of it.
    """

    stream: CalibrationInputs
    first: Float32Array
    preprocessing: Preprocessing | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network as one checked graph, with the names of its layers and its opened calibration.

    model: what the caller gave; a torch module in float32.
    """

    model: Network
    source: Source
    names: Names
    opened: Opened
    purpose: Task | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class CutNetwork:
    """The two halves, verified. label: of the cut. specs, sizes, slopes: of what crosses (crossing.py).

    difference: of the halves from the whole. torch_difference: of the graph from the torch module, None for a file.
    judged_as: what the outputs of the back are taken for.
    """

    label: str
    front: Half
    back: Half
    specs: list[TensorSpec]
    sizes: tuple[SizeSpec, ...]
    slopes: list[float | None]
    difference: float
    torch_difference: float | None
    judged_as: damage.Task
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The halves as they were chosen, with their operating points. resumed: inputs that an interrupted run had done."""

    chosen: Candidate
    comparisons: tuple[Comparison, ...]
    resumed: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the pair goes. replace: write over a pair of another network there (overwrite.py)."""

    folder: Path
    model: str
    replace: bool


def export_pair(
    model: Network,
    *,
    cut: str,
    calibration: Calibration,
    out: str | os.PathLike[str],
    network: NetworkOptions | None = None,
    codec: CodecOptions | None = None,
    target: PlanTarget | None = None,
    replace: bool = False,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Cut `model` at the layer `cut`, calibrate the codec there, and write front.onnx and back.onnx to `out`.

    model: a module with one tensor in, or the path of an ONNX file; half precision becomes float32, with a note.
    cut: module path (`layer2`, `layer1.0.relu[1]`) or ONNX tensor name; several with commas between them; or
        AUTO, which takes what plan.py recommends for `target`.
    calibration: folder of images, list of image files, video, array of network inputs (N, C, H, W) float32, torch
        Dataset, or an iterable of inputs.
    network, codec: as in options.py.
    replace: write over a pair of another network in `out` (overwrite.py); without it, that is a UsageError.
    progress: called as progress(stage, done, total).

    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError. Whatever fails, no half-written
    file remains, and a pair that was in `out` before stays. If a long calibration is interrupted, the same call goes on
    with it (checkpoint.py).
    """
    network, codec, target = network or NetworkOptions(), codec or CodecOptions(), target or PlanTarget()
    report = progress or _no_progress
    kinds = _check(network, codec, target, cut)
    place = Target(folder=Path(out), model=network.name or _name(model), replace=replace)
    bake.check_folder(place.folder)
    if cut != AUTO and not replace:
        overwrite.check_names(place.folder, place.model, cut)

    prepared = prepare(model, calibration, network, report)
    halves = cut_network(prepared, cut, target, place, report)
    if tuple(codec.levels) == LEVELS and halves.judged_as == "values":
        kinds = check_levels((*LEVELS, *FINE), codec.default_op)
    with _checkpoint(place.folder, halves.front.digest, prepared.opened, network.images, kinds) as checkpoint:
        made = calibrate(prepared, halves, kinds, codec, calibration, network.images, checkpoint, report)
        return write(prepared, halves, made, network.labels, place)


def prepare(model: Network, calibration: Calibration, options: NetworkOptions, report: ProgressFn) -> Prepared:
    """The network as one checked graph, and its calibration, opened: most mistakes are there, so that it comes before
    the export of a module, which takes seconds to minutes."""
    wanted = _wanted_shape(calibration, options)
    notes: list[str] = []
    if isinstance(model, torch.nn.Module):
        check_none(options.constants)
        model, widened = in_float32(model)
        notes += [widened] if widened else []
        shape = wanted((None, None, None)) if callable(wanted) else wanted
        if shape is None:
            raise UsageError("a torch module does not say what it takes; pass input_shape=(1, C, H, W)")
        dtype = _dtype(calibration, options)
        opened = _open(calibration, options, shape[1:], dtype)
        report("Export to ONNX", 0, None)
        source = from_module(model, shape, dtype, options.outputs)
        report("Export to ONNX", 1, 1)
    else:
        source = from_file(Path(model), wanted, options.constants, options.outputs)
        opened = _open(calibration, options, source.input_shape[1:], source.input_dtype)
    names = Names.of(source)
    purpose = task_of(source.graph, options.labels, options.task)
    if options.labels is not None:
        check_labels(source.graph, options.labels, options.task)
    notes += [*opened.notes, *source.notes]
    return Prepared(model=model, source=source, names=names, opened=opened, purpose=purpose, notes=notes)


def cut_network(prepared: Prepared, cut: str, target: PlanTarget, place: Target, report: ProgressFn) -> CutNetwork:
    """The two halves of the network, verified against the whole."""
    source, opened = prepared.source, prepared.opened
    note: str | None
    if cut == AUTO:
        found, note = recommend_cut(
            source,
            prepared.names,
            opened.stream.peek(AUTO_IMAGES),
            preprocessing=opened.preprocessing,
            link=target.link or AUTO_LINK,
            device=target.device or DEFAULT_DEVICE,
            progress=report,
        )
        cut = _unmoved(prepared, found)
        if not place.replace:
            overwrite.check_names(place.folder, place.model, cut)
        report("Split and verify", 0, None)
    else:
        report("Split and verify", 0, None)
        spec, moved = _true_layer(prepared, cut)
        found, note = find_cut(prepared.names, spec)
        note = "; ".join(filter(None, (moved, note))) or None
    halves = split(source.model, found.tensors)
    difference, torch_difference, answers = _verify(prepared.model, source, halves, opened.first)
    front, back = Half.of(halves.front, "front half"), Half.of(halves.back, "back half")
    if not place.replace:
        overwrite.check_halves(place.folder, front.digest, back.digest)
    specs, sizes = what_crosses(front.graph, opened.first, found.tensors, halves.sizes)
    slopes = relu_slopes(halves.front, found.tensors)
    report("Split and verify", 1, 1)
    return CutNetwork(
        label=cut,
        front=front,
        back=back,
        specs=specs,
        sizes=sizes,
        slopes=slopes,
        difference=difference,
        torch_difference=torch_difference,
        judged_as=damage.judged_as(back.graph.outputs, [answers[name] for name in back.graph.outputs]),
        note=note,
    )


def _true_layer(prepared: Prepared, cut: str) -> tuple[str, str | None]:
    """The cut as `find_cut` takes it, and a note: the name of a layer means what the torch module returns there."""
    if not isinstance(prepared.model, torch.nn.Module):
        return cut, None
    return true_layer(prepared.model, prepared.source, prepared.names, cut, prepared.opened.first)


def _unmoved(prepared: Prepared, cut: Cut) -> str:
    """How to name a cut that was found in the graph: by its tensors where its label leads to others in torch."""
    tensors = ",".join(cut.tensors)
    try:
        spec, note = _true_layer(prepared, cut.label)
    except UsageError:
        return tensors
    return spec if note is None else tensors


def calibrate(
    prepared: Prepared,
    halves: CutNetwork,
    kinds: Sequence[Kind],
    options: CodecOptions,
    calibration: Calibration,
    images: int,
    checkpoint: Checkpoint | None,
    report: ProgressFn,
) -> Codec:
    """The operating points from one pass over the calibration; an int8 front makes a second pass over it."""
    opened = prepared.opened

    def reopen() -> CalibrationInputs | None:
        if opened.stream.digest() is None:  # it came only once
            return None
        shape, dtype = opened.first.shape[1:], prepared.source.input_dtype
        return open_inputs(calibration, shape=shape, dtype=dtype, preprocessing=opened.preprocessing, limit=images)

    maker = CodecMaker(
        specs=halves.specs,
        slopes=halves.slopes,
        kinds=kinds,
        default_op=options.default_op,
        coder=options.coder,
        progress=report,
    )
    float32 = maker.make(halves.front, halves.back, opened.stream, checkpoint=checkpoint)
    chosen, comparisons = choose(float32, maker, reopen, front=options.front, back=options.back, accept=options.accept)
    return Codec(chosen=chosen, comparisons=comparisons, resumed=float32.calibrated.resumed)


def write(
    prepared: Prepared, halves: CutNetwork, codec: Codec, labels: Sequence[str] | None, place: Target
) -> ExportResult:
    """Bake the profile into both halves, and write them."""
    source, stream, chosen = prepared.source, prepared.opened.stream, codec.chosen
    calibrated, measures = chosen.calibrated, chosen.measures
    profile = CodecProfile(
        model=place.model,
        cut=halves.label,
        tensors=tuple(
            msgspec.structs.replace(t.spec, mean=t.statistics.mean, taps=t.taps or UNSET) for t in chosen.tensors
        ),
        sizes=halves.sizes or UNSET,
        outputs=_order_of_outputs(source, chosen.back.graph),
        operating_points=tuple(
            msgspec.structs.replace(p, agreement=m.agreement) for p, m in zip(chosen.points, measures, strict=True)
        ),
        default_op=chosen.default,
        front_sha256=chosen.front.digest,
        back_sha256=chosen.back.digest,
        preprocessing=prepared.opened.preprocessing,
        labels=tuple(labels) if labels is not None else None,
        calibration_images=calibrated.statistics[0].count,
        max_difference=halves.difference,
        front_precision="int8" if chosen.front.precision == "int8" else UNSET,
        back_precision="float16" if chosen.back.precision == "float16" else UNSET,
        task=prepared.purpose or UNSET,
    )
    front, back = bake.write_pair(chosen.front.model, chosen.back.model, profile, place.folder)
    notes = [*prepared.notes, *([halves.note] if halves.note else [])]
    if codec.resumed:
        notes.append(f"the calibration went on where an interrupted run had left it, after {codec.resumed} inputs")
    notes += [f"the {c.option.precision} {c.half} was refused, and is float32" for c in codec.comparisons if not c.kept]
    return ExportResult(
        front=front,
        back=back,
        profile=profile,
        measures=tuple(measures),
        options=tuple(tuple(own) for own in chosen.options),
        settled=calibrated.settled,
        torch_difference=halves.torch_difference,
        origin=source.origin,
        opset=source.opset,
        skipped=tuple(stream.skipped),
        notes=(*notes, *remarks(stream.skipped, measures, profile)),
        comparisons=codec.comparisons,
    )


def _check(network: NetworkOptions, codec: CodecOptions, target: PlanTarget, cut: str) -> list[Kind]:
    """The operating points to make, in their order. Raises UsageError for what contradicts itself, or is not known."""
    kinds = check_levels(codec.levels, codec.default_op)
    if not cut.strip(", "):
        raise UsageError(EMPTY_NAME)
    check_precisions(codec.front, codec.back)
    check_coder(codec.coder)
    if network.task is not None:
        check_task(network.task)
    if cut != AUTO and (target.link is not None or target.device is not None):
        raise UsageError(f"a link or a device goes with cut='auto'; the cut is {cut!r}")
    return kinds


def _open(calibration: Calibration, options: NetworkOptions, shape: tuple[int, ...], dtype: InputType) -> Opened:
    how: Preprocessing | None = None
    notes: list[str] = []
    if options.preprocessing is not None or are_images(calibration):
        how, notes = completed(options.preprocessing, shape, dtype)
    stream = open_inputs(calibration, shape=shape, dtype=dtype, preprocessing=how, limit=options.images)
    first = verify.fill_up(stream.peek(max(verify.BATCHES)), shape, dtype)
    return Opened(stream=stream, first=first, preprocessing=how, notes=notes)


def _wanted_shape(calibration: Calibration, options: NetworkOptions) -> WantedShape:
    """(1, C, H, W) as far as the caller says it: outright, by arrays of inputs, or by the size of the pictures."""
    if options.input_shape is not None:
        return tuple(options.input_shape)
    array_shape: tuple[int, ...] = tuple(getattr(calibration, "shape", ()))
    if len(array_shape) > 1:
        return (1, *array_shape[1:])
    return wanted_shape(options.preprocessing, options.image_size)


def _dtype(calibration: Calibration, options: NetworkOptions) -> InputType:
    """What a torch module takes: it does not say so itself."""
    asked = options.preprocessing.dtype if options.preprocessing is not None else UNSET
    held = str(getattr(calibration, "dtype", ""))
    return "uint8" if asked == "uint8" or held in ("uint8", "torch.uint8") else "float32"


def _verify(
    model: Network, source: Source, halves: Halves, inputs: Float32Array
) -> tuple[float, float | None, dict[str, Array]]:
    """(halves against the whole, ONNX against torch, outputs of the whole)."""
    whole = Graph.of(source.model, what="whole network", exact=True)
    against_torch = check_torch(model, source, whole, inputs) if isinstance(model, torch.nn.Module) else None
    expected = verify.answers(whole, inputs)
    check_arrays(expected[0])
    del whole  # one graph at a time in ONNX Runtime: the weights may be large
    return verify.check_halves(expected, halves, inputs), against_torch, expected[0]


def _checkpoint(
    folder: Path, front_sha256: str, opened: Opened, images: int, kinds: Sequence[Kind]
) -> AbstractContextManager[Checkpoint | None]:
    """None for inputs that cannot be told to be the same the next time."""
    digest = opened.stream.digest()
    if digest is None:
        return nullcontext()
    made_by = msgspec.json.encode([opened.preprocessing, images, [kind.name for kind in kinds]])
    return Checkpoint(folder, front_sha256, version("splitwire"), made_by, digest)


def _order_of_outputs(source: Source, back: Graph) -> tuple[str, ...] | msgspec.UnsetType:
    """The whole network's outputs; unset if all of them come from the back half, in this order."""
    outputs = tuple(str(v.name) for v in source.graph.outputs)
    return msgspec.UNSET if outputs == back.outputs else outputs


def _name(model: Network) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else printable(Path(model).stem)


def _no_progress(stage: str, done: int, total: int | None) -> None:
    """Nobody is watching."""
