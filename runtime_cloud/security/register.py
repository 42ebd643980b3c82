"""The tokens of a running server. It reads their file again when the file changes, so that nothing needs a restart."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import UsageError

from .tokens import PREFIX, TOKEN_CHARS, Entry, digest, id_of, read_tokens

log = logging.getLogger("splitwire.cloud")

LOOK_EVERY_S = 1.0
"""The file is looked at not more often than this."""

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Grant:
    """An entry of the file, ready to be asked. models: None for all. until: as time.time() counts."""

    entry: Entry
    sha256: bytes
    actions: frozenset[str]
    models: frozenset[str] | None
    until: float

    @classmethod
    def of(cls, entry: Entry) -> Grant:
        """The grant of an entry."""
        ended = entry.ended()
        return cls(
            entry=entry,
            sha256=bytes.fromhex(entry.sha256),
            actions=frozenset(entry.actions),
            models=None if "*" in entry.models else frozenset(entry.models),
            until=float("inf") if ended is None else ended,
        )


_STRANGER = Grant.of(Entry(id="0" * 12, name="nobody", sha256=digest(os.urandom(32)).hex(), actions=(), models=()))
"""What a token with an unknown id is compared with, so that this takes as long as for a known one."""


class Register:
    """The tokens of a file, and the client certificates in it.

    every: how often the file is looked at, seconds. changed: called with one sentence when the file was read again, or
    cannot be. While it cannot be read, the tokens that were read last stay. Raises UsageError if there are none yet.
    """

    def __init__(
        self, path: Path, *, every: float = LOOK_EVERY_S, changed: Callable[[str], None] = lambda text: None
    ) -> None:
        self.path = path
        self.changed = changed
        self._every = every
        self._by_id: dict[str, Grant] = {}
        self._by_certificate: dict[str, Grant] = {}
        self._stamp = self._stamp_now()
        self._looked = time.monotonic()
        self._fill(read_tokens(path))

    def __len__(self) -> int:
        return len(self._by_id)

    def look(self, *, now: bool = False) -> None:
        """Read the file again if it has changed. now: even if it was looked at a moment ago, or has not changed."""
        moment = time.monotonic()
        if moment - self._looked < self._every and not now:
            return
        self._looked = moment
        stamp = self._stamp_now()
        if stamp == self._stamp and not now:
            return
        self._stamp = stamp  # also if it cannot be read, so that this is said once
        before = set(self._by_id)
        try:
            self._fill(read_tokens(self.path))
        except UsageError as e:
            log.error("%s; the tokens that were read last stay valid", e)
            self.changed("the file of tokens cannot be read; those that were read last stay valid")
            return
        added, dropped = len(self._by_id.keys() - before), len(before - self._by_id.keys())
        text = f"{len(self._by_id)} tokens were read, {added} new, {dropped} dropped"
        log.info("%s", text)
        self.changed(text)

    def verify(self, token: str) -> Grant | None:
        """The grant of a token, valid or ended; None for a token that is not known.

        It takes the same time for an unknown id and for a wrong secret.
        """
        grant = self._by_id.get(id_of(token), _STRANGER)
        same = hmac.compare_digest(grant.sha256, digest(token.encode("latin-1", "replace")))
        return grant if same and grant is not _STRANGER else None

    def find(self, entry_id: str) -> Grant | None:
        """The grant of an entry, valid or ended."""
        return self._by_id.get(entry_id)

    def of_certificate(self, name: str) -> Grant | None:
        """The grant of a client certificate, valid or ended."""
        return self._by_certificate.get(name)

    def _fill(self, entries: tuple[Entry, ...]) -> None:
        grants = [Grant.of(e) for e in entries]
        self._by_id = {g.entry.id: g for g in grants}
        now = time.time()
        certificates = sorted((g for g in grants if g.entry.certificate), key=lambda g: g.until > now)
        self._by_certificate = {g.entry.certificate: g for g in certificates}  # a valid one hides an ended one

    def _stamp_now(self) -> Stamp | None:
        try:
            found = self.path.stat()
        except (OSError, ValueError):
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def bearer(authorization: str) -> str:
    """The token in a header `Authorization: Bearer TOKEN`; "" if it is none."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and len(token) == TOKEN_CHARS and token.startswith(PREFIX) else ""
