"""Class names from files in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitwire.codec.errors import UsageError
from splitwire.exporter.pair.labels import read_labels

NAMES = ("tench", "goldfish", "great white shark")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "tench\ngoldfish\ngreat white shark\n"),
        ("windows.txt", "\ufefftench\r\n goldfish \r\ngreat white shark\r\n\r\n"),
        ("list.json", json.dumps(NAMES)),
        ("list.txt", json.dumps(NAMES)),
        ("numbers.json", json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]})),
        ("imagenet_class_index.json", json.dumps({str(i): [f"n{i:08}", n] for i, n in enumerate(NAMES)})),
        ("label2id.json", json.dumps({n: i for i, n in reversed(list(enumerate(NAMES)))})),
        ("config.json", json.dumps({"architectures": ["X"], "id2label": dict(enumerate(NAMES))})),
    ],
)
def test_every_form(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_labels(tmp_path / name) == NAMES


def test_eleven_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({str(i): f"c{i}" for i in sorted(range(11), key=str)}))
    assert read_labels(tmp_path / "a.json") == tuple(f"c{i}" for i in range(11))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are no labels in it; expected one label per line, or JSON"),
        (b"a\n\nb\n", "the label of class 1 is empty"),
        (b"\xff\xfea\0", "not UTF-8 text"),
        (b'{"0": "a", "2": "b"}', "class numbers must go from 0 to 1, each once; 1 is missing"),
        (b'{"1": "a", "2": "b"}', "0 is missing"),
        (b'{"a": 0, "b": 0}', "0 is not expected"),
        (b'{"cat": "a"}', "'cat' is no class number"),
        (b"[1, 2]", "the label of class 0 is int, expected text"),
        (b'["a", null]', "the label of class 1 is NoneType"),
        (b'["a"', "the labels are not JSON"),
        (b"[]", "there are no labels"),
        (b"[" * 100_000, "the labels are not JSON"),
    ],
)
def test_what_are_no_labels(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_labels(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="labels cannot be read: No such file"):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="labels cannot be read: Is a directory"):
        read_labels(tmp_path)
