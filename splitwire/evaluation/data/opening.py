"""Where the user's images are: a folder, files, a list, a COCO file or arrays → a Dataset, checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.codec.shared.pictures import SUFFIXES, image_files, spread

from . import coco, folders, masks
from .arrays import from_arrays, read_npz
from .dataset import Dataset, PictureFiles
from .expected import Expected


def open_data(
    path: Path | Sequence[Path] | Mapping[str, ArrayLike],
    profile: CodecProfile,
    input_shape: Sequence[int | None],
    *,
    dtype: str = "float32",
    annotations: Path | None = None,
    limit: int | None = None,
    detections: bool,
    segments: bool = False,
    custom: bool = False,
    classes: int | None = None,
) -> Dataset:
    """Find out what `path` is, and check it before anything is computed.

    path: a folder with one folder per class (by the profile's labels, by number, or in sorted order if there are as
    many as classes); a folder of pictures without labels (a detector's may have folders inside); a picture, a list of
    them, or a .txt file with one per line; a COCO .json with its pictures beside it, or a folder of pictures with
    `annotations` (or with one .json in it); an .npz with `images` (n, H, W) or (n, H, W, 3) uint8 or `inputs`
    (n, C, H, W) float32, and maybe `labels` (n,) integers; or a dict of such arrays. For a segmentation: a folder with
    the folders images and masks (or VOC's) in it, pictures with `annotations`, the folder of their masks, or arrays
    with `masks` (n, H, W).
    input_shape, dtype: of the front graph, with the batch axis; None where an axis is free. limit: most images,
    evenly spread. detections: whether the network is a detector (tasks.is_detector). segments: whether it is a
    segmentation. custom: a user's metric judges, so that labels may be anything. classes: K of the network's (B, K)
    answer, where its graph says so.
    Raises UsageError in one line: nothing there, half-labelled, classes that do not fit, a malformed file.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the number of images must be at least 1, is {limit}")
    most = sys.maxsize if limit is None else limit
    expected = Expected(
        preprocessing=profile.preprocessing,
        input_shape=input_shape,
        dtype=dtype,
        labels=profile.labels,
        classes=classes,
        detections=detections,
        segments=segments,
        custom=custom,
    )
    if isinstance(path, Path) and path.suffix.lower() == ".npz":
        _refuse_annotations(annotations, path)
        return from_arrays(path, read_npz(path), expected, most)
    if isinstance(path, Mapping):
        _refuse_annotations(annotations, "arrays")
        return from_arrays(Path("arrays"), {name: np.asarray(a) for name, a in path.items()}, expected, most)
    how = expected.for_pictures
    if segments and annotations is not None and _are_pictures(path):
        if not isinstance(path, Path):
            return _from_list(f"{len(path)} pictures", path, how, most, annotations)
        files = _listed(path) if path.suffix.lower() == ".txt" else [path]
        return _from_list(str(path), files, how, most, annotations)
    if not isinstance(path, Path):
        _refuse_annotations(annotations, "a list of pictures")
        return _from_list(f"{len(path)} pictures", path, how, most)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; --data names a folder of pictures, a COCO .json or an .npz")
    if path.suffix.lower() == ".json" and path.is_file():
        _refuse_annotations(annotations, path)
        return _from_coco(path, path.parent, expected, most)
    if path.is_dir() and segments:
        return _from_masked_folder(path, annotations, how, most)
    if path.is_dir():
        annotations = annotations or (_only_json(path) if detections else None)
        if annotations is not None:
            return _from_coco(annotations, path, expected, most)
        return _from_folder(path, expected, most)
    _refuse_annotations(annotations, path)
    if path.suffix.lower() == ".txt":
        return _from_list(str(path), _listed(path), how, most)
    if path.suffix.lower() in SUFFIXES:
        return _from_list(str(path), [path], how, most)
    raise UsageError(f"{path} is no folder, picture, list of pictures (.txt), COCO file (.json) or .npz")


def _from_folder(path: Path, expected: Expected, limit: int) -> Dataset:
    """Pictures in class folders, or without labels."""
    files = image_files(path)
    numbers = None if expected.detections else folders.class_numbers(path, files, expected)
    named = [(files[i].relative_to(path).as_posix(), files[i]) for i in spread(len(files), limit)]
    targets = None if numbers is None else [numbers[name.split("/")[0]] for name, _ in named]
    return PictureFiles(str(path), named, targets, expected.for_pictures)


def _from_masked_folder(path: Path, annotations: Path | None, how: Preprocessing, limit: int) -> Dataset:
    """A segmentation's folder of pictures, with the masks beside it or in the folder `annotations`."""
    pictures, folder = masks.folders(path, annotations)
    files = [(f.relative_to(pictures).as_posix(), f) for f in image_files(pictures)]
    return _with_masks(str(path), files, folder, how, limit)


def _with_masks(
    source: str, files: Sequence[tuple[str, Path]], folder: Path | None, how: Preprocessing, limit: int
) -> Dataset:
    """Pictures with the masks of the same names in `folder`; without masks if that is None.

    Raises UsageError if a picture has no mask, also one beyond the limit.
    """
    chosen = spread(len(files), limit)
    named = [files[i] for i in chosen]
    if folder is None:
        return PictureFiles(source, named, None, how)
    mask_files = masks.files_of([name for name, _ in files], folder)
    targets = [masks.checked(mask_files[i].relative_to(folder).as_posix(), mask_files[i]) for i in chosen]
    return PictureFiles(source, named, targets, how)


def _are_pictures(path: Path | Sequence[Path]) -> bool:
    """Whether it is a list of pictures, or a picture."""
    return not isinstance(path, Path) or (path.is_file() and path.suffix.lower() in (".txt", *SUFFIXES))


def _from_list(
    source: str, files: Sequence[Path], how: Preprocessing, limit: int, folder: Path | None = None
) -> Dataset:
    """Pictures by their paths. source: what names them. folder: of their masks."""
    if not files:
        raise UsageError(f"{source}: the list of pictures is empty")
    chosen = [files[i] for i in spread(len(files), limit)]
    missing = next((f for f in chosen if not f.is_file()), None)
    if missing is not None:
        raise UsageError(f"{missing}: no such picture (named in {source})")
    if folder is not None:
        return _with_masks(source, [(f.name, f) for f in files], masks.folders(folder, folder)[1], how, limit)
    return PictureFiles(source, [(f.as_posix(), f) for f in chosen], None, how)


def _from_coco(path: Path, folder: Path, expected: Expected, limit: int) -> Dataset:
    """The pictures of a COCO file with their boxes. folder: of the pictures."""
    if not (expected.detections or expected.custom):
        come = (
            "masks come as PNGs in a folder" if expected.segments else "labels come as one folder of pictures per class"
        )
        raise UsageError(f"{path} holds boxes, and this network is no detector; its {come}")
    annotated = coco.read(path, folder, expected.labels)
    chosen = [annotated[i] for i in spread(len(annotated), limit)]
    missing = [a for a in chosen if not a.file.is_file()]
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} of {len(chosen)} images are not in {folder}, the first is {missing[0].name!r};"
            " name the folder of the pictures with --data and this file with --annotations"
        )
    return PictureFiles(str(path), [(a.name, a.file) for a in chosen], chosen, expected.for_pictures)


def _only_json(folder: Path) -> Path | None:
    """The .json file in a folder, None if there is none. Raises UsageError if there are several."""
    files = sorted(p for p in folder.glob("*.json") if p.name[0] != ".")
    if len(files) > 1:
        raise UsageError(f"{folder} holds {len(files)} .json files; say with --annotations which one has the boxes")
    return files[0] if files else None


def _listed(path: Path) -> list[Path]:
    """The paths in a .txt file, one a line, relative to its folder. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: the list of pictures cannot be read: {e}") from e
    return [path.parent / line.strip() for line in lines if line.strip()]


def _refuse_annotations(annotations: Path | None, what: os.PathLike[str] | str) -> None:
    if annotations is not None:
        raise UsageError(f"--annotations goes with a folder of pictures, not with {what}")
