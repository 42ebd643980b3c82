"""Counting for the exporter: histograms of features, symbols per context. No coder uses these kernels."""

from __future__ import annotations

import numpy as np

from .ans import ONE, ZERO
from .compilation.policy import kernel
from .rans import EDGE


@kernel
def histogram(x, radius, counts):
    """Add x to `counts`, equal bins over [−radius, radius); exact zeros are left out and returned as a number.

    x: (n,) float32, finite, |x| ≤ radius (the upper end falls into the last bin). counts: (bins,) int64.
    """
    bins = counts.size
    scale = bins / (2.0 * radius)
    zeros = 0
    for i in range(x.size):
        v = x[i]
        if v == 0:
            zeros += 1
        else:
            counts[min(max(int((v + radius) * scale), 0), bins - 1)] += 1
    return zeros


@kernel
def count_contexts(symbols, rows, cols, plane_context, top, left, counts):
    """counts[context, symbol] += 1 for every block, with the contexts of kernels/rans.py.

    counts: (contexts, K) int64; the other arguments as in `rans.encode`.
    """
    size = np.uint64(rows * cols)
    for p in range(symbols.size // (rows * cols)):
        first = np.uint64(p) * size
        base = plane_context[p]
        for r in range(rows):
            t_edge = EDGE if r == 0 else ZERO
            t_back = ZERO if r == 0 else np.uint64(cols)
            for c in range(cols):
                l_edge = EDGE if c == 0 else ZERO
                l_back = ZERO if c == 0 else ONE
                i = first + np.uint64(r * cols + c)
                above = top[t_edge | np.uint64(symbols[i - t_back])]
                before = left[l_edge | np.uint64(symbols[i - l_back])]
                counts[base + above + before, np.uint64(symbols[i])] += 1
