"""Sizes beside the tensors: short vectors of integers, sent as they are (docs/bitstream.md, coder id 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import Corrupt, ShapeMismatch
from .frame import Chunk
from .profile import MAX_DIM, SizeSpec

Int64Array = NDArray[np.int64]

CODER_ID = 3


def encode_sizes(sizes: Sequence[Int64Array], specs: Sequence[SizeSpec], first: int) -> list[Chunk]:
    """One chunk per vector. first: the tensor index of the first. Raises ShapeMismatch."""
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
    """The vectors in the chunks behind those of the tensors. first: as above.

    Raises Corrupt: a vector is missing, out of order or there twice, of another length, out of range, or damaged
    (there is nothing to conceal a size with).
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
