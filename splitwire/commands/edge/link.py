"""The connection of `splitwire edge run`: time-outs, token, certificates; and the execution providers."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.engine.providers import full_name
from splitwire.runtime_edge.transport import HttpTransport, Timeouts

from .output import on_one_line

MAX_TOKEN_FILE = 1 << 16
CONNECT_S = 5.0


def open_transport(url: str, *, timeout_s: float, token: str | None, ca: Path | None, lean: bool) -> HttpTransport:
    """Return the transport to the server. timeout_s: longest time for one answer. ca: file of certificates to trust.

    Raises UsageError.
    """
    if timeout_s <= 0:
        raise UsageError("--timeout must be more than 0")
    verify: ssl.SSLContext | bool = True
    if ca is not None:
        if not url.lower().startswith("https://"):
            raise UsageError(f"--ca goes with an https:// address; got {url}")
        try:
            verify = ssl.create_default_context(cafile=str(ca))
        except (OSError, ValueError) as e:  # an SSLError is an OSError
            raise UsageError(f"--ca {on_one_line(str(ca))}: no certificates in PEM: {reason(e)}") from e
    timeouts = Timeouts(connect=min(CONNECT_S, timeout_s), read=timeout_s, write=timeout_s)
    return HttpTransport(url, timeouts=timeouts, token=token, lean=lean, verify=verify)


def find_token(token: str | None, file: Path | None, variable: str) -> str | None:
    """The token of the option, else that in the file, else that in the environment variable. It is never printed.

    Raises UsageError.
    """
    if token is not None and file is not None:
        raise UsageError("--token and --token-file are two ways to say one thing; give one of them")
    if file is not None:
        try:
            with file.open("rb") as f:
                text = f.read(MAX_TOKEN_FILE).decode("ascii").strip()
        except UnicodeDecodeError:
            raise UsageError(f"--token-file {on_one_line(str(file))}: a token is printable ASCII") from None
        except (OSError, ValueError) as e:
            raise UsageError(f"--token-file {on_one_line(str(file))}: no token can be read: {reason(e)}") from e
        if not text:
            raise UsageError(f"--token-file {on_one_line(str(file))}: the file is empty")
        return text
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
