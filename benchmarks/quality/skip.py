"""`make bench-skip`: how many frames of a static camera are sent, and how many answers change by what is not sent.

The clips are composed (benchmarks/inputs/static_camera.py). The threshold is calibrated on one clip of each scene, and
tried on another with other garments, movements and noise. Each frame is answered, so that the changed answers can be
counted; time goes by at 25 frames per second, for the refresh. Then a threshold that is wrong on purpose: how many
frames pass until the audit lowers it, and to what. It writes build/bench/skip.json and prints a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

import splitwire
from benchmarks.inputs.static_camera import clip
from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine
from splitwire.models import detector
from splitwire.models.making import detector_training, scenes
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Captured
from splitwire.runtime_edge.stream import Decision, Look
from splitwire.runtime_edge.stream.skip import Sameness, Skip, Trial
from splitwire.runtime_edge.transport import LoopbackTransport

OUT = Path("build/bench")
PAIR = Path("build/bench/detector")
PHOTOGRAPHS = (0, 1, 2)
FRAMES = 3000
FPS = 25
SHARE = 0.01
WRONG = 100.0
"""A threshold this many times too large is the one that is wrong on purpose."""


class Row(Struct, frozen=True, kw_only=True):
    """One scene.

    moving: share of the frames with a movement. sent, changed: shares of the frames, and of those not sent.
    wrong_changed: the share with the wrong threshold without an audit; caught_after: frames until the audit first
    lowered it; audited_changed: the share with it.
    """

    photograph: int
    frames: int
    moving: float
    threshold: float
    sent: float
    changed: float
    wrong_changed: float
    caught_after: int | None
    audited_changed: float


class Seen(Struct, kw_only=True):
    """The frames of a clip with their features and answers."""

    looks: list[Look]
    answers: list[Any]
    moving: float


def export_detector(folder: Path) -> None:
    """The detector as a pair, calibrated on scenes of other photographs than the clips'."""
    if (folder / "back.onnx").exists():
        return
    compose = scenes.composer("samples", 11)
    pictures = np.stack([compose(i).picture for i in range(100, 228)])
    splitwire.export(
        detector.load_detector(),
        cut=detector.CUT,
        calibration=detector_training.inputs_of(pictures).numpy(),
        out=folder,
        preprocessing=detector.PREPROCESSING,
        labels=detector.LABELS,
    )


def see(session: EdgeSession, frames: int, seed: int, photograph: int) -> Seen:
    """Answer every frame of a clip."""
    seen = Seen(looks=[], answers=[], moving=0.0)
    for i, frame in enumerate(clip(frames, seed=seed, photograph=photograph)):
        x = session.preprocess(frame.picture)
        front = session.run_front(x)
        coded = session.encode(front.features, frame_id=i & 0xFFFF)
        reply = session.send(coded, frame_id=i & 0xFFFF)
        answer = session.assemble(front, reply, op=None, images=1, frame_bytes=len(coded), ms=(0, 0, 0))
        captured = Captured(image=frame.picture, captured=i / FPS, wall=i / FPS, name="clip", index=i)
        seen.looks.append(Look(captured=captured, input=x, features=front.features))
        seen.answers.append(answer)
        seen.moving += frame.moves / frames
    return seen


def calibrate(session: EdgeSession, seed: int, photograph: int, frames: int) -> Trial:
    """Try all thresholds on a clip."""
    trial = Trial(session.profile, Sameness(session.profile))
    pictures = (frame.picture for frame in clip(frames, seed=seed, photograph=photograph))
    for result in session.stream(pictures, skip=trial):
        trial.add(result)
    return trial


def play(skip: Skip, seen: Seen, same: Sameness, *, audited: bool) -> tuple[float, float, int | None]:
    """Shares of sent frames and of changed answers among the others, and the frame at which the audit objected."""
    last, sent, changed, caught = 0, 0, 0, None
    for i, look in enumerate(seen.looks):
        decision = skip.decide(look, i / FPS)
        if decision is Decision.REPEAT:
            changed += not same(seen.answers[last], seen.answers[i])
            continue
        if decision is Decision.AUDIT and audited and skip.audit(seen.answers[last], seen.answers[i]) is not None:
            caught = i if caught is None else caught
        sent += 1
        last = i
    skipped = len(seen.looks) - sent
    return sent / len(seen.looks), changed / max(1, skipped), caught


def measure(session: EdgeSession, photograph: int, frames: int = FRAMES) -> Row:
    """One scene: calibrate on one clip, play another."""
    same = Sameness(session.profile)
    threshold = calibrate(session, 0, photograph, frames).table().threshold(SHARE)
    seen = see(session, frames, 1, photograph)
    sent, changed, _ = play(
        Skip(session.profile, threshold=threshold, same=same, share=SHARE), seen, same, audited=True
    )
    wrong = {
        audited: play(
            Skip(session.profile, threshold=WRONG * threshold, same=same, share=SHARE), seen, same, audited=audited
        )
        for audited in (False, True)
    }
    return Row(
        photograph=photograph,
        frames=frames,
        moving=seen.moving,
        threshold=threshold,
        sent=sent,
        changed=changed,
        wrong_changed=wrong[False][1],
        caught_after=wrong[True][2],
        audited_changed=wrong[True][1],
    )


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "scene",
        "moving",
        "threshold",
        "sent",
        "changed",
        "wrong: changed",
        "caught after",
        "then changed",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.photograph), f"{row.moving:.1%}", f"{row.threshold:.2g}", f"{row.sent:.1%}", f"{row.changed:.2%}",
            f"{row.wrong_changed:.1%}", f"{row.caught_after} frames", f"{row.audited_changed:.1%}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Measure all scenes."""
    export_detector(PAIR)
    transport = LoopbackTransport(CloudSession(PAIR / "back.onnx").handle)
    with EdgeSession(PAIR / "front.onnx", transport=transport) as session:
        rows = [measure(session, photograph) for photograph in PHOTOGRAPHS]
    write_json(OUT / "skip.json", {"machine": machine(), "share": SHARE, "scenes": rows})
    show(rows)


if __name__ == "__main__":
    main()
