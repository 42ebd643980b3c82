"""Turns a server's answer into a reply or into one of our errors. Nothing in an answer is trusted.

The text of an error body is shown to a person. Control characters are removed from it, and a long text is shortened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import msgspec

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    BitstreamError,
    ServerBusy,
    SplitwireError,
    TransportError,
)
from splitwire.codec.wire.batch import REPLIES_MEDIA_TYPE, ReplyRecord, parse_replies
from splitwire.codec.wire.frame import parse_frame
from splitwire.codec.wire.reply import REPLY_MEDIA_TYPE, UNREADABLE, DecodedReply, decode_reply, printable
from splitwire.codec.wire.stream import Refusal


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer, read to its end.

    content_type: without parameters, in lower case. retry_after, location: the text of the header; None without one.
    json_length, code: likewise, of the headers with which the Open Inference Protocol splits a body, and a server of
    ours names an error there.
    """

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None
    location: str | None = None
    json_length: str | None = None
    code: str | None = None


class ErrorText(msgspec.Struct):
    """What the body of an error says. code: "" for an unknown one. retry_after: seconds."""

    code: str
    message: str
    retry_after: float | None = None


class _ErrorBody(msgspec.Struct):
    error: ErrorText


def understand(answer: Answer, server: str) -> DecodedReply:
    """Return the reply in an answer. server: the name of the server in messages.

    Raises the splitwire error that the JSON body of the answer names, with the message in the body. Without such a
    body it raises ServerBusy, AuthRefused, BadResponse or TransportError.
    """
    if answer.status == 200:
        if answer.content_type != REPLY_MEDIA_TYPE:
            raise BadResponse(
                f"{server} answered {printable(answer.content_type) or 'no content type'}, not {REPLY_MEDIA_TYPE}; "
                "is this the address of `splitwire cloud serve`?"
            )
        return decode_reply(answer.body)
    raise refusal(answer, server, _error_text(answer))


def reply_to(frame: bytes | memoryview, reply: DecodedReply, server: str) -> DecodedReply:
    """The reply, if it is to this frame. Raises BadResponse if it is to another one."""
    try:
        expected = parse_frame(frame).frame_id
    except BitstreamError:  # it has no id
        return reply
    if reply.frame_id != expected:
        raise BadResponse(f"{server} answered frame {reply.frame_id}, this was frame {expected}")
    return reply


class NoBatches(Exception):
    """The server has no route for batches: it is older."""


def understand_batch(answer: Answer, server: str, frames: int) -> list[DecodedReply | SplitwireError]:
    """Return the reply or the error of each frame of a batch, in its order.

    Raises NoBatches, and as `understand` if the answer is for the whole batch.
    """
    if answer.status in (404, 405, 415):
        raise NoBatches
    if answer.status != 200:
        raise refusal(answer, server, _error_text(answer))
    if answer.content_type != REPLIES_MEDIA_TYPE:
        raise BadResponse(
            f"{server} answered {printable(answer.content_type) or 'no content type'}, not {REPLIES_MEDIA_TYPE}"
        )
    try:
        records = parse_replies(answer.body)
    except BitstreamError as e:
        raise BadResponse(f"{server} answered a damaged batch of replies: {e}") from e
    if len(records) != frames:
        raise BadResponse(f"{server} answered {len(records)} of {frames} frames")
    return [_error_of_record(record, server) if record.is_error else decode_reply(record.body) for record in records]


def _error_of_record(record: ReplyRecord, server: str) -> SplitwireError:
    text = _read_error(record.body)
    if text is None:
        return BadResponse(f"{server} answered a frame with an error that cannot be read")
    if text.code == ServerBusy.code:
        return ServerBusy(f"{server} is busy: {text.message}", text.retry_after)
    return error_class(text.code)(f"{server} answered: {text.message}")


def refused(refusal: Refusal, server: str) -> SplitwireError:
    """The error that a server names in a stream. server: its name in the message."""
    if refusal.code == ServerBusy.code:
        after = refusal.retry_after
        hint = "" if after is None else f"; it asks to come back in {after:g} s"
        return ServerBusy(f"{server} is busy: {refusal.message}{hint}", after)
    return error_class(refusal.code)(f"{server} answered: {refusal.message}")


def refusal(answer: Answer, server: str, body_text: ErrorText | None) -> SplitwireError:
    """The error for a status other than 200. body_text: what the body says; None if it is of no form of ours."""
    if answer.status in (401, 403):
        reason = f": {body_text.message}" if body_text else ""
        return AuthRefused(f"{server} refused the credentials (status {answer.status}){reason}; check the token")
    if answer.status in (429, 503):
        after = parse_retry_after(answer.retry_after)
        hint = "" if after is None else f"; it asks to come back in {after:g} s"
        return ServerBusy(
            f"{server} is busy: {body_text.message if body_text else f'status {answer.status}'}{hint}", after
        )
    if answer.status in (502, 504) and body_text is None:  # a proxy answers so while its server restarts
        return ServerBusy(
            f"{server} answered status {answer.status}: nothing answers behind it; is the server running?"
        )
    if body_text:
        return error_class(body_text.code)(f"{server} answered {answer.status}: {body_text.message}")
    if 300 <= answer.status < 400:
        target = printable(answer.location or "nowhere")
        return BadResponse(f"{server} redirects to {target}; redirects are not followed, give the final address")
    return BadResponse(
        f"{server} answered status {answer.status} without an error of ours; is this `splitwire cloud serve`?"
    )


def _error_text(answer: Answer) -> ErrorText | None:
    """The code and the message of a body {"error": {"code", "message"}}, safe to print; None for any other body."""
    return _read_error(answer.body) if answer.content_type == "application/json" else None


def _read_error(body: bytes | memoryview) -> ErrorText | None:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except UNREADABLE:
        return None
    return ErrorText(code=error.code, message=printable(error.message), retry_after=error.retry_after)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header (a number or an HTTP date); None if it is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def error_class(code: str) -> type[SplitwireError]:
    """The error class with this `code`; TransportError for a code that this version does not know."""
    return _by_code(SplitwireError).get(code, TransportError)


def _by_code(root: type[SplitwireError]) -> dict[str, type[SplitwireError]]:
    classes = {root.code: root}
    for child in root.__subclasses__():
        # A subclass that defines no code inherits its parent's code. The parent keeps its entry.
        classes |= {code: cls for code, cls in _by_code(child).items() if code not in classes}
    return classes
