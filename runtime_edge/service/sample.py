"""The sample of `[drift] capture`: pictures for a recalibration, collected beside the frames."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

from splitwire.codec.errors import NonFiniteFeatures, SplitwireError, UsageError
from splitwire.runtime_edge.control import Capture, DriftMonitor
from splitwire.runtime_edge.events import Event, EventSink
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.stream.parts import Look

from .config import EdgeConfig

WAITING = 2
"""Frames that wait to be looked at."""
JOIN_S = 5.0


class Sample:
    """Collects pictures for a recalibration, in a thread of its own: a frame never waits for it.

    monitor: of this sample alone; None: all pictures are equally strange. on_event: gets `capture_failed` when pictures
    begin to get lost, and `capture_back`.
    """

    def __init__(self, capture: Capture, monitor: DriftMonitor | None, on_event: EventSink) -> None:
        self._capture, self._monitor, self._on_event = capture, monitor, on_event
        self._looks: queue.Queue[Look | None] = queue.Queue(WAITING)
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="splitwire-sample", daemon=True)
        self._thread.start()

    def offer(self, look: Look) -> None:
        """Look at a frame, unless others still wait."""
        with suppress(queue.Full):
            self._looks.put_nowait(look)

    def close(self) -> None:
        """End the thread. What waits is looked at before."""
        self._looks.put(None)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while (look := self._looks.get()) is not None:
            try:
                score = 0.0 if self._monitor is None else self._monitor.strangeness(look.features)
                self._capture.picture(look.captured.image, score)
            except (UsageError, NonFiniteFeatures):
                continue  # the picture is gone already, or is none
            except SplitwireError as e:
                if not self._failing:
                    self._on_event(Event(kind="capture_failed", text=f"the sample takes no pictures: {e}"))
                self._failing = True
            else:
                if self._failing:
                    self._on_event(Event(kind="capture_back", text="the sample takes pictures again"))
                self._failing = False


def open_sample(config: EdgeConfig, session: EdgeSession, on_event: EventSink) -> Sample | None:
    """The sample of `[drift] capture`, if there is one. Makes its folder. Raises DeviceError."""
    if not config.drift.capture:
        return None
    capture = Capture(
        config.drift.capture,
        max_bytes=max(1, int(config.drift.capture_mb * 1e6)),
        every_s=config.drift.capture_every_s,
    )
    reference = session.drift_reference
    single = session.input_shape[0] in (None, 1)
    monitor = None if reference is None or not single else DriftMonitor(session.profile, reference)
    return Sample(capture, monitor, on_event)
