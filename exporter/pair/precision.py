"""Make halves at reduced precision: an int8 front, a float16 back. ONNX Runtime's tools do the conversion.

Inputs, outputs and the tensors at the cut keep their names and stay float32 (sizes stay int64), so the codec and the
runtimes do not depend on the precision. Both functions leave their arguments unchanged.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.exporter.network.inference import (
    MAX_MODEL_BYTES,
    Float32Array,
    Graph,
    check_graph,
    serialise,
    weight_bytes,
)

QUANTIZED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"),
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"),
    *("Concat", "Split", "Slice", "Pad", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"),
)
"""Operators that compute with int8 or move int8 values. Normalisations and softmax stay float32: 8 bits are not enough
for their small differences and probabilities."""

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SUMS = (*WITH_WEIGHTS, "Add", "Sum", "Sub", "AveragePool", "GlobalAveragePool", "ReduceMean", "LayerNormalization")

KEPT_FLOAT32 = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")
"""Operators that do not become float16: their sums of squares lose digits. With the first one in float16, ONNX Runtime
1.32 also crashes when it opens a ViT on a CPU."""

_NOT_BY_HAND = ("Cast", "If", "Loop", "Scan")
"""Operators that float16_by_hand does not change: casts exist already, and a body gets the inputs of its node."""

_MAX_BRANCHES = 4
"""The search for the last layer stops at a Concat of more inputs (densenet): half the front would stay float32."""

_BATCH = 8
"""Inputs per run during the measurement of the ranges."""


def int8_front(front: ir.Model, inputs: Sequence[Float32Array]) -> ir.Model:
    """The front with 8-bit weights, one scale per output channel, and 8-bit activations (QDQ; static quantization).

    inputs: (C, H, W) float32 calibration inputs. The range of each activation is its smallest to its largest value on
    them. The last layer before each output (a convolution or a sum) stays float32: with 8 bits, its rounding would add
    to that of the codec, and its grid would appear in the statistics. Raises UsageError without inputs,
    UnsupportedModel if ONNX Runtime's quantizer refuses the front or finds nothing to quantize.
    """
    if not inputs:
        raise UsageError("an int8 front needs calibration inputs to measure its ranges on")
    if weight_bytes(front) > MAX_MODEL_BYTES:
        raise UnsupportedModel(
            f"ONNX Runtime quantizes fronts of up to 1.9 GB, this has {weight_bytes(front) / 1e9:.1f}"
        )
    named = _foldable(front)
    for i, node in enumerate(named.graph):
        node.name = node.name or f"splitwire_{i}"  # the quantizer takes the excluded nodes by name
    kept = _makers(named.graph)
    if not any(n.op_type in WITH_WEIGHTS and n.name not in kept for n in named.graph):
        raise UnsupportedModel(
            "nothing in the front can be int8: the last layer before the cut stays float32, and no convolution or"
            " matrix product comes before it; cut later, or keep the float32 front"
        )
    quantized = _restored(_quantized(named, inputs, sorted(kept)), front)
    _outputs_from_float(quantized.graph)
    return _checked(quantized, front, "int8 front")


def float16_back(back: ir.Model) -> ir.Model:
    """The back with float16 weights and activations, and with float32 inputs and outputs.

    Normalisations and operators without a float16 kernel (NonMaxSuppression, RoiAlign, TopK, …) stay float32. It is for
    GPUs: on a CPU, ONNX Runtime still computes in float32 and converts between operators. Raises UnsupportedModel if
    the conversion fails.
    """
    if weight_bytes(back) > MAX_MODEL_BYTES:
        raise UnsupportedModel(f"only backs of up to 1.9 GB can be float16; this has {weight_bytes(back) / 1e9:.1f} GB")
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    exact = [*DEFAULT_OP_BLOCK_LIST, *KEPT_FLOAT32]

    try:
        with _quiet():
            whole = onnx.load_from_string(serialise(back))
            converted = convert_float_to_float16(whole, keep_io_types=True, op_block_list=exact)
    except Exception as e:  # the converter is a script: it raises AssertionError, KeyError and protobuf's errors
        raise UnsupportedModel(f"ONNX Runtime's converter does not take the back half: {_line(e)}") from e
    restored = _restored(converted, back)
    restored.graph.sort()  # the converter adds its casts at the end
    return _checked(restored, back, "float16 back")


def _quantized(front: ir.Model, inputs: Sequence[Float32Array], kept: Sequence[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = {"MatMulConstBOnly": True}  # products of two activations (attention) stay float32
    with tempfile.TemporaryDirectory(prefix="splitwire-int8-") as folder, _quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(serialise(front))
        try:
            quantize_static(
                str(source),
                str(target),
                _reader(front, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=options,
            )
            return onnx.load(target)
        except Exception as e:  # the quantizer is a script: it may raise anything
            raise UnsupportedModel(f"ONNX Runtime's quantizer does not take the front half: {_line(e)}") from e


def _reader(front: ir.Model, inputs: Sequence[Float32Array]) -> Any:
    """A reader that gives the quantizer the inputs in batches."""
    from onnxruntime.quantization import CalibrationDataReader

    entry = front.graph.inputs[0]
    fixed = entry.shape[0] if entry.shape is not None and isinstance(entry.shape[0], int) else None
    step = fixed or _BATCH

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._starts = iter(range(0, len(inputs), step))

        def get_next(self) -> dict[str, Float32Array] | None:
            start = next(self._starts, None)
            if start is None:
                return None
            batch = np.stack(inputs[start : start + step])
            return {str(entry.name): np.resize(batch, (fixed or len(batch), *batch.shape[1:]))}

    return Reader()


def _foldable(front: ir.Model) -> ir.Model:
    """A copy of the front with batch normalisations folded into the convolutions before them, as every session does."""
    if not any(n.op_type == "BatchNormalization" for n in front.graph):
        return front.clone()
    with tempfile.TemporaryDirectory(prefix="splitwire-int8-") as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(serialise(front), options, providers=["CPUExecutionProvider"])
            folded = ir.from_proto(onnx.load(path))
        except Exception as e:
            raise UnsupportedModel(f"ONNX Runtime does not take the front half: {_line(e)}") from e
    return folded


def _makers(graph: ir.Graph) -> set[str]:
    """Names of the nodes that make the outputs: from each output back to a layer or a sum."""
    names: set[str] = set()
    stack = [v.producer() for v in graph.outputs if v.dtype in (None, ir.DataType.FLOAT)]
    while stack:
        node = stack.pop()
        if node is None or str(node.name) in names:
            continue
        names.add(str(node.name))
        if node.op_type not in _SUMS and (node.op_type != "Concat" or len(node.inputs) <= _MAX_BRANCHES):
            stack += [v.producer() for v in node.inputs if v is not None]
    return names


def _outputs_from_float(graph: ir.Graph) -> None:
    """Return the exact values of outputs that the front itself also reads, not those rounded for its layers."""
    for i, output in enumerate(graph.outputs):
        restore = output.producer()
        if restore is None or restore.op_type != "DequantizeLinear" or restore.inputs[0] is None:
            continue
        rounding = restore.inputs[0].producer()
        exact = rounding.inputs[0] if rounding is not None and rounding.op_type == "QuantizeLinear" else None
        if rounding is None or exact is None:
            continue
        name, exact.shape = str(output.name), output.shape
        exact.dtype = output.dtype or ir.DataType.FLOAT
        output.name = f"{name}_rounded"
        graph.outputs[i] = exact
        exact.name = name
        if not output.uses() and len(rounding.outputs[0].uses()) == 1:
            graph.remove([restore, rounding], safe=True)


def _restored(converted: onnx.ModelProto, half: ir.Model) -> ir.Model:
    """The converted graph in onnx_ir, with the names and metadata of the half, and without unused operator sets."""
    model = ir.from_proto(converted)
    model.producer_name, model.producer_version = half.producer_name, half.producer_version
    model.doc_string, model.domain, model.model_version = half.doc_string, half.domain, half.model_version
    for target, origin in ((model, half), (model.graph, half.graph)):
        target.metadata_props.clear()
        target.metadata_props.update(origin.metadata_props)
    model.graph.name, model.graph.doc_string = half.graph.name, half.graph.doc_string
    used = {"", *(n.domain for n in model.graph.all_nodes())}
    for domain in [d for d in model.opset_imports if d not in used]:
        del model.opset_imports[domain]
    return model


def _checked(converted: ir.Model, half: ir.Model, what: str) -> ir.Model:
    """Return the converted half if it has the inputs and outputs of the half, and is valid. Raises UnsupportedModel."""
    for old, new in ((half.graph.inputs, converted.graph.inputs), (half.graph.outputs, converted.graph.outputs)):
        if [(v.name, v.dtype) for v in old] != [(v.name, v.dtype) for v in new]:
            raise UnsupportedModel(f"ONNX Runtime's tool changed the ends of the {what}; keep this half in float32")
    if reason := check_graph(converted):
        raise UnsupportedModel(f"the {what} does not pass the ONNX checker: {reason}")
    Graph.of(converted, what=what)
    return converted


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools from setting up the root logger with their first log line. Existing handlers still get the
    lines."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def float16_by_hand(back: ir.Model) -> ir.Model:
    """A float16 back that rounds values to float16 on a CPU too: float32 operators with casts around each. To measure.

    (ONNX Runtime adds such casts itself, but removes them between two operators. So the activations would not be
    rounded, and would not overflow.) The weights stay unchanged.
    """
    proto = ir.to_proto(back)
    del proto.graph.value_info[:]  # some of them are wrong after the conversion
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in list(model.graph.all_nodes()):
        if node.op_type in _NOT_BY_HAND or node.graph is None or not any(_is_half(v) for v in node.inputs):
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and _is_half(value):
                cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
                cast.outputs[0].dtype = ir.DataType.FLOAT
                node.graph.insert_before(node, cast)
                node.replace_input_with(i, cast.outputs[0])
        for value in node.outputs:
            if not _is_half(value):
                continue
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
            rounded = cast.outputs[0]
            node.graph.insert_after(node, cast)
            value.replace_all_uses_with(rounded, replace_graph_outputs=True)
            cast.replace_input_with(0, value)
            value.dtype, rounded.dtype, rounded.shape = ir.DataType.FLOAT, ir.DataType.FLOAT16, value.shape
    return model


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT16
