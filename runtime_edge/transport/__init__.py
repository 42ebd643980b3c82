"""Transports: a Transport delivers a frame and returns the reply.

    base.py       the protocol, Reply, Key and Timeouts
    loopback.py   LoopbackTransport calls a function in this process, for example `CloudSession.handle`
    http.py       HttpTransport posts to `splitwire cloud serve`, over HTTP/1.1 with keep-alive
    sockets.py    sockets that count their bytes
    answers.py    turns a server's answer into a reply or into one of our errors

A transport raises TransportError, or the splitwire error that the server names; nothing else.
"""

from .base import BatchTransport, Key, Reply, Timeouts, Transport
from .http import HttpTransport
from .loopback import LoopbackTransport

__all__ = ["BatchTransport", "HttpTransport", "Key", "LoopbackTransport", "Reply", "Timeouts", "Transport"]
