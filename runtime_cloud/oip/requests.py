"""InferRequest and InferAnswer: a request and its answer, whatever protocol they came in; and their limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, LimitExceeded, UsageError
from splitwire.codec.wire.oip.tensors import BYTES, MAX_DIM, MAX_DIMS, dtype_of, unpack_bytes
from splitwire.codec.wire.reply import printable

from .errors import NotSupported

MAX_TENSORS = 64
"""Inputs of a request, and outputs that it names."""
MAX_ID = 1024
MAX_TIMEOUT_US = 24 * 3600 * 10**6
REFUSED_PARAMETERS = {
    "sequence_id": "sequences: each request stands for itself",
    "sequence_start": "sequences: each request stands for itself",
    "sequence_end": "sequences: each request stands for itself",
    "shared_memory_region": "shared memory: send the tensor in the request",
    "shared_memory_offset": "shared memory: send the tensor in the request",
    "shared_memory_byte_size": "shared memory: send the tensor in the request",
    "classification": "classification: it returns the scores as they are",
}
"""Parameters that would change the answer, and are not served. Of others, unknown ones are ignored."""

Values = Callable[[np.dtype[Any], int], NDArray[Any]]
"""Reads the elements of a tensor that is not binary: (dtype, number of elements) → flat array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTensor:
    """An input. data: its bytes, in binary form. values: reads its elements in another form. One of the two is None.

    elements: of a BYTES tensor in another form.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | None = None
    values: Values | None = None
    elements: Sequence[bytes] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_DIMS or not all(0 <= n <= MAX_DIM for n in self.shape):
            raise UsageError(
                f"input {self.shown}: the shape {list(self.shape)[:MAX_DIMS]} is none; lengths are 0 to {MAX_DIM}, and "
                f"at most {MAX_DIMS} of them"
            )

    @property
    def shown(self) -> str:
        """The name, quoted and safe to print."""
        return repr(printable(self.name[:64]))

    def array(self, datatype: str) -> NDArray[Any]:
        """The elements as an array of the input's shape, little-endian. datatype: what it must be; not BYTES.

        Raises UsageError for another type, Corrupt for another number of bytes or elements.
        """
        if self.datatype != datatype:
            raise UsageError(f"input {self.shown} is {printable(self.datatype[:32])}, the model takes {datatype}")
        dtype = dtype_of(datatype)
        assert dtype is not None  # noqa: S101 - the caller asks for a type that it knows
        count = 1
        for n in self.shape:
            count *= n  # Python integers: no overflow
        if self.values is not None:
            return self.values(dtype, count).reshape(self.shape)
        data = memoryview(self.data or b"")
        if len(data) != count * dtype.itemsize:
            raise Corrupt(
                f"input {self.shown} of shape {list(self.shape)} and {datatype} must have {count * dtype.itemsize} "
                f"bytes, has {len(data)}"
            )
        return np.frombuffer(data, dtype=dtype).reshape(self.shape)

    def byte_elements(self) -> list[bytes]:
        """The elements of a BYTES tensor with one axis. Raises UsageError, Truncated, Corrupt, LimitExceeded."""
        if self.datatype != BYTES:
            raise UsageError(f"input {self.shown} takes frames as {BYTES}, not as {printable(self.datatype[:32])}")
        if len(self.shape) != 1 or not self.shape[0]:
            raise UsageError(f"input {self.shown} takes one frame per element: shape [n]; got {list(self.shape)}")
        (count,) = self.shape
        if self.elements is None:
            return [bytes(e) for e in unpack_bytes(self.data or b"", count)]
        if len(self.elements) != count:
            raise Corrupt(f"input {self.shown} has {len(self.elements)} elements, its shape says {count}")
        return list(self.elements)


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedOutput:
    """An output that a request names. binary: its data as bytes, not as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A request for an inference. outputs: None for all, in the form that `binary` says.

    priority: 1 is the highest, 0 the default. timeout_us: microseconds; 0 for none. Raises UsageError.
    """

    inputs: Sequence[InputTensor]
    outputs: Sequence[WantedOutput] | None = None
    id: str = ""
    binary: bool = False
    priority: int = 0
    timeout_us: int = 0

    def __post_init__(self) -> None:
        if len(self.id) > MAX_ID:
            raise LimitExceeded(f"the id of the request has {len(self.id)} characters; the limit is {MAX_ID}")
        for what, names in (("input", self.inputs), ("output", self.outputs or ())):
            if len(names) > MAX_TENSORS:
                raise LimitExceeded(f"the request has {len(names)} {what}s; the limit is {MAX_TENSORS}")
            seen: set[str] = set()
            for tensor in names:
                if tensor.name in seen:
                    raise UsageError(f"the request has the {what} {printable(tensor.name[:64])!r} twice")
                seen.add(tensor.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferAnswer:
    """The answer. outputs: name, array, and whether its data is wanted as bytes. parameters: numbers about it."""

    model: str
    version: str
    id: str
    outputs: Sequence[tuple[str, NDArray[Any], bool]]
    parameters: Mapping[str, int] = field(default_factory=dict)


def scheduling(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """(priority, timeout in µs) of the parameters of a request. Raises UsageError, NotSupported for those refused."""
    refuse(parameters, "the request")
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
    for name, value in (("priority", priority), ("timeout", timeout)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"the parameter {name} must be an integer of 0 or more")
    return priority, min(timeout, MAX_TIMEOUT_US)


def refuse(parameters: Mapping[str, Any], where: str) -> None:
    """Raise NotSupported if there is a parameter that would change the answer and is not served."""
    for name in parameters:
        if name in REFUSED_PARAMETERS:
            raise NotSupported(f"{where} has the parameter {name!r}: the server has no {REFUSED_PARAMETERS[name]}")
