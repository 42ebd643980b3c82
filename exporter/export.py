"""The pipeline, from a network to front.onnx and back.onnx: prepare → cut → calibrate → write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from msgspec import UNSET, UnsetType

from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import CodecProfile, SizeSpec, TensorSpec
from splitwire.codec.shared.progress import ProgressFn, no_progress
from splitwire.codec.shared.tasks import Task
from splitwire.codec.shared.text import printable
from splitwire.exporter.calibration.calibrate import Calibrated
from splitwire.exporter.calibration.checkpoint import Checkpoint
from splitwire.exporter.calibration.items import Calibration
from splitwire.exporter.cutting import verify
from splitwire.exporter.cutting.crossing import relu_slopes, what_crosses
from splitwire.exporter.cutting.cuts import Cut, find_cut
from splitwire.exporter.cutting.layer_check import true_layer
from splitwire.exporter.cutting.names import EMPTY_NAME, Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.cutting.torch_check import check_torch
from splitwire.exporter.loading import Opened, load, open_calibration
from splitwire.exporter.network.adapting.outputs import check_arrays
from splitwire.exporter.network.inference import Array, Graph
from splitwire.exporter.network.purpose import check_labels, check_task, task_of
from splitwire.exporter.network.source import Source
from splitwire.exporter.options import CodecOptions, Network, NetworkOptions, PlanTarget
from splitwire.exporter.pair import bake, overwrite
from splitwire.exporter.pair.codec_choice import Decision, choose_codec, decide, measured
from splitwire.exporter.pair.drift import measure_reference
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
from splitwire.exporter.pair.transform_pair import transform_pair
from splitwire.exporter.planning.plan import AUTO_LINK, DEFAULT_DEVICE, recommend_cut
from splitwire.exporter.points import damage
from splitwire.exporter.points.design import Kind
from splitwire.exporter.points.levels import FINE, LEVELS, check_levels
from splitwire.exporter.transform.fold import with_outputs
from splitwire.exporter.transform.refinement.objective import Goal

AUTO = "auto"
AUTO_IMAGES = 32
"""Calibration inputs that the automatic choice of the cut uses."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network as one checked graph, with the names of its layers and its opened calibration.

    model: what the caller passed; a torch module is in float32. task: what the outputs are, None if unknown.
    notes: what the user should know.
    """

    model: Network
    source: Source
    names: Names
    opened: Opened
    task: Task | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class CutNetwork:
    """The two halves, verified.

    label: the name of the cut. specs, sizes, slopes: of the tensors and sizes that cross the cut (crossing.py).
    difference: between the joined halves and the whole graph. torch_difference: between the graph and the torch module;
    None for a file. judged_as: the task by which the distortion of the outputs is measured.
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
    """The chosen halves and their operating points.

    resumed: how many inputs an interrupted run had processed. notes: what the user should know.
    """

    chosen: Candidate
    comparisons: tuple[Comparison, ...]
    resumed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the pair is written. replace: whether a pair of another network there may be replaced (overwrite.py)."""

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

    model: a module with one tensor in, or the path of an ONNX file. Half precision becomes float32, with a note.
    cut: a module path (`layer2`, `layer1.0.relu[1]`) or an ONNX tensor name; several of these with commas between
        them; or AUTO, the cut that plan.py recommends for `target`.
    calibration: folder of images, list of image files, video, array of network inputs (N, C, H, W) float32, torch
        Dataset, or an iterable of inputs.
    network, codec: see options.py.
    replace: replace a pair of another network in `out` (overwrite.py); if False, such a pair is a UsageError.
    progress: called as progress(stage, done, total).

    Raises UsageError, CutNotBounded, UnsupportedModel, NonFiniteFeatures, ExportError. After an error, no half-written
    file remains, and a pair that was in `out` before is unchanged. After an interrupt, the same call resumes a long
    calibration (checkpoint.py).
    """
    network, codec, target = network or NetworkOptions(), codec or CodecOptions(), target or PlanTarget()
    report = progress or no_progress
    kinds = _check(network, codec, target, cut)
    place = Target(folder=Path(out), model=network.name or _name(model), replace=replace)
    bake.check_folder(place.folder)
    if cut != AUTO and not replace:
        overwrite.check_names(place.folder, place.model, cut)

    prepared = prepare(model, calibration, network, report)
    halves = cut_network(prepared, cut, target, place, report)
    if codec.levels is None and halves.judged_as == "values":
        kinds = check_levels((*LEVELS, *FINE), None)
    with _checkpoint(place.folder, halves.front.digest, prepared.opened, network.images, kinds) as checkpoint:
        designed = calibrate(prepared, halves, kinds, codec, checkpoint, report)
        return write(prepared, halves, designed, network.labels, place)


def prepare(model: Network, calibration: Calibration, options: NetworkOptions, report: ProgressFn) -> Prepared:
    """Read the network as one checked graph, and open its calibration."""
    loaded = load(model, calibration, options, partial(open_calibration, calibration, options), report)
    source, opened = loaded.source, loaded.data
    names = Names.of(source)
    task = task_of(source.graph, options.labels, options.task)
    if options.labels is not None:
        check_labels(source.graph, options.labels, options.task)
    notes = [*loaded.notes, *opened.notes, *source.notes]
    return Prepared(model=loaded.model, source=source, names=names, opened=opened, task=task, notes=notes)


def cut_network(prepared: Prepared, cut: str, target: PlanTarget, place: Target, report: ProgressFn) -> CutNetwork:
    """Split the network into two halves, and verify them against the whole."""
    source, opened = prepared.source, prepared.opened
    if cut == AUTO:
        chosen, label, note = _recommended_cut(prepared, target, report)
        if not place.replace:
            overwrite.check_names(place.folder, place.model, label)
        report("Split and verify", 0, None)
    else:
        report("Split and verify", 0, None)
        label = cut
        chosen, note = _named_cut(prepared, cut)
    halves = split(source.model, chosen.tensors)
    difference, torch_difference, answers = _verify(prepared, halves)
    front, back = Half.of(halves.front, "front half"), Half.of(halves.back, "back half")
    specs, sizes = what_crosses(front.graph, opened.first, chosen.tensors, halves.sizes)
    slopes = relu_slopes(halves.front, chosen.tensors)
    report("Split and verify", 1, 1)
    return CutNetwork(
        label=label,
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


def calibrate(
    prepared: Prepared,
    halves: CutNetwork,
    kinds: Sequence[Kind],
    options: CodecOptions,
    checkpoint: Checkpoint | None,
    report: ProgressFn,
) -> Codec:
    """Design the operating points from one pass over the calibration. An int8 front needs a second pass."""
    stream, decision = prepared.opened.stream, _decide(options)
    maker = CodecMaker(
        specs=halves.specs,
        slopes=halves.slopes,
        kinds=kinds,
        default_op=options.default_op,
        coder=options.coder,
        progress=report,
    )
    calibrated = maker.calibrate(halves.front, stream, checkpoint)
    notes: list[str] = []
    if decision.kind != "scalar":
        try:
            goal = Goal(task=prepared.task, loss=options.task_loss)
            chosen, notes = _with_transform(halves, maker, calibrated, options, decision, goal)
            return Codec(chosen=chosen, comparisons=(), resumed=calibrated.resumed, notes=tuple(notes))
        except ExportError as e:
            if not decision.may_fall_back:
                raise
            notes = [f"scalar points were kept: {e}"]
    float32 = maker.design(halves.front, halves.back, calibrated)
    chosen, comparisons = choose(
        float32, maker, stream.again, front=options.front, back=options.back, accept=options.accept
    )
    return Codec(chosen=chosen, comparisons=comparisons, resumed=calibrated.resumed, notes=tuple(notes))


def _with_transform(
    halves: CutNetwork,
    maker: CodecMaker,
    calibrated: Calibrated,
    options: CodecOptions,
    decision: Decision,
    goal: Goal,
) -> tuple[Candidate, list[str]]:
    """The pair with a transform, or the better one of this and scalar points; and notes."""
    front, back, report = halves.front, halves.back, maker.progress
    transform, notes = transform_pair(
        front, back, calibrated, halves.specs, options.refine, options.default_op, report, goal
    )
    if decision.kind == "transform":
        return measured(transform, front, back, options.default_op, report), notes
    chosen, note = choose_codec(maker.draft(front, back, calibrated), transform, report)
    return chosen, [*notes, note]


def write(
    prepared: Prepared, halves: CutNetwork, codec: Codec, labels: Sequence[str] | None, place: Target
) -> ExportResult:
    """Write both halves with the profile in them."""
    source, skipped = prepared.source, prepared.opened.stream.skipped
    chosen = _with_all_outputs(codec.chosen, source)
    profile = _profile(prepared, halves, chosen, labels, place.model)
    drift = measure_reference(profile, chosen.front.graph, chosen.calibrated.kept)
    front, back = bake.write_pair(chosen.front.model, chosen.back.model, profile, place.folder, drift=drift)
    notes = [*prepared.notes, *([halves.note] if halves.note else []), *codec.notes]
    if codec.resumed:
        notes.append(f"the calibration went on where an interrupted run had left it, after {codec.resumed} inputs")
    notes += [f"the {c.option.precision} {c.half} was refused, and is float32" for c in codec.comparisons if not c.kept]
    return ExportResult(
        front=front,
        back=back,
        profile=profile,
        measures=tuple(chosen.measures),
        options=tuple(tuple(quantizers) for quantizers in chosen.options),
        settled=chosen.calibrated.settled,
        torch_difference=halves.torch_difference,
        origin=source.origin,
        opset=source.opset,
        skipped=tuple(skipped),
        notes=(*notes, *remarks(skipped, chosen.measures, profile)),
        comparisons=codec.comparisons,
    )


def _with_all_outputs(chosen: Candidate, source: Source) -> Candidate:
    """The pair with every output of the network. One that is a tensor at the cut is not what a transform pair sends."""
    given = {*chosen.front.graph.outputs, *chosen.back.graph.outputs}
    missing = [str(v.name) for v in source.graph.outputs if v.name not in given]
    if not missing:
        return chosen
    return replace(chosen, front=Half.of(with_outputs(chosen.front.model, missing), "front half with the analysis"))


def _check(network: NetworkOptions, codec: CodecOptions, target: PlanTarget, cut: str) -> list[Kind]:
    """The operating points to make, in order. Raises UsageError for unknown or contradictory options."""
    if not cut.strip(", "):
        raise UsageError(EMPTY_NAME)
    check_precisions(codec.front, codec.back)
    check_coder(codec.coder)
    scalar = _decide(codec).kind == "scalar"
    if scalar and codec.task_loss is not None:
        raise UsageError("a task loss is what a transform is designed for; these options ask for scalar points")
    kinds = check_levels(LEVELS if codec.levels is None else codec.levels, codec.default_op if scalar else None)
    if network.task is not None:
        check_task(network.task)
    if cut != AUTO and (target.link is not None or target.device is not None):
        raise UsageError(f"a link or a device goes with cut='auto'; the cut is {cut!r}")
    return kinds


def _decide(options: CodecOptions) -> Decision:
    return decide(
        options.codec,
        front=options.front,
        back=options.back,
        coder=options.coder,
        default_op=options.default_op,
        levels=options.levels is not None,
    )


def _recommended_cut(prepared: Prepared, target: PlanTarget, report: ProgressFn) -> tuple[Cut, str, str | None]:
    """The cut that the plan recommends, its label, and a note about it."""
    cut, note = recommend_cut(
        prepared.source,
        prepared.names,
        prepared.opened.stream.peek(AUTO_IMAGES),
        preprocessing=prepared.opened.preprocessing,
        link=target.link or AUTO_LINK,
        device=target.device or DEFAULT_DEVICE,
        progress=report,
    )
    return cut, _label_in_torch(prepared, cut), note


def _named_cut(prepared: Prepared, cut: str) -> tuple[Cut, str | None]:
    """The cut that the caller names, and a note about it."""
    spec, merged = _true_layer(prepared, cut)
    chosen, note = find_cut(prepared.names, spec)
    return chosen, "; ".join(filter(None, (merged, note))) or None


def _true_layer(prepared: Prepared, cut: str) -> tuple[str, str | None]:
    """The cut in the form of `find_cut`, and a note. A layer's name stands for what the torch module returns there."""
    if not isinstance(prepared.model, torch.nn.Module):
        return cut, None
    return true_layer(prepared.model, prepared.source, prepared.names, cut, prepared.opened.first)


def _label_in_torch(prepared: Prepared, cut: Cut) -> str:
    """The label of a cut, or the names of its tensors if the label stands for other tensors in the torch module."""
    tensors = ",".join(cut.tensors)
    try:
        spec, note = _true_layer(prepared, cut.label)
    except UsageError:
        return tensors
    return spec if note is None else tensors


def _verify(prepared: Prepared, halves: Halves) -> tuple[float, float | None, dict[str, Array]]:
    """The difference of the halves from the whole graph, that of the graph from the torch module, the whole's
    outputs."""
    model, source, inputs = prepared.model, prepared.source, prepared.opened.first
    whole = Graph.of(source.model, what="whole network", exact=True)
    torch_difference = check_torch(model, source, whole, inputs) if isinstance(model, torch.nn.Module) else None
    expected = verify.answers(whole, inputs)
    check_arrays(expected[0])
    del whole  # only one graph at a time in ONNX Runtime: the weights may be large
    return verify.check_halves(expected, halves, inputs), torch_difference, expected[0]


def _profile(
    prepared: Prepared, halves: CutNetwork, chosen: Candidate, labels: Sequence[str] | None, model: str
) -> CodecProfile:
    """What both ends must know about the pair."""
    return CodecProfile(
        model=model,
        cut=halves.label,
        tensors=chosen.specs,
        sizes=halves.sizes or UNSET,
        outputs=_order_of_outputs(prepared.source, chosen.back.graph),
        operating_points=tuple(
            msgspec.structs.replace(point, agreement=measure.agreement)
            for point, measure in zip(chosen.points, chosen.measures, strict=True)
        ),
        default_op=chosen.default,
        front_sha256=chosen.front.digest,
        back_sha256=chosen.back.digest,
        preprocessing=prepared.opened.preprocessing,
        labels=tuple(labels) if labels is not None else None,
        calibration_images=chosen.calibrated.statistics[0].count,
        max_difference=halves.difference,
        front_precision="int8" if chosen.front.precision == "int8" else UNSET,
        back_precision="float16" if chosen.back.precision == "float16" else UNSET,
        task=prepared.task or UNSET,
        frames="compact",
    )


def _order_of_outputs(source: Source, back: Graph) -> tuple[str, ...] | UnsetType:
    """The outputs of the whole network; unset if the back half gives exactly these, in this order."""
    outputs = tuple(str(v.name) for v in source.graph.outputs)
    return UNSET if outputs == back.outputs else outputs


def _checkpoint(
    folder: Path, front_sha256: str, opened: Opened, images: int, kinds: Sequence[Kind]
) -> AbstractContextManager[Checkpoint | None]:
    """The file that keeps an interrupted calibration; None if the inputs can be read only once."""
    digest = opened.stream.digest()
    if digest is None:
        return nullcontext()
    options = msgspec.json.encode([opened.preprocessing, images, [kind.name for kind in kinds]])
    return Checkpoint(folder, front_sha256, version("splitwire"), options, digest)


def _name(model: Network) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else printable(Path(model).stem)
