"""Profiles as JSON with damaged fields, and the line that each is refused with."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from splitwire.codec.errors import ProfileError
from splitwire.codec.profile import CodecProfile

Json = dict[str, Any]


def array(kind: str, change: Callable[[np.ndarray], object]) -> Callable[[str], str]:
    """A change of a field in base64, as an array of `kind`: in place, or to what it returns."""

    def changed(text: str) -> str:
        values = np.frombuffer(base64.b64decode(text), kind).copy()
        other = change(values)
        return base64.b64encode((values if other is None else np.asarray(other, kind)).tobytes()).decode()

    return changed


def put(kind: str, at: int, value: int) -> Callable[[str], str]:
    """A change of one element of a field in base64, an array of `kind`."""
    return array(kind, lambda values: values.__setitem__(at, value))


def refused(profile: Json) -> str:
    """The message, one line, with which the damaged profile is refused."""
    with pytest.raises(ProfileError) as caught:
        CodecProfile.from_json(json.dumps(profile))
    message = str(caught.value)
    assert message.startswith("codec profile is damaged: ") and message.endswith("; export the model again")
    assert "\n" not in message
    return message
