"""Waiting for a server that is warming up, restarting, or out of reach for a while."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

import httpcore

from splitwire.codec.errors import BadResponse, ConnectTimeout, RequestTimeout, ServerBusy, TransportError

from .transport import CUT_SHORT, root_cause

T = TypeVar("T")

FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 4.0


def may_pass(e: TransportError) -> bool:
    """Whether the same call can succeed later with nothing changed here: the server is busy or away, or the link broke.
    A name that does not resolve, a certificate, a token and an answer of another kind of server stay as they are."""
    cause = e.__cause__
    if isinstance(e, ServerBusy):
        return True
    if isinstance(e, ConnectTimeout):
        root = root_cause(cause) if isinstance(cause, Exception) else cause
        return isinstance(cause, httpcore.ConnectTimeout | httpcore.ConnectError) and not isinstance(
            root, socket.gaierror | ssl.SSLError
        )
    if isinstance(e, RequestTimeout):
        return not isinstance(cause, httpcore.PoolTimeout)
    if isinstance(e, BadResponse):  # a server that is killed closes its connections, in the middle of an answer too
        return isinstance(cause, httpcore.RemoteProtocolError) and CUT_SHORT in str(cause)
    return type(e) is TransportError and cause is not None


def patiently(call: Callable[[], T], *, wait_s: float, on_wait: Callable[[TransportError], None]) -> T:
    """The result of `call`, which is repeated for up to `wait_s` seconds after its first failure that may pass.

    It may run more than once, so it must be safe to repeat, as an inference is. on_wait: called with the failure before
    each pause. Raises what `call` raises; after `wait_s` seconds, the last failure.
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
            asked = (e.retry_after or 0.0) if isinstance(e, ServerBusy) else 0.0
            on_wait(e)
            time.sleep(min(max(pause, asked), deadline - now))
            pause = min(2 * pause, MAX_PAUSE_S)
