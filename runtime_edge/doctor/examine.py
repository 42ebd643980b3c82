"""All checks of the doctor, in order."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.progress import ProgressFn

from .checks import Check, Prediction, Report
from .children import Children
from .native import COMPILE_S, check_codec, check_runtime
from .places import Places
from .power import check_power
from .server import Server, check_server
from .speed import check_frames, check_front, predict
from .system import check_system


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What to look at beside the device itself.

    front: front.onnx, for its speed and its pair; None leaves that out. url: of the server; None leaves it out.
    token, context: for the server. bits_per_second: of the link upwards, for predictions. threads, provider: of the
    front, as for EdgeSession.
    """

    front: Path | None = None
    url: str | None = None
    token: str | None = None
    context: ssl.SSLContext | None = None
    bits_per_second: float | None = None
    threads: int | None = None
    provider: str | None = None


@dataclass(frozen=True, kw_only=True)
class Means:
    """How the doctor looks; a test gives others."""

    places: Places = field(default_factory=Places)
    children: Children = field(default_factory=Children)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


def examine(questions: Questions, progress: ProgressFn | None = None, means: Means | None = None) -> Report:
    """Look at everything; it takes seconds, or minutes where kernels have to be compiled.

    progress(stage, done, total): called as it goes.
    Raises UsageError (the front is not a file, or the address is none), and nothing for what is found.
    """
    means = means or Means()
    stages = ("Device", "ONNX Runtime", "Front", "Codec", "Server")

    def begin(stage: str) -> None:
        if progress is not None:
            progress(stage, stages.index(stage), len(stages))

    if questions.front is not None and not questions.front.is_file():
        raise UsageError(f"{questions.front}: no such file; --front takes the front.onnx that `splitwire export` wrote")
    begin("Device")
    checks = [*check_system(means.places, means.environment), *check_power(means.places)]
    begin("ONNX Runtime")
    checks += check_runtime(means.places, means.children)
    runs = not any(check.verdict == "failed" and check.name == "onnxruntime" for check in checks)
    begin("Front")
    speed, predictions, found = _speed(questions, means.children, runs)
    begin("Codec")
    checks += check_codec(means.children, found.get("coders", ()))
    checks += speed
    begin("Server")
    if questions.url is None:
        checks.append(Check(part="server", name="address", verdict="skipped", text="--url names the server to look at"))
    else:
        asked = Server(
            url=questions.url, token=questions.token, context=questions.context, fingerprint=found.get("fingerprint")
        )
        checks += check_server(asked)
    if progress is not None:
        progress("Server", len(stages), len(stages))
    return Report(checks=tuple(checks), predictions=predictions)


def _speed(
    questions: Questions, children: Children, runs: bool
) -> tuple[list[Check], tuple[Prediction, ...], dict[str, Any]]:
    if questions.front is None or not runs:
        why = "--front names the front to time" if runs else "ONNX Runtime does not run"
        return [Check(part="speed", name="front", verdict="skipped", text=why)], (), {}
    threads = "" if questions.threads is None else str(questions.threads)
    answer = children.ask("front", str(questions.front), threads, questions.provider or "", seconds=COMPILE_S)
    if answer.found is None:
        return [check_front(answer)], (), {}
    predictions = predict(answer.found, questions.bits_per_second)
    return [check_front(answer), check_frames(predictions)], predictions, answer.found
