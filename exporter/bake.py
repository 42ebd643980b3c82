"""The last step: the profile goes into both graphs, and both files appear, or neither."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import onnx_ir as ir

from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import METADATA_KEY, CodecProfile

from .inference import serialise

FRONT, BACK = "front.onnx", "back.onnx"
"""Names of the two files in the output folder."""


def digest(model: ir.Model) -> str:
    """SHA-256 of the serialised graph without splitwire's metadata, in hex."""
    bare = model.clone()
    bare.metadata_props.pop(METADATA_KEY, None)
    return hashlib.sha256(serialise(bare)).hexdigest()


def check_folder(out: Path) -> None:
    """Raise UsageError if the two files could not be written to `out`: asked before the long work, not after it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names the folder for {FRONT} and {BACK}")
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {out}: {place} is not a folder that you may write to")


def write_pair(front: ir.Model, back: ir.Model, profile: CodecProfile, out: Path) -> tuple[Path, Path]:
    """Write front.onnx and back.onnx with the profile in their metadata; returns their paths.

    Both files or neither: if anything fails, a pair that was there before is there unchanged, and nothing half-written
    remains. (A crash of the machine between the two renames can leave files of two pairs; their fingerprints differ,
    and the cloud refuses them.) Raises ExportError.
    """
    created = missing_folders(out)
    targets = (out / FRONT, out / BACK)
    temporary: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for model, target in zip((front, back), targets, strict=True):
            baked = model.clone()
            baked.metadata_props[METADATA_KEY] = profile.to_json()
            temporary.append(_write_beside(target, serialise(baked)))  # one by one: a failure must find the first
        _replace_both(temporary, targets)
    except BaseException as e:
        for path in temporary:
            path.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):  # somebody else's file is in it
                folder.rmdir()
        if isinstance(e, OSError):
            raise ExportError(f"cannot write the pair to {out}: {e.strerror or e}; nothing was changed there") from e
        raise
    return targets


def _replace_both(temporary: list[Path], targets: tuple[Path, Path]) -> None:
    """Rename both files into place; put the first one's predecessor back if the second rename fails."""
    first, second = targets
    existed = first.exists()
    backup = _spare_name(first, "old")
    try:
        if existed:
            _keep_copy(first, backup)
        temporary[0].replace(first)
        try:
            temporary[1].replace(second)
        except BaseException:
            if existed:
                backup.replace(first)
            else:
                first.unlink(missing_ok=True)
            raise
    finally:
        backup.unlink(missing_ok=True)


def _keep_copy(path: Path, backup: Path) -> None:
    try:
        backup.hardlink_to(path)
    except OSError:  # a file system without hard links, such as a memory card's
        shutil.copy2(path, backup)


def _write_beside(target: Path, data: bytes) -> Path:
    """A finished temporary file in the target's folder (a rename within one file system is atomic)."""
    path = _spare_name(target, "tmp")
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _spare_name(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")


def missing_folders(out: Path) -> list[Path]:
    """The folders that mkdir(parents=True) will make, innermost first."""
    return [p for p in (out, *out.parents) if not p.exists()]
