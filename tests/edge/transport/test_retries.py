"""Back-off, Retry-After, the budget and the circuit breaker."""

from __future__ import annotations

import time
from email.utils import formatdate

from splitwire.runtime_edge.transport.answers import parse_retry_after


def test_retry_after():
    assert parse_retry_after("7") == 7
    assert parse_retry_after("0") == 0
    assert 50 < (parse_retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert parse_retry_after(formatdate(0, usegmt=True)) == 0
    for value in (None, "", "-1", "1.5", "soon", "٣", "Mon, 99 Foo 2020"):
        assert parse_retry_after(value) is None
    assert parse_retry_after("9" * 5000) is not None  # and no error
