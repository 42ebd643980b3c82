"""HTTP/1.1 with keep-alive (docs/http.md).

client.py     HttpClient: connections, retries, circuit breaker, tokens; what transports over HTTP share
transport.py  HttpTransport: frames, one by one or several in a request
"""

from .client import HttpClient
from .transport import HttpTransport

__all__ = ["HttpClient", "HttpTransport"]
