"""A new calibration of an exported pair, on other data: quantizers, tables, steps and limits; the graphs stay.

It needs nothing but front.onnx and back.onnx. The operating points keep their names. The profile changes, and so does
the fingerprint: both ends need the new files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from splitwire.codec.drift import DRIFT_KEY
from splitwire.codec.errors import FingerprintMismatch, UsageError
from splitwire.codec.profile import BACK, FRONT, METADATA_KEY, CodecProfile, OperatingPoint, TensorSpec
from splitwire.codec.shared.progress import ProgressFn, no_progress
from splitwire.codec.tables import Taps
from splitwire.codec.transform import Transform
from splitwire.exporter.calibration.calibrate import Sample
from splitwire.exporter.calibration.captured import feature_files, open_captured, split_graph
from splitwire.exporter.calibration.inputs import LIMIT, CalibrationInputs, open_inputs
from splitwire.exporter.calibration.items import Calibration
from splitwire.exporter.cutting.crossing import relu_slopes
from splitwire.exporter.network.inference import Array, Float32Array, Graph, InputType
from splitwire.exporter.pair import bake, metadata
from splitwire.exporter.pair.drift import measure_reference
from splitwire.exporter.pair.precision import float16_by_hand
from splitwire.exporter.pair.precision_choice import Candidate, CodecMaker, Half
from splitwire.exporter.pair.result import ExportResult, remarks
from splitwire.exporter.points.levels import check_levels
from splitwire.exporter.points.measure import PointMeasure, Reference, measured_inputs
from splitwire.exporter.transform.fold import with_outputs, without_synthesis
from splitwire.exporter.transform.renew import renew_transform

ORIGIN = "recalibration"
INPUT_TYPES: dict[ir.DataType | None, InputType] = {ir.DataType.FLOAT: "float32", ir.DataType.UINT8: "uint8"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An exported pair. front, back: as in the files, without splitwire's metadata."""

    profile: CodecProfile
    front: ir.Model
    back: ir.Model

    def opened_back(self) -> Half:
        """The back half. In float16 it is opened with float32 arithmetic and float16 weights, as at the export."""
        if self.profile.back_precision != "float16":
            return Half.of(self.back, "back half")
        graph = Graph.of(float16_by_hand(self.back), what="back half")
        return Half(model=self.back, graph=graph, precision="float16", digest=self.profile.back_sha256)


@dataclass(frozen=True, kw_only=True)
class _Codec:
    """What the recalibration makes. candidate: of a scalar pair; None of a transform pair."""

    specs: Sequence[TensorSpec]
    points: Sequence[OperatingPoint]
    measures: Sequence[PointMeasure]
    default: str
    images: int
    kept: Sequence[Float32Array]
    settled: int | None = None
    candidate: Candidate | None = None


def recalibrate_pair(
    pair: str | os.PathLike[str],
    *,
    calibration: Calibration,
    out: str | os.PathLike[str] | None = None,
    images: int = LIMIT,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Calibrate the codec of an exported pair again.

    pair: the folder of front.onnx and back.onnx. calibration: as for an export; or a folder of captured features (npz,
    `splitwire edge capture --what features`), which needs no front half. out: the folder for the new pair; None
    replaces the old one. images: the largest number of inputs that are used.
    Raises UsageError (no pair there; data that does not fit), ProfileError, FingerprintMismatch, ExportError (too few
    or constant inputs). After an error, the pair is unchanged.
    """
    report = progress or no_progress
    folder = Path(pair)
    target = folder if out is None else Path(out)
    bake.check_folder(target)
    old = open_pair(folder)
    files = feature_files(Path(calibration)) if isinstance(calibration, (str, os.PathLike)) else []
    if files and old.profile.size_specs:
        raise UsageError("this pair sends sizes beside its tensors: recalibrate it on pictures, not on features")
    if files:
        front = Half.of(split_graph(old.profile.tensors), "captured features")
        stream = open_captured(files, old.profile.tensors, images)
    else:
        front = Half.of(old.front, "front half", old.profile.front_precision or "float32")
        stream = _open_inputs(old, calibration, images)
    stream.peek(1)  # data that cannot be read is an error at once
    make = _transform_codec if old.profile.is_transform else _scalar_codec
    codec = make(old, front, stream, report, captured=bool(files))
    profile = msgspec.structs.replace(
        old.profile,
        tensors=tuple(codec.specs),
        operating_points=tuple(
            msgspec.structs.replace(point, agreement=measure.agreement)
            for point, measure in zip(codec.points, codec.measures, strict=True)
        ),
        default_op=codec.default,
        calibration_images=codec.images,
    )
    drift = measure_reference(profile, front.graph, codec.kept)
    written = bake.write_pair(old.front, old.back, profile, target, drift=drift)
    options = () if codec.candidate is None else tuple(tuple(row) for row in codec.candidate.options)
    return ExportResult(
        front=written[0],
        back=written[1],
        profile=profile,
        measures=tuple(codec.measures),
        options=options,
        settled=codec.settled,
        torch_difference=None,
        origin=ORIGIN,
        opset=old.front.graph.opset_imports.get("", 0),
        skipped=tuple(stream.skipped),
        notes=(
            "recalibrated: the graphs are as before, the fingerprint is new; deploy both files",
            *remarks(stream.skipped, codec.measures, profile),
        ),
    )


def open_pair(folder: Path) -> Pair:
    """Read both files. Raises UsageError, ProfileError, or FingerprintMismatch if they are of two pairs."""
    places = []
    for path in (folder / FRONT, folder / BACK):
        if not path.is_file():
            raise UsageError(f"{folder} holds no {path.name}; name the folder that `splitwire export` wrote")
        places.append(metadata.find_profile(path))
    front, back = (place.profile for place in places)
    if front.fingerprint != back.fingerprint:
        raise FingerprintMismatch(
            f"{FRONT} and {BACK} in {folder} are of two pairs ({front.fingerprint.hex()} and {back.fingerprint.hex()});"
            " export the model again"
        )
    models = [ir.load(place.path) for place in places]
    for model in models:
        for key in (METADATA_KEY, DRIFT_KEY):
            model.metadata_props.pop(key, None)
    return Pair(profile=front, front=models[0], back=models[1])


def _open_inputs(old: Pair, calibration: Calibration, images: int) -> CalibrationInputs:
    entry = old.front.graph.inputs[0]
    how = old.profile.preprocessing
    dims = None if entry.shape is None else tuple(entry.shape)[1:]
    if dims is not None and all(isinstance(n, int) for n in dims):
        shape = tuple(n for n in dims if isinstance(n, int))
    elif how is not None:
        shape = how.input_shape
    else:
        shape = tuple(getattr(calibration, "shape", ()))[1:]
    if not shape:
        raise UsageError("the network takes inputs of several sizes; give the calibration as an array of inputs")
    dtype = INPUT_TYPES.get(entry.dtype, "float32")
    return open_inputs(calibration, shape=shape, dtype=dtype, preprocessing=how, limit=images)


def _scalar_codec(old: Pair, front: Half, stream: CalibrationInputs, report: ProgressFn, *, captured: bool) -> _Codec:
    """Quantizers and tables of the same kinds of points. The reference is the pair itself without quantization."""
    profile = old.profile
    bare = [TensorSpec(name=t.name, shape=t.shape) for t in profile.tensors]
    names = [t.name for t in bare]
    slopes = relu_slopes(old.front, names)
    levels = [int(name[1:]) if name[0] == "n" else name for name in (p.name for p in profile.operating_points)]
    predicted = any(isinstance(t.taps, Taps) for t in profile.tensors)
    maker = CodecMaker(
        specs=bare,
        slopes=slopes,
        kinds=check_levels(levels, None),
        default_op=None,
        coder="predictive" if predicted else "context",
        progress=report,
    )
    made = maker.make(front, old.opened_back(), stream)
    return _Codec(
        specs=made.specs,
        points=made.points,
        measures=made.measures,
        default=made.default,
        images=made.calibrated.statistics[0].count,
        kept=made.calibrated.kept,
        settled=made.calibrated.settled,
        candidate=made,
    )


def _transform_codec(
    old: Pair, front: Half, stream: CalibrationInputs, report: ProgressFn, *, captured: bool
) -> _Codec:
    """Classes, tables and steps. The reference is the pair without its transform; on captured features, which are
    coefficients, the back half on exact ones."""
    profile = old.profile
    sample, images = Sample(), 0
    for _, x in stream:
        sample.add(x)
        images += 1
        report("Read the calibration", images, stream.total)
    features = [t.transform.features for t in profile.tensors if isinstance(t.transform, Transform)]
    graph, reference = front.graph, None
    if not captured:
        missing = [name for name in features if name not in front.graph.outputs]
        graph = Graph.of(with_outputs(old.front, missing), what="front half") if missing else front.graph
        reference = _reference(graph, Graph.of(without_synthesis(old.back, features), what="back half"), profile)
    back = old.opened_back()
    specs = [TensorSpec(name=t.name, shape=t.feature_shape) for t in profile.tensors]
    measured = measured_inputs(graph, specs, sample.kept)
    renewed = renew_transform(graph, back.graph, profile.tensors, profile.operating_points, measured, reference, report)
    return _Codec(
        specs=renewed.specs,
        points=renewed.points,
        measures=renewed.measures,
        default=renewed.default,
        images=images,
        kept=sample.kept,
    )


def _reference(front: Graph, back: Graph, profile: CodecProfile) -> Reference:
    """The outputs of the pair for its features as they are, without the transform."""
    features = [t.transform.features for t in profile.tensors if isinstance(t.transform, Transform)]
    names = [*features, *(s.name for s in profile.size_specs)]

    def outputs(x: Float32Array) -> list[Array]:
        found = dict(zip(front.outputs, front.run(x), strict=True))
        return back.run(*[np.asarray(found[name]) for name in names])

    return outputs
