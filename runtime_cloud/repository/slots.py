"""Slot: one version of a model in a running server, and its state."""

from __future__ import annotations

from splitwire.codec.wire.frame import SHORT_FINGERPRINT
from splitwire.runtime_cloud.session import CloudSession

from .canary import Route
from .layout import Candidate, Stamp
from .served import ModelState

Key = tuple[str, str]
"""(name, version)."""


class Slot:
    """A version of a model.

    session: what answers; None unless it is ready. fingerprint: of its pair; b"" if it was never loaded. tried: the
    stamp of the files that were tried last, whether they are loaded or not; None: none. size: bytes of the files that
    are loaded. loading: being opened or warmed up. closing: former sessions that still answer. reason, quarantined: see
    ModelState. former: frames that former sessions were chosen for.
    """

    def __init__(self, key: Key) -> None:
        self.name, self.version = key
        self.session: CloudSession | None = None
        self.fingerprint = b""
        self.tried: Stamp | None = None
        self.size = 0
        self.loading = False
        self.closing = 0
        self.reason = ""
        self.quarantined = False
        self.former = 0

    @property
    def key(self) -> Key:
        """(name, version)."""
        return self.name, self.version

    @property
    def label(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}".rstrip()

    @property
    def short(self) -> bytes:
        """The first bytes of the fingerprint, by which compact frames name the pair."""
        return self.fingerprint[:SHORT_FINGERPRINT]

    @property
    def state(self) -> str:
        """As in ModelState."""
        if self.session is not None:
            return "READY"
        if self.loading:
            return "LOADING"
        return "UNLOADING" if self.closing else "UNAVAILABLE"

    def refuse(self, candidate: Candidate, reason: str) -> None:
        """The files cannot be loaded. A session that is there stays."""
        self.tried, self.reason, self.quarantined = candidate.stamp, reason, True

    def put(self, candidate: Candidate, session: CloudSession) -> CloudSession | None:
        """Answer with this session from now on. Returns the former one."""
        former = self.session
        self._count(former)
        session.version = self.version
        self.session, self.fingerprint = session, session.fingerprint
        self.tried, self.size = candidate.stamp, candidate.size
        self.reason, self.quarantined = "", False
        return former

    def take(self, reason: str) -> CloudSession | None:
        """Answer no more. Returns the session."""
        former = self.session
        self._count(former)
        self.session, self.size = None, 0
        self.reason, self.quarantined = reason, False
        return former

    def describe(self, route: Route[Slot] | None) -> ModelState:
        """The state, for the index. route: of its pair."""
        session = self.session
        return ModelState(
            name=self.name,
            version=self.version,
            fingerprint=self.fingerprint.hex(),
            state=self.state,
            reason=self.reason,
            quarantined=self.quarantined,
            share=0.0 if session is None or route is None else route.share(self),
            answers=self.former + (0 if session is None else session.answers),
        )

    def _count(self, former: CloudSession | None) -> None:
        if former is not None:
            self.former += former.answers
