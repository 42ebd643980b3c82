"""A folder of pictures for each class: the class number of each folder."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from splitwire.codec.errors import UsageError

from .expected import Expected

_SPLITS = {"train", "val", "valid", "validation", "test"}


def class_numbers(path: Path, files: Sequence[Path], expected: Expected) -> dict[str, int] | None:
    """The class number of each folder in `path`; None if the pictures lie in `path` itself, without labels.

    files: the pictures below `path`. Folders named after labels have the labels' numbers; only letters and digits are
    compared, since "T-shirt/top" is no file name. Folders named by numbers have these. Others are numbered in sorted
    order if there are as many as classes, or if a user's metric judges.
    Raises UsageError: pictures beside class folders, a class folder without pictures, names and numbers that do not
    fit.
    """
    unlabelled = [f for f in files if f.parent == path]
    names = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    if not names:
        return None
    if unlabelled:
        raise UsageError(
            f"{path} is half labelled: {len(unlabelled)} pictures lie beside its {len(names)} folders of pictures;"
            " put them into their class folders, or all into one folder to do without labels"
        )
    empty = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in names)
    if empty:
        raise UsageError(
            f"{path} is half labelled: no pictures in {', '.join(map(repr, empty[:5]))}, but in {len(names)} other"
            " class folders; fill or remove them"
        )
    labels = expected.labels or ()
    if set(names) <= _SPLITS and not set(names) <= set(labels):
        raise UsageError(f"{path} holds the splits {', '.join(names)}; give one of them, as in {path / names[-1]}")
    classes = None if expected.custom else expected.count
    by_name = _by_name(names, labels)
    if len(by_name) == len(names):
        return by_name
    if all(name.isdecimal() for name in names):
        return _by_number(path, names, classes)
    if expected.custom or (not by_name and len(names) == classes):
        return {name: i for i, name in enumerate(names)}
    if classes is None:
        raise UsageError(
            f"neither the profile nor the graph says which classes there are, so the folders in {path} must be named by"
            " class number: 0, 1, 2, …"
        )
    raise UsageError(_mismatch(path, names, by_name, labels, classes))


def _by_number(path: Path, names: Sequence[str], classes: int | None) -> dict[str, int]:
    numbers = {name: int(name) for name in names}
    if len(set(numbers.values())) < len(numbers):
        raise UsageError(f"{path}: two class folders have the same number")
    if classes is not None and max(numbers.values()) >= classes:
        raise UsageError(
            f"{path}: class folders go up to {max(numbers.values())}, the network has classes 0 to {classes - 1}"
        )
    return numbers


def _by_name(names: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Folder → number, of the folders whose name is that of exactly one label."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        places[_letters(label)].append(i)
    numbers = {name: places[_letters(name)][0] for name in names if len(places.get(_letters(name), ())) == 1}
    taken = list(numbers.values())
    return {name: i for name, i in numbers.items() if taken.count(i) == 1}


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _mismatch(path: Path, names: Sequence[str], by_name: dict[str, int], labels: Sequence[str], classes: int) -> str:
    if not by_name:
        return (
            f"{path} has {len(names)} class folders, the network tells {classes} classes apart, and none of the folders"
            " is named after one; name them as the network's labels, or put all pictures into one folder"
        )
    stranger = next(name for name in names if name not in by_name)
    near = difflib.get_close_matches(stranger, labels, n=1, cutoff=0.0)
    return (
        f"{path}: the class folder {stranger!r} is none of the network's {classes} labels, or one of several"
        f" (nearest: {near[0]!r}); {len(by_name)} of {len(names)} folders are named after labels"
    )
