"""Opens a stream: connect, ask for the upgrade, hello, welcome."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from splitwire.codec.errors import BadResponse, BitstreamError
from splitwire.codec.wire.stream import (
    CLOSING,
    MAX_WINDOW,
    PATH,
    UPGRADE,
    VERSION,
    Hello,
    Kind,
    RecordParser,
    Refusal,
    hello_record,
    parse_refusal,
    parse_welcome,
)
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import Answer, refused, understand
from splitwire.runtime_edge.transport.base import Key, Timeouts
from splitwire.runtime_edge.transport.http1 import Response, read_response
from splitwire.runtime_edge.transport.sockets import Broken, CutShort, Link, Tally, connect

from .connection import FROM_SERVER, NotStream, Opened, Refused
from .sockets import DuplexSocket

MAX_ERROR_BYTES = 64 << 10
PASSING = frozenset({CLOSING, "corrupt", "limit_exceeded", "request_timeout"})
"""Codes of a goodbye behind a hello that was right when it was sent: another connection may work."""
WELCOME = frozenset({int(Kind.WELCOME), int(Kind.GOODBYE)})


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a hello says beside the key of the first frame.

    pair: fingerprint of the pair of all frames, or None. outputs: names of the outputs that replies shall hold; None
    for all. window: most frames in flight. max_reply_bytes: a longer reply is refused.
    """

    pair: bytes | None
    outputs: tuple[str, ...] | None
    window: int
    max_reply_bytes: int


def open_stream(
    address: Address,
    *,
    token: str,
    tls: ssl.SSLContext | None,
    timeouts: Timeouts,
    deadline: float,
    first: Key,
    wishes: Wishes,
) -> Opened:
    """Open a stream whose first frame has the key `first`. token: "" for none. deadline: as time.monotonic() counts.

    Raises LinkError, NotHttp, and the error that the server names, with an HTTP status or a goodbye.
    """
    tally = Tally()
    link = connect(address.name, address.port, tls=tls, tally=tally, limit=timeouts.connect, deadline=deadline)
    try:
        link.tally, link.deadline = tally, deadline
        received = _upgrade(link, address, token, timeouts)
        hello = Hello(
            versions=(VERSION,),
            device=first.device,
            boot=first.boot,
            counter=first.counter,
            pair=wishes.pair,
            outputs=wishes.outputs,
            window=min(wishes.window, MAX_WINDOW),
            deadline=timeouts.told,
        )
        link.send(hello_record(hello), limit=timeouts.write)
        parser = RecordParser(WELCOME, wishes.max_reply_bytes)
        parser.feed(received)
        try:
            while (record := parser.next_record()) is None:
                data = link.receive(timeouts.read)
                if not data:
                    raise Broken
                parser.feed(data)
            if record.head == Kind.GOODBYE:
                raise _farewell(parse_refusal(record.body), address.server)
            welcome = parse_welcome(record.body)
        except BitstreamError as e:
            raise NotStream(str(e)) from None
        if welcome.version != VERSION:
            raise NotStream(f"it speaks version {welcome.version} of the stream, which was not offered")
        parser.accepted = FROM_SERVER
        return Opened(
            sock=DuplexSocket(link.detach()),
            parser=parser,
            welcome=welcome,
            device=first.device,
            boot=first.boot,
            counter=first.counter,
            sent=tally.sent,
            received=tally.received,
        )
    except BaseException:
        link.close()
        raise


def _farewell(refusal: Refusal, server: str) -> Exception:
    """The error for a goodbye instead of a welcome: of the link where the hello was damaged or late."""
    return Refused(refusal) if refusal.code in PASSING else refused(refusal, server)


def _upgrade(link: Link, address: Address, token: str, timeouts: Timeouts) -> bytes:
    """Turn HTTP into a stream; what came behind the head of the answer."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    request = (
        f"GET {address.path}{PATH} HTTP/1.1\r\nHost: {address.host}\r\nConnection: Upgrade\r\n"
        f"Upgrade: {UPGRADE}\r\nUser-Agent: splitwire\r\n{authorization}\r\n"
    )
    link.send(request.encode("ascii"), limit=timeouts.write)
    try:
        response = read_response(link, limit=timeouts.read, max_body=MAX_ERROR_BYTES, upgrade=UPGRADE)
    except CutShort:
        raise Broken from None
    if response.status == 101:
        return response.body
    understand(_answer(response), address.server)
    raise BadResponse(
        f"{address.server} answers status {response.status} and opens no stream; use http:// for this server"
    )


def _answer(response: Response) -> Answer:
    headers = response.headers
    return Answer(
        status=response.status,
        content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
        body=response.body,
        retry_after=headers.get("retry-after"),
        location=headers.get("location"),
    )
