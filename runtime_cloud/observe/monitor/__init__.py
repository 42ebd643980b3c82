"""The live monitor page (docs/monitor.md).

watch.py    what the page shows: once a second the difference of all counts, as a JSON text for every watcher
events.py   server-sent events, as an ASGI response
routes.py   the routes: the page and its files, the events, and the metrics
page/       HTML, CSS and JavaScript; nothing is loaded from elsewhere
"""

from .routes import Guard, Monitor

__all__ = ["Guard", "Monitor"]
