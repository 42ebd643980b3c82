"""After fork(): parent and child use one transport and one session, and each gets its own answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest
from runtime_helpers import Pair, canned, good_answer_to

from splitwire.codec.wire.frame import Chunk, Frame, build_frame
from splitwire.runtime_edge.session import FRAME_ID_MASK, EdgeSession
from splitwire.runtime_edge.transport import HttpTransport, Key, LoopbackTransport

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")

ROUNDS = 40


def frame_of(frame_id: int) -> bytes:
    chunk = Chunk(tensor=0, coder=1, lanes=1, planes=1, payload=bytes(20))
    return build_frame(Frame(op=0, fingerprint=bytes(8), frame_id=frame_id, batch=1, chunks=[chunk]))


def in_child(work: Callable[[], bool]) -> int:
    """Run `work` in a forked child; its exit status: 0 if it returns True."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if work() else 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of fork() beside threads
def test_parent_and_child_share_a_transport():
    """Both send over what was one connection, interleaved, and each gets the answer to its own frame."""
    with canned(good_answer_to) as server, contextlib.closing(HttpTransport(server.url)) as transport:
        assert transport.send(frame_of(1)).frame_id == 1  # now a connection is open
        child = os.fork()
        first = 10_000 if child else 20_000
        right = all(transport.send(frame_of(first + i)).frame_id == first + i for i in range(ROUNDS))
        if child == 0:
            os._exit(0 if right else 1)
        assert right
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.connections == 2
        assert transport.send(frame_of(2)).frame_id == 2
        assert server.connections == 2  # the child's end did not close the parent's


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_lock_that_was_held_does_not_hold_the_child():
    with (
        canned(good_answer_to) as server,
        contextlib.closing(HttpTransport(server.url, max_connections=1)) as transport,
    ):
        transport.send(frame_of(1))
        assert transport._client._pool._free.acquire()  # as if another thread used the only connection
        with transport.breaker._lock:
            status = in_child(lambda: transport.send(frame_of(5), Key("d", "b", 5)).frame_id == 5)
        transport._client._pool._free.release()
        assert status == 0


def test_frame_ids_start_at_random(pair: Pair):
    def first() -> int:
        with EdgeSession(pair.front, transport=LoopbackTransport(lambda frame: frame)) as session:
            ids = [session.next_frame_id() for _ in range(3)]
            assert ids == [(ids[0] + i) & FRAME_ID_MASK for i in range(3)]
            assert 0 <= ids[0] <= FRAME_ID_MASK
            return ids[0]

    assert len({first() for _ in range(5)}) > 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_counts_from_another_start(pair: Pair):
    read, write = os.pipe()
    with EdgeSession(pair.front, transport=LoopbackTransport(lambda frame: frame)) as session:
        before = session.next_frame_id()
        children = []
        for _ in range(4):  # each of 128 starts is as likely as the others
            assert in_child(lambda: os.write(write, session.next_frame_id().to_bytes(4, "big")) == 4) == 0
            children.append(int.from_bytes(os.read(read, 4), "big"))
        after = (before + 1) & FRAME_ID_MASK
        assert session.next_frame_id() == after
    assert set(children) != {after}
