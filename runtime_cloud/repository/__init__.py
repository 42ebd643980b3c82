"""The models that a server serves: found in a folder, loaded, and chosen by the fingerprint in a frame. See
docs/repository.md.

served.py      ServedModels: what the server asks of its models; ModelState
models.py      Models: they stay the same while the server runs
layout.py      which models a folder holds, in which versions, and what is wrong with them
settings.py    splitwire.toml in the folder of a model
loading.py     opens a version and warms it up, in a thread
canary.py      which version answers which device
slots.py       one version of a model in a running server, and its state
watch.py       which versions have changed, once their files are at rest
repository.py  Repository: loads, loads again and unloads while the server answers
"""

from .models import Models, describe, load_models
from .repository import Repository, RepositoryLimits
from .served import ModelState, ServedModels

__all__ = ["ModelState", "Models", "Repository", "RepositoryLimits", "ServedModels", "describe", "load_models"]
