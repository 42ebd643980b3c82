"""ONNX Runtime as the exporter uses it: a graph in memory, arrays in, arrays out; and graphs as bytes and as files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import CheckerPass

from splitwire.codec.device import int8_overflows
from splitwire.codec.errors import UnsupportedModel
from splitwire.codec.telemetry import stop_events

stop_events(ort)

Array = NDArray[np.generic]
Float32Array = NDArray[np.float32]
InputType = Literal["float32", "uint8"]
"""What a network's input may hold."""

MAX_MODEL_BYTES = 1_900_000_000
"""A protobuf message, and with it an ONNX file without external data, ends at 2 GiB; the graph itself takes a part."""

MIN_APART = 1024
"""Smaller weights stay in the graph: ONNX Runtime reads shapes and axes from them while it loads."""

_PLAIN = {getattr(ir.DataType, n) for n in ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64")}
"""Element types that NumPy has, and that ONNX Runtime therefore takes as arrays."""

_ALIGNMENT = 4096
"""Of weights in a file of external data, so that they can be mapped into memory."""


class Graph:
    """A graph in ONNX Runtime on the CPU. `batch` is None if the batch is dynamic, else the only size it takes."""

    def __init__(
        self,
        data: bytes,
        *,
        what: str,
        exact: bool = False,
        brief: bool = False,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        """data: the serialised model. what: its name in messages ("front half"). weights: those that are not in `data`.

        exact: optimise up to EXTENDED only. Above it ONNX Runtime changes the memory layout of convolutions, which
        moves results by up to 1e-6; the halves are compared with the whole without that (docs/exporter.md).
        brief: for a few runs: nothing is optimised, and `weights` are used where they lie.
        Raises UnsupportedModel if ONNX Runtime does not take the graph.
        """
        level = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        full = level.ORT_DISABLE_ALL if brief else level.ORT_ENABLE_ALL
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if exact else full
        options.log_severity_level = 4
        if int8_overflows():
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._weights = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # ONNX Runtime raises its own kinds, derived from Exception alone
            raise UnsupportedModel(f"ONNX Runtime does not take the {what}: {_line(e)}") from e
        self._what = what
        entry = self._session.get_inputs()[0]
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self.types = {o.name: str(o.type) for o in self._session.get_outputs()}

    @classmethod
    def of(
        cls, model: ir.Model, *, what: str, exact: bool = False, brief: bool = False, limit: int = MAX_MODEL_BYTES
    ) -> Graph:
        """A graph from an onnx_ir model. Weights of more than `limit` bytes, or of a brief graph, are handed over apart
        from the graph: not copied."""
        if weight_bytes(model) <= limit and not brief:
            return cls(serialise(model), what=what, exact=exact)
        lean, apart = _without_weights(model, "weights")
        # ONNX Runtime uses the buffers of contiguous arrays only: torch's exporter leaves transposed views
        weights = {n: np.ascontiguousarray(t.numpy()) for n, t in apart.items()}
        return cls(_to_bytes(lean), what=what, exact=exact, brief=brief, weights=weights)

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs for one batch; `arrays` in the order of `inputs`. Raises UnsupportedModel where it fails."""
        try:
            return list(self._session.run(None, dict(zip(self.inputs, arrays, strict=True))))
        except Exception as e:
            batch = len(arrays[0])
            raise UnsupportedModel(f"ONNX Runtime failed in the {self._what} at batch {batch}: {_line(e)}") from e


def types_in_runtime(model: ir.Model, names: Sequence[str]) -> dict[str, str]:
    """Of each named value of the graph its type in ONNX Runtime's words: "tensor(int8)", "seq(tensor(float))".

    Raises UnsupportedModel if ONNX Runtime does not take the graph.
    """
    model = model.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    return Graph.of(model, what="network", brief=True).types


def noise(shape: Sequence[int], dtype: InputType, rng: np.random.Generator) -> NDArray[Any]:
    """An input of nothing in particular: normally distributed, or pixels where the network takes uint8."""
    if dtype == "uint8":
        return rng.integers(0, 256, tuple(shape), dtype=np.uint8)
    return rng.standard_normal(tuple(shape), dtype=np.float32)


def weight_bytes(model: ir.Model) -> int:
    """Bytes that the weights take."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def serialise(model: ir.Model) -> bytes:
    """The bytes of the model, the same for the same model: what the files hold and the profile's hashes cover.

    Weights that lie in a file elsewhere are brought in. Raises UnsupportedModel if it does not fit (use `save`).
    """
    if weight_bytes(model) > MAX_MODEL_BYTES:
        raise UnsupportedModel(f"{weight_bytes(model) / 1e9:.1f} GB of weights do not fit into one ONNX message")
    if any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()):
        model = model.clone()
        load_external(model)
    return _to_bytes(model)


def load_external(model: ir.Model, below: float = float("inf")) -> None:
    """Bring in the weights of fewer than `below` bytes that lie in other files."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < below:
            value.const_value = ir.Tensor(np.array(tensor.numpy()), tensor.dtype, name=value.name)


def check_graph(model: ir.Model) -> str | None:
    """What the ONNX checker has against the graph, a line; None if nothing. It does not see large weights, so that they
    are in memory once, and may be larger than a protobuf message."""
    order = list(model.graph.initializers)
    ends = (*model.graph.inputs, *model.graph.outputs)
    loose = [(v, v.type, v.shape) for v in ends if v.type is None or v.shape is None]
    for value, kind, _ in loose:  # ONNX Runtime infers them
        value.type, value.shape = kind or ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    try:
        CheckerPass()(model)
    except onnx.checker.ValidationError as e:
        return str(e).strip().splitlines()[0][:200]
    finally:
        for value, kind, shape in loose:
            value.type, value.shape = kind, shape
        # the pass leaves the weights in another order, and the same export would give other bytes
        model.graph.initializers.update({name: model.graph.initializers.pop(name) for name in order})
    return None


def digest(model: ir.Model, *, limit: int = MAX_MODEL_BYTES) -> str:
    """SHA-256 in hex: of `serialise`, or, over `limit` bytes of weights, of the graph and then its weights in order."""
    if weight_bytes(model) <= limit:
        return hashlib.sha256(serialise(model)).hexdigest()
    lean, apart = _without_weights(model, "weights")
    total = hashlib.sha256(_to_bytes(lean))
    for tensor in apart.values():
        total.update(tensor.tobytes())
    return total.hexdigest()


def save(model: ir.Model, path: Path, *, name: str | None = None, limit: int = MAX_MODEL_BYTES) -> list[Path]:
    """Write the model to `path`; over `limit` bytes of weights, these go to a second file beside it, `path`.data.

    name: what `path` will be called in the end, for callers that rename (the second file must then be renamed to
    name.data: the graph refers to it). Returns the files written, the graph last. OSError leaves what was written.
    """
    if weight_bytes(model) <= limit:
        path.write_bytes(serialise(model))
        return [path]
    lean, apart = _without_weights(model, f"{name or path.name}.data")
    beside = path.with_name(f"{path.name}.data")
    with beside.open("wb") as file:
        for tensor in apart.values():
            file.seek(_aligned(file.tell()))
            file.write(tensor.tobytes())
    path.write_bytes(_to_bytes(lean))
    return [beside, path]


def _without_weights(model: ir.Model, location: str) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """(the model with references to the file `location` in place of its large weights, these weights in file order)."""
    lean = model.clone()
    apart: dict[str, ir.TensorProtocol] = {}
    position = 0
    for name, value in lean.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < MIN_APART or tensor.dtype not in _PLAIN:
            continue
        value.const_value = ir.ExternalTensor(
            location, position, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
        apart[name] = tensor
        position = _aligned(position + tensor.nbytes)
    return lean, apart


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _to_bytes(model: ir.Model) -> bytes:
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
        x, y = np.atleast_1d(a.astype(np.float64)), np.atleast_1d(b.astype(np.float64))
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        scale = np.abs(y[np.isfinite(y)]).max(initial=0.0) if by_output else np.abs(y)
        with np.errstate(invalid="ignore"):
            ratio = np.abs(x - y) / np.maximum(1.0, scale)
        ratio[same] = 0.0
        worst = max(worst, float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max()))
    return worst


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
