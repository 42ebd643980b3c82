"""What a link that changes bytes may not cause: an answer for another frame, or a good frame that counts as bad."""

from __future__ import annotations

import contextlib

import numpy as np
from runtime_helpers import CLASSES, Canned, Pair, canned, good_answer, good_answer_to, http_answer

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import BadResponse, Corrupt
from splitwire.codec.wire.batch import REPLIES_MEDIA_TYPE, ReplyRecord, build_replies, parse_frames
from splitwire.codec.wire.frame import parse_frame
from splitwire.codec.wire.reply import encode_reply
from splitwire.runtime_edge.transport import HttpTransport, Key, Reply

KEYS = [Key("cam", "boot", n) for n in range(3)]
DAMAGED = http_answer(400, b'{"error": {"code": "corrupt", "message": "checksum"}}', "application/json")
MISSING = http_answer(404, b'{"error": {"code": "not_found", "message": "x"}}', "application/json")


def frames_of(pair: Pair, *ids: int) -> list[bytes]:
    zeros = [np.zeros((1, *t.shape), np.float32) for t in pair.profile.tensors]
    return [FeatureCodec(pair.profile).encode(zeros, frame_id=i) for i in ids]


def batch_answer(*ids: int) -> bytes:
    outputs = {"logits": np.zeros((1, CLASSES), np.float32)}
    records = [ReplyRecord(body=encode_reply(outputs, frame_id=i, decode_ms=0.1, back_ms=0.2)) for i in ids]
    return http_answer(200, build_replies(records), REPLIES_MEDIA_TYPE)


def answer_to_batch(body: bytes) -> bytes:
    return batch_answer(*(parse_frame(record.frame).frame_id for record in parse_frames(body)))


def paths(server: Canned) -> list[bytes]:
    return [head.split(b" ")[1].removeprefix(b"/v1/") for head in server.heads]


def test_an_answer_to_another_frame_is_not_handed_on(pair: Pair):
    (frame,) = frames_of(pair, 3)
    other = good_answer(2)  # as when the link brings the answer before once more
    with canned(other, good_answer_to) as server, contextlib.closing(HttpTransport(server.url)) as transport:
        reply = transport.send(frame, KEYS[0])
        assert (reply.frame_id, reply.attempts) == (3, 2)
        assert server.connections == 2  # what else is on the first one may be of another frame, too
    with canned(other) as server, contextlib.closing(HttpTransport(server.url, retries=0)) as transport:
        (result,) = transport.send_many([frame], [None])
        assert isinstance(result, BadResponse)


def test_an_answer_to_another_batch_is_not_handed_on(pair: Pair):
    frames = frames_of(pair, 5, 6, 7)
    with canned(batch_answer(5, 7, 6), answer_to_batch) as server:
        with contextlib.closing(HttpTransport(server.url)) as transport:
            results = transport.send_many(frames, KEYS)
        assert [r.frame_id for r in results if isinstance(r, Reply)] == [5, 6, 7]
        assert server.connections == 2


def test_a_batch_that_is_refused_as_a_whole_is_no_verdict_on_its_frames(pair: Pair):
    good, bad, last = frames_of(pair, 5, 6, 7)

    def answer(body: bytes) -> bytes:
        return DAMAGED if body == bad else good_answer_to(body)

    with canned(DAMAGED, answer) as server, contextlib.closing(HttpTransport(server.url, retries=0)) as transport:
        first, second, third = transport.send_many([good, bad, last], KEYS)
        assert isinstance(second, Corrupt)
        assert isinstance(first, Reply) and isinstance(third, Reply)
        assert (first.frame_id, third.frame_id) == (5, 7)
    assert paths(server) == [b"batch", *[b"infer"] * 3]


def test_a_server_that_took_a_batch_has_the_route(pair: Pair):
    """That it does not know the path once is damage. A server that never took one is believed (test_batch.py)."""
    frames = frames_of(pair, 5, 6)
    answers = (answer_to_batch, MISSING, good_answer_to, good_answer_to, answer_to_batch)
    with canned(*answers) as server, contextlib.closing(HttpTransport(server.url)) as transport:
        for _ in range(3):
            assert all(isinstance(r, Reply) for r in transport.send_many(frames, KEYS[:2]))
    assert paths(server) == [b"batch", b"batch", b"infer", b"infer", b"batch"]
