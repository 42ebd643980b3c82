"""Idempotency keys: a frame that is sent again is answered from what is kept, and never with another frame's result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from runtime_helpers import Pair, Served, serving, until
from stream_client import frame_of, hello, stream_to, watched

from splitwire.codec.wire.reply import decode_reply
from splitwire.codec.wire.stream import Keyed, Status, frame_record, keyed_record
from splitwire.runtime_cloud.session import CloudSession


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def only(served: Served) -> CloudSession:
    (session,) = served.api.service.models
    return session


def test_a_repeated_key_is_answered_and_not_computed(served: Served, frame: bytes):
    with watched(only(served)) as (count, _):
        with stream_to(served.address, hello(boot="again", counter=5)) as client:
            client.frame(frame)
            first = client.reply()
        with stream_to(served.address, hello(boot="again", counter=6)) as client:
            client.say(keyed_record(Keyed(0, 5, "", "", frame)))
            assert client.reply().body == first.body
            client.say(keyed_record(Keyed(1, 5, "device", "again", frame)))
            assert client.reply().body == first.body
            assert count == [1]
            client.say(keyed_record(Keyed(2, 5, "device", "another", frame)))
            client.reply()
            assert count == [1, 1]


def test_counters_go_on_from_a_keyed_frame_of_the_same_run(served: Served, frame: bytes):
    with watched(only(served)) as (count, _), stream_to(served.address, hello(boot="on", counter=3)) as client:

        def send(data: bytes) -> int:
            client.say(data)
            client.reply()
            return len(count)

        assert send(frame_record(0, frame)) == 1  # counter 3
        assert send(keyed_record(Keyed(1, 9, "", "", frame))) == 2
        assert send(frame_record(2, frame)) == 3  # counter 10
        assert send(keyed_record(Keyed(3, 10, "", "", frame))) == 3
        assert send(keyed_record(Keyed(4, 3, "", "", frame))) == 3
        assert send(keyed_record(Keyed(5, 77, "device", "elsewhere", frame))) == 4
        assert send(frame_record(6, frame)) == 5  # counter 4
        assert send(keyed_record(Keyed(7, 4, "device", "on", frame))) == 5


def test_a_frame_that_is_still_computed_is_not_started_twice(served: Served, frame: bytes):
    with watched(only(served), held=True) as (count, release):
        with stream_to(served.address, hello(boot="slow")) as client:
            client.frame(frame)
            until(lambda: len(count) == 1)
        with stream_to(served.address, hello(boot="slow")) as client:
            client.frame(frame)
            assert client.ping(0) == 0
            release.set()
            assert client.reply().status is Status.OUTPUTS
        assert count == [1]


def test_a_key_that_comes_with_another_frame_gets_the_answer_to_that_frame(served: Served, pair: Pair, frame: bytes):
    with stream_to(served.address, hello(boot="other")) as client:
        client.frame(frame)
        first = decode_reply(client.reply().body)
        client.say(keyed_record(Keyed(1, 0, "", "", frame_of(pair, value=0.0))))
        second = decode_reply(client.reply().body)
    assert not np.array_equal(first.outputs["logits"], second.outputs["logits"])


def test_answers_with_other_outputs_are_kept_apart(served: Served, pair: Pair, frame: bytes):
    names = []
    for outputs in (None, ["best"], ["logits"], ["best"]):
        greeting = hello(boot="forms", outputs=outputs, pair=pair.profile.fingerprint)
        with stream_to(served.address, greeting) as client:
            client.frame(frame)
            names.append(list(decode_reply(client.reply().body).outputs))
    assert names == [["logits", "best"], ["best"], ["logits"], ["best"]]
