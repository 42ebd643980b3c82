"""The records of the stream: golden bytes, an independent reader of the page, limits, and a parser that is total."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stream_reader
from hypothesis import given
from hypothesis import strategies as st

from splitwire.codec.errors import BitstreamError, Corrupt, LimitExceeded
from splitwire.codec.wire.stream import (
    CLOSING,
    CONTROL_BYTES,
    FRAME,
    KEYED_BYTES,
    MAX_NUMBER,
    MAX_RECORD,
    REPLY_BYTES,
    Hello,
    Keyed,
    Kind,
    Record,
    RecordParser,
    Refusal,
    Status,
    Welcome,
    frame_record,
    goodbye_record,
    hello_record,
    keyed_record,
    number_record,
    parse_hello,
    parse_keyed,
    parse_number,
    parse_refusal,
    parse_reply,
    parse_welcome,
    refusal_body,
    reply_record,
    varint,
    welcome_record,
)

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors" / "stream" / "conversation.json"
ALL = frozenset({*Kind, FRAME})
PAIR = bytes.fromhex("0123456789abcdef")


def conversation() -> dict[str, bytes]:
    """Both directions of one connection. The golden vectors are these bytes."""
    hello = Hello(versions=(1,), device="camera-7", boot="b.1", counter=300, pair=PAIR, outputs=("logits",), window=200)
    client = [
        hello_record(hello),
        frame_record(0, b"\xb1\x00" * 10),
        frame_record(1, bytes(130)),
        keyed_record(Keyed(2, 299, "", "", b"again")),
        frame_record(3, b"next is 300"),
        keyed_record(Keyed(4, MAX_NUMBER, "camera-7", "a.0", b"of an earlier run")),
        frame_record(5, b"next is 301"),
        number_record(Kind.PING, 1 << 40),
        goodbye_record(Refusal(code=CLOSING, message="the device closes the stream")),
    ]
    server = [
        welcome_record(Welcome(version=1, window=16, idle_s=75.0, max_frame=1 << 24)),
        reply_record(1, Status.OUTPUTS, b"\x80 any bytes"),
        reply_record(0, Status.TAKEN),
        number_record(Kind.WINDOW, 4),
        reply_record(130, Status.ERROR, refusal_body(Refusal(code="server_busy", message="full", retry_after=1.5))),
        number_record(Kind.PONG, 1 << 40),
        goodbye_record(Refusal(code="corrupt", message="the record is damaged")),
    ]
    return {"client": b"".join(client), "server": b"".join(server)}


def golden() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    return stored


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_bytes_are_the_golden_ones(side: str):
    assert conversation()[side].hex() == golden()[side]["bytes"]


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reader_of_the_page_reads_the_golden_bytes(side: str):
    stored = golden()[side]
    assert stream_reader.read(bytes.fromhex(stored["bytes"])) == stored["says"]


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
@pytest.mark.parametrize("side", ["client", "server"])
def test_parser_and_independent_reader_agree(side: str, step: int):
    data = conversation()[side]
    assert [(r.head, r.body) for r in parsed(data, step)] == list(stream_reader.records(data))


def parsed(data: bytes, step: int = 1 << 20, *, accepted: frozenset[int] = ALL, limit: int = 1 << 16) -> list[Record]:
    parser = RecordParser(accepted, limit)
    found = []
    for i in range(0, len(data), step):
        parser.feed(data[i : i + step])
        while (record := parser.next_record()) is not None:
            found.append(record)
    return found


def test_bodies_come_back():
    hello, *frames, ping, goodbye = parsed(conversation()["client"])
    assert parse_hello(hello.body).counter == 300
    assert parse_hello(hello.body).outputs == ("logits",)
    assert [r.is_frame for r in frames] == [True, True, False, True, False, True]
    assert parse_keyed(frames[2].body) == Keyed(2, 299, "", "", b"again")
    assert parse_keyed(frames[4].body) == Keyed(4, MAX_NUMBER, "camera-7", "a.0", b"of an earlier run")
    assert parse_number(ping.body) == 1 << 40
    assert parse_refusal(goodbye.body).code == CLOSING
    welcome, outputs, taken, window, error, *_ = parsed(conversation()["server"])
    assert parse_welcome(welcome.body).window == 16
    assert parse_reply(outputs.body) == (1, Status.OUTPUTS, b"\x80 any bytes")
    assert parse_reply(taken.body) == (0, Status.TAKEN, b"")
    assert parse_number(window.body) == 4
    assert parse_refusal(parse_reply(error.body).body).retry_after == 1.5


@pytest.mark.parametrize(("size", "overhead"), [(1, 2), (127, 2), (128, 3), (16_383, 3), (16_384, 4), (1 << 21, 5)])
def test_cost_of_a_frame_record(size: int, overhead: int):
    assert len(frame_record(77, bytes(size))) == size + overhead


@pytest.mark.parametrize("sequence", [0, 127, 128, 1 << 40])
def test_sequence_in_the_head(sequence: int):
    (record,) = parsed(frame_record(sequence, b"x"))
    assert record.head == 128 + sequence % 128


# ------------------------------------------------------------------ refused

CHECKED = [h for h in Kind if h not in (Kind.HELLO, Kind.WELCOME, Kind.GOODBYE)]


def sealed(kind: int, body: bytes) -> bytes:
    head = bytes([kind])
    return head + varint(len(body) + 4) + body + zlib.crc32(head + body).to_bytes(4, "little")


def limits() -> list[tuple[int, int]]:
    frame = 1000
    return [
        (FRAME, frame),
        (Kind.KEYED, frame + KEYED_BYTES),
        (Kind.REPLY, frame + REPLY_BYTES),
        (Kind.HELLO, CONTROL_BYTES),
        (Kind.WELCOME, CONTROL_BYTES),
        (Kind.GOODBYE, CONTROL_BYTES),
        (Kind.PING, 14),
        (Kind.PONG, 14),
        (Kind.WINDOW, 14),
    ]


@pytest.mark.parametrize(("head", "most"), limits())
def test_a_length_over_the_limit_is_refused_before_its_content_comes(head: int, most: int):
    fits = RecordParser(ALL, 1000)
    fits.feed(bytes([head]) + varint(most))
    assert fits.next_record() is None
    over = RecordParser(ALL, 1000)
    over.feed(bytes([head]) + varint(most + 1))
    with pytest.raises(LimitExceeded, match=f"over the limit of {most}"):
        over.next_record()


@pytest.mark.parametrize("head", [0, *(k for k in range(9, 128))])
def test_unknown_kinds(head: int):
    with pytest.raises(Corrupt, match="does not belong here"):
        parsed(bytes([head]))


def test_kinds_of_the_other_side_are_refused_from_their_first_byte():
    for kind in Kind:
        with pytest.raises(Corrupt, match="does not belong here"):
            parsed(bytes([kind]), accepted=frozenset({FRAME}))
    with pytest.raises(Corrupt, match="does not belong here"):
        parsed(b"\x80", accepted=frozenset(Kind))


@pytest.mark.parametrize(
    "length", [b"\x80\x00", b"\xff\x80\x00", b"\x80\x80\x80\x80", b"\xff\xff\xff\xff\x01", b"\x00"]
)
def test_lengths_that_are_none(length: bytes):
    with pytest.raises(Corrupt):
        parsed(b"\x80" + length)


def test_a_parser_takes_no_limit_that_a_length_cannot_say():
    parser = RecordParser(ALL, 1 << 40)
    parser.feed(b"\x80" + varint(MAX_RECORD))
    with pytest.raises(LimitExceeded):
        parser.next_record()


WRONG: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "no number": (parse_number, b""),
    "two numbers": (parse_number, b"\x01\x01"),
    "number too long": (parse_number, b"\x80\x00"),
    "number over 2^64": (parse_number, b"\xff" * 9 + b"\x02"),
    "keyed without names": (parse_keyed, b"\x00\x00"),
    "keyed with half a name": (parse_keyed, b"\x00\x00\x05abc"),
    "keyed with a name of other characters": (parse_keyed, b"\x00\x00\x03a b\x00frame"),
    "keyed with a long name": (parse_keyed, b"\x00\x00\x41" + b"a" * 65 + b"\x00frame"),
    "keyed with a device only": (parse_keyed, b"\x00\x00\x01a\x00frame"),
    "keyed without frame": (parse_keyed, b"\x00\x00\x00\x00"),
    "reply without status": (parse_reply, b"\x05"),
    "reply of another status": (parse_reply, b"\x05\x04"),
    "acknowledgement with a body": (parse_reply, b"\x05\x01x"),
    "no map": (parse_hello, b"\x01"),
    "NaN seconds": (parse_welcome, msgspec.msgpack.encode(Welcome(version=1, window=1, idle_s=1, max_frame=1)
                                                          ).replace(b"\xa6idle_s\x01", b"\xa6idle_s\xca\x7f\xc0\0\0")),
    "endless seconds": (parse_refusal, b"\x83\xa4code\xa1x\xa7message\xa1x\xabretry_after\xca\x7f\x80\0\0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bodies(name: str):
    parse, body = WRONG[name]
    with pytest.raises(Corrupt):
        parse(body)


def hello_fields(**changes: object) -> bytes:
    fields = {"versions": [1], "device": "d", "boot": "b", "counter": 0, "pair": None, "outputs": None, "window": 1}
    return msgspec.msgpack.encode({**fields, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"versions": []}, {"versions": [0]}, {"versions": [1] * 17}, {"device": ""}, {"device": "a" * 65},
     {"device": "a b"}, {"device": "a\n"}, {"boot": "é"}, {"counter": -1}, {"pair": b"1234567"}, {"pair": "12345678"},
     {"outputs": ["x"] * 256}, {"outputs": [1]}, {"window": 0}, {"window": 65536}],
)  # fmt: skip
def test_wrong_hellos(changes: dict[str, object]):
    assert parse_hello(hello_fields()).window == 1
    with pytest.raises(Corrupt, match="hello record is invalid"):
        parse_hello(hello_fields(**changes))


def test_fields_of_a_later_version_are_ignored():
    assert parse_hello(hello_fields(versions=[2, 1], colour="red")).versions == (2, 1)
    assert parse_hello(hello_fields(counter=MAX_NUMBER)).counter == MAX_NUMBER


def test_text_of_the_far_end_is_safe_to_show():
    refusal = parse_refusal(refusal_body(Refusal(code="\x1b[2J", message="a\n\u202eb" + "x" * 3000)))
    assert refusal.code.isprintable()
    assert refusal.message.isprintable()
    assert len(refusal.message) < 500


# ------------------------------------------------------------------ any bytes


@given(st.binary(max_size=300), st.integers(1, 64))
def test_the_parser_is_total(data: bytes, step: int):
    """Records, or one of our errors; and the parts that the bytes come in change nothing."""

    def outcome(step: int) -> tuple[list[Record], str | None, int]:
        parser = RecordParser(ALL, 100)
        found: list[Record] = []
        try:
            for i in range(0, len(data), step):
                parser.feed(data[i : i + step])
                while (record := parser.next_record()) is not None:
                    found.append(record)
        except BitstreamError as e:
            return found, e.code, 0
        return found, None, parser.buffered

    assert outcome(step) == outcome(1)


@given(st.binary(max_size=200))
def test_bodies_are_total(body: bytes):
    parsers: Sequence[Callable[[bytes], object]] = (
        parse_hello, parse_welcome, parse_refusal, parse_keyed, parse_reply, parse_number
    )  # fmt: skip
    for parse in parsers:
        try:
            parse(body)
        except Corrupt:
            continue


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["client", "server"]))
def test_a_changed_byte_never_gives_another_record(position: int, value: int, side: str):
    """Frames apart, which have their own checksum: a damaged record is refused, or waits for bytes that do not come."""
    data = bytearray(conversation()[side])
    position %= len(data)
    data[position] = value
    true = set(parsed(conversation()[side]))
    try:
        found = parsed(bytes(data))
    except BitstreamError:
        return
    assert {r for r in found if not r.is_frame} <= true


def test_the_page_names_every_kind_and_status():
    page = (ROOT / "docs" / "stream.md").read_text(encoding="utf-8")
    for kind in Kind:
        assert f"| {kind} | {kind.name.lower()} |" in page
    for status in Status:
        assert f"| {status} | {status.name.lower()} |" in page
    assert f"frame limit + {KEYED_BYTES}" in page
    assert f"reply limit + {REPLY_BYTES}" in page
    for record, fields in ((Hello, "hello"), (Welcome, "welcome"), (Refusal, "field")):
        table = page.split(f"| {fields} | type |")[1].split("\n\n")[0]
        assert [line.split("`")[1] for line in table.splitlines() if "`" in line] == list(record.__struct_fields__)
