"""The actions that a caller may be allowed, and the action of every route and every procedure.

A route that is not in the table is an error when the application is made (http/door.py). So nothing is open by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPEN = "open"
"""Anyone may: no credentials are looked at."""
INFER, READ, METRICS, MONITOR, MANAGE = ACTIONS = ("infer", "read", "metrics", "monitor", "manage")
"""Run models; describe models and server; the metrics; the monitor page; load and unload models."""


@dataclass(frozen=True)
class Rule:
    """What a route or a procedure needs.

    action: one of ACTIONS, or OPEN. Whether the caller may do it with this model is for the service to say, which knows
    the model.
    """

    action: str


ROUTES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/healthz"): Rule(OPEN),
    ("GET", "/readyz"): Rule(OPEN),
    ("POST", "/v1/infer"): Rule(INFER),
    ("POST", "/v1/batch"): Rule(INFER),
    ("GET", "/v1/stream"): Rule(INFER),
    ("GET", "/v1/models"): Rule(READ),
    ("GET", "/v1/models/{fingerprint}"): Rule(READ),
    ("POST", "/v1/models/{name}/load"): Rule(MANAGE),
    ("POST", "/v1/models/{name}/reload"): Rule(MANAGE),
    ("POST", "/v1/models/{name}/unload"): Rule(MANAGE),
    ("POST", "/v1/models/{name}/share"): Rule(MANAGE),
    ("GET", "/metrics"): Rule(METRICS),
    ("GET", "/monitor"): Rule(MONITOR),
    ("GET", "/monitor/events"): Rule(MONITOR),
    ("GET", "/monitor/{name}"): Rule(MONITOR),
    ("GET", "/v2/health/live"): Rule(OPEN),
    ("GET", "/v2/health/ready"): Rule(OPEN),
    ("GET", "/v2"): Rule(READ),
    ("GET", "/v2/"): Rule(READ),
    ("POST", "/v2/repository/index"): Rule(READ),
    ("POST", "/v2/repository/models/{name:path}/load"): Rule(MANAGE),
    ("POST", "/v2/repository/models/{name:path}/unload"): Rule(MANAGE),
    ("GET", "/v2/models/stats"): Rule(READ),
    **{
        (method, f"/v2/models/{{name:path}}{version}{tail}"): Rule(action)
        for version in ("", "/versions/{version}")
        for method, tail, action in (
            ("POST", "/infer", INFER),
            ("GET", "/ready", READ),
            ("GET", "/config", READ),
            ("GET", "/stats", READ),
            ("GET", "", READ),
        )
    },
    ("*", "/v2/trace/setting"): Rule(READ),
    ("*", "/v2/models/{name:path}/trace/setting"): Rule(READ),
    ("*", "/v2/logging"): Rule(READ),
    ("*", "/v2/systemsharedmemory/{rest:path}"): Rule(READ),
    ("*", "/v2/cudasharedmemory/{rest:path}"): Rule(READ),
    ("*", "/v2/models/{name:path}/generate"): Rule(READ),
    ("*", "/v2/models/{name:path}/generate_stream"): Rule(READ),
    ("*", "/v2/{rest:path}"): Rule(READ),
}
"""(method, path as the router has it) → what it needs. HEAD is as GET. (*, path) is every method of a path."""

RPCS: Mapping[str, Rule] = {
    "ServerLive": Rule(OPEN),
    "ServerReady": Rule(OPEN),
    "ModelReady": Rule(READ),
    "ServerMetadata": Rule(READ),
    "ModelMetadata": Rule(READ),
    "ModelConfig": Rule(READ),
    "ModelStatistics": Rule(READ),
    "RepositoryIndex": Rule(READ),
    "ModelInfer": Rule(INFER),
    "ModelStreamInfer": Rule(INFER),
    "RepositoryModelLoad": Rule(MANAGE),
    "RepositoryModelUnload": Rule(MANAGE),
}
"""Procedure of the gRPC service → what it needs. One that is not here fails."""

PAGES = ("/metrics", "/monitor")
"""Paths whose GET also takes a token as the password of HTTP Basic, because browsers have no other way."""


def rule_of(method: str, path: str) -> Rule | None:
    """The rule of a route; None if the table does not have it."""
    return ROUTES.get(("GET" if method == "HEAD" else method, path)) or ROUTES.get(("*", path))


def is_open(path: str) -> bool:
    """Whether a path is one of the few that anyone may GET. path: as the router compares it."""
    return path in _OPEN_PATHS


def is_page(path: str) -> bool:
    """Whether a path is one that people open in a browser."""
    return path in PAGES or path.startswith("/monitor/")


_OPEN_PATHS = frozenset(path for (_, path), rule in ROUTES.items() if rule.action == OPEN)
