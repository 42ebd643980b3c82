"""At load: may frames of this model run together, and what does a run of the back cost by its batch size?

Some backs must not be batched. One takes a single batch size. Another returns an output without a batch axis, such as
the boxes of a detector for the image size that crosses the cut. Another mixes the images of a batch. So two frames run
together and alone, and the outputs are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.providers import TENSORRT
from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_cloud.admission import MAX_BATCH
from splitwire.runtime_cloud.session import BatchCosts, CloudSession

RUNS = 5
"""Runs of each batch size; the fastest counts, because other programs make a run slower and never faster."""
SECONDS = 1.0
"""Sizes are measured until this time is over."""
GAIN = 0.95
"""A batch of twice the size is worth it if an image costs at most this part of what it costs in the smaller one."""
HANDOVER_S = 30e-6
"""What one run costs beside the back: a thread takes it, the event loop hears of its end. An estimate: it only decides
which batch sizes pay."""
TOLERANCE = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-4}
"""Largest difference between an image's outputs in a batch and alone, as part of the output's largest magnitude. The
kernels of a batch add in another order. Outputs of other types must be equal."""


def prepare(session: CloudSession) -> None:
    """Make a model ready to serve, in any thread: compile the kernels, run it once, measure what it costs."""
    session.warm_up()
    session.costs = measure(session)


def measure(session: CloudSession) -> BatchCosts:
    """Run the back on batches of random features; see BatchCosts. The session must be warm.

    Takes about a second at most, more if one run takes longer.
    """
    frame = session.random_frame(0)
    begun = time.perf_counter()
    decoded = session.decode(frame)
    decode_s = time.perf_counter() - begun
    for _ in range(RUNS - 1):
        begun = time.perf_counter()
        session.decode(frame)
        decode_s = min(decode_s, time.perf_counter() - begun)
    first = decoded.tensors
    if decoded.batch != 1:
        return _alone(session, first, decode_s, f"it takes a batch of {decoded.batch} and no other")
    if decoded.sizes:
        return _alone(session, first, decode_s, "sizes cross the cut, and each frame has its own")
    if session.provider == TENSORRT:  # it builds an engine for the shapes it has seen: this covers all of them
        with suppress(Exception):  # it takes no batches, which the comparison says below
            session.run_back([np.concatenate([x] * MAX_BATCH) for x in first])
    second = session.decode(session.random_frame(1)).tensors
    reason = mixes(session, first, second)
    if reason:
        return _alone(session, first, decode_s, reason)
    seconds = [_fastest(session, first)]
    end = time.perf_counter() + SECONDS
    size, largest = 2, 1
    while size <= MAX_BATCH and time.perf_counter() < end:
        took = _fastest(session, [np.concatenate([x] * size) for x in first])
        seconds.append(took)
        if (took + HANDOVER_S) / size > GAIN * (seconds[-2] + HANDOVER_S) / (size // 2):
            break
        largest = size
        size *= 2
    return BatchCosts(decode_s=decode_s, back_s=tuple(seconds), largest=largest, reason="")


def mixes(session: CloudSession, first: Sequence[NDArray[np.float32]], second: Sequence[NDArray[np.float32]]) -> str:
    """Why frames of this model must not run together; "" if they may."""
    try:
        alone = [session.run_back(first), session.run_back(second)]
        together = session.run_back([np.concatenate(pair) for pair in zip(first, second, strict=True)])
    except SplitwireError as e:
        return str(e)
    except Exception as e:  # ONNX Runtime's exceptions share no base class below this: it takes no batch of two
        return (str(e).splitlines() or [type(e).__name__])[0]
    return next((why for name, values in together.items() if (why := _differs(name, values, alone))), "")


def _differs(name: str, together: NDArray[np.generic], alone: Sequence[Outputs]) -> str:
    each = [outputs[name] for outputs in alone]
    if any(values.ndim == 0 or len(values) != 1 for values in each) or together.shape != (2, *each[0].shape[1:]):
        return f"output {name!r} has no batch axis"
    expected = np.concatenate(each)
    tolerance = TOLERANCE.get(expected.dtype)
    if tolerance is None:
        same = np.array_equal(together, expected)
    else:
        scale = float(np.max(np.abs(expected), initial=0.0))
        same = np.allclose(together, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)
    return "" if same else f"output {name!r} of an image depends on the images beside it"


def _alone(session: CloudSession, tensors: Sequence[NDArray[np.float32]], decode_s: float, reason: str) -> BatchCosts:
    """The costs of a model whose frames run one by one."""
    try:
        back_s: tuple[float, ...] = (_fastest(session, tensors),)
    except SplitwireError:  # made-up sizes, which this back refuses
        back_s = ()
    return BatchCosts(decode_s=decode_s, back_s=back_s, largest=1, reason=reason)


def _fastest(session: CloudSession, tensors: Sequence[NDArray[np.float32]]) -> float:
    best = float("inf")
    for _ in range(RUNS):
        begun = time.perf_counter()
        session.run_back(tensors)
        took = time.perf_counter() - begun
        best = min(best, took)
        if took > SECONDS / RUNS:
            break
    return best
