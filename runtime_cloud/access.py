"""Access: the models of a server, as far as a caller may use them, read about them, or change them.

A caller that may use some models only learns about no other one, not even that there is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from splitwire.codec.errors import FingerprintMismatch, Forbidden, UnknownModel
from splitwire.codec.wire.frame import parse_frame, peek_fingerprint
from splitwire.codec.wire.reply import printable

from .call import Call, device_of
from .repository import ModelState, ServedModels
from .security import Caller, Policy
from .security.actions import INFER, READ
from .session import CloudSession


class Access:
    """What the policy allows of the models. Only the thread of the event loop uses it.

    A model has the name in its profile, and the one that the repository gives it; a caller must be allowed one of them.
    """

    def __init__(self, models: ServedModels, policy: Policy) -> None:
        self.models = models
        self.policy = policy
        self._names: dict[str, tuple[str, ...]] = {}

    def changed(self) -> None:
        """Models were loaded or unloaded: their names are looked up again."""
        self._names.clear()

    def names(self, session: CloudSession) -> tuple[str, ...]:
        """The names of a model, that of its profile first."""
        names = self._names.get(session.pair)
        if names is None:
            given = (m.name for m in self.models.index() if m.fingerprint == session.pair)
            names = self._names[session.pair] = tuple(dict.fromkeys((session.profile.model, *given)))
        return names

    # ------------------------------------------------------------------ one model

    def admit(self, call: Call) -> None:
        """Raise an error if its caller may not run the model that a call names, or else that its frame does.

        What is allowed is counted. Raises UnknownModel, FingerprintMismatch, BitstreamError, AuthRefused, Forbidden.
        """
        if self.policy.open:
            return
        device = device_of(call) or call.client
        if call.model is None:
            session = self._of_pair(call.caller, peek_fingerprint(call.frame), device, call.frame)
        else:
            session = self.named(call.caller, INFER, *call.model, device)
        self.policy.count(call.caller, INFER, session.profile.model)

    def of_pair(self, caller: Caller, fingerprint: bytes, device: str = "") -> CloudSession:
        """The session of a pair, if a caller may run it. Raises FingerprintMismatch, AuthRefused, Forbidden."""
        return self._of_pair(caller, fingerprint, device)

    def named(self, caller: Caller, action: str, name: str, version: str = "", device: str = "") -> CloudSession:
        """The session of a model by its name, if a caller may do this with it.

        Raises UnknownModel, AuthRefused, Forbidden.
        """
        try:
            session = self.models.named(name, version, device)
        except UnknownModel:
            if self.policy.sees_all(caller):
                raise
            self.policy.check(caller, action, name)
            raise self._no(name) from None
        if not self.policy.open:
            self.policy.check(caller, action, *self.names(session), asked=name)
        return session

    def _of_pair(self, caller: Caller, fingerprint: bytes, device: str, frame: bytes = b"") -> CloudSession:
        session = None
        try:
            session = self.models.of_frame(fingerprint, device)
        except FingerprintMismatch:
            if frame:
                parse_frame(frame)  # raises if the frame is damaged, and its fingerprint with it
            if self.policy.sees_all(caller):
                raise
        if session is not None and self.policy.open:
            return session
        try:
            self.policy.check(caller, INFER, *((fingerprint.hex(),) if session is None else self.names(session)))
        except Forbidden:
            if not self.policy.may(caller, INFER):
                raise
            raise self._not_for(caller, fingerprint) from None
        if session is None:
            raise self._not_for(caller, fingerprint)
        return session

    def _not_for(self, caller: Caller, fingerprint: bytes) -> Forbidden:
        """The same words for a pair that a caller may not use and for one that is not served."""
        mine = [s for s in self.models if self.policy.may(caller, INFER, *self.names(s))]
        shown = ", ".join(f"{s.pair} ({s.profile.model})" for s in mine[:8])
        served = f"it may use {shown}" if mine else "no model that it may use is served"
        return Forbidden(f"{caller.name!r} may not use the pair {fingerprint.hex()}; {served}")

    @staticmethod
    def _no(name: str) -> UnknownModel:
        return UnknownModel(f"no model {printable(name[:64])!r} of this version is served")

    # ------------------------------------------------------------------ lists

    def visible(self, caller: Caller) -> list[CloudSession]:
        """The models that are ready, and that a caller may read about."""
        if self.policy.sees_all(caller):
            return list(self.models)
        return [s for s in self.models if self.policy.may(caller, READ, *self.names(s))]

    def find(self, caller: Caller, fingerprint: bytes) -> CloudSession | None:
        """The session of a pair that a caller may read about, or None."""
        session = self.models.find(fingerprint)
        if session is None or self.policy.open:
            return session
        return session if self.policy.may(caller, READ, *self.names(session)) else None

    def index(self, caller: Caller) -> list[ModelState]:
        """The state of the versions that a caller may read about."""
        states = self.models.index()
        if self.policy.sees_all(caller):
            return states
        profiles = {s.pair: s.profile.model for s in self.models}
        return [m for m in states if self.policy.may(caller, READ, m.name, profiles.get(m.fingerprint, m.name))]

    # ------------------------------------------------------------------ changes

    async def manage(self, caller: Caller, what: str, name: str, change: Callable[[], Awaitable[None]]) -> None:
        """Change a model if a caller may, with a line in the record. what: "load", "unload", ….

        change: does it. Raises what that raises, AuthRefused, Forbidden.
        """
        self.policy.manage(caller, what, name)
        try:
            await change()
        except UnknownModel:
            if self.policy.sees_all(caller):
                raise
            raise self._no(name) from None
