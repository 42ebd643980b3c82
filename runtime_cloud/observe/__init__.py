"""What a running server shows: metrics, traces, an access log, events, and a live monitor page (docs/observe.md).

observer.py    Observer: what the server calls; it does nothing. `Observers` calls several
telemetry.py   Telemetry: the observer that counts
counting.py, devices.py   cheap histograms; the devices that were heard of last
metrics.py     the metrics in Prometheus' text formats, and their table
monitor/       the live page, its events, and the routes
"""

from .observer import Answered, Observer, Observers, all_observers
from .telemetry import Levels, ModelState, Telemetry

__all__ = ["Answered", "Levels", "ModelState", "Observer", "Observers", "Telemetry", "all_observers"]
