"""One item of a calibration → network inputs. An item is a PIL image, or an array of one input or of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitwire.codec import preprocessing as images
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.exporter.network.inference import InputType
from splitwire.exporter.network.pictures import check_fits

Calibration = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | ArrayLike | Iterable[Any]
"""What the caller may pass as calibration data; `open_inputs` reads it."""

Named = tuple[str, NDArray[Any]]
"""A network input, and its name in messages."""


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """What one network input looks like, and how to make it from an item.

    shape: without the batch, (C, H, W) mostly. preprocessing: from image to input; None if the caller gives none.
    """

    shape: tuple[int, ...]
    dtype: InputType
    preprocessing: Preprocessing | None

    def for_images(self) -> Preprocessing:
        """The preprocessing. Raises UsageError if there is none, or if it makes inputs of another form."""
        if self.preprocessing is None:
            raise UsageError(
                "calibration images need preprocessing=Preprocessing(crop=(H, W), …); or pass arrays instead"
            )
        check_fits(self.preprocessing, self.shape, self.dtype)
        return self.preprocessing

    def inputs_of(self, i: int, item: Any) -> Iterator[Named]:
        """The inputs in item number `i`: one, or a batch of them. Raises UsageError for another shape or type."""
        name = f"calibration item {i}"
        item = first_of_pair(item)
        if is_pil_image(item):
            yield name, images.apply(item, self.for_images())
            return
        if not hasattr(item, "__array__"):
            raise UsageError(f"{name} is {type(item).__name__}; expected a {self.dtype} array of shape {self.shape}")
        array = np.asarray(detached(item))
        if array.ndim == len(self.shape) + 1:
            yield from (self._checked(f"{name}[{j}]", row) for j, row in enumerate(array))
        else:
            yield self._checked(name, array)

    def single_input(self, i: int, item: Any) -> Named:
        """The one input in item number `i`. Raises UsageError if the item is a batch of another size."""
        inputs = list(self.inputs_of(i, item))
        if len(inputs) != 1:
            raise UsageError(f"calibration item {i} is a batch of {len(inputs)}; a Dataset gives one input per item")
        return inputs[0]

    def _checked(self, name: str, array: NDArray[Any]) -> Named:
        if array.shape != self.shape:
            raise UsageError(f"{name} has shape {array.shape}; the network takes {self.shape}")
        if self.dtype == "uint8":
            if array.dtype != np.uint8:
                raise UsageError(f"{name} is {array.dtype}; the network takes uint8")
            return name, np.ascontiguousarray(array)
        if not np.issubdtype(array.dtype, np.floating):
            raise UsageError(
                f"{name} is {array.dtype}; calibration arrays must be network inputs, float32 and already normalised"
            )
        x = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(x).all():
            raise UsageError(f"{name} holds NaN or infinity; take it out of the calibration")
        return name, x


def are_images(calibration: Calibration) -> bool:
    """Whether the calibration holds image files or PIL images, which need preprocessing."""
    first: Any = calibration
    if not isinstance(calibration, (str, os.PathLike)) and is_indexed(calibration) and len(first):
        first = first_of_pair(item_at(calibration, 0))
    return isinstance(first, (str, os.PathLike)) or is_pil_image(first)


def is_indexed(source: object) -> bool:
    """Whether the source has a length and gives its items by number: a Dataset, an array, a list."""
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return sized and not isinstance(source, (Mapping, bytes))


def item_at(source: Any, i: int) -> Any:
    """Item `i`. Raises UsageError if the source fails."""
    try:
        return source[i]
    except Exception as e:  # a Dataset runs whatever its author wrote
        raise UsageError(f"calibration item {i} cannot be read: {type(e).__name__}: {e}".splitlines()[0]) from e


def first_of_pair(item: Any) -> Any:
    """The input of an (input, label) pair; any other item as it is."""
    if isinstance(item, (tuple, list)) and len(item) and (is_pil_image(item[0]) or hasattr(item[0], "__array__")):
        return item[0]
    return item


def is_pil_image(item: object) -> bool:
    """Whether the item is a PIL image. Does not import Pillow, which may be missing."""
    return any(cls.__module__ == "PIL.Image" for cls in type(item).__mro__)


def detached(item: Any) -> Any:
    """The item without its gradient and on the CPU: other torch tensors cannot become arrays."""
    return item.detach().cpu() if hasattr(item, "detach") else item
