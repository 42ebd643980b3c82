"""The one compile policy, and how compiled kernels are kept (cache.py)."""

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
"""Where this process keeps compiled kernels, and which it has made ready."""

INTERPRETED = bool(getattr(numba.config, "DISABLE_JIT", 0))
"""Kernels are plain Python in this process (NUMBA_DISABLE_JIT)."""

LIGHT_START = (0, 61) <= numba.version_info.short <= (0, 68)


def kernel(fn: F) -> F:
    """Compile `fn` with Numba when it is first called. Both ends must produce the same bits: no fastmath, no parallel
    reductions.

    The compiled code is cached on disk; where no cache folder is writable the kernel still works and is compiled anew
    in each process.
    """
    made = numba.njit(nogil=True, fastmath=False, error_model="numpy", boundscheck=False)(fn)
    # Numba has no public way to choose where one library's code is cached but to change settings that all libraries in
    # the process share. `_cache` has been its place for whatever offers the five calls below since 0.17; should it go,
    # Numba's own cache does, with the folder that it chooses. (NUMBA_DISABLE_JIT: `made` is `fn`, and has neither.)
    if hasattr(made, "_cache"):
        made._cache = KernelCache(fn)
    elif hasattr(made, "enable_caching"):
        with suppress(RuntimeError):  # it found no folder
            made.enable_caching()
    return cast(F, made)


class KernelCache:
    """What a Numba dispatcher asks for compiled code before it compiles, and hands it to afterwards.

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
        except Exception:  # whatever it is, compiling does not need it
            return None
        self._record(sig, cached=True, path=str(STORE.folder() / name))
        return result

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keep what was compiled for this signature; `STORE` says so once if that is impossible."""
        path, name, body = "", "", b""
        try:
            from numba.core.serialize import dumps

            if result.lifted or result.library.has_dynamic_globals:
                raise RuntimeError(f"{self._kernel} holds addresses of this process")
            name = self._file_name(sig, result.codegen)
            body = dumps(result._reduce())  # type: ignore[no-untyped-call]  # numba has none
        except Exception as e:  # a Numba that does this in another way: kernels work, they are only not kept
            STORE.complain(e)
        else:
            path = STORE.write(name, body)
        self._record(sig, cached=False, path=path)

    def enable(self) -> None:
        """Always enabled."""

    def disable(self) -> None:
        """Always enabled."""

    def flush(self) -> None:
        """Nothing to drop: other content has another name."""

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """Argument types, and the processor: its name, its features, the object format."""
        key = repr((_arguments(sig), codegen.magic_tuple()))
        return f"{self._kernel}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"

    def _record(self, sig: Any, *, cached: bool, path: str) -> None:
        signature = ", ".join(map(str, _arguments(sig)))
        milliseconds = 1e3 * (time.perf_counter() - self._started)
        STORE.loaded.append(
            Loaded(kernel=self._kernel, signature=signature, milliseconds=milliseconds, cached=cached, path=path)
        )


def _prepare(target_context: Any) -> None:
    """Make the process ready for machine code that Numba compiled in another one.

    What Numba does here, `refresh`, also registers all that it can compile, which takes a third of a second, a whole
    one where it finds scipy; that is wanted only before a compilation, which does it by itself. Our kernels, arrays and
    arithmetic, need the memory allocator's symbols. Tested with the versions named (tests/system/test_startup.py); a
    later one may want more, so it gets everything.
    """
    if LIGHT_START:
        from numba.core.runtime.nrt import rtsys

        rtsys.initialize(target_context)
    else:
        target_context.refresh()


def _arguments(sig: Any) -> tuple[Any, ...]:
    """A signature comes as such or as the tuple of its argument types."""
    return tuple(getattr(sig, "args", sig))
