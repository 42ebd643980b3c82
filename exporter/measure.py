"""What each operating point costs the task: the back half on quantized features against the whole network.

The inputs are a sample of the calibration's: a quantizer has a handful of numbers, estimated from millions of
elements, so that there is nothing to overfit; the entropy coder is lossless and need not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitwire.codec.profile import OperatingPoint
from splitwire.codec.quantizer import dequantize, quantize

from .calibrate import BATCH, Progress, run_padded
from .inference import Float32Array, Graph

MIN_AGREEMENT = 0.985
"""The default operating point is the cheapest whose Top-1 class agrees with the whole network's on this share of the
inputs. Where it disagrees the whole network is often wrong itself, so that 1.5 % of changed answers cost well under
1 point of accuracy, the loss that Cohen et al. 2021 allow themselves."""

MAX_ERROR = 0.1
"""The same for outputs that are not logits: the relative error ‖ŷ − y‖ / ‖y‖. A rule of thumb; no task is known."""


@dataclass(frozen=True, kw_only=True)
class PointMeasure:
    """One operating point on the kept inputs. Exactly one of the two figures is set.

    agreement: share of inputs with the whole network's Top-1 class, in [0, 1], where the output is (B, K) logits.
    relative_error: ‖ŷ − y‖ / ‖y‖ over all inputs, otherwise.
    """

    op: str
    inputs: int
    agreement: float | None = None
    relative_error: float | None = None

    @property
    def good(self) -> bool:
        """Whether the point is good enough for a default."""
        if self.agreement is not None:
            return self.agreement >= MIN_AGREEMENT
        return self.relative_error is not None and self.relative_error <= MAX_ERROR

    @property
    def loss(self) -> float:
        """For sorting: smaller is better."""
        return 1.0 - self.agreement if self.agreement is not None else float(self.relative_error or 0.0)


def measure_points(
    front: Graph, back: Graph, points: Sequence[OperatingPoint], kept: list[Float32Array], progress: Progress
) -> list[PointMeasure]:
    """Measure every point on the kept inputs; the reference is the back half on the features as they are.

    (That this equals the whole network was verified before; verify.py.)
    """
    agreeing = np.zeros(len(points), dtype=np.int64)
    errors = np.zeros(len(points))
    energy = 0.0
    logits = False
    for start in range(0, len(kept), front.batch or BATCH):
        batch = np.stack(kept[start : start + (front.batch or BATCH)])
        features = run_padded(front, batch)[0]
        reference = run_padded(back, features)[0]
        logits = reference.ndim == 2 and reference.shape[1] > 1
        energy += float(np.square(reference, dtype=np.float64).sum())
        for i, point in enumerate(points):
            quantizer = point.tensors[0].quantizer
            output = run_padded(back, dequantize(quantize(features, quantizer), quantizer))[0]
            errors[i] += float(np.square(output - reference, dtype=np.float64).sum())
            if logits:
                agreeing[i] += int((output.argmax(axis=1) == reference.argmax(axis=1)).sum())
        progress("Measure operating points", start + len(batch), len(kept))
    n = len(kept)
    if logits:
        return [PointMeasure(op=p.name, inputs=n, agreement=int(a) / n) for p, a in zip(points, agreeing, strict=True)]
    relative = np.sqrt(errors / max(energy, 1e-30))
    return [PointMeasure(op=p.name, inputs=n, relative_error=float(e)) for p, e in zip(points, relative, strict=True)]


def choose_default(points: Sequence[OperatingPoint], measures: Sequence[PointMeasure]) -> str:
    """Name of the cheapest point that is good enough; if none is, of the best."""
    both = list(zip(points, measures, strict=True))
    good = [(p, m) for p, m in both if m.good]
    if good:
        return min(good, key=lambda pm: pm[0].bits_per_element)[0].name
    return min(both, key=lambda pm: (pm[1].loss, pm[0].bits_per_element))[0].name
