"""The likeliest classes, where the network is a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitwire.codec.reply import Outputs


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One class of the top k. probability: in [0, 1]."""

    label: str
    index: int
    probability: float


def top_classes(outputs: Outputs, labels: Sequence[str] | None, k: int) -> list[Guess]:
    """The k likeliest classes of the first (1, K) output; none if the network is no classifier.

    Softmax is taken where the values are not probabilities already.
    """
    scores = next((a for a in outputs.values() if a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f"), None)
    if scores is None:
        return []
    p = scores[0].astype(np.float64)
    if p.min() < 0 or abs(p.sum() - 1) > 1e-3:
        p = np.exp(p - p.max())
        p /= p.sum()
    named = labels if labels is not None and len(labels) == p.size else None
    order = np.argsort(-p, kind="stable")[:k]
    return [
        Guess(label=named[i] if named else f"class {i}", index=int(i), probability=float(p[i])) for i in order.tolist()
    ]
