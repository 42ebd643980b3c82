"""Repository: the models of a folder, which are loaded, loaded again and unloaded while the server answers.

Everything that changes happens in the event loop, one change after the other; models are read, opened and warmed up in
a thread beside it. A frame takes a lease of the session that it found (`with session:`), so a session that is replaced
or unloaded answers the frames that it has, also those in the queue, and is closed after the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from splitwire.codec.errors import UnknownModel, UsageError
from splitwire.codec.profile import BACK
from splitwire.codec.wire.frame import SHORT_FINGERPRINT
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.session import CloudSession

from .canary import Route, make_route
from .layout import Candidate, Scan, scan
from .loading import CannotLoad, Options, load_model, open_model, trim_memory, warm
from .served import FINGERPRINT, ModelState, ServedModels, Tell
from .slots import Key, Slot
from .watch import Watch

log = logging.getLogger("splitwire.cloud")

SETTLE_S = 1.0
SHOWN = 4
"""Models that are named when none can be served."""


@dataclass(frozen=True, kw_only=True)
class RepositoryLimits:
    """What a repository holds at most.

    models: versions that are loaded. file_bytes: of their files together; None for no limit. While a version is loaded
    again, both its sessions are in memory. Raises UsageError for less than 1.
    """

    models: int = 64
    file_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.models < 1 or (self.file_bytes is not None and self.file_bytes < 1):
            raise UsageError("need models ≥ 1 and file_bytes ≥ 1")


class Repository(ServedModels):
    """The models of a folder: NAME/VERSION/back.onnx, NAME/back.onnx or back.onnx in it; or one file.

    root: the folder, or the file. threads, providers: as for CloudSession; a model's splitwire.toml may say otherwise.
    limits: None for the defaults. watch: seconds between two looks at the folder; None: nobody looks, and models change
    by `load`, `reload` and `unload` only. settle: seconds for which files must not have changed before the watch loads
    them.

    The models are opened at once, and are ready after `start`. One that cannot be loaded is quarantined while the
    others serve. Raises UsageError (no such folder, no model in it, none that can be opened); for a folder with a
    single model what CloudSession raises.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        limits: RepositoryLimits | None = None,
        watch: float | None = None,
        settle: float = SETTLE_S,
    ) -> None:
        if (watch is not None and not 0 < watch < float("inf")) or not 0 <= settle < float("inf"):
            raise UsageError("need watch > 0 and settle ≥ 0 seconds")
        self.root = Path(root)
        self.limits = limits or RepositoryLimits()
        self._options = Options(threads=threads, providers=providers)
        self._interval = watch
        self._settle = settle
        self._slots: dict[Key, Slot] = {}
        self._routes: dict[bytes, Route[Slot]] = {}
        self._ready = 0
        self._starting = True
        self._unloaded: set[Key] = set()
        self._changing = anyio.Lock()
        self._untold: list[tuple[str, str]] = []
        self._tell: Tell = lambda kind, text: self._untold.append((kind, text))
        seen = scan(self.root)
        if not seen.candidates:
            raise UsageError(f"{root} holds no {BACK}, nor does a folder in it; make one with `splitwire export`")
        self._settings_shares = dict(seen.shares)
        self._shares = {name: shares or {} for name, shares in seen.shares.items()}
        self._opened = self._open(seen)

    # ------------------------------------------------------------------ what the server asks

    def __len__(self) -> int:
        return self._ready

    def __iter__(self) -> Iterator[CloudSession]:
        return iter([slot.session for slot in self._slots.values() if slot.session is not None])

    def find(self, fingerprint: bytes, device: str = "") -> CloudSession | None:
        """The session for a pair, or None. fingerprint: 8 bytes, or the first 4. device: who asks."""
        route = self._routes.get(fingerprint[:SHORT_FINGERPRINT])
        if route is None or not route.fingerprint.startswith(fingerprint):
            return None
        return route.pick(device).session

    def named(self, name: str, version: str = "", device: str = "") -> CloudSession:
        """The session of a model: by its name, by that in its profile if one model only has it, or by its fingerprint.

        version: "" for the newest that is ready, or as the shares say for this device. Raises UnknownModel.
        """
        if all(slot.name != name for slot in self._slots.values()):
            session = self._otherwise_named(name, device)
            if session is not None and version in ("", session.version):
                return session
        slots = self._chosen(name, version)
        ready = next((slot for slot in slots if slot.session is not None), None)
        if ready is None:
            reason = slots[0].reason or slots[0].state.lower()
            raise UnknownModel(f"model {name} {slots[0].version} is not ready: {reason}")
        if not version:
            ready = self._routes[ready.short].pick(device)
        if ready.session is None:
            raise UnknownModel(f"model {name} {ready.version} is not ready")
        return ready.session

    def index(self) -> list[ModelState]:
        """Every version of every model, by name, the newest first."""
        return [slot.describe(self._routes.get(slot.short)) for slot in self._slots.values()]

    def listen(self, tell: Tell) -> None:
        """Tell of models that were loaded, unloaded and quarantined, and of those that will be."""
        self._tell = tell
        while self._untold:
            tell(*self._untold.pop(0))

    # ------------------------------------------------------------------ changes, from outside

    async def start(self) -> None:
        """Warm up what was opened. Raises UsageError if nothing can serve; for a single model what it raises."""
        async with self._changing:
            opened, self._opened = self._opened, {}
            failed: list[Exception] = []
            for key, (candidate, session) in opened.items():
                slot = self._slots[key]
                try:
                    await anyio.to_thread.run_sync(warm, candidate, session, abandon_on_cancel=True)
                    self._activate(slot, candidate, session)
                except CannotLoad as e:
                    session.close()
                    failed.append(e)
                    self._quarantine(slot, candidate, str(e))
                finally:
                    slot.loading = False
            self._starting = False
            if not len(self):
                raise self._none_serves(failed)

    async def load(self, name: str, version: str = "") -> None:
        """Load what the folder has of a model: what is new, has changed, or is in quarantine.

        version: "" for all. Raises UnknownModel, and UsageError with the reasons if something cannot be loaded.
        """
        await self._change(name, version, again=False)

    async def reload(self, name: str, version: str = "") -> None:
        """As `load`, also what has not changed."""
        await self._change(name, version, again=True)

    async def unload(self, name: str, version: str = "") -> None:
        """Take a model out of service until `load`; the frames that it has are answered. Raises UnknownModel."""
        async with self._changing:
            slots = self._chosen(name, version)
            self._unloaded.add((name, version))
            for slot in slots:
                self._retire(slot, "unloaded")

    async def set_share(self, name: str, version: str, share: float | None) -> None:
        """Set the share of the devices of its pair, 0 to 1, that a version answers; None: no share of its own.

        It holds until the model's settings change. Raises UnknownModel, UsageError.
        """
        async with self._changing:
            self._chosen(name, version)
            shares = {number: s for number, s in self._shares.get(name, {}).items() if number != version}
            if share is not None:
                if not (0 <= share <= 1 and sum(shares.values()) + share <= 1 + 1e-9):
                    raise UsageError("a share is from 0 to 1, and the shares of a model are at most 1 together")
                shares[version] = share
            self._shares[name] = shares
            self._reroute()
            said = "no share of its own" if share is None else f"{share:g} of the devices"
            self._say("model_share", f"{name} {version} answers {said}")

    async def watch(self) -> None:
        """Follow what changes in the folder, until cancelled; returns at once if nobody looks."""
        if self._interval is None:
            return
        watch = Watch(self._settle)
        while True:
            await anyio.sleep(self._interval)
            try:
                seen = await anyio.to_thread.run_sync(scan, self.root, abandon_on_cancel=True)
            except UsageError as e:  # a disk that is away for a moment
                watch.complain(str(e))
                continue
            changed = watch.settled({key: slot.tried for key, slot in self._slots.items()}, seen.candidates)
            if changed or seen.shares != self._settings_shares:
                async with self._changing:
                    await self._follow(seen, changed, again=False)

    # ------------------------------------------------------------------ changes

    async def _change(self, name: str, version: str, *, again: bool) -> None:
        """Load, or load again, what the folder has of a model. Raises UsageError for what cannot be loaded."""
        async with self._changing:
            seen = await anyio.to_thread.run_sync(scan, self.root)
            keys = [k for k in dict.fromkeys((*seen.candidates, *self._slots)) if _is(k, name, version)]
            if not keys:
                self._chosen(name, version)  # raises, and says what there is
            if version and (name, "") in self._unloaded:  # the other versions stay unloaded
                self._unloaded |= {k for k in (*seen.candidates, *self._slots) if k[0] == name}
            self._unloaded -= {(name, ""), *keys}
            await self._follow(seen, keys, again=again)
            bad = [slot for k in keys if (slot := self._slots.get(k)) is not None and slot.quarantined]
            if bad:
                raise UsageError("; ".join(f"{s.label} cannot be loaded: {s.reason}" for s in bad[:SHOWN]))

    async def _follow(self, seen: Scan, keys: Iterable[Key], *, again: bool) -> None:
        """Bring versions to what lies in the folder."""
        for key in keys:
            candidate, slot = seen.candidates.get(key), self._slots.get(key)
            if candidate is None:
                if slot is not None:
                    self._retire(slot, "its folder is gone")
                    del self._slots[key]
                    self._unloaded.discard(key)
                continue
            if slot is None:
                slot = self._slots[key] = Slot(key)
                self._slots = dict(sorted(self._slots.items(), key=lambda item: _order(item[0])))
            if key in self._unloaded or (key[0], "") in self._unloaded:
                slot.tried, slot.reason = candidate.stamp, "unloaded"
            elif again or slot.session is None or slot.tried != candidate.stamp or slot.quarantined:
                await self._load(slot, candidate)
        for name, shares in seen.shares.items():
            if shares is not None and shares != self._settings_shares.get(name):
                self._shares[name] = shares
        for name in self._settings_shares.keys() - seen.shares.keys():
            self._shares.pop(name, None)
        self._settings_shares = dict(seen.shares)
        self._reroute()

    async def _load(self, slot: Slot, candidate: Candidate) -> None:
        """Load a version, and let it answer."""
        slot.loading = True
        try:
            self._check_room(slot, candidate)
            session = await anyio.to_thread.run_sync(load_model, candidate, self._options, abandon_on_cancel=True)
            try:
                self._activate(slot, candidate, session)
            except CannotLoad:
                session.close(self._trim)
                raise
        except CannotLoad as e:
            self._quarantine(slot, candidate, str(e))
        finally:
            slot.loading = False

    def _open(self, seen: Scan) -> dict[Key, tuple[Candidate, CloudSession]]:
        """Open every model. Raises UsageError, or the only error there is, if none can be opened."""
        opened: dict[Key, tuple[Candidate, CloudSession]] = {}
        failed: list[Exception] = []
        for key, candidate in seen.candidates.items():
            slot = self._slots[key] = Slot(key)
            try:
                self._check_room(slot, candidate)
                opened[key] = candidate, open_model(candidate, self._options)
            except CannotLoad as e:
                failed.append(e)
                self._quarantine(slot, candidate, str(e))
            else:
                slot.loading, slot.size = True, candidate.size
        if not opened:
            raise self._none_serves(failed)
        return opened

    def _check_room(self, slot: Slot, candidate: Candidate) -> None:
        """Raise CannotLoad if the limits leave no room."""
        others = [s for s in self._slots.values() if s is not slot and (s.session is not None or s.loading)]
        if len(others) >= self.limits.models:
            raise CannotLoad(f"{len(others)} versions are loaded, which is the limit")
        size = candidate.size + sum(s.size for s in others)
        if self.limits.file_bytes is not None and size > self.limits.file_bytes:
            raise CannotLoad(f"with it the files would have {size} bytes; the limit is {self.limits.file_bytes}")

    def _activate(self, slot: Slot, candidate: Candidate, session: CloudSession) -> None:
        """Answer with a session that is warm. Raises CannotLoad if its frames could be those of another model."""
        short = session.fingerprint[:SHORT_FINGERPRINT]
        for other in self._slots.values():
            if other is slot or other.session is None or other.short != short:
                continue
            if other.fingerprint != session.fingerprint:
                raise CannotLoad(
                    f"its pair {session.pair} and that of {other.label}, {other.session.pair}, both"
                    f" begin with {short.hex()}; export one of them again"
                )
            if other.name != slot.name:
                raise CannotLoad(f"it and {other.label} are the same pair {session.pair}")
        former = slot.put(candidate, session)
        self._reroute()
        level = logging.DEBUG if self._starting else logging.INFO  # at the start one line says it all
        self._say("model_loaded", f"{slot.label} is loaded, pair {session.pair}", level)
        self._close(slot, former)

    def _retire(self, slot: Slot, reason: str) -> None:
        """Answer no more frames with a version; those that it has are answered."""
        former = slot.take(reason)
        self._reroute()
        if former is not None:
            self._say("model_unloaded", f"{slot.label} is unloaded: {reason}")
        self._close(slot, former)

    def _quarantine(self, slot: Slot, candidate: Candidate, reason: str) -> None:
        slot.refuse(candidate, reason)
        if slot.session is None:
            slot.size = 0
        kept = "" if slot.session is None else "; what was loaded before serves on"
        self._say("model_quarantined", f"{slot.label} is not loaded: {reason}{kept}", logging.WARNING)

    def _close(self, slot: Slot, former: CloudSession | None) -> None:
        """Close a session when the last frame that leased it is answered."""
        if former is not None:
            slot.closing += 1
            former.close(partial(self._closed, slot))

    def _closed(self, slot: Slot) -> None:
        slot.closing -= 1
        self._trim()

    def _trim(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            trim_memory()
        else:
            loop.run_in_executor(None, trim_memory)

    def _reroute(self) -> None:
        """Make the routes anew: which version answers the frames of which pair."""
        groups: dict[bytes, list[Slot]] = {}
        for slot in self._slots.values():
            if slot.session is not None:
                groups.setdefault(slot.short, []).append(slot)
        self._ready = sum(map(len, groups.values()))
        self._routes = {
            short: make_route(
                slots[0].fingerprint, [(s.version, s) for s in slots], self._shares.get(slots[0].name, {})
            )
            for short, slots in groups.items()
        }

    def _chosen(self, name: str, version: str) -> list[Slot]:
        """The slots of a model, or of one version, the newest first. Raises UnknownModel."""
        slots = [slot for slot in self._slots.values() if slot.name == name]
        if not slots:
            known = ", ".join(list(dict.fromkeys(s.name for s in self._slots.values()))[:8])
            raise UnknownModel(f"no model {printable(name[:64])!r}; the repository has {known}")
        chosen = [slot for slot in slots if version in ("", slot.version)]
        if not chosen:
            numbers = ", ".join(slot.version for slot in slots[:8])
            raise UnknownModel(f"model {name} has no version {printable(version[:18])!r}, it has {numbers}")
        return chosen

    def _otherwise_named(self, name: str, device: str) -> CloudSession | None:
        """The session of a model by the fingerprint of its pair in hex, or by the name in its profile if one only has
        it."""
        if FINGERPRINT.fullmatch(name) and (session := self.find(bytes.fromhex(name), device)) is not None:
            return session
        slots = [s for s in self._slots.values() if s.session is not None and s.session.profile.model == name]
        if len({s.name for s in slots}) != 1:
            return None
        return self._routes[slots[0].short].pick(device).session

    def _none_serves(self, failed: Sequence[Exception]) -> Exception:
        """The error for a repository in which no model can serve."""
        error = failed[0].__cause__ if len(self._slots) == 1 and failed else None
        if isinstance(error, Exception):
            return error
        slots = list(self._slots.values())
        reasons = "; ".join(f"{s.label}: {s.reason}" for s in slots[:SHOWN])
        more = f"; and {len(slots) - SHOWN} more" if len(slots) > SHOWN else ""
        number = "the model" if len(slots) == 1 else f"none of the {len(slots)} models"
        verb = "cannot be served" if len(slots) == 1 else "can be served"
        return UsageError(f"{number} in {self.root} {verb}: {reasons}{more}")

    def _say(self, kind: str, text: str, level: int = logging.INFO) -> None:
        log.log(level, "%s", printable(text))
        self._tell(kind, printable(text))


def _is(key: Key, name: str, version: str) -> bool:
    return key[0] == name and version in ("", key[1])


def _order(key: Key) -> tuple[str, int]:
    """By name, the newest version first."""
    return key[0], -int(key[1] or -1)
