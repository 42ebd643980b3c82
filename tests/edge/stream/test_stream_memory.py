"""A stream of 20,000 frames: memory stays flat."""

from __future__ import annotations

import itertools
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from runtime_helpers import Pair, images

from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.stream.skip import Sameness, Skip
from splitwire.runtime_edge.transport import LoopbackTransport


def resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_20000_frames(pair: Pair):
    """Half of the frames are repeated, and one in a few of these audited; each picture is an array of its own."""
    x = images()
    pictures = (x + np.float32(i // 2 % 7) for i in itertools.count())
    with EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle), threads=1) as session:
        skip = Skip(pair.profile, threshold=0.0, same=Sameness(pair.profile), audit_every=5, refresh_s=None)
        stream = session.stream(itertools.islice(pictures, 20_000), skip=skip)
        sizes = [resident() for i, _ in enumerate(stream) if i % 1000 == 999]
    stats = stream.stats
    assert stats.answered + stats.repeated == 20_000
    assert stats.repeated > 5_000
    assert max(sizes[3:]) < 1.02 * sizes[3]
