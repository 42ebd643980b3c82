"""Protect a pair of another network in the output folder: it is replaced only on request.

A pair belongs to another network if its model name or its cut differs, or if its float32 halves differ (weights, graph
or input shape). With other operating points, calibration images, preprocessing, labels or precisions of the halves, it
is the same pair, and is replaced.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

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


def check_halves(out: Path, front_sha256: str, back_sha256: str) -> None:
    """Raise UsageError if `out` holds a pair with other halves. Call it as soon as the halves exist.

    front_sha256, back_sha256: of the float32 halves without transforms. A half in `out` at reduced precision or with a
    transform cannot be compared.
    """
    existing = held(out)
    if existing is None or existing.is_transform:
        return
    same_front = existing.front_precision is not msgspec.UNSET or existing.front_sha256 == front_sha256
    same_back = existing.back_precision is not msgspec.UNSET or existing.back_sha256 == back_sha256
    if not (same_front and same_back):
        raise UsageError(
            f"{out} holds a pair of another network with the same name and cut, {existing.model} after {existing.cut}:"
            f" its weights, graph or input shape differ; {ADVICE}"
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
