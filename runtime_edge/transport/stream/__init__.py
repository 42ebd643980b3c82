"""The edge's half of the stream protocol (docs/stream.md).

transport.py    StreamTransport: deliver frames, again where the connection was lost
connection.py   one connection: its window, its replies, its end; a thread reads
opening.py      connect, upgrade, hello, welcome
sockets.py      a socket that one thread reads while others write, also with TLS
"""

from .transport import StreamTransport

__all__ = ["StreamTransport"]
