"""The routes of the models: what is served, and loading and unloading while the server runs (docs/repository.md).

    GET  /v1/models                     the models that are served, and the state of every version in the repository
    GET  /v1/models/{fingerprint}       one of them
    POST /v1/models/{name}/load         load what the folder has of a model, unless it is loaded
    POST /v1/models/{name}/reload       load it again
    POST /v1/models/{name}/unload       take it out of service
    POST /v1/models/{name}/share        set which share of the devices a version answers

The POST routes take `?version=2` for one version only, and have no body. Each answers with the state of the model.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.access import Access
from splitwire.runtime_cloud.repository import describe
from splitwire.runtime_cloud.security import caller_of

Endpoint = Callable[[Request], Awaitable[Response]]


def to_json(value: Any) -> Response:
    """JSON, with the date: a device compares its clock. (Replies to frames have none: it costs 37 bytes.)"""
    return Response(
        msgspec.json.encode(value), media_type="application/json", headers={"Date": formatdate(usegmt=True)}
    )


class ModelRoutes:
    """The endpoints. Each shows and changes what its caller may see and change."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.models = access.models

    def routes(self) -> list[Route]:
        """For the application."""
        changes = {"load": self.models.load, "reload": self.models.reload, "unload": self.models.unload}
        return [
            Route("/v1/models", self.every, methods=["GET"]),
            Route("/v1/models/{fingerprint}", self.one, methods=["GET"]),
            *(Route(f"/v1/models/{{name}}/{w}", self._changing(w, c), methods=["POST"]) for w, c in changes.items()),
            Route("/v1/models/{name}/share", self.share, methods=["POST"]),
        ]

    async def every(self, request: Request) -> Response:
        caller = caller_of(request.scope)
        models = [describe(s) for s in self.access.visible(caller)]
        return to_json({"models": models, "repository": self.access.index(caller)})

    async def one(self, request: Request) -> Response:
        text = request.path_params["fingerprint"]
        try:
            session = self.access.find(caller_of(request.scope), bytes.fromhex(text))
        except ValueError:
            session = None
        if session is None:
            raise HTTPException(404, f"no model has the fingerprint {text[:64]!r}; GET /v1/models lists them")
        return to_json(describe(session))

    async def share(self, request: Request) -> Response:
        name, version = _named(request, more=("share",))
        if not version:
            raise UsageError("?version= says which version is meant")
        share = _share(request.query_params.get("share"))
        change = partial(self.models.set_share, name, version, share)
        await self.access.manage(caller_of(request.scope), "share", name, change)
        return self._state(name)

    def _changing(self, what: str, change: Callable[[str, str], Awaitable[None]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            name, version = _named(request)
            await self.access.manage(caller_of(request.scope), what, name, partial(change, name, version))
            return self._state(name)

        return endpoint

    def _state(self, name: str) -> Response:
        return to_json({"repository": [state for state in self.models.index() if state.name == name]})


def _named(request: Request, more: tuple[str, ...] = ()) -> tuple[str, str]:
    """The name and the version that a request means. Raises UsageError for what nobody reads."""
    for key in request.query_params:
        if key not in ("version", *more):
            raise UsageError(
                f"the parameter {printable(key[:32])!r} is unknown; known are {', '.join(('version', *more))}"
            )
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        request.state.close = True
        raise UsageError("the request has a body, which nobody reads; a model is loaded from the server's folder only")
    return request.path_params["name"], request.query_params.get("version", "")


def _share(text: str | None) -> float | None:
    """A share, or None for "none". Raises UsageError."""
    if text == "none":
        return None
    try:
        share = float(text or "")
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UsageError(f"?share= is from 0 to 1, or none; got {printable((text or '')[:32])!r}")
    return share
