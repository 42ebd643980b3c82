"""Do the images of a batch influence each other? Batch norm in training mode, a standardisation over the whole batch.

The calibration runs images in batches, the edge one by one, a server as many as wait: such a network would answer each
time otherwise. Found by running the same images alone and together.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from splitwire.codec.errors import UnsupportedModel

from .inference import Array, Graph, InputType, noise

TOLERANCE = 1e-3
"""Largest difference that an image may make to another, as a share of the output's largest magnitude. Both runs have
the same kernels on the same shapes, so that images apart differ by nothing at all."""

SPREAD = (0.25, 1.0, 4.0)
"""Scales of the images that are tried: what standardises or takes a largest value over the batch must notice."""


def mixes_images(model: ir.Model, shape: tuple[int, ...], dtype: InputType) -> bool:
    """Whether an output of one image depends on the others of its batch.

    model: of a dynamic batch, every output with the batch first. shape: of one input, (1, …).
    Each image is run in a batch with others, and at the same place in a batch of its own copies: the same kernels run
    on the same shapes, so that rounding is the same, and no choice by a last digit (suppression of boxes, a top k)
    tips over. False where the network does not run.
    """
    x = noise((len(SPREAD), *shape[1:]), dtype, np.random.default_rng(0))
    scale = np.array(SPREAD, np.float32).reshape(-1, *[1] * (len(shape) - 1))
    x = (x * scale).clip(0, 255).astype(x.dtype) if dtype == "uint8" else (x * scale).astype(x.dtype)
    try:
        graph = Graph.of(model, what="network", brief=True)
        together = graph.run(x)
        for i in (0, len(x) - 1):
            copies = graph.run(np.repeat(x[i : i + 1], len(x), axis=0))
            if any(_differ(a, b, i) for a, b in zip(together, copies, strict=True)):
                return True
    except UnsupportedModel:
        pass
    return False


def _differ(a: Array, b: Array, i: int) -> bool:
    """Whether row i is another; False for outputs with as many elements as the data says."""
    if a.shape != b.shape or not a.ndim or a.dtype.kind not in "fiub":
        return False
    one, other = a[i].astype(np.float64), b[i].astype(np.float64)
    scale = np.abs(other[np.isfinite(other)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(one - other) > TOLERANCE * scale).any())


def one_by_one(graph: ir.Graph, batch: int) -> str:
    """What becomes of single pictures where the batch is fixed at more than one."""
    loose = [v.name for v in graph.outputs if v.shape is None or not len(v.shape) or v.shape[0] != batch]
    if loose:
        return (
            f"pictures cannot be run one by one: the output {loose[0]!r} does not have one row for each of the"
            f" {batch} of a batch; give infer() {batch} at a time"
        )
    return f"a picture alone is filled up to {batch} with copies of itself, and costs as much as {batch}"
