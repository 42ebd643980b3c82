"""The last step: write both graphs with the profile in them. Either both files appear, or neither."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
import onnx_ir as ir

from splitwire.codec.drift import DRIFT_KEY, DriftReference
from splitwire.codec.errors import ExportError, FingerprintMismatch, UsageError
from splitwire.codec.profile import BACK, FRONT, METADATA_KEY, CodecProfile
from splitwire.codec.shared.files import missing_folders
from splitwire.exporter.network import inference
from splitwire.exporter.network.inference import MAX_MODEL_BYTES

from . import metadata

MAX_SHOWN = 60
"""Largest number of characters of a folder's name in an error message about its length."""

ROOM = 64
"""Bytes of a path to leave for the names of the files and of the temporary files."""


def digest(model: ir.Model) -> str:
    """SHA-256 of the serialised graph without splitwire's metadata, in hex."""
    bare = model.clone()
    for key in (METADATA_KEY, DRIFT_KEY):
        bare.metadata_props.pop(key, None)
    return inference.digest(bare)


def check_folder(out: Path) -> None:
    """Raise UsageError if the two files cannot be written to `out`. Call it before the long work."""
    if _exists(out) and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names the folder for {FRONT} and {BACK}")
    place = next(p for p in (out, *out.absolute().parents) if _exists(p))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {out}: {place} is not a folder that you may write to")
    if wrong := _unfit(out, place):
        shown = str(out) if len(str(out)) <= MAX_SHOWN else f"{str(out)[:MAX_SHOWN]}…"
        raise UsageError(f"--out {shown!r} {wrong}; name another folder for {FRONT} and {BACK}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # an invalid name; some Python versions raise instead of returning False
        return False


def _unfit(out: Path, place: Path) -> str | None:
    """Why no folder of this name can be made below the existing folder `place`; None if one can."""
    if "\0" in str(out):
        return "has a zero byte in its name"
    if not hasattr(os, "pathconf"):  # Windows
        return None
    limit = os.pathconf(place, "PC_NAME_MAX")
    longest = max((len(os.fsencode(part)) for part in out.parts), default=0)
    if longest > limit:
        return f"has a name of {longest} bytes, the file system takes {limit}"
    limit = os.pathconf(place, "PC_PATH_MAX") - ROOM
    whole = len(os.fsencode(out.absolute()))
    return f"is a path of {whole} bytes, the system takes {limit}" if whole > limit else None


def write_pair(
    front: ir.Model,
    back: ir.Model,
    profile: CodecProfile,
    out: Path,
    *,
    drift: DriftReference | None = None,
    limit: int = MAX_MODEL_BYTES,
) -> tuple[Path, Path]:
    """Write front.onnx and back.onnx with the profile in their metadata; returns their paths.

    drift: for the metadata of front.onnx; None: it has none.
    If the weights of a half have more than `limit` bytes, they go to a second file, front.onnx.data or back.onnx.data.
    Either all files appear or none: after a failure, a previous pair is unchanged, and no half-written file remains. (A
    crash of the machine between two renames can leave files of two pairs. Their fingerprints differ, and the cloud
    refuses them.) Raises ExportError.
    """
    created = missing_folders(out)
    targets = (out / FRONT, out / BACK)
    ready: list[tuple[Path, Path]] = []
    started: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for model, target in zip((front, back), targets, strict=True):
            baked = model.clone()
            baked.metadata_props[METADATA_KEY] = profile.to_json()
            baked.metadata_props.pop(DRIFT_KEY, None)
            if model is front and drift is not None:
                baked.metadata_props[DRIFT_KEY] = drift.to_json()
            spare = _spare_name(target, "tmp")
            started += [spare, _data(spare)]
            for path in inference.save(baked, spare, name=target.name, limit=limit):
                _to_disk(path)
                ready.append((path, target if path == spare else _data(target)))
        _replace_all(ready)
        for target in targets:
            if _data(target) not in [place for _, place in ready]:
                _data(target).unlink(missing_ok=True)  # from an older, larger pair
    except BaseException as e:
        for path in started:
            path.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):  # another file is in it
                folder.rmdir()
        if isinstance(e, OSError):
            raise ExportError(f"cannot write the pair to {out}: {e.strerror or e}; nothing was changed there") from e
        raise
    return targets


def write_default(folder: Path, op: str) -> None:
    """Make the operating point `op` the default of the pair in `folder`, in both files or in neither.

    Only the profile in the metadata of the files changes. The graphs stay, and so do the hashes and the fingerprint:
    running edges and clouds still accept each other. Large weights beside the graphs do not change. If the machine
    crashes between two renames, the files may have different defaults; the pair still works, and a second call corrects
    it. Raises UsageError if `folder` holds no pair or cannot be written to, ProfileError if a file has no profile or
    the profile has no such operating point, FingerprintMismatch if the files belong to two pairs.
    """
    targets = (folder / FRONT, folder / BACK)
    for target in targets:
        if not target.is_file():
            raise UsageError(f"{folder} holds no {target.name}; name the folder that `splitwire export` wrote")
    started: list[Path] = []
    try:
        places = [metadata.find_profile(target) for target in targets]
        front, back = (place.profile for place in places)
        if front.fingerprint != back.fingerprint:
            raise FingerprintMismatch(
                f"{FRONT} and {BACK} in {folder} are of two pairs ({front.fingerprint.hex()} and"
                f" {back.fingerprint.hex()}); export the model again"
            )
        front.point_index(op)
        ready: list[tuple[Path, Path]] = []
        for place in places:
            if place.profile.default_op == op:
                continue
            spare = _spare_name(place.path, "tmp")
            started.append(spare)
            metadata.copy_with(place, msgspec.structs.replace(place.profile, default_op=op), spare)
            shutil.copymode(place.path, spare)
            _to_disk(spare)
            ready.append((spare, place.path))
        _replace_all(ready)
    except OSError as e:
        raise UsageError(f"cannot write the default to {folder}: {e.strerror or e}; nothing was changed there") from e
    finally:
        for path in started:
            path.unlink(missing_ok=True)


def _replace_all(ready: list[tuple[Path, Path]]) -> None:
    """Rename every (finished file, target). If a rename fails, restore the old files of the targets."""
    backups: list[tuple[Path, Path]] = []
    done: list[Path] = []
    try:
        for _, target in ready:
            if target.exists():
                backups.append((_spare_name(target, "old"), target))
                _keep_copy(target, backups[-1][0])
        try:
            for path, target in ready:
                path.replace(target)
                done.append(target)
        except BaseException:
            before = {target: backup for backup, target in backups}
            for target in done:
                if target in before:
                    before[target].replace(target)
                else:
                    target.unlink(missing_ok=True)
            raise
    finally:
        for backup, _ in backups:
            backup.unlink(missing_ok=True)


def _keep_copy(path: Path, backup: Path) -> None:
    try:
        backup.hardlink_to(path)
    except OSError:  # a file system without hard links, as on memory cards
        shutil.copy2(path, backup)


def _to_disk(path: Path) -> None:
    """Write the file to disk before the rename, so that no crash leaves an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _data(path: Path) -> Path:
    """The file in which `inference.save` puts large weights."""
    return path.with_name(f"{path.name}.data")


def _spare_name(target: Path, ending: str) -> Path:
    """A temporary name in the folder of the target: a rename within one file system is atomic."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")
