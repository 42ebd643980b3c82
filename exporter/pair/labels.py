"""Read class names from a file, in the common formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from splitwire.codec.errors import UsageError

FORMS = "one label per line, or JSON: a list, numbers to labels, or labels to numbers"


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels in `path`, by class number.

    The file has one label per line (empty lines at the end do not count), or it is JSON: a list of labels; an object
    from number to label, or to [identifier, label] as in Keras' imagenet_class_index.json; an object from label to
    number; or one of these under "id2label", as in a configuration of Hugging Face.
    Raises UsageError: no such file, not text, class numbers with gaps, an empty label.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UsageError(f"{path}: the labels cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: the labels are not UTF-8 text; expected {FORMS}") from e
    if text.lstrip()[:1] in ("[", "{") or path.suffix.lower() == ".json":
        labels = _from_json(path, text)
    else:
        labels = [line.strip() for line in text.splitlines()]
        while labels and not labels[-1]:
            labels.pop()
    if not labels:
        raise UsageError(f"{path}: there are no labels in it; expected {FORMS}")
    empty = next((i for i, label in enumerate(labels) if not label), None)
    if empty is not None:
        raise UsageError(f"{path}: the label of class {empty} is empty")
    return tuple(labels)


def _from_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path}: the labels are not JSON: {e}") from e
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        content = content["id2label"]
    if isinstance(content, dict):
        content = _by_number(path, content)
    if not isinstance(content, list):
        raise UsageError(f"{path}: expected {FORMS}; got {type(content).__name__}")
    return [_name(path, i, label) for i, label in enumerate(content)]


def _by_number(path: Path, content: dict[str, Any]) -> list[Any]:
    """The labels of an object that maps numbers to labels, or labels to numbers."""
    if content and all(isinstance(v, int) and not isinstance(v, bool) for v in content.values()):
        pairs = [(number, label) for label, number in content.items()]
    else:
        strange = next((key for key in content if not key.isdecimal()), None)
        if strange is not None:
            raise UsageError(f"{path}: {strange!r} is no class number; expected {FORMS}")
        pairs = [(int(key), label) for key, label in content.items()]
    numbers = sorted(number for number, _ in pairs)
    if numbers != list(range(len(pairs))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        raise UsageError(
            f"{path}: the class numbers must go from 0 to {len(pairs) - 1}, each once; "
            + (f"{wrong} is missing" if numbers[wrong] > wrong else f"{numbers[wrong]} is not expected")
        )
    return [label for _, label in sorted(pairs, key=lambda pair: pair[0])]


def _name(path: Path, number: int, label: Any) -> str:
    """A label, or the last of [identifier, label]."""
    if isinstance(label, list) and label and all(isinstance(part, str) for part in label):
        label = label[-1]
    if not isinstance(label, str):
        raise UsageError(f"{path}: the label of class {number} is {type(label).__name__}, expected text")
    return label.strip()
