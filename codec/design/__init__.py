"""What the exporter needs to make a profile: feature densities, clipping ranges, probability tables.

scipy lives here, and only the exporter (and the benchmarks) import this package: nothing in it runs on both ends.
"""

from .point import design_operating_point
from .statistics import FeatureStatistics, Histogram

__all__ = ["FeatureStatistics", "Histogram", "design_operating_point"]
