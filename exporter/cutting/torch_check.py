"""Compare the ONNX graph with the torch module that it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.shared.tasks import box_iou
from splitwire.exporter.network.inference import Float32Array, Graph, largest_difference
from splitwire.exporter.network.source import Source, evaluating, is_torchvision_detector, plain

from .names import Names
from .verify import BATCHES

TORCH_TOLERANCE = 1e-3
"""Largest accepted |ONNX − torch| / max(1, largest |torch|). The kernels differ, and so does the order of sums. Float32
networks agree to 1e-5; a wrong graph differs by far more (swin_t with free sizes: 0.03)."""

SCORE_TOLERANCE, MIN_OVERLAP, MAX_SHIFT, MIN_FOUND = 0.02, 0.5, 1.0, 0.5
"""Two detections match if their classes are equal, their scores differ by at most SCORE_TOLERANCE, and their boxes have
an intersection over union above MIN_OVERLAP or corners within MAX_SHIFT pixels. MIN_FOUND is the share of detections
that must match. The limits are loose because the selection is a cascade of comparisons: boxes with scores that differ
in the last digit change places (Faster R-CNN with random weights: 97 % match, scores differ by 0.01). With a wrong
selection hardly any detection matches."""

TIE = 1e-5
"""Detections with scores this close are not compared: with random weights, chance decides which one is kept."""


def check_torch(module: torch.nn.Module, source: Source, whole: Graph, inputs: Float32Array) -> float:
    """Largest relative difference between the ONNX graph and the torch module it came from, over BATCHES.

    source: of the module. whole: its graph, made with exact=True. inputs: (3, …) float32.
    For a detector, the difference is that of the outputs of its backbone and its head, before the selection of boxes.
    (Where scores tie, the selected boxes depend on the last digit. They are compared as sets.)
    Raises ExportError if the difference is over TORCH_TOLERANCE: the export is wrong, or is right only for the traced
    batch.
    """
    if is_torchvision_detector(module):
        return _check_detector(module, source, inputs)
    worst = 0.0
    for n in BATCHES if whole.batch is None else (whole.batch,):
        x = np.resize(inputs, (n, *inputs.shape[1:]))
        expected = arrays_of(run_module(module, x))
        ours = whole.run(x)
        difference = largest_difference(ours, expected, by_output=True) if len(ours) == len(expected) else float("inf")
        _judge(difference, f"at batch {n}", "does forward() depend on the batch size, or on chance?")
        worst = max(worst, difference)
    return worst


def _check_detector(module: torch.nn.Module, source: Source, inputs: Float32Array) -> float:
    worst = 0.0
    probes = _probes(module, source)
    if not probes:
        raise ExportError("the exported graph carries no module paths, so it cannot be compared with the detector")
    inner = [v for values in probes.values() for v in values]
    graph = Graph.of(_probing(source.model, inner), what="whole network", exact=True)
    for x in (inputs[:1], inputs[1:2]):
        with _tapped(module, probes) as taps:
            (detections,) = run_module(module, x)
        answer = dict(zip(graph.outputs, graph.run(x), strict=True))
        for path, values in probes.items():
            ours = [answer[str(v.name)] for v in values]
            for expected in arrays_of(taps[path]):
                # Matched by shape: the levels of a pyramid leave the graph in the order of their computation.
                same = [largest_difference([a], [expected], by_output=True) for a in ours if a.shape == expected.shape]
                difference = min(same, default=float("inf"))
                _judge(difference, f"at {path!r}", "please report this network")
                worst = max(worst, difference)
        share = found_again(answer, {name: t.cpu().numpy() for name, t in detections.items()})
        if share < MIN_FOUND:
            raise ExportError(
                f"the ONNX graph and the torch detector agree on only {share:.0%} of the boxes, {MIN_FOUND:.0%} is"
                " required; please report this network"
            )
    return worst


def found_again(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> float:
    """Share of the detections of each side that match one of the other side: the smaller share; 1 without detections.

    ours, theirs: boxes (N, 4) float32 corners, scores (N,) float32, labels (N,) int64. Detections with tied scores do
    not count, but they can be the match of another one.
    """
    clear = [_untied(side["scores"]) for side in (ours, theirs)]
    same = (
        (ours["labels"][:, None] == theirs["labels"])
        & (np.abs(ours["scores"][:, None] - theirs["scores"]) <= SCORE_TOLERANCE)
        & _close(ours["boxes"], theirs["boxes"])
    )
    matches = [same.any(axis=1)[clear[0]], same.any(axis=0)[clear[1]]]
    return min((float(f.mean()) for f in matches if f.size), default=1.0)


def _untied(scores: NDArray[Any]) -> NDArray[np.bool_]:
    order = np.argsort(scores)
    gaps = np.diff(scores[order].astype(np.float64), prepend=-np.inf, append=np.inf)
    untied = np.empty(len(scores), bool)
    untied[order] = (gaps[1:] > TIE) & (gaps[:-1] > TIE)
    return untied


def _close(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, M) whether boxes of a (N, 4) and of b (M, 4) are close.

    The corners are compared too, because boxes without area (clipped at the border) have no intersection.
    """
    shift = np.abs(a[:, None].astype(np.float64) - b).max(axis=2, initial=0.0)
    return np.asarray((shift <= MAX_SHIFT) | (box_iou(a, b) > MIN_OVERLAP))


def _probes(module: torch.nn.Module, source: Source) -> dict[str, tuple[ir.Value, ...]]:
    """Module path → the values that leave it, for the parts of a detector before the selection of boxes."""
    names, probes = Names.of(source), {}
    for path in ("backbone", "head", "rpn.head"):
        if path in source.modules:
            try:
                probes[path] = names.resolve(path).values
            except UsageError:  # a graph without module paths
                continue
    return probes


def _probing(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """A copy of the graph with these values as additional outputs."""
    copy = model.clone()
    inside = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    extra = dict.fromkeys(inside[str(v.name)] for v in values)
    copy.graph.outputs.extend(v for v in extra if not v.is_graph_output())
    return copy


@contextmanager
def _tapped(module: torch.nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Collect what the modules at `paths` return, inside the block."""
    taps: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in paths:

            def keep(_module: torch.nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
                taps[path] = output

            stack.enter_context(module.get_submodule(path).register_forward_hook(keep))
        yield taps


def run_module(module: torch.nn.Module, x: Float32Array) -> Any:
    """The result of the module in evaluation mode, for a batch of inputs (n, …)."""
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    tensor = torch.from_numpy(np.ascontiguousarray(x)).to(place)
    with evaluating(module), torch.no_grad():
        return module(list(tensor)) if is_torchvision_detector(module) else module(tensor)


def arrays_of(result: Any) -> list[NDArray[Any]]:
    """The tensors in the result of a module, in order."""
    return [t.cpu().numpy() for t in pytree.tree_leaves(plain(result)) if isinstance(t, torch.Tensor)]


def _judge(difference: float, where: str, hint: str) -> None:
    if difference > TORCH_TOLERANCE:
        raise ExportError(
            f"the ONNX graph does not give what the torch module gives: they differ by {difference:.3g} {where},"
            f" {TORCH_TOLERANCE:g} is allowed; {hint}"
        )
