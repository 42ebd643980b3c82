"""Protect a pair of another network in the output folder: it is replaced only on request.

A pair belongs to another network if its model name or its cut differs. With the same name and cut it is an earlier
version of the same pair, and is replaced: a network is exported again after each training.
"""

from __future__ import annotations

import os
from pathlib import Path

from splitwire.codec.errors import ProfileError, UsageError
from splitwire.codec.profile import BACK, FRONT, CodecProfile

from .metadata import find_profile

ADVICE = "name another folder with --out, or --force (overwrite=True) to replace it"


def check_names(out: Path, model: str, cut: str) -> None:
    """Raise UsageError if `out` holds a pair of another model or cut, or another program's file of that name.

    Call it before the long work.
    """
    existing = held(out)
    if existing is not None and (existing.model, existing.cut) != (model, cut):
        raise UsageError(
            f"{out} holds {existing.model} cut after {existing.cut}, not {model} cut after {cut}; {ADVICE}"
        )


def held(out: Path) -> CodecProfile | None:
    """The profile of the pair in `out`; None if neither file exists. Raises UsageError for a file without a profile."""
    for path in (out / FRONT, out / BACK):
        if not os.path.lexists(path):
            continue
        try:
            return find_profile(path).profile
        except (ProfileError, OSError) as e:
            raise UsageError(f"{path} was not written by splitwire, or is damaged; {ADVICE}") from e
    return None
