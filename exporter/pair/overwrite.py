"""A folder that holds another pair is not written over without being told to.

Another pair is one of another network: of another model name, cut after another layer, or with other halves in float32
(other weights, graph or input shape). Other operating points, calibration images, preprocessing, labels or precisions
of the halves make the same pair anew.
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
    """Before the long work. Raises UsageError where `out` holds a pair of another model or cut, or a foreign file of
    that name."""
    found = held(out)
    if found is not None and (found.model, found.cut) != (model, cut):
        raise UsageError(f"{out} holds {found.model} cut after {found.cut}, not {model} cut after {cut}; {ADVICE}")


def check_halves(out: Path, front_sha256: str, back_sha256: str) -> None:
    """As soon as the halves are there. The digests are those of the float32 halves; one that the pair in `out` holds in
    other arithmetic cannot be compared."""
    found = held(out)
    if found is None:
        return
    same_front = found.front_precision is not msgspec.UNSET or found.front_sha256 == front_sha256
    same_back = found.back_precision is not msgspec.UNSET or found.back_sha256 == back_sha256
    if not (same_front and same_back):
        raise UsageError(
            f"{out} holds a pair of another network with the same name and cut, {found.model} after {found.cut}:"
            f" its weights, graph or input shape differ; {ADVICE}"
        )


def held(out: Path) -> CodecProfile | None:
    """The profile of the pair in `out`; None if neither file is there."""
    for path in (out / FRONT, out / BACK):
        if not os.path.lexists(path):
            continue
        try:
            return find_profile(path).profile
        except (ProfileError, OSError) as e:
            raise UsageError(f"{path} was not written by splitwire, or is damaged; {ADVICE}") from e
    return None
