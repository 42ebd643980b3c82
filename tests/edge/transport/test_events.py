"""Events: one line of JSON, whatever the text holds."""

from __future__ import annotations

import json
import time

import pytest

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import Event, ignore, to_json
from splitwire.runtime_edge.transport import BatchTransport, HttpTransport, Key, LoopbackTransport


def test_an_event_is_one_line_of_json():
    event = Event(
        kind="camera_lost", text="two\nlines \u2028 and ü", wall=12.5, fields={"camera": "a\n", "n": 3, "s": 0.5}
    )
    line = to_json(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "kind": "camera_lost",
        "text": "two\nlines \u2028 and ü",
        "wall": 12.5,
        "fields": {"camera": "a\n", "n": 3, "s": 0.5},
    }


def test_an_event_knows_when_it_was():
    assert abs(Event(kind="x", text="y").wall - time.time()) < 5
    assert ignore(Event(kind="x", text="y")) is None  # type: ignore[func-returns-value]  # it must return nothing


def test_a_key_is_what_may_be_a_header():
    assert str(Key("cam-1", "3f9a", 7)) == "cam-1:3f9a:7"
    for device, boot, counter in (
        ("", "b", 0), ("d", "", 0), ("d:e", "b", 0), ("d\r\n", "b", 0), ("ü", "b", 0), ("d" * 65, "b", 0),
        ("d", "b\n", 0), ("d", "b", -1), ("d", "b", 1 << 64),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            Key(device, boot, counter)


def test_who_delivers_batches():
    assert isinstance(LoopbackTransport(lambda frame: frame), BatchTransport)
    assert not isinstance(object(), BatchTransport)
    assert HttpTransport is not None
