"""Golden vectors: what every later version decodes to the same features. `make_vectors.py` makes new ones.

A vector is four things: NAME.profile.json, NAME.features.npz (t0, t1, …: float32 with the batch; s0, s1, …: sizes,
int64), NAME.frame, and its entry in manifest.json with the SHA-256 of the other three and of each decoded tensor
(float32, little-endian, C order).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile
from splitwire.codec.transform import Transform
from splitwire.codec.wire.frame import parse_frame

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"
SUFFIXES = {"profile": ".profile.json", "features": ".features.npz", "frame": ".frame"}

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Vector:
    """about: what it is there for. encoded: the encoder makes these chunks; otherwise they only have to be decoded.
    escapes: how many symbols its tables have no room for. decoded: SHA-256 of each tensor that decoding gives.
    """

    name: str
    about: str
    op: str
    frame_id: int
    encoded: bool
    escapes: int
    profile: str
    features: list[Float32Array]
    sizes: list[NDArray[np.int64]]
    frame: bytes
    decoded: list[str]


def names() -> list[str]:
    """In the manifest's order. No manifest is an error."""
    return list(_manifest())


def load(name: str) -> Vector:
    """Read a vector; a file that is missing or not the one in the manifest is an error."""
    entry = _manifest()[name]
    files = {part: (FOLDER / (name + suffix)).read_bytes() for part, suffix in SUFFIXES.items()}
    for part, data in files.items():
        if hashlib.sha256(data).hexdigest() != entry["files"][part]:
            raise ValueError(f"golden vector {name}{SUFFIXES[part]} is not the file that the manifest names")
    with np.load(FOLDER / (name + SUFFIXES["features"]), allow_pickle=False) as archive:
        features, sizes = ([archive[k] for k in archive.files if k[0] == kind] for kind in "ts")
    known = {key: entry[key] for key in ("about", "op", "frame_id", "encoded", "escapes", "decoded")}
    return Vector(
        name=name, profile=files["profile"].decode(), features=features, sizes=sizes, frame=files["frame"], **known
    )  # fmt: skip


def is_long(frame: bytes) -> bool:
    """Whether it has a chunk table (docs/bitstream.md §1)."""
    return frame[0] < 128 and frame[6] == 0


def is_made_as(golden: bytes, encoded: bytes) -> bool:
    """Whether the encoder makes the golden frame. Before version 1.1 it sent a single chunk in a long frame too: of
    such a one the fields that both forms have, and the payload, must be the same.
    """
    if is_long(golden) and not is_long(encoded):
        return encoded[7:24] + encoded[28:] == golden[7:22] + golden[25:27] + golden[44:]
    return encoded == golden


def chunk_table(frame: bytes, usual_coder: int) -> list[tuple[int, int, int, int | None, int | None]]:
    """(tensor, coder, lanes, planes, step) of each chunk (docs/bitstream.md §2); None where the frame does not say:
    planes in a short or compact one, and the step index of other coders than 5 and 6; in coder 6, of the operating
    point's. usual_coder: that of the operating point, which a compact frame may not name."""
    if frame[0] > 127:
        parsed = parse_frame(frame).chunks[0]
        coder = usual_coder if parsed.coder is None else parsed.coder
        return [(0, coder, parsed.lanes, None, _step(coder, parsed.lanes, bytes(parsed.payload)))]
    if not is_long(frame):
        return [(0, frame[22], frame[23], None, _step(frame[22], frame[23], frame[28:]))]
    count = int.from_bytes(frame[22:24], "little")
    start, found = 28 + 16 * count, list[tuple[int, int, int, int | None, int | None]]()
    for entry in (frame[24 + 16 * i : 40 + 16 * i] for i in range(count)):
        end = start + int.from_bytes(entry[8:12], "little")
        step = _step(entry[1], entry[2], frame[start:end])
        found.append((entry[0], entry[1], entry[2], int.from_bytes(entry[4:8], "little"), step))
        start = end
    return found


def coder_of(profile: CodecProfile) -> int:
    """The coder of the first tensor of a vector's profile, at the operating point that the vectors use."""
    if isinstance(transform := profile.tensors[0].transform, Transform):
        return transform.coder_id
    point = profile.operating_points[profile.point_index("used")].tensors[0]
    return {"predictive": 4, "context": 1, "binary": 2}[point.coder]


def steps_of(frame: bytes, tensor: int, usual: int, usual_coder: int) -> set[int]:
    """The step indices of a tensor's chunks of coefficients. usual, usual_coder: the operating point's."""
    return {usual if step is None else step for of, *_, step in chunk_table(frame, usual_coder) if of == tensor}


def _step(coder: int, lanes: int, payload: bytes) -> int | None:
    """The step index that a payload names, by docs/bitstream.md §7; any bytes will do."""
    if coder == 5:
        return payload[0] if payload else None
    if coder != 6:
        return None
    odd = len(payload) % 2 if lanes == 1 else 0
    first = int.from_bytes(payload[: 2 - odd], "little")
    only = lanes == 1 and (first >= 1 << 15 or len(payload) <= 2 - odd)
    slot = (first if only else int.from_bytes(payload[2 - odd : 4 - odd], "little")) % 4096
    return None if slot < 3968 else slot - 3968


def digest(x: Float32Array) -> str:
    """SHA-256 of a tensor's float32 bytes, little-endian, in C order."""
    return hashlib.sha256(np.ascontiguousarray(x, "<f4").tobytes()).hexdigest()


def _manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MANIFEST.read_text())
    return found
