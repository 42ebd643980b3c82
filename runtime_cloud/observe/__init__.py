"""What a running server shows: metrics, traces, an access log, events, and a live monitor page.

observer.py   Observer: what the server calls; it does nothing. `Observers` calls several
"""

from .observer import Answered, Observer, Observers

__all__ = ["Answered", "Observer", "Observers"]
