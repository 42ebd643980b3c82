"""A server's address: the URL that a transport is made with, taken apart."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from splitwire.codec.errors import UsageError


class Address:
    """A server's address, taken apart. Raises UsageError if it is no base URL of the scheme.

    plain, secure: the schemes without and with TLS. tls: whether it is with TLS. name, port: for the socket. host: for
    the Host header. path: in front of the route. server: the name in messages. base: the URL.
    """

    def __init__(self, url: str, *, plain: str = "http", secure: str = "https") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            sound = parts.scheme in (plain, secure) and bool(parts.hostname) and port != 0
            sound = sound and all(c.isprintable() and c != " " for c in url)
            self.name = (
                (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
            )
        except ValueError as e:  # a UnicodeError is one
            raise UsageError(f"{url!r} is not a URL: {e}; expected {plain}://host:port") from e
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                f"the address of {parts.hostname!r} must not hold a user, a query or a fragment; use token="
            )
        if not sound:
            raise UsageError(f"{url!r} is not a server's address; expected {plain}://host:port")
        self.tls = parts.scheme == secure
        self.port = port or (443 if self.tls else 80)
        self.server = f"{parts.hostname}:{self.port}"
        bracketed = f"[{self.name}]" if ":" in self.name else self.name
        self.host = bracketed if port is None else f"{bracketed}:{port}"
        self.path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
        self.base = f"{parts.scheme}://{self.host}{self.path}"
