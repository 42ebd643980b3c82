r"""Printable text: file names that are not UTF-8, in a form that every file and terminal accepts.

A file name that is not UTF-8 reaches Python with surrogate escapes (PEP 383): U+DCE9 for the byte E9. UTF-8 cannot
encode them. In messages and files such a byte is written as `\xe9`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_ESCAPED = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with `\xe9` for each byte that is not UTF-8, and `\ud800` for each other surrogate."""
    if not _SURROGATE.search(text):
        return text
    text = _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def for_native_code(path: Path) -> str | bytes:
    """What to pass to a C++ library: the path, or the file's content if the path is not valid Unicode."""
    name = str(path)
    return path.read_bytes() if _SURROGATE.search(name) else name


def printable_json(value: object) -> bytes:
    """`value`, anything msgspec encodes, as JSON in UTF-8 with printable text."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_all(msgspec.to_builtins(value)))


def _all(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_all(k): _all(v) for k, v in value.items()}
    return [_all(v) for v in value] if isinstance(value, list | tuple) else value
