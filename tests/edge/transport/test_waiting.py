"""Which failures `edge run` waits out, and which end it."""

from __future__ import annotations

import socket
import ssl

import httpcore
import pytest

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    ConnectTimeout,
    RequestTimeout,
    ServerBusy,
    TransportError,
)
from splitwire.runtime_edge.waiting import may_pass


def caused(error: TransportError, cause: Exception) -> TransportError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ServerBusy("busy"), True),
        (caused(ConnectTimeout("x"), httpcore.ConnectError(ConnectionRefusedError())), True),
        (caused(ConnectTimeout("x"), httpcore.ConnectTimeout()), True),
        (caused(ConnectTimeout("x"), httpcore.ConnectError(socket.gaierror(-2, "unknown name"))), False),
        (caused(ConnectTimeout("x"), httpcore.ConnectError(ssl.SSLError("certificate"))), False),
        (caused(RequestTimeout("x"), httpcore.ReadTimeout()), True),
        (caused(RequestTimeout("x"), httpcore.PoolTimeout()), False),
        (caused(TransportError("x"), httpcore.ReadError()), True),
        (TransportError("a code that this build does not know"), False),
        (AuthRefused("x"), False),
        (BadResponse("x"), False),
        (caused(BadResponse("x"), httpcore.RemoteProtocolError("illegal status line")), False),
    ],
)
def test_what_is_waited_for(error: TransportError, passes: bool):
    assert may_pass(error) is passes
