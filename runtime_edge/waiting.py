"""Waits for a server that warms up, restarts or cannot be reached for a while."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from splitwire.codec.errors import (
    BadResponse,
    CircuitOpen,
    ConnectTimeout,
    RequestTimeout,
    ServerBusy,
    TransportError,
)

from .transport.sockets import ConnectTimedOut, CutShort, LinkError, NoConnection, PoolTimedOut

T = TypeVar("T")

FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 4.0


def may_pass(e: TransportError) -> bool:
    """Whether the same call can succeed later without a change on this side.

    It can if the server is busy or away, or if the link broke. It cannot if the host name does not resolve, if the
    certificate or the token is wrong, or if another kind of server answers.
    """
    cause = e.__cause__
    system = cause.__cause__ if isinstance(cause, LinkError) else None
    if isinstance(e, ServerBusy | CircuitOpen):
        return True
    if isinstance(e, ConnectTimeout):
        return isinstance(cause, NoConnection | ConnectTimedOut) and not isinstance(
            system, socket.gaierror | UnicodeError | ssl.SSLError
        )
    if isinstance(e, RequestTimeout):
        return not isinstance(cause, PoolTimedOut)
    if isinstance(e, BadResponse):  # a killed server closes its connections, also in the middle of an answer
        return isinstance(cause, CutShort)
    return type(e) is TransportError and cause is not None


def patiently(call: Callable[[], T], *, wait_s: float, on_wait: Callable[[TransportError], None]) -> T:
    """Return the result of `call`. After a failure that may pass, repeat the call for up to `wait_s` seconds.

    `call` must be safe to repeat, as an inference is. on_wait: called with the failure before each pause.
    Raises the other failures of `call` at once, and its last failure after `wait_s` seconds.
    """
    deadline: float | None = None
    pause = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except TransportError as e:
            now = time.monotonic()
            deadline = now + wait_s if deadline is None else deadline
            if not may_pass(e) or now >= deadline:
                raise
            asked = (e.retry_after or 0.0) if isinstance(e, ServerBusy | CircuitOpen) else 0.0
            on_wait(e)
            time.sleep(min(max(pause, asked), deadline - now))
            pause = min(2 * pause, MAX_PAUSE_S)
