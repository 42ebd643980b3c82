"""Loads a version of a model in a thread, and gives memory back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import onnxruntime as ort

from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.providers import full_name
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.batching import prepare
from splitwire.runtime_cloud.session import CloudSession

from .layout import Candidate, files_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """How models run unless their settings say otherwise; see CloudSession."""

    threads: int | None = None
    providers: Sequence[str] | None = None


class CannotLoad(Exception):
    """A version cannot be loaded. The text is one line without paths; `error` is what was raised, if anything."""

    def __init__(self, reason: str, error: Exception | None = None) -> None:
        super().__init__(reason)
        self.error = error


def open_model(candidate: Candidate, options: Options) -> CloudSession:
    """Open a version. Raises CannotLoad."""
    if candidate.problem:
        raise CannotLoad(candidate.problem)
    chosen = candidate.settings
    try:
        providers = options.providers
        if chosen.providers is not None:
            providers = [full_name(name, ort.get_available_providers()) for name in chosen.providers]
        return CloudSession(candidate.path, threads=chosen.threads or options.threads, providers=providers)
    except Exception as e:  # whatever is wrong with a model, the others serve
        raise CannotLoad(reason_of(e, candidate), e) from e


def warm(candidate: Candidate, session: CloudSession) -> None:
    """Compile the kernels, run the model once and measure it. Raises CannotLoad."""
    try:
        prepare(session)
    except Exception as e:
        raise CannotLoad(reason_of(e, candidate), e) from e


def load_model(candidate: Candidate, options: Options) -> CloudSession:
    """Open a version and warm it up. Raises CannotLoad, also if its files change meanwhile."""
    session = open_model(candidate, options)
    try:
        warm(candidate, session)
        if files_of(candidate.path) != candidate.files:
            raise CannotLoad("its files changed while they were loaded")
    except CannotLoad:
        session.close()
        raise
    return session


def reason_of(error: Exception, candidate: Candidate) -> str:
    """Why a version is not loaded, in one line, without the folder that it lies in."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    if not isinstance(error, SplitwireError):
        text = f"it fails to run: {text}"
    folder = candidate.path.parent
    for path in (folder.resolve(), folder):
        text = text.replace(f"{path}/", "")
    return printable(text)


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps it otherwise. Takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
