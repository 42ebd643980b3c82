"""`make protocol` compiles codec/wire/oip/open_inference.proto to the description that messages.py reads."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lint
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

SOURCE = lint.ROOT / "codec" / "wire" / "oip" / "open_inference.proto"
TARGET = SOURCE.with_suffix(".binpb")


def compiled() -> bytes:
    """The file as a serialised FileDescriptorProto."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        status = protoc.main(["protoc", f"-I{SOURCE.parent}", f"--descriptor_set_out={out}", str(SOURCE)])
        if status:
            raise SystemExit(status)
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    data: bytes = file.SerializeToString(deterministic=True)
    return data


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if TARGET.read_bytes() == compiled() else f"{TARGET.name} is not current: run `make protocol`")
    TARGET.write_bytes(compiled())
