"""The speed of front and encoder on this device, and the frames per second that follow for a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import Check, Prediction
from .children import Answer

HTTP_BYTES = 140
"""Bytes of the head of a request over a frame (docs/runtime.md). The stream needs fewer."""
SLOW_FPS = 1.0


def check_front(answer: Answer) -> Check:
    """The check "front" from what the child measured."""
    found = answer.found
    if found is None:
        return Check(
            part="speed", name="front", verdict="failed",
            text=f"the front was tried in a child process: {answer.ended}",
            remedy="export the pair again, or take another version of ONNX Runtime",
        )  # fmt: skip
    text = (
        f"{found['model']} cut at {found['cut']}: {found['front_ms']:.2f} ms on {_short(found['provider'])}, opened in"
        f" {found['open_s']:.1f} s, all points warm in {found['warm_s']:.1f} s"
    )
    data = {key: found[key] for key in ("model", "cut", "fingerprint", "provider", "front_ms", "open_s", "warm_s")}
    if found["passed_over"]:
        return Check(
            part="speed", name="front", verdict="warning", text=f"{text}; {'; '.join(found['passed_over'])}",
            remedy="install the libraries that it names, or demand a provider with --provider CPU", data=data,
        )  # fmt: skip
    return Check(part="speed", name="front", verdict="ok", text=text, data=data)


def predict(found: Mapping[str, Any], bits_per_second: float | None) -> tuple[Prediction, ...]:
    """Frames of one image per second at each operating point. bits_per_second: of the link upwards; None for none."""
    predictions = []
    for point in found["points"]:
        device = 1e3 / (found["front_ms"] + point["encode_ms"] / found["batch"])
        link = None if bits_per_second is None else bits_per_second / (8 * (point["frame_bytes"] + HTTP_BYTES))
        predictions.append(
            Prediction(
                op=point["op"],
                bits_per_element=point["bits_per_element"],
                frame_bytes=point["frame_bytes"],
                encode_ms=point["encode_ms"],
                device_fps=device,
                link_fps=link,
                fps=device if link is None else min(device, link),
            )
        )
    return tuple(predictions)


def check_frames(predictions: Sequence[Prediction]) -> Check:
    """The check "frames per second"."""
    best = max(predictions, key=lambda p: p.fps)
    text = f"up to {best.fps:.1f} per second, at operating point {best.op}"
    data: dict[str, str | int | float | bool] = {"fps": best.fps, "op": best.op}
    if best.fps >= SLOW_FPS:
        return Check(part="speed", name="frames per second", verdict="ok", text=text, data=data)
    by_link = best.link_fps is not None and best.link_fps < best.device_fps
    return Check(
        part="speed", name="frames per second", verdict="warning", text=text,
        remedy="the link limits it: cut deeper, or send fewer frames (--skip-unchanged)" if by_link
        else "the device limits it: cut earlier (`splitwire plan`), or export with --front int8", data=data,
    )  # fmt: skip


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
