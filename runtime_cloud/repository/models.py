"""Loads the models of a directory, and finds a model by the fingerprint of its pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread

from splitwire.codec.errors import UnknownModel, UsageError
from splitwire.codec.profile import BACK
from splitwire.codec.shared.providers import short_name
from splitwire.codec.wire.frame import SHORT_FINGERPRINT
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.batching import prepare
from splitwire.runtime_cloud.session import CloudSession

from .served import FINGERPRINT, ModelState, ServedModels, Tell

VERSION = "1"
"""The version of every model of a fixed folder."""


class Models(ServedModels):
    """The back halves of a server whose models stay the same while it runs.

    Raises UsageError for two models of one pair, for two pairs that compact frames do not tell apart, and for no model.
    """

    def __init__(self, sessions: Sequence[CloudSession]) -> None:
        self._by_fingerprint: dict[bytes, CloudSession] = {}
        for session in sessions:
            first = self._by_fingerprint.setdefault(session.fingerprint[:SHORT_FINGERPRINT], session)
            if first.fingerprint != session.fingerprint:
                raise UsageError(
                    f"{first.path} and {session.path} are pairs whose fingerprints both begin with"
                    f" {session.fingerprint[:SHORT_FINGERPRINT].hex()}; export one of them again"
                )
            if first is not session:
                raise UsageError(f"{first.path} and {session.path} are the same pair {session.fingerprint.hex()}")
            session.version = VERSION
        if not sessions:
            raise UsageError("no model to serve")
        counts = Counter(s.profile.model for s in self)
        self._by_name = {
            s.profile.model if counts[s.profile.model] == 1 else f"{s.profile.model}-{s.fingerprint.hex()}": s
            for s in self
        }

    def __len__(self) -> int:
        return len(self._by_fingerprint)

    def __iter__(self) -> Iterator[CloudSession]:
        return iter(self._by_fingerprint.values())

    def find(self, fingerprint: bytes, device: str = "") -> CloudSession | None:
        session = self._by_fingerprint.get(fingerprint[:SHORT_FINGERPRINT])
        return session if session is not None and session.fingerprint.startswith(fingerprint) else None

    def named(self, name: str, version: str = "", device: str = "") -> CloudSession:
        session = self._by_name.get(name)
        if session is None and FINGERPRINT.fullmatch(name):
            session = self.find(bytes.fromhex(name))
        if session is None:
            raise UnknownModel(f"no model {printable(name[:64])!r}; served are {', '.join(list(self._by_name)[:8])}")
        if version not in ("", VERSION):
            raise UnknownModel(f"model {printable(name[:64])!r} has no version {version[:16]!r}, it has {VERSION}")
        return session

    def index(self) -> list[ModelState]:
        return [
            ModelState(name=name, version=VERSION, fingerprint=s.pair, answers=s.answers)
            for name, s in self._by_name.items()
        ]

    async def start(self) -> None:
        for session in self:
            await anyio.to_thread.run_sync(prepare, session, abandon_on_cancel=True)

    async def watch(self) -> None:
        pass

    def listen(self, tell: Tell) -> None:
        pass


def describe(session: CloudSession) -> dict[str, Any]:
    """The description of a model that `GET /v1/models` returns as JSON."""
    profile = session.profile
    return {
        "name": profile.model,
        "cut": profile.cut,
        "fingerprint": session.fingerprint.hex(),
        "default_op": profile.default_op,
        "operating_points": [
            {
                "name": point.name,
                "levels": [len(t.quantizer.levels) for t in point.tensors],
                **({"steps": list(point.steps)} if isinstance(point.steps, tuple) else {}),
                "bits_per_element": point.bits_per_element,
            }
            for point in profile.operating_points
        ],
        "tensors": [{"name": t.name, "shape": list(t.shape), "dtype": "float32"} for t in profile.tensors],
        "outputs": list(session.outputs),
        "provider": short_name(session.provider),
    }


def load_models(directory: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> Models:
    """Load the back halves for a server: DIR/back.onnx and DIR/*/back.onnx; or the one file, if `directory` is a file.

    threads, providers: as for CloudSession. Raises UsageError (no such directory, no back.onnx in it, a pair twice) and
    what CloudSession raises.
    """
    root = Path(directory)
    if root.is_file():
        return Models([CloudSession(root, threads=threads, providers=providers)])
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory; give the one that `splitwire export --out` wrote")
    paths = [p for p in (root / BACK, *sorted(root.glob(f"*/{BACK}"))) if p.is_file()]
    if not paths:
        raise UsageError(f"{root} holds no {BACK}, nor does a folder in it; make one with `splitwire export`")
    return Models([CloudSession(p, threads=threads, providers=providers) for p in paths])
