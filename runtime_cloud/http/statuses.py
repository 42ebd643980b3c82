"""The HTTP status of every splitwire error, in one table. docs/runtime.md shows it; a test compares the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from splitwire.codec.errors import ServerBusy, SplitwireError
from splitwire.runtime_cloud.security import public_text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. code: `SplitwireError.code`, or the code for an error of HTTP. when: the cause, in words."""

    code: str
    status: int
    when: str


TABLE = (
    Row(code="truncated", status=400, when="the frame ends before its header says it does"),
    Row(code="corrupt", status=400, when="a checksum, a field or the coded payload of the frame is inconsistent"),
    Row(code="bitstream", status=400, when="the body is no frame"),
    Row(code="usage", status=400, when="the request asks for something impossible"),
    Row(code="auth_refused", status=401, when="the credentials are missing or wrong"),
    Row(code="forbidden", status=403, when="the credentials are valid, but not for this action or this model"),
    Row(code="not_found", status=404, when="no such path, or no model of that fingerprint"),
    Row(code="unknown_model", status=404, when="no model of that name or version"),
    Row(code="method_not_allowed", status=405, when="the path exists, the method does not"),
    Row(code="request_timeout", status=408, when="the body did not arrive in time"),
    Row(code="fingerprint_mismatch", status=409, when="the frame is of a pair that is not served here"),
    Row(code="profile", status=409, when="the frame names what its profile does not hold"),
    Row(code="limit_exceeded", status=413, when="the body, or a size in the frame, is over the limit"),
    Row(code="unsupported_media_type", status=415, when="the body is declared as something else than a frame"),
    Row(
        code="features",
        status=422,
        when="the frame's tensors do not fit the model: its batch is not the one that the network takes",
    ),
    Row(code="error", status=500, when="any other error of ours"),
    Row(code="internal", status=500, when="a bug; the traceback is in the server's log only"),
    Row(code="unsupported_version", status=501, when="the frame is of a newer version, or of a coder not built in"),
    Row(code="server_busy", status=503, when="the queue is full, or the models are still warming up (Retry-After)"),
    Row(code="deadline_exceeded", status=504, when="the deadline of the request passed before the inference ran"),
)

_STATUS = {row.code: row.status for row in TABLE}
_HTTP_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}


def status_of(error: SplitwireError) -> int:
    """The status of an error: that of its class, else that of the nearest base class in the table."""
    for cls in type(error).__mro__:
        code = getattr(cls, "code", None)
        if code in _STATUS:
            return _STATUS[code]
    return 500


def code_of_status(status: int) -> str:
    """The code for an error of HTTP, such as an unknown path or a wrong method."""
    return _HTTP_CODES.get(status, "error")


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response with the body {"error": {"code", "message"}}, which every refusal has."""
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    return Response(body, status, dict(headers or {}), media_type="application/json")


def plain_response(status: int, code: str, message: str, *, retry_after: float | None = None) -> bytes:
    """The bytes of a refusal by a connection, before any request reaches the application. The connection closes."""
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    later = "" if retry_after is None else f"Retry-After: {max(1, math.ceil(retry_after))}\r\n"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{later}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def refusal(error: SplitwireError, headers: Mapping[str, str] | None = None) -> Response:
    """A splitwire error as a response. With ServerBusy it says when to retry, in whole seconds as HTTP requires."""
    extra = dict(headers or {})
    if isinstance(error, ServerBusy) and error.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return error_response(status_of(error), error.code, public_text(error), extra)
