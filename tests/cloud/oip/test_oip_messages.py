"""The messages of the protocol: as tritonclient has them, and compiled from the file that people read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FILE = ROOT / "codec" / "wire" / "oip" / "open_inference.binpb"


def test_the_compiled_file_is_current():
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed; `make` installs it (splitwire[dev])")
    run = subprocess.run(
        [sys.executable, ".ci/protocol.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def fields(message: Any, prefix: str = "") -> dict[str, tuple[int, int, int, str]]:
    """Number, type, label and the type's name of each field, in nested messages too. message: a DescriptorProto."""
    found = {
        f"{prefix}{message.name}.{f.name}": (f.number, f.type, f.label, f.type_name.rpartition(".")[2])
        for f in message.field
    }
    for nested in message.nested_type:
        found |= fields(nested, f"{prefix}{message.name}.")
    return found


def test_every_field_is_as_tritonclient_has_it():
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed; `make` installs it")
    from google.protobuf import descriptor_pb2

    ours = descriptor_pb2.FileDescriptorProto.FromString(FILE.read_bytes())
    theirs = [descriptor_pb2.FileDescriptorProto() for _ in range(2)]
    for name, proto in zip(("service_pb2", "model_config_pb2"), theirs, strict=True):
        getattr(grpc, name).DESCRIPTOR.CopyToProto(proto)
    known = {name: found for proto in theirs for m in proto.message_type for name, found in fields(m).items()}
    found = {name: kind for m in ours.message_type for name, kind in fields(m).items()}
    assert len(found) > 60
    assert {name: kind for name, kind in found.items() if known.get(name) != kind} == {}
    (service,), (full,) = ours.service, theirs[0].service
    methods = {m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in full.method}
    assert service.name == full.name
    assert ours.package == theirs[0].package
    for m in service.method:
        assert methods[m.name] == (m.input_type, m.output_type, m.client_streaming, m.server_streaming)
