"""StreamTransport against servers that fail, and over links that damage what they carry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from proxy import Link, Proxy
from runtime_helpers import Pair, Served, serving
from stream_client import frame_of
from stream_fake import End, answer, fake_stream

from splitwire.codec.errors import (
    LimitExceeded,
    RequestTimeout,
    SplitwireError,
    TransportError,
)
from splitwire.codec.wire.stream import (
    CLOSING,
    Kind,
    Refusal,
    Status,
    goodbye_record,
    number_record,
    parse_keyed,
    parse_number,
    refusal_body,
    reply_record,
)
from splitwire.runtime_edge.transport.base import Reply, Timeouts
from splitwire.runtime_edge.transport.stream import StreamTransport
from splitwire.runtime_edge.waiting import may_pass

FRAME = b"frame" * 20


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def stream_url(server: Served | Proxy) -> str:
    return server.url.replace("http", "stream")


@contextlib.contextmanager
def stream(url: str, **options) -> Iterator[StreamTransport]:
    with contextlib.closing(StreamTransport(url, **options)) as transport:
        yield transport


def ok(result: Reply | SplitwireError) -> Reply:
    assert isinstance(result, Reply), result
    return result


def test_a_lost_connection_is_opened_again_and_the_frames_are_sent_again():
    def lose(end: End) -> None:
        end.greet()
        for _ in range(3):
            end.frame()
        end.answer(1)

    def answer_all(end: End) -> None:
        end.greet()
        for i in range(2):
            end.frame()
            end.answer(i)
        end.until_closed()

    with fake_stream(lose, answer_all) as server, stream(server.url) as transport:
        replies = [ok(r) for r in transport.send_many([b"first", b"second", b"third"], [None] * 3)]
        assert [r.attempts for r in replies] == [2, 1, 2]
    first, second = server.hellos
    assert (first.boot, first.counter, second.boot, second.counter) == (first.boot, 0, first.boot, 0)
    assert [r.is_frame for r in server.frames] == [True, True, True, True, False]
    assert server.frames[3].body == b"first"
    assert parse_keyed(server.frames[4].body)[:2] == (1, 2)  # the third frame, with its own counter
    assert replies[0].bytes_sent > 2 * len(b"first") + 4


def test_a_connection_that_is_always_lost():
    def lose(end: End) -> None:
        end.greet()
        end.frame()

    with fake_stream(lose) as server, stream(server.url) as transport:
        with pytest.raises(TransportError, match="closed the connection before it answered after 3 tries") as caught:
            transport.send(FRAME)
        assert may_pass(caught.value)
        assert server.connections == 3


def test_total_deadline_with_a_server_that_drips():
    def drip(end: End) -> None:
        end.greet()
        end.frame()
        for byte in answer(0):
            end.say(bytes([byte]))
            time.sleep(0.02)

    with fake_stream(drip) as server, stream(server.url, timeouts=Timeouts(total=0.4)) as transport:
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"within the deadline of 0\.4 s"):
            transport.send(FRAME)
        assert 0.3 < time.monotonic() - start < 1.0


def test_a_server_that_is_silent_is_left():
    """No byte for the read time: the connection counts as lost, and the frame goes out on another."""

    def silent(end: End) -> None:
        end.greet()
        end.until_closed()

    def good(end: End) -> None:
        end.greet()
        end.frame()
        end.answer(0)
        end.until_closed()

    with fake_stream(silent, good) as server, stream(server.url, timeouts=Timeouts(read=0.2)) as transport:
        assert transport.send(FRAME).attempts == 2


def test_a_reply_that_is_late_on_a_link_that_works_is_not_asked_for_again():
    def late(end: End) -> None:
        end.greet()
        end.frame()
        while (record := end.record()) is not None:
            if record.head == Kind.PING:
                end.say(number_record(Kind.PONG, parse_number(record.body)))

    with fake_stream(late) as server, stream(server.url, timeouts=Timeouts(read=0.5), ping_s=0.1) as transport:
        with pytest.raises(RequestTimeout, match="did not answer in time"):
            transport.send(FRAME)
        assert len(server.frames) == 1


def test_a_dead_link_is_found_by_pings():
    """Also while a frame waits: long before its read time."""

    def dead(end: End) -> None:
        end.greet()
        end.until_closed()

    def good(end: End) -> None:
        end.greet()
        end.frame()
        end.answer(0)
        end.until_closed()

    with fake_stream(dead, good) as server, stream(server.url, ping_s=0.1) as transport:
        start = time.monotonic()
        assert transport.send(FRAME).attempts == 2
        assert time.monotonic() - start < 2
    assert server.connections == 2


DAMAGED = Refusal(code="corrupt", message="its checksum does not match")
WRONG: dict[str, Callable[[End], None]] = {
    "an answer to a frame that was not sent": lambda end: end.answer(5),
    "a damaged reply": lambda end: end.say(answer(0)[:-1] + b"\0"),
    "half a reply": lambda end: end.say(answer(0)[:-5]),
    "a hello": lambda end: end.say(b"\x01"),
    "an endless reply": lambda end: end.say(b"\x04\xff\xff\xff\x7f"),
    "a goodbye with a reason": lambda end: end.say(goodbye_record(Refusal(code="corrupt", message="no"))),
    "an orderly goodbye": lambda end: end.say(goodbye_record(Refusal(code=CLOSING, message="bye"))),
    "a damaged frame": lambda end: end.say(reply_record(0, Status.DAMAGED, refusal_body(DAMAGED))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_cost_a_connection_and_nothing_else(name: str, pair: Pair):
    def wrong(end: End) -> None:
        end.greet()
        end.frame()
        WRONG[name](end)
        time.sleep(0.05)

    def good(end: End) -> None:
        end.greet()
        end.frame()
        end.answer(0)
        end.until_closed()

    options = {"max_reply_bytes": 1 << 20}
    with fake_stream(wrong, good) as server, stream(server.url, **options) as transport:
        assert transport.send(frame_of(pair)).attempts == 2
    assert server.connections == 2


def test_replies_out_of_order_and_twice():
    def script(end: End) -> None:
        end.greet()
        for _ in range(3):
            end.frame()
        for i in (2, 2, 0, 1):
            end.answer(i, frame_id=i)
        end.until_closed()

    with fake_stream(script) as server, stream(server.url) as transport:
        replies = transport.send_many([FRAME] * 3, [None] * 3)
        assert [ok(r).frame_id for r in replies] == [0, 1, 2]


def test_the_window_is_kept():
    most = []

    def script(end: End) -> None:
        end.greet(window=2)
        for i in range(20):
            end.frame()
            end.socket.settimeout(0.02)
            extra = 0
            with contextlib.suppress(TimeoutError):
                while i + extra < 19:
                    end.frame()
                    extra += 1
            most.append(extra)
            end.socket.settimeout(10)
            return

    with fake_stream(script) as server, stream(server.url, retries=0) as transport:
        transport.send_many([FRAME] * 20, [None] * 20)
    assert set(most) == {1}


def test_a_frame_over_the_limit_of_the_server_is_not_sent():
    def script(end: End) -> None:
        end.greet(max_frame=50)
        end.frame()
        end.answer(0)
        end.until_closed()

    with fake_stream(script) as server, stream(server.url) as transport:
        big, small = transport.send_many([bytes(51), bytes(50)], [None, None])
        assert isinstance(big, LimitExceeded)
        assert ok(small).attempts == 1


FAULTS = ("corrupt", "truncate", "duplicate", "reset", "stall")
SLOW = [
    pytest.param(d, f, marks=pytest.mark.slow) for d in ("up", "down") for f in FAULTS if (d, f) != ("up", "corrupt")
]


@pytest.mark.parametrize(("direction", "fault"), [("up", "corrupt"), *SLOW])
def test_damage_on_the_link_never_gives_a_wrong_answer(served: Served, pair: Pair, direction: str, fault: str):
    """Every answer is that of its frame; nearly every frame is answered, because it is sent again."""
    link = Link(stall_s=0.1)
    setattr(link, fault, 3_000.0)
    up, down = (link, Link()) if direction == "up" else (Link(), link)
    frames = [frame_of(pair, i, value=i / 60) for i in range(60)]
    with stream(stream_url(served)) as clean:
        true = [ok(r).outputs["logits"] for r in clean.send_many(frames, [None] * len(frames))]
    answered = 0
    with (
        Proxy(served.address, seed=7, up=up, down=down) as proxy,
        stream(stream_url(proxy), retries=12, timeouts=Timeouts(read=0.5, total=10.0)) as transport,
    ):
        for start in range(0, len(frames), 10):
            group = frames[start : start + 10]
            for i, result in enumerate(transport.send_many(group, [None] * len(group)), start):
                if isinstance(result, Reply):
                    answered += 1
                    assert result.frame_id == i
                    np.testing.assert_array_equal(result.outputs["logits"], true[i])
        assert sum(proxy.done.values()) > 0
    assert answered >= 55
