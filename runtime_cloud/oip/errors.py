"""The status of an error in the Open Inference Protocol: a number over HTTP, a name over gRPC.

Over HTTP the body is {"error": "text"}, with a text and not an object as under /v1.
"""

from __future__ import annotations

from splitwire.codec.errors import SplitwireError, UsageError

GRPC_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The name of grpc.StatusCode for each status of HTTP."""


class NotSupported(UsageError):
    """A part of the protocol, or of Triton's extensions, that this server does not have."""

    code = "not_supported"


STATUSES = {
    "usage": 400,
    "bitstream": 400,
    "truncated": 400,
    "corrupt": 400,
    "auth_refused": 401,
    "forbidden": 403,
    "unknown_model": 404,
    "request_timeout": 408,
    "profile": 409,
    "fingerprint_mismatch": 409,
    "limit_exceeded": 413,
    "features": 422,
    "not_supported": 501,
    "unsupported_version": 501,
    "server_busy": 503,
    "deadline_exceeded": 504,
    "error": 500,
}
"""As http/statuses.py has them for /v1; a test compares the two."""

FAILURE = "the server failed on this request; its log says how"
"""The text of an answer to an unexpected exception, which reveals nothing."""


def http_status(error: SplitwireError) -> int:
    """The status of an error: that of its class, else that of the nearest base class."""
    codes = (getattr(c, "code", None) for c in type(error).__mro__)
    return next(STATUSES[code] for code in codes if code in STATUSES)


def grpc_status(error: SplitwireError) -> str:
    """The name of the gRPC status of an error."""
    return GRPC_NAMES[http_status(error)]
