"""The images of an evaluation, with their targets, from wherever the user has them."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.pictures import SUFFIXES, image_files, spread
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.codec.text import printable

from . import coco, folders, masks

Float32Array = NDArray[np.float32]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a Dataset: what the network is given, and what an image codec is given.

    name: as in the data. x: (C, H, W) float32, the network's input. picture: what an image codec is given: the
    network's view, resized and cropped but not normalised, "RGB" or "L"; the original where that has fewer pixels; None
    for arrays of inputs. target: class number; of detection a DetectionTruth (boxes in pixels of the input); of
    segmentation (H, W) uint8, the class of each pixel of the input, masks.IGNORED where none counts; what `labels` of
    an .npz holds for a user's metric; None without labels.
    """

    name: str
    x: Float32Array
    picture: Image.Image | None
    target: Any


class Dataset(ABC):
    """Images to evaluate on, by number: derive from it for data that no file holds.

    source: where they are from, in words. digest: SHA-256 of names, sizes and targets, hex; of arrays, their contents.

    targets: one per image as the data has them, None without labels. pictures: whether items have pictures.
    """

    pictures: ClassVar[bool] = True

    def __init__(self, source: str, names: Sequence[str], targets: Sequence[Any] | None, digest: str) -> None:
        self.source = printable(source)
        self.names = tuple(map(printable, names))
        self.targets = targets
        self.digest = digest

    @property
    def labelled(self) -> bool:
        """Whether items have targets."""
        return self.targets is not None

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def item(self, i: int) -> Item:
        """The i-th image. Safe to call from several threads. Raises UsageError if the picture cannot be read: skip it,
        and say so."""

    @abstractmethod
    def input_of(self, picture: Image.Image) -> Float32Array:
        """(C, H, W): the network's input from a decoded `Item.picture`."""


class _Pictures(Dataset):
    """Pictures, preprocessed as the profile says."""

    def __init__(
        self, source: str, names: Sequence[str], targets: Sequence[Any] | None, digest: str, how: Preprocessing
    ) -> None:
        super().__init__(source, names, targets, digest)
        self._how = how

    def item(self, i: int) -> Item:
        with self._open(i) as opened:
            image = preprocessing.upright(opened, self._how)
            view = preprocessing.view(image, self._how)
            picture = image if image.width * image.height < view.width * view.height else view
            x = preprocessing.normalise(view, self._how)
            gray = image.mode in ("1", "L") or self._how.color == "gray"
            picture = picture.convert("L" if gray else "RGB")  # equal channels give the same L
            target = None if self.targets is None else self.targets[i]
            if isinstance(target, coco.Annotated):
                target = _boxes(target, image.size, self._how)
            elif isinstance(target, masks.Mask):
                target = masks.seen(target, image.size, self._how)
        return Item(name=self.names[i], x=x, picture=picture, target=target)

    def input_of(self, picture: Image.Image) -> Float32Array:
        if (picture.height, picture.width) == self._how.crop:  # an original of this size is its own view or not sent
            return preprocessing.normalise(preprocessing.in_colors(picture, self._how), self._how)
        return preprocessing.apply(picture, self._how)

    @abstractmethod
    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]: ...


class _Files(_Pictures):
    def __init__(
        self, source: str, files: Sequence[tuple[str, Path]], targets: Sequence[Any] | None, how: Preprocessing
    ) -> None:
        digest = hashlib.sha256()
        for i, (name, path) in enumerate(files):
            target = None if targets is None else targets[i]
            digest.update(repr((name, path.stat().st_size, _plain(target))).encode())
        super().__init__(source, [name for name, _ in files], targets, digest.hexdigest(), how)
        self._files = [path for _, path in files]

    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]:
        with preprocessing.opened(self._files[i]) as image:
            yield image


class _ImageArray(_Pictures):
    """images: (n, H, W) or (n, H, W, 3) uint8."""

    def __init__(
        self,
        path: Path,
        chosen: Sequence[int],
        images: Array,
        labels: Array | Sequence[masks.Mask] | None,
        how: Preprocessing,
    ) -> None:
        super().__init__(str(path), _numbered(path, chosen), _rows(labels), _digest(images, labels), how)
        self._images = images

    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]:
        yield Image.fromarray(np.ascontiguousarray(self._images[i]))


class _InputArray(Dataset):
    """inputs: (n, C, H, W) float32, or what else the network takes."""

    pictures = False

    def __init__(
        self,
        path: Path,
        chosen: Sequence[int],
        inputs: Float32Array,
        labels: Array | Sequence[masks.Mask] | None,
    ) -> None:
        super().__init__(str(path), _numbered(path, chosen), _rows(labels), _digest(inputs, labels))
        self._inputs = inputs

    def item(self, i: int) -> Item:
        target = None if self.targets is None else self.targets[i]
        if isinstance(target, masks.Mask):
            target = target.pixels()
        return Item(name=self.names[i], x=np.ascontiguousarray(self._inputs[i]), picture=None, target=target)

    def input_of(self, picture: Image.Image) -> Float32Array:
        raise UsageError(f"{self.source} holds inputs of the network, which no image codec can send")


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
    fit = folders.Labels(names=profile.labels, classes=classes, detections=detections, custom=custom, segments=segments)
    if isinstance(path, Path) and path.suffix.lower() == ".npz":
        _without(annotations, path)
        return _from_arrays(path, _read_npz(path), profile.preprocessing, (input_shape, dtype), fit, limit)
    if isinstance(path, Mapping):
        _without(annotations, "arrays")
        arrays = {name: np.asarray(array) for name, array in path.items()}
        return _from_arrays(Path("arrays"), arrays, profile.preprocessing, (input_shape, dtype), fit, limit)
    how = _usable(profile.preprocessing, input_shape)
    if segments and annotations is not None and _are_pictures(path):
        if not isinstance(path, Path):
            return _from_list(f"{len(path)} pictures", path, how, limit, annotations)
        files = _listed(path) if path.suffix.lower() == ".txt" else [path]
        return _from_list(str(path), files, how, limit, annotations)
    if not isinstance(path, Path):
        _without(annotations, "a list of pictures")
        return _from_list(f"{len(path)} pictures", path, how, limit)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; --data names a folder of pictures, a COCO .json or an .npz")
    if path.suffix.lower() == ".json" and path.is_file():
        _without(annotations, path)
        return _from_coco(path, path.parent, how, fit, limit)
    if path.is_dir() and segments:
        return _from_masked_folder(path, annotations, how, limit)
    if path.is_dir():
        annotations = annotations or (_only_json(path) if detections else None)
        if annotations is not None:
            return _from_coco(annotations, path, how, fit, limit)
        return _from_folder(path, how, fit, limit)
    _without(annotations, path)
    if path.suffix.lower() == ".txt":
        return _from_list(str(path), _listed(path), how, limit)
    if path.suffix.lower() in SUFFIXES:
        return _from_list(str(path), [path], how, limit)
    raise UsageError(f"{path} is no folder, picture, list of pictures (.txt), COCO file (.json) or .npz")


def _from_folder(path: Path, how: Preprocessing, fit: folders.Labels, limit: int | None) -> Dataset:
    files = image_files(path)
    numbers = None if fit.detections else folders.class_numbers(path, files, fit)
    chosen = [files[i] for i in _chosen(len(files), limit)]
    named = [(f.relative_to(path).as_posix(), f) for f in chosen]
    return _Files(str(path), named, None if numbers is None else [numbers[n.split("/")[0]] for n, _ in named], how)


def _from_masked_folder(path: Path, annotations: Path | None, how: Preprocessing, limit: int | None) -> Dataset:
    pictures, folder = masks.folders(path, annotations)
    files = [(f.relative_to(pictures).as_posix(), f) for f in image_files(pictures)]
    return _with_masks(str(path), files, folder, how, limit)


def _with_masks(
    source: str, files: Sequence[tuple[str, Path]], folder: Path | None, how: Preprocessing, limit: int | None
) -> Dataset:
    """Pictures with the masks in `folder`, by name. Every picture has one, also those beyond the limit."""
    chosen = _chosen(len(files), limit)
    named = [files[i] for i in chosen]
    if folder is None:
        return _Files(source, named, None, how)
    found = masks.files_of([name for name, _ in files], folder)
    targets = [masks.checked(found[i].relative_to(folder).as_posix(), found[i]) for i in chosen]
    return _Files(source, named, targets, how)


def _are_pictures(path: Path | Sequence[Path]) -> bool:
    """Whether it is a list of pictures, or a picture."""
    return not isinstance(path, Path) or (path.is_file() and path.suffix.lower() in (".txt", *SUFFIXES))


def _from_list(
    source: str, files: Sequence[Path], how: Preprocessing, limit: int | None, folder: Path | None = None
) -> Dataset:
    """folder: of their masks."""
    if not files:
        raise UsageError(f"{source}: the list of pictures is empty")
    chosen = [files[i] for i in _chosen(len(files), limit)]
    missing = next((f for f in chosen if not f.is_file()), None)
    if missing is not None:
        raise UsageError(f"{missing}: no such picture (named in {source})")
    if folder is not None:
        return _with_masks(source, [(f.name, f) for f in files], masks.folders(folder, folder)[1], how, limit)
    return _Files(source, [(f.as_posix(), f) for f in chosen], None, how)


def _from_coco(path: Path, folder: Path, how: Preprocessing, fit: folders.Labels, limit: int | None) -> Dataset:
    if not (fit.detections or fit.custom):
        come = "masks come as PNGs in a folder" if fit.segments else "labels come as one folder of pictures per class"
        raise UsageError(f"{path} holds boxes, and this network is no detector; its {come}")
    everything = coco.read(path, folder, fit.names)
    chosen = [everything[i] for i in _chosen(len(everything), limit)]
    missing = [a for a in chosen if not a.file.is_file()]
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} of {len(chosen)} images are not in {folder}, the first is {missing[0].name!r};"
            " name the folder of the pictures with --data and this file with --annotations"
        )
    return _Files(str(path), [(a.name, a.file) for a in chosen], chosen, how)


def _from_arrays(
    path: Path,
    arrays: Mapping[str, Array],
    how: Preprocessing | None,
    takes: tuple[Sequence[int | None], str],
    fit: folders.Labels,
    limit: int | None,
) -> Dataset:
    """path: where they are from, for messages and names. takes: the network, (input shape, type)."""
    input_shape, dtype = takes
    kind = [name for name in ("images", "inputs") if name in arrays]
    if len(kind) != 1:
        raise UsageError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; expected `images` (n, H, W[, 3]) uint8"
            " or `inputs` (n, C, H, W) float32, and maybe `labels`"
        )
    if "masks" in arrays and not fit.segments:
        raise UsageError(f"{path} holds `masks`, and this network is no segmentation (splitwire export --task)")
    images, labels = arrays[kind[0]], arrays.get("labels")
    if not images.ndim or not len(images):
        raise UsageError(f"{path}: `{kind[0]}` holds no images")
    if labels is not None:
        _check_labels(path, labels, len(images), fit)
    if "masks" in arrays:
        masks.of_array(str(path), arrays["masks"], images)
    if kind == ["images"]:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise UsageError(
                f"{path}: `images` is {images.shape} {images.dtype}; expected (n, H, W) or (n, H, W, 3) uint8"
            )
    elif images.dtype != dtype or not _fits(images.shape[1:], input_shape[1:]):
        raise UsageError(
            f"{path}: `inputs` is {images.shape} {images.dtype}; the network takes {_shown(input_shape)} {dtype}"
        )
    chosen = _chosen(len(images), limit)
    targets: Array | list[masks.Mask] | None = None if labels is None else labels[chosen]
    if "masks" in arrays:
        kept = arrays["masks"][chosen].astype(np.uint8)
        targets = [masks.checked(name, m) for name, m in zip(_numbered(path, chosen), kept, strict=True)]
    images = images[chosen]
    if kind == ["images"]:
        return _ImageArray(path, chosen, images, targets, _usable(how, input_shape))
    if not np.isfinite(images).all():
        raise UsageError(f"{path}: `inputs` holds NaN or infinity")
    return _InputArray(path, chosen, images, targets)


def _read_npz(path: Path) -> dict[str, Array]:
    """What we know of an .npz; other arrays by name alone. Never pickled objects."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = [str(n) for n in file.files]
            return {n: file[n] if n in ("images", "inputs", "labels", "masks") else np.empty(0) for n in names}
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, MemoryError) as e:
        raise UsageError(f"{path} is not a readable .npz of plain arrays: {e}".splitlines()[0]) from e


def _check_labels(path: Path, labels: Array, n: int, fit: folders.Labels) -> None:
    if fit.custom:
        if not labels.ndim or len(labels) != n:
            raise UsageError(f"{path}: `labels` is {labels.shape} for {n} images; expected one row each")
        return
    if fit.segments:
        raise UsageError(
            f"{path}: `labels` are class numbers, and this network is a segmentation; give `masks` (n, H, W) instead"
        )
    if fit.detections:
        raise UsageError(f"{path}: `labels` of an .npz are class numbers, and this network is a detector; boxes come as"
                         " a COCO file")  # fmt: skip
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{path}: `labels` is {labels.shape} {labels.dtype}; expected ({n},) integers")
    if int(labels.min()) < 0 or (fit.count is not None and int(labels.max()) >= fit.count):
        known = "numbers from 0 on" if fit.count is None else f"classes 0 to {fit.count - 1}"
        raise UsageError(f"{path}: `labels` go from {labels.min()} to {labels.max()}; the network has {known}")


def _boxes(annotated: coco.Annotated, size: tuple[int, int], how: Preprocessing) -> coco.Truth:
    if annotated.size is not None and annotated.size != size:
        raise UsageError(f"the picture is {size[0]}x{size[1]}, its annotations are for {annotated.size[0]}x"
                         f"{annotated.size[1]}")  # fmt: skip
    return coco.seen(annotated.truth, size, how)


def _usable(how: Preprocessing | None, input_shape: Sequence[int | None]) -> Preprocessing:
    if how is None:
        raise UsageError(
            "this pair was exported without preprocessing, so it takes no pictures; give an .npz with `inputs`, or"
            " export it with preprocessing"
        )
    if not _fits(how.input_shape, input_shape[1:]):
        raise UsageError(f"the preprocessing makes {how.input_shape} of a picture, the network takes "
                         f"{_shown(input_shape)}; give an .npz with `inputs`")  # fmt: skip
    return how


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == s for s, w in zip(shape, wanted, strict=True))


def _shown(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join(["n", *("any" if s is None else str(s) for s in shape[1:])]) + ")"


def _chosen(n: int, limit: int | None) -> list[int]:
    return spread(n, n if limit is None else limit)


def _only_json(folder: Path) -> Path | None:
    found = sorted(p for p in folder.glob("*.json") if p.name[0] != ".")
    if len(found) > 1:
        raise UsageError(f"{folder} holds {len(found)} .json files; say with --annotations which one has the boxes")
    return found[0] if found else None


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: the list of pictures cannot be read: {e}") from e
    return [path.parent / line.strip() for line in lines if line.strip()]


def _without(annotations: Path | None, what: os.PathLike[str] | str) -> None:
    if annotations is not None:
        raise UsageError(f"--annotations goes with a folder of pictures, not with {what}")


def _numbered(path: Path, chosen: Sequence[int]) -> list[str]:
    return [f"{path.name}[{i}]" for i in chosen]


def _rows(labels: Array | Sequence[masks.Mask] | None) -> list[Any] | None:
    """A class is a plain number; of anything else, each image's row."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        return list(labels.tolist())
    return None if labels is None else list(labels)


def _digest(images: Array, labels: Array | Sequence[masks.Mask] | None) -> str:
    digest = hashlib.sha256(repr((images.shape, images.dtype.str)).encode())
    digest.update(np.ascontiguousarray(images).data)
    if labels is not None and not isinstance(labels, np.ndarray):
        digest.update(repr([mask.checksum for mask in labels]).encode())
    elif labels is not None:
        digest.update(repr((labels.shape, labels.dtype.str)).encode() + np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()


def _plain(target: Any) -> Any:
    """A target as text that is the same in every run."""
    if isinstance(target, coco.Annotated):
        truth = target.truth
        return target.size, truth.boxes.tolist(), truth.labels.tolist(), truth.ignored.tolist()
    return (target.name, target.checksum) if isinstance(target, masks.Mask) else target
