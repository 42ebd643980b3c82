"""Policy: who is it, and may they do this. Every protocol asks it.

A protocol calls `authenticate` once for a request, or for a connection that keeps its caller, and `check` for what is
asked. `check` looks the caller up again: so a token that is revoked, or a scope that changes, counts for streams that
are open too. Times are compared with the clock of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from splitwire.codec.errors import AuthRefused, Forbidden

from .actions import INFER, MANAGE, READ
from .audit import Audit
from .caller import NOBODY, Caller
from .register import Grant, Register, bearer
from .throttle import Throttle
from .tokens import Entry

BY_CERTIFICATE = Grant.of(Entry(id="0" * 12, name="certificate", actions=(INFER, READ)))
"""What every client certificate may do where no file of tokens says more."""

MISSING = "this server asks for a token: send Authorization: Bearer TOKEN"
WRONG = "the token is not valid"


class Policy:
    """The rules of one server. Only the thread of the event loop uses it, but `renew` any thread.

    tokens: a file of tokens. certificates: clients show certificates, which TLS has checked. With neither, everybody
    may do everything. audit: the record; None for the log. Raises UsageError for files that cannot be used.
    """

    def __init__(self, tokens: Path | None = None, *, certificates: bool = False, audit: Audit | None = None) -> None:
        self.open = tokens is None and not certificates
        self.audit = Audit() if audit is None else audit
        self.told: Callable[[str, str], None] = lambda kind, text: None
        self._register = None if tokens is None else Register(tokens, changed=self._changed)
        self._throttle = Throttle()
        self._renew = False

    # ------------------------------------------------------------------ who is it

    def authenticate(
        self, authorization: str, peer: str, *, certificate: str = "", until: float = float("inf"), target: str = ""
    ) -> Caller:
        """The caller of a request. Raises AuthRefused.

        authorization: the value of that header, "" for none; it decides if it is there. peer: the address. certificate,
        until: the name in the client's certificate, and when this ends. target: method and path, for the record.
        """
        if self.open:
            return NOBODY
        register = self._register
        if register is not None:
            self._look(register)
        if authorization and register is not None:
            grant = register.verify(bearer(authorization))
            reason, text = "wrong_token", WRONG
        elif certificate:
            grant = BY_CERTIFICATE if register is None else register.of_certificate(certificate)
            reason, text = "unknown_certificate", "the certificate is not one that this server knows"
        else:
            grant = None
            reason, text = ("no_token", MISSING) if register is not None else ("no_certificate", "show a certificate")
        name = "" if grant is None else certificate if grant is BY_CERTIFICATE else grant.entry.name
        entry_id = "" if grant is None or grant is BY_CERTIFICATE else grant.entry.id
        caller = Caller(name, entry_id, peer, float("inf") if register is not None and authorization else until)
        if grant is not None:
            ended = self._ended(caller, grant)
            if not ended:
                return caller
            reason, text = ended, _ENDED[ended]
        if self._throttle.failed(peer, time.monotonic()):
            self.audit.refused_again()
            raise AuthRefused(text)
        self.audit.refused(reason, caller=name, entry_id=entry_id, peer=peer, target=target)
        raise AuthRefused(text)

    # ------------------------------------------------------------------ may they do this

    def check(self, caller: Caller, action: str, *models: str, asked: str = "") -> None:
        """Raise Forbidden if a caller may not do this, AuthRefused if it has lost its rights since it came.

        models: the names of the model that it is about, one of which must be allowed; none if it is about no model.
        asked: the name that the request has, for the error; "" for the first of them.
        """
        if not self.open:
            self._check(caller, action, models, asked)

    def count(self, caller: Caller, action: str, model: str) -> None:
        """Count for the record what a caller was allowed."""
        self.audit.allowed(caller.name, caller.id, action, model, caller.peer)

    def admit(self, caller: Caller, action: str) -> None:
        """Raise AuthRefused or Forbidden if a caller may not do this with any model, before a route does anything.

        What is allowed is counted, but frames and changes of models only where their model is known.
        """
        if not self.open:
            self._check(caller, action, ())
            if action not in (INFER, MANAGE):
                self.count(caller, action, "")

    def manage(self, caller: Caller, what: str, model: str) -> None:
        """Raise AuthRefused or Forbidden if a caller may not load or unload a model; a line in the record if it may.

        what: "load" or "unload".
        """
        if not self.open:
            self._check(caller, MANAGE, (model,))
            self.audit.managed(caller.name, caller.id, MANAGE, model, caller.peer, what)

    def may(self, caller: Caller, action: str, *models: str) -> bool:
        """Whether a caller may do this: for lists that hold only what it may see. Nothing is recorded."""
        if self.open:
            return True
        grant = self._grant(caller)
        return grant is not None and not self._ended(caller, grant) and _allows(grant, action, models)

    def sees_all(self, caller: Caller) -> bool:
        """Whether a caller may use every model, and so may learn which there are."""
        if self.open:
            return True
        grant = self._grant(caller)
        return grant is not None and grant.models is None

    def still_valid(self, caller: Caller) -> bool:
        """Whether what a caller has shown is still valid: for connections that stay open."""
        if self.open:
            return True
        if self._register is not None:
            self._look(self._register)
        grant = self._grant(caller)
        return grant is not None and not self._ended(caller, grant)

    # ------------------------------------------------------------------ while the server runs

    def renew(self) -> None:
        """Read the file of tokens again at the next request or tick. Any thread, or a signal's handler, may call it."""
        self._renew = True

    def tick(self) -> None:
        """Look at the file, and write what was counted: now and then, also without requests."""
        if self._register is not None:
            self._look(self._register)
        self.audit.tick()

    def event(self, kind: str, text: str) -> None:
        """Something that is no request has happened: for the record and the observer."""
        self.audit.event(text)
        self.told(kind, text)

    def handshake_failed(self, reason: str, peer: str) -> None:
        """A client could not open a connection with TLS. reason: in words of OpenSSL."""
        if self._throttle.failed(peer, time.monotonic()):
            self.audit.refused_again()
        else:
            self.audit.refused(f"tls: {reason}", action="connect", peer=peer)

    def close(self) -> None:
        """Write what was counted."""
        self.audit.close()

    # ------------------------------------------------------------------

    def _look(self, register: Register) -> None:
        if self._renew:
            self._renew = False
            register.look(now=True)
        else:
            register.look()

    def _grant(self, caller: Caller) -> Grant | None:
        if caller.id:
            return None if self._register is None else self._register.find(caller.id)
        return BY_CERTIFICATE if self._register is None and caller.name else None

    @staticmethod
    def _ended(caller: Caller, grant: Grant) -> str:
        """Why a caller has no rights any more; "" if it has."""
        now = time.time()
        if caller.until <= now:
            return "expired_certificate"
        if grant.until > now:
            return ""
        return grant.entry.state(now)

    def _check(self, caller: Caller, action: str, models: tuple[str, ...], asked: str = "") -> None:
        grant = self._grant(caller)
        ended = "revoked" if grant is None else self._ended(caller, grant)
        if grant is None or ended:
            self._record(ended if caller.name else "no_token", caller, action, *models[:1])
            raise AuthRefused(_ENDED[ended] if caller.name else MISSING)
        if _allows(grant, action, models):
            return
        if action not in grant.actions:
            self._record("other_action", caller, action, *models[:1])
            raise Forbidden(f"{caller.name!r} may not {action}; it may {', '.join(grant.entry.actions)}")
        self._record("other_model", caller, action, *models[:1])
        raise Forbidden(f"{caller.name!r} may not {action} the model {(asked or models[0])[:64]!r}")

    def _record(self, reason: str, caller: Caller, action: str, model: str = "") -> None:
        if self._throttle.failed(caller.peer, time.monotonic()):
            self.audit.refused_again()
        else:
            self.audit.refused(
                reason, caller=caller.name, entry_id=caller.id, action=action, model=model, peer=caller.peer
            )

    def _changed(self, text: str) -> None:
        self.event("tokens", text)


_ENDED = {
    "expired": "the token has expired",
    "revoked": "the token was revoked",
    "expired_certificate": "the certificate has expired",
}


def _allows(grant: Grant, action: str, models: tuple[str, ...]) -> bool:
    if action not in grant.actions:
        return False
    return grant.models is None or not models or any(name in grant.models for name in models)


def certificate_of(peer_certificate: object) -> tuple[str, float]:
    """(name, end) of a certificate as ssl's `getpeercert` returns it: the common name of its subject, or else the first
    name of a URI or a host that it is for. ("", 0) for none."""
    if not isinstance(peer_certificate, dict) or not peer_certificate:
        return "", 0.0
    import ssl

    common = [value for part in peer_certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [v for kind in ("URI", "DNS") for k, v in peer_certificate.get("subjectAltName", ()) if k == kind]
    name = next(iter([*common[:1], *others]), "")
    return str(name), float(ssl.cert_time_to_seconds(peer_certificate["notAfter"]))
