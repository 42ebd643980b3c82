"""back.onnx as a plain function: feature tensors at the cut → the network's outputs.

`runtime_edge/graph.py` does the same for front.onnx. Both open their file through `codec/shared/sessions.py`; what
follows there, the check of the graph's inputs and outputs, differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from splitwire.codec.errors import DeviceError, ProfileError, ShapeMismatch, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.providers import CPU, CUDA, choose, nodes_of, provider_options, short_name
from splitwire.codec.shared.sessions import open_graph
from splitwire.codec.shared.telemetry import stop_events
from splitwire.codec.wire.reply import DTYPES, Outputs
from splitwire.codec.wire.sizes import Int64Array

stop_events(ort)

Float32Array = NDArray[np.float32]

PREFERRED = (CUDA, CPU)
"""The providers that are chosen without being named. TensorRT is not: it builds for minutes before it serves."""

_OTHER_NAMES = {"float32": "float", "float64": "double"}
_NUMPY_NAMES = {f"tensor({_OTHER_NAMES.get(name, name)})": name for name in DTYPES}
OUTPUT_TYPES = frozenset(_NUMPY_NAMES)
"""ONNX Runtime's names for the element types that a reply can carry (codec/wire/reply.py)."""


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """An output as the graph declares it. dtype: numpy's name. shape: with the batch; -1 for a length that varies."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(kw_only=True, eq=False)
class BackGraph:
    """The open back half. `close` releases its memory; what describes it stays.

    output_specs: what the graph says about its outputs. batch: the only batch size that it takes; None for any.
    provider: the execution provider that runs it. passed_over: those that were preferred and did not start, with the
    reason.
    """

    session: ort.InferenceSession | None
    profile: CodecProfile
    output_specs: tuple[OutputSpec, ...]
    batch: int | None
    provider: str = CPU
    passed_over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.outputs = tuple(spec.name for spec in self.output_specs)
        """Names, in graph order."""

    @property
    def opened(self) -> ort.InferenceSession:
        """ONNX Runtime's session. Raises UsageError if the graph is closed."""
        session = self.session  # another thread may close it meanwhile
        if session is None:
            raise UsageError(f"model {self.profile.model!r} is closed")
        return session

    def close(self) -> None:
        """Release ONNX Runtime's session, once the runs in other threads have ended. Closing twice is allowed."""
        self.session = None

    def run(self, tensors: Sequence[Float32Array], sizes: Sequence[Int64Array] = ()) -> Outputs:
        """Run the back, and return its outputs by name.

        tensors: one (B, *shape) float32 array per tensor of the profile, in its order. sizes: one int64 vector per size
        of the profile. Raises ShapeMismatch for a batch size that the graph does not take, and for sizes that it cannot
        run with; UsageError if it is closed.
        """
        session = self.opened
        if self.batch is not None and tensors[0].shape[0] != self.batch:
            raise ShapeMismatch(
                f"model {self.profile.model!r} takes a batch of {self.batch} and no other; the frame holds "
                f"{tensors[0].shape[0]}"
            )
        feeds: dict[str, NDArray[Any]] = {s.name: t for s, t in zip(self.profile.tensors, tensors, strict=True)}
        feeds.update((s.name, t) for s, t in zip(self.profile.size_specs, sizes, strict=True))
        try:
            return dict(zip(self.outputs, session.run(list(self.outputs), feeds), strict=True))
        except Exception as e:  # ONNX Runtime's exceptions share no base class below this
            if not sizes:
                raise
            shown = ", ".join(f"{s.name} = {t.tolist()}" for s, t in zip(self.profile.size_specs, sizes, strict=True))
            raise ShapeMismatch(f"the back half cannot run with the sizes in the frame: {shown[:200]}") from e


def open_on(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    """The InferenceSession of a graph on the first provider; the others take the nodes that it does not take.

    Raises UsageError, ProfileError (the file), DeviceError (the first provider does not start, or takes no node).
    """
    if list(providers) == [CPU]:
        return open_graph(ort, path, threads=threads, providers=None)
    wanted = [(provider, provider_options(provider)) for provider in providers]
    session = open_graph(ort, path, threads=threads, providers=wanted, assignment=True)
    if nodes_of(session, providers[0]) == 0:
        raise DeviceError(f"{short_name(providers[0])} takes no node of {path.name}, so the graph would run elsewhere")
    return session


def open_back(
    path: str | Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    opener: Callable[[Path, Sequence[str], int | None], Any] = open_on,
    offered: Sequence[str] | None = None,
) -> BackGraph:
    """Load back.onnx.

    threads: threads of one inference; None lets ONNX Runtime choose. providers: execution providers, in order of
    preference, of which the first must start; None: CUDA if it is offered and starts, else the CPU. opener, offered:
    what opens a session, and the providers on offer, for tests.
    Raises UsageError (no such file, or it is the front half), ProfileError (not a graph that `splitwire export` wrote,
    or a damaged one), DeviceError (a provider that this machine does not have).
    """
    choice = choose(ort.get_available_providers() if offered is None else offered, providers, PREFERRED)
    passed_over: list[str] = []
    for provider, following in choice.attempts():
        try:
            session = opener(Path(path), following, threads)
            break
        except DeviceError as e:
            if choice.forced or provider == CPU:
                raise
            passed_over.append(f"{short_name(provider)} does not run the back: {e}")
    profile = CodecProfile.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    inputs = {i.name: i.shape for i in session.get_inputs()}
    wanted = set(profile.crossing)
    if inputs.keys() != wanted:
        if wanted <= {o.name for o in session.get_outputs()}:
            raise UsageError(f"{path} is the front half, for `splitwire edge run`; the cloud runs its back.onnx")
        raise ProfileError(
            f"{path} takes {', '.join(sorted(inputs))}, its own profile makes {', '.join(sorted(wanted))}; "
            "export the model again"
        )
    for output in session.get_outputs():
        if output.type not in OUTPUT_TYPES:
            raise ProfileError(f"{path}: output {output.name!r} is {output.type}, which no reply can carry")
    batch = inputs[profile.tensors[0].name][0]
    return BackGraph(
        session=session,
        profile=profile,
        output_specs=tuple(
            OutputSpec(
                name=o.name,
                dtype=_NUMPY_NAMES[o.type],
                shape=tuple(n if isinstance(n, int) else -1 for n in o.shape),
            )
            for o in session.get_outputs()
        ),
        batch=batch if isinstance(batch, int) else None,
        provider=provider,
        passed_over=tuple(passed_over),
    )
