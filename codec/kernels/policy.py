"""The one compile policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(fn: F) -> F:
    """Compile `fn` with Numba. Both ends must produce the same bits: no fastmath, no parallel reductions.

    The compiled code is cached on disk; where no cache folder is writable the kernel still works and is compiled anew
    in each process.
    """
    compiler = partial(numba.njit, nogil=True, fastmath=False, error_model="numpy", boundscheck=False)
    try:
        return cast(F, compiler(cache=True)(fn))
    except RuntimeError:  # numba finds no writable place for its cache
        return cast(F, compiler()(fn))
