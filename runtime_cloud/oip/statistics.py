"""What was served, by model: the protocol's statistics. They count the frames of all protocols of the server."""

from __future__ import annotations

import time
from typing import Any

from splitwire.runtime_cloud.observe import Answered, Observer

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
"""The durations of a model's statistics, each a count and nanoseconds. compute_input is decoding, compute_infer the
back half, compute_output the writing of a reply; a hit is an answer from memory, and is not counted by model."""


class _Counts:
    """The counts of one pair. Times in seconds."""

    __slots__ = ("count", "decoded", "encoded", "fail", "fail_s", "images", "last_ms", "queued", "ran")

    def __init__(self) -> None:
        self.count = self.images = self.fail = self.last_ms = 0
        self.queued = self.decoded = self.ran = self.encoded = self.fail_s = 0.0


class Statistics(Observer):
    """Counts what the service answers. Only the thread of the event loop uses it."""

    def __init__(self) -> None:
        self._pairs: dict[str, _Counts] = {}

    def answered(self, answer: Answered) -> None:
        """A frame was computed."""
        counts = self._of(answer.pair)
        counts.count += 1
        counts.images += answer.images
        counts.queued += answer.queued
        counts.decoded += answer.decoded
        counts.ran += answer.ran
        counts.encoded += answer.encoded
        counts.last_ms = time.time_ns() // 1_000_000

    def failed(self, pair: str, seconds: float) -> None:
        """A request for a model was refused for what it holds. pair: fingerprint of the model, in hex."""
        counts = self._of(pair)
        counts.fail += 1
        counts.fail_s += seconds

    def of(self, name: str, version: str, pair: str) -> dict[str, Any]:
        """The statistics of a model, as the protocol has them in JSON."""
        c = self._pairs.get(pair) or _Counts()
        total = c.queued + c.decoded + c.ran + c.encoded
        seconds = {
            "success": (c.count, total),
            "fail": (c.fail, c.fail_s),
            "queue": (c.count, c.queued),
            "compute_input": (c.count, c.decoded),
            "compute_infer": (c.count, c.ran),
            "compute_output": (c.count, c.encoded),
        }
        durations = {d: {"count": n, "ns": round(s * 1e9)} for d in DURATIONS for n, s in [seconds.get(d, (0, 0.0))]}
        return {
            "name": name,
            "version": version,
            "last_inference": c.last_ms,
            "inference_count": c.images,
            "execution_count": c.count,
            "inference_stats": durations,
            "batch_stats": [],
            "memory_usage": [],
        }

    def _of(self, pair: str) -> _Counts:
        counts = self._pairs.get(pair)
        if counts is None:
            counts = self._pairs[pair] = _Counts()
        return counts
