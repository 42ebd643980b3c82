"""What a server's answer means: a reply, or one of our errors. Nothing in an answer is trusted.

The text of an error body is shown to a person, so control characters are taken out of it and it is cut short.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import msgspec

from splitwire.codec.errors import AuthRefused, BadResponse, ServerBusy, SplitwireError, TransportError
from splitwire.codec.reply import REPLY_MEDIA_TYPE, UNREADABLE, DecodedReply, decode_reply, printable


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer, read whole. content_type: without parameters, lower case. retry_after: the header's text."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None
    location: str | None = None


class _ErrorText(msgspec.Struct):
    code: str
    message: str


class _ErrorBody(msgspec.Struct):
    error: _ErrorText


def understand(answer: Answer, server: str) -> DecodedReply:
    """The reply in an answer. server: how to name the far end in a message.

    Raises the error of ours that the server names in its JSON body, with its sentence; ServerBusy, AuthRefused,
    BadResponse or TransportError for an answer without one.
    """
    if answer.status == 200:
        if answer.content_type != REPLY_MEDIA_TYPE:
            raise BadResponse(
                f"{server} answered {printable(answer.content_type) or 'no content type'}, not {REPLY_MEDIA_TYPE}; "
                "is this the address of `splitwire cloud serve`?"
            )
        return decode_reply(answer.body)
    raise _refusal(answer, server)


def _refusal(answer: Answer, server: str) -> SplitwireError:
    """The error for any status but 200."""
    told = _told(answer)
    if answer.status in (401, 403):
        reason = f": {told.message}" if told else ""
        return AuthRefused(f"{server} refused the credentials (status {answer.status}){reason}; check the token")
    if answer.status in (429, 503):
        after = parse_retry_after(answer.retry_after)
        hint = "" if after is None else f"; it asks to come back in {after:g} s"
        return ServerBusy(f"{server} is busy: {told.message if told else f'status {answer.status}'}{hint}", after)
    if answer.status in (502, 504) and told is None:  # of a proxy, while the server behind it restarts
        return ServerBusy(
            f"{server} answered status {answer.status}: nothing answers behind it; is the server running?"
        )
    if told:
        return _error_class(told.code)(f"{server} answered {answer.status}: {told.message}")
    if 300 <= answer.status < 400:
        target = printable(answer.location or "nowhere")
        return BadResponse(f"{server} redirects to {target}; redirects are not followed, give the final address")
    return BadResponse(
        f"{server} answered status {answer.status} without an error of ours; is this `splitwire cloud serve`?"
    )


def _told(answer: Answer) -> _ErrorText | None:
    """{"error": {"code", "message"}} of the body, made safe to print; None if the body is anything else."""
    if answer.content_type != "application/json":
        return None
    try:
        error = msgspec.json.decode(answer.body, type=_ErrorBody).error
    except UNREADABLE:
        return None
    return _ErrorText(code=error.code, message=printable(error.message))


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header (a number, or an HTTP date); None if it makes no sense."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _error_class(code: str) -> type[SplitwireError]:
    """The class with this `code`; TransportError for a code that this build does not know."""
    return _by_code(SplitwireError).get(code, TransportError)


def _by_code(root: type[SplitwireError]) -> dict[str, type[SplitwireError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        # A subclass that does not name a code of its own must not take its parent's.
        found |= {code: cls for code, cls in _by_code(child).items() if code not in found}
    return found
