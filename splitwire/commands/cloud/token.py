"""`splitwire cloud token`: makes, lists, ends and replaces the tokens that a server takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.codec.errors import UsageError
from splitwire.commands.options import seconds
from splitwire.console import out, print_json, print_table

if TYPE_CHECKING:
    from splitwire.runtime_cloud.security.tokens import Entry

app = typer.Typer(help="Make, list, end and replace the tokens of a server.", no_args_is_help=True)

Tokens = Annotated[
    Path,
    typer.Option(
        metavar="FILE", envvar="SPLITWIRE_TOKENS", help="The file that `splitwire cloud serve --tokens` reads."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(help="Id of the token, or its name if only one has it.")]
Expires = Annotated[str, typer.Option(help="When it ends: after 12h, 90d, …", show_default="never")]
DAY_S = 86400.0


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses it: a device, a person, Prometheus. It is in the record.")],
    tokens: Tokens,
    action: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: infer, read, metrics, monitor, manage; repeatable.", show_default="infer, read"
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may use; repeatable.", show_default="all")
    ] = None,
    expires: Expires = "",
    certificate: Annotated[
        str, typer.Option(metavar="NAME", help="Instead of a token: a client certificate with this common name.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a token, and print it. It is shown once: the file has only its hash."""
    from splitwire.runtime_cloud.security import tokens as store
    from splitwire.runtime_cloud.security.actions import INFER, READ

    with store.changing(tokens) as entries:
        entry, token = store.create(
            entries,
            name,
            actions=tuple(action) if action else (INFER, READ),
            models=tuple(model) if model else (store.EVERY_MODEL,),
            expires=_ends(expires),
            certificate=certificate,
        )
    _print_new(entry, token, as_json)


@app.command("list")
def list_tokens(tokens: Tokens, as_json: Json = False) -> None:
    """List the tokens, without their secrets."""
    from splitwire.runtime_cloud.security.tokens import read_tokens

    entries = read_tokens(tokens)
    if as_json:
        print_json([_described(e) for e in entries])
        return
    from rich.markup import escape
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    for heading in ("id", "name", "state", "may", "models", "ends"):
        rows.add_column(heading)
    for e in entries:
        described = _described(e)
        name = f"{e.name} (certificate {e.certificate})" if e.certificate else e.name
        ends = described["expires"] or "never"
        cells = (e.id, name, described["state"], ", ".join(e.actions), ", ".join(e.models), ends)
        rows.add_row(*map(escape, cells))
    print_table(rows)


@app.command()
def revoke(which: Which, tokens: Tokens, as_json: Json = False) -> None:
    """End a token. A running server refuses it within seconds, also on connections that are open."""
    from splitwire.runtime_cloud.security import tokens as store

    with store.changing(tokens) as entries:
        entry = store.revoke(entries, which)
    if as_json:
        print_json(_described(entry))
    else:
        out.print(f"Revoked {entry.id} ({entry.name})", markup=False, soft_wrap=True)


@app.command()
def rotate(
    which: Which,
    tokens: Tokens,
    overlap: Annotated[str, typer.Option(help="How long the old one stays valid: 10min, 1h, …")] = "1h",
    expires: Expires = "",
    as_json: Json = False,
) -> None:
    """Make a token with the name and the rights of another one, which ends after --overlap."""
    from splitwire.runtime_cloud.security import tokens as store

    with store.changing(tokens) as entries:
        entry, token = store.rotate(entries, which, overlap_s=_span("--overlap", overlap), expires=_ends(expires))
    _print_new(entry, token, as_json)


def _span(option: str, text: str) -> float:
    """Seconds; as other options take them, and days."""
    days = text.strip().removesuffix("d")
    if days != text.strip() and days.isascii() and days.isdigit() and len(days) <= 5:
        return int(days) * DAY_S
    try:
        return seconds(option, text)
    except UsageError:
        raise UsageError(f"{option} takes a time, as in 90d, 12h or 10min; got {text!r}") from None


def _ends(expires: str) -> float | None:
    return time.time() + _span("--expires", expires) if expires else None


def _described(e: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "id": e.id,
        "name": e.name,
        **({"certificate": e.certificate} if e.certificate else {}),
        "actions": list(e.actions),
        "models": list(e.models),
        "created": _moment(e.created),
        "expires": None if e.expires is None else _moment(e.expires),
        "revoked": None if e.revoked is None else _moment(e.revoked),
        "state": e.state(time.time()),
    }


def _moment(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))


def _print_new(entry: Entry, token: str, as_json: bool) -> None:
    if as_json:
        print_json({**_described(entry), **({"token": token} if token else {})})
        return
    ends = "never ends" if entry.expires is None else f"ends {_moment(entry.expires)}"
    models = "all models" if "*" in entry.models else ", ".join(entry.models)
    line = f"{entry.id} ({entry.name}) may {', '.join(entry.actions)} for {models}; it {ends}"
    out.print(line, markup=False, soft_wrap=True)
    if token:
        out.print("The token, which is shown only now:", markup=False, soft_wrap=True)
        out.print(token, markup=False, soft_wrap=True)
