"""The checks that every entropy coder must pass. A new coder needs one line in `CODERS` and its section in the spec."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import reference
import spec_reader
from codec_helpers import UInt8Array

from splitwire.codec.entropy import SymbolCoder
from splitwire.codec.errors import BitstreamError
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.quantizer import BlockPacker


def check_codec(
    kind: type[SymbolCoder],
    spec: TensorSpec,
    point: TensorPoint,
    q: UInt8Array,
    seed: int = 0,
    first: int | None = None,
) -> None:
    """The promises of `SymbolCoder` and of docs/bitstream.md for (P, H, W) level indices q of a tensor.

    The bytes are the oracle's, in whatever way they are asked for; they decode to q, by the oracle too, with any number
    of lanes; bytes too many are refused, and other damage is refused or decodes to symbols in range. first: the channel
    of the first plane (None: any).
    """
    rng = np.random.default_rng(seed)
    planes, height, width = q.shape
    first = int(rng.integers(spec.planes[0])) if first is None else first
    coder = kind.of(point, spec)
    assert coder is not None and 1 <= coder.coder_id <= 255
    packer = BlockPacker(point.quantizer, coder.block, coder.padding, height, width)
    symbols = packer.pack(q)
    grid = (packer.rows, packer.cols)

    payload, lanes = coder.encode(symbols, *grid, first)
    assert 1 <= lanes <= coder.max_lanes
    texts = msgspec.to_builtins(point), msgspec.to_builtins(spec)
    assert (payload, lanes) == reference.ENCODERS[coder.coder_id](q.tolist(), *texts, first)
    assert (payload, lanes) == coder.encode(symbols, *grid, first), "a coder keeps nothing from call to call"

    for data in (payload, memoryview(payload)):
        decoded = coder.decode(data, planes, *grid, lanes, first)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, symbols)
    read = spec_reader.DECODERS[coder.coder_id](payload, *texts, lanes, planes, first)
    np.testing.assert_array_equal(np.array(read, np.uint8), q)
    if coder.max_lanes > 1:
        wanted = int(rng.integers(1, coder.max_lanes + 1))
        other, _ = reference.ENCODERS[coder.coder_id](q.tolist(), *texts, first, wanted)
        np.testing.assert_array_equal(coder.decode(other, planes, *grid, wanted, first), symbols)

    for behind in (b"\0", b"\0\0"):
        with pytest.raises(BitstreamError):
            coder.decode(payload + behind, planes, *grid, lanes, first)

    alphabet = len(point.quantizer.levels) ** (coder.block[0] * coder.block[1])
    for damaged in damages(payload, rng):
        try:
            got = coder.decode(damaged, planes, *grid, int(rng.integers(1, coder.max_lanes + 1)), first)
        except BitstreamError:
            continue
        assert got.shape == symbols.shape and int(got.max()) < alphabet


def damages(payload: bytes, rng: np.random.Generator, number: int = 24) -> list[bytes]:
    """Payloads that differ slightly from this one, and a few that are entirely different."""
    out = [b"", b"\0", b"\xff" * len(payload), bytes(len(payload)), payload + b"\0", payload + b"\0\0", payload[:-1]]
    for _ in range(number):
        b = bytearray(payload[: rng.integers(len(payload) + 1)] if rng.random() < 0.3 else payload)
        for _ in range(rng.integers(1, 4) if b else 0):
            b[rng.integers(len(b))] = rng.integers(256)
        out.append(bytes(b))
    return out
