"""A reader of the stream protocol, written from docs/stream.md alone: it shares no code with `codec/wire/stream.py`.

Slow and plain on purpose. `read` returns what a direction of a connection says, as dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

NAMES = {1: "hello", 2: "welcome", 3: "keyed", 4: "reply", 5: "window", 6: "ping", 7: "pong", 8: "goodbye"}


class WrongRecord(Exception):
    """The bytes are no sequence of records."""


def crc(data: bytes) -> int:
    """CRC-32 bit by bit, as bitstream.md defines it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def varint(data: bytes, at: int, most: int = 10) -> tuple[int, int]:
    """(number, position behind it)."""
    for end in range(at + 1, at + most + 1):
        if end > len(data):
            raise WrongRecord("ends within a number")
        if data[end - 1] < 128:
            digits = data[at:end]
            if len(digits) > 1 and digits[-1] == 0:
                raise WrongRecord("number is too long")
            return sum((d % 128) * 128**i for i, d in enumerate(digits)), end
    raise WrongRecord("number is too long")


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(head, body) of each record, checksums checked and taken off."""
    at = 0
    while at < len(data):
        length, start = varint(data, at + 1, 4)
        content = data[start : start + length]
        if len(content) < length:
            raise WrongRecord("ends within a record")
        if data[at] < 128:
            body, checksum = content[:-4], content[-4:]
            if crc(data[at : at + 1] + body) != sum(b * 256**i for i, b in enumerate(checksum)):
                raise WrongRecord("checksum")
            content = body
        yield data[at], content
        at = start + length


def read(data: bytes) -> list[dict[str, Any]]:
    """What each record says. Frame records get the counter that the protocol gives them."""
    said: list[dict[str, Any]] = []
    counter = sequence = 0
    own: tuple[str, str] | None = None
    for head, body in records(data):
        if head >= 128:
            if head % 128 != sequence % 128:
                raise WrongRecord("sequence")
            said.append({"kind": "frame", "sequence": sequence, "counter": counter, "frame": body.hex()})
            counter, sequence = counter + 1, sequence + 1
            continue
        name = NAMES.get(head)
        if name is None:
            raise WrongRecord("kind")
        fields: dict[str, Any] = {"kind": name}
        if name in ("hello", "welcome", "goodbye"):
            fields |= msgspec.msgpack.decode(body)
            if name == "hello":
                counter, own = fields["counter"], (fields["device"], fields["boot"])
                fields["pair"] = fields["pair"].hex() if fields["pair"] else None
        elif name == "keyed":
            fields["sequence"], at = varint(body, 0)
            fields["counter"], at = varint(body, at)
            for field in ("device", "boot"):
                fields[field] = body[at + 1 : at + 1 + body[at]].decode("ascii")
                at += 1 + body[at]
            fields["frame"] = body[at:].hex()
            if fields["sequence"] != sequence:
                raise WrongRecord("sequence")
            sequence += 1
            if (fields["device"], fields["boot"]) == ("", ""):
                fields["device"], fields["boot"] = own or ("", "")
                counter = fields["counter"] + 1
        elif name == "reply":
            fields["sequence"], at = varint(body, 0)
            fields["status"], result = body[at], body[at + 1 :]
            fields["result"] = msgspec.msgpack.decode(result) if fields["status"] == 2 else result.hex()
        else:
            fields["number"], at = varint(body, 0)
            if at != len(body):
                raise WrongRecord("bytes behind a number")
        said.append(fields)
    return said
