"""What the exporter needs to make a profile: feature densities, clipping ranges, probability tables.

scipy lives here. The exporter, the evaluation and the benchmarks alone import it: nothing in it runs on both ends.
"""

from .point import design_operating_point, worthwhile_taps
from .rate import Widening, design_entropy_constrained
from .statistics import FeatureStatistics, Histogram

__all__ = [
    "FeatureStatistics",
    "Histogram",
    "Widening",
    "design_entropy_constrained",
    "design_operating_point",
    "worthwhile_taps",
]
