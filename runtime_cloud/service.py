"""What every protocol of the server calls: one request for an inference in, the reply out.

Each protocol reads a request, makes a Call of it, and writes the reply in its own form. What is common to them is here:
which model, whether it is computed or remembered, and when it runs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import anyio.to_thread

from splitwire.codec.errors import FingerprintMismatch, ServerBusy
from splitwire.codec.wire.frame import parse_frame, peek_fingerprint

from .admission import Gate, ServerLimits
from .idempotency import Answers
from .repository import Models


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request for an inference.

    frame: the bytes of one frame. key: the idempotency key, "device:boot:counter", "" for none. outputs: names of the
    outputs in the reply; None for all; no name for no reply bytes. protocol: "http", "stream" or another, for logs.
    """

    frame: bytes
    key: str = ""
    outputs: tuple[str, ...] | None = None
    protocol: str = "http"


class Service:
    """The models of one server behind admission and the answers that are remembered.

    ready: False until every model has run once. Only the thread of the event loop uses it.
    """

    def __init__(self, models: Models, limits: ServerLimits) -> None:
        self.models = models
        self.gate = Gate(limits)
        self.answers = Answers(entries=limits.answers, max_bytes=limits.answer_bytes)
        self.ready = False

    @property
    def limits(self) -> ServerLimits:
        """What the server accepts."""
        return self.gate.limits

    async def warm_up(self) -> None:
        """Compile the kernels and run every model once, in a thread beside the event loop."""
        for session in self.models:
            await anyio.to_thread.run_sync(session.warm_up, abandon_on_cancel=True)
        self.ready = True

    def require_ready(self) -> None:
        """Raise ServerBusy while the models warm up."""
        if not self.ready:
            raise ServerBusy("the models are warming up; come back in a moment", self.limits.retry_after)

    async def answer(self, call: Call) -> bytes:
        """The reply (version 1) to a frame, in its turn.

        Raises BitstreamError, FingerprintMismatch, ShapeMismatch, UsageError (an output that the pair does not have),
        ServerBusy.
        """
        try:
            session = self.models.of_frame(peek_fingerprint(call.frame))
        except FingerprintMismatch:
            parse_frame(call.frame)  # raises if the frame is damaged, and its fingerprint with it
            raise
        compute = functools.partial(self.gate.run, functools.partial(session.handle, outputs=call.outputs), call.frame)
        if not call.key:
            return await compute()
        return await self.answers.answer(call.key, call.frame, compute)
