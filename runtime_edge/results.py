"""The result of one batch: the outputs of the whole network, and what they cost in bytes and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitwire.codec.errors import ShapeMismatch
from splitwire.codec.wire.reply import Outputs

Where = Literal["cloud", "device"]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Milliseconds per stage, in pipeline order.

    front, encode: on this device. network: the wait for the reply, minus the two times that the cloud reports. It
    includes the link in both directions, HTTP and the wait in the server's queue. decode, back: where the back ran, by
    the clock there.
    """

    front: float
    encode: float
    network: float
    decode: float
    back: float

    @property
    def total(self) -> float:
        """Sum of the stages, ms."""
        return self.front + self.encode + self.network + self.decode + self.back


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The outputs for one batch, and what they cost in bytes and time.

    outputs: the outputs of the whole network by name, in its order. op: the operating point of the frame.
    bytes_sent: bytes written to the socket, HTTP head and retries included. frame_bytes: bytes of the frame alone.
    bits_per_element: 8·frame_bytes divided by the elements of the feature tensors of all images of the batch.
    attempts: 1, unless the transport repeated a failed attempt. provider: the execution provider of ONNX Runtime that
    ran the front; "" where the caller brought the features. where: what ran the back half: the "cloud", or this
    "device" while the cloud was away; then no bytes were sent.
    """

    outputs: Outputs
    op: str
    bytes_sent: int
    frame_bytes: int
    bits_per_element: float
    timings: Timings
    attempts: int
    provider: str = ""
    where: Where = "cloud"

    def __repr__(self) -> str:
        """One line, with the shapes of the outputs."""
        outputs = ", ".join(f"{name} {list(y.shape)} {y.dtype}" for name, y in self.outputs.items())
        return (
            f"<SplitResult {outputs}; {self.op}: {self.bytes_sent:,} bytes sent, frame {self.frame_bytes:,},"
            f" {self.bits_per_element:.3f} bits per element, {self.timings.total:.2f} ms>"
        )


def first_rows(outputs: Outputs, n: int, of: int) -> Outputs:
    """The outputs for the first n images of a batch. Raises ShapeMismatch."""
    if n == of:
        return outputs
    for name, y in outputs.items():
        if not y.ndim or len(y) != of:
            raise ShapeMismatch(
                f"the output {name!r} has the shape {y.shape}, which is not one row for each of the {of} images of a"
                f" batch: {n} cannot be run alone; give infer() {of} images"
            )
    return {name: y[:n] for name, y in outputs.items()}
