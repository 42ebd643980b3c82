"""ONNX Runtime as the exporter uses it: a graph in memory, arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from splitwire.codec.errors import UnsupportedModel

Array = NDArray[np.generic]
Float32Array = NDArray[np.float32]


class Graph:
    """A graph in ONNX Runtime on the CPU. `batch` is None if the batch is dynamic, else the only size it takes."""

    def __init__(self, data: bytes, *, what: str, exact: bool = False) -> None:
        """data: the serialised model. what: its name in messages ("front half").

        exact: optimise up to EXTENDED only. Above it ONNX Runtime changes the memory layout of convolutions, which
        moves results by up to 1e-6; the halves are compared with the whole without that (docs/exporter.md).
        Raises UnsupportedModel if ONNX Runtime does not take the graph.
        """
        level = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if exact else level.ORT_ENABLE_ALL
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # ONNX Runtime raises its own kinds, derived from Exception alone
            raise UnsupportedModel(f"ONNX Runtime does not take the {what}: {_line(e)}") from e
        self._what = what
        entry = self._session.get_inputs()[0]
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    @classmethod
    def of(cls, model: ir.Model, *, what: str, exact: bool = False) -> Graph:
        """A graph from an onnx_ir model."""
        return cls(serialise(model), what=what, exact=exact)

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs for one batch; `arrays` in the order of `inputs`. Raises UnsupportedModel where it fails."""
        try:
            return list(self._session.run(None, dict(zip(self.inputs, arrays, strict=True))))
        except Exception as e:
            batch = len(arrays[0])
            raise UnsupportedModel(f"ONNX Runtime failed in the {self._what} at batch {batch}: {_line(e)}") from e


def serialise(model: ir.Model) -> bytes:
    """The bytes of the model, the same for the same model: what the files hold and the profile's hashes cover."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def largest_difference(ours: Sequence[Array], reference: Sequence[Array], *, by_output: bool = False) -> float:
    """Largest |ours − reference| / max(1, |reference|) over all outputs; infinite where the shapes differ.

    by_output: |reference| is the largest magnitude of the output, not the element's own: for comparing different
    kernels, whose rounding errors are as large as the sums they come from, and not as their results.
    NaN against NaN, and infinity against the same infinity, count as equal: what is not finite is reported elsewhere.
    """
    worst = 0.0
    for a, b in zip(ours, reference, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.size:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        scale = np.abs(y[np.isfinite(y)]).max(initial=0.0) if by_output else np.abs(y)
        with np.errstate(invalid="ignore"):
            ratio = np.abs(x - y) / np.maximum(1.0, scale)
        ratio[same] = 0.0
        worst = max(worst, float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max()))
    return worst


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
