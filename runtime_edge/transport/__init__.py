"""Transports: a Transport delivers a frame and returns the reply.

    base.py          the protocol, Reply, Key and Timeouts
    loopback.py      LoopbackTransport calls a function in this process, for example `CloudSession.handle`
    http/            HttpTransport posts to `splitwire cloud serve`, over HTTP/1.1 with keep-alive (docs/http.md)
    stream/          StreamTransport sends them over one long-lived connection (docs/stream.md)
    oip/             OipHttpTransport and OipGrpcTransport: the Open Inference Protocol (docs/oip.md)
    opening.py       the transport for an address, by its scheme
    address.py       the URL of a server, taken apart
    retry.py         when to try again: back-off, budget, circuit breaker
    credentials.py   certificates and tokens from files that change
    answers.py       turns a server's answer into a reply or into one of our errors; failures.py a failure of the link
    http1.py         reads an HTTP answer, strictly
    sockets.py       connections that count their bytes and keep their deadlines; the pool

A transport raises TransportError, or the splitwire error that the server names; nothing else.
"""

from .base import BatchTransport, Key, Reply, Timeouts, Transport
from .credentials import Tls, TokenFile
from .http import HttpTransport
from .loopback import LoopbackTransport
from .oip import OipGrpcTransport, OipHttpTransport
from .opening import WITH_TLS, ServerTransport, open_url
from .retry import CircuitBreaker
from .stream import StreamTransport

__all__ = [
    "WITH_TLS",
    "BatchTransport",
    "CircuitBreaker",
    "HttpTransport",
    "Key",
    "LoopbackTransport",
    "OipGrpcTransport",
    "OipHttpTransport",
    "Reply",
    "ServerTransport",
    "StreamTransport",
    "Timeouts",
    "Tls",
    "TokenFile",
    "Transport",
    "open_url",
]
