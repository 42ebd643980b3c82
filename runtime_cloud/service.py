"""What every protocol of the server calls: one request for an inference in, the reply out.

Each protocol reads a request, makes a Call of it, and writes the reply in its own form. What is common to them is here:
which model, whether it is computed or remembered, and when it runs.
"""

from __future__ import annotations

import dataclasses
import time

from splitwire.codec.errors import FingerprintMismatch, ServerBusy
from splitwire.codec.wire.frame import parse_frame, peek_batch, peek_fingerprint
from splitwire.codec.wire.reply import decode_reply

from .access import Access
from .admission import Gate, ServerLimits
from .batching import Done, Scheduler
from .call import Call, device_of
from .idempotency import Answers
from .observe import Answered, Observer
from .repository import ServedModels
from .security import Policy
from .session import CloudResult, CloudSession

__all__ = ["Call", "Service", "device_of"]


class Service:
    """The models of one server behind admission and the answers that are remembered.

    observer: hears of every answer and refusal; None for nobody. policy: who may do what; None: everybody everything.
    ready: False until every model has run once. stopping: the server is about to stop; frames are taken until it does.
    access: the models, as far as a caller may use them. Only the thread of the event loop uses it.
    """

    def __init__(
        self,
        models: ServedModels,
        limits: ServerLimits,
        observer: Observer | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.models = models
        self.policy = Policy() if policy is None else policy
        self.access = Access(models, self.policy)
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
        await self.models.start()
        self.ready = True

    def require_ready(self) -> None:
        """Raise ServerBusy while the models warm up, and while none is loaded."""
        if not self.ready:
            raise ServerBusy("the models are warming up; come back in a moment", self.limits.retry_after)
        if not len(self.models):
            raise ServerBusy("no model is loaded; come back later", self.limits.retry_after)

    async def answer(self, call: Call) -> bytes:
        """The reply (version 1) to a frame, in its turn.

        Raises BitstreamError, FingerprintMismatch, ShapeMismatch, UsageError (an output that the pair does not have),
        UnknownModel, ServerBusy, DeadlineExceeded, AuthRefused, Forbidden.
        """
        self.access.admit(call)
        if not call.key:
            return (await self._compute(call)).reply
        return await self._remembered(call)

    async def infer(self, call: Call) -> CloudResult:
        """All outputs for a call, in its turn: for protocols with replies of their own. Raises as `answer`.

        An answer from memory has no operating point.
        """
        self.access.admit(call)
        if call.tensors is not None or not call.key:
            return (await self._compute(call, with_reply=False)).result
        reply = decode_reply(await self._remembered(dataclasses.replace(call, outputs=None)))
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
        device = device_of(call) or call.client
        if call.model is not None:
            return self.models.named(*call.model, device)
        try:
            return self.models.of_frame(peek_fingerprint(call.frame), device)
        except FingerprintMismatch:
            parse_frame(call.frame)  # raises if the frame is damaged, and its fingerprint with it
            raise

    async def _remembered(self, call: Call) -> bytes:
        """The reply to a frame with a key: from memory, or computed."""
        remembered = True

        async def compute() -> bytes:
            nonlocal remembered
            remembered = False
            return (await self._compute(call)).reply

        reply = await self.answers.answer(call.key, call.frame, compute)
        if remembered:
            self.observer.remembered(call.protocol, device_of(call))
        return reply

    async def _compute(self, call: Call, *, with_reply: bool = True) -> Done:
        """The outputs and the reply for a call, computed. The model is found now, and stays until it has answered."""
        asked = time.perf_counter()
        with self.session_of(call) as session:
            session.check_outputs(call.outputs or ())
            done = await self.scheduler.run(session, call, with_reply=with_reply)
        session.answers += 1
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
