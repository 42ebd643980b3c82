"""`splitwire.plan`: what every cut of a network costs on a device, a link and a cloud, and which to take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splitwire.codec.errors import UsageError
from splitwire.codec.text import printable
from splitwire.network import find_network

if TYPE_CHECKING:
    from splitwire.codec.device import DeviceProfile
    from splitwire.codec.profile import Preprocessing
    from splitwire.codec.progress import ProgressFn
    from splitwire.exporter.calibration.inputs import Calibration
    from splitwire.exporter.network.adapting.constants import Constants
    from splitwire.exporter.network.inference import Float32Array, InputType
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.options import Network
    from splitwire.exporter.planning.plan import Plan

__all__ = ["PlanResult", "plan"]

IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What `splitwire.plan` found.

    plan: the figures. model: the name of the network. input_shape: (1, C, H, W).
    pictures: what the quick calibration ran on, in words. synthetic: whether they were made up. weights: in words.
    notes: what the user should know, one sentence each.
    """

    plan: Plan
    model: str
    input_shape: tuple[int, ...]
    pictures: str
    synthetic: bool
    weights: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A summary: the network, what is recommended and why, the notes."""
        size = "x".join(map(str, self.input_shape[1:]))
        head = f"{self.model}, input {size}: {len(self.plan.cuts)} cuts; link: {self.plan.link or 'none'}"
        return "\n".join([head, f"advice: {self.plan.advice}", *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        """One line."""
        return f"<PlanResult {self.model}: {len(self.plan.cuts)} cuts; recommended: {self.plan.recommended.label}>"


def plan(
    model: Network,
    *,
    data: Calibration | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | PictureOptions | None = None,
    input_shape: tuple[int, ...] | None = None,
    image_size: tuple[int, int] | None = None,
    device: str | DeviceProfile | None = None,
    cloud: str | DeviceProfile | None = None,
    link: str | None = None,
    rtt: str | None = None,
    max_tensors: int = 1,
    images: int = IMAGES,
    constants: Constants | None = None,
    outputs: Sequence[str] | None = None,
    progress: ProgressFn | None = None,
) -> PlanResult:
    """Compare every cut of a network with running it on the device, and with sending a JPEG; recommend one by latency.

    model, weights, preprocessing, input_shape, image_size, outputs: as for `splitwire.export`.
    data: images for the quick calibration, as the calibration of `splitwire.export`; at most `images` are used. None:
        synthetic pictures, the same every time.
    device, cloud: the name of a built-in estimate ("raspberry-pi-4", …), a file that `splitwire edge profile` wrote, or
        a profile; None for "raspberry-pi-5" and "server-cpu".
    link: bandwidth each way, "5mbit"; None or "none" for no link: then nothing but the device can be recommended.
    rtt: its round trip, "40ms"; 20 ms if not given.
    max_tensors: tensors that a cut may send. constants: as for `splitwire.export`.
    progress: called as progress(stage, done, total).
    Raises UsageError, UnsupportedModel, ExportError.
    """
    from splitwire.exporter.cutting.names import Names
    from splitwire.exporter.network.adapting.constants import check_none
    from splitwire.exporter.network.adapting.widen import in_float32
    from splitwire.exporter.network.pictures import wanted_shape
    from splitwire.exporter.network.source import from_file, from_module
    from splitwire.exporter.planning.dropped import in_words
    from splitwire.exporter.planning.links import parse_link
    from splitwire.exporter.planning.plan import DEFAULT_CLOUD, DEFAULT_DEVICE, plan_cuts

    if images < 1 or max_tensors < 1:
        raise UsageError(f"images and max_tensors must be at least 1, are {images} and {max_tensors}")
    wire = parse_link(link, rtt)
    ends = (_device(device, DEFAULT_DEVICE), _device(cloud, DEFAULT_CLOUD))
    report = progress or (lambda stage, done, total: None)
    notes: list[str] = []
    report("Load the network", 0, None)
    given = find_network(model, weights, preprocessing=preprocessing, input_shape=input_shape, image_size=image_size)
    report("Load the network", 1, 1)
    model, input_shape, preprocessing = given.model, given.input_shape, given.preprocessing
    if given.weights == "random":
        notes.append(
            "the weights are random, so the bytes are those of a random network: take them as a rough guide, and"
            " plan again with --weights"
        )
    elif given.warning:
        notes.append(given.warning)
    wanted = input_shape or wanted_shape(preprocessing, image_size)
    if isinstance(model, (str, os.PathLike)):
        report("Export to ONNX", 0, None)
        source = from_file(Path(model), wanted, constants, outputs)
        kind: tuple[tuple[int, ...], InputType] = (source.input_shape[1:], source.input_dtype)
        inputs, how, pictures = _inputs(data, *kind, preprocessing, images, notes)
        notes += source.notes
    else:
        check_none(constants)
        model, widened = in_float32(model)
        notes += [widened] if widened else []
        shape = wanted((None, None, None)) if callable(wanted) else wanted
        if shape is None:
            raise UsageError("a torch module does not say what it takes; pass input_shape=(1, C, H, W)")
        dtype: InputType = "uint8" if preprocessing is not None and preprocessing.dtype == "uint8" else "float32"
        # before the export, which takes seconds to minutes: most mistakes are here
        inputs, how, pictures = _inputs(data, shape[1:], dtype, preprocessing, images, notes)
        report("Export to ONNX", 0, None)
        source = from_module(model, shape, dtype, outputs)
    report("Export to ONNX", 1, 1)
    result = plan_cuts(
        source,
        Names.of(source),
        inputs,
        preprocessing=how,
        device=ends[0],
        cloud=ends[1],
        link=wire,
        max_tensors=max_tensors,
        progress=progress,
    )
    if result.cuts:  # where there are none, the advice says so
        notes += in_words(result.dropped)
    notes += sorted({f"{c.cut.label}: no bytes: {c.reason}" for c in result.cuts if c.reason})
    return PlanResult(
        plan=result,
        model=given.name,
        input_shape=source.input_shape,
        pictures=pictures,
        synthetic=data is None,
        weights=given.weights,
        notes=tuple(notes),
    )


def _device(given: str | DeviceProfile | None, default: str) -> DeviceProfile:
    from splitwire.exporter.planning.devices import find_device

    return find_device(default if given is None else given)


def _inputs(
    data: Calibration | None,
    shape: tuple[int, ...],
    dtype: InputType,
    preprocessing: Preprocessing | PictureOptions | None,
    images: int,
    notes: list[str],
) -> tuple[list[Float32Array], Preprocessing | None, str]:
    """(network inputs, how they came from pictures, in words)."""
    import numpy as np

    from splitwire.exporter.calibration.inputs import are_images, open_inputs
    from splitwire.exporter.network.inference import noise
    from splitwire.exporter.network.pictures import completed, is_picture

    how = None
    if preprocessing is not None or (is_picture(shape) if data is None else are_images(data)):
        how, said = completed(preprocessing, shape, dtype)
        notes += said
    if data is not None:
        stream = open_inputs(data, shape=shape, dtype=dtype, preprocessing=how, limit=images)
        stream.peek(1)  # says why, if there is none
        inputs = [x for _, x in stream]
        if stream.skipped:
            notes.append(f"{len(stream.skipped)} image(s) could not be read and were skipped")
        where = f" of {printable(os.fsdecode(data))}" if isinstance(data, (str, os.PathLike)) else ""
        return inputs, how, f"{len(inputs)} images{where}"
    if how is None:
        rng = np.random.default_rng(0)
        notes.append(
            "the calibration ran on noise, since the input is no picture; pass data, or take no notice of the bytes"
        )
        return [noise(shape, dtype, rng) for _ in range(images)], None, f"{images} inputs of noise, seed 0"
    notes.append("the bytes are those of synthetic pictures; pass your own with --data")
    return _drawn(images, how), how, f"{images} synthetic pictures (dead leaves, seed 0)"


def _drawn(images: int, how: Preprocessing) -> list[Float32Array]:
    """Network inputs of synthetic pictures."""
    import numpy as np

    from splitwire.codec import preprocessing
    from splitwire.exporter.planning.dead_leaves import dead_leaves

    pixels = np.rint(dead_leaves(images, (how.channels, *how.crop)) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    drawn = (preprocessing.from_array(p[..., 0] if how.channels == 1 else p) for p in pixels)
    return [preprocessing.normalise(picture, how) for picture in drawn]
