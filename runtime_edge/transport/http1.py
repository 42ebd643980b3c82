"""HTTP/1.1 as the edge needs it: the answer to a POST, read strictly. Everything else is refused as NotHttp.

A server that says two lengths, or one that is no number, is refused: what follows on the connection would be anyone's
guess. Nothing is allocated because a head announces it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from splitwire.codec.errors import BadResponse

from .sockets import Broken, CutShort, Link

MAX_HEAD = 64 << 10
MAX_INTERIM = 8
"""Interim answers (1xx) that are skipped; then the server is refused."""
MAX_CHUNK_LINE = 1024

_HTTP = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class NotHttp(Exception):
    """The far end does not speak HTTP/1.1; the argument says what it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer, read to its end. headers: by lower-case name. keep: whether the connection can be used again."""

    status: int
    headers: dict[str, str]
    body: bytes
    keep: bool


def read_response(link: Link, *, limit: float, max_body: int, upgrade: str | None = None) -> Response:
    """Read one answer. limit: longest wait, in seconds, for its next bytes. max_body: a longer body is BadResponse.

    upgrade: the protocol that the request asked for. If the server switches to it, the status is 101, and the body is
    what has been received of that protocol.

    Raises NotHttp, BadResponse, and what Link.receive raises. CutShort: the far end closed in the middle.
    """
    reader = _Reader(link, limit)
    for _ in range(MAX_INTERIM + 1):
        version, status, headers = _parse_head(reader.head())
        if status >= 200:
            break
        if status == 101 and upgrade is not None and headers.get("upgrade", "").lower() == upgrade:
            return Response(status=status, headers=headers, body=reader.taken(), keep=True)
        if status == 101:
            raise NotHttp("it switches protocols, which was not asked for")
    else:
        raise NotHttp(f"more than {MAX_INTERIM} interim answers")
    keep = "close" not in headers.get("connection", "keep-alive" if version else "close").lower()
    if status in (204, 304):
        body = b""
    elif "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
            raise NotHttp("its transfer encoding is not chunked, or it has a length as well")
        body = _chunked(reader, max_body)
    elif "content-length" in headers:
        length = headers["content-length"]
        if not _LENGTH.fullmatch(length):
            raise NotHttp("its content length is no number")
        if int(length) > max_body:
            raise too_long(length, max_body)
        body = reader.exactly(int(length))
    else:
        keep = False
        body = reader.rest(max_body)
    return Response(status=status, headers=headers, body=body, keep=keep and reader.is_empty)


def too_long(what: str, limit: int) -> BadResponse:
    """The error for an answer over the limit."""
    return BadResponse(f"the server answers with {what} bytes; the limit is {limit}")


def _parse_head(head: bytes) -> tuple[int, int, dict[str, str]]:
    """(minor version, status, headers by lower-case name). Raises NotHttp."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise NotHttp("its first line is no status line")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise NotHttp("a line of its head is no header")
        key = name.decode("ascii").lower()
        text = value.decode("latin-1")
        if key in headers and key in ("content-length", "transfer-encoding"):
            raise NotHttp(f"it says {key} twice")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return int(status[1]), int(status[2]), headers


def _chunked(reader: _Reader, max_body: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        size = _CHUNK.fullmatch(reader.until(b"\r\n", MAX_CHUNK_LINE))
        if size is None:
            raise NotHttp("a chunk of its body has no size")
        length = int(size[1], 16)
        if not length:
            break
        total += length
        if total > max_body:
            raise too_long("more", max_body)
        parts.append(reader.exactly(length))
        if reader.exactly(2) != b"\r\n":
            raise NotHttp("a chunk of its body is longer than it says")
    for _ in range(MAX_CHUNK_LINE):  # trailers, which nobody needs
        if not reader.until(b"\r\n", MAX_HEAD):
            return b"".join(parts)
    raise NotHttp("its trailers do not end")


class _Reader:
    """Reads a connection by lines and by lengths."""

    def __init__(self, link: Link, limit: float) -> None:
        self._link = link
        self._limit = limit
        self._data = b""

    @property
    def is_empty(self) -> bool:
        return not self._data

    def head(self) -> bytes:
        if not self._data:
            self._data = self._more()
        if not self._data.startswith(_HTTP[: len(self._data)]):
            raise NotHttp("its first line is no status line")
        return self.until(b"\r\n\r\n", MAX_HEAD)

    def until(self, end: bytes, most: int) -> bytes:
        """The bytes before `end`, at most `most`."""
        start = 0
        while (at := self._data.find(end, start)) < 0:
            start = max(0, len(self._data) - len(end) + 1)
            if len(self._data) > most:
                raise NotHttp(f"a head or a line of more than {most} bytes")
            self._data += self._more()
        found, self._data = self._data[:at], self._data[at + len(end) :]
        return found

    def exactly(self, n: int) -> bytes:
        """The next n bytes."""
        if len(self._data) < n:
            parts = [self._data]
            missing = n - len(self._data)
            while missing > 0:
                part = self._more()
                parts.append(part)
                missing -= len(part)
            self._data = b"".join(parts)
        found, self._data = self._data[:n], self._data[n:]
        return found

    def taken(self) -> bytes:
        """What has been received and not been used."""
        found, self._data = self._data, b""
        return found

    def rest(self, most: int) -> bytes:
        """Everything until the far end closes."""
        parts = [self._data]
        total = len(self._data)
        while part := self._link.receive(self._limit):
            parts.append(part)
            total += len(part)
            if total > most:
                raise too_long("more", most)
        self._data = b""
        return b"".join(parts)

    def _more(self) -> bytes:
        part = self._link.receive(self._limit)
        if not part:
            raise CutShort if self._link.tally.attempt_received else Broken
        return part
