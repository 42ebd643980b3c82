"""The connection of `splitwire edge run`: time-outs, token, certificates; the back on this device; the providers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from splitwire.codec.errors import FingerprintMismatch, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.providers import full_name
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport import (
    WITH_TLS,
    LoopbackTransport,
    ServerTransport,
    Timeouts,
    Tls,
    TokenFile,
    open_url,
)

CONNECT_S = 5.0
CONNECTIONS = 8


class LocalBack(LoopbackTransport):
    """The back half on this device, for frames that the server does not answer.

    back: path of back.onnx. profile: of the front, whose pair it must be of. threads: of one inference.
    Raises UsageError, ProfileError, DeviceError (opening the graph), FingerprintMismatch.
    """

    def __init__(self, back: Path, profile: CodecProfile, *, threads: int | None = None) -> None:
        session = CloudSession(back, threads=threads)
        if session.fingerprint != profile.fingerprint:
            raise FingerprintMismatch(
                f"{back} is of pair {session.pair}, the front of {profile.fingerprint.hex()}; give the back.onnx that"
                " was exported with it"
            )
        super().__init__(session.handle)
        self.warm_up = session.warm_up


def open_transport(
    url: str,
    *,
    timeout_s: float,
    deadline_s: float,
    token: str | TokenFile | None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    lean: bool = False,
    connections: int = 0,
    on_event: EventSink = ignore,
) -> ServerTransport:
    """Return the transport to the server, by the scheme of its address.

    timeout_s: longest wait for the next bytes of an answer. deadline_s: longest time for one frame, retries included.
    ca: file of certificates to trust. cert, key: certificate of this device, and its private key.
    connections: most connections over HTTP, if more than the usual ones. Raises UsageError.
    """
    for option, seconds in (("--timeout", timeout_s), ("--deadline", deadline_s)):
        if seconds <= 0:
            raise UsageError(f"{option} must be more than 0")
    for option, file in (("--ca", ca), ("--cert", cert), ("--key", key)):
        if file is not None and not url.lower().startswith(WITH_TLS):
            raise UsageError(f"{option} goes with an https:// or streams:// address; got {url}")
    if key is not None and cert is None:
        raise UsageError("--key goes with --cert")
    verify: Tls | bool = True
    if ca is not None or cert is not None:
        try:
            verify = Tls(ca=ca, cert=cert, key=key)
        except UsageError as e:
            which = "--cert" if "certificate with its private key" in str(e) else "--ca"
            raise UsageError(f"{which} {e}") from e
    timeouts = Timeouts(connect=min(CONNECT_S, timeout_s), read=timeout_s, write=timeout_s, total=deadline_s)
    return open_url(
        url,
        timeouts=timeouts,
        token=token,
        lean=lean,
        verify=verify,
        max_connections=max(CONNECTIONS, connections),
        on_event=on_event,
    )


def find_token(token: str | None, file: Path | None, variable: str) -> str | TokenFile | None:
    """The token of the option, else that in the file, else that in the environment variable. It is never printed.

    Raises UsageError.
    """
    if token is not None and file is not None:
        raise UsageError("--token and --token-file are two ways to say one thing; give one of them")
    if file is not None:
        try:
            return TokenFile(file)
        except UsageError as e:
            raise UsageError(f"--token-file {e}") from e
    return os.environ.get(variable) or None if token is None else token


def full_names(names: Sequence[str] | None) -> list[str] | None:
    """The full names of providers: CUDAExecutionProvider for "cuda". A name that ONNX Runtime does not have stays."""
    if not names:
        return None
    return [full_name(name, ort.get_available_providers()) for name in names]


def reason(e: Exception) -> str:
    """The message of the system, without the path."""
    words = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
    return words[:1].lower() + words[1:]
