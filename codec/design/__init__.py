"""Design of operating points: feature densities, clipping ranges, quantizers, probability tables.

Only this package uses scipy. The exporter, the evaluation and the benchmarks import it; the edge and the cloud do not.
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
