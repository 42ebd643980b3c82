"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from splitwire.codec.shared.files import write_atomically, write_json


def test_what_is_written_is_there_in_folders_made_for_it(tmp_path):
    path = tmp_path / "new" / "file"
    for data in (b"old", b"new"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    path.with_name("plain").write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.with_name("plain").stat().st_mode)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_json(tmp_path):
    write_json(tmp_path / "file", {"a": [1, 2.5], "b": None})
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"a": [1, 2.5], "b": None}
    with pytest.raises(TypeError):
        write_json(tmp_path / "other", object())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
