"""`splitwire.plan`: what every cut of a network costs on a device, a link and a cloud, and which to take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splitwire.codec.errors import UsageError
from splitwire.network import find_network

if TYPE_CHECKING:
    from splitwire.codec.device import DeviceProfile
    from splitwire.codec.profile import Preprocessing
    from splitwire.console import ProgressFn
    from splitwire.exporter.export import Network
    from splitwire.exporter.inference import Float32Array
    from splitwire.exporter.inputs import Calibration
    from splitwire.exporter.plan import Plan

__all__ = ["PlanResult", "plan"]

IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """plan: the figures (exporter/plan.py). model: its name. input_shape: (1, C, H, W).

    pictures: what the quick calibration ran on, in words; synthetic: whether they were made up. weights: in words.
    notes: what the user should know, one sentence each.
    """

    plan: Plan
    model: str
    input_shape: tuple[int, ...]
    pictures: str
    synthetic: bool
    weights: str
    notes: tuple[str, ...]


def plan(
    model: Network,
    *,
    data: Calibration | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, ...] | None = None,
    device: str | DeviceProfile | None = None,
    cloud: str | DeviceProfile | None = None,
    link: str | None = None,
    rtt: str | None = None,
    max_tensors: int = 1,
    images: int = IMAGES,
    progress: ProgressFn | None = None,
) -> PlanResult:
    """Compare every cut of a network with running it on the device, and with sending a JPEG; recommend one by latency.

    model, weights, preprocessing, input_shape: as for `splitwire.export`.
    data: images for the quick calibration, as the calibration of `splitwire.export`; at most `images` are used. None:
        synthetic pictures, the same every time.
    device, cloud: the name of a built-in estimate ("raspberry-pi-4", …), a file that `splitwire edge profile` wrote, or
        a profile; None for "raspberry-pi-5" and "server-cpu".
    link: bandwidth each way, "5mbit"; None or "none" for no link: then nothing but the device can be recommended.
    rtt: its round trip, "40ms"; 20 ms if not given.
    max_tensors: tensors that a cut may send. progress: called as progress(stage, done, total).
    Raises UsageError, UnsupportedModel, ExportError.
    """
    from splitwire.exporter.graph import from_file, from_module
    from splitwire.exporter.links import parse_link
    from splitwire.exporter.names import Names
    from splitwire.exporter.plan import DEFAULT_CLOUD, DEFAULT_DEVICE, plan_cuts

    if images < 1 or max_tensors < 1:
        raise UsageError(f"images and max_tensors must be at least 1, are {images} and {max_tensors}")
    wire = parse_link(link, rtt)
    ends = (_device(device, DEFAULT_DEVICE), _device(cloud, DEFAULT_CLOUD))
    report = progress or (lambda stage, done, total: None)
    notes: list[str] = []
    report("Load the network", 0, None)
    given = find_network(model, weights, preprocessing=preprocessing, input_shape=input_shape)
    report("Load the network", 1, 1)
    model, input_shape, preprocessing = given.model, given.input_shape, given.preprocessing
    if given.weights == "random":
        notes.append(
            "the weights are random, so the bytes are those of a random network: take them as a rough guide, and"
            " plan again with --weights"
        )
    elif given.warning:
        notes.append(given.warning)
    shape = input_shape or ((1, 3, *preprocessing.crop) if preprocessing else None)
    if isinstance(model, (str, os.PathLike)):
        report("Export to ONNX", 0, None)
        source = from_file(Path(model), input_shape)
        inputs, how, pictures = _inputs(data, source.input_shape[1:], preprocessing, images, notes)
    elif shape is None:
        raise UsageError("a torch module does not say what it takes; pass input_shape=(1, C, H, W)")
    else:
        # before the export, which takes seconds to minutes: most mistakes are here
        inputs, how, pictures = _inputs(data, shape[1:], preprocessing, images, notes)
        report("Export to ONNX", 0, None)
        source = from_module(model, shape)
    report("Export to ONNX", 1, 1)
    result = plan_cuts(
        source,
        Names(source.graph, source.modules, source.seen),
        inputs,
        preprocessing=how,
        device=ends[0],
        cloud=ends[1],
        link=wire,
        max_tensors=max_tensors,
        progress=progress,
    )
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
    from splitwire.exporter.devices import find_device

    return find_device(default if given is None else given)


def _inputs(
    data: Calibration | None,
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    images: int,
    notes: list[str],
) -> tuple[list[Float32Array], Preprocessing | None, str]:
    """(network inputs, how they came from pictures, in words)."""
    import numpy as np

    from splitwire.exporter.dead_leaves import dead_leaves
    from splitwire.exporter.inputs import are_images, imagenet_preprocessing, open_inputs

    pictured = len(shape) == 3 and shape[0] == 3
    if data is not None:
        if preprocessing is None and are_images(data):
            preprocessing = imagenet_preprocessing(shape)
            notes.append("no preprocessing given: images are prepared as for ImageNet")
        stream = open_inputs(data, shape=shape, preprocessing=preprocessing, limit=images)
        stream.peek(1)  # says why, if there is none
        inputs = [x for _, x in stream]
        if stream.skipped:
            notes.append(f"{len(stream.skipped)} image(s) could not be read and were skipped")
        where = f" of {data}" if isinstance(data, (str, os.PathLike)) else ""
        return inputs, preprocessing, f"{len(inputs)} images{where}"
    if not pictured:
        rng = np.random.default_rng(0)
        notes.append(
            "the calibration ran on noise, since the input is no picture; pass data, or take no notice of the bytes"
        )
        noise = [rng.standard_normal(shape, dtype=np.float32) for _ in range(images)]
        return noise, None, f"{images} inputs of noise, seed 0"
    how = preprocessing or imagenet_preprocessing(shape)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (how.mean, how.std))
    notes.append("the bytes are those of synthetic pictures; pass your own with --data")
    drawn = list((dead_leaves(images, shape) - mean) / std)
    return drawn, how, f"{images} synthetic pictures (dead leaves, seed 0)"
