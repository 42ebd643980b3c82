"""The endpoints under HTTP/1.1: routes, bodies, batches and the status of each error."""

from .app import create_app

__all__ = ["create_app"]
