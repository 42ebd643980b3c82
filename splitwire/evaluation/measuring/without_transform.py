"""The halves of a transform pair at the features: the front gives them, and the back begins with them.

The files hold the features under their name between network and transform. So the front needs no more than further
outputs, and the back is cut there: the features are inputs in place of the coefficients, and the synthesis is left out.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import ProfileError
from splitwire.codec.profile import BACK, FRONT, CodecProfile
from splitwire.codec.shared.sessions import open_graph
from splitwire.codec.transform import Transform
from splitwire.codec.wire.reply import Outputs
from splitwire.codec.wire.sizes import Int64Array
from splitwire.evaluation.contenders.protocol import Float32Array
from splitwire.runtime_edge.graph import FrontGraph, open_front


@dataclass(frozen=True, kw_only=True)
class FeatureBack:
    """The back half behind its synthesis. inputs: names of the features, then of the sizes. outputs: of the back."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, features: Sequence[Float32Array], sizes: Sequence[Int64Array] = ()) -> Outputs:
        """Its outputs by name. features: (B, *feature_shape) float32 of each tensor, in the profile's order."""
        feeds: dict[str, NDArray[Any]] = dict(zip(self.inputs, [*features, *sizes], strict=True))
        return dict(zip(self.outputs, self.session.run(list(self.outputs), feeds), strict=True))


def open_without_transform(folder: Path, *, threads: int | None = None) -> tuple[FrontGraph, FeatureBack]:
    """Both halves of the transform pair in `folder`. The front gives the coefficients and, among its early outputs, the
    features.

    threads: of one inference; None lets ONNX Runtime choose. The edited graphs are in a temporary folder while they are
    opened. Raises ProfileError if a graph does not hold the features that its profile names.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # Windows keeps mapped weights
        edited = Path(name)
        front_model, back_model = ir.load(folder / FRONT), ir.load(folder / BACK)
        _save(with_features(front_model), edited / FRONT)
        _save(from_features(back_model), edited / BACK)
        front = open_front(edited / FRONT, threads=threads)
        session: ort.InferenceSession = open_graph(ort, edited / BACK, threads=threads, providers=None)
    features = tuple(t.features for t in transforms(front.profile))
    early = tuple(dict.fromkeys([*front.early, *features]))
    back = FeatureBack(
        session=session,
        inputs=(*features, *(s.name for s in front.profile.size_specs)),
        outputs=tuple(o.name for o in session.get_outputs()),
    )
    return dataclasses.replace(front, early=early), back


def transforms(profile: CodecProfile) -> Iterator[Transform]:
    """The transform of each tensor of a transform pair."""
    return (spec.transform for spec in profile.tensors if isinstance(spec.transform, Transform))


def with_features(front: ir.Model) -> ir.Model:
    """The front half, changed in place: the features are further outputs."""
    outputs = front.graph.outputs
    for coefficients, transform in _coefficients(front, "front", outputs):
        features = _features(front, "front", transform)
        _describe(features, transform, coefficients)
        if features not in outputs:
            outputs.append(features)
    return front


def from_features(back: ir.Model) -> ir.Model:
    """The back half, changed in place: the features are inputs, and the coefficients with their synthesis are gone."""
    inputs = back.graph.inputs
    for coefficients, transform in _coefficients(back, "back", inputs):
        computed = _features(back, "back", transform)
        features = ir.Value(name=transform.features)
        _describe(features, transform, coefficients)
        ir.convenience.replace_all_uses_with(computed, features, replace_graph_outputs=True)
        computed.name = f"{transform.features}/unused"
        inputs[inputs.index(coefficients)] = features
    RemoveUnusedNodesPass()(back)
    return back


def _coefficients(half: ir.Model, side: str, ends: Sequence[ir.Value]) -> list[tuple[ir.Value, Transform]]:
    """The coefficients among the ends of a half, each with its transform."""
    profile = CodecProfile.from_metadata(dict(half.metadata_props), f"the {side} half")
    by_name = {v.name: v for v in ends}
    names = [spec.name for spec in profile.tensors]
    return [(by_name[name], transform) for name, transform in zip(names, transforms(profile), strict=True)]


def _features(half: ir.Model, side: str, transform: Transform) -> ir.Value:
    values = ir.convenience.create_value_mapping(half.graph, include_subgraphs=False)
    if transform.features not in values:
        raise ProfileError(
            f"the {side} half does not hold the features {transform.features!r} of its own profile; export the model"
            " again"
        )
    return values[transform.features]


def _describe(features: ir.Value, transform: Transform, coefficients: ir.Value) -> None:
    """Give the features the type and the shape that an end of a graph must have; the batch is that of the
    coefficients."""
    batch = coefficients.shape[0] if coefficients.shape is not None else None
    features.type, features.shape = coefficients.type, ir.Shape([batch, *transform.feature_shape])


def _save(model: ir.Model, path: Path) -> None:
    """Write a graph. Weights that lie beside the original lie beside this one too."""
    apart = any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    ir.save(model, path, external_data=f"{path.name}.data" if apart else None)
