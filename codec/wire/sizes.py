"""Vectors of sizes beside the tensors: short, and sent uncompressed (docs/bitstream.md, coder id 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, ShapeMismatch
from splitwire.codec.profile import MAX_DIM, SizeSpec

from .frame import Chunk

Int64Array = NDArray[np.int64]

CODER_ID = 3


def encode_sizes(sizes: Sequence[Int64Array], specs: Sequence[SizeSpec], first: int) -> list[Chunk]:
    """Encode each vector as one chunk. first: the tensor index of the first chunk. Raises ShapeMismatch."""
    if len(sizes) != len(specs):
        raise ShapeMismatch(f"expected {len(specs)} vectors of sizes, got {len(sizes)}")
    chunks = []
    for i, (spec, values) in enumerate(zip(specs, sizes, strict=True)):
        if values.dtype != np.int64 or values.shape != (spec.length,) or values.min() < 0 or values.max() > MAX_DIM:
            raise ShapeMismatch(
                f"sizes {spec.name!r} must be {spec.length} int64 from 0 to {MAX_DIM}, are {values.dtype} of shape"
                f" {values.shape}"
            )
        payload = values.astype("<i8").tobytes()
        chunks.append(Chunk(tensor=first + i, coder=CODER_ID, lanes=1, planes=1, payload=payload))
    return chunks


def decode_sizes(chunks: Sequence[Chunk], specs: Sequence[SizeSpec], first: int) -> list[Int64Array]:
    """Decode the vectors from the chunks after those of the tensors. first: the tensor index of the first chunk.

    Raises Corrupt if a vector is missing, repeated, out of order, of another length, out of range, or damaged. Damaged
    sizes cannot be concealed.
    """
    if [c.tensor for c in chunks] != list(range(first, first + len(specs))):
        raise Corrupt(f"the last chunks are not the {len(specs)} vectors of sizes of the profile, in order")
    found = []
    for chunk, spec in zip(chunks, specs, strict=True):
        valid = (chunk.coder, chunk.lanes, chunk.planes, len(chunk.payload)) == (CODER_ID, 1, 1, 8 * spec.length)
        if not valid or chunk.damaged:
            raise Corrupt(f"the chunk of sizes {spec.name!r} is damaged or is not {spec.length} integers")
        values = np.frombuffer(chunk.payload, "<i8").astype(np.int64)
        if values.min() < 0 or values.max() > MAX_DIM:
            raise Corrupt(f"sizes {spec.name!r} must be from 0 to {MAX_DIM}")
        found.append(values)
    return found
