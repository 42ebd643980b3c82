"""What every protocol of the server calls: one request for an inference in, the reply out.

Each protocol reads a request, makes a Call of it, and writes the reply in its own form. What is common to them is here:
which model, whether it is computed or remembered, and when it runs.
"""

from __future__ import annotations

import dataclasses
import time

import anyio.to_thread

from splitwire.codec.errors import FingerprintMismatch, ServerBusy
from splitwire.codec.wire.frame import parse_frame, peek_batch, peek_fingerprint
from splitwire.codec.wire.reply import decode_reply

from .admission import Gate, ServerLimits
from .batching import Done, Scheduler, prepare
from .call import Call, device_of
from .idempotency import Answers
from .observe import Answered, Observer
from .repository import Models
from .session import CloudResult, CloudSession

__all__ = ["Call", "Service", "device_of"]


class Service:
    """The models of one server behind admission and the answers that are remembered.

    observer: hears of every answer and refusal; None for nobody. ready: False until every model has run once. stopping:
    the server is about to stop; frames are taken until it does. Only the thread of the event loop uses it.
    """

    def __init__(self, models: Models, limits: ServerLimits, observer: Observer | None = None) -> None:
        self.models = models
        self.observer = Observer() if observer is None else observer
        self.gate = Gate(limits)
        self.scheduler = Scheduler(limits, self.observer)
        self.answers = Answers(entries=limits.answers, max_bytes=limits.answer_bytes)
        self.ready = False
        self.stopping = False

    @property
    def limits(self) -> ServerLimits:
        """What the server accepts."""
        return self.gate.limits

    async def warm_up(self) -> None:
        """Compile the kernels and run every model once, in a thread beside the event loop."""
        for session in self.models:
            await anyio.to_thread.run_sync(prepare, session, abandon_on_cancel=True)
        self.ready = True

    def require_ready(self) -> None:
        """Raise ServerBusy while the models warm up."""
        if not self.ready:
            raise ServerBusy("the models are warming up; come back in a moment", self.limits.retry_after)

    async def answer(self, call: Call) -> bytes:
        """The reply (version 1) to a frame, in its turn.

        Raises BitstreamError, FingerprintMismatch, ShapeMismatch, UsageError (an output that the pair does not have),
        UnknownModel, ServerBusy, DeadlineExceeded.
        """
        session = self.session_of(call)
        if not call.key:
            return (await self._compute(session, call)).reply
        return await self._remembered(session, call)

    async def infer(self, call: Call) -> CloudResult:
        """All outputs for a call, in its turn: for protocols with replies of their own. Raises as `answer`.

        An answer from memory has no operating point.
        """
        session = self.session_of(call)
        if call.tensors is not None or not call.key:
            return (await self._compute(session, call, with_reply=False)).result
        reply = decode_reply(await self._remembered(session, dataclasses.replace(call, outputs=None)))
        return CloudResult(
            outputs=reply.outputs,
            decode_ms=reply.decode_ms,
            back_ms=reply.back_ms,
            op="",
            frame_id=reply.frame_id,
            batch=peek_batch(call.frame),
        )

    def session_of(self, call: Call) -> CloudSession:
        """The session of the model that a call, or else its frame, names. Raises UnknownModel, FingerprintMismatch."""
        if call.model is not None:
            return self.models.named(*call.model)
        try:
            return self.models.of_frame(peek_fingerprint(call.frame))
        except FingerprintMismatch:
            parse_frame(call.frame)  # raises if the frame is damaged, and its fingerprint with it
            raise

    async def _remembered(self, session: CloudSession, call: Call) -> bytes:
        """The reply to a frame with a key: from memory, or computed."""
        remembered = True

        async def compute() -> bytes:
            nonlocal remembered
            remembered = False
            return (await self._compute(session, call)).reply

        reply = await self.answers.answer(call.key, call.frame, compute)
        if remembered:
            self.observer.remembered(call.protocol, device_of(call))
        return reply

    async def _compute(self, session: CloudSession, call: Call, *, with_reply: bool = True) -> Done:
        """The outputs and the reply for a call, computed."""
        asked = time.perf_counter()
        session.check_outputs(call.outputs or ())
        done = await self.scheduler.run(session, call, with_reply=with_reply)
        result = done.result
        decoded, ran = result.decode_ms / 1e3, result.back_ms / 1e3
        self.observer.answered(
            Answered(
                model=session.profile.model,
                pair=session.pair,
                op=result.op,
                protocol=call.protocol,
                device=device_of(call),
                images=result.batch,
                elements=result.batch * session.elements,
                frame_bytes=len(call.frame),
                reply_bytes=len(done.reply),
                received=call.received,
                queued=done.begun - asked,
                decoded=decoded,
                ran=ran,
                encoded=max(0.0, done.ended - done.begun - decoded - ran),
                ended=done.ended,
                trace=call.trace,
            )
        )
        return done
