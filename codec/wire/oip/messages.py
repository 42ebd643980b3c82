"""The messages of the Open Inference Protocol over gRPC, made from open_inference.binpb. Needs protobuf.

They are in a pool of their own. Protobuf's common pool refuses a second definition of a name, and tritonclient has one
of each of these names: a process could not import both.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
DESCRIPTION = "open_inference.binpb"


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto.FromString((files(__package__) / DESCRIPTION).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message, such as "ModelInferRequest". Raises KeyError for a name that is none."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


def methods() -> dict[str, tuple[str, str, bool]]:
    """Each procedure of the service: (name of its request, of its response, whether both are streams)."""
    service = _pool().FindServiceByName(SERVICE)
    return {m.name: (m.input_type.name, m.output_type.name, m.server_streaming) for m in service.methods}
