"""What a child of the doctor does: `python -m splitwire.runtime_edge.doctor.probe onnxruntime|vectors|front …`.

It prints one JSON object as its last line. It may die: that is what it is for.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from splitwire.codec.errors import SplitwireError

DATA = "splitwire.runtime_edge"
VECTORS = "data/vectors.json"
TINY = "data/add.onnx"
RUNS = 15
SECONDS = 0.5
"""Each thing is timed at least three times, at most RUNS times, and for at most SECONDS where that is enough."""


def onnxruntime() -> dict[str, Any]:
    """Import ONNX Runtime and run an addition. The last step is marked on stderr, for a death without a message."""
    import numpy as np
    import onnxruntime as ort

    from splitwire.codec.shared.sessions import DEFAULT_PROVIDERS

    data = importlib.resources.files(DATA).joinpath(TINY).read_bytes()
    session = ort.InferenceSession(data, providers=list(DEFAULT_PROVIDERS))
    feed = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
    (y,) = session.run(None, feed)
    return {
        "version": ort.__version__,
        "providers": ort.get_available_providers(),
        "right": bool((y == len(feed)).all()),
    }


def vectors(*coders: str) -> dict[str, Any]:
    """Encode and decode the golden vectors of these coders, all if none is named, and compare every bit."""
    from splitwire.codec.kernels.compilation.policy import INTERPRETED, STORE

    every = msgspec.json.decode(importlib.resources.files(DATA).joinpath(VECTORS).read_bytes())
    chosen = [v for v in every if not coders or str(v["coder"]) in coders]
    start = time.perf_counter()
    wrong = [v["name"] for v in chosen if not is_right(v)]
    return {
        "vectors": len(chosen),
        "wrong": wrong,
        "folder": _folder(STORE.folder),
        "kernels": len(STORE.loaded),
        "compiled": sum(not one.cached for one in STORE.loaded),
        "kept": all(one.path for one in STORE.loaded),
        "interpreted": INTERPRETED,
        "seconds": time.perf_counter() - start,
    }


def is_right(vector: dict[str, Any]) -> bool:
    """Whether the codec encodes a vector to its frame and decodes the frame to its features, bit for bit."""
    import numpy as np

    from splitwire.codec.codec import FeatureCodec
    from splitwire.codec.profile import CodecProfile

    codec = FeatureCodec(CodecProfile.from_json(vector["profile"]))
    tensors = [np.frombuffer(_bytes(t["data"]), "<f4").reshape(t["shape"]) for t in vector["features"]]
    frame = _bytes(vector["frame"])
    try:
        made = codec.encode(
            [t.astype(np.float32) for t in tensors], op=vector["op"], frame_id=vector["frame_id"],
            sizes=[np.array(s, np.int64) for s in vector["sizes"]],
        )  # fmt: skip
        decoded = codec.decode(frame).tensors
    except SplitwireError:
        return False
    digests = [hashlib.sha256(t.astype("<f4").tobytes()).hexdigest() for t in decoded]
    return made == frame and digests == vector["decoded"]


def front(path: str, threads: str, provider: str) -> dict[str, Any]:
    """Open a front, warm it up, and time it and the encoder at every operating point. "" for no choice."""
    import numpy as np
    import onnxruntime as ort

    from splitwire.codec.codec import FeatureCodec
    from splitwire.codec.kernels.compilation.policy import STORE
    from splitwire.codec.shared.providers import full_name
    from splitwire.runtime_edge.graph import open_front

    start = time.perf_counter()
    names = [full_name(provider, ort.get_available_providers())] if provider else None
    graph = open_front(path, threads=int(threads) if threads else None, providers=names)
    graph.engine.wait_until_ready()
    opened = time.perf_counter()
    profile = graph.profile
    codec = FeatureCodec(profile)
    x = _smooth(graph.zeros())
    outputs = graph.run(x)
    points: list[dict[str, Any]] = []
    coders: set[int] = set()
    for point in profile.operating_points:
        frame = codec.encode(outputs.features, op=point.name, sizes=outputs.sizes)  # compiles what is missing
        coders |= _coders(profile, point)
        encode = partial(codec.encode, outputs.features, op=point.name, sizes=outputs.sizes)
        elements = sum(spec.feature_elements for spec in profile.tensors)
        points.append(
            {
                "op": point.name,
                "bits_per_element": point.bits_per_element,
                "frame_bytes": -(-int(elements * point.bits_per_element) // 8) + _around(frame, codec),
                "encode_ms": _milliseconds(encode),
            }
        )
    warm = time.perf_counter()
    return {
        "model": profile.model,
        "cut": profile.cut,
        "fingerprint": profile.fingerprint.hex(),
        "provider": graph.engine.provider,
        "passed_over": list(graph.engine.passed_over),
        "batch": int(np.shape(x)[0]),
        "open_s": opened - start,
        "warm_s": warm - opened,
        "front_ms": _milliseconds(lambda: graph.run(x)) / len(x),
        "points": points,
        "coders": sorted(coders),
        "folder": _folder(STORE.folder),
        "kernels": len(STORE.loaded),
        "compiled": sum(not one.cached for one in STORE.loaded),
        "kept": all(one.path for one in STORE.loaded),
    }


def _coders(profile: Any, point: Any) -> set[int]:
    from splitwire.codec.codec import TensorCoder

    if profile.is_transform:
        return {spec.transform.coder_id for spec in profile.tensors}
    return {TensorCoder.of(s, p).coder_id for s, p in zip(profile.tensors, point.tensors, strict=True)}


def _around(frame: bytes, codec: Any) -> int:
    """Bytes of a frame that are not the payload of its tensors."""
    from splitwire.codec.wire.frame import parse_frame

    return len(frame) - sum(len(chunk.payload) for chunk in parse_frame(frame, codec.limits).chunks)


def _smooth(zeros: Any) -> Any:
    """An input of this shape and type with large smooth areas, as a picture has, in the range of a normalised one."""
    import numpy as np

    rng = np.random.default_rng(0)
    if zeros.dtype == np.uint8:
        return rng.integers(0, 256, zeros.shape, dtype=np.uint8)
    coarse = rng.normal(size=tuple(-(-n // 16) if n > 16 else n for n in zeros.shape))
    for axis, n in enumerate(zeros.shape):
        if n > 16:
            coarse = np.repeat(coarse, 16, axis=axis).take(range(n), axis=axis)
    return (coarse + 0.05 * rng.normal(size=zeros.shape)).astype(zeros.dtype)


def _milliseconds(call: Callable[[], object]) -> float:
    """Median of a few runs."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < 3 or (len(taken) < RUNS and time.perf_counter() < until):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def _folder(folder: Callable[[], Path]) -> str:
    try:
        return str(folder())
    except (OSError, RuntimeError):
        return ""


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"onnxruntime": onnxruntime, "vectors": vectors, "front": front}


def main() -> int:
    """Run the probe that the command line names; 1, with the error as the last line on stderr, if it fails."""
    from splitwire.codec.shared.telemetry import set_variable

    set_variable()
    try:
        found = PROBES[sys.argv[1]](*sys.argv[2:])
    except (SplitwireError, ImportError) as e:
        print(str(e).splitlines()[0] if str(e) else type(e).__name__, file=sys.stderr)
        return 1
    print(msgspec.json.encode(found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
