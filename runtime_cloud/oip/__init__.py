"""The Open Inference Protocol, version 2: over HTTP on the server's port, over gRPC on a port of its own (docs/oip.md).

http.py        the routes under /v2
json_form.py   an HTTP body, JSON with or without binary tensors behind it ↔ InferRequest, InferAnswer
grpc_port.py   the gRPC service; needs grpcio and protobuf
options.py     where the gRPC service listens
grpc_form.py   gRPC messages ↔ InferRequest, InferAnswer
requests.py    InferRequest, InferAnswer: a request and its answer, whatever they came in; their limits
inference.py   Inference: checks a request against its model, and runs it
describe.py    metadata and configuration of a model
statistics.py  what was served, by model
errors.py      the status of an error in both forms
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from splitwire.codec.errors import DeviceError

from .http import PREFIX, oip_error, oip_routes
from .inference import Inference
from .options import GrpcOptions
from .statistics import Statistics

__all__ = ["PREFIX", "GrpcOptions", "Inference", "Statistics", "oip_error", "oip_routes", "open_grpc"]


def open_grpc(inference: Inference, options: GrpcOptions) -> AbstractAsyncContextManager[None]:
    """The gRPC service, which runs while the context does. Raises DeviceError where grpcio or protobuf is missing."""
    try:
        from .grpc_port import grpc_port
    except ImportError as e:
        raise DeviceError(
            f"the gRPC port needs grpcio and protobuf ({e.name} is missing): pip install 'splitwire[cloud-grpc]'"
        ) from e
    return grpc_port(inference, options)
