"""What adapts or watches a running edge: the rate, drift of the input, a sample for the next calibration."""

from .rate import LinkState, RateController, Rung, ladder

__all__ = ["LinkState", "RateController", "Rung", "ladder"]
