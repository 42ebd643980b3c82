"""Who may pass: every request is authenticated before anything else, and every route has an action that it needs.

Door is the outermost layer of the application. It lets nobody in without valid credentials, whatever the path is; only
the routes for health are open. `guarded` puts the action of each route around its endpoint, where the router has chosen
it already: so there is no second reading of the path that could differ from the router's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from splitwire.codec.errors import AuthRefused
from splitwire.runtime_cloud.observe import Observer
from splitwire.runtime_cloud.oip import PREFIX as OIP_PREFIX
from splitwire.runtime_cloud.oip import oip_error
from splitwire.runtime_cloud.security import CALLER, Caller, Policy, caller_of
from splitwire.runtime_cloud.security.actions import OPEN, Rule, is_open, is_page, rule_of

from .statuses import refusal

CERTIFICATE = "splitwire_certificate"
"""Where `scope["state"]` holds (name, end) of the client's certificate (http/protocol.py)."""
CHALLENGE = 'Bearer realm="splitwire"'
CHALLENGE_PAGE = 'Basic realm="splitwire: any name, and a token as the password", charset="UTF-8"'

Endpoint = Callable[[Request], Awaitable[Response]]


class Door:
    """ASGI: lets pass who has shown valid credentials, and answers 401 to everyone else.

    too_long: bytes of a body from which on the connection of a refused request is closed, so that nobody must read it.
    """

    def __init__(self, app: ASGIApp, policy: Policy, observer: Observer, too_long: int) -> None:
        self.app, self.policy, self.observer, self.too_long = app, policy, observer, too_long

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and not self.policy.open and not is_open(scope["path"]):
            try:
                scope[CALLER] = self._caller(scope)
            except AuthRefused as e:
                self.observer.refused(e.code, str(e))
                await self._refusal(scope, e)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        authorization = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                # Of two headers, a proxy in front may have checked the other one.
                authorization = value if not authorization else b"twice"
        text = authorization.decode("latin-1")
        if text[:6].lower() == "basic " and scope["method"] in ("GET", "HEAD") and is_page(scope["path"]):
            text = _token_of_basic(text[6:])
        name, until = scope.get("state", {}).get(CERTIFICATE, ("", 0.0))
        client = scope.get("client")
        return self.policy.authenticate(
            text,
            client[0] if client else "",
            certificate=name,
            until=until,
            target=f"{scope['method']} {scope['path'][:64]}",
        )

    def _refusal(self, scope: Scope, e: AuthRefused) -> Response:
        headers = {"WWW-Authenticate": CHALLENGE_PAGE if is_page(scope["path"]) else CHALLENGE}
        lengths = [v for k, v in scope["headers"] if k in (b"content-length", b"transfer-encoding")]
        if any(not v.isdigit() or int(v) > self.too_long for v in lengths):
            headers["Connection"] = "close"
        if scope["path"].startswith(OIP_PREFIX):
            return oip_error(401, str(e), headers)
        return refusal(e, headers)


def guarded(routes: Sequence[BaseRoute], policy: Policy) -> list[BaseRoute]:
    """The routes, each behind the action that the table of actions.py has for it.

    Raises LookupError for a route that is not in the table, also where no authentication is configured.
    """
    return [_guard(route, policy) for route in routes]


def _guard(route: BaseRoute, policy: Policy) -> BaseRoute:
    if not isinstance(route, Route):
        raise LookupError(f"{route!r} is no plain route, and nothing says who may use it (security/actions.py)")
    rules = {method: _rule(method, route.path) for method in sorted(route.methods or ())}
    if policy.open:
        return route
    inner: Endpoint = route.endpoint

    async def endpoint(request: Request) -> Response:
        rule = rules[request.method]
        if rule.action != OPEN:
            policy.admit(caller_of(request.scope), rule.action)
        return await inner(request)

    return Route(route.path, endpoint, methods=sorted(rules), name=route.name)


def _rule(method: str, path: str) -> Rule:
    rule = rule_of(method, path)
    if rule is None:
        raise LookupError(f"nothing says who may {method} {path}; add it to ROUTES of security/actions.py")
    return rule


def _token_of_basic(encoded: str) -> str:
    """`Bearer PASSWORD` for the credentials of HTTP Basic; something that is no token for anything else."""
    try:
        _, _, password = base64.b64decode(encoded.strip(), validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return "Basic"
    return f"Bearer {password}"
