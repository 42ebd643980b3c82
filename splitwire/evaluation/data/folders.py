"""A folder of pictures per class: which class is which folder?"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import UsageError

_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What labels must fit. names: the network's own. classes: how many it tells apart, where known.

    detections, custom, segments: as in data.open_data.
    """

    names: Sequence[str] | None
    classes: int | None
    detections: bool
    custom: bool
    segments: bool = False

    @property
    def count(self) -> int | None:
        """Classes, as far as anything says. Raises UsageError where the profile and the network differ."""
        if self.names is None or self.classes is None or len(self.names) == self.classes:
            return self.classes if self.names is None else len(self.names)
        raise UsageError(
            f"the profile has {len(self.names)} labels, the network tells {self.classes} classes apart;"
            " export it with labels of its own"
        )


def class_numbers(path: Path, files: Sequence[Path], fit: Labels) -> dict[str, int] | None:
    """The class number of each folder in `path`; None if the pictures lie in `path` itself, without labels.

    files: the pictures below `path`. Folders named after labels go by name (by letters and digits alone, since
    "T-shirt/top" is no file name), folders that are all numbers by number, others in sorted order if there are as many
    as classes, or if a user's metric judges. Raises UsageError: pictures beside class folders, a class folder without
    pictures, names and numbers that do not fit.
    """
    beside = [f for f in files if f.parent == path]
    found = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    if not found:
        return None
    if beside:
        raise UsageError(
            f"{path} is half labelled: {len(beside)} pictures lie beside its {len(found)} folders of pictures;"
            " put them into their class folders, or all into one folder to do without labels"
        )
    empty = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in found)
    if empty:
        raise UsageError(
            f"{path} is half labelled: no pictures in {', '.join(map(repr, empty[:5]))}, but in {len(found)} other"
            " class folders; fill or remove them"
        )
    if set(found) <= _SPLITS and not set(found) <= set(fit.names or ()):
        raise UsageError(f"{path} holds the splits {', '.join(found)}; give one of them, as in {path / found[-1]}")
    labels, classes = fit.names or (), None if fit.custom else fit.count
    named = _by_name(found, labels)
    if len(named) == len(found):
        return named
    if all(name.isdecimal() for name in found):
        return _by_number(path, found, classes)
    if fit.custom or (not named and len(found) == classes):
        return {name: i for i, name in enumerate(found)}
    if classes is None:
        raise UsageError(
            f"neither the profile nor the graph says which classes there are, so the folders in {path} must be named by"
            " class number: 0, 1, 2, …"
        )
    raise UsageError(_mismatch(path, found, named, labels, classes))


def _by_number(path: Path, found: Sequence[str], classes: int | None) -> dict[str, int]:
    numbers = {name: int(name) for name in found}
    if len(set(numbers.values())) < len(numbers):
        raise UsageError(f"{path}: two class folders have the same number")
    if classes is not None and max(numbers.values()) >= classes:
        raise UsageError(
            f"{path}: class folders go up to {max(numbers.values())}, the network has classes 0 to {classes - 1}"
        )
    return numbers


def _by_name(found: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Those that are one label's name, and no other's."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        places[_letters(label)].append(i)
    numbers = {name: places[_letters(name)][0] for name in found if len(places.get(_letters(name), ())) == 1}
    taken = list(numbers.values())
    return {name: i for name, i in numbers.items() if taken.count(i) == 1}


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _mismatch(path: Path, found: Sequence[str], named: dict[str, int], labels: Sequence[str], classes: int) -> str:
    if not named:
        return (
            f"{path} has {len(found)} class folders, the network tells {classes} classes apart, and none of the folders"
            " is named after one; name them as the network's labels, or put all pictures into one folder"
        )
    stranger = next(name for name in found if name not in named)
    near = difflib.get_close_matches(stranger, labels, n=1, cutoff=0.0)
    return (
        f"{path}: the class folder {stranger!r} is none of the network's {classes} labels, or one of several"
        f" (nearest: {near[0]!r}); {len(named)} of {len(found)} folders are named after labels"
    )
