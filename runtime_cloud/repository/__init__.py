"""The models that a server serves: found in folders, loaded, and chosen by the fingerprint in a frame."""

from .models import Models, ModelState, describe, load_models

__all__ = ["ModelState", "Models", "describe", "load_models"]
