"""DriftMonitor: tells when the input of the network no longer looks like the pictures of the calibration.

Three signals, each a mean over a window of frames, have limits from the calibration (exporter/pair/drift.py): the share
of elements outside the clipping range (or beyond the tables), the divergence of the histogram from the calibration's,
and the length of the frames. The limits are for independent frames. Frames of a resting camera are alike, and say no
more than one: so the limits are taken for the number of independent frames that would differ as much from each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.drift import DriftReference, Float64Array, Meter
from splitwire.codec.profile import CodecProfile
from splitwire.runtime_edge.events import Event, Field

CHECK_EVERY = 8
"""Frames from one check of the limits to the next."""
ALIKE = 0.2
"""Frames whose differences are below this share of those between calibration images count as one: noise of a sensor
makes that much."""
CALM = 0.8
"""The alarm ends when all signals are below this share of their limits."""

Float32Array = NDArray[np.float32]
ADVICE = (
    "collect pictures with `splitwire edge capture`, and recalibrate the pair with `splitwire export --recalibrate`"
)


class DriftMonitor:
    """Compares live frames with the calibration. For one thread.

    profile, reference: of the pair (EdgeSession.profile, .drift_reference). op: operating point of all frames, if it is
    always the same; None: `observe` is told, or the length of frames is not watched. wall: seconds since 1970, for
    the event.
    """

    def __init__(
        self,
        profile: CodecProfile,
        reference: DriftReference,
        *,
        op: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._meter = Meter(profile, reference.op)
        self._reference = reference
        self._expected = np.array(reference.histogram)
        self._lengths = {length.op: (length.log_mean, length.log_deviation) for length in reference.lengths}
        self._op = op
        self._wall = wall
        self._window = reference.window
        self._recent = np.zeros((self._window, self._meter.cells))
        self._outside = np.zeros(self._window)
        self._differences = np.zeros(self._window)
        self._deviations: deque[float] = deque(maxlen=self._window)
        self._images = 0
        self._unchecked = 0
        self._worst: tuple[str, float, float] = ("", 0.0, 1.0)
        self.drifting = False

    def observe(self, features: Sequence[Float32Array], frame_bytes: int, *, op: str | None = None) -> Event | None:
        """Look at the tensors of one frame; returns an event when drift begins, and one when it ends.

        features: (B, *shape) float32, as the front gives them. frame_bytes: length of their frame. op: its operating
        point. The monitor looks at the limits once in CHECK_EVERY frames, from a quarter of the window on.
        """
        histograms, outside = self._meter.measure(features)
        for histogram, share in zip(histograms, outside, strict=True):
            at = self._images % self._window
            before = self._recent[at - 1]
            self._differences[at] = ((histogram - before) ** 2).sum() if self._images else 0.0
            self._recent[at] = histogram
            self._outside[at] = share
            self._images += 1
        self._note_length(frame_bytes / len(outside), op or self._op)
        self._unchecked += 1
        if self._unchecked < CHECK_EVERY or self._images < self._window // 4:
            return None
        self._unchecked = 0
        return self._check()

    @property
    def score(self) -> float:
        """The largest of the signals over its limit, at the last check: from 1 on, the input has drifted."""
        return self._worst[1] / self._worst[2]

    def strangeness(self, features: Sequence[Float32Array]) -> float:
        """How far one image is from the calibration: divergence over its limit for one image. features: (1, *shape)."""
        histogram, _ = self._meter.measure(features)
        divergence = float(self._meter.divergence(histogram[0], self._expected))
        return divergence / self._reference.limits.divergence[0]

    def _note_length(self, frame_bytes: float, op: str | None) -> None:
        if op is not None and op in self._lengths:
            mean, deviation = self._lengths[op]
            self._deviations.append((float(np.log(frame_bytes)) - mean) / deviation)

    def _check(self) -> Event | None:
        used = min(self._images, self._window)
        recent = self._recent[:used]
        apart = float(self._differences[:used].mean()) / (2 * self._reference.variance)
        independent = 1 + (used - 1) * max(0.0, (min(1.0, apart) - ALIKE) / (1 - ALIKE))
        limits = self._reference.limits
        mean: Float64Array = recent.mean(axis=0)
        signals = [
            ("outside", float(self._outside[:used].mean()), _at(limits.outside, independent)),
            (
                "divergence",
                float(self._meter.divergence(mean, self._expected)),
                _at(limits.divergence, independent),
            ),
        ]
        if len(self._deviations) >= used // 2 > 0:
            deviation = float(np.mean(self._deviations))
            fewer = min(independent, len(self._deviations))
            side = limits.longer if deviation > 0 else limits.shorter
            signals.append(("bits", abs(deviation), _at(side, fewer)))
        self._worst = max(signals, key=lambda signal: signal[1] / signal[2])
        name, value, limit = self._worst
        if not self.drifting and value > limit:
            self.drifting = True
            return self._event("drift", f"{_TEXTS[name]} ({value:.3g}, limit {limit:.3g}): {ADVICE}", *self._worst)
        if self.drifting and value < CALM * limit:
            self.drifting = False
            return self._event("drift_ended", "the input looks like the calibration's again", *self._worst)
        return None

    def _event(self, kind: str, text: str, signal: str, value: float, limit: float) -> Event:
        fields: dict[str, Field] = {
            "signal": signal,
            "value": value,
            "limit": limit,
            "window": min(self._images, self._window),
            "images": self._images,
        }
        return Event(kind=kind, text=text, wall=self._wall(), fields=fields)


_TEXTS = {
    "outside": "the input has drifted: more features lie outside the clipping range than at calibration",
    "divergence": "the input has drifted: the features are distributed otherwise than at calibration",
    "bits": "the input has drifted: frames are longer or shorter than at calibration",
}


def _at(limits: Sequence[float], images: float) -> float:
    """The limit for a number of images, between those for 1, 2, 4, …: a straight line in the logarithm of both."""
    place = min(max(float(np.log2(images)), 0.0), len(limits) - 1.0)
    low = min(int(place), len(limits) - 2) if len(limits) > 1 else 0
    a, b = (max(limits[i], 1e-9) for i in (low, min(low + 1, len(limits) - 1)))
    return float(a * (b / a) ** (place - low))
