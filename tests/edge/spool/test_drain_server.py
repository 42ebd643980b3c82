"""The drain against the real server, over HTTP: frames that were spooled while it was away, a damaged one, one of
another pair; the answers are those of an inference without a spool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from runtime_helpers import Pair, images, make_pair, serving, until
from spool_helpers import Told

from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.spool import Drain, Spool
from splitwire.runtime_edge.spool.maintenance import List, Listed, answer
from splitwire.runtime_edge.transport import HttpTransport, LoopbackTransport


def test_what_waits_is_answered_by_the_real_server(pair: Pair, tmp_path: Path):
    other = make_pair(tmp_path, seed=7)
    with EdgeSession(other.front, transport=LoopbackTransport(CloudSession(other.back).handle)) as session:
        stranger = session.encode(session.run_front(images()).features)
    expected, answers, told = list[Outputs](), dict[int, Outputs](), Told()
    with (
        EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle)) as session,
        Spool(tmp_path / "spool.db") as spool,
    ):
        for n in range(40):
            x = images(seed=n)
            expected.append(session.infer(x).outputs)
            frame = session.encode(session.run_front(x).features, frame_id=n)
            spool.put(frame, spool.new_key(), float(n))
        broken = bytearray(frame)
        broken[-1] ^= 1
        spool.put(bytes(broken), spool.new_key(), 40.0)
        spool.put(stranger, spool.new_key(), 41.0)
        with serving(pair) as served:
            transport = HttpTransport(served.url)
            drain = Drain(
                spool,
                transport,
                share=1.0,
                on_reply=lambda record, reply: answers.update({int(record.captured_wall): reply.outputs}),
                on_event=told,
            )
            with drain:
                until(lambda: spool.stats().frames == 0)
            transport.close()
        dead = answer(spool, List(dead=True))
    assert sorted(answers) == list(range(40))
    for n, outputs in enumerate(expected):
        np.testing.assert_array_equal(answers[n]["logits"], outputs["logits"])
    assert isinstance(dead, Listed)
    assert [(entry.captured, entry.code) for entry in dead.entries] == [
        (40.0, "corrupt"),
        (41.0, "fingerprint_mismatch"),
    ]
    assert told.kinds == ["drain_refused", "drain_refused"]
    assert drain.counts.answered == 40
