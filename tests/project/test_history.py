"""benchmarks/speed/history.py: the ratios of a release, what moved, and what fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.speed import history
from benchmarks.speed.codec import OURS, Row
from splitwire.codec.shared.files import write_json

MACHINE = {"processor": "Some Processor"}


def row(coder: str, size: int, encode: float, decode: float) -> Row:
    return Row(
        tensor="early", elements=1000, levels=4, coder=coder, bytes=size, encode_melem_s=encode, decode_melem_s=decode
    )


def release(**changes: Any) -> history.Release:
    fields: dict[str, Any] = {"bytes": {"a": 0.5}, "encode": {"a": 2.0}, "decode": {"a": 3.0}}
    return history.Release(release="0.1.0", machine={}, **{**fields, **changes})


def test_ratios_are_to_the_peer_of_the_same_tensor_and_levels(tmp_path: Path):
    rows = [row(OURS, 30, 50.0, 60.0), row(history.PEER, 40, 200.0, 600.0), row("uint8 + zlib 6", 99, 1.0, 1.0)]
    write_json(tmp_path / "codec.json", {"machine": MACHINE, "rows": rows})
    summary = history.summarise("0.2.0", tmp_path / "codec.json")
    key = f"early, N = 4, {OURS}"
    assert (summary.bytes, summary.encode, summary.decode) == ({key: 0.75}, {key: 0.25}, {key: 0.1})
    with pytest.raises(SystemExit, match="run `make bench-codec` first"):
        history.summarise("0.2.0", tmp_path / "none.json")


@pytest.mark.parametrize(
    ("now", "what", "fails"),
    [
        ({}, [], False),
        ({"bytes": {"a": 0.502}, "encode": {"a": 2.4}}, [], False),
        ({"bytes": {"a": 0.51}}, ["bytes"], True),
        ({"bytes": {"a": 0.4}}, ["bytes"], False),
        ({"bytes": {}}, ["bytes"], True),
        ({"bytes": {"a": 0.5, "b": 0.9}}, ["bytes"], False),
        ({"encode": {"a": 1.0}, "decode": {"a": 9.0}}, ["encode", "decode"], False),
    ],
)
def test_only_bytes_that_grew_or_are_missing_fail(now: dict[str, Any], what: list[str], fails: bool):
    changes = history.moved(release(), release(**now))
    assert [change[0] for change in changes] == what
    assert history.grew(changes) is fails


def test_the_last_release_is_the_newest_by_number(tmp_path: Path):
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        write_json(tmp_path / f"{version}.json", history.Release(
            release=version, machine={}, bytes={}, encode={}, decode={},
        ))  # fmt: skip
    assert history.last_release(tmp_path).release == "0.10.0"
    with pytest.raises(SystemExit, match="holds no release"):
        history.last_release(tmp_path / "none")


@pytest.mark.parametrize("arguments", [["record"], ["record", "../x"], ["record", "new"], ["compare"]])
def test_wrong_arguments_are_one_line(arguments: list[str]):
    with pytest.raises(SystemExit, match="expected nothing, or `record VERSION`"):
        history.main(arguments)


def test_every_file_of_the_history_is_read_and_named_after_its_release():
    files = sorted(history.HISTORY.glob("*.json"))
    assert files
    for file in files:
        assert msgspec.json.decode(file.read_bytes(), type=history.Release).release == file.stem
