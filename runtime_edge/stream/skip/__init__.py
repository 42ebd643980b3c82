"""Send or not: frames that are like the last one sent are not sent, and its answer is repeated.

deciding.py      Skip: the decision for each frame, its audit; a gate of the user's own
symbols.py       the quantized features of a frame, and how far two frames are apart
sameness.py      whether two answers are the same, by the task
calibrating.py   the threshold: Trial tries many on a clip, SkipTable keeps what they did
"""

from .calibrating import SkipTable, Trial
from .deciding import Gate, Skip
from .sameness import Sameness

__all__ = ["Gate", "Sameness", "Skip", "SkipTable", "Trial"]
