"""Store and forward: frames wait on disk while the server cannot be reached (docs/spool.md).

spool.py is what callers use. writer.py has the thread that owns the connection, store.py its transactions, records.py
the bodies and their checksums, salvage.py what is done with a damaged file, clock.py the age of
records. drain.py sends what waits.
"""

from .disk.records import Dead, Spooled
from .drain import Drain, DrainCounts
from .options import Counts, SpoolStats
from .spool import Spool

__all__ = ["Counts", "Dead", "Drain", "DrainCounts", "Spool", "SpoolStats", "Spooled"]
