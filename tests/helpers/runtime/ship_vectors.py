"""Write runtime_edge/data/vectors.json, the golden vectors that the doctor checks on a device.

    python tests/helpers/runtime/ship_vectors.py

One small vector for each coder and each layout of the predictive one, as in tests/vectors; tests/edge/doctor compares
the file with what this script makes.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS))

import msgspec  # noqa: E402 - the folder of the vectors has to be on the path first
import vectors  # noqa: E402 - as above

FILE = TESTS.parent / "runtime_edge" / "data" / "vectors.json"
SHIPPED = {
    "short-n2": 1,
    "short-binary-n3": 2,
    "sizes": 3,
    "predicted-planes-n2": 4,
    "predicted-n4": 4,
    "transform-escapes": 5,
    "terse-escapes": 6,
}
"""Name → the coder that it is there for."""


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def document() -> bytes:
    entries = []
    for name, coder in SHIPPED.items():
        v = vectors.load(name)
        features = [{"shape": list(t.shape), "data": text(t.astype("<f4").tobytes())} for t in v.features]
        entries.append(
            {
                "name": name, "coder": coder, "op": v.op, "frame_id": v.frame_id, "profile": v.profile,
                "features": features, "sizes": [s.tolist() for s in v.sizes], "frame": text(v.frame),
                "decoded": v.decoded,
            }
        )  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(entries), indent=1) + b"\n"


if __name__ == "__main__":
    FILE.write_bytes(document())
