"""Transports over the Open Inference Protocol, version 2, for what speaks nothing else (docs/oip.md).

http.py     OipHttpTransport: a frame alone as the body
grpc.py     OipGrpcTransport; needs grpcio and protobuf
answers.py  turns an answer of the protocol into a reply or into one of our errors
"""

from .grpc import OipGrpcTransport
from .http import OipHttpTransport

__all__ = ["OipGrpcTransport", "OipHttpTransport"]
