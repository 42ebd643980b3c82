"""Messages of gRPC ↔ InferRequest and InferAnswer. Needs protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, LimitExceeded, UsageError
from splitwire.codec.wire.oip.messages import message
from splitwire.codec.wire.oip.scan import check_infer_request
from splitwire.codec.wire.oip.tensors import BYTES, DATATYPES
from splitwire.codec.wire.reply import DTYPES, printable

from .requests import InferAnswer, InferRequest, InputTensor, Values, WantedOutput, refuse, scheduling

MAX_SMALL = 64 << 10
"""Bytes of a request that holds names only."""
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field with the elements of each type, if they are not in raw_input_contents. FP16 has none."""
FINAL_RESPONSE = "triton_enable_empty_final_response"
IS_FINAL = "triton_final_response"


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpcRequest:
    """A request for an inference as gRPC carries it. final: the answer says that it is the last, in a stream."""

    model: tuple[str, str]
    request: InferRequest
    final: bool


def read_small(kind: str, data: bytes) -> Any:
    """A message with names in it. Raises LimitExceeded, Corrupt."""
    if len(data) > MAX_SMALL:
        raise LimitExceeded(f"the {kind} has {len(data)} bytes; the limit is {MAX_SMALL}")
    return _parse(kind, data)


def read_request(data: bytes) -> GrpcRequest:
    """The request in a ModelInferRequest. Raises UsageError, BitstreamError."""
    check_infer_request(data)
    m = _parse("ModelInferRequest", data)
    parameters = _parameters(m.parameters)
    priority, timeout = scheduling(parameters)
    raw: Sequence[bytes] = m.raw_input_contents
    if raw and len(raw) != len(m.inputs):
        raise Corrupt(f"the request has {len(m.inputs)} inputs and {len(raw)} raw contents: one is needed for each")
    inputs = [_input(i, raw[k] if raw else None) for k, i in enumerate(m.inputs)]
    outputs = []
    for o in m.outputs:
        refuse(o.parameters, f"output {printable(o.name[:64])!r}")
        outputs.append(WantedOutput(name=o.name, binary=True))
    request = InferRequest(
        inputs=inputs, outputs=outputs or None, id=m.id, binary=True, priority=priority, timeout_us=timeout
    )
    return GrpcRequest(
        model=(m.model_name, m.model_version), request=request, final=parameters.get(FINAL_RESPONSE) is True
    )


def write_answer(answer: InferAnswer, *, final: bool = False) -> Any:
    """The ModelInferResponse of an answer: one raw content for each output, in order. final: it says that it is."""
    m = message("ModelInferResponse")(model_name=answer.model, model_version=answer.version, id=answer.id)
    for name, value in answer.parameters.items():
        m.parameters[name].int64_param = value
    if final:
        m.parameters[IS_FINAL].bool_param = True
    for name, array, _ in answer.outputs:
        m.outputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        m.raw_output_contents.append(np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name]).tobytes())
    return m


def from_json(kind: str, value: Mapping[str, Any]) -> Any:
    """A message of what the protocol has in JSON; what the message has no field for is left out."""
    return ParseDict(dict(value), message(kind)(), ignore_unknown_fields=True)


def _parse(kind: str, data: bytes) -> Any:
    try:
        return message(kind).FromString(data)
    except DecodeError as e:
        raise Corrupt(f"the message is no {kind}") from e


def _parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in entries.items()}
    return {name: getattr(entries[name], field) for name, field in chosen.items() if field is not None}


def _input(i: Any, raw: bytes | None) -> InputTensor:
    shown = repr(printable(i.name[:64]))
    refuse(i.parameters, f"input {shown}")
    shape = tuple(i.shape)
    if i.HasField("contents"):
        if raw is not None:
            raise UsageError(f"input {shown} has contents beside the raw contents of the request; give one of them")
        field = CONTENTS.get(i.datatype)
        if field is None:
            raise UsageError(f"input {shown} is {printable(i.datatype[:32])!r}: send it in raw_input_contents")
        elements = getattr(i.contents, field)
        if i.datatype == BYTES:
            return InputTensor(name=i.name, datatype=BYTES, shape=shape, elements=tuple(elements))
        return InputTensor(name=i.name, datatype=i.datatype, shape=shape, values=_numbers(elements, shown))
    if raw is None:
        raise UsageError(f"input {shown} has neither contents nor raw_input_contents")
    return InputTensor(name=i.name, datatype=i.datatype, shape=shape, data=raw)


def _numbers(elements: Sequence[int | float], shown: str) -> Values:
    def values(dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        if len(elements) != count:
            raise Corrupt(f"input {shown} has {len(elements)} elements, its shape says {count}")
        return np.fromiter(elements, dtype, count)

    return values
