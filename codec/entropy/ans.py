"""What the rANS coders share above their kernels: the tables for kernels/ans.py, and payloads as 16-bit words."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, Truncated
from splitwire.codec.kernels import ans as kernels
from splitwire.codec.tables import TABLE_SIZE

MAX_LANES = 8

# Every lane ends with four bytes of state, about two of which are overhead, so small tensors get fewer lanes. Below
# these sizes the bytes matter more than the speed of parallel lanes (measured with benchmarks/speed/codec.py).
_SYMBOLS_PER_LANE = 1024


def choose_lanes(symbols: int, planes: int = MAX_LANES, *, per_lane: int = _SYMBOLS_PER_LANE) -> int:
    """How many lanes the encoder uses: a power of two up to 8, no more than there are planes.

    per_lane: the fewest symbols of each lane, where there is more than one.
    """
    lanes = 1
    while lanes < MAX_LANES and symbols >= 2 * lanes * per_lane and 2 * lanes <= planes:
        lanes *= 2
    return lanes


class AnsTables(NamedTuple):
    """The frequency tables as kernels/ans.py reads them.

    code: (T·256·2,) uint64, for encoding. slots: (T·4096,) uint32, for decoding. escape: (T,) uint64.
    """

    code: NDArray[np.uint64]
    slots: NDArray[np.uint32]
    escape: NDArray[np.uint64]

    @classmethod
    def of(cls, frequencies: NDArray[np.uint16]) -> Self:
        """Lay the tables out. frequencies: (T, K + 1), the symbols', then the escape's; each row sums to 4096."""
        rows = frequencies.astype(np.int64)
        code = np.zeros((rows.shape[0] * 256, 2), np.uint64)
        slots = np.empty(rows.shape[0] * TABLE_SIZE, np.uint32)
        for t, row in enumerate(rows):
            starts = np.concatenate([[0], np.cumsum(row)[:-1]])
            used = np.flatnonzero(row[:-1])
            code[t * 256 + used, 0] = -(-(1 << 43) // row[used])
            code[t * 256 + used, 1] = row[used] << 32 | (TABLE_SIZE - row[used]) << 16 | starts[used]
            # frequency 0 marks the escape (the last symbol)
            symbol = np.append(np.arange(row.size - 1), 0) | np.append(row[:-1], 0) << 8
            offset = np.arange(TABLE_SIZE) - np.repeat(starts, row)
            slots[t * TABLE_SIZE : (t + 1) * TABLE_SIZE] = np.repeat(symbol, row) | offset << 20
        return cls(code.reshape(-1), slots, rows[:, -1].astype(np.uint64))


def room_for_words(symbols: int, lanes: int) -> NDArray[np.uint16]:
    """The buffer that the encoder fills from its end: at most two words per symbol, and the states."""
    return np.empty(2 * symbols + 2 * lanes, np.uint16)


def to_payload(words: NDArray[np.uint16], start: int) -> bytes:
    """The words from `start` on, little-endian."""
    return words[start:].astype("<u2", copy=False).tobytes()


def from_payload(payload: bytes | memoryview, symbols: int) -> tuple[NDArray[np.uint16], int]:
    """The words of a payload, followed by the zeros that decoding `symbols` more reads at most; and the words' number.

    Raises Corrupt.
    """
    if len(payload) % 2:
        raise Corrupt(f"rANS payload must be whole 16-bit words, has {len(payload)} bytes")
    count = len(payload) // 2
    words = np.empty(count + 2 * symbols + 2, np.uint16)
    words[:count] = np.frombuffer(payload, "<u2")
    words[count:] = 0
    return words, count


def to_short_payload(words: NDArray[np.uint16], start: int) -> bytes:
    """The same, of one lane whose state is in the first two words, without the bytes of the state that are zero."""
    state = int(words[start]) << 16 | int(words[start + 1])
    size = (state.bit_length() + 7) // 8
    whole = to_payload(words, start)
    return (whole[0:2], b"")[size < 3][: size - 2] + whole[2:4][: min(size, 2)] + whole[4:]


def from_short_payload(payload: bytes | memoryview) -> tuple[NDArray[np.uint16], int]:
    """The words of to_short_payload, of which the first may be one byte, followed by zeros; and the words' number.

    Raises Corrupt if bytes that are zero were not left out.
    """
    odd = len(payload) % 2
    first = bytes(payload[:odd]) + b"\0" * odd + bytes(payload[odd : 2 - odd])
    words, count = from_payload(first + bytes(payload[2 - odd :]), 1)
    if len(payload) and words[0] < (1 if odd else 256):
        raise Corrupt(f"rANS payload must not begin with zeros, begins with {words[0]} in {2 - odd} bytes")
    return words, count


def check(status: int, payload: bytes | memoryview, symbols: NDArray[np.uint8], alphabet: int) -> None:
    """Raise Truncated or Corrupt unless the kernel decoded the payload to `symbols`, all below `alphabet`."""
    check_status(status, payload, f"{symbols.size} symbols")
    if alphabet < 256 and symbols.max() >= alphabet:
        raise Corrupt(f"rANS payload holds an escaped symbol that is not below {alphabet}")


def check_status(status: int, payload: bytes | memoryview, content: str) -> None:
    """Raise Truncated or Corrupt unless the kernel decoded the whole payload. content: to what, for the message."""
    if status == kernels.OVERRUN:
        raise Truncated(f"rANS payload of {len(payload)} bytes ends before all {content} are decoded")
    if status == kernels.BAD_END:
        raise Corrupt("rANS payload does not end in the initial state; it was damaged or is not of this profile")
