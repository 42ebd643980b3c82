"""Which failures `edge run` waits out, and which end it."""

from __future__ import annotations

import socket
import ssl

import pytest

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    CircuitOpen,
    ConnectTimeout,
    RequestTimeout,
    ServerBusy,
    TransportError,
)
from splitwire.runtime_edge.transport.http1 import NotHttp
from splitwire.runtime_edge.transport.sockets import (
    Broken,
    ConnectTimedOut,
    CutShort,
    DeadlinePassed,
    NoConnection,
    PoolTimedOut,
    ReadTimedOut,
)
from splitwire.runtime_edge.waiting import may_pass


def caused(error: TransportError, cause: Exception, system: Exception | None = None) -> TransportError:
    cause.__cause__ = system
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ServerBusy("busy"), True),
        (CircuitOpen("open", 1.0), True),
        (caused(ConnectTimeout("x"), NoConnection(), ConnectionRefusedError()), True),
        (caused(ConnectTimeout("x"), ConnectTimedOut()), True),
        (caused(ConnectTimeout("x"), NoConnection(), socket.gaierror(-2, "unknown name")), False),
        (caused(ConnectTimeout("x"), NoConnection(), ssl.SSLError("certificate")), False),
        (caused(ConnectTimeout("x"), Broken(), ssl.SSLError("alert: certificate required")), False),
        (caused(RequestTimeout("x"), ReadTimedOut()), True),
        (caused(RequestTimeout("x"), DeadlinePassed()), True),
        (caused(RequestTimeout("x"), PoolTimedOut()), False),
        (caused(TransportError("x"), Broken(), ConnectionResetError()), True),
        (TransportError("a code that this build does not know"), False),
        (AuthRefused("x"), False),
        (BadResponse("x"), False),
        (caused(BadResponse("x"), CutShort()), True),
        (caused(BadResponse("x"), NotHttp("its first line is no status line")), False),
    ],
)
def test_what_is_waited_for(error: TransportError, passes: bool):
    assert may_pass(error) is passes
