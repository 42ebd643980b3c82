"""What the settings of both trainings must hold. Their fields stay apart: each training has defaults of its own."""

from __future__ import annotations

from splitwire.codec.errors import UsageError

PRECISIONS = ("bfloat16", "float32")


def check_settings(precision: str, **counts: int) -> None:
    """Raise UsageError for a count below 1, or a precision that no training has."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} must be at least 1; got {count}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be {' or '.join(PRECISIONS)}; got {precision!r}")
