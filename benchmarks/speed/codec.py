"""Compares the codec with what a user would combine: bytes, throughput, time of a call (`make bench-codec`).

It writes build/bench/codec.json (machine, rows) and prints the same as a table. Everything runs on one core. Whole
paths are measured: encode is float32 → bytes, decode is bytes → float32, checks and checksums included. The bit-pack
peers use splitwire's compiled quantizer, bit-packer and table look-up, so that only the entropy coders differ.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import constriction
import numpy as np
import zstandard
from msgspec import Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.features import Floats, Tensor, tensors, without_tables
from benchmarks.speed.measure import medians
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.kernels import quantize as kernels
from splitwire.codec.profile import Quantizer
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine

T = TypeVar("T")
OUT = Path("build/bench")
OURS = "splitwire"
CONTEXT, BINARY = "splitwire, context", "splitwire, CABAC"
"""The faster coder of `--coder context`, and the paper's coder."""
CALL_REPEATS = 301


class Row(Struct, frozen=True, kw_only=True):
    """One coder on one tensor. bytes: bytes of the whole batch, headers included.

    encode_melem_s, decode_melem_s: millions of elements per second at this batch. encode_call_us, decode_call_us: the
    time for one image minus the time of its elements at that throughput, µs.
    """

    tensor: str
    elements: int
    levels: int
    coder: str
    bytes: int
    encode_melem_s: float
    decode_melem_s: float
    encode_call_us: float | None = None
    decode_call_us: float | None = None


class Contender(Protocol):
    """float32 features ↔ bytes, by the same quantizer."""

    def encode(self, x: Floats) -> bytes: ...
    def decode(self, data: bytes) -> Floats: ...


class Splitwire:
    """FeatureCodec, with the coder of the profile."""

    def __init__(self, codec: FeatureCodec, op: str) -> None:
        self._codec, self._op = codec, op

    def encode(self, x: Floats) -> bytes:
        return self._codec.encode([x], op=self._op)

    def decode(self, data: bytes) -> Floats:
        return self._codec.decode(data).tensors[0].reshape(-1)


class BitPackZstd:
    """What a careful user would do: pack level indices into ⌈log2 N⌉ bits, rounded up to a divisor of 8; then zstd."""

    def __init__(self, quantizer: Quantizer, level: int) -> None:
        self._quantizer = quantizer
        self._per_byte = 8 // (1 << math.ceil(math.log2(math.ceil(math.log2(len(quantizer.levels))))))
        self._compress = zstandard.ZstdCompressor(level=level).compress
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._base = 1 << 8 // self._per_byte
        digits = np.arange(256)[:, None] // self._base ** np.arange(self._per_byte) % self._base
        self._values = dequantize(np.minimum(digits, len(quantizer.levels) - 1).astype(np.uint8), quantizer)

    def encode(self, x: Floats) -> bytes:
        q = quantize(x, self._quantizer).reshape(-1)
        packed = np.empty(q.size // self._per_byte, np.uint8)
        kernels.pack(q, packed.size, self._base, 1, self._per_byte, np.empty_like(packed), packed)
        return self._compress(packed.tobytes())

    def decode(self, data: bytes) -> Floats:
        packed = np.frombuffer(self._decompress(data), np.uint8)
        out = np.empty(packed.size * self._per_byte, np.float32)
        word = np.dtype(np.uint64 if self._per_byte % 2 == 0 else np.uint32)
        units = self._per_byte * 4 // word.itemsize
        kernels.unpack(packed, packed.size, 1, units, self._values.view(word).reshape(-1), out.view(word))
        return out


class Zlib:
    """The simplest way: one byte per element, then zlib level 6."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def encode(self, x: Floats) -> bytes:
        return zlib.compress(quantize(x, self._quantizer).tobytes())

    def decode(self, data: bytes) -> Floats:
        return dequantize(np.frombuffer(zlib.decompress(data), np.uint8), self._quantizer)


class ConstrictionAns:
    """The per-symbol ANS coder of `constriction`. Its model is the tensor's histogram; the bytes do not include it."""

    def __init__(self, quantizer: Quantizer, x: Floats) -> None:
        self._quantizer, self._size = quantizer, x.size
        share = np.bincount(quantize(x, quantizer).reshape(-1), minlength=len(quantizer.levels)) / x.size
        self._model = constriction.stream.model.Categorical(np.maximum(share, 1e-6), perfect=False)

    def encode(self, x: Floats) -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(quantize(x, self._quantizer).reshape(-1).astype(np.int32), self._model)
        words: NDArray[np.uint32] = coder.get_compressed()
        return words.tobytes()

    def decode(self, data: bytes) -> Floats:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32))
        return dequantize(coder.decode(self._model, self._size).astype(np.uint8), self._quantizer)


def contenders(tensor: Tensor, op: str) -> dict[str, Contender]:
    """All coders by name, splitwire's first."""
    quantizer = tensor.profile.operating_points[tensor.profile.point_index(op)].tensors[0].quantizer
    return {
        OURS: Splitwire(FeatureCodec(tensor.profile), op),
        CONTEXT: Splitwire(FeatureCodec(tensor.context), op),
        BINARY: Splitwire(FeatureCodec(without_tables(tensor.context)), op),
        **{f"bit-pack + zstd {level}": BitPackZstd(quantizer, level) for level in (1, 3, 19)},
        "uint8 + zlib 6": Zlib(quantizer),
        "constriction ANS": ConstrictionAns(quantizer, tensor.features),
    }


def rows_for(tensor: Tensor) -> list[Row]:
    """Every coder at every operating point."""
    x, rows = tensor.features, []
    for point in tensor.profile.operating_points:
        coders = contenders(tensor, point.name)
        data = {name: c.encode(x) for name, c in coders.items()}
        expected = dequantize(quantize(x, point.tensors[0].quantizer), point.tensors[0].quantizer).reshape(-1)
        for name, c in coders.items():
            if not np.array_equal(c.decode(data[name]), expected):
                raise AssertionError(f"{name} does not decode to the same features")
        encode = medians({n: bind(c.encode, x) for n, c in coders.items()})
        decode = medians({n: bind(c.decode, data[n]) for n, c in coders.items()})
        single = {n: c for n, c in coders.items() if n != "constriction ANS"}  # its model fits the whole batch only
        first = {n: c.encode(x[:1]) for n, c in single.items()}
        encode_one = medians({n: bind(c.encode, x[:1]) for n, c in single.items()}, CALL_REPEATS)
        decode_one = medians({n: bind(c.decode, first[n]) for n, c in single.items()}, CALL_REPEATS)
        rows += [
            Row(
                tensor=tensor.name,
                elements=x.size,
                levels=len(point.tensors[0].quantizer.levels),
                coder=name,
                bytes=len(data[name]),
                encode_melem_s=x.size / encode[name] / 1e6,
                decode_melem_s=x.size / decode[name] / 1e6,
                encode_call_us=1e6 * (encode_one[name] - encode[name] / len(x)) if name in single else None,
                decode_call_us=1e6 * (decode_one[name] - decode[name] / len(x)) if name in single else None,
            )
            for name in coders
        ]
    return rows


def bind(call: Callable[[T], object], argument: T) -> Callable[[], object]:
    """The call with its argument, as a function without arguments."""
    return lambda: call(argument)


def table(rows: list[Row]) -> Table:
    """One line per row; bytes also relative to splitwire's on the same tensor at the same N."""
    out = Table(
        caption="Whole paths on one core; call: time for one image beyond that of its elements", caption_justify="left"
    )
    for name in ("tensor", "N", "coder"):
        out.add_column(name)
    for name in ("bytes", "bits/el", "× ours", "encode Mel/s", "decode Mel/s", "encode call µs", "decode call µs"):
        out.add_column(name, justify="right")
    ours = {(r.tensor, r.levels): r.bytes for r in rows if r.coder == OURS}
    for r in rows:
        best = r.coder == OURS
        calls = ("" if c is None else f"{c:.0f}" for c in (r.encode_call_us, r.decode_call_us))
        out.add_row(
            r.tensor, str(r.levels), r.coder, f"{r.bytes:,}", f"{8 * r.bytes / r.elements:.3f}",
            f"{r.bytes / ours[r.tensor, r.levels]:.2f}", f"{r.encode_melem_s:,.0f}", f"{r.decode_melem_s:,.0f}", *calls,
            style="bold" if best else None,
        )  # fmt: skip
    return out


PEERS = (BINARY, "bit-pack + zstd 3", "bit-pack + zstd 19")
"""The coders with which the sizes are compared."""


def sizes(rows: list[Row]) -> Table:
    """Bytes of splitwire's coders divided by those of PEERS."""
    out = Table(title="Bytes of splitwire divided by those of the peer", title_justify="left")
    out.add_column("tensor")
    for name in ("N", "coder", *PEERS):
        out.add_column(name, justify="right")
    byte_counts = {(r.tensor, r.levels, r.coder): r.bytes for r in rows}
    for (tensor, levels, coder), ours in byte_counts.items():
        if coder in (OURS, CONTEXT):
            ratios = (f"{ours / byte_counts[tensor, levels, peer]:.3f}" for peer in PEERS)
            out.add_row(tensor, str(levels), coder, *ratios)
    return out


def main() -> None:
    """Measure, print, write build/bench/codec.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for tensor in tensors():
        print(f"{tensor.name}: {tensor.features.size:,} elements")
        rows += rows_for(tensor)
        write_json(OUT / "codec.json", {"machine": machine(), "rows": rows})
    Console(width=140).print(table(rows), sizes(rows))


if __name__ == "__main__":
    main()
