"""Coder ids 5 and 6: transform coefficients ↔ bytes, by rANS with a static table per class (bitstream.md §7).

They quantize too: one step for all coefficients, whose index the payload says. Blocks and levels of the other coders do
not occur, so this is no SymbolCoder. The payload of coder 6 has no byte for the step, and a single lane begins with as
few bytes of its state as there are: about four bytes less, of payloads that may have ten.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, Truncated
from splitwire.codec.kernels import ans
from splitwire.codec.kernels import transform as kernels
from splitwire.codec.quantizer import non_finite
from splitwire.codec.tables import TABLE_BITS, TABLE_SIZE
from splitwire.codec.transform import MOST, STATIC, STEPS, TERSE, USUAL_STEP, Transform, step_reciprocal, step_size

from .ans import AnsTables, check_status, choose_lanes, from_payload, from_short_payload, to_payload, to_short_payload

CODER_IDS = (STATIC, TERSE)

LOW = ans.LOW

# Payloads are a few hundred bytes, so that the two that a lane costs count more than its speed.
_SYMBOLS_PER_LANE = 4096

Float32Array = NDArray[np.float32]


class TransformRans:
    """(images, tiles, N) coefficients ↔ bytes, with the tables of one tensor. Immutable, so threads may share it.

    The K that are sent are coded by falling class, wherever they lie: the kernels read and write through that order.
    """

    def __init__(self, transform: Transform, shape: tuple[int, ...]) -> None:
        transform.check(shape)  # the kernels trust every number
        self.coder_id = transform.coder_id
        self._transform = transform
        self._width = shape[-1]
        order = transform.order().astype(np.uint32)
        self._groups = -(-order.size // kernels.GROUP)
        # All 32 symbols are plain ones here, the escape too; the last column is the escape of kernels/ans.py.
        coefficients = AnsTables.of(np.pad(transform.frequency_rows(), ((0, 0), (0, 1))))
        place = _places(coefficients.slots, spread=self.coder_id == TERSE)
        slots = np.empty_like(coefficients.slots).reshape(-1, TABLE_SIZE)
        np.put_along_axis(slots, place, coefficients.slots.reshape(slots.shape), axis=1)
        zero = transform.zero_frequencies().astype(np.int64)
        flags = AnsTables.of(np.stack([zero, TABLE_SIZE - zero, 0 * zero], axis=1).astype(np.uint16))
        self._coding = kernels.Coding(
            order=order,
            table=np.zeros(order.size, np.uint8),  # each step has its own
            zero=zero.astype(np.uint64),
            code=_first_symbols(coefficients, kernels.CODES),
            zero_code=_first_symbols(flags, 2),
            place=place.astype(np.uint16).reshape(-1),
            slots=slots.reshape(-1),
        )
        self._outward = np.array(transform.outward, np.float32)
        self._steps = lru_cache(maxsize=STEPS)(self._step)

    def encode(self, x: Float32Array, step: int, usual: int) -> tuple[bytes, int]:
        """Quantize and code (images, tiles, N) coefficients at a step index; returns bytes and lanes.

        usual: the operating point's step index. Any other one costs coder 6 twelve bits.
        Raises NonFiniteFeatures if a coefficient that is sent is NaN or infinite.
        """
        at = self._steps(step)
        flat = np.ascontiguousarray(x).reshape(-1)
        groups = np.empty(flat.size // self._width * self._groups, np.uint8)
        present, largest = kernels.find_groups(flat.view(np.int32), self._width, at.coding.order, at.least, groups)
        if not np.int32(largest).view(np.float32) < np.inf:
            raise non_finite(x)
        room = present * kernels.GROUP
        symbols, tables, escapes = np.empty(room, np.uint8), np.empty(room, np.uint8), np.empty(room, np.uint16)
        coded, escaped = kernels.quantize(
            flat, self._width, groups, at.reciprocal, at.most, at.up, at.coding, symbols, tables, escapes
        )
        symbols, tables, escapes = symbols[:coded], tables[:coded], escapes[:escaped]
        number = groups.size + coded + 2 * escaped
        lanes = choose_lanes(number, per_lane=_SYMBOLS_PER_LANE)
        words = np.empty(number + 1 + 2 * lanes, np.uint16)  # at most one word per symbol, that of the step too
        beginning = self._beginning(lanes, None if step == usual else step)
        start = kernels.encode(groups, symbols, tables, escapes, lanes, beginning, at.coding, words)
        if self.coder_id == STATIC:
            return bytes([step]) + to_payload(words, start), lanes
        return (to_short_payload if lanes == 1 else to_payload)(words, start), lanes

    def decode(self, payload: bytes | memoryview, lanes: int, out: Float32Array, usual: int) -> int:
        """Decode to coefficients in `out`, (images·tiles·N,); returns the step index. Raises Truncated or Corrupt.

        usual: the operating point's step index.
        """
        if self.coder_id == STATIC:
            step, beginning, words, count = self._static_beginning(payload, lanes)
        else:
            step, beginning, words, count = self._terse_beginning(payload, lanes, usual)
        at = self._steps(step)
        groups = np.empty(out.size // self._width * self._groups, np.uint8)
        status = kernels.decode(
            words, count, lanes, beginning, self._width, at.coding, at.values, self._outward, at.step, groups, out
        )
        if status == kernels.BAD_VALUE:
            raise Corrupt(f"rANS payload holds a coefficient whose magnitude is over {MOST}")
        check_status(status, payload, f"{out.size} coefficients")
        return step

    def _beginning(self, lanes: int, step: int | None) -> kernels.Beginning:
        """step: the index; None is the operating point's."""
        if self.coder_id == STATIC:
            return kernels.Beginning(LOW, np.uint64(TABLE_SIZE), np.uint64(0))
        state = np.uint64(0) if lanes == 1 else LOW
        if step is None:
            return kernels.Beginning(state, np.uint64(USUAL_STEP), np.uint64(0))
        return kernels.Beginning(state, np.uint64(1), np.uint64(USUAL_STEP + step))

    def _static_beginning(self, payload: bytes | memoryview, lanes: int) -> _Read:
        if not len(payload):
            raise Truncated("payload of coefficients must begin with a step index; it is empty")
        step = payload[0]
        if step >= STEPS:
            raise Corrupt(f"step index must be below {STEPS}, is {step}")
        return _Read(step, self._beginning(lanes, step), *from_payload(payload[1:], lanes))

    def _terse_beginning(self, payload: bytes | memoryview, lanes: int, usual: int) -> _Read:
        if lanes == 1:
            words, count = from_short_payload(payload)
            low = words[1] if count > 1 and words[0] < LOW else words[0]
        else:
            words, count = from_payload(payload, lanes)
            low = words[1]
        slot = int(low) % TABLE_SIZE
        step = None if slot < USUAL_STEP else slot - USUAL_STEP
        return _Read(usual if step is None else step, self._beginning(lanes, step), words, count)

    def _step(self, step: int) -> _Step:
        """What the kernels need for a step index. Cached: a stream has few."""
        size, reciprocal = step_size(step), step_reciprocal(step)
        up = np.float32(1 - self._transform.dead_zone)
        symbols = np.arange(int(kernels.ESCAPE))
        magnitudes = (symbols + 1) // 2
        shift = np.where(magnitudes == 0, np.float32(0), self._outward[np.minimum(magnitudes, 2) - 1])
        values = (magnitudes.astype(np.float32) + shift) * size
        values[2::2] *= -1
        return _Step(
            coding=self._coding._replace(table=self._transform.tables_at(step).astype(np.uint8)),
            values=np.append(values, kernels.ESCAPED),
            step=size,
            reciprocal=reciprocal,
            most=np.float32(MOST) * size,
            up=up,
            least=_least(reciprocal, up).view(np.int32),
        )


class _Read(NamedTuple):
    """What the first bytes of a payload say. words, size: as from_payload has them."""

    step: int
    beginning: kernels.Beginning
    words: NDArray[np.uint16]
    size: int


class _Step(NamedTuple):
    """Arguments of the kernels at one step.

    values: (32,) float32, what each symbol decodes to. step, reciprocal: of it. most: the largest magnitude. up: the
    fraction from which on it is rounded up. least: the bits of the smallest magnitude that does not become zero.
    """

    coding: kernels.Coding
    values: Float32Array
    step: np.float32
    reciprocal: np.float32
    most: np.float32
    up: np.float32
    least: np.int32


def _first_symbols(tables: AnsTables, symbols: int) -> NDArray[np.uint64]:
    """The encoder's entries of the first `symbols` symbols of each table, flat. The stride of 256 would put all tables
    into the same cache sets."""
    return np.ascontiguousarray(tables.code.reshape(-1, 256, 2)[:, :symbols]).reshape(-1)


def _places(slots: NDArray[np.uint32], *, spread: bool) -> NDArray[np.uint32]:
    """(T, 4096) where each slot of AnsTables lies. spread: as in coder 6; in coder 5 all stay.

    Reversing the bits of a number spreads consecutive ones; those of one symbol then lie in rising order.
    """
    number: NDArray[np.uint32] = np.arange(TABLE_SIZE, dtype=np.uint32)
    rows = slots.reshape(-1, TABLE_SIZE)
    if not spread:
        return np.broadcast_to(number, rows.shape)
    reverse = np.zeros_like(number)
    for bit in range(TABLE_BITS):
        reverse |= (number >> bit & 1) << (TABLE_BITS - 1 - bit)
    places: NDArray[np.uint32] = np.sort((rows & 255) << TABLE_BITS | reverse, axis=1) & np.uint32(TABLE_SIZE - 1)
    return places


def _least(reciprocal: np.float32, up: np.float32) -> np.float32:
    """The smallest float32 whose product with the reciprocal is at least `up`."""
    y = up / reciprocal
    zero, infinity = np.float32(0), np.float32(np.inf)
    while y * reciprocal >= up:
        y = np.nextafter(y, zero)
    while y * reciprocal < up:
        y = np.nextafter(y, infinity)
    return y
