"""What the spool stores: records with a checksum each, dead records with their reason, the state.

Each is one BLOB, a body: magic (4 bytes), CRC-32 of all that follows (4 bytes), length of all that follows (4 bytes).
A body is complete in itself, so that salvage.py finds it in a damaged database by its magic, and trusts it by its CRC.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import msgspec

from splitwire.codec.errors import SplitwireError
from splitwire.runtime_edge.transport.base import Key

RECORD, DEAD, STATE = b"\xf5SpR", b"\xf5SpD", b"\xf5SpS"
"""The magics."""
COVER = struct.Struct("<4sII")
FIELDS = struct.Struct("<QQddBB")
"""Sequence number, counter, captured_wall, stamp, lengths of device and boot."""
REASON = struct.Struct("<HH")
"""Lengths of code and text."""

OVERHEAD = 32
"""Bytes that a record is counted with beside its body: its row in the database."""

MAX_FRAME = 256 << 20
"""Bytes of the largest frame that the spool takes."""


class Damaged(Exception):
    """A body whose magic, length or checksum is wrong. It stays inside the package."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A frame in the spool.

    id: sequence number in the spool; a later frame has a greater one. key: its idempotency key. captured_wall: when it
    was captured, seconds since 1970 by the clock of that time. stamp: when it was stored, in seconds of the spool's
    clock, which never goes back.
    """

    id: int
    key: Key
    frame: bytes
    captured_wall: float
    stamp: float


@dataclass(frozen=True, slots=True)
class Dead:
    """A frame that is not sent again: the server refuses it for ever, or it is damaged.

    code: the code of the error, as `corrupt`; `damaged` for a record with a wrong checksum. reason: the error's text.
    body: the record as it was; `record()` reads it.
    """

    id: int
    code: str
    reason: str
    body: bytes

    def record(self) -> Spooled | None:
        """The frame, or None if the record is damaged."""
        try:
            return unpack(self.body)
        except Damaged:
            return None


class State(msgspec.Struct, kw_only=True):
    """What the spool knows about itself, written with every commit.

    generation: number of the commit. next_id: of the next record. head: no record below it waits. records, dead and
    their bytes: the totals. counter: keys below it may be in use. boot, running, clock, wall: the spool's clock at the
    commit (clock.py).
    """

    generation: int = 0
    device: str = ""
    next_id: int = 1
    head: int = 1
    records: int = 0
    record_bytes: int = 0
    dead: int = 0
    dead_bytes: int = 0
    counter: int = 0
    boot: str = ""
    running: float = 0.0
    clock: float = 0.0
    wall: float = 0.0


def size_of(body_bytes: int) -> int:
    """Bytes that a body counts for."""
    return body_bytes + OVERHEAD


def _cover(magic: bytes, content: bytes) -> bytes:
    return COVER.pack(magic, zlib.crc32(content), len(content)) + content


def content_of(body: bytes | None, magic: bytes) -> bytes:
    """What a body covers. Raises Damaged."""
    if body is None or len(body) < COVER.size:
        raise Damaged("it is cut short")
    stored, crc, length = COVER.unpack_from(body)
    content = body[COVER.size :]
    if stored != magic or length != len(content):
        raise Damaged("its head is damaged")
    if zlib.crc32(content) != crc:
        raise Damaged("its checksum is wrong")
    return content


def pack(record: Spooled) -> bytes:
    """The body of a record."""
    device, boot = record.key.device.encode(), record.key.boot.encode()
    fields = FIELDS.pack(record.id, record.key.counter, record.captured_wall, record.stamp, len(device), len(boot))
    return _cover(RECORD, b"".join((fields, device, boot, record.frame)))


def unpack(body: bytes | None) -> Spooled:
    """The record of a body. Raises Damaged."""
    content = content_of(body, RECORD)
    try:
        seq, counter, wall, stamp, d, b = FIELDS.unpack_from(content)
        names = content[FIELDS.size : FIELDS.size + d + b].decode()
        key = Key(names[:d], names[d:], counter)
    except (struct.error, UnicodeDecodeError, SplitwireError) as e:
        raise Damaged("its fields are damaged") from e
    return Spooled(seq, key, content[FIELDS.size + d + b :], wall, stamp)


def stamp_of(start: bytes) -> float:
    """The stamp in the first bytes of a record's body, which are not checked."""
    fields: tuple[int, int, float, float, int, int] = FIELDS.unpack_from(start, COVER.size)
    return fields[3]


HEAD_BYTES = COVER.size + FIELDS.size
"""Bytes of a record's body that `stamp_of` needs."""


def pack_dead(dead: Dead) -> bytes:
    """The body of a dead record."""
    code, reason = dead.code.encode()[:256], dead.reason.encode()[:4096]
    head = struct.pack("<Q", dead.id) + REASON.pack(len(code), len(reason))
    return _cover(DEAD, b"".join((head, code, reason, dead.body)))


def unpack_dead(body: bytes | None) -> Dead:
    """The dead record of a body. Raises Damaged."""
    content = content_of(body, DEAD)
    try:
        (seq,) = struct.unpack_from("<Q", content)
        c, r = REASON.unpack_from(content, 8)
    except struct.error as e:
        raise Damaged("its fields are damaged") from e
    at = 8 + REASON.size
    code = content[at : at + c].decode(errors="replace")
    reason = content[at + c : at + c + r].decode(errors="replace")
    return Dead(seq, code, reason, content[at + c + r :])


def pack_state(state: State) -> bytes:
    """The body of the state."""
    return _cover(STATE, msgspec.json.encode(state))


def unpack_state(body: bytes | None) -> State:
    """The state of a body. Raises Damaged."""
    try:
        return msgspec.json.decode(content_of(body, STATE), type=State)
    except msgspec.DecodeError as e:
        raise Damaged("its fields are damaged") from e
