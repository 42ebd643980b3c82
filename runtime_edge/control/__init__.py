"""What adapts or watches a running edge: the rate, drift of the input, a sample for the next calibration."""

from .drift import DriftMonitor
from .rate import LinkState, RateController, Rung, ladder

__all__ = ["DriftMonitor", "LinkState", "RateController", "Rung", "ladder"]
