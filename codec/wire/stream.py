"""Records of the stream protocol, version 1: functions that write and read them (docs/stream.md is normative).

    frame record   1 byte (high bit, sequence mod 128) · length · frame          frames have a checksum of their own
    other record   1 byte (kind) · length · body · CRC-32 of kind and body

`RecordParser` splits the bytes of a connection into records. It checks a length before it stores anything for it, and
raises only BitstreamError. Nothing here touches a socket.
"""

from __future__ import annotations

import enum
import math
import zlib
from collections.abc import Collection
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from splitwire.codec.errors import Corrupt, LimitExceeded

from .reply import MAX_NAME, MAX_OUTPUTS, UNREADABLE, printable

VERSION = 1
"""The version of the protocol that this build speaks."""
UPGRADE = "splitwire-stream"
"""The name of the protocol in the Upgrade header."""
PATH = "/v1/stream"
"""Path of the HTTP request that opens a stream."""

FRAME = 0x80
"""The bit in the first byte of a frame record; the other seven bits are the sequence number modulo SEQUENCES."""
SEQUENCES = 128
CHECKSUM_BYTES = 4
MAX_RECORD = (1 << 28) - 1
"""Longest body that a length of four bytes can announce."""
MAX_WINDOW = 65535
MAX_NUMBER = (1 << 64) - 1
CONTROL_BYTES = 16 << 10
"""Longest body of a hello, welcome or goodbye record."""
NUMBER_BYTES = 10 + CHECKSUM_BYTES
KEYED_BYTES = 10 + 10 + 2 * 65 + CHECKSUM_BYTES
"""Most bytes that a keyed record has over its frame."""
REPLY_BYTES = 10 + 1 + CHECKSUM_BYTES
"""Most bytes that a reply record has over its body."""
NAME_PATTERN = r"\A[A-Za-z0-9_.-]{1,64}\Z"
"""What a device id and a boot id may be."""

T = TypeVar("T")


class Kind(enum.IntEnum):
    """The first byte of every record but a frame's. docs/stream.md says who sends which, and when."""

    HELLO = 1
    WELCOME = 2
    KEYED = 3
    REPLY = 4
    WINDOW = 5
    PING = 6
    PONG = 7
    GOODBYE = 8


class Status(enum.IntEnum):
    """What a reply record holds: OUTPUTS the reply of docs/runtime.md, TAKEN nothing, ERROR and DAMAGED a Refusal.

    DAMAGED: the checksum of the frame does not match, so it was not decoded. The connection ends. A frame that was
    sound when it was sent can be sent again on another one.
    """

    OUTPUTS = 0
    TAKEN = 1
    ERROR = 2
    DAMAGED = 3


Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Window = Annotated[int, Meta(ge=1, le=MAX_WINDOW)]


class Hello(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first record of a client.

    versions: of the protocol, all that the client speaks. device, boot: of the idempotency keys of its frames. counter:
    of the key of the first frame record; where the stream begins or resumes. pair: fingerprint of the pair of all
    frames, 8 bytes; None: each frame says. outputs: names of the outputs that replies shall hold; None for all, empty
    for none. window: most frames that the client will have in flight. deadline: seconds from a frame's arrival after
    which its inference need not begin; None for never. priority: of the frames: 1 highest, 2 normal, 3 lowest; 0 for
    the server's default. The last two are left out where they have these values.
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=255)], ...], Meta(min_length=1, max_length=16)]
    device: Name
    boot: Name
    counter: Annotated[int, Meta(ge=0)]
    pair: Annotated[bytes, Meta(min_length=8, max_length=8)] | None
    outputs: Annotated[tuple[Annotated[str, Meta(max_length=MAX_NAME)], ...], Meta(max_length=MAX_OUTPUTS)] | None
    window: Window
    deadline: Annotated[float, Meta(gt=0)] | None = None
    priority: Annotated[int, Meta(ge=0, le=3)] = 0


class Welcome(Struct, frozen=True, kw_only=True):
    """The first record of a server.

    version: of the protocol, one of the client's. window: frames that may be in flight. idle_s: the server closes a
    connection on which nothing arrives for this time. max_frame: longest frame that it takes, bytes.
    """

    version: Annotated[int, Meta(ge=1, le=255)]
    window: Window
    idle_s: Annotated[float, Meta(gt=0)]
    max_frame: Annotated[int, Meta(ge=1, le=MAX_RECORD)]


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a frame has no outputs, or why a connection ends.

    code: as in the error table of docs/runtime.md, or "closing" in a goodbye without an error. message: one sentence.
    retry_after: seconds after which to come back, or None.
    """

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=4096)]
    retry_after: Annotated[float, Meta(ge=0)] | None = None


CLOSING = "closing"
"""The code of a goodbye without an error."""


class Record(NamedTuple):
    """A record. head: its first byte. body: without length and checksum."""

    head: int
    body: bytes

    @property
    def is_frame(self) -> bool:
        """Whether it is a frame record; then `head` has the low bits of its sequence number."""
        return self.head >= FRAME


class Keyed(NamedTuple):
    """The body of a keyed record. device, boot: empty for those of the hello."""

    sequence: int
    counter: int
    device: str
    boot: str
    frame: bytes


class Replied(NamedTuple):
    """The body of a reply record. sequence: of the frame record that it answers."""

    sequence: int
    status: Status
    body: bytes


# ------------------------------------------------------------------ writing


def varint(value: int) -> bytes:
    """LEB128: seven bits per byte, lowest first; the high bit says that another byte follows."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame_record(sequence: int, frame: bytes) -> bytes:
    """A frame record. sequence: number of frames sent on this connection before it."""
    return b"".join((bytes((FRAME | sequence % SEQUENCES,)), varint(len(frame)), frame))


def keyed_record(keyed: Keyed) -> bytes:
    """A frame record that says its key."""
    device, boot = keyed.device.encode("ascii"), keyed.boot.encode("ascii")
    names = b"".join((bytes((len(device),)), device, bytes((len(boot),)), boot))
    return _record(Kind.KEYED, b"".join((varint(keyed.sequence), varint(keyed.counter), names, keyed.frame)))


def reply_record(sequence: int, status: Status, body: bytes = b"") -> bytes:
    """The answer to the frame with this sequence number."""
    return _record(Kind.REPLY, b"".join((varint(sequence), bytes((status,)), body)))


def number_record(kind: Kind, value: int) -> bytes:
    """A window, ping or pong record."""
    return _record(kind, varint(value))


def hello_record(hello: Hello) -> bytes:
    """The first record of a client."""
    return _record(Kind.HELLO, msgspec.msgpack.encode(hello))


def welcome_record(welcome: Welcome) -> bytes:
    """The first record of a server."""
    return _record(Kind.WELCOME, msgspec.msgpack.encode(welcome))


def goodbye_record(refusal: Refusal) -> bytes:
    """The last record of either side."""
    return _record(Kind.GOODBYE, refusal_body(refusal))


def refusal_body(refusal: Refusal) -> bytes:
    """The body of a goodbye record, and of a reply record with Status.ERROR."""
    return msgspec.msgpack.encode(refusal)


def _record(kind: Kind, body: bytes) -> bytes:
    head = bytes((kind,))
    checksum = zlib.crc32(body, zlib.crc32(head)).to_bytes(CHECKSUM_BYTES, "little")
    return b"".join((head, varint(len(body) + CHECKSUM_BYTES), body, checksum))


# ------------------------------------------------------------------ reading


class RecordParser:
    """Splits received bytes into records.

    accepted: the kinds that may come, FRAME for frame records; replaced as the connection goes on. limit: longest frame
    or reply, bytes. An error is final: nothing that follows it can be trusted.
    """

    def __init__(self, accepted: Collection[int], limit: int) -> None:
        self.accepted = accepted
        self._limit = min(limit, MAX_RECORD - KEYED_BYTES)
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their record."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes that were received."""
        self._buffer += data

    def next_record(self) -> Record | None:
        """The next whole record; None until more bytes come.

        Raises Corrupt (a kind that may not come here, a length that is not in the fewest bytes, a wrong checksum),
        LimitExceeded (a length over the limit of its kind), both as soon as the first bytes of the record are there.
        """
        buffer = self._buffer
        if not buffer:
            return None
        head = buffer[0]
        if (FRAME if head >= FRAME else head) not in self.accepted:
            raise Corrupt(f"record of kind {head} does not belong here")
        length, start = self._length(head)
        if start == 0 or len(buffer) < start + length:
            return None
        end = start + length
        if head >= FRAME:
            record = Record(head, bytes(buffer[start:end]))
        else:
            body = bytes(buffer[start : end - CHECKSUM_BYTES])
            checksum = int.from_bytes(buffer[end - CHECKSUM_BYTES : end], "little")
            if zlib.crc32(body, zlib.crc32(buffer[:1])) != checksum:
                raise Corrupt(f"record of kind {head} is damaged: its checksum does not match")
            record = Record(head, body)
        del buffer[:end]
        return record

    def _length(self, head: int) -> tuple[int, int]:
        """(length of the body, where it begins); (0, 0) until the length is there."""
        length = 0
        for i, byte in enumerate(self._buffer[1:5]):
            length |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if i and not byte:
                    break
                self._check_length(head, length)
                return length, i + 2
        else:
            if len(self._buffer) < 5:
                return 0, 0
        raise Corrupt("record has a length that is not in 1 to 4 bytes, as few as it takes")

    def _check_length(self, head: int, length: int) -> None:
        if head >= FRAME:
            least, most = 1, self._limit
        elif head == Kind.KEYED:
            least, most = 4 + CHECKSUM_BYTES, self._limit + KEYED_BYTES
        elif head == Kind.REPLY:
            least, most = 2 + CHECKSUM_BYTES, self._limit + REPLY_BYTES
        elif head in (Kind.WINDOW, Kind.PING, Kind.PONG):
            least, most = 1 + CHECKSUM_BYTES, NUMBER_BYTES
        else:
            least, most = 1 + CHECKSUM_BYTES, CONTROL_BYTES
        if length > most:
            raise LimitExceeded(f"record of {length} bytes is over the limit of {most}")
        if length < least:
            raise Corrupt(f"record of kind {head} has {length} bytes, needs at least {least}")


def parse_keyed(body: bytes) -> Keyed:
    """The body of a keyed record. Raises Corrupt."""
    sequence, position = _read_varint(body, 0)
    counter, position = _read_varint(body, position)
    names = []
    for _ in range(2):
        if position >= len(body):
            raise Corrupt("keyed record ends within its names")
        length = body[position]
        raw = body[position + 1 : position + 1 + length]
        # The pattern of a name, without a regular expression per frame.
        if length > 64 or len(raw) != length or not raw.isascii() or not _is_name(raw):
            raise Corrupt("keyed record has a device or boot that is not 0 to 64 letters, digits, _ - or .")
        names.append(raw.decode("ascii"))
        position += 1 + length
    if position >= len(body) or bool(names[0]) != bool(names[1]):
        raise Corrupt("keyed record has no frame, or only one of device and boot")
    return Keyed(sequence, counter, names[0], names[1], body[position:])


def _is_name(raw: bytes) -> bool:
    return not raw.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def parse_reply(body: bytes) -> Replied:
    """The body of a reply record. Raises Corrupt."""
    sequence, position = _read_varint(body, 0)
    if position >= len(body) or body[position] > max(Status):
        raise Corrupt("reply record has no status that this version knows")
    status, rest = Status(body[position]), body[position + 1 :]
    if status is Status.TAKEN and rest:
        raise Corrupt("reply record has a body where there is none")
    return Replied(sequence, status, rest)


def parse_number(body: bytes, most: int = MAX_NUMBER) -> int:
    """The number in a window, ping or pong record, 0 to `most`. Raises Corrupt."""
    value, position = _read_varint(body, 0)
    if position != len(body) or value > most:
        raise Corrupt(f"record must hold one number up to {most}")
    return value


def parse_hello(body: bytes) -> Hello:
    """The body of a hello record. Unknown fields are ignored: a later version may add some. Raises Corrupt."""
    return _parse(body, Hello)


def parse_welcome(body: bytes) -> Welcome:
    """The body of a welcome record. Unknown fields are ignored. Raises Corrupt."""
    welcome = _parse(body, Welcome)
    if not math.isfinite(welcome.idle_s):
        raise Corrupt("welcome record has no finite idle_s")
    return welcome


def parse_refusal(body: bytes) -> Refusal:
    """The body of a goodbye record or of an error, its text safe to show. Raises Corrupt."""
    refusal = _parse(body, Refusal)
    after = refusal.retry_after
    if after is not None and not math.isfinite(after):
        raise Corrupt("refusal has no finite retry_after")
    return Refusal(code=printable(refusal.code), message=printable(refusal.message), retry_after=after)


def _parse(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UNREADABLE as e:
        raise Corrupt(f"{kind.__name__.lower()} record is invalid: {printable(str(e))}") from e


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """A number below 2⁶⁴ and the position behind it. Raises Corrupt."""
    value = 0
    for i, byte in enumerate(body[position : position + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value > MAX_NUMBER or (i and not byte):  # a last byte of zero would be a second way to write a number
                break
            return value, position + i + 1
    raise Corrupt("record has a number that is not below 2^64 in as few bytes as it takes")
