"""Answers several frames of one request, each with a reply or an error of its own (docs/http.md)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from splitwire.codec.errors import ServerBusy, SplitwireError
from splitwire.codec.wire.batch import FrameRecord, ReplyRecord
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.security import public_text
from splitwire.runtime_cloud.service import Call, Service

log = logging.getLogger("splitwire.cloud")

MAX_ANSWER_BYTES = 64 << 20
"""Replies of one request. Frames behind them are refused as by a busy server, so that the edge sends them again."""


async def answer_all(records: Sequence[FrameRecord], service: Service, asked: Call) -> list[ReplyRecord]:
    """Answer one frame after the other, so that a batch takes one place in the queue and live frames pass between.

    asked: what the head of the request says, for each frame.
    """
    replies: list[ReplyRecord] = []
    size = 0
    for record in records:
        try:
            if size > MAX_ANSWER_BYTES:
                raise ServerBusy("the answer to this batch is full; send the frame again", service.limits.retry_after)
            reply = await service.answer(replace(asked, frame=bytes(record.frame), key=record.key))
            replies.append(ReplyRecord(body=reply))
            size += len(reply)
        except SplitwireError as e:
            log.info("one frame of a batch: %s: %s", e.code, printable(str(e)))
            service.observer.refused(e.code, printable(str(e)), device=record.key.partition(":")[0])
            replies.append(_error(e.code, public_text(e), e.retry_after if isinstance(e, ServerBusy) else None))
        except Exception:  # a bug must not cost the other frames their answers
            log.exception("one frame of a batch fails")
            service.observer.refused("internal", "one frame of a batch fails", device=record.key.partition(":")[0])
            replies.append(_error("internal", "the server failed on this frame; its log says how", None))
    return replies


def _error(code: str, message: str, retry_after: float | None) -> ReplyRecord:
    error: dict[str, str | float] = {"code": code, "message": message}
    if retry_after is not None:
        error["retry_after"] = retry_after
    return ReplyRecord(body=msgspec.json.encode({"error": error}), is_error=True)
