"""Find out whether the images of a batch influence each other (batch norm in training mode, scaling over the batch).

The calibration runs images in batches, the edge one by one, and a server all that wait. A network of this kind would
answer differently each time. To find it, the same images run alone and together.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from splitwire.codec.errors import UnsupportedModel

from .inference import Array, Graph, InputType, noise

TOLERANCE = 1e-3
"""Largest difference that counts as no influence, as a share of the output's largest magnitude. Both runs use the same
kernels on the same shapes, so independent images give exactly equal outputs."""

SPREAD = (0.25, 1.0, 4.0)
"""Scales of the test images. A network that normalises over the batch gives other outputs for other scales."""


def mixes_images(model: ir.Model, shape: tuple[int, ...], dtype: InputType) -> bool:
    """Whether an output of one image depends on the others of its batch.

    model: with a dynamic batch; the batch is the first axis of every output. shape: of one input, (1, …).
    Each image runs in a batch with others, and at the same position in a batch of its copies. Both runs use the same
    kernels on the same shapes, so the rounding is the same, and selections (suppression of boxes, top k) do not change
    because of a last digit. Returns False if the network does not run.
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
    """Whether row i of the outputs differs. False if the shapes differ: then the size depends on the data."""
    if a.shape != b.shape or not a.ndim or a.dtype.kind not in "fiub":
        return False
    one, other = a[i].astype(np.float64), b[i].astype(np.float64)
    scale = np.abs(other[np.isfinite(other)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(one - other) > TOLERANCE * scale).any())


def one_by_one(graph: ir.Graph, batch: int) -> str:
    """A note on single pictures, for a network with a fixed batch of more than one."""
    loose = [v.name for v in graph.outputs if v.shape is None or not len(v.shape) or v.shape[0] != batch]
    if loose:
        return (
            f"pictures cannot be run one by one: the output {loose[0]!r} does not have one row for each of the"
            f" {batch} of a batch; give infer() {batch} at a time"
        )
    return f"a picture alone is filled up to {batch} with copies of itself, and costs as much as {batch}"
