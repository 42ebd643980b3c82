"""The one compile policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(fn: F) -> F:
    """Compile `fn` with Numba. Both ends must produce the same bits: no fastmath, no parallel reductions.

    The compiled code is cached on disk; where no cache folder is writable the kernel still works and is compiled anew
    in each process.
    """
    options = {"nogil": True, "fastmath": False, "error_model": "numpy", "boundscheck": False}
    try:
        return cast(F, numba.njit(cache=True, **options)(fn))
    except RuntimeError:  # numba finds no writable place for its cache
        return cast(F, numba.njit(**options)(fn))
