"""Call: a request for an inference, as every protocol hands it to the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitwire.codec.wire.sizes import Int64Array

from .graph import Float32Array
from .security import NOBODY, Caller


@dataclass(frozen=True, kw_only=True, slots=True)
class CutTensors:
    """What crosses the cut, without a codec: one (B, *shape) float32 array per tensor of the profile, and its sizes."""

    tensors: Sequence[Float32Array]
    sizes: Sequence[Int64Array] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request for an inference.

    frame: the bytes of one frame; b"" if there are tensors. tensors: run the back on these; such a call has no key.
    model: name and version ("" for the newest) of the model to use; None for the one that the frame names.
    key: the idempotency key, "device:boot:counter", "" for none. outputs: names of the outputs in the reply; None for
    all; no name for no reply bytes. protocol: "http", "stream" or another, for logs.
    device: id of the device, "" to take that of the key. received: seconds from the first byte of the request to the
    last. trace: the W3C traceparent of the request, "" for none.
    client: the address that the request came from; it stands for the device where nothing else names it.
    deadline: when the answer is of no use any more, as time.perf_counter() counts; None for never.
    priority: 1 is the highest, 2 the default, 3 the lowest; 0 is the default too, as in the Open Inference Protocol.
    caller: who asks, as the policy has found out.
    abandoned: says whether the caller is gone, so that a call that still waits need not run; None if nobody knows.
    """

    frame: bytes
    key: str = ""
    outputs: tuple[str, ...] | None = None
    protocol: str = "http"
    device: str = ""
    received: float = 0.0
    trace: str = ""
    client: str = ""
    deadline: float | None = None
    priority: int = 0
    abandoned: Callable[[], bool] | None = None
    tensors: CutTensors | None = None
    model: tuple[str, str] | None = None
    caller: Caller = NOBODY


def device_of(call: Call) -> str:
    """Id of the device that a call comes from: as it says, or as its key says; "" if neither does."""
    return call.device or call.key.partition(":")[0]
