"""Engine: a graph on an execution provider, which it names. TensorRT builds its engine while the CPU serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from splitwire.codec.errors import DeviceError, SplitwireError
from splitwire.codec.shared.providers import CPU, TENSORRT, choose, short_name
from splitwire.runtime_edge.events import Event, EventSink, ignore

from .opening import open_on

Arrays = Mapping[str, NDArray[Any]]

PROGRESS_S = 10.0
"""Seconds between two events about a build."""

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
"""ONNX Runtime's names for the element types of a front's input."""


class Opener(Protocol):
    """Opens a session on the first of the providers, as `open_on` of opening.py does."""

    def __call__(self, path: Path, providers: Sequence[str], threads: int | None) -> Any: ...


class _Active(NamedTuple):
    """The session that runs frames now, and its provider. Replaced as one, so that no frame sees a mixture."""

    session: Any
    provider: str


class Engine:
    """A graph that runs on an execution provider of ONNX Runtime. Several threads may call `run`.

    passed_over: the providers that were preferred and did not start, each with the reason in one line.
    """

    def __init__(self, session: Any, provider: str, passed_over: Sequence[str] = ()) -> None:
        self._active = _Active(session, provider)
        self._failed: DeviceError | None = None
        self._settled = threading.Event()
        self._settled.set()
        self.passed_over = tuple(passed_over)

    @property
    def session(self) -> Any:
        """The onnxruntime.InferenceSession that runs frames now."""
        return self._active.session

    @property
    def provider(self) -> str:
        """The provider that runs frames now, by ONNX Runtime's name."""
        return self._active.provider

    @property
    def ready(self) -> bool:
        """False while another provider is being built, and the CPU serves meanwhile."""
        return self._settled.is_set()

    def wait_until_ready(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being built any more, at most `seconds`; returns `ready`.

        Raises DeviceError if the provider that the caller demanded did not start.
        """
        self._settled.wait(seconds)
        if self._failed is not None:
            raise self._failed
        return self.ready

    def run(self, outputs: Sequence[str], inputs: Arrays) -> tuple[list[NDArray[Any]], str]:
        """Run the graph; returns the outputs named, and the provider that ran this frame.

        Raises DeviceError if the provider that the caller demanded did not start.
        """
        if self._failed is not None:
            raise self._failed
        session, provider = self._active
        return session.run(list(outputs), dict(inputs)), provider

    def build(self, builders: Sequence[tuple[str, Callable[[], Any]]], *, forced: bool, on_event: EventSink) -> None:
        """Replace the session by that of the first builder that succeeds, in a thread of its own.

        builders: provider, and what opens its session and runs it once. forced: if the first fails, `run` raises its
        error from then on; otherwise the session of now goes on. on_event: events engine_building (every PROGRESS_S
        seconds), provider_unavailable and engine_ready.
        """
        self._settled.clear()
        work = (builders, forced, on_event)
        threading.Thread(target=self._build, args=work, name="splitwire-engine", daemon=True).start()

    def _build(self, builders: Sequence[tuple[str, Callable[[], Any]]], forced: bool, on_event: EventSink) -> None:
        try:
            for provider, opened in builders:
                session = self._build_one(provider, opened, on_event)
                if session is not None:
                    self._active = _Active(session, provider)
                    return
                if forced:
                    self._failed = DeviceError(self.passed_over[-1])
                    return
        finally:
            self._settled.set()

    def _build_one(self, provider: str, opened: Callable[[], Any], on_event: EventSink) -> Any | None:
        start, done = time.monotonic(), threading.Event()
        name = short_name(provider)

        def tell() -> None:
            while True:
                seconds = time.monotonic() - start
                on_event(
                    Event(
                        kind="engine_building",
                        text=f"{name} builds its engine: {seconds:.0f} s so far; the CPU serves meanwhile",
                        fields={"provider": provider, "seconds": round(seconds, 1)},
                    )
                )
                if done.wait(PROGRESS_S):
                    return

        teller = threading.Thread(target=tell, name="splitwire-engine-progress", daemon=True)
        teller.start()
        try:
            session = opened()
        except Exception as e:  # whatever a library of the vendor raises: the CPU goes on, and the owner is told
            self.passed_over = (*self.passed_over, _unavailable(provider, e))
            on_event(_passed_over(provider, e))
            return None
        finally:
            done.set()
            teller.join()
        seconds = time.monotonic() - start
        on_event(
            Event(
                kind="engine_ready",
                text=f"{name} serves from now on; its engine was ready after {seconds:.0f} s",
                fields={"provider": provider, "seconds": round(seconds, 1)},
            )
        )
        return session


def open_engine(
    path: Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    on_event: EventSink = ignore,
    opener: Opener = open_on,
    offered: Sequence[str] | None = None,
) -> Engine:
    """Open a graph on the provider that the caller demands, or on the best one that starts.

    threads: of one inference on the CPU. providers: in order of preference, the first must start; None: the best that
    this ONNX Runtime offers. on_event: told which providers do not start, and how a build goes. opener, offered: what
    opens a session, and the providers on offer, for tests.
    Raises UsageError, ProfileError (the file), DeviceError (a demanded provider that is not here or does not start).
    """
    choice = choose(ort.get_available_providers() if offered is None else offered, providers)
    if choice.order[0] == TENSORRT:
        engine = Engine(opener(path, [CPU], threads), CPU)
        builders = [(p, _builder(opener, path, following, threads)) for p, following in choice.attempts() if p != CPU]
        engine.build(builders, forced=choice.forced, on_event=on_event)
        return engine
    passed_over: list[str] = []
    for provider, following in choice.attempts():
        try:
            return Engine(opener(path, following, threads), provider, passed_over)
        except DeviceError as e:
            if choice.forced or provider == CPU:
                raise
            passed_over.append(_unavailable(provider, e))
            on_event(_passed_over(provider, e))
    raise DeviceError(f"no execution provider starts: {'; '.join(passed_over)}")


def zeros(session: Any) -> dict[str, NDArray[Any]]:
    """The smallest inputs of a session, all zeros: a first run builds what a provider builds for a shape."""
    return {
        i.name: np.zeros([n if isinstance(n, int) else 1 for n in i.shape], TYPES.get(i.type, np.float32))
        for i in session.get_inputs()
    }


def _builder(opener: Opener, path: Path, providers: list[str], threads: int | None) -> Callable[[], Any]:
    def opened() -> Any:
        session = opener(path, providers, threads)
        session.run(None, zeros(session))  # TensorRT builds for a variable shape when it first sees one
        return session

    return opened


def _unavailable(provider: str, e: Exception) -> str:
    words = str(e) if isinstance(e, SplitwireError) else f"{type(e).__name__}: {e}"
    return f"{short_name(provider)} does not run the front: {(words.splitlines() or [''])[0]}"


def _passed_over(provider: str, e: Exception) -> Event:
    return Event(kind="provider_unavailable", text=_unavailable(provider, e), fields={"provider": provider})
