"""What runs the application: one process with uvicorn."""

from .process import serve

__all__ = ["serve"]
