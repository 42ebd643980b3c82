"""Graphs in ONNX Runtime (arrays in, arrays out), as bytes, and as files."""

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

from splitwire.codec.errors import UnsupportedModel
from splitwire.codec.shared.device import int8_overflows
from splitwire.codec.shared.telemetry import stop_events

stop_events(ort)

Array = NDArray[np.generic]
Float32Array = NDArray[np.float32]
InputType = Literal["float32", "uint8"]
"""Element types that a network's input may have."""

MAX_MODEL_BYTES = 1_900_000_000
"""The limit of a protobuf message, and of an ONNX file without external data, is 2 GiB; the graph needs some of it."""

MIN_APART = 1024
"""Weights of fewer bytes stay in the graph: ONNX Runtime reads shapes and axes from them when it loads the graph."""

_PLAIN = {getattr(ir.DataType, n) for n in ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64")}
"""Element types that NumPy has too, so that ONNX Runtime accepts the weights as arrays."""

_ALIGNMENT = 4096
"""Alignment in bytes of weights in an external file, so that they can be mapped into memory."""


class Graph:
    """A graph in ONNX Runtime on the CPU.

    inputs, outputs: names, in order. types: output → type in ONNX Runtime's words. batch: None if the batch is dynamic,
    otherwise the only batch size that the graph takes.
    """

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

        exact: optimise up to level EXTENDED. Higher levels change the memory layout of convolutions, which changes
        results by up to 1e-6. The comparison of the halves with the whole avoids that (docs/exporter.md).
        brief: for few runs: no optimisation, and no copy of `weights`.
        Raises UnsupportedModel if ONNX Runtime does not load the graph.
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
        except Exception as e:  # ONNX Runtime's error classes derive directly from Exception
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
        """A graph from an onnx_ir model.

        If the weights have more than `limit` bytes, or if `brief`, ONNX Runtime gets them separately, without a copy.
        """
        if weight_bytes(model) <= limit and not brief:
            return cls(serialise(model), what=what, exact=exact)
        lean, apart = _without_weights(model, "weights")
        # ONNX Runtime accepts contiguous arrays only, and torch's exporter leaves transposed views
        weights = {n: np.ascontiguousarray(t.numpy()) for n, t in apart.items()}
        return cls(_to_bytes(lean), what=what, exact=exact, brief=brief, weights=weights)

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs for one batch. arrays: in the order of `inputs`. Raises UnsupportedModel if the run fails."""
        try:
            return list(self._session.run(None, dict(zip(self.inputs, arrays, strict=True))))
        except Exception as e:
            batch = len(arrays[0])
            raise UnsupportedModel(f"ONNX Runtime failed in the {self._what} at batch {batch}: {_line(e)}") from e


def types_in_runtime(model: ir.Model, names: Sequence[str]) -> dict[str, str]:
    """Name → type of the value in ONNX Runtime's words, such as "tensor(int8)" or "seq(tensor(float))".

    Raises UnsupportedModel if ONNX Runtime does not load the graph.
    """
    model = model.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    return Graph.of(model, what="network", brief=True).types


def noise(shape: Sequence[int], dtype: InputType, rng: np.random.Generator) -> NDArray[Any]:
    """A random input: normally distributed float32, or uniformly distributed uint8."""
    if dtype == "uint8":
        return rng.integers(0, 256, tuple(shape), dtype=np.uint8)
    return rng.standard_normal(tuple(shape), dtype=np.float32)


def weight_bytes(model: ir.Model) -> int:
    """Total size of the weights in bytes."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def serialise(model: ir.Model) -> bytes:
    """The model as bytes; equal models give equal bytes. The files hold these, and the profile's hashes cover them.

    Weights in external files are included. Raises UnsupportedModel if they do not fit into one message (use `save`).
    """
    if weight_bytes(model) > MAX_MODEL_BYTES:
        raise UnsupportedModel(f"{weight_bytes(model) / 1e9:.1f} GB of weights do not fit into one ONNX message")
    if any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()):
        model = model.clone()
        load_external(model)
    return _to_bytes(model)


def load_external(model: ir.Model, below: float = float("inf")) -> None:
    """Load weights in external files into memory, if they have fewer than `below` bytes."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < below:
            value.const_value = ir.Tensor(np.array(tensor.numpy()), tensor.dtype, name=value.name)


def check_graph(model: ir.Model) -> str | None:
    """Why the ONNX checker rejects the graph, in one line; None if it accepts it.

    The checker gets no large weights. So they are in memory only once, and may exceed the limit of a protobuf message.
    """
    order = list(model.graph.initializers)
    ends = (*model.graph.inputs, *model.graph.outputs)
    loose = [(v, v.type, v.shape) for v in ends if v.type is None or v.shape is None]
    for value, kind, _ in loose:  # the checker needs both; ONNX Runtime infers them
        value.type, value.shape = kind or ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    try:
        CheckerPass()(model)
    except onnx.checker.ValidationError as e:
        return str(e).strip().splitlines()[0][:200]
    finally:
        for value, kind, shape in loose:
            value.type, value.shape = kind, shape
        # The pass changes the order of the weights; without this, the same export would give other bytes.
        model.graph.initializers.update({name: model.graph.initializers.pop(name) for name in order})
    return None


def digest(model: ir.Model, *, limit: int = MAX_MODEL_BYTES) -> str:
    """SHA-256 in hex: of `serialise`, or, if the weights exceed `limit` bytes, of the graph and then the weights."""
    if weight_bytes(model) <= limit:
        return hashlib.sha256(serialise(model)).hexdigest()
    lean, apart = _without_weights(model, "weights")
    total = hashlib.sha256(_to_bytes(lean))
    for tensor in apart.values():
        total.update(tensor.tobytes())
    return total.hexdigest()


def save(model: ir.Model, path: Path, *, name: str | None = None, limit: int = MAX_MODEL_BYTES) -> list[Path]:
    """Write the model to `path`. If the weights exceed `limit` bytes, they go to a second file, `path`.data.

    name: the final name of `path`, if the caller renames it. The caller must then rename the second file to name.data,
    because the graph refers to it. Returns the written files, the graph last. After an OSError the files may be there.
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
    """(the model with references to the file `location` in place of its large weights, these weights in file order)"""
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
    """Largest |ours − reference| / max(1, |reference|) over all outputs; infinite if shapes differ.

    by_output: divide by the largest magnitude of the output, not by that of the element. Use it to compare different
    kernels: their rounding errors grow with the terms of a sum, not with its result.
    NaN equals NaN here, and infinity equals the same infinity: other checks report values that are not finite.
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
