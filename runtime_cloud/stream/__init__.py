"""The server's half of the stream protocol (docs/stream.md).

upgrade.py       the route that opens a stream, and uvicorn's HTTP protocol with a way to hand a connection over
streams.py       all streams of a server: how many, the window of each, the tick that ends silent ones
connection.py    one stream: records in, inference, replies out
"""

from .streams import Streams
from .upgrade import open_stream

__all__ = ["Streams", "open_stream"]
