"""The configuration file of `splitwire edge serve`: TOML, every key documented, each overridden by the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from splitwire.codec.errors import UsageError

PREFIX = "SPLITWIRE_EDGE_"
"""The environment variable of key `url` in section `[server]` is SPLITWIRE_EDGE_SERVER_URL."""
MAX_CONFIG_BYTES = 1 << 20

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class DeviceSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this device is.

    id: the name that goes into idempotency keys and metrics. Empty: the host name.
    """

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""


class ModelSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The front half.

    front: path of front.onnx. back: path of back.onnx, with which this device answers while the server is away; empty:
    frames wait for the server. provider: execution provider of ONNX Runtime; auto takes the best that is installed.
    threads: of one inference; 0 lets ONNX Runtime choose. op: a fixed operating point; empty: the rate control chooses,
    or without `[rate] target_ms` the pair's default is used. min_op: the rate control takes no coarser point. task:
    what the outputs are; empty: as the pair says. min_score: detections with a smaller score are only counted.
    """

    front: str
    back: str = ""
    provider: str = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    op: str = ""
    min_op: str = ""
    task: Literal["", "classification", "detection", "segmentation"] = ""
    min_score: Annotated[float, Meta(ge=0, le=1)] = 0.5


class ServerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cloud.

    url: http(s)://, stream(s)://, oip+http(s):// or oip+grpc(s)://. token_file: a file with the
    bearer token, reread when it changes.
    ca, cert, key: PEM files: the authority that signed the server's certificate, and the client's certificate and key.
    deadline_s: seconds for one frame, all attempts together.
    """

    url: str
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    deadline_s: Positive = 30.0


class SourceSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where pictures come from.

    uri: a picture, a folder, a video file, rtsp:// or http:// of a camera, a V4L2 device. watch: new pictures of a
    folder are taken as they come. policy: what happens when pictures come faster than frames leave. in_flight: frames
    that wait for an answer at a time; 0: as many as the round trip needs. fps: frames per second at most; 0: as many
    as come.
    """

    uri: str
    watch: bool = False
    policy: Literal["block", "drop-oldest", "drop-newest"] = "drop-oldest"
    in_flight: Annotated[int, Meta(ge=0, le=1024)] = 0
    fps: Annotated[float, Meta(ge=0)] = 0.0


class SkipSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frames that need not be sent.

    changed: the largest share of answers that may change on skipped frames; 0: every frame is sent. refresh_s: a frame
    is sent at least so often. audit: one skipped frame of N is sent all the same. gate: module:function; only frames
    for which it returns True are sent.
    """

    changed: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    refresh_s: Positive = 10.0
    audit: Annotated[int, Meta(ge=2)] = 50
    gate: str = ""


class SpoolSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frames that wait for the link.

    path: the SQLite file; empty: no spool, a frame that cannot be sent is reported and lost. tier: durable survives a
    power cut, which may take the last 4 MB of buffered. max_mb, max_age_s: bounds. when_full: which frames go.
    share: of the link for waiting frames beside new ones. fallback_too: frames that `[model] back` answered wait as
    well.
    """

    path: str = ""
    tier: Literal["durable", "buffered"] = "durable"
    max_mb: Annotated[float, Meta(gt=0)] = 1024.0
    max_age_s: Positive = 7 * 86400.0
    when_full: Literal["drop-oldest", "drop-newest", "refuse"] = "drop-oldest"
    share: Share = 0.5
    fallback_too: bool = False


class RateSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which operating point a frame takes.

    target_ms: latency that frames keep, from handing one to the link to its answer; 0: no rate control.
    """

    target_ms: Annotated[float, Meta(ge=0)] = 0.0


class DriftSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether inputs are still like those of the calibration.

    watch: raise an event when they are not. capture: a folder for a recalibration sample; empty: none. capture_mb: its
    bound. capture_every_s: least time from one picture of it to the next; the strangest do not wait.
    """

    watch: bool = True
    capture: str = ""
    capture_mb: Annotated[float, Meta(gt=0)] = 256.0
    capture_every_s: Annotated[float, Meta(ge=0)] = 60.0


class OutletSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where results and events go, one JSON line each; the file has one `[[outlet]]` for each outlet.

    kind: stdout, file, socket (Unix), mqtt (needs splitwire[mqtt]) or hook (a Python function). target: the path, the
    mqtt://host:port/topic, or module:function; empty for stdout. what: which lines. max_mb, keep: of a file: its size
    before it is rotated, and how many rotated ones stay.
    """

    kind: Literal["stdout", "file", "socket", "mqtt", "hook"]
    target: str = ""
    what: Literal["all", "results", "events"] = "all"
    max_mb: Annotated[float, Meta(gt=0)] = 64.0
    keep: Annotated[int, Meta(ge=0, le=1000)] = 5


class LogSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log on standard error. format: text for people, json for a collector."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class MetricsSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prometheus metrics and health. listen: loopback address and port; empty: none."""

    listen: str = "127.0.0.1:9464"


class EdgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. Raises ValueError for what does not go together."""

    model: ModelSection
    server: ServerSection
    source: SourceSection
    device: DeviceSection = DeviceSection()
    skip: SkipSection = SkipSection()
    spool: SpoolSection = SpoolSection()
    rate: RateSection = RateSection()
    drift: DriftSection = DriftSection()
    outlet: tuple[OutletSection, ...] = (OutletSection(kind="stdout"),)
    log: LogSection = LogSection()
    metrics: MetricsSection = MetricsSection()

    def __post_init__(self) -> None:
        if bool(self.server.cert) != bool(self.server.key):
            raise ValueError("[server] cert and key go together: give both or none")
        if self.model.op and (self.model.min_op or self.rate.target_ms):
            raise ValueError("[model] op is a fixed point: leave out min_op and [rate] target_ms, or op")
        if self.model.min_op and not self.rate.target_ms:
            raise ValueError("[model] min_op is for the rate control: set [rate] target_ms as well")
        if self.spool.fallback_too and not (self.spool.path and self.model.back):
            raise ValueError("[spool] fallback_too goes with [spool] path and [model] back")
        for outlet in self.outlet:
            if bool(outlet.target) == (outlet.kind == "stdout"):
                need = "takes no target" if outlet.kind == "stdout" else "needs a target"
                raise ValueError(f"[[outlet]] of kind {outlet.kind!r} {need}")


RELOADED = ("server", "skip", "rate", "outlet", "log")
"""Sections that a running service takes over at SIGHUP; the others need a restart."""

SECTIONS: dict[str, type[Struct]] = {f.name: f.type for f in msgspec.structs.fields(EdgeConfig) if f.name != "outlet"}
"""Section → its keys, without the outlets, which the environment does not reach."""


def load_config(path: str | Path, environment: Mapping[str, str] | None = None) -> EdgeConfig:
    """Read a configuration file. environment: None for os.environ.

    Raises UsageError, in one line: no such file, no TOML, an unknown section or key, a wrong type or value.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as e:
        raise UsageError(f"{file}: {(e.strerror or str(e)).lower()}; give the path of a configuration file") from e
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{file} is larger than {MAX_CONFIG_BYTES} bytes; is it a configuration file?")
    try:
        content = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{file} is not TOML: {e}") from e
    return read_config(content, str(file), os.environ if environment is None else environment)


def read_config(content: dict[str, Any], source: str, environment: Mapping[str, str]) -> EdgeConfig:
    """The configuration from the tables of a file and the environment. source: named in errors. Raises UsageError."""
    _refuse_unknown(content, source)
    content = dict(content)
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX):
            continue
        section, key = _key_of(name)
        content[section] = {**content.get(section, {}), key: value}
        # A text from the environment may be a number or a switch; a text from the file may not.
        try:
            kind = next(f.type for f in msgspec.structs.fields(SECTIONS[section]) if f.name == key)
            content[section][key] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as e:
            raise UsageError(f"{name}={value!r}: {_lower(str(e))}") from e
    try:
        return msgspec.convert(content, EdgeConfig)
    except msgspec.ValidationError as e:
        raise UsageError(f"{source}: {_readable(str(e))}") from e


def _refuse_unknown(content: dict[str, Any], source: str) -> None:
    """Raise UsageError for a section or key that does not exist, with those that do."""
    known: dict[str, type[Struct]] = {**SECTIONS, "outlet": OutletSection}
    for section, table in content.items():
        if section not in known:
            raise UsageError(f"{source}: unknown section [{section}]; there are {', '.join(known)}")
        keys = [f.name for f in msgspec.structs.fields(known[section])]
        for one in table if section == "outlet" and isinstance(table, list) else [table]:
            unknown = sorted(set(one) - set(keys)) if isinstance(one, dict) else []
            if unknown:
                raise UsageError(f"{source}: [{section}] has no key {unknown[0]!r}; it has {', '.join(keys)}")


def _key_of(name: str) -> tuple[str, str]:
    """Section and key of an environment variable. Raises UsageError if there is none."""
    section, _, key = name.removeprefix(PREFIX).lower().partition("_")
    if section not in SECTIONS:
        raise UsageError(f"{name} is of no section; there are {', '.join(SECTIONS)}")
    keys = [f.name for f in msgspec.structs.fields(SECTIONS[section])]
    if key not in keys:
        raise UsageError(f"{name}: [{section}] has no key {key!r}; it has {', '.join(keys)}")
    return section, key


def _readable(message: str) -> str:
    """Msgspec's message with the key as the file has it: `$.server.url` becomes `[server] url`."""
    text, _, place = message.partition(" - at `$.")
    if not place:
        return _lower(text)
    section, _, key = place.rstrip("`").partition(".")
    return f"[{section}] {key}: {_lower(text)}".replace("]  ", "] ").replace("] :", "]:")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
