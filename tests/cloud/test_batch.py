"""Several frames per request: the format with its golden bytes and damage, the server's route, and `send_many`."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_helpers import Pair, Served, canned, good_answer, http_answer, serving

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import (
    BadResponse,
    BitstreamError,
    Corrupt,
    LimitExceeded,
    ServerBusy,
    SplitwireError,
    TransportError,
    Truncated,
    UnsupportedVersion,
    UsageError,
)
from splitwire.codec.wire import batch as wire
from splitwire.codec.wire.batch import (
    FRAMES_MEDIA_TYPE,
    REPLIES_MEDIA_TYPE,
    FrameRecord,
    ReplyRecord,
    build_frames,
    build_replies,
    parse_frames,
    parse_replies,
)
from splitwire.codec.wire.reply import decode_reply
from splitwire.runtime_cloud.http import batch as batch_module
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.transport import HttpTransport, Key, Reply, Timeouts
from splitwire.runtime_edge.transport.http import transport as http_module

FRAMES = [FrameRecord(frame=b"first", key="cam:b00t:1"), FrameRecord(frame=b""), FrameRecord(frame=b"\x00third")]
GOLDEN_FRAMES = bytes.fromhex(
    "53504c42 01 00 0300"
    "0f000000 0a 27b1af83 63616d3a623030743a31 6669727374"
    "00000000 00 1df722c6"
    "06000000 00 d6ac2261 007468697264"
)
"""Written once; docs/http.md has the layout."""
GOLDEN_REPLIES = bytes.fromhex("53504c42 01 01 0200 02000000 00 ef01f632 6f6b 02000000 01 dc094ee9 7b7d")


def parsed(records: list[FrameRecord]) -> list[tuple[bytes, str]]:
    return [(bytes(r.frame), r.key) for r in records]


# ------------------------------------------------------------------ the format


def test_golden_bytes():
    assert build_frames(FRAMES) == GOLDEN_FRAMES
    assert parsed(parse_frames(GOLDEN_FRAMES)) == parsed(FRAMES)
    replies = [ReplyRecord(body=b"ok"), ReplyRecord(body=b"{}", is_error=True)]
    assert build_replies(replies) == GOLDEN_REPLIES
    assert [(bytes(r.body), r.is_error) for r in parse_replies(GOLDEN_REPLIES)] == [(b"ok", False), (b"{}", True)]


def test_a_reader_by_the_page_alone():
    """docs/http.md, in a few lines of plain Python."""
    data = GOLDEN_FRAMES
    magic, version, kind, count = data[:4], data[4], data[5], int.from_bytes(data[6:8], "little")
    assert (magic, version, kind, count) == (b"SPLB", 1, 0, 3)
    at, found = 8, []
    for _ in range(count):
        length, key, crc = int.from_bytes(data[at : at + 4], "little"), data[at + 4], data[at + 5 : at + 9]
        body = data[at + 9 : at + 9 + length]
        assert zlib.crc32(data[at : at + 5] + body).to_bytes(4, "little") == crc
        found.append((body[key:], body[:key].decode()))
        at += 9 + length
    assert at == len(data)
    assert found == parsed(FRAMES)


def test_every_flipped_bit_is_noticed():
    for i in range(8 * len(GOLDEN_FRAMES)):
        data = bytearray(GOLDEN_FRAMES)
        data[i // 8] ^= 1 << i % 8
        with pytest.raises(BitstreamError):
            parse_frames(bytes(data))


def sealed(tag: int, body: bytes, count: int = 1) -> bytes:
    head = struct.pack("<IB", len(body), tag)
    crc = zlib.crc32(body, zlib.crc32(head))
    return struct.pack("<4sBBH", b"SPLB", 1, 0, count) + head + crc.to_bytes(4, "little") + body


DAMAGE = {
    "nothing": (b"", Truncated),
    "head only": (GOLDEN_FRAMES[:8], Truncated),
    "cut short": (GOLDEN_FRAMES[:-1], Truncated),
    "one byte more": (GOLDEN_FRAMES + b"\0", Corrupt),
    "of a newer version": (b"SPLB\x02" + GOLDEN_FRAMES[5:], UnsupportedVersion),
    "replies": (GOLDEN_REPLIES, Corrupt),
    "a frame": (b"SPLW" + bytes(40), Corrupt),
    "no records": (b"SPLB\x01\x00\x00\x00", Corrupt),
    "65,535 records": (b"SPLB\x01\x00\xff\xff" + bytes(100), LimitExceeded),
    "4 GB in a record": (b"SPLB\x01\x00\x01\x00\xff\xff\xff\xff\x00" + bytes(50), Truncated),
    "a key longer than the record": (sealed(5, b"abc"), Corrupt),
    "a key over the limit": (sealed(161, b"a" * 200), Corrupt),
    "a key with a line end": (sealed(3, b"a\r\nframe"), Corrupt),
    "a key that is not ASCII": (sealed(2, "ü".encode() + b"frame"), Corrupt),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_before_anything_is_allocated(what: str):
    data, error = DAMAGE[what]
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            parse_frames(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()


@given(st.binary(max_size=300))
def test_parsing_is_total(data: bytes):
    for body in (data, GOLDEN_FRAMES[:8] + data, GOLDEN_REPLIES[:8] + data):
        for parse in (parse_frames, parse_replies):
            with contextlib.suppress(BitstreamError):
                parse(body)


# ------------------------------------------------------------------ the route


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def frame_of(pair: Pair, frame_id: int = 9) -> bytes:
    rng = np.random.default_rng(frame_id)
    tensors = [rng.random((1, *t.shape), dtype=np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, frame_id=frame_id)


def post(served: Served, body: bytes, content_type: str = FRAMES_MEDIA_TYPE) -> httpx.Response:
    return httpx.post(served.url + "/v1/batch", content=body, headers={"Content-Type": content_type})


def test_each_frame_has_an_answer_of_its_own(served: Served, pair: Pair):
    good, bad, foreign = frame_of(pair, 1), frame_of(pair, 2)[:-1] + b"\xff", b"SPLW" + bytes(30)
    response = post(served, build_frames([FrameRecord(frame=f) for f in (good, bad, foreign, good)]))
    assert response.status_code == 200
    assert response.headers["content-type"] == REPLIES_MEDIA_TYPE
    records = parse_replies(response.content)
    assert [r.is_error for r in records] == [False, True, True, False]
    assert b'"code":"corrupt"' in bytes(records[1].body)
    expected = decode_reply(CloudSession(pair.back).handle(good)).outputs
    for record in (records[0], records[3]):
        reply = decode_reply(record.body)
        assert reply.frame_id == 1
        for name, output in expected.items():
            np.testing.assert_array_equal(reply.outputs[name], output)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_body_is_refused_as_a_whole(served: Served, what: str):
    data, error = DAMAGE[what]
    response = post(served, data)
    assert (response.json()["error"]["code"], response.status_code) in (
        ("truncated", 400), ("corrupt", 400), ("limit_exceeded", 413), ("unsupported_version", 501),
    )  # fmt: skip
    assert response.json()["error"]["code"] == error.code


def test_other_media_types(served: Served, pair: Pair):
    assert post(served, b"", "application/vnd.splitwire.frame").status_code == 415
    assert httpx.post(served.url + "/v1/batch", content=build_frames([FrameRecord(frame=frame_of(pair))])).is_success


def test_a_bug_costs_one_frame(served: Served, pair: Pair, monkeypatch: pytest.MonkeyPatch):
    (session,) = served.api.service.models
    infer = session.infer

    def fails(frame: bytes) -> Any:
        if frame == frame_of(pair, 2):
            raise ZeroDivisionError
        return infer(frame)

    monkeypatch.setattr(session, "infer", fails)
    records = parse_replies(
        post(served, build_frames([FrameRecord(frame=frame_of(pair, i)) for i in (1, 2, 3)])).content
    )
    assert [r.is_error for r in records] == [False, True, False]
    assert b'"internal"' in bytes(records[1].body)


def test_an_answer_that_is_full(served: Served, pair: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_module, "MAX_ANSWER_BYTES", 100)
    frames = [frame_of(pair, i) for i in range(3)]
    with contextlib.closing(HttpTransport(served.url)) as transport:
        results = transport.send_many(frames, [None] * 3)
    assert isinstance(results[0], Reply)
    assert isinstance(results[2], ServerBusy)
    assert results[2].retry_after == served.api.service.gate.limits.retry_after


# ------------------------------------------------------------------ send_many


def test_many_frames_in_few_requests(served: Served, pair: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_module, "MAX_RECORDS", 16)
    frames = [frame_of(pair, i) for i in range(40)]
    frames[7] = frames[7][:-1] + b"\xff"
    with contextlib.closing(HttpTransport(served.url)) as transport:
        results = transport.send_many(frames, [Key("cam", "many", i) for i in range(40)])
        alone = transport.send(frames[0]).bytes_sent
    assert [r.frame_id for r in results if isinstance(r, Reply)] == [i for i in range(40) if i != 7]
    assert isinstance(results[7], Corrupt)
    costs = [r.bytes_sent for r in results if isinstance(r, Reply)]
    assert sum(costs) / len(costs) < alone - 80  # what the heads cost


def test_the_shares_add_up():
    for total, weights in ((1000, [3, 3, 3]), (7, [1] * 10), (12345, [10, 900, 1])):
        shares = http_module._shares(total, weights)
        assert sum(shares) == total
        assert all(abs(s - total * w / sum(weights)) < 1 for s, w in zip(shares, weights, strict=True))


def test_a_server_without_the_route(pair: Pair):
    missing = http_answer(404, b'{"error": {"code": "not_found", "message": "x"}}', "application/json")
    with canned(missing, good_answer()) as server, contextlib.closing(HttpTransport(server.url)) as transport:
        for _ in range(2):
            results = transport.send_many([b"a", b"b"], [None, None])
            assert [type(r) for r in results] == [Reply, Reply]
    paths = [head.split(b" ")[1] for head in server.heads]
    assert paths == [b"/v1/batch"] + [b"/v1/infer"] * 4  # asked once


def test_a_link_that_is_down_is_the_error_of_every_frame(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_module, "MAX_RECORDS", 2)
    with canned(None) as server, contextlib.closing(HttpTransport(server.url, retries=0)) as transport:
        results = transport.send_many([b"x"] * 5, [None] * 5)
        assert server.requests == 1
    assert len(results) == 5
    assert all(isinstance(r, TransportError) for r in results)


def test_wrong_batches(served: Served):
    with contextlib.closing(HttpTransport(served.url)) as transport:
        assert transport.send_many([], []) == []
        with pytest.raises(UsageError, match="2 frames, 1 keys"):
            transport.send_many([b"a", b"b"], [None])
    with pytest.raises(UsageError, match="closed"):
        transport.send_many([b"a"], [None])


ok = build_replies([ReplyRecord(body=good_answer().partition(b"\r\n\r\n")[2])])
RUBBISH = {
    "a reply too few": (ok, "answered 1 of 2 frames"),
    "damaged": (ok[:-1] + b"\xff", "a damaged batch of replies"),
    "empty": (b"", "a damaged batch of replies"),
    "frames": (build_frames([FrameRecord(frame=b"x")]), "a damaged batch of replies"),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_rubbish_from_the_server(what: str):
    body, message = RUBBISH[what]
    with (
        canned(http_answer(200, body, REPLIES_MEDIA_TYPE)) as server,
        contextlib.closing(HttpTransport(server.url, timeouts=Timeouts(read=2))) as transport,
    ):
        results = transport.send_many([b"a", b"b"], [None, None])
    assert all(isinstance(r, BadResponse) and message in str(r) for r in results)


def test_an_error_that_cannot_be_read():
    body = build_replies([ReplyRecord(body=b"\xff", is_error=True), ReplyRecord(body=b"\xc1")])
    with (
        canned(http_answer(200, body, REPLIES_MEDIA_TYPE)) as server,
        contextlib.closing(HttpTransport(server.url, retries=0)) as transport,
    ):
        results: list[Reply | SplitwireError] = transport.send_many([b"a", b"b"], [None, None])
    assert [type(r) for r in results] == [BadResponse, BadResponse]
    assert wire.MAX_RECORDS == 256


@pytest.mark.parametrize("lean", [False, True])
def test_old_and_new_ends_understand_each_other(served: Served, pair: Pair, lean: bool):
    """An edge that asks gets the checksum; one that does not, the reply as it always was; a new edge reads both."""
    frame = frame_of(pair, 3)
    asking = {"Accept": "*/*;r=2"} if lean else {"Content-Type": "application/vnd.splitwire.frame;r=2"}
    new = httpx.post(served.url + "/v1/infer", content=frame, headers=asking).content
    old = httpx.post(served.url + "/v1/infer", content=frame).content
    assert (new[0], old[0]) == (2, 0x85)
    assert zlib.crc32(new[5:]) == int.from_bytes(new[1:5], "little")
    assert decode_reply(new).frame_id == decode_reply(old).frame_id == 3
    with contextlib.closing(HttpTransport(served.url, lean=lean)) as transport:
        assert transport.send(frame).bytes_received > len(new)
    with (
        canned(http_answer(200, old, "application/vnd.splitwire.reply")) as older,
        contextlib.closing(HttpTransport(older.url, lean=lean)) as transport,
    ):
        assert transport.send(frame).frame_id == 3
