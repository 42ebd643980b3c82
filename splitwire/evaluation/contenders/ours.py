"""splitwire as it is used: one frame per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.wire.frame import COMPACT_IDS

from .protocol import Features, Sent


class Splitwire:
    """The real frame of one image at one operating point, header and checksum included.

    Its frame id is as long as an EdgeSession's.

    Sizes beside the tensors are sent as zeros. They are not coded, so the frame is as long as with the real ones, which
    the evaluation hands to the back half itself.
    """

    def __init__(self, codec: FeatureCodec, op: str, *, family: str) -> None:
        self.family, self.setting, self.received = family, op, f"op {op}"
        self._codec = codec
        self._sizes = [np.zeros(s.length, np.int64) for s in codec.profile.size_specs]

    def fit(self, sample: Sequence[Features]) -> None:
        """Nothing to learn: the profile holds everything."""

    def encode(self, features: Features) -> Sent:
        return Sent(payload=self._codec.encode(features, op=self.setting, frame_id=COMPACT_IDS - 1, sizes=self._sizes))

    def decode(self, sent: Sent) -> Features:
        return tuple(self._codec.decode(sent.payload).tensors)
