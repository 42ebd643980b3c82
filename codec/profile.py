"""CodecProfile: everything both halves must agree on, baked into the metadata of front.onnx and back.onnx.

The profile is JSON (strict: unknown fields fail), so that Netron or `jq` can show it. It names the tensors at the cut,
and for each operating point the quantizer and the integer probability tables of every tensor. Nothing in it is ever
recomputed with floating point on the far side: what decides a symbol is compared or looked up.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import ProfileError
from .tables import MAX_LEVELS, ContextTables, PredictionTables, Taps
from .tasks import Task

METADATA_KEY = "splitwire.profile"
"""Key of the profile in `metadata_props` (ONNX) / `custom_metadata_map` (ONNX Runtime) of both graphs."""

FORMAT = 1
MAX_PROFILE_BYTES = 8 << 20

MAX_ELEMENTS = 1 << 26
"""Largest C·H·W of one tensor; the decoder never allocates for more (times the batch, see frame.py)."""

MAX_SIZES = 64
"""Most integers in one vector of sizes, and most vectors."""

EVEN = 1e-3
"""How much the distances of levels that count as evenly spaced may differ, in parts of the smallest."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MIN_FLOAT32 = float(np.finfo(np.float32).tiny)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)
"""ImageNet's, averaged over the channels."""

MAX_DIM = 1 << 26
Dim = Annotated[int, Meta(ge=1, le=MAX_DIM)]


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the network's input: resize, centre crop, scale, normalise, as in torchvision.

    value = (pixel · scale − mean) / std, with pixels from 0 to 255, in float32. What is unset is as in torchvision, and
    not in the JSON.

    resize: length of the shorter side after resizing, pixels; or (height, width), to which the whole image is resized
        whatever its shape; None leaves the image as it is.
    crop: (height, width) of the centre crop, pixels.
    mean, std: per channel, in the network's order of them, in the units after scaling. By default ImageNet's, in that
        order, of gray averaged over the channels; where there is a `scale`, 0 and 1; () for uint8.
    color: channels of the input; unset: rgb. gray: one channel, Pillow's luma (ITU-R 601).
    layout: nchw: an input is (C, H, W); nhwc: (H, W, C); unset: nchw.
    scale: unset: 1/255, as a division.
    dtype: of the input; unset: float32. uint8: the pixels as they are, without scale, mean and std.
    exif: whether the image is turned as its EXIF orientation says, before anything else; unset: no.
    pad: the image is resized to the largest size that fits into `crop` in its own shape, and the rest is filled with
        this gray level or RGB colour, from 0 to 255 (a letterbox); there is no `resize` then. Unset: no.
    pad_at: where: on both sides, the odd pixel right and below, or right and below alone; unset: both.
    """

    crop: tuple[Dim, Dim]
    resize: int | tuple[Dim, Dim] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = UNSET  # type: ignore[assignment]  # never left so: __post_init__ knows the default
    std: tuple[float, ...] = UNSET  # type: ignore[assignment]
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
        """Raise ValueError unless every pixel becomes a finite float32 that still tells of the pixel."""
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
        """Of the network's input: 3, of gray 1."""
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one input: (C, H, W), or (H, W, C) for nhwc."""
        height, width = self.crop
        return (height, width, self.channels) if self.layout == "nhwc" else (self.channels, height, width)

    @property
    def input_dtype(self) -> Literal["float32", "uint8"]:
        """`dtype`, float32 where unset."""
        return "uint8" if self.dtype == "uint8" else "float32"


class Quantizer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scalar quantizer: q = number of thresholds that are ≤ y; ŷ = levels[q].

    levels: N reconstruction values, strictly increasing, each exactly a float32; the outermost are c_min and c_max.
    thresholds: N − 1 decision values, non-decreasing, each exactly a float32.
    Comparisons need no rounding, so every machine takes the same decision (docs/bitstream.md).
    mean_preserving: the encoder takes the level below an element or the one above it, so that the mean of each plane
        stays (quantizer.py); needs levels that are evenly spaced; unset: no. Nothing changes for the decoder.
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
        """`mean_preserving`, False where unset."""
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
    """How a clipping range was chosen (a report; decides nothing).

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
    """The range is so many times as wide as the method made it, which served the task better at its rate; unset: 1."""

    @property
    def widening(self) -> float:
        """`scale`, 1 where unset."""
        return self.scale if isinstance(self.scale, float) else 1.0


class TensorPoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor at one operating point: its quantizer, and what its entropy coder needs.

    prediction: of the predictive rANS coder, for a tensor with taps; unset: `tables` decides.
    tables: of the context rANS coder; None, without `prediction`, is coded by the adaptive binary coder, which needs
        nothing.
    """

    quantizer: Quantizer
    clipping: Clipping
    tables: ContextTables | None
    prediction: PredictionTables | UnsetType = UNSET

    @property
    def coder(self) -> Literal["predictive", "context", "binary"]:
        """What codes it (coder ids 4, 1, 2)."""
        if isinstance(self.prediction, PredictionTables):
            return "predictive"
        return "binary" if self.tables is None else "context"


class OperatingPoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate the edge may choose per frame, with no new model.

    name: short and stable, e.g. "n4". tensors: one entry per tensor at the cut, in the profile's order.
    bits_per_element: expected rate, from the calibration images (side information not counted).
    agreement: share of the whole network's answers that stay, measured on calibration images: of Top-1 classes, or of
        detections weighted by score; None for other tasks.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
    tensors: tuple[TensorPoint, ...]
    bits_per_element: float
    agreement: float | None = None


class TensorSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor at the cut.

    shape: without the batch axis, 1 to 3 dims; (C, H, W), (T, D) or (D,).
    mean: of the calibration features; what a damaged chunk is concealed with. None: it cannot be.
    taps: what its elements may be predicted from, at the operating points that do so; unset where none does.
    """

    name: str
    shape: Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=3)]
    mean: float | None = None
    taps: Taps | UnsetType = UNSET

    @property
    def elements(self) -> int:
        """Elements of one image's tensor."""
        return math.prod(self.shape)  # of Python integers: nothing overflows

    @property
    def planes(self) -> tuple[int, int, int]:
        """(C, H, W): the shape as the coder sees it; missing axes are 1 in front: (D,) → (1, 1, D)."""
        c, h, w = (1, 1, 1, *self.shape)[-3:]
        return c, h, w


def check_point(spec: TensorSpec, point: TensorPoint) -> None:
    """Raise ValueError unless the point has all that one of the coders needs, for a tensor like `spec`."""
    levels, channels = len(point.quantizer.levels), spec.planes[0]
    if point.tables is not None:
        point.tables.check(levels, channels)
    if isinstance(point.prediction, PredictionTables):
        if point.tables is not None or not isinstance(spec.taps, Taps):
            raise ValueError(f"tensor {spec.name!r} has a prediction: it needs taps, and no tables")
        point.prediction.check(levels, channels, spec.taps)


class SizeSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes that the back half needs and cannot see in the tensors: a vector of `length` int64 from 0 to MAX_DIM."""

    name: str
    length: Annotated[int, Meta(ge=1, le=MAX_SIZES)]


class CodecProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole contract between a front and a back.

    model: the model's name as the user gave it. cut: the layer as the user named it.
    front_sha256, back_sha256: hex digests of the two serialised graphs without splitwire's metadata.
    max_difference: largest |back(front(x)) − whole(x)| / max(1, |whole(x)|) measured at export.
    default_op: name of the operating point used when none is asked for; not part of the fingerprint, so that it can be
        changed without making a new pair.
    sizes: what crosses beside the tensors; mostly unset, and then not in the JSON (`size_specs` is () there).
    outputs: names of the whole network's outputs in order, where some of them are known before the cut and leave from
        the front; unset where all come from the back.
    front_precision, back_precision: what the halves compute in; unset where that is float32. In other arithmetic
        `max_difference` is that of the float32 halves, and the agreement of the operating points is of these.
    task: what the outputs are, by which the edge shows them; unset where that is not known.
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
        if len(self.size_specs) > MAX_SIZES or len(self.tensors) + len(self.size_specs) > 255:
            raise ValueError(f"{len(self.tensors)} tensors and {len(self.size_specs)} vectors of sizes are too many")
        names = [p.name for p in self.operating_points]
        if len(set(names)) != len(names) or self.default_op not in names:
            raise ValueError(f"operating points {names} must be distinct and hold the default {self.default_op!r}")
        for point in self.operating_points:
            if len(point.tensors) != len(self.tensors):
                counts = f"{len(point.tensors)} tensors, not {len(self.tensors)}"
                raise ValueError(f"operating point {point.name!r} has {counts}")
            for spec, tensor in zip(self.tensors, point.tensors, strict=True):
                check_point(spec, tensor)

    @property
    def size_specs(self) -> tuple[SizeSpec, ...]:
        """`sizes`, () where unset."""
        return self.sizes if isinstance(self.sizes, tuple) else ()

    @property
    def crossing(self) -> tuple[str, ...]:
        """Names of everything that crosses: tensors, then sizes."""
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
        """Serialise for `metadata_props[METADATA_KEY]`."""
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
