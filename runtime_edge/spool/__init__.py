"""Store and forward: frames wait on disk while the server cannot be reached (docs/spool.md).

spool.py is what callers use, writer.py the thread that owns the connection, records.py what is stored, drain.py what
sends it. disk/ has the tables, the salvage of a damaged file, the clock that counts ages, the lock.
"""

from .drain import Drain, DrainCounts
from .options import Counts, SpoolStats
from .records import Dead, Spooled
from .spool import Spool

__all__ = ["Counts", "Dead", "Drain", "DrainCounts", "Spool", "SpoolStats", "Spooled"]
