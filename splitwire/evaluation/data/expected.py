"""What an evaluated network takes and answers: the data must fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What data must fit.

    preprocessing: from a picture to the network's input, None if the pair has none. input_shape, dtype: of the front
    graph, with the batch axis; None where an axis is free. labels: the profile's class names. classes: K of the
    network's (B, K) answer, where its graph says so. detections, segments: the network is a detector, or a
    segmentation. custom: a user's metric judges, so that labels may be anything.
    """

    preprocessing: Preprocessing | None
    input_shape: Sequence[int | None]
    dtype: str
    labels: Sequence[str] | None
    classes: int | None
    detections: bool
    segments: bool
    custom: bool

    @property
    def count(self) -> int | None:
        """The number of classes; None if nothing says it.

        Raises UsageError where the profile and the network differ.
        """
        if self.labels is None or self.classes is None or len(self.labels) == self.classes:
            return self.classes if self.labels is None else len(self.labels)
        raise UsageError(
            f"the profile has {len(self.labels)} labels, the network tells {self.classes} classes apart;"
            " export it with labels of its own"
        )

    @property
    def for_pictures(self) -> Preprocessing:
        """The preprocessing. Raises UsageError if the pair has none, or one that gives inputs of another shape."""
        how = self.preprocessing
        if how is None:
            raise UsageError(
                "this pair was exported without preprocessing, so it takes no pictures; give an .npz with `inputs`, or"
                " export it with preprocessing"
            )
        if not self.fits(how.input_shape):
            raise UsageError(
                f"the preprocessing makes {how.input_shape} of a picture, the network takes {self.takes}; give an .npz"
                " with `inputs`"
            )
        return how

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the network takes inputs of this shape, the batch axis left out."""
        axes = self.input_shape[1:]
        return len(shape) == len(axes) and all(n is None or n == s for n, s in zip(axes, shape, strict=True))

    @property
    def takes(self) -> str:
        """The input shape as text, such as (n, 3, any, any)."""
        return "(" + ", ".join(["n", *("any" if n is None else str(n) for n in self.input_shape[1:])]) + ")"
