"""Tokens, and the file that holds what the server knows of them.

A token is `splitwire_ID_SECRET`: an id of 12 hex digits, and 32 random bytes in base64url. The file has the SHA-256 of
the whole token. A slow hash, as for passwords, would add nothing: it makes guesses expensive, and 2^256 equally likely
secrets cannot be guessed at any speed. It would cost milliseconds per request.

Several programs may change the file at a time: each takes a lock beside it, and replaces the file as a whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically

from .actions import ACTIONS, INFER, READ

PREFIX = "splitwire_"
ID_DIGITS = 12
SECRET_CHARS = 43
"""32 bytes in base64url, without padding."""
TOKEN_CHARS = len(PREFIX) + ID_DIGITS + 1 + SECRET_CHARS
EVERY_MODEL = "*"
MAX_FILE = 8 << 20
"""Bytes; some 30,000 tokens."""
MAX_NAME = 64
KEEP_ENDED_S = 30 * 86400.0
"""An entry is dropped at the next change of the file when it has ended this long ago."""


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the server knows of one token, or of one client certificate. Times are as time.time() counts.

    sha256: of the token, in hex; "" for a certificate. certificate: the name in a client's certificate; "" for a token.
    actions: of ACTIONS. models: names, or "*" for all. expires, revoked: when it ends or has ended; None for never.
    """

    id: str
    name: str
    sha256: str = ""
    certificate: str = ""
    actions: tuple[str, ...] = (INFER, READ)
    models: tuple[str, ...] = (EVERY_MODEL,)
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """Whether it is "valid", "expired" or "revoked"."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"

    def ended(self) -> float | None:
        """When it ends or has ended; None for never."""
        ends = [t for t in (self.expires, self.revoked) if t is not None]
        return min(ends, default=None)


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    tokens: tuple[Entry, ...]


def digest(token: bytes) -> bytes:
    """The SHA-256 of a token."""
    return hashlib.sha256(token).digest()


def id_of(token: str) -> str:
    """The id in a token; "" if it has not the form of one."""
    if len(token) != TOKEN_CHARS or not token.startswith(PREFIX):
        return ""
    return token[len(PREFIX) : len(PREFIX) + ID_DIGITS]


# ------------------------------------------------------------------ the file


def read_tokens(path: Path) -> tuple[Entry, ...]:
    """The entries of a file. Raises UsageError for a file that cannot be read, that others can read, or that is wrong.

    A file of root may be readable for its group: so a secret of Kubernetes arrives.
    """
    shown = _shown(path)
    try:
        with path.open("rb") as f:
            _check_mode(os.fstat(f.fileno()), shown)
            data = f.read(MAX_FILE + 1)
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise UsageError(f"{shown}: the tokens cannot be read: {reason[:1].lower() + reason[1:]}") from e
    if len(data) > MAX_FILE:
        raise UsageError(f"{shown} is longer than {MAX_FILE >> 20} MiB, so it is no file of tokens")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(f"{shown} is no file of tokens: {e}; make one with `splitwire cloud token create`") from e
    if file.version != 1:
        raise UsageError(f"{shown} has version {file.version}; this version of splitwire reads 1")
    seen: set[str] = set()
    for entry in file.tokens:
        wrong = _wrong(entry)
        if wrong or entry.id in seen:
            raise UsageError(f"{shown}: entry {entry.id[:MAX_NAME]!r}: {wrong or 'its id is there twice'}")
        seen.add(entry.id)
    return file.tokens


def write_tokens(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the file, readable for its owner only. Raises UsageError."""
    data = msgspec.json.format(msgspec.json.encode(_File(version=1, tokens=tuple(entries))), indent=1) + b"\n"
    try:
        write_atomically(path.resolve(), data, mode=0o600)
    except OSError as e:
        raise UsageError(f"{_shown(path)}: the tokens cannot be written: {e.strerror or e}") from e


@contextmanager
def changing(path: Path) -> Iterator[list[Entry]]:
    """The entries of a file, to change; written when the block ends without an error. No file yet: no entries.

    Raises UsageError.
    """
    target = path.resolve()
    with _locked(target):
        entries = list(read_tokens(target)) if target.exists() else []
        yield entries
        long_ago = time.time() - KEEP_ENDED_S
        write_tokens(target, [e for e in entries if (ended := e.ended()) is None or ended > long_ago])


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: two changes at a time may lose one
        yield
        return
    try:
        fd = os.open(target.with_name(f".{target.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise UsageError(f"{_shown(target)}: the tokens cannot be changed: {e.strerror or e}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _check_mode(found: os.stat_result, shown: str) -> None:
    if os.name != "posix":
        return
    allowed = 0o640 if found.st_uid == 0 != os.geteuid() else 0o600
    if stat.S_IMODE(found.st_mode) & 0o777 & ~allowed & ~0o100:
        mode = stat.S_IMODE(found.st_mode)
        raise UsageError(f"{shown} has the mode {mode:03o}, so that others may read it; run: chmod 600 {shown}")
    if found.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{shown} belongs to another user, who could change it")


def _wrong(entry: Entry) -> str:
    """What is wrong with an entry; "" for nothing."""
    if not re.fullmatch(r"[0-9a-f]{12}", entry.id):
        return f"an id has {ID_DIGITS} hex digits"
    if bool(entry.sha256) == bool(entry.certificate):
        return "it needs either sha256 or certificate"
    if entry.sha256 and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        return "sha256 has 64 hex digits"
    return wrong_scope(entry.name, entry.actions, entry.models)


def wrong_scope(name: str, actions: Sequence[str], models: Sequence[str]) -> str:
    """What is wrong with a name, actions and models; "" for nothing."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        return f"a name has 1 to {MAX_NAME} printable characters"
    for action in actions:
        if action not in ACTIONS:
            return f"there is no action {action[:MAX_NAME]!r}; there are {', '.join(ACTIONS)}"
    if not actions:
        return f"it has no action; there are {', '.join(ACTIONS)}"
    return "" if models else "it has no model; '*' is all"


def _shown(path: Path) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(path))


# ------------------------------------------------------------------ changes


def create(
    entries: list[Entry],
    name: str,
    *,
    actions: Sequence[str] = (INFER, READ),
    models: Sequence[str] = (EVERY_MODEL,),
    expires: float | None = None,
    certificate: str = "",
) -> tuple[Entry, str]:
    """Add an entry. Returns it, and its token, which nothing stores; "" for a certificate. Raises UsageError."""
    if wrong := wrong_scope(name, actions, models):
        raise UsageError(f"a token cannot be made: {wrong}")
    taken = {e.id for e in entries}
    while (new_id := secrets.token_hex(ID_DIGITS // 2)) in taken:
        pass
    token = "" if certificate else f"{PREFIX}{new_id}_{secrets.token_urlsafe(32)}"
    entry = Entry(
        id=new_id,
        name=name,
        sha256=digest(token.encode("ascii")).hex() if token else "",
        certificate=certificate,
        actions=tuple(dict.fromkeys(actions)),
        models=tuple(dict.fromkeys(models)),
        created=time.time(),
        expires=expires,
    )
    entries.append(entry)
    return entry, token


def revoke(entries: list[Entry], which: str) -> Entry:
    """End an entry now. which: its id, or its name if only one valid entry has it. Raises UsageError."""
    i = _find(entries, which)
    entries[i] = msgspec.structs.replace(entries[i], revoked=time.time())
    return entries[i]


def rotate(entries: list[Entry], which: str, *, overlap_s: float, expires: float | None = None) -> tuple[Entry, str]:
    """Add a token with the name and the scope of another one, which ends after `overlap_s` seconds.

    which: as for `revoke`. expires: of the new one. Returns it and its token. Raises UsageError.
    """
    i = _find(entries, which)
    old = entries[i]
    if old.certificate:
        raise UsageError(f"{old.name!r} is a certificate: renew it where it was issued")
    ends = time.time() + overlap_s
    entries[i] = msgspec.structs.replace(old, expires=ends if old.expires is None else min(ends, old.expires))
    return create(entries, old.name, actions=old.actions, models=old.models, expires=expires)


def _find(entries: Sequence[Entry], which: str) -> int:
    now = time.time()
    by_id = [i for i, e in enumerate(entries) if e.id == which]
    found = by_id or [i for i, e in enumerate(entries) if e.name == which and e.state(now) == "valid"]
    if not found:
        names = ", ".join(sorted({e.name for e in entries if e.state(now) == "valid"})[:8]) or "none"
        raise UsageError(f"no valid token has the id or the name {which[:MAX_NAME]!r}; there are {names}")
    if len(found) > 1:
        ids = ", ".join(entries[i].id for i in found[:8])
        raise UsageError(f"{len(found)} valid tokens have the name {which[:MAX_NAME]!r}; say which id: {ids}")
    return found[0]
