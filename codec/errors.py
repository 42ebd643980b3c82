"""Errors, by who must act.

    SplitwireError
    ├── UsageError            the caller: wrong argument, unknown model or layer
    │   └── UnknownModel          the server has no model of that name or version
    ├── ExportError           the model cannot be exported or cut
    │   ├── CutNotBounded     the named layer does not separate the graph
    │   └── UnsupportedModel
    ├── ProfileError          profile missing or damaged
    │   └── FingerprintMismatch   profile or frame of another front/back pair
    ├── FeatureError          the tensor handed to the codec
    │   ├── NonFiniteFeatures
    │   └── ShapeMismatch
    ├── BitstreamError        the bytes handed to the decoder
    │   ├── Truncated
    │   ├── Corrupt
    │   ├── UnsupportedVersion
    │   └── LimitExceeded
    ├── TransportError        the link or the far end
    │   ├── ConnectTimeout · RequestTimeout · DeadlineExceeded · CircuitOpen · ServerBusy · BadResponse
    │   └── AuthRefused
    │       └── Forbidden         the credentials are valid, and are not for this
    └── DeviceError           this machine
        └── SpoolError        the spool cannot be opened, read or written
            └── SpoolFull     no room for this frame, which is not stored

A message says what was expected, what came, and what to do. `code` is stable and goes over the wire in the JSON
body of an HTTP error; `exit_status` is what the command ends with.
"""

from __future__ import annotations

from typing import ClassVar


class SplitwireError(Exception):
    """Base of every error that splitwire raises on purpose."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1


class UsageError(SplitwireError):
    """The caller passed something wrong; the message names it and the nearest right thing."""

    code = "usage"
    exit_status = 2


class UnknownModel(UsageError):
    """The server has no model of that name or version, or it is not loaded."""

    code = "unknown_model"


class ExportError(SplitwireError):
    """The model cannot be exported or cut."""

    code = "export"


class CutNotBounded(ExportError):
    """The named layer does not separate the graph; the message names the tensors that cross."""

    code = "cut_not_bounded"


class UnsupportedModel(ExportError):
    """The exporter does not know how to handle this model."""

    code = "unsupported_model"


class ProfileError(SplitwireError):
    """The codec profile is missing or damaged."""

    code = "profile"


class FingerprintMismatch(ProfileError):
    """A profile or a frame belongs to another front/back pair; the message shows both fingerprints."""

    code = "fingerprint_mismatch"


class FeatureError(SplitwireError):
    """The tensor handed to the codec cannot be coded."""

    code = "features"


class NonFiniteFeatures(FeatureError):
    """The tensor holds NaN or ±Inf."""

    code = "non_finite_features"


class ShapeMismatch(FeatureError):
    """The tensor has another shape or dtype than the profile says."""

    code = "shape_mismatch"


class BitstreamError(SplitwireError):
    """The frame cannot be decoded."""

    code = "bitstream"


class Truncated(BitstreamError):
    """The frame ends before its header says it does."""

    code = "truncated"


class Corrupt(BitstreamError):
    """A checksum, a field or the entropy-coded payload is inconsistent."""

    code = "corrupt"


class UnsupportedVersion(BitstreamError):
    """The frame is of a newer major version, or names a coder this build does not have."""

    code = "unsupported_version"


class LimitExceeded(BitstreamError):
    """A size in the frame is over the limit; nothing was allocated for it."""

    code = "limit_exceeded"


class TransportError(SplitwireError):
    """The link failed, or the far end answered with an error."""

    code = "transport"


class ConnectTimeout(TransportError):
    """No connection to the server could be made."""

    code = "connect_timeout"


class RequestTimeout(TransportError):
    """The server did not answer in time."""

    code = "request_timeout"


class DeadlineExceeded(TransportError):
    """The caller's deadline passed before the server ran the inference; nothing was computed."""

    code = "deadline_exceeded"


class CircuitOpen(TransportError):
    """The server failed several times in a row, and is not tried for a while.

    retry_after: seconds until it is tried again, or None.
    """

    code = "circuit_open"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerBusy(TransportError):
    """The server asks to come back later.

    retry_after: seconds, as the server said, or None.
    """

    code = "server_busy"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AuthRefused(TransportError):
    """The server refused the credentials."""

    code = "auth_refused"


class Forbidden(AuthRefused):
    """The credentials are valid, but not for this action or this model."""

    code = "forbidden"


class BadResponse(TransportError):
    """The server answered with something that is not of this protocol."""

    code = "bad_response"


class DeviceError(SplitwireError):
    """This machine: an illegal instruction, no writable cache, a missing provider."""

    code = "device"


class SpoolError(DeviceError):
    """The spool cannot be opened, read or written: locked, read-only, damaged beyond repair, closed."""

    code = "spool"


class SpoolFull(SpoolError):
    """The spool or its disk has no room; the frame is not stored."""

    code = "spool_full"
