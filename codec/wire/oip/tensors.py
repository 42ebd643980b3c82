"""Tensors in the Open Inference Protocol: the names of element types, and elements of type BYTES.

A BYTES element is its length (u32, little-endian) and its bytes, in HTTP's binary form and in gRPC's raw contents.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import BadResponse, Corrupt, LimitExceeded, Truncated
from splitwire.codec.wire.reply import DTYPES

FRAME_INPUT = "frame"
"""Name of the input that takes frames. A pair with a tensor of that name has underscores behind it."""
BYTES = "BYTES"
HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header with the length of the JSON in front of binary tensors."""
CODE = "X-Splitwire-Code"
"""The header, and in lower case the metadata of gRPC, in which a server of ours names the code of an error."""
MAX_ELEMENTS = 256
"""Frames in one request."""
MAX_DIMS = 32
MAX_DIM = 1 << 31

_LENGTH = struct.Struct("<I")

DATATYPES: Mapping[str, str] = {name: name.upper().replace("FLOAT", "FP") for name in DTYPES}
"""The protocol's name of each element type that a reply can carry, by numpy's name: FP32 for float32."""
_NUMPY = {datatype: DTYPES[name] for name, datatype in DATATYPES.items()}


def pack_bytes(elements: Sequence[bytes | memoryview]) -> bytes:
    """Elements of type BYTES, one behind the other."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack_bytes(data: bytes | memoryview, count: int) -> list[memoryview]:
    """The `count` elements of a BYTES tensor, as views.

    Raises LimitExceeded for more than MAX_ELEMENTS; Truncated or Corrupt if `data` does not hold exactly these.
    """
    if count > MAX_ELEMENTS:
        raise LimitExceeded(f"{count} elements of type BYTES are over the limit of {MAX_ELEMENTS}")
    view = memoryview(data)
    elements: list[memoryview] = []
    at = 0
    for i in range(count):
        start = at + _LENGTH.size
        if start > len(view):
            raise Truncated(f"the tensor ends before the length of BYTES element {i}; its shape says {count}")
        (length,) = _LENGTH.unpack_from(view, at)
        at = start + length
        if at > len(view):
            raise Truncated(f"BYTES element {i} announces {length} bytes, {len(view) - start} are left")
        elements.append(view[start:at])
    if at != len(view):
        raise Corrupt(f"{len(view) - at} bytes are left behind the {count} BYTES elements of the shape")
    return elements


def dtype_of(datatype: str) -> np.dtype[np.generic] | None:
    """The numpy type of an element type, little-endian; None for BYTES and for a name that is none."""
    return _NUMPY.get(datatype)


def to_array(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> NDArray[np.generic]:
    """An output as a writable array. The edge reads what a server sent: raises BadResponse, and nothing else."""
    dtype = dtype_of(datatype)
    if dtype is None:
        raise BadResponse(f"output {name!r} has datatype {datatype[:32]!r}; known are {', '.join(_NUMPY)}")
    if len(shape) > MAX_DIMS or not all(0 <= n <= MAX_DIM for n in shape):
        raise BadResponse(f"output {name!r} has the shape {list(shape)[:MAX_DIMS]}")
    expected = math.prod(shape) * dtype.itemsize  # Python integers: no overflow, whatever the shape
    if expected != len(data):
        raise BadResponse(
            f"output {name!r} of shape {list(shape)} and {datatype} must have {expected} bytes, has {len(data)}"
        )
    if datatype == "BOOL" and expected and np.frombuffer(data, dtype=np.uint8).max() > 1:
        raise BadResponse(f"output {name!r} is BOOL but holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("=")).reshape(shape)
