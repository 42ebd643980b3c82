"""GrpcOptions: where and how the gRPC service listens. It imports no gRPC, so that a server without it can say no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class GrpcOptions:
    """The port of the gRPC service.

    host, port: where it listens; port 0 lets the system choose. calls: calls at a time, streams among them, beside
    those that may wait for an inference. grace_s: seconds that running calls get to end at shutdown. certificate, key:
    files in PEM for TLS; client_ca: certificates that clients must show one of. share_port: several processes listen on
    one port. on_listen: called with host:port. Raises UsageError.
    """

    host: str = "127.0.0.1"
    port: int = 8501
    calls: int = 128
    grace_s: float = 30.0
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    share_port: bool = False
    on_listen: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"cannot listen on port {self.port}: ports are 0 to 65535")
        if (self.certificate is None) != (self.key is None) or (self.client_ca and not self.certificate):
            raise UsageError("TLS for gRPC takes a certificate and its key; client_ca goes with them")
        if self.calls < 1 or self.grace_s < 0:
            raise UsageError("need calls ≥ 1 and grace_s ≥ 0")
