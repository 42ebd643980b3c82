"""Security: what the command line says about it, and which address a server may listen on with that."""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import UsageError

from .audit import Audit
from .policy import Policy
from .tls import ServerTls

log = logging.getLogger("splitwire.cloud")


@dataclass(frozen=True, kw_only=True)
class Security:
    """Who may use a server, and how it proves who it is (docs/security.md).

    tokens: the file that `splitwire cloud token` writes. audit: file for the record of who was refused and allowed
    what. tls_cert, tls_key: certificate with its chain and private key, in PEM; no key if it is in the same file.
    client_ca: authorities whose certificates clients must show. insecure: listen on a public address without any of
    these. Raises UsageError for what does not fit together.
    """

    tokens: str | Path | None = None
    audit: str | Path | None = None
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None
    client_ca: str | Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.tls_cert is None and (self.tls_key is not None or self.client_ca is not None):
            raise UsageError("a private key and --client-ca go with a certificate: give --tls-cert as well")

    @property
    def authenticates(self) -> bool:
        """Whether callers must say who they are."""
        return self.tokens is not None or self.client_ca is not None

    def policy(self) -> Policy:
        """The rules. Raises UsageError for files that cannot be used."""
        return Policy(
            _path(self.tokens),
            certificates=self.client_ca is not None,
            audit=Audit(_path(self.audit)),
        )

    def tls(self) -> ServerTls | None:
        """The certificates; None without. Raises UsageError."""
        cert = _path(self.tls_cert)
        return None if cert is None else ServerTls(cert, _path(self.tls_key), _path(self.client_ca))

    def check_address(self, sock: socket.socket) -> None:
        """Raise UsageError if a socket can be reached from outside and nothing says who may use the server."""
        self._check(sock.getsockname()[0])

    def check_host(self, host: str) -> None:
        """As `check_address`, for a name or an address. Raises UsageError also if it stands for no address."""
        try:
            self._check(socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)[0][4][0])
        except (OSError, UnicodeError) as e:
            raise UsageError(f"cannot listen on {host}: {e}") from e

    def _check(self, host: str | int) -> None:
        host = str(host)
        if is_loopback(host) or self.insecure:
            return
        if not self.authenticates:
            raise UsageError(
                f"{host} can be reached from the network, and anyone there could use the models: give --tokens or "
                "--client-ca, listen on 127.0.0.1, or say --insecure (docs/security.md)"
            )
        if self.tls_cert is None:
            log.warning("tokens cross the network in the clear: give --tls-cert, or put a proxy with TLS in front")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only. Anything that is no address counts as public."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (address if mapped is None else mapped).is_loopback


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
