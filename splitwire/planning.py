"""`splitwire.plan`: what every cut of a network costs on a device, a link and a cloud, and which one to take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.progress import no_progress
from splitwire.codec.shared.text import printable
from splitwire.network import FoundNetwork, find_network

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.codec.shared.device import DeviceProfile
    from splitwire.codec.shared.progress import ProgressFn
    from splitwire.exporter.calibration.items import Calibration
    from splitwire.exporter.network.adapting.constants import Constants
    from splitwire.exporter.network.inference import Float32Array, InputType
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.options import Network, NetworkOptions
    from splitwire.exporter.planning.plan import Plan

__all__ = ["PlanResult", "plan"]

IMAGES = 32
"""Default for the largest number of inputs of the quick calibration."""


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """The result of `splitwire.plan`.

    plan: the figures. model: the name of the network. input_shape: (1, C, H, W).
    pictures: a description of the inputs of the quick calibration. synthetic: whether splitwire generated them.
    weights: a description of the weights. notes: what the user should know, one sentence each.
    """

    plan: Plan
    model: str
    input_shape: tuple[int, ...]
    pictures: str
    synthetic: bool
    weights: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A summary: the network, the recommendation and its reason, the notes."""
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
    """Estimate the latency of every cut of a network, of the device alone, and of a JPEG; recommend the fastest.

    model, weights, preprocessing, input_shape, image_size, outputs: as for `splitwire.export`.
    data: images for the quick calibration, in the forms that `splitwire.export` takes; at most `images` are used. None:
        synthetic pictures, the same every time.
    device, cloud: the name of a built-in estimate ("raspberry-pi-4", …), a file that `splitwire edge profile` wrote, or
        a profile; None for "raspberry-pi-5" and "server-cpu".
    link: bandwidth in each direction, "5mbit". None or "none": no link, so only the device can be recommended.
    rtt: the round trip of the link, "40ms"; 20 ms if None.
    max_tensors: the largest number of tensors that a cut may send. constants: as for `splitwire.export`.
    progress: called as progress(stage, done, total).
    Raises UsageError, UnsupportedModel, ExportError.
    """
    from splitwire.exporter.cutting.names import Names
    from splitwire.exporter.loading import load
    from splitwire.exporter.options import NetworkOptions
    from splitwire.exporter.planning.devices import find_device
    from splitwire.exporter.planning.dropped import in_words
    from splitwire.exporter.planning.links import parse_link
    from splitwire.exporter.planning.plan import DEFAULT_CLOUD, DEFAULT_DEVICE, plan_cuts

    if images < 1 or max_tensors < 1:
        raise UsageError(f"images and max_tensors must be at least 1, are {images} and {max_tensors}")
    wire = parse_link(link, rtt)
    near = find_device(DEFAULT_DEVICE if device is None else device)
    far = find_device(DEFAULT_CLOUD if cloud is None else cloud)
    report = progress or no_progress
    report("Load the network", 0, None)
    network = find_network(model, weights, preprocessing=preprocessing, input_shape=input_shape, image_size=image_size)
    report("Load the network", 1, 1)
    options = NetworkOptions(
        preprocessing=network.preprocessing,
        input_shape=network.input_shape,
        image_size=image_size,
        images=images,
        outputs=outputs,
        constants=constants,
    )
    loaded = load(network.model, data, options, partial(_quick_inputs, data, options), report)
    source, inputs = loaded.source, loaded.data
    result = plan_cuts(
        source,
        Names.of(source),
        inputs.arrays,
        preprocessing=inputs.preprocessing,
        device=near,
        cloud=far,
        link=wire,
        max_tensors=max_tensors,
        progress=progress,
    )
    notes = [*_weights_note(network), *loaded.notes, *inputs.notes]
    if source.origin == "onnx":  # a module's notes are about its export
        notes += source.notes
    if result.cuts:  # where there are none, the advice says so
        notes += in_words(result.dropped)
    notes += sorted({f"{c.cut.label}: no bytes: {c.reason}" for c in result.cuts if c.reason})
    return PlanResult(
        plan=result,
        model=network.name,
        input_shape=source.input_shape,
        pictures=inputs.description,
        synthetic=data is None,
        weights=network.weights,
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _QuickInputs:
    """What the quick calibration runs on.

    arrays: one network input each. preprocessing: how they were made of pictures; None where they were not.
    """

    arrays: list[Float32Array]
    preprocessing: Preprocessing | None
    description: str
    notes: list[str]


def _quick_inputs(
    data: Calibration | None, options: NetworkOptions, shape: tuple[int, ...], dtype: InputType
) -> _QuickInputs:
    """The inputs of the quick calibration: the caller's, or synthetic pictures, or noise if the input is no picture."""
    import numpy as np

    from splitwire.exporter.loading import open_calibration
    from splitwire.exporter.network.inference import noise
    from splitwire.exporter.network.pictures import completed, is_picture
    from splitwire.exporter.planning.dead_leaves import synthetic_inputs

    n = options.images
    if data is not None:
        opened = open_calibration(data, options, shape, dtype)
        arrays, notes = [x for _, x in opened.stream], opened.notes
        if skipped := opened.stream.skipped:
            notes.append(f"{len(skipped)} image(s) could not be read and were skipped")
        where = f" of {printable(os.fsdecode(data))}" if isinstance(data, (str, os.PathLike)) else ""
        return _QuickInputs(
            arrays=arrays,
            preprocessing=opened.preprocessing,
            description=f"{len(arrays)} images{where}",
            notes=notes,
        )
    if options.preprocessing is None and not is_picture(shape):
        rng = np.random.default_rng(0)
        return _QuickInputs(
            arrays=[noise(shape, dtype, rng) for _ in range(n)],
            preprocessing=None,
            description=f"{n} inputs of noise, seed 0",
            notes=[
                "the calibration ran on noise, since the input is no picture; pass data, or take no notice of the bytes"
            ],
        )
    how, notes = completed(options.preprocessing, shape, dtype)
    return _QuickInputs(
        arrays=synthetic_inputs(n, how),
        preprocessing=how,
        description=f"{n} synthetic pictures (dead leaves, seed 0)",
        notes=[*notes, "the bytes are those of synthetic pictures; pass your own with --data"],
    )


def _weights_note(network: FoundNetwork) -> list[str]:
    """What the user should know about the weights."""
    if network.weights == "random":
        return [
            "the weights are random, so the bytes are those of a random network: take them as a rough guide, and"
            " plan again with --weights"
        ]
    return [network.warning] if network.warning else []
