"""What long work calls to say where it is; the one definition, on the lowest floor, for every package."""

from __future__ import annotations

from collections.abc import Callable

ProgressFn = Callable[[str, int, int | None], None]
"""progress(stage, done, total); `total` is None while it is not known. A stage begins when its name first comes."""


def no_progress(stage: str, done: int, total: int | None) -> None:
    """A ProgressFn for callers that pass none."""
