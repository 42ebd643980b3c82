"""What adapts or watches a running edge: the rate, drift of the input, a sample for the next calibration."""

from .capture import Capture, Kept
from .drift import DriftMonitor
from .rate import LinkState, RateController, Rung, ladder

__all__ = ["Capture", "DriftMonitor", "Kept", "LinkState", "RateController", "Rung", "ladder"]
