"""The compile policy of all kernels, and their cache on disk (cache.py)."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba

from .cache import KernelStore, Loaded

F = TypeVar("F", bound=Callable[..., object])

STORE = KernelStore(f"numba{numba.__version__}", getattr(numba.config, "CACHE_DIR", ""))
"""The store of compiled kernels of this process."""

INTERPRETED = bool(getattr(numba.config, "DISABLE_JIT", 0))
"""Whether kernels run as plain Python in this process (NUMBA_DISABLE_JIT)."""

LIGHT_START = (0, 61) <= numba.version_info.short <= (0, 68)


def kernel(fn: F) -> F:
    """Decorator: compile `fn` with Numba when it is first called.

    Both ends must produce the same bits, so there is no fastmath and no parallel reduction. The compiled code is cached
    on disk. Where no cache folder is writable, each process compiles the kernel again.
    """
    made = numba.njit(nogil=True, fastmath=False, error_model="numpy", boundscheck=False)(fn)
    # Numba has no public way to choose a cache folder for one library; its settings hold for all libraries in the
    # process. Since 0.17 the attribute `_cache` takes any object with the five methods below. Without `_cache`, Numba's
    # built-in cache is used, in the folder that it chooses. (NUMBA_DISABLE_JIT: `made` is `fn`, without either.)
    if hasattr(made, "_cache"):
        made._cache = KernelCache(fn)
    elif hasattr(made, "enable_caching"):
        with suppress(RuntimeError):  # Numba found no cache folder
            made.enable_caching()
    return cast(F, made)


class KernelCache:
    """The cache of one kernel: a Numba dispatcher loads from it before it compiles, and saves to it afterwards.

    Numba holds its compiler lock during both calls.
    """

    def __init__(self, fn: Callable[..., object]) -> None:
        self._kernel = f"{fn.__module__.rpartition('.')[2]}.{fn.__qualname__}"
        self._started = 0.0

    @property
    def cache_path(self) -> str | None:
        """The folder, for `dispatcher.stats`."""
        try:
            return str(STORE.folder())
        except (OSError, RuntimeError):
            return None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled result for this signature, or None if it has to be compiled."""
        self._started = time.perf_counter()
        try:
            from numba.core.compiler import CompileResult

            _prepare(target_context)
            name = self._file_name(sig, target_context.codegen())
            body = STORE.read(name)
            if body is None:
                return None
            parts = pickle.loads(body)  # noqa: S301 - a file of ours or root's, machine code in any case (cache.py)
            result = CompileResult._rebuild(target_context, *parts)  # type: ignore[no-untyped-call]  # numba has none
        except Exception:  # on any error the kernel is compiled again
            return None
        self._record(sig, cached=True, path=str(STORE.folder() / name))
        return result

    def save_overload(self, sig: Any, result: Any) -> None:
        """Save the code that was compiled for this signature; `STORE` warns once if that fails."""
        path, name, body = "", "", b""
        try:
            from numba.core.serialize import dumps

            if result.lifted or result.library.has_dynamic_globals:
                raise RuntimeError(f"{self._kernel} holds addresses of this process")
            name = self._file_name(sig, result.codegen)
            body = dumps(result._reduce())  # type: ignore[no-untyped-call]  # numba has none
        except Exception as e:  # a Numba with another interface: kernels work, but they are not cached
            STORE.complain(e)
        else:
            path = STORE.write(name, body)
        self._record(sig, cached=False, path=path)

    def enable(self) -> None:
        """Always enabled."""

    def disable(self) -> None:
        """Always enabled."""

    def flush(self) -> None:
        """Nothing to drop: a file's name depends on its content."""

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """The name of the file: it depends on the argument types and on the processor's name, features and format."""
        key = repr((_arguments(sig), codegen.magic_tuple()))
        return f"{self._kernel}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"

    def _record(self, sig: Any, *, cached: bool, path: str) -> None:
        signature = ", ".join(map(str, _arguments(sig)))
        milliseconds = 1e3 * (time.perf_counter() - self._started)
        STORE.loaded.append(
            Loaded(kernel=self._kernel, signature=signature, milliseconds=milliseconds, cached=cached, path=path)
        )


def _prepare(target_context: Any) -> None:
    """Prepare the process for machine code that Numba compiled in another one.

    Numba calls `refresh` for this. It also registers all functions that Numba can compile, which takes 0.3 s, or 1 s
    where scipy is installed, and is needed only before a compilation, which does it anyway. Our kernels use arrays and
    arithmetic only and need just the memory allocator's symbols. This is tested with the Numba versions named
    (tests/system/test_startup.py); for a later version everything is registered.
    """
    if LIGHT_START:
        from numba.core.runtime.nrt import rtsys

        rtsys.initialize(target_context)
    else:
        target_context.refresh()


def _arguments(sig: Any) -> tuple[Any, ...]:
    """The argument types of a signature, which Numba passes as a signature or as a tuple of types."""
    return tuple(getattr(sig, "args", sig))
