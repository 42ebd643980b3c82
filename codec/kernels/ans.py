"""One step of rANS, encoding and decoding, for all rANS coders. Read docs/bitstream.md §4 first.

State x, one per lane, integers only:   2^15 ≤ x < 2^31 before and after each symbol; renormalised by 16-bit words.
Tables have 12 bits: Σ f = 4096, so coding a symbol of frequency f and cumulative c is
    encode  x ← ⌊x/f⌋·4096 + c + x mod f      after emitting a word if x ≥ f·2^19
    decode  x ← f·(x >> 12) + (x & 4095) − c   then reading a word if x < 2^15
f ≥ 1 and x < 2^31 make one word enough in both directions; an escape takes two symbols, so at most two words.
The division is exact as (x·m) >> 43 with m = ⌈2^43/f⌉: the error e = m·f − 2^43 < f < 2^12 and x < f·2^19 give
x·e < 2^43 (Granlund & Montgomery 1994), and x·m < 2^63.

Everything is uint64, the indices too: numba turns uint64 ∘ int64 into float64, and signed indices cost a wrap-around
test each. Emitting and reading a word has no branch, because it would be mispredicted about every fifth symbol.

The tables as the steps read them (entropy/ans.py makes them):
    code    (T·256·2,) uint64, per table and symbol: m; then f << 32 | 4096 − f << 16 | c, all 0 for a symbol that is
            escaped
    slots   (T·4096,) uint32, per table and x & 4095: symbol | f << 8 | (slot − c) << 20; f = 0 marks the escape
    escape  (T,) uint64, f of the escape
"""

from __future__ import annotations

import numpy as np

from .compilation.policy import kernel

LOW = np.uint64(1 << 15)
SLOT = np.uint64(4095)
FULL = np.uint64(4096)
TABLE_BITS = np.uint64(12)
SYMBOL_BITS = np.uint64(8)
BIAS_SHIFT = np.uint64(20)
WORD = np.uint64(16)
WORD_MASK = np.uint64(0xFFFF)
FREQUENCY_SHIFT = np.uint64(32)
KEY_TABLE_SHIFT = np.uint64(9)
SPILL_SHIFT = np.uint64(19)
RECIPROCAL_BITS = np.uint64(43)
RAW_FREQUENCY = np.uint64(16)  # after an escape the symbol is uniform over 256: 4096/256
RAW_BITS = np.uint64(4)
RAW_MASK = np.uint64(15)
BYTE = np.uint64(255)
ZERO = np.uint64(0)
ONE, TWO, THREE, FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
FIVE, SIX, SEVEN, EIGHT = np.uint64(5), np.uint64(6), np.uint64(7), np.uint64(8)


OK = 0
OVERRUN = 1
BAD_END = 2


@kernel
def put(x, m, e, p):
    """Code one symbol of entry (m, e) of `code`: the new state and start of the words."""
    spill = x >> SPILL_SHIFT >= e >> FREQUENCY_SHIFT
    x = (x >> WORD) if spill else x
    return x + ((x * m) >> RECIPROCAL_BITS) * ((e >> WORD) & WORD_MASK) + (e & WORD_MASK), p - np.uint64(spill)


@kernel
def put_escaped(x, k, p, escape, words):
    """Code symbol k, which is not in the table, as an escape and a raw byte."""
    # what is decoded last is coded first: the raw byte, then the escape
    if x >= RAW_FREQUENCY << SPILL_SHIFT:
        p -= ONE
        words[p] = np.uint16(x & WORD_MASK)
        x >>= WORD
    x = ((x >> RAW_BITS) << TABLE_BITS) + (((k >> ONE) & BYTE) << RAW_BITS) + (x & RAW_MASK)
    f = escape[k >> KEY_TABLE_SHIFT]
    if x >= f << SPILL_SHIFT:
        p -= ONE
        words[p] = np.uint16(x & WORD_MASK)
        x >>= WORD
    return ((x // f) << TABLE_BITS) + (FULL - f) + x % f, p


@kernel
def look(x, t, slots):
    """The entry of state x in table t."""
    return np.uint64(slots[(t << TABLE_BITS) | (x & SLOT)])


@kernel
def take(x, f, e):
    """The state after decoding a symbol of frequency f and entry e, before the refill."""
    return f * (x >> TABLE_BITS) + (e >> BIAS_SHIFT)


@kernel
def refill(x, word, p):
    """The state with `word` appended if it is below 2^15, and the index of the next word."""
    room = x < LOW
    return ((x << WORD) | np.uint64(word)) if room else x, p + np.uint64(room)


@kernel
def take_escaped(x, t, p, escape, words):
    """Decode the escape of table t and its raw symbol: the symbol, the state before a refill, the next word's index."""
    f = escape[t]
    x = f * (x >> TABLE_BITS) + (x & SLOT) - (FULL - f)
    if x < LOW:
        x = (x << WORD) | np.uint64(words[p])
        p += ONE
    return (x & SLOT) >> RAW_BITS, ((x >> TABLE_BITS) << RAW_BITS) + (x & RAW_MASK), p


@kernel
def write_states(state, lanes, words, p):
    """Write the states before the words; returns the index of the first word."""
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def read_states(words, count, lanes, state):
    """Read the states; returns OK, or a status that says why the stream is invalid."""
    if count < 2 * lanes:
        return OVERRUN
    for lane in range(lanes):
        p = np.uint64(2 * lane)
        state[lane] = (np.uint64(words[p]) << WORD) | np.uint64(words[p + ONE])
        if state[lane] < LOW or state[lane] >> WORD >= LOW:
            return BAD_END
    return OK


@kernel
def ended(state, lanes, p, end):
    """OK if every word is read and every state is the encoder's initial state."""
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK
