"""The transport for an address, by its scheme."""

from __future__ import annotations

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import EventSink, ignore

from .base import Timeouts
from .credentials import Tls, TokenFile
from .http import HttpTransport
from .oip import OipGrpcTransport, OipHttpTransport
from .stream import StreamTransport

WITH_TLS = ("https://", "streams://", "oip+https://", "oip+grpcs://")
"""The schemes with TLS."""

ServerTransport = HttpTransport | StreamTransport | OipHttpTransport | OipGrpcTransport


def open_url(
    url: str,
    *,
    timeouts: Timeouts,
    token: str | TokenFile | None = None,
    verify: bool | Tls = True,
    lean: bool = False,
    max_connections: int = 8,
    device: str = "",
    on_event: EventSink = ignore,
) -> ServerTransport:
    """Return the transport to a server, which connects at the first frame.

    url: http://, https://; stream://, streams:// for a stream; oip+http://, oip+https://, oip+grpc:// and oip+grpcs://
    for the Open Inference Protocol. lean: for a protocol with a head per frame. max_connections: over HTTP. device: id
    of this device, for a stream. Raises UsageError, and DeviceError for a protocol whose packages are missing.
    """
    scheme = url.lower().partition("://")[0]
    if scheme in ("stream", "streams"):
        if lean:
            raise UsageError("--lean goes with an http:// address: a stream has no head per frame")
        return StreamTransport(url, timeouts=timeouts, token=token, verify=verify, device=device, on_event=on_event)
    if scheme in ("oip+grpc", "oip+grpcs"):
        if lean:
            raise UsageError("--lean goes with an http:// address: gRPC has heads of its own")
        return OipGrpcTransport(url, timeouts=timeouts, token=token, verify=verify, on_event=on_event)
    kind = OipHttpTransport if scheme in ("oip+http", "oip+https") else HttpTransport
    return kind(
        url,
        timeouts=timeouts,
        token=token,
        verify=verify,
        lean=lean,
        max_connections=max_connections,
        on_event=on_event,
    )
