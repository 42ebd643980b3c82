"""The reply format: what is written is read, and nothing else is."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwire.codec.errors import BadResponse, UnsupportedModel
from splitwire.codec.wire.reply import DTYPES, asks_for_checksum, decode_reply, encode_reply, with_checksum

TIMES: dict[str, Any] = {"frame_id": 3, "decode_ms": 0.5, "back_ms": 1.5}


def fields(**changes: Any) -> dict[str, Any]:
    output = {"name": "y", "dtype": "float32", "shape": [2, 3], "data": bytes(24)}
    output |= changes.pop("output", {})
    return {"version": 1, **TIMES, "outputs": [output]} | changes


def packed(**changes: Any) -> bytes:
    return msgspec.msgpack.encode(fields(**changes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (1, 2, 3, 4), (3, 0, 2)])
def test_round_trip(dtype: str, shape: tuple[int, ...]):
    array = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    reply = decode_reply(encode_reply({"a": array, "b": array}, **TIMES))
    assert list(reply.outputs) == ["a", "b"]
    for got in reply.outputs.values():
        assert got.dtype == array.dtype
        assert got.shape == shape
        assert got.flags.writeable
        np.testing.assert_array_equal(got, array)
    assert (reply.frame_id, reply.decode_ms, reply.back_ms) == (3, 0.5, 1.5)


def test_layout_and_byte_order_do_not_matter():
    a = np.arange(12, dtype=">f4").reshape(3, 4).T[::2]
    got = decode_reply(encode_reply({"a": a}, **TIMES)).outputs["a"]
    np.testing.assert_array_equal(got, a)
    assert got.dtype == np.float32


def test_the_format_is_a_plain_map():
    """As docs/runtime.md has it; any msgpack library reads it."""
    data = encode_reply({"y": np.array([[1.0, 2.0]], np.float32)}, **TIMES)
    assert msgspec.msgpack.decode(data) == {
        "version": 1,
        "frame_id": 3,
        "decode_ms": 0.5,
        "back_ms": 1.5,
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": b"\0\0\x80?\0\0\0@"}],
    }
    assert decode_reply(packed()).outputs["y"].shape == (2, 3)


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "datetime64[s]", "U4", object])
def test_other_element_types_cannot_be_sent(dtype: Any):
    with pytest.raises(UnsupportedModel, match=r"output 'y' is .*; a reply can carry bool, uint8"):
        encode_reply({"y": np.zeros(2, dtype)}, **TIMES)


REFUSED = {
    "nothing": (b"", "damaged"),
    "one byte more": (packed() + b"\0", "damaged"),
    "one byte less": (packed()[:-1], "damaged"),
    "another type": (msgspec.msgpack.encode([1, 2]), "damaged"),
    "a field more": (packed(extra=1), "damaged"),
    "a field of an output more": (packed(output={"extra": 1}), "damaged"),
    "a field less": (msgspec.msgpack.encode({"version": 1}), "damaged"),
    "no outputs": (packed(outputs=[]), "damaged"),
    "too many outputs": (packed(outputs=fields()["outputs"] * 256), "damaged"),
    "an output twice": (packed(outputs=fields()["outputs"] * 2), "holds output 'y' twice"),
    "version 2": (packed(version=2), "version 2, this splitwire reads 1"),
    "version 2 with other fields": (msgspec.msgpack.encode({"version": 2, "z": [1]}), "version 2, this splitwire"),
    "negative frame id": (packed(frame_id=-1), "damaged"),
    "negative time": (packed(decode_ms=-1.0), "damaged"),
    "no number": (packed(back_ms=float("nan")), ""),
    "infinite time": (packed(back_ms=float("inf")), "finite"),
    "unknown dtype": (packed(output={"dtype": "object"}), "has dtype 'object'; known are bool"),
    "bytes missing": (packed(output={"data": bytes(23)}), r"must have 24 bytes, has 23"),
    "bytes too many": (packed(output={"data": bytes(25)}), r"must have 24 bytes, has 25"),
    "huge shape": (packed(output={"shape": [1 << 31, 1 << 31, 1 << 31]}), "bytes, has 24"),
    "shape that overflows to fit": (packed(output={"shape": [1 << 31, 1 << 31, 4], "data": b""}), "bytes, has 0"),
    "negative shape": (packed(output={"shape": [-2, -3]}), "damaged"),
    "too many axes": (packed(output={"shape": [1] * 33, "data": bytes(4)}), "damaged"),
    "text for bytes": (packed(output={"data": "x" * 24}), ""),
    "half true": (packed(output={"dtype": "bool", "shape": [2], "data": b"\1\2"}), "bytes other than 0 and 1"),
    "nested for ever": (b"\x91" * 200_000, "damaged"),
    "nested in an unknown field": (b"\x82\xa1a" + b"\x91" * 200_000, "damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused(kind: str):
    data, words = REFUSED[kind]
    with pytest.raises(BadResponse) as caught:
        decode_reply(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_length_in_the_reply_allocates_nothing():
    tracemalloc.start()
    try:
        for shape in ([1 << 31], [1 << 20, 1 << 20]):
            with pytest.raises(BadResponse):
                decode_reply(packed(output={"shape": shape}))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=512))
def test_decoding_is_total(data: bytes):
    with contextlib.suppress(BadResponse):
        decode_reply(data)


@given(st.integers(0, len(packed()) - 1), st.integers(1, 255))
def test_decoding_a_damaged_reply_is_total(at: int, flip: int):
    data = bytearray(packed())
    data[at] ^= flip
    with contextlib.suppress(BadResponse):
        decode_reply(bytes(data))


# ------------------------------------------------------------------ version 2: with a checksum

GOLDEN_1 = bytes.fromhex(
    "85a776657273696f6e01a86672616d655f696403a96465636f64655f6d73cb3fe0000000000000a76261636b5f6d73cb3ff8000000000000"
    "a76f7574707574739184a46e616d65a179a56474797065a7666c6f61743332a5736861706592"
    "0102a464617461c4080000803f00000040"
)
GOLDEN_2 = bytes.fromhex("02da0a77fb") + GOLDEN_1
"""Written once: {"y": [[1.0, 2.0]]} in float32, frame 3, 0.5 and 1.5 ms."""


def test_golden_bytes():
    y = np.array([[1.0, 2.0]], np.float32)
    assert encode_reply({"y": y}, **TIMES) == GOLDEN_1
    assert with_checksum(GOLDEN_1) == GOLDEN_2
    for golden in (GOLDEN_1, GOLDEN_2):
        reply = decode_reply(golden)
        assert reply.frame_id == 3
        np.testing.assert_array_equal(reply.outputs["y"], y)


def test_every_flipped_bit_of_version_2_is_noticed():
    """Of version 1, a fifth of the flips gave other values and no error."""
    silent = 0
    for golden in (GOLDEN_1, GOLDEN_2):
        for i in range(8 * len(golden)):
            data = bytearray(golden)
            data[i // 8] ^= 1 << i % 8
            if golden is GOLDEN_2:
                with pytest.raises(BadResponse, match="reply"):
                    decode_reply(bytes(data))
            else:
                with contextlib.suppress(BadResponse):
                    decode_reply(bytes(data))
                    silent += 1
    assert silent > 8 * len(GOLDEN_1) // 10  # so the test can fail


@given(st.binary(max_size=64))
def test_decoding_version_2_is_total(data: bytes):
    for damaged in (b"\x02" + data, with_checksum(data)):
        with contextlib.suppress(BadResponse):
            decode_reply(damaged)


def test_who_asks_for_version_2():
    for yes in ("application/vnd.splitwire.frame;r=2", "*/*;r=2", "a/b; q=1 ; r=2", "a/b;r=3", "a/b;r=17, c/d"):
        assert asks_for_checksum(yes)
    for no in ("", "application/vnd.splitwire.frame", "a/b;r=1", "a/b;rr=2", "a/b;r=2.5", "r=2", "a/b;r=", "a/b; v=2"):
        assert not asks_for_checksum(no)
