"""front.onnx as a plain function: input array → feature tensors at the cut.

`runtime_cloud/graph.py` does the same for back.onnx. Both open their file through `codec/shared/sessions.py`, the front
by way of `engine/`, which chooses the execution provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.drift import DriftReference, reference_in
from splitwire.codec.errors import ProfileError, ShapeMismatch, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.wire.reply import Outputs
from splitwire.codec.wire.sizes import Int64Array

from .engine import Engine, open_engine
from .events import EventSink, ignore

Float32Array = NDArray[np.float32]
InputType = Literal["float32", "uint8"]
Input = NDArray[Any]
"""float32, or uint8 if the network takes uint8."""

INPUT_TYPES: dict[str, InputType] = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


@dataclass(frozen=True, kw_only=True)
class FrontOutputs:
    """The outputs of the front for one batch.

    features: one (B, *shape) float32 array per tensor at the cut. sizes: the int64 vectors that the profile lists;
    usually none. early: outputs of the whole network that the front computes already, by name; usually none.
    provider: the execution provider that ran this batch.
    """

    features: list[Float32Array]
    sizes: list[Int64Array]
    early: Outputs
    provider: str


@dataclass(frozen=True, kw_only=True)
class FrontGraph:
    """The open front half.

    input_shape: as in the graph; None for an axis of any length, which the batch usually is. input_dtype: of the
    network's input. early: names of the outputs of the whole network that the front computes. drift: what its outputs
    usually look like; None if the file does not say.
    """

    engine: Engine
    profile: CodecProfile
    input_name: str
    input_shape: tuple[int | None, ...]
    early: tuple[str, ...] = ()
    input_dtype: InputType = "float32"
    drift: DriftReference | None = None

    def run(self, x: Input) -> FrontOutputs:
        """Run the front. x: (B, *input_shape[1:]) of input_dtype. Raises ShapeMismatch for another shape or dtype."""
        self._check(x)
        names = list(dict.fromkeys([*self.profile.crossing, *self.early]))  # a tensor at the cut can be an output too
        values, provider = self.engine.run(names, {self.input_name: x})
        tensors = dict(zip(names, values, strict=True))
        return FrontOutputs(
            features=[tensors[t.name] for t in self.profile.tensors],
            sizes=[tensors[s.name] for s in self.profile.size_specs],
            early={name: tensors[name] for name in self.early},
            provider=provider,
        )

    def zeros(self) -> Input:
        """The smallest input, all zeros: the input of a warm-up."""
        return np.zeros([1 if n is None else n for n in self.input_shape], dtype=self.input_dtype)

    def _check(self, x: Input) -> None:
        shown = "(" + ", ".join("B" if n is None else str(n) for n in self.input_shape) + ")"
        if not isinstance(x, np.ndarray):
            raise ShapeMismatch(f"the front takes a {shown} {self.input_dtype} array; got {type(x).__name__}")
        fits = x.ndim == len(self.input_shape) and all(
            n is None or n == size for n, size in zip(self.input_shape, x.shape, strict=True)
        )
        if not fits or x.dtype != self.input_dtype or x.size == 0:
            raise ShapeMismatch(f"the front takes a {shown} {self.input_dtype} array; got {x.shape} {x.dtype}")


def open_front(
    path: str | Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    on_event: EventSink = ignore,
) -> FrontGraph:
    """Load front.onnx.

    threads: threads of one inference; None lets ONNX Runtime choose. providers: execution providers, in order of
    preference, of which the first must start; None for the best that this ONNX Runtime offers. on_event: told of
    providers that do not start, and of engines that are built.
    Raises UsageError (no such file, or it is the back half), ProfileError (not a graph that `splitwire export` wrote,
    or a damaged one), DeviceError (a provider that this machine does not have).
    """
    engine = open_engine(Path(path), threads=threads, providers=providers, on_event=on_event)
    session = engine.session
    metadata = session.get_modelmeta().custom_metadata_map
    profile = CodecProfile.from_metadata(metadata, str(path))
    outputs = {o.name for o in session.get_outputs()}
    missing = [name for name in profile.crossing if name not in outputs]
    inputs = session.get_inputs()
    if missing and set(profile.crossing) <= {i.name for i in inputs}:
        raise UsageError(f"{path} is the back half, for `splitwire cloud serve`; the edge runs its front.onnx")
    if missing:
        raise ProfileError(f"{path} does not make the tensor {missing[0]!r} of its own profile; export the model again")
    if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
        shown = ", ".join(f"{i.name}: {i.type}" for i in inputs)
        raise ProfileError(f"{path} must have one float32 or uint8 input, has {shown}; export the model again")
    shape = tuple(n if isinstance(n, int) else None for n in inputs[0].shape)
    named = profile.outputs if isinstance(profile.outputs, tuple) else ()
    return FrontGraph(
        engine=engine,
        profile=profile,
        input_name=inputs[0].name,
        input_shape=shape,
        input_dtype=INPUT_TYPES[inputs[0].type],
        early=tuple(name for name in named if name in outputs),
        drift=reference_in(metadata, str(path)),
    )
