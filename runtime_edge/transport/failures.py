"""Turns a failure of the link into one of our errors, whose message is one sentence that says what to do."""

from __future__ import annotations

import ssl

from splitwire.codec.errors import BadResponse, ConnectTimeout, RequestTimeout, TransportError

from .http1 import NotHttp
from .sockets import (
    Broken,
    ConnectTimedOut,
    CutShort,
    DeadlinePassed,
    LinkError,
    NoConnection,
    PoolTimedOut,
    ReadTimedOut,
    Tally,
    WriteTimedOut,
)


def explain(
    e: LinkError | NotHttp, server: str, tally: Tally, attempts: int, total: float | None = None
) -> TransportError:
    """The error for a failure. server: its name in the message. total: the deadline, seconds."""
    tries = f" after {attempts} tries" if attempts > 1 else ""
    match e:
        case NotHttp():
            return BadResponse(f"{server} does not answer in HTTP as `splitwire cloud serve` does: {reason(e)}")
        case ConnectTimedOut():
            return ConnectTimeout(f"{server} did not accept a connection in time{tries}; check the address")
        case NoConnection() | Broken() if isinstance(e.__cause__, ssl.SSLError):
            return ConnectTimeout(
                f"{server}: no TLS connection{tries}: {reason(e)}; check https:// and the certificates"
            )
        case NoConnection():
            return ConnectTimeout(f"{server}: {reason(e)}{tries}; is `splitwire cloud serve` running there?")
        case PoolTimedOut():
            return RequestTimeout("every connection of this transport is in use; raise max_connections")
        case ReadTimedOut():
            return RequestTimeout(f"{server} did not answer in time; raise the read timeout, or send less at once")
        case WriteTimedOut():
            return RequestTimeout(f"{server} did not take the frame in time; raise the write timeout, or send less")
        case DeadlinePassed():
            within = "" if total is None else f" of {total:g} s"
            return RequestTimeout(f"{server} did not answer within the deadline{within}{tries}; raise it, or send less")
        case CutShort():
            return BadResponse(f"{server} closed the connection in the middle of its answer{tries}")
    when = "in the middle of its answer" if tally.attempt_received else "before it answered"
    return TransportError(f"{server} closed the connection {when}{tries}: {reason(e)}")


def reason(e: LinkError | NotHttp) -> str:
    """The text of the system's error, if there is one, in lower case."""
    cause = e.__cause__
    if cause is None:
        return str(e) or _WORDS.get(type(e), "it said no more")
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or _WORDS.get(type(e), "")
    text = text or type(cause).__name__
    return text[:1].lower() + text[1:]


_WORDS: dict[type[Exception], str] = {
    ConnectTimedOut: "it did not accept a connection in time",
    ReadTimedOut: "it did not answer in time",
    WriteTimedOut: "it did not take the frame in time",
    DeadlinePassed: "it did not answer within the deadline",
    CutShort: "it closed the connection in the middle of its answer",
}
