"""Checks that the settings of both trainings share. Their fields are separate, because the defaults differ."""

from __future__ import annotations

from splitwire.codec.errors import UsageError

PRECISIONS = ("bfloat16", "float32")


def check_settings(precision: str, **counts: int) -> None:
    """Raise UsageError for a count below 1, or an unknown precision."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} must be at least 1; got {count}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be {' or '.join(PRECISIONS)}; got {precision!r}")
