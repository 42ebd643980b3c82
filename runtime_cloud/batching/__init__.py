"""When which frame runs: a bounded queue that is fair by device, and batches of frames of several devices.

measure.py     at load: may frames of this model run together, and what does a run cost by its batch size
job.py         a call that waits or runs; the lane of a model: its batch size and its costs
queue.py       the order of the calls: priority, then fair by device
core.py        who is admitted, what runs next, how long to wait: no threads, no event loop, any clock
overload.py    whether more is asked of the server than it can do
batch.py       runs the calls of one batch: decode each, the back once, a reply for each
scheduler.py   Scheduler: the compute threads, and the event loop's side
"""

from .job import Done
from .measure import measure, prepare
from .scheduler import Scheduler

__all__ = ["Done", "Scheduler", "measure", "prepare"]
