"""CodecProfile: everything both halves must agree on, stored in the metadata of front.onnx and back.onnx.

The profile is JSON, so that Netron or `jq` can show it, and strict: unknown fields are an error. It names the tensors
at the cut. For each operating point it has the quantizer and the integer probability tables of every tensor. Both ends
only compare and look up these values; they never recompute them in floating point.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import ProfileError
from .shared.tasks import Task
from .tables import MAX_LEVELS, ContextTables, PredictionTables, Taps
from .transform import STEPS, Transform

METADATA_KEY = "splitwire.profile"
"""Key of the profile in `metadata_props` (ONNX) / `custom_metadata_map` (ONNX Runtime) of both graphs."""

FRONT, BACK = "front.onnx", "back.onnx"
"""Names of the two files of a pair, in one folder."""

FORMAT = 1
MAX_PROFILE_BYTES = 8 << 20

MAX_ELEMENTS = 1 << 26
"""Largest C·H·W of one tensor; the decoder allocates at most this per image (wire/frame.py bounds the batch)."""

MAX_SIZES = 64
"""Most integers in a vector of sizes, and most such vectors."""

EVEN = 1e-3
"""Largest relative difference between the steps of evenly spaced levels."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MIN_FLOAT32 = float(np.finfo(np.float32).tiny)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)
"""ImageNet's mean and standard deviation, averaged over the channels."""

MAX_DIM = 1 << 26
Dim = Annotated[int, Meta(ge=1, le=MAX_DIM)]


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the network's input: resize, centre crop, scale, normalise, as in torchvision.

    value = (pixel · scale − mean) / std, with pixels from 0 to 255, in float32. An unset field means torchvision's
    behaviour and is absent from the JSON.

    resize: length of the shorter side after resizing, pixels; or (height, width), to which the whole image is resized
        without regard to its aspect ratio; None: no resizing.
    crop: (height, width) of the centre crop, pixels.
    mean, std: per channel, in the network's channel order, in the units after scaling. The default is ImageNet's,
        averaged over the channels for gray; 0 and 1 if `scale` is set; () for uint8.
    color: channels of the input; unset: rgb. gray: one channel, Pillow's luma (ITU-R 601).
    layout: nchw: an input is (C, H, W); nhwc: (H, W, C); unset: nchw.
    scale: unset: 1/255, as a division.
    dtype: of the input; unset: float32. uint8: the pixels as they are, without scale, mean and std.
    exif: whether the image is first turned as its EXIF orientation says; unset: no.
    pad: letterbox: the image is resized to the largest size that fits into `crop` at its aspect ratio, and the rest is
        filled with this gray level or RGB colour, from 0 to 255. `resize` is None then. Unset: no letterbox.
    pad_at: where the padding is: on both sides (an odd pixel goes right and below), or right and below only; unset:
        both.
    """

    crop: tuple[Dim, Dim]
    resize: int | tuple[Dim, Dim] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = UNSET  # type: ignore[assignment]  # __post_init__ sets the default
    std: tuple[float, ...] = UNSET  # type: ignore[assignment]  # the same
    color: Literal["rgb", "bgr", "gray"] | UnsetType = UNSET
    layout: Literal["nchw", "nhwc"] | UnsetType = UNSET
    scale: float | UnsetType = UNSET
    dtype: Literal["float32", "uint8"] | UnsetType = UNSET
    exif: bool | UnsetType = UNSET
    pad: int | tuple[int, int, int] | UnsetType = UNSET
    pad_at: Literal["both", "end"] | UnsetType = UNSET

    def __post_init__(self) -> None:
        # not by the type Dim: msgspec 0.22 reads past its constraints where a bounded int and a pair are in one union
        if isinstance(self.resize, int) and not 1 <= self.resize <= MAX_DIM:
            raise ValueError(f"resize must be 1..{MAX_DIM} pixels, is {self.resize}")
        self._check_pad()
        given: tuple[object, object] = (self.mean, self.std)
        mean, std = self._default_mean_std()
        mean = mean if given[0] is UNSET else tuple(map(float, self.mean))
        std = std if given[1] is UNSET else tuple(map(float, self.std))
        if self.dtype != "uint8":
            self._check_values(mean, std)
        elif mean or std or not isinstance(self.scale, UnsetType):
            raise ValueError("a uint8 input is the pixels as they are: it has no scale, mean and std")
        # as JSON gives them back, so that the fingerprint is the same here and there
        msgspec.structs.force_setattr(self, "mean", mean)
        msgspec.structs.force_setattr(self, "std", std)
        if isinstance(self.scale, int):
            msgspec.structs.force_setattr(self, "scale", float(self.scale))

    def _default_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.dtype == "uint8":
            return (), ()
        if not isinstance(self.scale, UnsetType):
            return (0.0,) * self.channels, (1.0,) * self.channels
        if self.color == "gray":
            return GRAY_MEAN, GRAY_STD
        order = -1 if self.color == "bgr" else 1
        return IMAGENET_MEAN[::order], IMAGENET_STD[::order]

    def _check_pad(self) -> None:
        if isinstance(self.pad, UnsetType):
            if not isinstance(self.pad_at, UnsetType):
                raise ValueError("pad_at goes with pad, the colour")
            return
        levels = (self.pad,) if isinstance(self.pad, int) else tuple(self.pad)
        if any(not 0 <= level <= 255 for level in levels) or (self.color == "gray" and len(levels) > 1):
            expected = "a gray level" if self.color == "gray" else "a gray level or an RGB colour"
            raise ValueError(f"pad must be {expected} from 0 to 255, is {self.pad}")
        if self.resize is not None:
            raise ValueError("pad resizes the image to fit into the crop; resize must be None with it")

    def _check_values(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Raise ValueError unless every pixel value becomes a finite float32."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.channels:
                color = "rgb" if isinstance(self.color, UnsetType) else self.color
                entries = "1 entry" if self.channels == 1 else f"{self.channels} entries"
                raise ValueError(f"{name} must have {entries} for {color}, has {len(values)}")
        scale = self.scale if isinstance(self.scale, (int, float)) else 1 / 255
        for name, value in (("scale", scale), *(("mean", m) for m in mean), *(("std", s) for s in std)):
            if not abs(value) <= MAX_FLOAT32:
                raise ValueError(f"{name} must be finite, is {value}")
            if name != "mean" and abs(value) < MIN_FLOAT32:
                raise ValueError(f"{name} must not be 0, is {value}")
        extremes = [(p * scale - m) / s for p in (0, 255) for m, s in zip(mean, std, strict=True)]
        if not all(abs(x) <= MAX_FLOAT32 for x in extremes):
            raise ValueError(f"scale, mean and std make values up to {max(map(abs, extremes)):.3g}, over float32")

    @property
    def channels(self) -> int:
        """Channels of the network's input: 3, or 1 for gray."""
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input: (C, H, W), or (H, W, C) for nhwc."""
        height, width = self.crop
        return (height, width, self.channels) if self.layout == "nhwc" else (self.channels, height, width)

    @property
    def input_dtype(self) -> Literal["float32", "uint8"]:
        """`dtype`, or float32 if unset."""
        return "uint8" if self.dtype == "uint8" else "float32"


class Quantizer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scalar quantizer: q = number of thresholds that are ≤ y; ŷ = levels[q].

    levels: N reconstruction values, strictly increasing, each exactly a float32; the outermost are c_min and c_max.
    thresholds: N − 1 decision values, non-decreasing, each exactly a float32.
        Comparisons need no rounding, so every machine makes the same decision (docs/bitstream.md).
    mean_preserving: the encoder takes the level below an element or the one above it, so that the mean of each plane
        stays. It needs evenly spaced levels. Unset: no. The decoder does not depend on it.
    Source: Cohen et al. 2021 (uniform with pinned ends, and its entropy-constrained variant).
    """

    levels: tuple[float, ...]
    thresholds: tuple[float, ...]
    mean_preserving: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        n = len(self.levels)
        if not 2 <= n <= MAX_LEVELS or len(self.thresholds) != n - 1:
            raise ValueError(
                f"quantizer needs 2..{MAX_LEVELS} levels and one threshold fewer; got {n} and {len(self.thresholds)}"
            )
        levels, thresholds = np.array(self.levels), np.array(self.thresholds)
        for name, a in (("levels", levels), ("thresholds", thresholds)):
            with np.errstate(over="ignore"):
                exact = a.astype(np.float32) == a
            if not (exact & np.isfinite(a)).all():
                raise ValueError(f"quantizer {name} must be finite float32 values")
        if (np.diff(levels) <= 0).any() or (np.diff(thresholds) < 0).any():
            raise ValueError("quantizer levels must increase and thresholds must not decrease")
        if self.preserves_mean and np.ptp(np.diff(levels)) > EVEN * np.diff(levels).min():
            raise ValueError("a mean-preserving quantizer needs evenly spaced levels")

    @property
    def preserves_mean(self) -> bool:
        """`mean_preserving`, or False if unset."""
        return self.mean_preserving is True

    @property
    def clipping_range(self) -> tuple[float, float]:
        """(c_min, c_max)."""
        return self.levels[0], self.levels[-1]

    @classmethod
    def uniform(cls, c_min: float, c_max: float, n: int) -> Quantizer:
        """Uniform quantizer with pinned ends: Δ = (c_max − c_min)/(N − 1), ŷ_q = c_min + qΔ. Source: Cohen 2021."""
        if not 2 <= n <= MAX_LEVELS or not c_min < c_max:
            raise ValueError(f"need 2..{MAX_LEVELS} levels and c_min < c_max; got n={n}, range [{c_min}, {c_max}]")
        levels = np.linspace(c_min, c_max, n).astype(np.float32)
        thresholds = (levels[:-1] + (levels[1:] - levels[:-1]) / np.float32(2)).astype(np.float32)
        return cls(levels=tuple(levels.tolist()), thresholds=tuple(thresholds.tolist()))


class Clipping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a clipping range was chosen. It is a report only: neither end uses it.

    method: the leaky-ReLU / ReLU density of Cohen et al., or the measured histogram.
    ks_distance: Kolmogorov–Smirnov distance between the fitted density and the measured distribution, in [0, 1];
        None where no density could be fitted.
    """

    method: Literal["leaky_relu_model", "relu_model", "histogram"]
    ks_distance: float | None = None
    rate: float | None = None
    """λ of the fitted density."""
    location: float | None = None
    """μ of the fitted density."""
    reason: str | None = None
    """Why the histogram was used, in words."""
    scale: float | UnsetType = UNSET
    """Multiple of the method's range that was chosen because it gives less output distortion at its rate; unset: 1."""

    @property
    def widening(self) -> float:
        """`scale`, or 1 if unset."""
        return self.scale if isinstance(self.scale, float) else 1.0


class TensorPoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor at one operating point: its quantizer, and the tables of its entropy coder.

    prediction: tables of the predictive rANS coder, for a tensor with taps; unset: another coder is used.
    tables: tables of the context rANS coder. With neither, the adaptive binary coder is used, which needs no tables.
    """

    quantizer: Quantizer
    clipping: Clipping
    tables: ContextTables | None
    prediction: PredictionTables | UnsetType = UNSET

    @property
    def coder(self) -> Literal["predictive", "context", "binary"]:
        """The entropy coder of this point (coder ids 4, 1 and 2)."""
        if isinstance(self.prediction, PredictionTables):
            return "predictive"
        return "binary" if self.tables is None else "context"


class OperatingPoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate that the edge can choose for each frame without another model.

    name: short and stable, e.g. "n4".
    tensors: one entry per tensor at the cut, in the profile's order; () in a transform pair, which has steps instead.
    bits_per_element: expected rate, from the calibration images, without side information; of the features, where
        these are transformed.
    agreement: share of the whole network's outputs that do not change, measured on calibration images: of Top-1
        classes, or of detections weighted by score; None for other tasks.
    steps: index of the step of each tensor of a transform pair, 0 to 127; unset in a scalar one. Index 64 is the step
        1, and four indices are one octave.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
    tensors: tuple[TensorPoint, ...]
    bits_per_element: float
    agreement: float | None = None
    steps: tuple[Annotated[int, Meta(ge=0, lt=STEPS)], ...] | UnsetType = UNSET


class TensorSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor at the cut.

    shape: without the batch axis, 1 to 3 dims; (C, H, W), (T, D) or (D,). In a transform pair (tiles, N).
    mean: of the calibration features; a damaged chunk is filled with it. None: damaged chunks cannot be concealed.
    taps: the elements that the predictive coder predicts from; unset if no operating point uses it.
    transform: the tensor holds coefficients of features, and this is how they are coded; unset in a scalar pair.
    """

    name: str
    shape: Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=3)]
    mean: float | None = None
    taps: Taps | UnsetType = UNSET
    transform: Transform | UnsetType = UNSET

    @property
    def elements(self) -> int:
        """Elements of one image's tensor."""
        return math.prod(self.shape)  # Python integers: no overflow

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of the features, without the batch axis: the tensor's, unless it holds coefficients."""
        return self.transform.feature_shape if isinstance(self.transform, Transform) else self.shape

    @property
    def feature_elements(self) -> int:
        """Elements of one image's features: rates are per these. The tensor's, unless it holds coefficients."""
        return self.transform.feature_elements if isinstance(self.transform, Transform) else self.elements

    @property
    def planes(self) -> tuple[int, int, int]:
        """(C, H, W): the shape for the coder. Missing axes are added in front: (D,) → (1, 1, D)."""
        c, h, w = (1, 1, 1, *self.shape)[-3:]
        return c, h, w


def check_transform(spec: TensorSpec, first: TensorSpec) -> None:
    """Raise ValueError unless the tensor's transform is valid, and unset if that of the first tensor is unset."""
    if isinstance(spec.transform, Transform) != isinstance(first.transform, Transform):
        raise ValueError(f"tensors {first.name!r} and {spec.name!r}: all have a transform, or none has")
    if isinstance(spec.transform, Transform):
        try:
            spec.transform.check(spec.shape)
        except ValueError as e:
            raise ValueError(f"transform of tensor {spec.name!r}: {e}") from None
        if isinstance(spec.taps, Taps) or spec.mean not in (None, 0.0):
            raise ValueError(f"tensor {spec.name!r} holds coefficients: it has no taps, and a mean of 0 or none")
        if spec.feature_elements > MAX_ELEMENTS:
            name, elements = spec.transform.features, spec.feature_elements
            raise ValueError(f"features {name!r} have {elements} elements; at most {MAX_ELEMENTS}")


def check_point(specs: tuple[TensorSpec, ...], point: OperatingPoint) -> None:
    """Raise ValueError unless the point has what one of the coders needs for each of the tensors."""
    steps = len(point.steps) if isinstance(point.steps, tuple) else None
    expected = (0, len(specs)) if isinstance(specs[0].transform, Transform) else (len(specs), None)
    if (len(point.tensors), steps) != expected:
        counts = f"{len(point.tensors)} tensors, not {expected[0]}"
        if steps != expected[1]:
            counts += f", and {steps or 'no'} steps, not {expected[1] or 'any'}"
        raise ValueError(f"operating point {point.name!r} has {counts}")
    for spec, tensor in zip(specs, point.tensors, strict=False):
        check_tensor_point(spec, tensor)


def check_tensor_point(spec: TensorSpec, point: TensorPoint) -> None:
    """Raise ValueError unless the point has valid tables for one of the coders, for a tensor like `spec`."""
    levels, channels = len(point.quantizer.levels), spec.planes[0]
    if point.tables is not None:
        point.tables.check(levels, channels)
    if isinstance(point.prediction, PredictionTables):
        if point.tables is not None or not isinstance(spec.taps, Taps):
            raise ValueError(f"tensor {spec.name!r} has a prediction: it needs taps, and no tables")
        point.prediction.check(levels, channels, spec.taps)


class SizeSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vector of sizes that the back needs and cannot derive from the tensors: `length` int64 from 0 to 2²⁶."""

    name: str
    length: Annotated[int, Meta(ge=1, le=MAX_SIZES)]


class CodecProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole contract between a front and a back.

    model: the model's name as the user gave it. cut: the layer as the user named it.
    front_sha256, back_sha256: hex digests of the two serialised graphs without splitwire's metadata.
    max_difference: largest |back(front(x)) − whole(x)| / max(1, |whole(x)|) measured at export.
    default_op: name of the operating point that is used unless another is asked for. It is not part of the
        fingerprint, so it can be changed without a new pair.
    sizes: vectors of sizes that cross the cut beside the tensors; mostly unset, and then absent from the JSON
        (`size_specs` is () there).
    outputs: names of the whole network's outputs in order, if the front computes some of them; unset if all come from
        the back.
    front_precision, back_precision: the precision of the halves; unset for float32. At reduced precision,
        `max_difference` is measured on the float32 halves, and the agreement of the operating points on these halves.
    task: the kind of outputs, by which the edge shows them; unset if unknown.
    frames: the form of frames of one chunk; unset for short frames, as pairs of 0.1 have them.
    """

    format: Annotated[int, Meta(ge=1)] = FORMAT
    model: str
    cut: str
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=255)]
    operating_points: Annotated[tuple[OperatingPoint, ...], Meta(min_length=1, max_length=255)]
    default_op: str
    front_sha256: str
    back_sha256: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    calibration_images: int = 0
    max_difference: float | None = None
    sizes: tuple[SizeSpec, ...] | UnsetType = UNSET
    outputs: tuple[str, ...] | UnsetType = UNSET
    front_precision: Literal["float32", "int8"] | UnsetType = UNSET
    back_precision: Literal["float32", "float16"] | UnsetType = UNSET
    task: Task | UnsetType = UNSET
    frames: Literal["compact"] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"profile format {self.format} is not {FORMAT}; update splitwire")
        for t in self.tensors:
            if t.elements > MAX_ELEMENTS:
                raise ValueError(f"tensor {t.name!r} has {t.elements} elements; at most {MAX_ELEMENTS}")
            if t.mean is not None and not abs(t.mean) <= MAX_FLOAT32:
                raise ValueError(f"tensor {t.name!r} has a mean of {t.mean}, which is no float32")
            if isinstance(t.taps, Taps):
                t.taps.check(t.planes[0])
            check_transform(t, self.tensors[0])
        if len(self.size_specs) > MAX_SIZES or len(self.tensors) + len(self.size_specs) > 255:
            raise ValueError(f"{len(self.tensors)} tensors and {len(self.size_specs)} vectors of sizes are too many")
        names = [p.name for p in self.operating_points]
        if len(set(names)) != len(names) or self.default_op not in names:
            raise ValueError(f"operating points {names} must be distinct and hold the default {self.default_op!r}")
        for point in self.operating_points:
            check_point(self.tensors, point)

    @property
    def is_transform(self) -> bool:
        """Whether the tensors hold coefficients of a transform; then operating points have steps and no tensors."""
        return isinstance(self.tensors[0].transform, Transform)

    @property
    def size_specs(self) -> tuple[SizeSpec, ...]:
        """`sizes`, or () if unset."""
        return self.sizes if isinstance(self.sizes, tuple) else ()

    @property
    def crossing(self) -> tuple[str, ...]:
        """Names of everything that crosses the cut: tensors, then sizes."""
        return (*(t.name for t in self.tensors), *(s.name for s in self.size_specs))

    @property
    def fingerprint(self) -> bytes:
        """8 bytes: SHA-256 over the canonical JSON of everything but `default_op`, truncated. Goes into every frame."""
        neutral = msgspec.structs.replace(self, default_op=self.operating_points[0].name)
        return hashlib.sha256(msgspec.json.encode(neutral)).digest()[:8]

    def point_index(self, name: str | None = None) -> int:
        """Index of the operating point `name` (None: the default). Raises ProfileError if there is none."""
        wanted = self.default_op if name is None else name
        for i, point in enumerate(self.operating_points):
            if point.name == wanted:
                return i
        known = ", ".join(p.name for p in self.operating_points)
        raise ProfileError(f"operating point {wanted!r} is not in this profile; it has {known}")

    def to_json(self) -> str:
        """The profile as JSON, as it lies in the metadata of both graphs."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> CodecProfile:
        """Parse and check a profile. Raises ProfileError, in one line, for anything but a valid profile."""
        if len(text) > MAX_PROFILE_BYTES:
            raise ProfileError(f"profile of {len(text)} bytes is over the limit of {MAX_PROFILE_BYTES}")
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError) as e:
            raise ProfileError(f"codec profile is damaged: {e}; export the model again") from e

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], source: str) -> CodecProfile:
        """The profile in a graph's metadata map. Raises ProfileError if `source` (a file name) carries none."""
        if METADATA_KEY not in metadata:
            raise ProfileError(f"{source} carries no splitwire profile; make it with `splitwire export`")
        return cls.from_json(metadata[METADATA_KEY])
