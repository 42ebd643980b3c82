"""How pictures become network inputs: from the user's options and from the network's input.

The user may set any part of the options (PictureOptions). The shape and the type of the network's input give more of
them (`completed`). All others have the values of ImageNet networks, and a note says so.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing

Sizes = tuple[int | None, ...]
"""The shape of one input without the batch; None where the network takes any size."""

WantedShape = tuple[int, ...] | Callable[[Sizes], tuple[int, ...] | None] | None
"""The requested shape (1, …) of one input; a function that gives it from the sizes that a network declares; or None."""

CHANNELS = (1, 3)
SMALL = 128
"""For input sides below this, the crop has no margin: the network gets the whole picture."""


class PictureOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Preprocessing with only some fields set. The fields are those of `Preprocessing`, but take more forms:

    crop, resize: a side, or (height, width). resize="none" keeps the size of the picture. mean, std, scale: numbers or
    fractions ("1/255"); a single number for mean or std holds for every channel.
    """

    crop: int | tuple[int, int] | UnsetType = UNSET
    resize: int | str | tuple[int, int] | UnsetType = UNSET
    interpolation: Literal["nearest", "bilinear", "bicubic"] | UnsetType = UNSET
    mean: float | str | tuple[float | str, ...] | UnsetType = UNSET
    std: float | str | tuple[float | str, ...] | UnsetType = UNSET
    color: Literal["rgb", "bgr", "gray"] | UnsetType = UNSET
    layout: Literal["nchw", "nhwc"] | UnsetType = UNSET
    scale: float | str | UnsetType = UNSET
    dtype: Literal["float32", "uint8"] | UnsetType = UNSET
    exif: bool | UnsetType = UNSET
    pad: int | tuple[int, int, int] | UnsetType = UNSET
    pad_at: Literal["both", "end"] | UnsetType = UNSET

    def size(self, sizes: tuple[int | None, int | None] = (None, None)) -> tuple[int, int] | None:
        """(height, width) of the input: the crop, or else `sizes` of the network, or else the target of the resize.

        None if none of these gives both.
        """
        if not isinstance(self.crop, UnsetType):
            return _pair(self.crop)
        if sizes[0] is not None and sizes[1] is not None:
            return sizes[0], sizes[1]
        if isinstance(self.resize, tuple):
            return self.resize
        return _pair(self.resize) if isinstance(self.resize, int) and self.pad is not UNSET else None


Given = Preprocessing | PictureOptions | None


def read_options(path: Path | None, arguments: Mapping[str, Any]) -> PictureOptions | None:
    """The options in a TOML file and in the arguments of the command; None if there are none.

    arguments: field → value; they override the file. Raises UsageError that names the file or the option: an unreadable
    file, an unknown field (with the nearest known one), an invalid value.
    """
    fields: dict[str, Any] = {}
    if path is not None:
        try:
            with path.open("rb") as file:
                fields = tomllib.load(file)
        except OSError as e:
            raise UsageError(f"{path}: the preprocessing cannot be read: {e.strerror or e}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise UsageError(f"{path}: the preprocessing is not TOML: {e}") from e
        for name in fields:
            if name not in PictureOptions.__struct_fields__:
                raise UsageError(f"{path}: there is no field {name!r} in a preprocessing; {_nearest(name)}")
        _checked(fields, f"{path}: ")
    fields |= {name: value for name, value in arguments.items() if value is not None}
    return _checked(fields, "--") if fields else None


def _looked_at(options: PictureOptions) -> PictureOptions:
    """The same options after a check of every value: Python code can make them with any values."""
    return _checked(msgspec.to_builtins(options), "preprocessing: ")


def _checked(fields: Mapping[str, Any], where: str) -> PictureOptions:
    """The options, after a check of every value. where: text before the name of the field in messages."""
    for name, value in fields.items():
        try:
            one = msgspec.convert({name: value}, PictureOptions)
        except msgspec.ValidationError as e:
            expected = _EXPECTED.get(name) or str(e).split(" - ")[0]
            raise UsageError(f"{where}{_shown(name, where)}: expected {expected}; got {value!r}") from e
        wrong = (
            (name in ("crop", "resize") and not _sides(value))
            or (name in ("mean", "std", "scale") and _numbers(value) is None)
            or (
                name == "pad" and not all(0 <= level <= 255 for level in ([value] if isinstance(value, int) else value))
            )
        )
        if wrong:
            raise UsageError(f"{where}{_shown(name, where)}: expected {_EXPECTED[name]}; got {value!r}")
        del one
    options = msgspec.convert(dict(fields), PictureOptions)
    if isinstance(options.mean, UnsetType) != isinstance(options.std, UnsetType):
        present, missing = ("std", "mean") if isinstance(options.mean, UnsetType) else ("mean", "std")
        neutral = "0" if missing == "mean" else "1"
        raise UsageError(f"{where}{present}: mean and std go together; give {missing} too, {neutral} for none")
    return options


_EXPECTED = {
    "crop": "a side in pixels, or height and width",
    "resize": "a side in pixels, height and width, or none",
    "mean": "one number, or one per channel",
    "std": "one number, or one per channel",
    "scale": "a number, or a fraction as 1/255",
    "pad": "a gray level from 0 to 255, or an RGB colour of three",
    "color": "rgb, bgr or gray",
    "layout": "nchw or nhwc",
    "interpolation": "nearest, bilinear or bicubic",
    "dtype": "float32 or uint8",
    "exif": "true or false",
    "pad_at": "both or end",
}


def _shown(name: str, where: str) -> str:
    return name.replace("_", "-") if where == "--" else name


def _nearest(name: str) -> str:
    fields = PictureOptions.__struct_fields__
    near = difflib.get_close_matches(name.lower(), fields, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"


def _sides(value: Any) -> bool:
    """Whether the value is valid for `crop` and `resize`."""
    sides = [value] if isinstance(value, int) else value
    return value == "none" or (not isinstance(value, str) and all(side >= 1 for side in sides))


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Numbers and fractions as numbers; None if one of them is neither."""
    try:
        return tuple(map(_number, value if isinstance(value, (list, tuple)) else [value]))
    except (ValueError, ZeroDivisionError):
        return None


def _number(value: float | str) -> float:
    over, _, under = str(value).partition("/")
    return float(over) / float(under) if under else float(over)


def form(sizes: Sizes) -> tuple[Literal["nchw", "nhwc"], int | None]:
    """(layout, channels) of inputs with these three sizes; the channels are None if the input is no picture.

    The axis of the channels is the outer one with 1 or 3. If both or none have that, it is the first.
    """
    first, _, last = sizes
    if first not in CHANNELS and last in CHANNELS:
        return "nhwc", last
    if first is None:
        return "nchw", 3
    return "nchw", first if first in CHANNELS else None


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether inputs of this shape (without the batch) can be pictures."""
    return len(shape) == 3 and form(shape)[1] is not None


def wanted_shape(preprocessing: Given, image_size: tuple[int, int] | None) -> Callable[[Sizes], tuple[int, ...] | None]:
    """A function from the sizes that a network declares to the shape (1, …) of one input.

    The image size comes from `image_size` or from the preprocessing; without either, the function returns None.
    Raises UsageError for an invalid value. The function raises UsageError if the sizes contradict each other.
    """
    preprocessing = _looked_at(preprocessing) if isinstance(preprocessing, PictureOptions) else preprocessing

    def shape_for(sizes: Sizes) -> tuple[int, ...] | None:
        if len(sizes) != 3:
            return None
        if isinstance(preprocessing, Preprocessing):
            if preprocessing.layout != "nhwc" and form(sizes)[0] == "nhwc":
                raise UsageError(
                    f"the network takes inputs of {_text(sizes)}, channels last; give the preprocessing layout='nhwc'"
                )
            return (1, *preprocessing.input_shape)
        layout, channels = form(sizes)
        if preprocessing is None:
            size = image_size
        else:
            _check_axes(preprocessing, sizes)
            layout = layout if isinstance(preprocessing.layout, UnsetType) else preprocessing.layout
            if not isinstance(preprocessing.color, UnsetType):
                channels = 1 if preprocessing.color == "gray" else 3
            size = preprocessing.size(
                image_size or ((sizes[0], sizes[1]) if layout == "nhwc" else (sizes[1], sizes[2]))
            )
            if size is not None and image_size is not None and image_size != size:
                raise UsageError(f"the image size is {_by(image_size)}, the crop {_by(size)}: they must be equal")
        if size is None:
            return None
        return (1, *size, channels or 3) if layout == "nhwc" else (1, channels or 3, *size)

    return shape_for


def _check_axes(options: PictureOptions, sizes: Sizes) -> None:
    """Raise UsageError if the network's input contradicts the layout or the number of channels."""
    declared, channels = form(sizes)
    layout = declared if isinstance(options.layout, UnsetType) else options.layout
    axis = sizes[2 if layout == "nhwc" else 0]
    if channels is None or axis is None:
        return
    if axis not in CHANNELS:
        last = "last" if declared == "nhwc" else "first"
        raise UsageError(f"layout {layout}: the network takes inputs of {_text(sizes)}, channels {last}: {declared}")
    if not isinstance(options.color, UnsetType) and axis != (1 if options.color == "gray" else 3):
        raise UsageError(
            f"color {options.color}: the network takes inputs of {_text(sizes)}, "
            + ("one channel: gray" if axis == 1 else "three channels: rgb or bgr")
        )


def completed(
    preprocessing: Given, shape: tuple[int, ...], dtype: Literal["float32", "uint8"]
) -> tuple[Preprocessing, list[str]]:
    """The complete preprocessing for network inputs of this shape (without the batch) and type, and notes for the user.

    Raises UsageError if the preprocessing makes other inputs, or if pictures cannot become such inputs.
    """
    if isinstance(preprocessing, Preprocessing):
        check_fits(preprocessing, shape, dtype)
        return preprocessing, []
    options = _looked_at(preprocessing or PictureOptions())
    layout, channels = form(shape) if len(shape) == 3 else ("nchw", None)
    if len(shape) == 3:
        _check_axes(options, shape)
    if not isinstance(options.layout, UnsetType):
        layout = options.layout
        channels = shape[2 if layout == "nhwc" else 0] if len(shape) == 3 else None
    if channels not in CHANNELS:
        raise UsageError(
            "images make inputs of shape (batch, 3, H, W), (batch, H, W, 3), or with one channel; the network takes"
            f" ({', '.join(map(str, ('batch', *shape)))}); pass arrays of that shape as calibration"
        )
    inferred: dict[str, str] = {}
    if layout == "nhwc" and isinstance(options.layout, UnsetType):
        inferred["layout"] = "nhwc"
    if channels == 1 and isinstance(options.color, UnsetType):
        inferred["color"] = "gray"
    if dtype == "uint8" and isinstance(options.dtype, UnsetType):
        inferred["dtype"] = "uint8"
    crop = (shape[0], shape[1]) if layout == "nhwc" else (shape[1], shape[2])
    if options.size(crop) != crop:
        raise UsageError(f"the crop is {_by(options.size(crop) or crop)}, the network takes {_by(crop)} pixels")
    fields = {name: getattr(options, name) for name in _PLAIN if getattr(options, name) is not UNSET}
    fields |= {**inferred, "crop": crop, "resize": _resized(options, crop)}
    gray = channels == 1
    for name in ("mean", "std"):
        values = _numbers(getattr(options, name)) if getattr(options, name) is not UNSET else None
        if values is not None:
            fields[name] = values if gray or len(values) != 1 else values * 3
    if not isinstance(options.scale, UnsetType):
        fields["scale"] = (_numbers(options.scale) or (0.0,))[0]
    try:
        how = Preprocessing(**fields)
    except ValueError as e:
        raise UsageError(f"preprocessing: {e}") from e
    check_fits(how, shape, dtype)
    return how, _notes(preprocessing is not None, how, inferred, shape)


_PLAIN = ("interpolation", "color", "layout", "dtype", "exif", "pad", "pad_at")


def overlaid(options: PictureOptions, base: Preprocessing) -> Preprocessing:
    """The preprocessing `base` of a network, changed by the user's options. Raises UsageError."""
    options = _looked_at(options)
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    present = {name for name in options.__struct_fields__ if getattr(options, name) is not UNSET}
    if "scale" in present or "dtype" in present or ("color" in present and options.color != fields["color"]):
        fields["mean"] = fields["std"] = UNSET  # their units, or the order of their channels, no longer apply
    for name in _PLAIN:
        if name in present:
            fields[name] = getattr(options, name)
    for name in ("mean", "std"):
        if name in present:
            values = _numbers(getattr(options, name)) or ()
            fields[name] = values * 3 if len(values) == 1 and fields["color"] != "gray" else values
    if not isinstance(options.scale, UnsetType):
        fields["scale"] = (_numbers(options.scale) or (0.0,))[0]
    if options.size(base.crop) != base.crop:
        raise UsageError(f"the crop is {_by(options.size(base.crop) or ())}, the network takes {_by(base.crop)} pixels")
    if "resize" in present or "pad" in present:
        fields["resize"] = _resized(options, fields["crop"])
    try:
        return Preprocessing(**fields)
    except ValueError as e:
        raise UsageError(f"preprocessing: {e}") from e


def check_fits(how: Preprocessing, shape: tuple[int, ...], dtype: str) -> None:
    """Raise UsageError unless `how` makes inputs of this shape (without the batch) and type."""
    if how.input_shape != shape:
        raise UsageError(
            f"preprocessing makes inputs of shape {how.input_shape} from images, the network takes {shape};"
            " pass another preprocessing, or arrays of that shape as calibration"
        )
    if how.input_dtype != dtype:
        raise UsageError(f"preprocessing makes {how.input_dtype} inputs, the network takes {dtype}; give dtype={dtype}")


def _resized(options: PictureOptions, crop: tuple[int, int]) -> int | tuple[int, int] | None:
    """The field `resize` of the Preprocessing. Raises UsageError if it contradicts the crop."""
    resize = options.resize
    if not isinstance(options.pad, UnsetType):
        if not isinstance(resize, UnsetType) and resize not in (crop, max(crop)):
            raise UsageError(
                f"with pad, the picture is fitted into the network's {_by(crop)} pixels; a resize to {_by(resize)}"
                " contradicts that: leave it out"
            )
        return None
    if isinstance(resize, UnsetType):
        if crop[0] != crop[1]:
            return crop  # stretched: a network with an input that is not square is trained on whole pictures
        return crop[0] if crop[0] < SMALL else round(crop[0] * 8 / 7)
    if isinstance(resize, str):
        return None
    if any(side < needed for side, needed in zip(_pair(resize), _least(resize, crop), strict=True)):
        raise UsageError(
            f"the crop of {_by(crop)} is larger than a picture that is resized to {_by(resize)}; resize to at least"
            f" {min(crop)}, or use pad for borders"
        )
    return resize


def _least(resize: int | tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    return crop if isinstance(resize, tuple) else _pair(min(crop))


def _notes(is_given: bool, how: Preprocessing, inferred: Mapping[str, str], shape: tuple[int, ...]) -> list[str]:
    notes = []
    if inferred:
        fields = ", ".join(f"{name} {value}" for name, value in inferred.items())
        notes.append(f"read off the network's input, {_text(shape)} {how.input_dtype}: {fields}")
    if not is_given:
        cropped = "" if how.resize == how.crop else f", cropped to {_by(how.crop)}"
        rest = "given as uint8 pixels" if how.dtype == "uint8" else _normalised(how)
        notes.append(
            f"no preprocessing given: images are resized to {_by(how.resize or ())}{cropped} and {rest}; pass your own"
            " if the network was trained otherwise"
        )
    else:
        notes.append(f"preprocessing: {in_words(how)}")
    return notes


def _normalised(how: Preprocessing) -> str:
    return "normalised as for ImageNet" + (", averaged over its channels" if how.color == "gray" else "")


def in_words(how: Preprocessing) -> str:
    """One line with the steps, in order."""
    steps = ["turned by EXIF"] if how.exif is True else []
    if not isinstance(how.pad, UnsetType):
        where = "right and below" if how.pad_at == "end" else "on both sides"
        steps.append(f"fitted into {_by(how.crop)}, padded with {how.pad} {where}")
    elif isinstance(how.resize, tuple):
        steps.append(f"resized to {_by(how.resize)}")
    elif how.resize is not None:
        steps.append(f"shorter side to {how.resize}")
    if isinstance(how.pad, UnsetType) and how.resize != how.crop:
        steps.append(f"cropped to {_by(how.crop)}")
    color = "rgb" if isinstance(how.color, UnsetType) else how.color
    layout = "nchw" if isinstance(how.layout, UnsetType) else how.layout
    steps.append(f"{color}, {layout}, {how.input_dtype}")
    if how.dtype != "uint8":
        scaled = f"× {how.scale:.6g}" if isinstance(how.scale, float) else "/ 255"
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (how.mean, how.std))
        steps.append(f"pixels {scaled}, mean {mean}, std {std}")
    return "; ".join(steps)


def _by(size: int | str | tuple[int, ...]) -> str:
    return "×".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _text(sizes: Sizes) -> str:
    return "(" + ", ".join("any" if s is None else str(s) for s in sizes) + ")"
