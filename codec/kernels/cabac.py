"""The paper's adaptive binary coder over level indices. Read docs/bitstream.md §5 first.

A level q is the truncated unary word 1…10 (q ones; no zero for the last level). Each bin position k has a separate
context: a fast and a slow estimate of the probability of a one, in 1/65536, whose mean p is used. An estimate e goes to
e + ((65536 − e) >> rate) after a one and to e − (e >> rate) after a zero, so it stays within
[2^rate − 1, 65537 − 2^rate]; with rates 3 and 6 that is  35 ≤ p ≤ 65501.

The coder narrows an interval of `span` numbers from `low`, integers only:   2^24 ≤ span ≤ 2^32 before each bin.
    bound = span·p >> 16   below 2^48 on the way; a one takes the first `bound` numbers, a zero the others
Both parts hold at least 2^24·35/2^16 = 8960 numbers: every bin can be coded, and at most two bytes follow it.
The encoder knows `low` modulo 2^32 and one bit above, a carry, which it adds to the bytes already written when it
writes the next one; the first byte never carries over, because all intervals lie within the first, [0, 2^32).
The decoder keeps code − low, which stays below `span` for any bytes.

Everything is uint64, the indices too: numba turns uint64 ∘ int64 into float64.
"""

from __future__ import annotations

import numpy as np

from .compilation.policy import kernel

FAST = np.uint64(3)
SLOW = np.uint64(6)
CERTAIN = np.uint64(1 << 16)  # probability 1
HALF = np.uint64(1 << 15)
P_BITS = np.uint64(16)
WHOLE = np.uint64(1 << 32)  # the first interval
BOTTOM = np.uint64(1 << 24)  # the least span before a bin
TOP_BYTE = np.uint64(24)
BELOW_TOP = np.uint64((1 << 24) - 1)
BYTE = np.uint64(255)
BYTE_BITS = np.uint64(8)
ZERO = np.uint64(0)
ONE = np.uint64(1)

TAIL = 3  # zero bytes that the decoder reads behind the payload

OK = 0
OVERRUN = 1
BAD_END = 2
FULL = -1


@kernel
def encode(levels, last, out):
    """Code `levels` into `out`; returns the number of bytes, or FULL if `out` is too small.

    levels: (n,) uint8, none above `last`. last: N − 1, the number of bin positions. out: (≥ 1,) uint8.
    """
    fast = np.full(last, HALF, np.uint64)
    slow = np.full(last, HALF, np.uint64)
    room = np.uint64(out.size)
    size = ZERO
    low, span = ZERO, WHOLE
    for i in range(levels.size):
        q = np.uint64(levels[i])
        for k in range(min(q + ONE, np.uint64(last))):
            bound = (span * ((fast[k] + slow[k]) >> ONE)) >> P_BITS
            if k < q:
                span = bound
                fast[k] += (CERTAIN - fast[k]) >> FAST
                slow[k] += (CERTAIN - slow[k]) >> SLOW
            else:
                low += bound
                span -= bound
                fast[k] -= fast[k] >> FAST
                slow[k] -= slow[k] >> SLOW
            while span < BOTTOM:
                if size == room:
                    return FULL
                _write(out, size, low >> TOP_BYTE)
                size += ONE
                low = (low & BELOW_TOP) << BYTE_BITS
                span <<= BYTE_BITS
    if size == room:
        return FULL
    # The least multiple of 2^24 in the interval: its three low bytes are zeros, which the decoder appends by itself.
    _write(out, size, (low + BELOW_TOP) >> TOP_BYTE)
    return np.int64(size + ONE)


@kernel
def _write(out, size, byte):
    """out[size] = byte, which is below 512: its carry goes to the bytes before."""
    if byte > BYTE:
        i = size - ONE
        while out[i] == BYTE:
            out[i] = ZERO
            i -= ONE
        out[i] += np.uint8(1)
    out[size] = np.uint8(byte & BYTE)


@kernel
def decode(data, last, levels):
    """Decode into `levels`; returns OK, or a status that says why the bytes are invalid.

    data: uint8, the payload followed by TAIL zeros. last: N − 1. levels: (n,) uint8.
    """
    end = np.uint64(data.size)
    if data.size < TAIL + 1:
        return OVERRUN
    fast = np.full(last, HALF, np.uint64)
    slow = np.full(last, HALF, np.uint64)
    code, span = ZERO, WHOLE
    position = ZERO
    for _ in range(4):
        code = (code << BYTE_BITS) | np.uint64(data[position])
        position += ONE
    bins = np.uint64(last)
    for i in range(levels.size):
        k = ZERO
        more = True
        while more and k < bins:
            bound = (span * ((fast[k] + slow[k]) >> ONE)) >> P_BITS
            more = code < bound
            if more:
                span = bound
                fast[k] += (CERTAIN - fast[k]) >> FAST
                slow[k] += (CERTAIN - slow[k]) >> SLOW
                k += ONE
            else:
                code -= bound
                span -= bound
                fast[k] -= fast[k] >> FAST
                slow[k] -= slow[k] >> SLOW
            while span < BOTTOM:
                if position == end:
                    return OVERRUN
                code = (code << BYTE_BITS) | np.uint64(data[position])
                position += ONE
                span <<= BYTE_BITS
        levels[i] = np.uint8(k)
    # All bytes are read and the last number is the encoder's: a payload that passes is the one the encoder makes.
    if position != end or code >= BOTTOM:
        return BAD_END
    return OK
