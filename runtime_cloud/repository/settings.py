"""splitwire.toml in the folder of a model: how its versions run, and which share of the devices gets which.

```toml
[canary]
"3" = 0.1               # version 3 answers a tenth of the devices

[versions."3"]
provider = "CUDA"       # or a list, as for --provider; else as the server's other models
threads = 2
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from splitwire.codec.wire.reply import printable

SETTINGS = "splitwire.toml"
MAX_BYTES = 64 << 10

Share = Annotated[float, Meta(ge=0, le=1)]


class VersionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one version runs; None: as the server's other models."""

    provider: str | tuple[str, ...] | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None

    @property
    def providers(self) -> tuple[str, ...] | None:
        """The short names of the providers, in order of preference; None: none is named."""
        return (self.provider,) if isinstance(self.provider, str) else self.provider or None


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What splitwire.toml holds. canary: shares of the devices by version, 0 to 1, at most 1 together."""

    canary: dict[str, Share] = {}
    versions: dict[str, VersionSettings] = {}

    def __post_init__(self) -> None:
        if sum(self.canary.values()) > 1 + 1e-9:
            raise ValueError("the shares under [canary] are more than 1 together")


def read_settings(path: Path, inside: Path) -> tuple[Settings, str]:
    """The settings in a file, and what is wrong with it, "" if nothing. inside: the folder that it must lie in.

    Without a file there are no settings, and nothing is wrong.
    """
    try:
        if not (path.is_symlink() or path.exists()):
            return Settings(), ""
        if not path.resolve().is_relative_to(inside):
            return Settings(), f"{SETTINGS} is a link that leads out of the repository"
        if not path.is_file():
            return Settings(), f"{SETTINGS} is no file"
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return Settings(), f"{SETTINGS} has more than {MAX_BYTES} bytes"
        return msgspec.toml.decode(data, type=Settings), ""
    except OSError as e:
        return Settings(), f"{SETTINGS} cannot be read: {e.strerror or e}"
    except (msgspec.MsgspecError, ValueError) as e:
        return Settings(), printable(f"{SETTINGS}: {e}")
