"""How many threads torch has for the design of a transform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEW_ELEMENTS = 8192
FEW_BYTES = 16 << 20
"""Up to this number of features of one image, and of bytes of the back half's weights, one thread does the work."""


@contextmanager
def threads_for(elements: int, weight_bytes: int) -> Iterator[None]:
    """One thread of torch for small tensors and a small back half, all threads else; afterwards as before.

    elements: features of one image. weight_bytes: of the back half. Several threads wait for each other, spinning, for
    longer than such operations take: the demo's refinement takes 5 CPU seconds on one thread, and up to 109 on the two
    of a busy machine.
    """
    usual = torch.get_num_threads()
    if elements <= FEW_ELEMENTS and weight_bytes <= FEW_BYTES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
