"""Turns an answer of the Open Inference Protocol into a reply or into one of our errors. Nothing in it is trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import msgspec
from msgspec import Struct, field

from splitwire.codec.errors import BadResponse, BitstreamError
from splitwire.codec.wire.frame import parse_frame, peek_fingerprint
from splitwire.codec.wire.oip.tensors import to_array
from splitwire.codec.wire.reply import MAX_OUTPUTS, UNREADABLE, DecodedReply, Outputs, printable
from splitwire.runtime_edge.transport.answers import Answer, ErrorText, refusal, reply_to

CODES = {
    400: "bitstream",
    404: "unknown_model",
    408: "request_timeout",
    409: "fingerprint_mismatch",
    413: "limit_exceeded",
    422: "shape_mismatch",
    501: "unsupported_version",
    504: "deadline_exceeded",
}
"""The code of an error by its status, from a server that does not name it."""
MODEL = re.compile(r"[^\x00-\x20\x7f?#%]{1,512}")
MAX_VERSION = 18


class _Output(Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, object] = field(default_factory=dict)


class _Answer(Struct):
    outputs: list[_Output]
    parameters: dict[str, object] = field(default_factory=dict)


class _Error(Struct):
    error: str


def model_of(frame: bytes | memoryview, name: str) -> str:
    """The name of the model for a frame: `name`, or the fingerprint in the frame. Raises BitstreamError."""
    return name or peek_fingerprint(frame).hex()


def understand(answer: Answer, server: str) -> DecodedReply:
    """The reply in an HTTP answer with binary tensors. Raises the error of the answer, or BadResponse."""
    if answer.status != 200:
        raise refusal(answer, server, _error_text(answer))
    length = answer.json_length or ""
    if not (length.isascii() and length.isdigit() and len(length) <= 12) or int(length) > len(answer.body):
        raise BadResponse(f"{server} answered without binary outputs; is this a server of splitwire's models?")
    try:
        head = msgspec.json.decode(answer.body[: int(length)], type=_Answer)
    except UNREADABLE as e:
        raise BadResponse(f"{server} answered JSON that cannot be read: {printable(str(e))}") from e
    view = memoryview(answer.body)[int(length) :]
    at = 0
    tensors: list[tuple[str, str, list[int], memoryview]] = []
    for o in head.outputs:
        size = o.parameters.get("binary_data_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(view) - at:
            raise BadResponse(f"{server} answered output {printable(o.name[:64])!r} without its bytes")
        tensors.append((o.name, o.datatype, o.shape, view[at : at + size]))
        at += size
    if at != len(view):
        raise BadResponse(f"{server} answered {len(view) - at} bytes behind its outputs")
    return make_decoded(tensors, head.parameters, server)


def make_decoded(
    tensors: list[tuple[str, str, list[int], memoryview]], parameters: Mapping[str, object], server: str
) -> DecodedReply:
    """The reply of outputs (name, datatype, shape, bytes) and the parameters of an answer. Raises BadResponse."""
    if not 1 <= len(tensors) <= MAX_OUTPUTS:
        raise BadResponse(f"{server} answered {len(tensors)} outputs; 1 to {MAX_OUTPUTS} are possible")
    outputs: Outputs = {}
    for name, datatype, shape, data in tensors:
        if name in outputs:
            raise BadResponse(f"{server} answered output {printable(name[:64])!r} twice")
        outputs[name] = to_array(printable(name[:64]), datatype, shape, data)
    numbers = {}
    for name in ("frame_id", "decode_ns", "back_ns"):
        value = parameters.get(name, -1 if name == "frame_id" else 0)
        if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 62:
            raise BadResponse(f"{server} answered a wrong {name}")
        numbers[name] = value
    return DecodedReply(
        outputs=outputs,
        frame_id=numbers["frame_id"],
        decode_ms=max(0, numbers["decode_ns"]) / 1e6,
        back_ms=max(0, numbers["back_ns"]) / 1e6,
    )


def reply_for(frame: bytes | memoryview, reply: DecodedReply, server: str) -> DecodedReply:
    """The reply, if it is to this frame, or if the server does not say to which. Raises BadResponse."""
    if reply.frame_id >= 0:
        return reply_to(frame, reply, server)
    try:
        return replace(reply, frame_id=parse_frame(frame).frame_id)
    except BitstreamError:  # it has no id
        return replace(reply, frame_id=0)


def _error_text(answer: Answer) -> ErrorText | None:
    """The code and the text of an error; None for a body that is not the protocol's."""
    try:
        text = msgspec.json.decode(answer.body, type=_Error).error
    except UNREADABLE:
        return None
    return ErrorText(code=answer.code or CODES.get(answer.status, ""), message=printable(text))
