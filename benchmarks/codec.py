"""The codec beside bit-pack + zstd, on the demo network's features: bytes, throughput, cost of a call.

Writes build/bench/codec.json (machine, rows) and prints the same as a table. One core; whole paths: encode is
float32 → frame, decode is frame → float32, checks and checksums included. The peer gets our own quantizer, bit-packer
and table look-up, compiled, so that only the entropy coders differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from msgspec import Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine, medians
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.kernels import quantize as kernels
from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.demo.fashion import to_inputs
from splitwire.demo.report import write_json
from splitwire.exporter.export import export_pair
from splitwire.models import demo
from splitwire.runtime_edge.graph import open_front

OUT = Path("build/bench")
BATCH = 64
ZSTD_LEVELS = (1, 3, 19)
Floats = NDArray[np.float32]


class Row(Struct, frozen=True, kw_only=True):
    """One coder on one tensor. bytes: of the whole batch, headers included.

    encode_melem_s, decode_melem_s: millions of elements per second at this batch. call_us: what an encode and a decode
    of one image cost beyond their elements at that throughput, µs.
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


class BitPackZstd:
    """What a careful user would do: level indices, ⌈log2 N⌉ bits rounded up to a divisor of 8 each, zstd."""

    def __init__(self, quantizer: Quantizer, level: int) -> None:
        self._quantizer = quantizer
        self._per_byte = 8 // (1 << math.ceil(math.log2(math.ceil(math.log2(len(quantizer.levels))))))
        self._compress = zstandard.ZstdCompressor(level=level).compress
        self._decompress = zstandard.ZstdDecompressor().decompress
        base = 1 << 8 // self._per_byte
        digits = np.arange(256)[:, None] // base ** np.arange(self._per_byte) % base
        self._base = base
        self._values = dequantize(np.minimum(digits, len(quantizer.levels) - 1).astype(np.uint8), quantizer)

    def encode(self, x: Floats) -> bytes:
        """float32 → bytes."""
        q = quantize(x, self._quantizer).reshape(-1)
        packed = np.empty(q.size // self._per_byte, np.uint8)
        kernels.pack(q, packed.size, self._base, 1, self._per_byte, np.empty_like(packed), packed)
        return self._compress(packed)

    def decode(self, data: bytes) -> Floats:
        """Bytes → float32."""
        packed = np.frombuffer(self._decompress(data), np.uint8)
        out = np.empty(packed.size * self._per_byte, np.float32)
        word = np.dtype(np.uint64 if self._per_byte % 2 == 0 else np.uint32)
        units = self._per_byte * 4 // word.itemsize
        kernels.unpack(packed, packed.size, 1, units, self._values.view(word).reshape(-1), out.view(word))
        return out


def demo_features() -> tuple[CodecProfile, Floats]:
    """The demo pair's profile and (BATCH, C, H, W) features of test images; exported once into build/bench."""
    folder = OUT / "demo"
    if not (folder / "front.onnx").is_file():
        export_pair(
            demo.load_network(), cut=demo.CUT, calibration=to_inputs(demo.calibration_set()), out=folder,
            preprocessing=demo.PREPROCESSING, name=demo.NAME,
        )  # fmt: skip
    front = open_front(folder / "front.onnx")
    return front.profile, front.run(to_inputs(demo.test_set()[0][:BATCH]))[0]


def rows_for(profile: CodecProfile, tensor: str, x: Floats) -> list[Row]:
    """Every coder at every operating point of a profile with one tensor."""
    codec = FeatureCodec(profile)
    rows = []
    for point in profile.operating_points:
        quantizer = point.tensors[0].quantizer
        encoders: dict[str, Callable[[Floats], bytes]] = {"splitwire": lambda a, p=point: codec.encode([a], op=p.name)}
        decoders: dict[str, Callable[[bytes], object]] = {"splitwire": codec.decode}
        for level in ZSTD_LEVELS:
            peer = BitPackZstd(quantizer, level)
            encoders[f"bit-pack + zstd {level}"], decoders[f"bit-pack + zstd {level}"] = peer.encode, peer.decode
        data = {name: encode(x) for name, encode in encoders.items()}
        single = {name: encode(x[:1]) for name, encode in encoders.items()}
        whole = codec.decode(data["splitwire"]).tensors[0].reshape(-1)
        for name, decode in decoders.items():
            if name != "splitwire" and not np.array_equal(decode(data[name]), whole):
                raise AssertionError(f"{name} does not decode to the same features")
        t_encode = medians({n: lambda f=f: f(x) for n, f in encoders.items()})
        t_decode = medians({n: lambda f=f, d=data[n]: f(d) for n, f in decoders.items()})
        one_encode = medians({n: lambda f=f: f(x[:1]) for n, f in encoders.items()}, 501)
        one_decode = medians({n: lambda f=f, d=single[n]: f(d) for n, f in decoders.items()}, 501)
        rows += [
            Row(
                tensor=tensor,
                elements=x.size,
                levels=len(quantizer.levels),
                coder=name,
                bytes=len(data[name]),
                encode_melem_s=x.size / t_encode[name] / 1e6,
                decode_melem_s=x.size / t_decode[name] / 1e6,
                encode_call_us=1e6 * (one_encode[name] - t_encode[name] / len(x)),
                decode_call_us=1e6 * (one_decode[name] - t_decode[name] / len(x)),
            )
            for name in encoders
        ]
    return rows


def table(rows: list[Row]) -> Table:
    """One line per row; bytes also relative to ours on the same tensor at the same N."""
    out = Table(
        caption="Whole paths on one core; call: what one image costs beyond its elements", caption_justify="left"
    )
    for name in ("tensor", "N", "coder"):
        out.add_column(name)
    for name in ("bytes", "bits/el", "× ours", "encode Mel/s", "decode Mel/s", "encode call µs", "decode call µs"):
        out.add_column(name, justify="right")
    ours = {(r.tensor, r.levels): r.bytes for r in rows if r.coder == "splitwire"}
    for r in rows:
        best = r.coder == "splitwire"
        calls = ("" if c is None else f"{c:.0f}" for c in (r.encode_call_us, r.decode_call_us))
        out.add_row(
            r.tensor, str(r.levels), r.coder, f"{r.bytes:,}", f"{8 * r.bytes / r.elements:.3f}",
            f"{r.bytes / ours[r.tensor, r.levels]:.2f}", f"{r.encode_melem_s:,.0f}", f"{r.decode_melem_s:,.0f}", *calls,
            style="bold" if best else None,
        )  # fmt: skip
    return out


def main() -> None:
    """Measure, print, write build/bench/codec.json."""
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    OUT.mkdir(parents=True, exist_ok=True)
    profile, features = demo_features()
    rows = rows_for(profile, f"demo {profile.cut}", features)
    write_json({"machine": machine(), "rows": rows}, OUT / "codec.json")
    Console(width=140).print(table(rows))


if __name__ == "__main__":
    main()
