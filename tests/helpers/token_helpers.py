"""A file of tokens with one of each kind, the record of a server, and an authority for certificates."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitwire.runtime_cloud.security import tokens as store
from splitwire.runtime_cloud.security.actions import ACTIONS

INTERNAL = (
    "Traceback",
    "site-packages",
    ".py",
    "/usr/",
    "/home/",
    "/tmp/",
    "onnxruntime",
    "uvicorn",
    "starlette",
    "httptools",
    "python",
)
"""What no error may tell a stranger."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """path: the file. The others are tokens; `all` may do everything, `first` may use tiny-0, `second` tiny-1."""

    path: Path
    all: str
    first: str
    second: str
    expired: str
    revoked: str

    @property
    def useless(self) -> dict[str, dict[str, str]]:
        """Why → headers that let nobody in."""
        unknown = f"splitwire_{'0' * 12}_{'A' * 43}"
        wrong = self.all[:-43] + ("B" * 43)
        tokens = {"unknown": unknown, "wrong secret": wrong, "expired": self.expired, "revoked": self.revoked}
        headers = {why: bearer(token) for why, token in tokens.items()}
        headers |= {
            "none": {},
            "empty": {"Authorization": ""},
            "no scheme": {"Authorization": self.all},
            "another scheme": {"Authorization": f"Token {self.all}"},
            "cut short": bearer(self.all[:-1]),
            "longer": bearer(self.all + "A"),
            "only the id": bearer(self.all[: -43 - 1]),
            "basic": {"Authorization": "Basic Og=="},
            "not ascii": {"Authorization": "Bearer splitwire_\xe9"},
        }
        return headers


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token_set(folder: Path) -> TokenSet:
    path = folder / "tokens.json"
    with store.changing(path) as entries:
        made = {
            "all": store.create(entries, "all", actions=ACTIONS)[1],
            "first": store.create(entries, "first", models=("tiny-0",))[1],
            "second": store.create(entries, "second", models=("tiny-1",))[1],
            "expired": store.create(entries, "expired", expires=time.time() - 1)[1],
            "revoked": store.create(entries, "revoked")[1],
        }
        store.revoke(entries, "revoked")
    return TokenSet(path=path, **made)


def audit_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Authority:
    """A private authority; its certificate is the file `ca`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        import trustme

        self.folder = folder
        self.authority: Any = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca = folder / f"{name}.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *, ends_in: datetime.timedelta | None = None) -> tuple[Path, Path]:
        """(cert, key) for 127.0.0.1 with this common name."""
        now = datetime.datetime.now(datetime.UTC)
        ends = {} if ends_in is None else {"not_before": now - datetime.timedelta(days=2), "not_after": now + ends_in}
        leaf = self.authority.issue_cert("127.0.0.1", common_name=name, **ends)
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        leaf.private_key_pem.write_to_path(str(key))
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return cert, key
